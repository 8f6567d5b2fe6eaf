import keras
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import keras_rda
from keras_rda import penalties
from keras_rda.proximal import soft_threshold

# XLA and the vector units flush denormals to zero, so numbers between 0 and the smallest normal one are left out.
FLOATS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
WEIGHTS = arrays("float32", array_shapes(min_dims=1, max_dims=4, max_side=4), elements=FLOATS)
THRESHOLDS = st.floats(0, 1e6, width=32, allow_subnormal=False)


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


@given(WEIGHTS, THRESHOLDS)
def test_soft_threshold_is_the_closed_form(u, k):
    shrunk = numpy(soft_threshold(u, np.float32(k)))
    assert shrunk.dtype == np.float32
    np.testing.assert_array_equal(shrunk, reference.soft(u, np.float32(k)))
    np.testing.assert_array_equal(shrunk == 0, np.abs(u) <= np.float32(k))


@given(WEIGHTS)
def test_soft_threshold_by_zero_keeps_every_bit(u):
    np.testing.assert_array_equal(numpy(soft_threshold(u, np.float32(0))), u)


def test_soft_threshold_keeps_nan():
    assert np.isnan(numpy(soft_threshold(np.array([np.nan], "float32"), np.float32(1))))[0]


@given(WEIGHTS, st.floats(0, 10), st.floats(0.015625, 8))
def test_l1_prox_minimises_its_objective(w, strength, step):
    penalty = keras_rda.L1(strength)
    v = numpy(penalty.prox(w, step)).astype("float64")

    def objective(v):
        return np.float32(strength) * step * np.abs(v) + 0.5 * (v - w.astype("float64")) ** 2

    slack = 1e-5 * (1 + np.abs(w.astype("float64")) ** 2)
    for other in (w, np.zeros_like(w), v + 0.1, v - 0.1):
        assert np.all(objective(v) <= objective(other) + slack)


def test_l1_value():
    assert float(keras_rda.L1(0.5).value(np.array([[1.0, -2.0], [0.0, 3.0]], "float32"))) == 3.0


@given(WEIGHTS, st.floats(0, 10), st.floats(0, 10), st.floats(0.015625, 8))
def test_l1l2_prox_minimises_its_objective(w, strength, l2, step):
    v = numpy(keras_rda.L1L2(strength, l2).prox(w, step)).astype("float64")
    w = w.astype("float64")

    def objective(v):
        return step * (np.float32(strength) * np.abs(v) + 0.5 * l2 * v**2) + 0.5 * (v - w) ** 2

    slack = 1e-5 * (1 + w**2)
    for other in (w, np.zeros_like(w), v + 0.1, v - 0.1):
        assert np.all(objective(v) <= objective(other) + slack)


def test_l1l2_value_and_config():
    penalty = keras_rda.L1L2(0.5, l2=2.0)
    assert float(penalty.value(np.array([[1.0, -2.0]], "float32"))) == 0.5 * 3 + 5
    again = keras_rda.L1L2.from_config(penalty.get_config())
    assert (again.l2, float(again.strength)) == (2.0, 0.5)
    with pytest.raises(ValueError, match=r"L1L2: l2 \(μ\) must be finite and ≥ 0; received -1"):
        keras_rda.L1L2(0.5, l2=-1)


MATRICES = arrays("float32", st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.floats(-1e3, 1e3, width=16))


@given(MATRICES, st.floats(0, 10), st.floats(0.015625, 8), st.sampled_from(["inputs", "outputs"]))
def test_group_prox_minimises_its_objective(w, strength, step, groups):
    penalty = keras_rda.GroupL1(strength, groups)
    v = numpy(penalty.prox(w, step)).astype("float64")
    w = w.astype("float64")
    axis = 1 if groups == "inputs" else 0

    def objective(v):  # of each group; they are independent
        weight = np.float32(strength) * step * np.sqrt(w.shape[axis])
        return weight * np.linalg.norm(v, axis=axis) + 0.5 * np.sum((v - w) ** 2, axis=axis)

    slack = 1e-4 * (1 + np.sum(w**2, axis=axis))
    for other in (w, np.zeros_like(w), 0.9 * v, 1.1 * v, v + 0.1):
        assert np.all(objective(v) <= objective(other) + slack)
    expected = np.sum(np.float32(strength) * np.sqrt(w.shape[axis]) * np.linalg.norm(w, axis=axis))
    assert float(penalty.value(w.astype("float32"))) == pytest.approx(expected, rel=1e-3, abs=1e-6)


@given(MATRICES)
def test_group_threshold_of_zero_keeps_every_bit(w):
    np.testing.assert_array_equal(numpy(keras_rda.GroupL1(0.0).prox(w, 1.0)), w)


def test_group_prox_keeps_nan():
    assert np.all(np.isnan(numpy(keras_rda.GroupL1(1.0, "outputs").prox(np.full((2, 3), np.nan, "float32"), 1.0))))


def kernel(shape, path="layer/kernel"):
    variable = keras.Variable(np.ones(shape, "float32"), name="kernel")
    variable._path = path
    return variable


@pytest.mark.parametrize(
    ("path", "shape", "inputs", "outputs"),
    [
        ("dense/kernel", (4, 5), (0,), (1,)),
        ("conv2d/kernel", (3, 3, 4, 5), (2,), (3,)),
        ("conv3d/kernel", (3, 3, 3, 4, 5), (3,), (4,)),
        ("conv1d_2/kernel", (3, 4, 5), (1,), (2,)),
        ("conv2d_transpose/kernel", (3, 3, 5, 4), (3,), (2,)),
        ("block_1_depthwise/kernel", (3, 3, 4, 2), (2,), (2, 3)),
        ("dw/kernel", (3, 3, 4, 1), (2,), (2, 3)),
        ("separable/pointwise_kernel", (1, 1, 4, 5), (2,), (3,)),
    ],
)
def test_groups_by_name_and_rank(path, shape, inputs, outputs):
    for groups, axes in (("inputs", inputs), ("outputs", outputs)):
        w = np.random.default_rng(0).normal(size=shape).astype("float32")
        within = tuple(axis for axis in range(len(shape)) if axis not in axes)
        smallest = np.min(np.sqrt(np.mean(w**2, axis=within)))
        size = np.prod([shape[axis] for axis in within])
        penalty = keras_rda.GroupL1(smallest * 1.0001, groups).for_variable(kernel(shape, path))
        v = numpy(penalty.prox(w, 1.0))
        zero = np.all(v == 0, axis=within)
        assert np.sum(zero) == 1  # √size·λ is the norm of the smallest group
        assert np.sum(v == 0) == size


def test_layout_from_the_layers_of_a_model():
    layers = keras.layers
    images = keras.Input((8, 8, 4))
    x = layers.Conv2D(6, 3, groups=2, name="grouped")(images)
    x = layers.Conv2DTranspose(5, 3, name="up")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="each")(x)
    x = layers.Reshape((-1, 10))(x)
    x = layers.Conv1D(12, 3, name="line")(x)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = layers.EinsumDense("abc,dc->abd", output_shape=(None, 7), name="einsum")(x)
    model = keras.Model(images, layers.Dense(2, name="head")(layers.GlobalAveragePooling1D()(x)))
    expected = {  # inputs, outputs
        "grouped/kernel": (None, (3,)),
        "up/kernel": ((3,), (2,)),
        "each/kernel": ((2,), (2, 3)),
        "line/kernel": ((1,), (2,)),
        "attention/query/kernel": ((0,), (1, 2)),
        "attention/key/kernel": ((0,), (1, 2)),
        "attention/value/kernel": ((0,), (1, 2)),
        "attention/attention_output/kernel": ((0, 1), (2,)),
        "einsum/kernel": ((1,), (0,)),
        "head/kernel": ((0,), (1,)),
    }
    for position, groups in enumerate(("inputs", "outputs")):
        penalty = keras_rda.GroupL1(1e-3, groups, layout=model)
        assert penalty.layout == {path: axes[position] for path, axes in expected.items()}
        again = keras_rda.GroupL1.from_config(penalty.get_config())
        assert (again.groups, again.layout) == (groups, penalty.layout)
    optimizer = keras_rda.MRDA(penalty=keras_rda.GroupL1(1e-3, layout=model))
    with pytest.raises(ValueError, match=r"knows no input channels in 'grouped/kernel'.* groups='outputs', or L1"):
        optimizer.build(model.trainable_variables)
    optimizer.exclude_from_penalty(var_names=["grouped"])
    optimizer.build(model.trainable_variables)
    assert sum(map(optimizer.penalizes, range(len(model.trainable_variables)))) == 9


def test_layout_goes_by_whole_names():
    """Keras' default names contain one another: conv2d in depthwise_conv2d, dense in einsum_dense."""
    layers = keras.layers
    images = keras.Input((8, 8, 4))
    x = layers.DepthwiseConv2D(3)(layers.Conv2D(6, 3)(images))
    x = layers.Conv2DTranspose(5, 3, name="up_conv2d")(x)
    x = layers.Dense(4, name="transposed")(layers.GlobalAveragePooling2D()(x))
    x = layers.EinsumDense("ab,cb->ac", output_shape=(3,))(layers.Dense(5)(x))
    model = keras.Model(images, x)
    axes = {"inputs": [(2,), (2,), (3,), (0,), (0,), (1,)], "outputs": [(3,), (2, 3), (2,), (1,), (1,), (0,)]}
    kernels = [variable for variable in model.trainable_variables if variable.name == "kernel"]
    for groups, expected in axes.items():
        for layout in (model, keras_rda.GroupL1(1.0, groups, model).layout):
            penalty = keras_rda.GroupL1(1.0, groups, layout)
            assert [penalty.for_variable(kernel)._axes for kernel in kernels] == expected
    own = keras_rda.GroupL1(1.0, layout={"query": 2, "block/query": (0, 1)})
    assert own.for_variable(kernel((4, 5, 6), "block/query/kernel"))._axes == (0, 1)
    assert own.for_variable(kernel((4, 5, 6), "query/kernel"))._axes == (2,)


@pytest.mark.parametrize(
    ("path", "layout"), [("einsum/kernel", None), ("mha/query/kernel", None), ("einsum/kernel", {"einsum": 3})]
)
def test_unknown_groups(path, layout):
    with pytest.raises(ValueError, match=rf"knows no input channels in '{path}' of shape \(4, 5, 6\).* layout=model"):
        keras_rda.GroupL1(1.0, layout=layout).for_variable(kernel((4, 5, 6), path))


def test_group_arguments():
    with pytest.raises(
        ValueError, match=r'groups must be "inputs" .*, "outputs" .* or "channels" .*; received \'filters\''
    ):
        keras_rda.GroupL1(1.0, groups="filters")
    for axes in ((), 1.5, "01", ("a",)):
        with pytest.raises(ValueError, match=r"layout\['dense'\] must be an axis or a tuple of axes; received"):
            keras_rda.GroupL1(1.0, layout={"dense": axes})
    with pytest.raises(TypeError, match=r"layout must be a built Keras model, or a dict .*; received \[3\]"):
        keras_rda.GroupL1(1.0, layout=[3])
    unbuilt = keras.Sequential([keras.layers.Dense(3)], name="unbuilt")
    with pytest.raises(ValueError, match="layout='unbuilt' has no kernels yet: build the model first"):
        keras_rda.GroupL1(1.0, layout=unbuilt)
    unbuilt.build((None, 2))
    with pytest.raises(ValueError, match=r"the model 'unbuilt', which layout was given, has no kernel 'other/kernel'"):
        keras_rda.GroupL1(1.0, layout=unbuilt).for_variable(kernel((2, 3), "other/kernel"))
    with pytest.raises(ValueError, match="knows no input channels in 'an array' of shape"):
        keras_rda.GroupL1(1.0).value(np.ones(3, "float32"))


def test_kernel_of_one_group_takes_the_step_without_penalty():
    assert keras_rda.GroupL1(1.0).for_variable(kernel((3, 3, 1, 8), "conv2d/kernel")) is None
    assert keras_rda.GroupL1(1.0, "outputs").for_variable(kernel((3, 3, 1, 8), "conv2d/kernel")) is not None


def test_number_is_l1():
    penalty = penalties.get(1e-3)
    assert type(penalty) is keras_rda.L1
    assert float(penalty.strength) == pytest.approx(1e-3)
    assert penalties.get(penalty) is penalty


@pytest.mark.parametrize("strength", [-1.0, np.nan, np.inf])
def test_strength_out_of_range(strength):
    with pytest.raises(ValueError, match=r"L1: the strength λ must be finite and ≥ 0; received"):
        keras_rda.L1(strength)
    penalty = keras_rda.L1(0.25)
    with pytest.raises(ValueError, match="must be finite and ≥ 0"):
        penalty.strength = strength
    assert float(penalty.strength) == 0.25


@pytest.mark.parametrize("strength", ["1e-6", None, True, [1.0]])
def test_strength_of_wrong_type(strength):
    with pytest.raises(TypeError, match="must be a number ≥ 0, for example 1e-6; received"):
        keras_rda.L1(strength)


def test_base_class_names_what_is_missing():
    penalty = keras_rda.Penalty(1.0)
    with pytest.raises(NotImplementedError, match="Penalty must define value"):
        penalty.value(np.ones(2))
    with pytest.raises(NotImplementedError, match="Penalty must define prox"):
        penalty.prox(np.ones(2), 1.0)
    with pytest.raises(NotImplementedError, match="Penalty must define magnitude"):
        penalty.magnitude(np.ones(2))


# Every penalty, as a function of λ.
PENALTIES = {
    "L1": keras_rda.L1,
    "L1L2": lambda strength: keras_rda.L1L2(strength, l2=0.3),
    "GroupL1": keras_rda.GroupL1,
    "GroupL1, outputs": lambda strength: keras_rda.GroupL1(strength, "outputs"),
}


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("step", [0.1, 1.0, 3.0])
def test_promises_of_a_penalty(name, step):
    penalty, random = PENALTIES[name](0.5), np.random.default_rng(0)
    w = random.normal(size=(8, 6)).astype("float32")
    v = numpy(penalty.prox(w, step))

    def objective(v):
        return step * float(penalty.value(v)) + 0.5 * np.sum((v - w) ** 2)

    for other in (w, 0 * w, 0.99 * v, 1.01 * v, *(v + 0.01 * random.normal(size=(10, *w.shape)).astype("float32"))):
        assert objective(v) <= objective(other) + 1e-5 * objective(w)
    if penalty.has_magnitude:
        magnitude = np.broadcast_to(numpy(penalty.magnitude(w)), w.shape)
        np.testing.assert_array_equal(v == 0, magnitude <= 0.5 * step)
    again = type(penalty).from_config(penalty.get_config())
    assert again.get_config() == penalty.get_config()
    np.testing.assert_array_equal(numpy(again.prox(w, step)), v)
