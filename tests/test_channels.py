"""`GroupL1(groups="channels")`: what reads a channel becomes zero together, in all kernels of a model."""

import keras
import numpy as np
import pytest
import reference
from helpers import BACKEND, OPTIMIZERS, compiled, compiled_updates, compiles, fit, state, values
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compress import Builder, assert_same_outputs, randomise
from test_equations import EQUATIONS, TOLERANCE

import keras_rda
from keras_rda import compression
from keras_rda.callbacks.counted import MultiplyAdds, Zeros
from keras_rda.compression import classes

layers = keras.layers

# Three kernels. Groups 0 to 2 lie in the first two, 2 to 4 in the last; one row of the first is in no group.
LAYOUT = {
    "a/kernel": [[0], [1], [2], [-1]],
    "b/kernel": [[[[0], [1], [2]]]],
    "c/kernel": [[2], [2], [3], [4], [4]],
}
SHAPES = {"a/kernel": (4, 3), "b/kernel": (2, 2, 3, 2), "c/kernel": (5, 2)}
SHAPED = [np.broadcast_to(LAYOUT[path], shape) for path, shape in SHAPES.items()]


def flat(arrays):
    return np.concatenate([np.ravel(array) for array in arrays])


GROUPS = flat(SHAPED)
KERNELS = np.repeat(np.arange(3), [array.size for array in SHAPED])


# λ at which some groups become zero, and others not.
STRENGTHS = {
    "MRDA-initial": 0.3,
    "ProxSGD": 1.0,
    "ProxSGD-momentum": 0.3,
    "RMDA-restarts": 0.3,
    "SqrtProxSGD": 3e-3,
    "XRDA": 0.01,
    "XRDA-averaging": 0.01,
    "XRDA-dual-averaging": 0.01,
}


def kernels(random, scale=1.0, dtype="float32"):
    found = []
    for number, (path, shape) in enumerate(SHAPES.items()):
        variable = keras.Variable(scale * random.normal(size=shape) * 2.0**number, dtype=dtype, name="kernel")
        variable._path = path
        found.append(variable)
    return found


def largest_of_each_kernel(r):
    return np.array([r[kernel == KERNELS].max() for kernel in range(3)])[KERNELS]


def channels(strength=0.1):
    return keras_rda.GroupL1(strength, "channels", LAYOUT)


@pytest.mark.parametrize("name", [name for name in EQUATIONS if name != "SDA"])
def test_follows_its_equation(name):
    """Against float64, group by group, with all kernels in one array."""
    make, transcription, _ = EQUATIONS[name]
    strength = STRENGTHS.get(name, 0.1)
    random = np.random.default_rng(3)
    variables = kernels(random, scale=float(name != "RDA"))
    means = [random.normal(size=array.shape) * 0.3 ** np.maximum(array, 0) for array in SHAPED]
    gradients = [[(m + 0.3 * random.normal(size=m.shape)).astype("float32") for m in means] for _ in range(200)]
    w_1 = flat(values(variables)).astype("float64")
    options = {"shrink": reference.group_soft(GROUPS)}
    if name.startswith("XRDA"):
        options |= {"magnitude": reference.group_magnitude(GROUPS), "largest": largest_of_each_kernel}
    expected = transcription(w_1, list(map(flat, gradients)), [0.5] * 200, strength, **options)
    updates = compiled_updates(make(0.5, channels(strength)), variables, gradients)
    steps = 0
    for received, wanted in zip(updates, expected, strict=True):
        received, scale = flat(received), max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(received, wanted, rtol=0, atol=TOLERANCE * scale)
        steps += 1
    assert steps == 200
    zeros = {group: set((received[group == GROUPS] == 0).tolist()) for group in range(-1, 5)}
    assert all(len(found) == 1 for found in zeros.values())  # whole groups, never a part of one
    assert zeros[-1] == {False}
    assert ({True} in zeros.values()) == (name != "RMDA-restarts")  # which averages its iterates yet
    assert list(zeros.values()).count({False}) > 1


def residual_network(filters=8, blocks=2):
    """Convolutions that add to one stream of channels, on 8×8 images."""
    inputs = x = keras.Input((8, 8, 1))
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name="stem")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for block in range(blocks):
        inner = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"inner_{block}")(x)
        inner = layers.ReLU()(layers.BatchNormalization()(inner))
        inner = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"outer_{block}")(inner)
        x = layers.ReLU()(layers.Add()([x, layers.BatchNormalization()(inner)]))
    return keras.Model(inputs, layers.Dense(10, name="head")(layers.GlobalAveragePooling2D()(x)))


def reads(model):
    return {kernel.path.rsplit("/", 1)[0]: np.unique(kernel.reads).tolist() for kernel in classes.read(model).kernels}


def test_classes_of_a_residual_network():
    """The stream's eight channels are one class each; those within a block are its own."""
    found = reads(residual_network())
    assert found["inner_0"] == found["inner_1"] == found["head"]
    assert len({*map(tuple, found.values())}) == 4  # of the image, the stream, and inside two blocks
    assert found["stem"] == [-1]
    assert classes.read(residual_network()).number == 8 + 2 * 8


def test_classes_of_other_layers():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 1, name="first")(inputs)
    depthwise = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    grouped = layers.Conv2D(4, 1, groups=2, name="grouped")(depthwise)
    separable = layers.SeparableConv2D(2, 1, name="separable")(grouped)
    joined = layers.Concatenate()([separable, layers.Conv2DTranspose(3, 1, name="transposed")(depthwise)])
    x = layers.Flatten()(layers.MaxPooling2D(6)(joined))
    model = keras.Model(inputs, layers.Dense(1, name="head")(x))
    kernels = {kernel.path: kernel.reads for kernel in classes.read(model).kernels}
    six = np.arange(6)
    np.testing.assert_array_equal(kernels["depthwise/kernel"][0, 0], np.repeat(six, 2).reshape(6, 2))
    # Twelve channels of two groups with six each; the first two filters read the first six, two a channel of `first`.
    np.testing.assert_array_equal(kernels["grouped/kernel"][0, 0, :, 0], np.repeat([0, 1, 2], 2))
    np.testing.assert_array_equal(kernels["grouped/kernel"][0, 0, :, 3], np.repeat([3, 4, 5], 2))
    np.testing.assert_array_equal(kernels["separable/depthwise_kernel"].ravel(), [6, 7, 8, 9])
    np.testing.assert_array_equal(kernels["separable/pointwise_kernel"].ravel(), [6, 7, 8, 9])
    np.testing.assert_array_equal(kernels["transposed/kernel"].ravel(), np.repeat(six, 2))
    np.testing.assert_array_equal(kernels["head/kernel"].ravel(), [10, 11, 12, 13, 14])
    assert kernels["first/kernel"].tolist() == [[[[-1], [-1], [-1]]]]


def test_classes_of_attention_are_heads():
    inputs = keras.Input((6, 8))
    x = layers.LayerNormalization()(layers.MultiHeadAttention(3, 2, name="attention")(inputs, inputs))
    found = classes.read(keras.Model(inputs, layers.Dense(2)(x)))
    output = next(kernel for kernel in found.kernels if "attention_output" in kernel.path)
    assert found.number == 3
    assert output.reads.ravel().tolist() == [0, 1, 2]
    query = next(kernel for kernel in found.kernels if "query" in kernel.path)
    assert (query.reads.ravel().tolist(), query.computes.ravel().tolist()) == ([-1], [0, 1, 2])


MULTIPLY_ADDS = {
    "residual": (residual_network, 8 * 8 * (9 * 8 + 4 * 9 * 8 * 8) + 8 * 10),
    "transformer": (lambda: transformer(), None),
    "mobilenet": (lambda: keras.applications.MobileNetV2((32, 32, 3), weights=None, classes=3), None),
    "any size": (lambda: backbone_of_any_size(), None),
}


def transformer():
    inputs = keras.Input((6, 8))
    x = layers.LayerNormalization()(inputs + layers.MultiHeadAttention(3, 2, name="attention")(inputs, inputs))
    return keras.Model(inputs, x + layers.Dense(8)(layers.Dense(16, "gelu")(x)))


def backbone_of_any_size():
    image = keras.Input((None, None, 3))
    features = keras.Model(image, layers.Conv2D(4, 3)(layers.Conv2D(6, 3, strides=2)(image)))
    inputs = keras.Input((20, 20, 3))
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(features(inputs))))


@pytest.mark.parametrize(
    "name",
    [name for name in MULTIPLY_ADDS if BACKEND == "tensorflow" or name != "mobilenet"],  # JAX compiles each shape
)
def test_multiply_adds_are_those_of_compress(name):
    make, expected = MULTIPLY_ADDS[name]
    model = make()
    randomise(model, np.random.default_rng(0), zero_bias=0.0)
    found = classes.read(model)
    alive = np.ones(found.number, bool)
    whole = found.multiply_adds(alive)
    assert expected is None or whole == expected
    alive[::3] = False
    zero_what_reads(model, np.flatnonzero(~alive))
    report = keras_rda.compress(model, report=True)[1]
    assert not any(row.placeholders for row in report.rows)
    assert report.total("multiply_adds") == (whole, found.multiply_adds(alive))
    one = np.ones(found.number, bool)
    one[1] = False
    assert found.multiply_adds_of_each()[1] == whole - found.multiply_adds(one)


def test_multiply_adds_of_unknown_layers_are_not_known():
    class Own(layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight((shape[-1], 2), name="kernel")

        def call(self, x):
            return x @ self.kernel

    inputs = keras.Input((4,))
    assert classes.read(keras.Model(inputs, Own(name="own")(layers.Dense(3)(inputs)))).unknown == ("own",)
    image = keras.Input((None, None, 3))
    model = keras.Model(image, layers.Conv2D(2, 1)(layers.Conv2D(4, 3)(image)))
    assert len(classes.read(model).unknown) == 2
    compiled(model, keras_rda.MRDA(penalty=keras_rda.GroupL1(1e-3, "channels", model)))
    callback = keras_rda.TargetSparsity(0.5, of="multiply_adds")
    callback.set_model(model)
    callback.set_params({"steps": 100, "epochs": 1})
    with pytest.raises(ValueError, match=r"they are not known of the layers .*: give the model's inputs a size"):
        callback.on_train_begin()


def test_classes_do_not_depend_on_the_weights():
    model = residual_network()
    before = reads(model)
    for variable in model.weights:
        variable.assign(np.zeros(variable.shape))
    assert reads(model) == before


def zero_what_reads(model, dead):
    """Zero all weights that read a class among `dead`, numbers."""
    found = {kernel.path: kernel for kernel in classes.read(model).kernels}
    for variable in model.trainable_variables:
        if variable.path in found:
            gone = np.broadcast_to(np.isin(found[variable.path].reads, dead), variable.shape)
            variable.assign(np.where(gone, 0.0, values([variable])[0]))
    return list(found.values())


@settings(max_examples=settings.default.max_examples if BACKEND == "tensorflow" else 3)
@given(data=st.data())
def test_a_class_that_nobody_reads_goes(data):
    """In random graphs: of what a layer computes, `compress` needs no channel of a class whose readers are zero."""
    keras.utils.set_random_seed(0)
    build, inputs = Builder(data.draw), keras.Input((5, 5, 4))
    pool = [inputs, layers.Conv2D(4, 3, padding="same")(inputs)]
    for _ in range(data.draw(st.integers(1, 8))):
        pool.append(build.step(pool))
    model = keras.Model(inputs, build.head(pool[-1]))
    randomise(model, np.random.default_rng(0), zero_bias=0.0)
    number = classes.read(model).number
    dead = np.array(data.draw(st.lists(st.integers(0, max(0, number - 1)), max_size=number)), int)
    kernels = zero_what_reads(model, dead)
    smaller, report = keras_rda.compress(model, report=True)
    assert_same_outputs(model, smaller)
    rows = {row.name: row for row in report.rows if row.channels is not None}
    for kernel in kernels:
        row = rows[kernel.path.split("/")[-2]]
        if kernel.path.endswith("depthwise_kernel"):
            continue
        computed = np.broadcast_to(kernel.computes, np.broadcast_shapes(kernel.computes.shape, (1, 1)))
        gone = np.isin(computed, dead).sum()
        if computed.size == row.channels[0]:
            assert row.channels[1] - row.placeholders <= row.channels[0] - gone


def steered(groups, digits):
    """A residual network trained to σ = 0.5."""
    keras.utils.set_random_seed(1)
    model = residual_network()
    cosine = keras.optimizers.schedules.CosineDecay(1.0, 8 * 12)
    compiled(model, keras_rda.XRDA(cosine, keras_rda.GroupL1(1e-5, groups, model)))
    x, y = digits[0][:256], digits[1][:256]
    model.fit(x, y, batch_size=32, epochs=12, verbose=0, callbacks=[keras_rda.TargetSparsity(0.5, interval=1)])
    return model


def test_more_multiply_adds_go_than_with_groups_of_single_kernels(digits):
    shares = {}
    for groups in ("channels", "inputs"):
        model = steered(groups, digits)
        sigma = keras_rda.sparsity(model, kernels_only=True)
        before, after = keras_rda.compress(model, report=True)[1].total("multiply_adds")
        shares[groups] = after / before
        # On torch one channel of the stream, a sixteenth of the weights, goes more.
        assert abs(sigma - 0.5) < (0.06 if BACKEND == "torch" else 0.02)
    # Half of the channels everywhere would leave a quarter.
    assert shares["channels"] < 0.33
    assert shares["inputs"] > shares["channels"] + 0.1, shares


@pytest.mark.filterwarnings("ignore:.*only after the last batch")  # one group is an eighth
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("MRDA", "ProxSGD", "RMDA", "XRDA") else pytest.mark.every)
        for name, case in OPTIMIZERS.items()
        if case.steered
    ],
)
def test_every_optimizer_loses_whole_channels(name, digits):
    """Of eight filters, which two layers read."""
    case, x = OPTIMIZERS[name], keras.Input((8, 8, 1))
    filters = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(layers.Conv2D(8, 3, strides=2, use_bias=False)(x)))
    readers = layers.Dense(10)(layers.Flatten()(filters)), layers.Flatten()(layers.Conv2D(10, 3)(filters))
    model = keras.Model(x, layers.Add()(readers))
    arguments = case.steered(lambda rate: keras.optimizers.schedules.CosineDecay(rate, 8 * 12))
    penalty = keras_rda.GroupL1(arguments.pop("penalty", 1e-4), "channels", model)
    compiled(model, case(**arguments, penalty=penalty))
    target = keras_rda.TargetSparsity(0.5, interval=1)
    model.fit(digits[0][:256], digits[1][:256], batch_size=32, epochs=12, verbose=0, callbacks=[target])
    kernels = [values([layer.kernel])[0].reshape(9, 8, 10) for layer in model.layers[-5:] if hasattr(layer, "kernel")]
    dense, convolution = [(kernel == 0).all(axis=(0, 2)) for kernel in kernels]
    np.testing.assert_array_equal(dense, convolution)
    assert 0 < dense.sum() < 8


def test_resumes_and_is_saved_with_the_same_bits(digits, tmp_path):
    keras.utils.set_random_seed(0)
    model = residual_network()
    compiled(model, keras_rda.XRDA(penalty=keras_rda.GroupL1(1e-4, "channels", model)))
    fit(model, digits, [])
    model.save(tmp_path / "half.keras")
    again = keras.models.load_model(tmp_path / "half.keras")
    for each in (model, again):
        fit(each, digits, [], shuffle=False)
    for a, b in zip(state(model), state(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_configuration_makes_the_same_penalty():
    model = residual_network()
    penalty = keras_rda.GroupL1(1e-3, "channels", model)
    again = keras_rda.GroupL1.from_config(penalty.get_config())
    assert again.get_config() == penalty.get_config()
    kernel = [v for v in model.trainable_variables if "kernel" in v.path]
    for own, other in zip(penalty.for_variables(kernel), again.for_variables(kernel), strict=True):
        assert (own is None) == (other is None)
        if own:
            assert own.member == other.member
    # The stem reads the image alone.
    assert penalty.for_variables(kernel)[0] is None


def test_groups_weighed_by_what_they_cost():
    """A group of weights that are multiplied at four times as many positions has twice the threshold."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 1, use_bias=False, name="wide")(inputs)
    x = layers.MaxPooling2D(2)(layers.Conv2D(4, 1, use_bias=False, name="between")(x))
    x = layers.Conv2D(3, 1, use_bias=False, name="narrow")(x)
    model = keras.Model(inputs, layers.Conv2D(1, 1, use_bias=False, name="last")(x))
    _, *readers = model.trainable_variables
    for variable in readers:
        variable.assign(np.ones(variable.shape))
    # What goes with a channel: of wide 64·(3 + 4); of between 64·4 + 16·3; of narrow 16·(4 + 1).
    costs = [448, 304, 80]
    penalty = keras_rda.GroupL1(1.0, "channels", model, "multiply_adds")
    for own in (penalty, keras_rda.GroupL1.from_config(penalty.get_config())):
        found = own.for_variables(model.trainable_variables)[1].shared.magnitudes(dict(enumerate(readers)))
        magnitudes = [np.unique(values([array])[0]).item() for array in found.values()]
        # Weights of one: ‖w_G‖ = √(4, 3, 1).
        expected = np.sqrt(np.array([4, 3, 1]) / costs)
        np.testing.assert_allclose(np.array(magnitudes) / magnitudes[0], expected / expected[0], rtol=1e-6)


def test_penalty_of_zero_is_none(digits):
    results = []
    for make in (lambda model: keras_rda.GroupL1(0.0, "channels", model), lambda model: None):
        keras.utils.set_random_seed(0)
        model = residual_network()
        compiled(model, keras_rda.ProxSGD(0.1, 0.0) if make(model) is None else keras_rda.ProxSGD(0.1, make(model)))
        fit(model, digits, [], shuffle=False)
        results.append(values(model.trainable_variables))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_what_cannot_go_has_no_penalty_and_is_named(digits):
    model = residual_network()
    frozen = model.get_layer("inner_1")
    frozen.trainable = False
    optimizer = keras_rda.MRDA(penalty=keras_rda.GroupL1(1e-3, "channels", model))
    optimizer.exclude_from_penalty(var_names=["outer_0"])
    with pytest.warns(UserWarning, match=r"channels that \['inner_1/kernel'\] read will not go.* does not train these"):
        optimizer.build(model.trainable_variables)
    penalised = [v.path for i, v in enumerate(model.trainable_variables) if optimizer.penalizes(i)]
    assert penalised == ["outer_1/kernel"]  # the stream is read by a frozen kernel, the first block by an excluded one


def test_target_beyond_what_can_go(digits):
    inputs = keras.Input((8, 8, 1))
    joined = layers.Concatenate()([inputs, layers.Conv2D(1, 3, padding="same")(inputs), layers.Conv2D(2, 1)(inputs)])
    model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(joined)))
    compiled(model, keras_rda.MRDA(penalty=keras_rda.GroupL1(1e-3, "channels", model)))
    with pytest.raises(ValueError, match=r"cannot end at σ = 0\.9: it can get to 0\.75, when all"):
        fit(model, digits, [keras_rda.TargetSparsity(0.9, interval=1)], epochs=30)
    fit(model, digits, [keras_rda.TargetSparsity(0.5, interval=1)], epochs=30)
    kernel = values([model.layers[-1].kernel])[0].reshape(64, 4, 10)
    assert sorted((kernel == 0).all(axis=(0, 2)).tolist()) == [False, False, True, True]
    assert kernel[:, 0].any()  # the image's own channel


def test_arguments(digits):
    model = residual_network()
    with pytest.raises(ValueError, match=r'groups="channels"\) must know which kernels .*: pass layout=model'):
        keras_rda.GroupL1(1e-3, "channels")
    with pytest.raises(ValueError, match=r"layout\['a/kernel'\] must be None, or ints from −1 on"):
        keras_rda.GroupL1(1e-3, "channels", {"a/kernel": [0.5]})
    with pytest.raises(ValueError, match=r"no channel of 'alone' can go\. They are: an input of the model; an output"):
        keras_rda.GroupL1(1e-3, "channels", keras.Sequential([keras.Input((4,)), layers.Dense(2)], name="alone"))

    class Own(keras.Model):
        def __init__(self):
            super().__init__(name="own")
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    with pytest.raises(
        ValueError, match=r"weights must be .size. or, .*; received 'multiply_adds' with groups='inputs'"
    ):
        keras_rda.GroupL1(1e-3, layout=model, weights="multiply_adds")
    with pytest.raises(ValueError, match=r"must know what layers cost: pass layout=model"):
        keras_rda.GroupL1(1e-3, "channels", LAYOUT, "multiply_adds")
    own = Own()
    own.dense.build((None, 3))
    with pytest.raises(ValueError, match=r"must read the model as a graph; Own 'own' is not built\. Call it once"):
        keras_rda.GroupL1(1e-3, "channels", own)
    penalty = keras_rda.GroupL1(1e-3, "channels", model)
    with pytest.raises(ValueError, match=r"layout has no kernel \['kernel'\]; it has \['stem/kernel'"):
        keras_rda.MRDA(penalty=penalty).build([keras.Variable(np.ones((2, 2)), name="kernel")])
    with pytest.raises(TypeError, match="is known for all kernels together, not for one array"):
        penalty.value(np.ones((2, 2)))
    compiled(model, keras_rda.MRDA(penalty=penalty))
    with pytest.raises(TypeError, match="cannot steer single kernels whose groups of weights lie in several"):
        fit(model, digits, [keras_rda.TargetSparsity(0.5, per_layer=True)])


def test_layout_of_another_model():
    small, large = residual_network(filters=4), residual_network(filters=8)
    optimizer = keras_rda.MRDA(penalty=keras_rda.GroupL1(1e-3, "channels", small))
    with pytest.raises(ValueError, match=r"layout\['inner_0/kernel'\] has the shape \(1, 1, 4, 1\), .* \(3, 3, 8, 8\)"):
        optimizer.build(large.trainable_variables)


def test_variable_without_gradient_counts_but_does_not_move():
    random = np.random.default_rng(0)
    variables = kernels(random)
    optimizer = keras_rda.ProxSGD(0.1, channels(0.5))
    optimizer.build(variables)
    gradients = [keras.ops.zeros(variable.shape) for variable in variables]
    before = values(variables)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([gradients[0], None, gradients[2]], variables)
    after = values(variables)
    np.testing.assert_array_equal(after[1], before[1])
    norm = np.sqrt(sum(np.sum(array[np.equal(shaped, 0)] ** 2) for array, shaped in zip(before, SHAPED, strict=True)))
    size = (GROUPS == 0).sum()
    np.testing.assert_allclose(after[0][0], before[0][0] * (1 - 0.05 * np.sqrt(size) / norm), rtol=1e-5)


def test_non_finite_weights_stay_where_they_are():
    """A group with a NaN is zero but for it: a NaN is not hidden."""
    variables = kernels(np.random.default_rng(0))
    spoilt = values(variables)[0].copy()
    spoilt[0, 0] = np.nan
    variables[0].assign(spoilt)
    optimizer = keras_rda.ProxSGD(0.1, channels(0.1))
    optimizer.apply([keras.ops.zeros(variable.shape) for variable in variables], variables)
    first, second, third = values(variables)
    assert np.isnan(first[0, 0])
    assert np.isnan(first).sum() == 1
    assert np.isfinite(second).all()
    assert np.isfinite(third).all()


@compiles
def test_fit_is_the_same_compiled_or_not(digits):
    results = []
    for jit_compile in (True, False):
        keras.utils.set_random_seed(0)
        model = residual_network(blocks=1)
        penalty = keras_rda.GroupL1(1e-4, "channels", model)
        compiled(model, keras_rda.XRDA(0.5, penalty), jit_compile=jit_compile)
        fit(model, digits, [], shuffle=False)
        results.append(values(model.trainable_variables))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def steps(gradients, dtype="float32", **options):
    variables = kernels(np.random.default_rng(0), dtype=dtype)
    optimizer = keras_rda.XRDA(0.5, channels(0.2), **options)
    for gradient in gradients:
        optimizer.apply([keras.ops.cast(part, dtype) for part in gradient], variables)
    return values(keras.ops.cast(variable, "float32") for variable in variables)


def some_gradients(number):
    random = np.random.default_rng(1)
    return [[random.normal(size=array.shape).astype("float32") for array in SHAPED] for _ in range(number)]


def test_accumulated_gradients_are_one():
    pairs = some_gradients(8)
    means = [[(a + b) / 2 for a, b in zip(*pair, strict=True)] for pair in zip(pairs[::2], pairs[1::2], strict=True)]
    for a, b in zip(steps(pairs, gradient_accumulation_steps=2), steps(means), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_low_precision_keeps_the_zeros_of_float32():
    gradients = [[np.round(4 * part) / 4 for part in gradient] for gradient in some_gradients(20)]  # exact in bfloat16
    ours, theirs = steps(gradients, "bfloat16"), steps(gradients)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02)
    assert 0 < np.mean(flat(theirs) == 0) < 1
    np.testing.assert_array_equal(flat(ours) == 0, flat(theirs) == 0)


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("XRDA", "channels"),
        ("MRDA", "channels"),
        ("RMDA", "inputs"),
        *(pytest.param(*more, marks=pytest.mark.every) for more in (("XRDA", "inputs"), ("MRDA", "inputs"))),
        pytest.param("RMDA", "channels", marks=pytest.mark.every),
    ],
)
def test_ends_with_the_share_of_multiply_adds_that_is_wanted(name, groups, digits):
    keras.utils.set_random_seed(1)
    model = residual_network()
    arguments = OPTIMIZERS[name].steered(lambda rate: keras.optimizers.schedules.CosineDecay(rate, 8 * 12))
    compiled(model, OPTIMIZERS[name](**arguments, penalty=keras_rda.GroupL1(1e-5, groups, model)))
    target = keras_rda.TargetSparsity(0.5, interval=1, of="multiply_adds")
    x, y = digits[0][:256], digits[1][:256]
    model.fit(x, y, batch_size=32, epochs=12, verbose=0, callbacks=[target])
    before, after = keras_rda.compress(model, report=True)[1].total("multiply_adds")
    tolerance = max(0.01, 1.01 * classes.read(model).multiply_adds_of_each().max() / before)
    assert abs(after / before - 0.5) <= tolerance
    assert keras_rda.sparsity(model, kernels_only=True) < (0.5 if BACKEND == "torch" else 0.45)


def test_kernels_of_one_path():
    """Nested models may have layers of the same names."""

    def inner(name):
        x = keras.Input((6,))
        hidden = layers.Dense(4, "relu", name="hidden")(x)
        return keras.Model(x, layers.Dense(6, name="back")(hidden), name=name)

    inputs = keras.Input((6,))
    model = keras.Model(inputs, inner("two")(inner("one")(inputs)))
    if len({variable.path for variable in model.variables}) == len(model.variables):
        pytest.skip("Keras gives them different paths")
    with pytest.raises(ValueError, match=r"two kernels .* have the path '.*kernel': give their layers"):
        keras_rda.GroupL1(1e-3, "channels", model)
    counted = MultiplyAdds([], classes.read(model), model.variables)
    back = [variable for variable in model.variables if variable.path.endswith("back/kernel")]
    back[0].assign(np.zeros(back[0].shape))
    before, _ = compression.multiply_adds(model)
    assert counted.share([]) == pytest.approx(2 * 6 * 4 / before)


def test_kernels_without_weights(digits):
    inputs = keras.Input((8, 8, 1))
    x = layers.Flatten()(layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, layers.Dense(10)(layers.Dense(16)(x)))
    empty = keras.Variable(np.zeros((2, 0)), name="kernel")
    layout = keras_rda.GroupL1(1e-3, "channels", model).get_config()["layout"]
    optimizer = keras_rda.XRDA(0.1, keras_rda.GroupL1(1e-3, "channels", {**layout, "kernel": [[0], [1]]}))
    trained = [*model.trainable_variables, empty]
    optimizer.build(trained)
    optimizer.apply([keras.ops.ones(variable.shape) for variable in trained], trained)
    assert not optimizer.penalizes(len(trained) - 1)
    Zeros([own for own in optimizer.trained if own.penalty])


@pytest.mark.filterwarnings("error::RuntimeWarning", "ignore:.*has nothing to penalise", "ignore:.*will not go")
def test_nothing_left_to_penalise():
    model = residual_network()
    optimizer = keras_rda.MRDA(penalty=keras_rda.GroupL1(1e-3, "channels", model, "multiply_adds"))
    optimizer.exclude_from_penalty(var_names=["inner_0", "inner_1", "outer_0", "outer_1", "head"])
    optimizer.build(model.trainable_variables)
    assert not any(map(optimizer.penalizes, range(len(model.trainable_variables))))


@pytest.mark.parametrize("penalty", [keras_rda.L1(1e-3), keras_rda.GroupL1(1e-3, "outputs")])
def test_penalties_by_which_few_channels_go(penalty, digits):
    model = residual_network()
    compiled(model, keras_rda.MRDA(penalty=penalty))
    with pytest.raises(
        ValueError, match=r"counts channels that nobody reads, and few go by .* Choose GroupL1\(λ, groups="
    ):
        fit(model, digits, [keras_rda.TargetSparsity(0.5, of="multiply_adds", interval=1)], epochs=30)


def test_channels_that_only_dead_ones_read_are_named(digits):
    """Of scattered zeros compress removes more than steering counts."""
    keras.utils.set_random_seed(0)
    stack = [layers.Dense(24, "relu") for _ in range(4)]
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), *stack, layers.Dense(10)])
    compiled(model, keras_rda.MRDA(penalty=keras_rda.GroupL1(1e-3, layout=model)))
    callback = keras_rda.TargetSparsity(0.5, interval=1, of="multiply_adds")
    callback.set_model(model)
    callback.set_params({"steps": 100, "epochs": 1})
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    (group,) = callback._groups
    kernels = [variable for variable in model.trainable_variables if len(variable.shape) > 1]
    dead = values([kernels[1]])[0].copy()
    dead[:, :12] = 0  # these are read, but not needed
    kernels[1].assign(dead)
    for number in (2, 3):
        gone = values([kernels[number]])[0].copy()
        gone[:12] = 0
        kernels[number].assign(gone)
    only = values([kernels[1]])[0].copy()
    only[12:20, 12:] = 0  # channels that dead ones alone would read
    only[12:20, :12] = 1
    kernels[1].assign(only)
    group.target = group.counted.share(kernels)
    callback._position = callback._batches
    with pytest.warns(UserWarning, match=r"compress\(\) also removes channels that only dead ones read"):
        callback._judge()


def test_groups_of_one_magnitude_do_not_all_go(digits):
    """All start alike and fall alike while λ rises: together, unless λ is bound by what would go in an interval."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))

    def convolution(x):
        x = layers.Conv2D(32, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    x = layers.ReLU()(convolution(inputs))
    for _ in range(3):
        x = layers.ReLU()(layers.Add()([x, convolution(layers.ReLU()(convolution(x)))]))
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    rate = keras.optimizers.schedules.CosineDecay(1.0, 6 * 64)
    compiled(model, keras_rda.XRDA(rate, keras_rda.GroupL1(1e-6, "channels", model), weight_decay=5e-4))
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch % 8 == 7:
                (group,) = target._groups
                seen.append(group.measure(self.model.optimizer.sparse_weights))

    target = keras_rda.TargetSparsity(0.333, of="multiply_adds", interval=6)
    x, y = digits[0][:1024], digits[1][:1024]
    model.fit(x, y, batch_size=16, epochs=6, verbose=0, callbacks=[target, Watch()])
    assert max(seen) < 0.6
    assert model.evaluate(x, y, verbose=0, return_dict=True)["loss"] < 0.6
