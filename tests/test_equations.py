"""Each optimizer against the float64 transcription of its equation, step by step over 2,000 steps (on torch 800)."""

import functools
import itertools

import keras
import numpy as np
import pytest
import reference
from helpers import BACKEND, COMPILES, KINDS, compiled_steps, values, variables
from hypothesis import given
from hypothesis import strategies as st

import keras_rda

STEPS = 2000 if COMPILES else 800  # not compiled, each takes milliseconds
RESTARTS = (STEPS * 7 // 20, STEPS * 3 // 4)
SHAPE = (6, 5)
# A float32 sum of 2,000 terms is off by at most 2,000 half-ulps of its size, and by far less on average; by more
# where equal steps are added to a weight, which round the same way each time.
TOLERANCE = 400 * np.finfo(np.float32).eps

CONSTANT = 0.7
SCHEDULE = keras.optimizers.schedules.CosineDecay(1.0, STEPS)


def gradients(seed=0):
    """Gradients with a mean, so that some weights end inside the threshold and some far outside."""
    random = np.random.default_rng(seed)
    mean = random.normal(size=SHAPE) * np.logspace(-3, 0, SHAPE[1])
    return [(mean + 0.3 * random.normal(size=SHAPE)).astype("float32") for _ in range(STEPS)]


@functools.cache  # a schedule takes a millisecond a step
def rates(learning_rate):
    if callable(learning_rate):
        return [float(learning_rate(t)) for t in range(STEPS)]
    return [float(np.float32(learning_rate))] * STEPS


def assert_follows(optimizer, w_1, gradients, expected, strength=0.0):
    variable = keras.Variable(w_1, dtype="float32", name="kernel")
    zeros = 0
    steps = 0
    for received, wanted in zip(compiled_steps(optimizer, variable, gradients), expected, strict=True):
        scale = max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(received, wanted, rtol=0, atol=TOLERANCE * scale)
        # Zeros are exact: an entry is zero in both, or the other is within rounding of the threshold.
        assert np.all(np.abs(wanted[received == 0]) <= TOLERANCE * scale)
        zeros = np.mean(received == 0)
        steps += 1
    assert steps == STEPS
    return zeros


# Optimizer, of the rate and λ; transcription, of w_1, the gradients, the rates as a list and λ; and λ.
EQUATIONS = {
    "SDA": (
        lambda rate, strength: keras_rda.SDA(rate),
        lambda w, g, a, strength: reference.dual_averaging(w, g, a, 0.0),
        0.0,
    ),
    "RDA": (keras_rda.RDA, lambda w, *args, **own: reference.dual_averaging(0 * w, *args, **own), 0.02),
    "MRDA": (keras_rda.MRDA, lambda w, *args, **own: reference.dual_averaging(0 * w, *args, **own), 0.02),
    "MRDA-initial": (
        lambda rate, strength: keras_rda.MRDA(rate, strength, center="initial"),
        reference.dual_averaging,
        0.02,
    ),
    "MRDA-weights": (
        lambda rate, strength: keras_rda.MRDA(rate, strength, start="weights"),
        lambda w, *args, **own: reference.dual_averaging(0 * w, *args, w_1=w, **own),
        0.02,
    ),
    "ProxSGD": (keras_rda.ProxSGD, reference.prox_sgd, 0.2),
    "ProxSGD-momentum": (
        lambda rate, strength: keras_rda.ProxSGD(rate, strength, momentum=0.5, exponent=0.25),
        lambda *args, **own: reference.prox_sgd(*args, momentum=0.5, exponent=0.25, **own),
        0.2,
    ),
    "SqrtProxSGD": (keras_rda.SqrtProxSGD, reference.sqrt_prox_sgd, 1e-4),
    "RMDA": (keras_rda.RMDA, lambda *args, **own: reference.rmda(*args, averaging=0.1, **own), 0.02),
    "RMDA-restarts": (
        lambda rate, strength: keras_rda.RMDA(rate, strength, averaging=0.2, restarts=RESTARTS),
        lambda *args, **own: reference.rmda(*args, averaging=0.2, restarts=RESTARTS, **own),
        0.02,
    ),
    "XRDA": (keras_rda.XRDA, reference.xrda, 2e-3),
    "XRDA-averaging": (
        lambda rate, strength: keras_rda.XRDA(rate, strength, averaging=None),
        lambda *args, **own: reference.xrda(*args, averaging=None, **own),
        2e-3,
    ),
    "XRDA-dual-averaging": (
        lambda rate, strength: keras_rda.XRDA(rate, strength, averaging=1.0, reweighting=50.0, time_scale=3.0),
        lambda *args, **own: reference.xrda(*args, averaging=1.0, reweighting=50.0, time_scale=3.0, **own),
        2e-4,
    ),
}


@pytest.mark.parametrize("rate", [CONSTANT, SCHEDULE], ids=["constant", "schedule"])
@pytest.mark.parametrize("name", EQUATIONS)
def test_follows_its_equation(name, rate):
    make, transcription, strength = EQUATIONS[name]
    w_1 = np.random.default_rng(1).normal(size=SHAPE).astype("float32") * (name != "RDA")
    g = gradients()
    expected = transcription(w_1.astype("float64"), g, rates(rate), strength)
    zeros = assert_follows(make(rate, strength), w_1, g, expected)
    assert (zeros > 0) == (strength > 0)


SIZES = (0.0, 1e-45, 1e-38, 1e-20, 1e-3, 1.0, 1e4, 1e15, 1e30, np.nan, np.inf)


@pytest.mark.filterwarnings("ignore:.* has nothing to penalise", "ignore:RDA starts at")
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in KINDS else pytest.mark.every) for n in EQUATIONS])
@given(data=st.data())
def test_gradients_of_any_size(name, data):
    """From denormal to huge; entries that are not finite count as zero; scalars, vectors without penalty, kernels."""
    make, transcription, strength = EQUATIONS[name]
    shape = data.draw(st.sampled_from([(), (3,), (2, 2), (1, 1, 2)]))
    count = int(np.prod(shape))
    sizes = st.lists(st.sampled_from([*SIZES, *(-size for size in SIZES)]), min_size=count, max_size=count)
    finite = sizes.map(lambda drawn: [0.5 if not np.isfinite(size) else size for size in drawn])  # for a first step
    g = [np.array(data.draw(part), "float32").reshape(shape) for part in (finite, sizes, sizes)]
    is_kernel = len(shape) > 1
    w_1 = np.full(shape, 0.0 if name == "RDA" and is_kernel else 0.75, "float32")
    if not is_kernel:
        strength = 0.0
        transcription = reference.dual_averaging if name in ("RDA", "MRDA", "MRDA-weights") else transcription
    seen = [np.where(np.isfinite(gradient), gradient, 0.0) for gradient in g]
    expected = transcription(w_1.astype("float64"), seen, [0.5] * 3, strength)
    optimizer, largest = make(0.5, EQUATIONS[name][2]), np.ones(shape)
    (variable,) = variables(w_1)
    for gradient, received, wanted in zip(g, seen, expected, strict=True):
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
        largest = np.maximum(largest, np.abs(received))  # what an entry is rounded by
        np.testing.assert_array_less(np.abs(values([variable])[0] - wanted), 1e-5 * largest)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.filterwarnings("ignore:.* has nothing to penalise", "ignore:RDA starts at")
def test_variables_without_entries(name, shape):
    optimizer, (empty, kernel) = EQUATIONS[name][0](0.5, 0.01), variables(np.zeros(shape), np.full((2, 2), 3.0))
    optimizer.apply([keras.ops.zeros(shape), keras.ops.ones((2, 2))], [empty, kernel])
    assert np.all(values([kernel])[0] < 3)


def test_prox_sgd_without_penalty_is_keras_sgd():
    w_1 = np.random.default_rng(9).normal(size=SHAPE)
    g = gradients(10)
    ours = compiled_steps(keras_rda.ProxSGD(SCHEDULE, 0.0, momentum=0.9, exponent=0.0), *variables(w_1), g)
    theirs = compiled_steps(keras.optimizers.SGD(SCHEDULE, momentum=0.9), *variables(w_1), g)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("exponent", [0.3, 0.8])
def test_exponent_of_t(exponent):
    g = gradients(2)
    optimizer = keras_rda.MRDA(CONSTANT, 0.02, exponent=exponent)
    expected = reference.dual_averaging(np.zeros(SHAPE), g, rates(CONSTANT), 0.02, exponent)
    assert_follows(optimizer, np.ones(SHAPE), g, expected)


def test_general_step_is_the_papers_at_a_constant_rate():
    """The notation of `dual_averaging` against the paper's own forms (6), (7), (13)–(14), (28)–(29), all in float64."""
    g = gradients(3)
    w_0 = np.random.default_rng(4).normal(size=SHAPE)
    gamma, a, strength = 1 / 0.7, [0.7] * STEPS, 0.02
    pairs = [
        (reference.sda(w_0, g, gamma), reference.dual_averaging(w_0, g, a, 0.0)),
        (reference.sda_recursion(w_0, g, gamma), reference.dual_averaging(w_0, g, a, 0.0)),
        (reference.mrda(g, gamma, strength), reference.dual_averaging(0 * w_0, g, a, strength)),
        (reference.centred(w_0, g, gamma, strength), reference.dual_averaging(w_0, g, a, strength)),
    ]
    for paper, general in pairs:
        for theirs, ours in zip(paper, general, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)


def test_a_centred_kernel_starts_at_its_weights_already():
    w_1, g = np.random.default_rng(5).normal(size=SHAPE), gradients(6)
    first, second = (
        compiled_steps(keras_rda.MRDA(SCHEDULE, 0.02, center="initial", start=start), *variables(w_1), g)
        for start in ("gradient", "weights")
    )
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_start_at_the_weights_fades():
    """Without gradients and penalty w_{t+1} = w_1 / √t."""
    w_1 = np.random.default_rng(5).normal(size=SHAPE).astype("float32")
    steps = compiled_steps(keras_rda.MRDA(CONSTANT, 0.0, start="weights"), *variables(w_1), [0 * w_1] * STEPS)
    for t, received in enumerate(steps, 1):
        np.testing.assert_allclose(received, w_1 / np.sqrt(t), rtol=1e-5)


def test_centred_mrda_without_penalty_is_sda_bit_for_bit():
    w_1 = np.random.default_rng(5).normal(size=SHAPE)
    g = gradients(6)
    ours = compiled_steps(keras_rda.MRDA(SCHEDULE, 0.0, center="initial"), *variables(w_1), g)
    theirs = compiled_steps(keras_rda.SDA(SCHEDULE), *variables(w_1), g)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_unpenalised_variables_take_the_sda_step():
    w_1 = np.random.default_rng(7).normal(size=5).astype("float32")
    g = [gradient[0] for gradient in gradients(8)]
    bias = keras.Variable(w_1, dtype="float32", name="bias")
    kernel = keras.Variable(np.ones(SHAPE), dtype="float32", name="kernel")
    optimizer = keras_rda.MRDA(CONSTANT, 0.02)
    optimizer.build([kernel, bias])
    expected = reference.dual_averaging(w_1, g, rates(CONSTANT), 0.0)
    for gradient, wanted in itertools.islice(zip(g, expected, strict=True), 50):
        optimizer.apply([np.ones(SHAPE, "float32"), gradient])
        np.testing.assert_allclose(values([bias])[0], wanted, rtol=0, atol=1e-5)


UPDATES = 1_000_000
in_one_call = pytest.mark.skipif(BACKEND == "torch", reason="torch compiles no loop: a million calls take minutes")
PERIODS = np.arange(3, 27).reshape(4, 6)


def repeated_gradient(t):
    """The gradient of update t, integers over 256: with a mean that is not zero, and the same in NumPy and compiled."""
    return keras.ops.cast((t * PERIODS) % 257 - 100, "float32") / 256


def many_updates(optimizer, kernel, updates, gradient=repeated_gradient):
    """That many compiled updates in one call."""
    optimizer.build([kernel])
    if BACKEND == "jax":
        import jax

        def body(t, carry):
            trained, state = optimizer.stateless_apply(carry[0], [gradient(t + 1)], carry[1])
            return state, trained

        start = [v.value for v in optimizer.variables], [kernel.value]
        state, (trained,) = jax.jit(lambda start: jax.lax.fori_loop(0, updates, body, start))(start)
        kernel.assign(trained)
        for variable, value in zip(optimizer.variables, state, strict=True):
            variable.assign(value)
    else:
        import tensorflow as tf

        @tf.function(jit_compile=True)
        def many():
            for t in tf.range(1, updates + 1):
                optimizer.apply([gradient(t)], [kernel])

        many()


@in_one_call
@pytest.mark.parametrize("name", ["MRDA", "RMDA"])
def test_a_million_updates(name):
    """S_t, a plain float32 sum of gradients that vary, stays within 1e-4 of its size; A_t, compensated, within 1e-7,
    where a plain sum is off by up to 1 %; so do the weights, relative to the largest."""
    rate, strength = np.float32(0.1), 1e-2
    optimizer = {"MRDA": keras_rda.MRDA, "RMDA": keras_rda.RMDA}[name](float(rate), strength)
    (kernel,) = variables(0 * PERIODS)
    many_updates(optimizer, kernel, UPDATES)
    t = np.arange(1, UPDATES + 1)
    a = float(rate) * (np.sqrt(t) if name == "RMDA" else np.ones(UPDATES))
    gradient_sum = np.array([[(a * ((t * p) % 257 - 100) / 256).sum() for p in row] for row in PERIODS])
    slots = {v.name: value for v, value in zip(optimizer.variables, values(optimizer.variables), strict=True)}
    received = next(value for path, value in slots.items() if path.endswith("gradient_sum"))
    assert np.abs(received - gradient_sum).max() <= 1e-4 * np.abs(gradient_sum).max()
    total, lost = slots["weight_sum"][:, 0].astype("float64")
    assert total - lost == pytest.approx(a.sum(), rel=1e-7)
    assert np.add.accumulate(a.astype("float32"))[-1] != pytest.approx(a.sum(), rel=1e-5)
    assert slots["steps"] == UPDATES
    assert name == "RMDA" or slots["time"][0, 0] == UPDATES  # T_t of a constant rate is t, to the bit
    if name == "MRDA":
        wanted = reference.soft(-gradient_sum / np.sqrt(UPDATES), strength * a.sum() / np.sqrt(UPDATES))
        np.testing.assert_allclose(values([kernel])[0], wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@in_one_call
@pytest.mark.parametrize("averaging", [1.0, None])
def test_thresholds_of_a_million_updates(averaging):
    """XRDA's B_t is a plain float32 sum: of all steps for a = 1, where it is off by up to 1.5 %, of the latest for a
    cosine rate, where it is right. Without gradients the weights stay, and b_t with them."""
    rate, reweighting = 0.1, 500.0
    schedule = keras.optimizers.schedules.CosineDecay(rate, UPDATES)
    optimizer = keras_rda.XRDA(rate if averaging else schedule, 1e-12, averaging, reweighting)
    w_1 = np.linspace(0.01, 1, PERIODS.size).reshape(PERIODS.shape)
    (kernel,) = variables(w_1)
    many_updates(optimizer, kernel, UPDATES, lambda t: keras.ops.zeros(PERIODS.shape))
    slots = {v.name: value for v, value in zip(optimizer.variables, values(optimizer.variables), strict=True)}
    threshold = next(value for path, value in slots.items() if path.endswith("threshold"))
    b = reweighting / (1 + (reweighting - 1) * w_1 / w_1.max())
    if averaging:
        factor = rate * UPDATES
    else:
        factor = 0.0
        for s in rate * 0.5 * (1 + np.cos(np.pi * np.arange(UPDATES) / UPDATES)):
            factor = (1 - s / rate) * factor + s
    np.testing.assert_allclose(threshold, factor * b, rtol=0.015 if averaging else 1e-4)


def test_updates_are_counted_past_the_integers_of_float32():
    """2²⁴ + 1 is no float32: the counter is an integer, and the sum of rates compensated."""
    (kernel,) = variables(np.zeros((2, 2)))
    optimizer = keras_rda.MRDA(1.0, 1e-3)
    optimizer.build([kernel])
    state = {v.name: v for v in optimizer.variables}
    state["steps"].assign([2**24])
    state["weight_sum"].assign([[2.0**24], [0.0]])
    state["time"].assign([[2.0**24], [0.0], [1.0]])
    for _ in range(3):
        optimizer.apply([np.zeros((2, 2), "float32")])
    assert values([state["steps"]])[0] == 2**24 + 3
    total, lost = values([state["weight_sum"]])[0][:, 0].astype("float64")
    assert total - lost == 2**24 + 3
    time, lost, _ = values([state["time"]])[0][:, 0].astype("float64")
    assert time - lost == 2**24 + 3


@pytest.mark.parametrize("center", ["zero", "initial"])
def test_weights_stand_still_where_the_rate_is_zero(center):
    """With t in the place of T_t they would shrink like 1/√t from the tenth step on."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([9], [0.5, 0.0])
    w_1, g = np.random.default_rng(5).normal(size=SHAPE), gradients(6)[:40]
    steps = list(compiled_steps(keras_rda.MRDA(schedule, 0.02, center=center), *variables(w_1), g))
    assert np.any(steps[9] != steps[8])
    for later in steps[10:]:
        np.testing.assert_array_equal(later, steps[9])


def test_a_rate_that_rises_does_not_move_weights_by_itself():
    """Time never goes back: a step without a gradient and penalty moves weights no further than 1/√t does."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([49], [0.1, 1.0])
    w_1, g = np.random.default_rng(5).normal(size=SHAPE), [*gradients(6)[:50], np.zeros(SHAPE, "float32")]
    steps = list(compiled_steps(keras_rda.MRDA(schedule, 0.0), *variables(w_1), g))
    np.testing.assert_allclose(steps[50], steps[49] * np.sqrt(50 / 51), rtol=1e-5)
    # All the same, a warm-up follows its equation.
    warming = keras.optimizers.schedules.PolynomialDecay(0.01, 30, 1.0)
    expected = reference.dual_averaging(0 * w_1, g, [float(warming(t)) for t in range(51)], 0.02)
    for received, wanted in zip(
        compiled_steps(keras_rda.MRDA(warming, 0.02), *variables(w_1), g), expected, strict=True
    ):
        np.testing.assert_allclose(received, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max(initial=1e-3))
