"""What every optimizer promises, one table: optimizers × promises. The backend is the process's."""

import keras
import numpy as np
import pytest
from helpers import BACKEND, compiled, compiled_steps, compiles, small_network, values, variables
from keras import ops

import keras_rda

KERNEL, BIAS = np.linspace(-1, 1, 12).reshape(3, 4), np.linspace(0.5, 1, 4)


def network(optimizer):
    # RDA is for weights that start at zero.
    return small_network("zeros" if isinstance(optimizer, keras_rda.RDA) else "glorot_uniform")


def start(optimizer):
    """A kernel and a bias that suit the optimizer, and two gradients."""
    kernel, bias = variables(0 * KERNEL if isinstance(optimizer, keras_rda.RDA) else KERNEL, BIAS)
    random = np.random.default_rng(0)
    gradients = [[random.normal(size=v.shape).astype("float32") for v in (kernel, bias)] for _ in range(5)]
    return [kernel, bias], gradients


def run(optimizer, weights, gradients):
    for gradient in gradients:
        optimizer.apply(list(map(ops.convert_to_tensor, gradient)), weights)
    return values(weights)


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(ours, theirs, **tolerance):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


def test_values_before_and_after_are_told_apart(make_optimizer):
    """All others here compare with what `values` kept: it has to stay when the variables change."""
    optimizer = make_optimizer()
    weights, gradients = start(optimizer)
    optimizer.build(weights)
    kept = values([*weights, *optimizer.variables])
    expected = [array.copy() for array in kept]
    optimizer.apply(list(map(ops.convert_to_tensor, gradients[0])), weights)
    assert_equal(kept, expected)
    assert any(np.any(a != b) for a, b in zip(kept, values([*weights, *optimizer.variables]), strict=True))


@compiles
def test_fit_trains_and_is_the_same_compiled_or_not(make_optimizer_of_each_kind, digits):
    x, y = digits[0][:96], digits[1][:96]
    results = []
    for jit_compile in (True, False):
        keras.utils.set_random_seed(1)
        optimizer = make_optimizer_of_each_kind()
        model = compiled(network(optimizer), optimizer, jit_compile=jit_compile)
        before = values(model.trainable_variables)
        loss = model.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0).history["loss"]
        results.append(values(model.trainable_variables))
        assert loss[-1] < loss[0]
        changed = [np.any(a != b) for a, b in zip(before, results[-1], strict=True)]
        # A network of zeros, where RDA starts, has gradients for its last bias alone.
        assert any(changed) if isinstance(optimizer, keras_rda.RDA) else all(changed)
    assert_close(*results, atol=1e-3)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="counts the traces of a tf.function")
def test_no_retracing_from_step_to_step(make_optimizer):
    import tensorflow as tf

    traces = []
    optimizer = make_optimizer()
    weights, gradients = start(optimizer)
    optimizer.build(weights)

    @tf.function(jit_compile=True)
    def apply(*gradients):
        traces.append(1)
        optimizer.apply(list(gradients), weights)

    for gradient in gradients:
        apply(*map(tf.constant, gradient))
        optimizer.learning_rate = 0.05
        if optimizer.penalty is not None:
            optimizer.penalty.strength = 0.02
    assert len(traces) == 1


@pytest.mark.skipif(BACKEND != "jax", reason="counts the compilations of a jitted function")
def test_no_recompilation_from_step_to_step(make_optimizer):
    import jax

    optimizer = make_optimizer()
    weights, gradients = start(optimizer)
    optimizer.build(weights)
    apply = jax.jit(optimizer.stateless_apply)
    slots, trained = [v.value for v in optimizer.variables], [v.value for v in weights]
    for gradient in gradients:
        trained, slots = apply(slots, gradient, trained)
    assert apply._cache_size() == 1


@pytest.mark.every  # half a minute each
@pytest.mark.skipif(BACKEND != "torch", reason="counts the graphs of torch.compile")
def test_torch_compiles_an_update_once_into_one_graph(make_optimizer):
    import torch

    optimizer, eager = make_optimizer(), make_optimizer()
    weights, gradients = start(optimizer)
    others, _ = start(eager)
    optimizer.build(weights)
    spoilt = [np.where(np.arange(g.size).reshape(g.shape) == 0, np.nan, g) for g in gradients[0]]
    gradients = [[spoilt[0], gradients[0][1]], *gradients, spoilt]  # its first does not start the kernel
    apply = torch.compile(optimizer.apply, fullgraph=True)  # which raises where the graph ends early
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for gradient in gradients:
            apply(list(map(ops.convert_to_tensor, gradient)), weights)
    assert_close(values(weights), run(eager, others, gradients))


def test_slots_are_float32_and_few(make_optimizer):
    optimizer = make_optimizer()
    weights, _ = start(optimizer)
    optimizer.build(weights)
    slots = [[v for v in optimizer.variables if tuple(v.shape) == w.shape] for w in weights]
    assert tuple(map(len, slots)) == make_optimizer.slots
    assert all(v.dtype == "float32" for v in slots[0] + slots[1])


def test_step_is_a_function_of_its_arguments(make_optimizer):
    optimizer = make_optimizer()
    weights, gradients = start(optimizer)
    run(optimizer, weights, gradients[:2])
    before = values([*weights, *optimizer.variables])
    for own, gradient in zip(optimizer.trained, gradients[2], strict=True):
        arguments = own.precise, ops.convert_to_tensor(gradient), 0.1, optimizer.now(own.position), own.state
        (first, slots), (second, others) = (optimizer.step(*arguments, optimizer.prox(own)) for _ in range(2))
        assert list(slots) == list(others) == list(own.slots)
        assert_equal(values([first, *slots.values()]), values([second, *others.values()]))
    assert_equal(values([*weights, *optimizer.variables]), before)


def test_what_says_so_does_not_start_from_the_weights(make_optimizer):
    """`starts_from_weights` False saves variables of low precision a slot."""
    optimizer, other = make_optimizer(), make_optimizer()
    if optimizer.starts_from_weights:
        pytest.skip("it says that it does")
    (kernel, bias), gradients = start(optimizer)
    (moved, _), _ = start(other)
    run(optimizer, [kernel, bias], gradients[:2])
    run(other, [moved, bias], gradients[:1])
    moved.assign(ops.convert_to_tensor(moved) + 0.5)
    run(other, [moved, bias], gradients[1:2])
    assert_equal(values([moved]), values([kernel]))


def test_what_says_so_does_not_keep_the_strength_of_earlier_steps(make_optimizer):
    """`strength_in_state` False lets `TargetSparsity` read off which λ gives which σ."""
    if not make_optimizer.has_penalty or make_optimizer().strength_in_state:
        pytest.skip("it has no penalty, or says that it does")
    points = []
    for strength in (1e-4, 0.1):
        optimizer = make_optimizer(penalty=strength)
        weights, gradients = start(optimizer)
        run(optimizer, weights, gradients)
        points.append(optimizer.present_prox_point(optimizer.trained[0]))
    assert_equal(values(points[0]), values(points[1]))


def test_variable_without_gradient_does_not_move(make_optimizer):
    optimizer, alone = make_optimizer(), make_optimizer()
    weights, gradients = start(optimizer)
    optimizer.apply(gradients[0], weights)
    before = values(weights)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([None, gradients[1][1]])
    after = values(weights)
    np.testing.assert_array_equal(after[0], before[0])
    assert np.any(after[1] != before[1])
    # t counts this variable's updates: its next step is its second.
    optimizer.apply(gradients[2])
    others, _ = start(alone)
    run(alone, others, [gradients[0], gradients[2]])
    np.testing.assert_array_equal(values(weights)[0], values(others)[0])


def test_non_finite_gradient_counts_as_zero(make_optimizer):
    optimizer, alone = make_optimizer(), make_optimizer()
    weights, gradients = start(optimizer)
    others, _ = start(alone)
    spoilt, zeroed = [g.copy() for g in gradients[1]], [g.copy() for g in gradients[1]]
    spoilt[0][0, :3] = np.nan, np.inf, -np.inf
    zeroed[0][0, :3] = 0
    ours = run(optimizer, weights, [gradients[0], spoilt, *gradients[2:]])
    theirs = run(alone, others, [gradients[0], zeroed, *gradients[2:]])
    assert_equal(ours, theirs)
    assert np.all(np.isfinite(np.concatenate([v.ravel() for v in ours])))


@pytest.mark.parametrize(("share", "weight_decay"), [("one entry", 0.1), ("all entries", None)])
def test_first_step_waits_for_a_finite_gradient(make_optimizer, share, weight_decay):
    """A step from a sum of nothing would put every kernel with centre zero at zero, for good."""
    optimizer, alone = make_optimizer(weight_decay=weight_decay), make_optimizer(weight_decay=weight_decay)
    weights, gradients = start(optimizer)
    before = values(weights)
    for _ in range(2):
        spoilt = [g.copy() if share == "one entry" else np.full_like(g, np.nan) for g in gradients[0]]
        for gradient in spoilt:
            gradient.flat[0] = np.nan
        optimizer.apply(spoilt, weights)
        assert_equal(values(weights), before)
    others, _ = start(alone)
    assert_equal(run(optimizer, weights, gradients), run(alone, others, gradients))


def test_accumulated_micro_batches_are_one_update(make_optimizer):
    accumulating, plain = make_optimizer(gradient_accumulation_steps=2), make_optimizer()
    weights, gradients = start(accumulating)
    others, _ = start(plain)
    pairs = [gradients[0], gradients[1], gradients[2], gradients[3]]
    means = [[(a + b) / 2 for a, b in zip(*pair, strict=True)] for pair in (pairs[:2], pairs[2:])]
    assert_close(run(accumulating, weights, pairs), run(plain, others, means))
    before = values(weights)
    accumulating.apply(gradients[4])
    assert_equal(values(weights), before)  # a micro-batch is no update


def test_weight_decay_is_added_to_the_gradient(make_optimizer):
    decayed, plain = make_optimizer(weight_decay=0.1), make_optimizer()
    decayed.exclude_from_weight_decay(var_names=["bias"])
    weights, gradients = start(decayed)
    others, _ = start(plain)
    for gradient in gradients:
        kernel = values(others)[0]
        plain.apply([gradient[0] + np.float32(0.1) * kernel, gradient[1]], others)
    assert_close(run(decayed, weights, gradients), values(others))


@pytest.mark.parametrize("clip", [{"clipnorm": 0.1}, {"global_clipnorm": 0.1}, {"clipvalue": 0.05}])
def test_clipping_acts_before_the_step(make_optimizer_of_each_kind, clip):
    clipped, plain = make_optimizer_of_each_kind(**clip), make_optimizer_of_each_kind()
    weights, gradients = start(clipped)
    others, _ = start(plain)

    def clip_pair(pair):
        if "clipvalue" in clip:
            return [np.clip(g, -0.05, 0.05) for g in pair]
        norms = [np.linalg.norm(g) for g in pair]
        if "global_clipnorm" in clip:
            norms = [np.hypot(*norms)] * 2
        return [g * np.float32(0.1 / max(0.1, norm)) for g, norm in zip(pair, norms, strict=True)]

    assert_close(run(clipped, weights, gradients), run(plain, others, map(clip_pair, gradients)))


def test_ema_keeps_the_zeros(make_optimizer_of_each_kind):
    averaging, plain = make_optimizer_of_each_kind(use_ema=True, ema_momentum=0.5), make_optimizer_of_each_kind()
    weights, gradients = start(averaging)
    others, _ = start(plain)
    last = run(plain, others, gradients)
    run(averaging, weights, gradients)
    averaging.finalize_variable_values(weights)
    average = None
    weights_again, _ = start(again := make_optimizer_of_each_kind())
    for gradient in gradients:
        current = run(again, weights_again, [gradient])
        average = current if average is None else [0.5 * a + 0.5 * c for a, c in zip(average, current, strict=True)]
    assert_close(values(weights), [np.where(last[0] == 0, 0, average[0]), average[1]])


def test_ema_overwriting_is_refused(make_optimizer):
    with pytest.raises(ValueError, match="ema_overwrite_frequency=10"):
        make_optimizer(use_ema=True, ema_overwrite_frequency=10)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.every)])
def test_low_precision_variables_move_as_float32_ones(make_optimizer_of_each_kind, dtype):
    """600 small gradients: a sum in bfloat16 would stop growing at −2.5, and weights step by step near 1 not move."""
    optimizer = make_optimizer_of_each_kind(learning_rate=0.01)
    w_1 = np.linspace(-1, 1, 4).reshape(2, 2) * (not isinstance(optimizer, keras_rda.RDA))
    (low,), (high,) = variables(w_1, dtype=dtype), variables(w_1)
    gradient = ops.convert_to_numpy(ops.cast(np.full((2, 2), -0.01), dtype))
    *_, ours = compiled_steps(optimizer, low, [gradient] * 600)
    *_, theirs = compiled_steps(
        make_optimizer_of_each_kind(learning_rate=0.01), high, [gradient.astype("float32")] * 600
    )
    assert all(v.dtype == "float32" for v in optimizer.variables if tuple(v.shape) == (2, 2))
    assert ours.dtype == ops.convert_to_numpy(low).dtype
    assert_close([ours.astype("float32")], [theirs], rtol=0.01, atol=0.01)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.every)])
def test_averages_and_accumulated_gradients_of_low_precision_variables(make_optimizer_of_each_kind, dtype):
    """In bfloat16 256 + 1 is 256; in float16, 2048 + 1 is 2048; in both, a momentum of 0.9999 is 1."""
    large = {"bfloat16": 256, "float16": 2048}[dtype]
    ends = []
    for precision in (dtype, "float32"):
        optimizer = make_optimizer_of_each_kind(
            learning_rate=0.01, use_ema=True, ema_momentum=0.9999, gradient_accumulation_steps=32
        )
        w_1 = np.linspace(-1, 1, 4).reshape(2, 2) * (not isinstance(optimizer, keras_rda.RDA))
        (variable,) = variables(w_1, dtype=precision)
        optimizer.build([variable])
        (average,), averages = optimizer._model_variables_moving_average, []
        for _ in range(2):
            gradients = [np.full((2, 2), 32 if number else large) for number in range(32)]
            for _ in compiled_steps(
                optimizer, variable, [ops.convert_to_numpy(ops.cast(-g, precision)) for g in gradients]
            ):
                pass
            averages.append(values([average])[0].astype("float64"))
        ends.append([values([variable])[0].astype("float32"), 1e4 * (averages[1] - averages[0])])
    assert_close(*ends, rtol=0.02, atol=5e-3)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_averages_belong_to_their_variables(make_optimizer, dtype):
    """Without a step, and when only some variables are trained any more."""
    optimizer = make_optimizer(use_ema=True, ema_momentum=0.5, learning_rate=0.5)
    start = 0.0 if isinstance(optimizer, keras_rda.RDA) else 4.0
    first, second = variables(np.full((2, 2), start), np.full((2, 3), start), dtype=dtype)
    optimizer.build([first, second])
    for _ in range(3):
        optimizer.apply([None, -ops.ones((2, 3), dtype)], [first, second])
    moved = values([second])[0]
    optimizer.finalize_variable_values([first, second])
    np.testing.assert_array_equal(values([first])[0].astype("float32"), start)  # it was never stepped
    assert np.all(np.abs(values([second])[0].astype("float32") - moved.astype("float32")) > 0.01)
    average = values([second])[0]
    first.assign(np.full((2, 2), 7.0))
    optimizer.finalize_variable_values([second])  # the first was frozen meanwhile
    np.testing.assert_array_equal(values([second])[0], average)
    np.testing.assert_array_equal(values([first])[0].astype("float32"), 7.0)


@pytest.mark.skipif(BACKEND == "jax", reason="JAX has no float64 by default")
def test_accumulated_gradients_of_float64_variables():
    optimizer = keras_rda.MRDA(gradient_accumulation_steps=2)
    (kernel,) = variables(np.ones((2, 2)), dtype="float64")
    for _ in range(2):
        optimizer.apply([ops.ones((2, 2), "float64")], [kernel])
    assert np.all(values([kernel])[0] < 1)


def test_low_precision_weights_set_from_outside_are_where_the_next_step_starts():
    (low,) = variables(KERNEL, dtype="bfloat16")
    optimizer = keras_rda.ProxSGD(0.1, penalty=0.0, exponent=0.0)
    run(optimizer, [low], [[np.ones(KERNEL.shape, "float32")]])
    low.assign(ops.full(KERNEL.shape, 2.0))
    run(optimizer, [low], [[np.ones(KERNEL.shape, "float32")]])
    assert_close([values([low])[0].astype("float32")], [np.full(KERNEL.shape, 1.9)], rtol=0.005)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="IndexedSlices are TensorFlow's")
@pytest.mark.parametrize("jit_compile", [True, False])
def test_sparse_embedding_gradients(make_optimizer_of_each_kind, jit_compile):
    import tensorflow as tf

    table, dense_table = (keras.Variable(np.ones((6, 2)), name="embeddings", dtype="float32") for _ in range(2))
    kernels = variables(np.zeros((2, 2)), np.zeros((2, 2)))
    sparse_optimizer, dense_optimizer = make_optimizer_of_each_kind(), make_optimizer_of_each_kind()
    sparse_optimizer.build([table, kernels[0]])
    dense_optimizer.build([dense_table, kernels[1]])
    rows = tf.IndexedSlices(
        tf.constant([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), tf.constant([1, 4, 1]), tf.constant([6, 2])
    )
    kernel_gradient = tf.ones((2, 2))
    apply = tf.function(lambda *g: sparse_optimizer.apply(list(g)), jit_compile=jit_compile)
    for _ in range(3):
        apply(rows, kernel_gradient)
        dense_optimizer.apply([tf.convert_to_tensor(rows), kernel_gradient])
    assert_close(values([table]), values([dense_table]))
    assert np.all(values([table])[0][0] == 1.0)  # embeddings are not penalised, and row 0 got no gradient


def test_schedule_callable_and_callbacks_set_the_rate(make_optimizer_of_each_kind, digits):
    x, y = digits[0][:32], digits[1][:32]
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    results = []
    for learning_rate, callbacks in (
        (schedule, []),
        (0.1, [keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 * 0.5**epoch)]),
    ):
        keras.utils.set_random_seed(2)
        optimizer = make_optimizer_of_each_kind(learning_rate=learning_rate)
        model = compiled(network(optimizer), optimizer)
        model.fit(x, y, batch_size=32, epochs=3, verbose=0, callbacks=callbacks)
        results.append(values(model.trainable_variables))
    assert_close(*results, atol=1e-5)
    weights, gradients = start(optimizer)
    others, _ = start(optimizer)
    assert_equal(
        run(make_optimizer_of_each_kind(learning_rate=lambda: 0.1), weights, gradients),
        run(make_optimizer_of_each_kind(learning_rate=0.1), others, gradients),
    )


def test_reduce_lr_on_plateau(make_optimizer_of_each_kind, digits):
    x, y = digits[0][:32], digits[1][:32]
    optimizer = make_optimizer_of_each_kind(learning_rate=0.1)
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=100.0)
    compiled(network(optimizer), optimizer).fit(x, y, batch_size=32, epochs=3, verbose=0, callbacks=[plateau])
    assert float(optimizer.learning_rate) == pytest.approx(0.025)


def test_custom_loop_equals_fit(make_optimizer_of_each_kind, digits):
    x, y = digits[0][:64], digits[1][:64]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def dense_network(optimizer):
        keras.utils.set_random_seed(3)
        initializer = "zeros" if isinstance(optimizer, keras_rda.RDA) else "glorot_uniform"
        layers = [keras.Input((64,)), keras.layers.Dense(10, kernel_initializer=initializer)]
        return keras.Sequential(layers)

    optimizer = make_optimizer_of_each_kind()
    model = compiled(dense_network(optimizer), optimizer)
    model.fit(x.reshape(-1, 64), y, batch_size=32, epochs=1, shuffle=False, verbose=0)

    custom = make_optimizer_of_each_kind()
    by_hand = dense_network(custom)
    for start_index in (0, 32):
        batch, labels = (a[start_index : start_index + 32] for a in (x.reshape(-1, 64), y))
        if BACKEND == "tensorflow":
            import tensorflow as tf

            with tf.GradientTape() as tape:
                value = loss(labels, by_hand(batch))
            gradients = tape.gradient(value, by_hand.trainable_variables)
        elif BACKEND == "torch":
            import torch

            trained = [v.value for v in by_hand.trainable_variables]
            gradients = torch.autograd.grad(loss(labels, by_hand(batch)), trained)
        else:
            import jax

            def of(trained, batch=batch, labels=labels):
                return loss(labels, by_hand.stateless_call(trained, [], batch)[0])

            gradients = jax.grad(of)([v.value for v in by_hand.trainable_variables])
        custom.apply(gradients, by_hand.trainable_variables)
    assert_close(values(model.trainable_variables), values(by_hand.trainable_variables))
