"""What accuracy.py compares with: masks that hold, and the schedules of three papers."""

import itertools
import pathlib
import sys

import keras
import numpy as np
import pytest
from helpers import BACKEND, COMPILES, compiled, fit, small_network, values
from keras import ops

import keras_rda

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples" / "benchmarks"))
import accuracy_networks
import opponents
from opponents import AlternatingCompression, GradualPruning, MaskedSGD, RigL

METHODS = opponents.OPPONENTS.values()


def sgd():
    return MaskedSGD(0.05, momentum=0.9, weight_decay=1e-3, keeps_gradients=True)


def planned(opponent, steps, epochs=1, model=None):
    """The opponent at the beginning of a training that takes no steps of its own."""
    opponent.set_params({"steps": steps, "epochs": epochs})
    opponent.set_model(compiled(model or small_network(), sgd()))
    opponent.on_train_begin()
    opponent.on_epoch_begin(0)
    return opponent


def sigma(opponent):
    return keras_rda.sparsity(opponent.model, kernels_only=True)


class Watch(keras.callbacks.Callback):
    """The masked kernels, as arrays, at the beginning and end of each epoch and after each batch."""

    def __init__(self):
        super().__init__()
        self.begins, self.batches, self.ends = [], [], []

    def now(self):
        return [
            {name: ops.convert_to_numpy(getattr(own, name)) for name in ("kernel", "momentum", "mask")}
            for own in self.model.optimizer.masked
        ]

    def on_epoch_begin(self, epoch, logs=None):
        self.begins.append(self.now())

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(self.now())

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(self.now())


@pytest.mark.parametrize("sparsity", [0.9, 0.98])
@pytest.mark.parametrize("method", METHODS)
def test_ends_at_the_wanted_sparsity(method, sparsity, digits):
    model = compiled(accuracy_networks.convolutions(keras, keras.layers, (8, 8, 1)), sgd())
    fit(model, digits, [method(sparsity)], epochs=20)
    assert keras_rda.sparsity(model, kernels_only=True) == pytest.approx(sparsity, abs=0.005)


@pytest.mark.parametrize("method", METHODS)
def test_masks_hold(method, digits):
    watch = Watch()
    fit(compiled(small_network(), sgd()), digits, [method(0.9), watch], epochs=20)
    for own in (own for batch in watch.batches for own in batch):
        assert not np.any(own["kernel"][own["mask"] == 0])
        assert not np.any(own["momentum"][own["mask"] == 0])
    assert any(np.any(own["mask"] == 0) for own in watch.batches[-2])


def test_masks_hold_in_a_compiled_loop():
    """Of several steps; they are not constants of it: a mask that changes afterwards is that of the next call."""
    kernel = keras.Variable(np.ones((2, 2), "float32"), name="kernel")
    optimizer = MaskedSGD(0.1, momentum=0.9, keeps_gradients=True)
    optimizer.build([kernel])
    (own,) = optimizer.masked
    variables = [kernel, *optimizer.variables]
    if BACKEND == "jax":
        import jax

        @jax.jit
        def loop(state, gradients):
            def step(state, gradient):
                trained, slots = optimizer.stateless_apply(state[1:], [gradient], state[:1])
                return [*trained, *slots], None

            return jax.lax.scan(step, state, gradients)[0]

        def run(gradients):
            for variable, value in zip(variables, loop([v.value for v in variables], gradients), strict=True):
                variable.assign(value)
    elif not COMPILES:

        def run(gradients):
            for gradient in gradients:
                optimizer.apply([keras.ops.convert_to_tensor(gradient)], [kernel])
    else:
        import tensorflow as tf

        @tf.function(jit_compile=True)
        def run(gradients):
            for gradient in tf.unstack(gradients):
                optimizer.apply([gradient], [kernel])

    gradients = np.ones((3, 2, 2), "float32")
    gradients[:, 0, 1] = 1, 2, 3
    own.mask.assign([[1, 0], [1, 1]])
    run(gradients)
    # Three steps of momentum 0.9 and rate 0.1: v = -0.1, -0.19, -0.271, so w = 1 - 0.561.
    np.testing.assert_allclose(values([kernel, own.momentum]), [[[0.439, 0], [0.439] * 2], [[-0.271, 0], [-0.271] * 2]])
    np.testing.assert_array_equal(values([own.gradient])[0], [[1, 3], [1, 1]])  # of the zero too
    own.mask.assign([[0, 1], [1, 1]])
    run(gradients)
    # The zero that was released: v = -0.1, -0.29, -0.561.
    np.testing.assert_allclose(values([kernel])[0][0], [0, -0.951], rtol=1e-6)


def test_kernels_alone_have_masks():
    opponent = planned(GradualPruning(0.5), 200)
    assert [own.kernel.path.split("/")[-1] for own in opponent.model.optimizer.masked] == ["kernel", "kernel"]


def test_gradual_pruning_follows_the_cubic_schedule():
    # 0.75 of 200 batches, in 25 changes of 6 each. At 30 a fifth of these has passed, and σ is 0.8·(1 - 0.8³); at 75
    # half of them: 0.8·(1 - 0.5³).
    opponent = planned(GradualPruning(0.8), 200)
    assert opponent.settings == {"interval": 6, "end": 150}
    assert [opponent.wanted(batch) for batch in (0, 30, 75, 150)] == pytest.approx([0, 0.3904, 0.7, 0.8])
    # In long training every 100 batches: 0.75 · 9380 is 7035.
    assert planned(GradualPruning(0.8), 469, 20).settings == {"interval": 100, "end": 7000}


def test_changes_are_due_whatever_the_interval_of_the_calls():
    opponent = planned(GradualPruning(0.8), 200)
    size = 3 * 3 * 8 + 72 * 10

    def after(batch):
        opponent.on_train_batch_end(batch - 1)
        return sigma(opponent)

    assert after(5) == 0
    assert after(33) == pytest.approx(opponent.wanted(30), abs=1 / size)
    assert after(35) == pytest.approx(opponent.wanted(30), abs=1 / size)
    assert after(36) == pytest.approx(opponent.wanted(36), abs=1 / size)
    assert after(200) == pytest.approx(0.8, abs=1 / size)
    opponent.on_epoch_begin(1)
    kernel = opponent.model.optimizer.masked[0].kernel
    kernel.assign(ops.ones(kernel.shape))
    opponent.on_train_batch_end(50)  # all changes are over
    assert np.all(values([kernel])[0] == 1)


def test_pruning_compares_all_kernels():
    opponent = planned(GradualPruning(0.5), 200)
    first, second = (own.kernel for own in opponent.model.optimizer.masked)
    first.assign(np.full(first.shape, -2.0))
    second.assign(np.linspace(0.1, 1, 720).reshape(second.shape))
    opponent.model.optimizer.prune(0.5)
    # Of 792 weights 396 stay: the 72 of the first kernel, and the 324 largest of the second.
    assert np.all(values([first])[0] == -2)
    np.testing.assert_array_equal(np.flatnonzero(values([second])[0]), range(720 - 324, 720))


def test_erdos_renyi_kernel():
    """A convolution 3×3×1×8, 72 weights, and a matrix 20×10, 200 weights: the sums of their shapes are 15 and 30."""
    shapes = [(3, 3, 1, 8), (20, 10)]
    # Half of 272 is 136, shared as 15 to 30: 45.33 of 72, and 90.67 of 200.
    np.testing.assert_allclose(opponents.erdos_renyi_kernel(shapes, 0.5), [136 / 3 / 72, 2 * 136 / 3 / 200])
    # 0.8 of 272 is 217.6, and a third of that 72.53: more than there are, so the others get 145.6.
    np.testing.assert_allclose(opponents.erdos_renyi_kernel(shapes, 0.2), [1, 145.6 / 200])


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9, 0.95, 0.98])
def test_erdos_renyi_kernel_sums_to_the_wanted_density(sparsity):
    network = accuracy_networks.residual(keras, keras.layers, (32, 32, 3))
    kernels = [variable for variable in network.trainable_variables if len(variable.shape) > 1]
    sizes = np.array([np.prod(kernel.shape) for kernel in kernels])
    densities = opponents.erdos_renyi_kernel([kernel.shape for kernel in kernels], sparsity)
    assert np.sum(densities * sizes) == pytest.approx((1 - sparsity) * np.sum(sizes))
    assert 0 < np.min(densities) <= np.max(densities) <= 1


@pytest.mark.parametrize("comes_back", [False, True])
def test_rigl_moves_the_smallest_weights_to_the_largest_gradients(comes_back):
    """One kernel of 20 weights, of which 10 are active: ±1 … ±10, at the first places."""
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(5, use_bias=False)])
    opponent = planned(RigL(0.5), 100, model=model)
    (own,) = opponent.model.optimizer.masked
    assert np.count_nonzero(values([own.mask])[0]) == 10
    opponent.on_train_batch_end(20)
    weights, gradients = np.zeros(20), np.full(20, 0.5)
    weights[:10] = [1, -2, 3, -4, 5, -6, 7, -8, 9, -10]
    gradients[[5, 12, 15]] = 100, 8, -9  # the first belongs to a weight that stays
    gradients[0] = 8.5 if comes_back else 1
    arrays = {"kernel": weights, "momentum": weights, "mask": weights != 0, "gradient": gradients}
    for name, array in arrays.items():
        getattr(own, name).assign(array.reshape(4, 5).astype("float32"))
    # 75 batches in 25 changes. At 24, 0.15·(1 + cos(0.32·π)) = 0.23 of the 10 move: two, the places 0 and 1. They make
    # room at 15 and 12, or at 15 and 0, which then goes on as it was.
    opponent.on_train_batch_end(23)
    kernel, mask, momentum = (array.ravel() for array in values([own.kernel, own.mask, own.momentum]))
    stays = {*range(2, 10)} | ({0} if comes_back else set())
    assert set(np.flatnonzero(mask)) == stays | {15} | (set() if comes_back else {12})
    assert set(np.flatnonzero(kernel)) == set(np.flatnonzero(momentum)) == stays
    np.testing.assert_array_equal(kernel[list(stays)], weights[list(stays)])


def test_rigl_keeps_the_number_of_weights(digits):
    watch = Watch()
    opponent = RigL(0.9)
    fit(compiled(small_network(), sgd()), digits, [opponent, watch], epochs=20)
    # Of 792 weights 79.2 are wanted. The sums of the shapes are 3+3+1+8 and 72+10, so 15/97 and 82/97 of them.
    assert opponent.numbers == [12, 67]
    for batch in watch.batches:
        assert [np.count_nonzero(own["mask"]) for own in batch] == opponent.numbers
    masks = [batch[1]["mask"] for batch in watch.batches]
    changes = [np.any(one != other) for one, other in itertools.pairwise(masks)]
    assert opponent.settings["end"] == 30
    assert any(changes[:10])
    assert not any(changes[29:])


def test_alternating_compression_has_the_phases_of_the_public_configuration():
    def sparse(epochs):
        opponent = planned(AlternatingCompression(0.95), 4, epochs)
        return [epoch for epoch in range(epochs) if opponent.is_sparse(epoch)]

    # ResNet50's of 100 epochs: sparse from 10, 20, … 70, for 5 each, and from 85.
    starts = range(10, 71, 10)
    assert sparse(100) == [start + epoch for start in starts for epoch in range(5)] + [*range(85, 100)]
    assert sparse(20) == [2, 4, 6, 8, 10, 12, 14, 17, 18, 19]
    assert sparse(10) == [1, 3, 5, 8, 9]
    assert sparse(2) == [1]


def test_alternating_compression_releases_the_weights(digits):
    watch = Watch()
    opponent = AlternatingCompression(0.9)
    fit(compiled(small_network(), sgd()), digits, [opponent, watch], epochs=10)
    for epoch in range(10):
        begin, end = ([own["kernel"] for own in at[epoch]] for at in (watch.begins, watch.ends))
        zeros = sum(np.count_nonzero(kernel == 0) for kernel in end)
        if epoch in (1, 3, 5, 8, 9):
            assert zeros >= round(0.9 * 792)
        elif epoch in (2, 4, 6):  # a dense phase begins
            assert sum(np.count_nonzero(kernel == 0) for kernel in begin) >= round(0.9 * 792)
            assert zeros < 0.5 * 792
            assert not any(np.any(own["momentum"]) for own in watch.begins[epoch])
    assert any(np.any(own["momentum"]) for own in watch.begins[7])  # in the midst of one
    assert any(np.any(own["momentum"]) for own in watch.begins[8])  # at its end


@pytest.mark.parametrize("sparsity", [0, 1, 95, -0.1, float("nan")])
@pytest.mark.parametrize("method", METHODS)
def test_a_sparsity_that_is_none_is_refused(method, sparsity):
    with pytest.raises(ValueError, match=rf"above 0 and below 1; received {sparsity}\. For 95 % write 0\.95"):
        method(sparsity)


def test_training_that_is_too_short_is_refused(digits):
    for method in (GradualPruning, RigL):
        with pytest.raises(ValueError, match=r"takes 34 batches; received 2 epochs of 2\. Train"):
            fit(compiled(small_network(), sgd()), digits, [method(0.9)])
    with pytest.raises(ValueError, match=r"at least 2; received 1 epochs\. Train"):
        fit(compiled(small_network(), sgd()), digits, [AlternatingCompression(0.9)], epochs=1)
