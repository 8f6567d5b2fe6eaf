"""Several devices train what one does on the same batches: `tf.distribute` (TensorFlow), `keras.distribution` (JAX).

The devices are made of CPUs, which has to happen before anything is computed: this file is also the script that trains.
"""

import contextlib
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")  # JAX, when this is the script

import keras
import numpy as np
import pytest
from helpers import BACKEND, OPTIMIZERS

import keras_rda

pytestmark = pytest.mark.skipif(BACKEND == "torch", reason="Keras trains on one device of torch's")
KINDS = {"tensorflow": ("mirrored",), "jax": ("data", "model"), "torch": ()}[BACKEND]
BASIC = ("XRDA",)  # by default; all with `-m every`
STEPS, BATCH_SIZE, EPOCHS = 16, 64, 3
each_optimizer = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in BASIC else pytest.mark.every) for name in OPTIMIZERS]
)


def network():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(8, 3, name="convolution"),
            layers.BatchNormalization(synchronized=BACKEND == "tensorflow"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(16, name="hidden"),
            layers.Dense(10, name="head"),
        ]
    )


@contextlib.contextmanager
def distributed(kind):
    """Let what is built and trained inside use several devices in the way of `kind`."""
    if kind == "one":
        yield
    elif kind == "mirrored":
        import tensorflow as tf

        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            yield
    else:
        devices = keras.distribution.list_devices()
        assert len(devices) == 4
        if kind == "data":
            distribution = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
        else:
            mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"), devices)
            layout = keras.distribution.LayoutMap(mesh)
            layout[".*convolution/kernel"] = (None, None, None, "model")
            layout[".*hidden/kernel"] = (None, "model")
            distribution = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
        keras.distribution.set_distribution(distribution)
        yield
        keras.distribution.set_distribution(None)


def with_channels():
    rows, units = np.arange(6 * 6 * 8) % 8, np.concatenate([np.arange(8), np.full(8, -1)])
    layout = {"convolution": None, "hidden": rows[:, None].tolist(), "head": units[:, None].tolist()}
    return keras_rda.XRDA(0.5, keras_rda.GroupL1(5e-3, "channels", layout))


def train(optimizer, kind, callbacks=(), spoil=None):
    """Train on the digits; return the model, with its weights and those that each device holds."""
    (x, y), _ = keras_rda.datasets.load_digits()
    x, y = x[: STEPS * BATCH_SIZE].astype("float32") / 16, y[: STEPS * BATCH_SIZE].astype("int32")
    if spoil is not None:
        x[spoil] = np.nan
    with distributed(kind):
        model = network()
        model.compile(optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(x, y, batch_size=BATCH_SIZE, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=list(callbacks))
    return model


def weights_by_device(variable):
    if BACKEND == "jax":
        return [np.asarray(shard.data) for shard in variable.value.addressable_shards]
    return [copy.numpy() for copy in getattr(variable.value, "values", [variable.value])]


def main(output, names):
    """Train with the optimizers `names` in all ways; save variables as `{way}/{name}/{number}`, and more."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    arrays = {}
    for name in names:
        for kind in ("one", *KINDS):
            model = train(OPTIMIZERS[name], kind)
            for number, variable in enumerate(model.variables):
                arrays[f"{kind}/{name}/{number}"] = np.asarray(variable)
            if kind in ("mirrored", "data"):
                copies = [weights_by_device(v) for v in [*model.trainable_variables, *model.optimizer.variables]]
                arrays[f"copies/{kind}/{name}"] = np.array([len(copy) for copy in copies])
                arrays[f"equal/{kind}/{name}"] = np.array(
                    [all(np.array_equal(copy[0], other) for other in copy) for copy in copies]
                )
            if kind == "model":
                hidden = model.get_layer("hidden").kernel
                slots = [v for v in model.optimizer.variables if v.shape == hidden.shape]
                arrays[f"shards/{name}"] = np.array([weights_by_device(v)[0].shape for v in (hidden, *slots)])
    for name in BASIC:
        for kind in ("one", *KINDS):
            model = train(OPTIMIZERS[name], kind, [keras_rda.TargetSparsity(0.7, interval=1)])
            arrays[f"steered/{kind}/{name}"] = np.array(keras_rda.sparsity(model, kernels_only=True))
            if kind == "model":
                arrays[f"steered/shards/{name}"] = np.array(
                    weights_by_device(model.get_layer("hidden").kernel)[0].shape
                )
    for kind in ("one", *KINDS):
        # Groups that lie in two kernels, and in shards of one.
        model = train(with_channels, kind)
        arrays[f"channels/{kind}"] = np.concatenate([np.ravel(variable) for variable in model.trainable_variables])
        if kind != "model":
            copies = [weights_by_device(v) for v in [*model.trainable_variables, *model.optimizer.variables]]
            arrays[f"channels/equal/{kind}"] = np.array([np.array_equal(c, d) for c, *more in copies for d in more])
    for kind in ("one", *KINDS):
        model = train(lambda: OPTIMIZERS["MRDA"](use_ema=True, ema_momentum=0.9), kind)
        arrays[f"averages/{kind}"] = np.concatenate([np.ravel(variable) for variable in model.trainable_variables])
    if BACKEND == "tensorflow":
        # The second replica alone has the NaN, in the first step.
        model = train(OPTIMIZERS["MRDA"], "mirrored", spoil=BATCH_SIZE - 1)
        arrays["spoilt"] = np.array(
            model.optimizer.variables[[v.name for v in model.optimizer.variables].index("steps")]
        )
    np.savez(output, **arrays)


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory):
    """What `main` saves, made in a process of its own for the optimizers of the tests that were chosen."""
    output = tmp_path_factory.mktemp("distribution") / "runs.npz"
    tests = [item for item in request.session.items if item.fspath == request.node.fspath]
    parameters = [item.callspec.params for item in tests if hasattr(item, "callspec")]
    names = dict.fromkeys(chosen["name"] for chosen in parameters if "name" in chosen)
    subprocess.run([sys.executable, __file__, output, *names], check=True, env={**os.environ, "KERAS_BACKEND": BACKEND})
    with np.load(output) as arrays:
        return dict(arrays)


pytestmark = pytest.mark.xdist_group("distribution")  # the runs once, not in each process


@pytest.mark.parametrize("kind", KINDS)
@each_optimizer
def test_weights_and_zeros_are_those_of_one_device(runs, name, kind):
    ours = [array for key, array in runs.items() if key.startswith(f"{kind}/{name}/")]
    theirs = [array for key, array in runs.items() if key.startswith(f"one/{name}/")]
    assert len(ours) == len(theirs) == 10
    for a, b in zip(ours, theirs, strict=True):
        # Sums over the batch are taken in another order, in float32; 48 steps, with a ReLU that closes a moment earlier
        # here and there, make 1e-7 some 3e-4.
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
        assert np.count_nonzero((a == 0) != (b == 0)) <= 1 + 0.002 * a.size


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "model"])
@each_optimizer
def test_replicas_hold_the_same_bits(runs, name, kind):
    copies, equal = runs[f"copies/{kind}/{name}"], runs[f"equal/{kind}/{name}"]
    assert set(copies) == {2 if kind == "mirrored" else 4}
    assert equal.all()


@pytest.mark.skipif(BACKEND != "jax", reason="variables are sharded on JAX")
@each_optimizer
def test_slots_are_sharded_as_their_variables(runs, name):
    shapes = runs[f"shards/{name}"]
    assert (shapes == (288, 8)).all()  # half of the 16 columns
    if name in BASIC:
        assert tuple(runs[f"steered/shards/{name}"]) == (288, 8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BASIC)
def test_target_sparsity_ends_where_it_does_on_one_device(runs, name, kind):
    assert runs[f"steered/{kind}/{name}"] == pytest.approx(runs[f"steered/one/{name}"], abs=0.002)


@pytest.mark.parametrize("kind", KINDS)
def test_averages_are_those_of_one_device(runs, kind):
    ours, theirs = runs[f"averages/{kind}"], runs["averages/one"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)
    assert np.count_nonzero((ours == 0) != (theirs == 0)) <= 1 + 0.002 * ours.size
    assert 0 < np.mean(ours == 0) < 1


@pytest.mark.parametrize("kind", KINDS)
def test_groups_in_several_kernels_are_those_of_one_device(runs, kind):
    ours, theirs = runs[f"channels/{kind}"], runs["channels/one"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)
    assert np.count_nonzero((ours == 0) != (theirs == 0)) == 0
    assert 0.1 < np.mean(ours == 0) < 0.9
    if kind != "model":
        assert runs[f"channels/equal/{kind}"].all()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="on JAX there is one gradient")
def test_first_gradient_with_a_nan_on_one_replica_does_not_count(runs):
    assert set(runs["spoilt"]) == {STEPS * EPOCHS - 1}


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])
