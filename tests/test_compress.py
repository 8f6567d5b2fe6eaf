"""`compress`: the same outputs with fewer channels, on every kind of graph."""

import math
import sys

import keras
import numpy as np
import pytest
from helpers import BACKEND
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_rda
from keras_rda import output
from keras_rda.compression import activations, rules

layers, ops = keras.layers, keras.ops
# JAX compiles every operation of every new shape; on it the random graphs stand for these.
long_on_jax = pytest.mark.skipif(BACKEND != "tensorflow", reason="compiles for long on JAX; nothing here depends on it")


def outputs(model, seed=1, batch=3):
    random = np.random.default_rng(seed)
    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input

    def draw(tensor):
        shape = [batch, *(9 if size is None else size for size in tensor.shape[1:])]
        if "int" in tensor.dtype:
            return random.integers(0, 5, shape).astype(tensor.dtype)
        return random.normal(size=shape).astype(tensor.dtype)

    result = model(keras.tree.map_structure(draw, structure), training=False)
    return [keras.ops.convert_to_numpy(output) for output in keras.tree.flatten(result)]


def assert_same_outputs(model, smaller, tolerance=1e-5):
    for ours, theirs in zip(outputs(model), outputs(smaller), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=tolerance * max(np.abs(ours).max(), 1e-30))


def randomise(model, random, zero_bias=0.5):
    """Weights as after training: also biases, normalisation weights and statistics."""
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights(
                [
                    random.uniform(0.5, 2, size=array.shape) * random.choice([1, 1, -1], size=array.shape)
                    if i + 1 < len(layer.weights)
                    else random.uniform(0.5, 2, size=array.shape)
                    for i, array in enumerate(layer.get_weights())
                ]
            )
        elif getattr(layer, "bias", None) is not None:
            zero = random.random(layer.bias.shape) < zero_bias
            layer.bias.assign(np.where(zero, 0, random.normal(size=layer.bias.shape)))
    return model


def kill(layer, channels, name="kernel"):
    """Zero the weights of these output channels."""
    variable = getattr(layer, name)
    kernel = keras.ops.convert_to_numpy(variable).copy()
    axis = -1
    if "Transpose" in type(layer).__name__ or (type(layer).__name__.startswith("Depthwise")):
        axis = -2
    np.moveaxis(kernel, axis, 0)[np.asarray(channels)] = 0
    variable.assign(kernel)


def kill_share(model, share=0.5, seed=0):
    random = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        for name in ("kernel", "pointwise_kernel", "embeddings"):
            kernel = getattr(layer, name, None)
            if kernel is not None and len(kernel.shape) > 1:
                axis = -2 if "Transpose" in type(layer).__name__ or type(layer).__name__.startswith("Depth") else -1
                kill(layer, random.random(kernel.shape[axis]) < share, name)
    return model


# --- random graphs ---------------------------------------------------------------------------------------------------

PADDINGS = [{"mode": "reflect"}, {}, {"constant_values": 1.0}]
ACTIVATIONS = ["linear", "relu", "relu6", "tanh", "sigmoid", "softmax", "hard_silu", "elu"]


class Halved(layers.Layer):
    """Acts on each element alone, which only trying tells."""

    def call(self, x):
        return keras.ops.cos(x) / 2 + 0.5 * x


class Odd(layers.Layer):
    """Each element, but not all in the same way."""

    def call(self, x):
        return x * ops.arange(1, 1 + x.shape[-1], dtype="float32")


class Builder:
    """Draws a graph over images: a pool of tensors, and one random layer after the other that reads from it."""

    def __init__(self, draw):
        self.draw = draw
        self.shared = {}

    def pick(self, options):
        return self.draw(st.sampled_from(options))

    def convolution(self, x):
        filters, groups = self.pick([2, 4, 6]), 1
        if x.shape[-1] % 2 == 0:
            groups = self.pick([1, 1, 2, x.shape[-1]])
        return layers.Conv2D(
            filters * groups if groups > 1 else filters,
            self.pick([1, 1, 3]),
            strides=self.pick([1, 1, 2]),
            padding=self.pick(["same", "valid"]) if min(x.shape[1:3]) >= 3 else "same",
            groups=groups,
            use_bias=self.pick([True, False]),
            activation=self.pick(ACTIVATIONS),
        )(x)

    def shared_convolution(self, x):
        if x.shape[-1] not in self.shared:
            self.shared[x.shape[-1]] = layers.Conv2D(x.shape[-1], self.pick([1, 3]), padding="same")
        return self.shared[x.shape[-1]](x)

    def step(self, pool):
        x = self.pick(pool)
        same = [y for y in pool if y.shape == x.shape]
        other = self.pick(same)
        height_width = [y for y in pool if y.shape[1:3] == x.shape[1:3]]
        squeeze = self.pick(["relu", "tanh"])
        small = min(x.shape[1:3]) < 3
        kinds = {
            "conv": self.convolution,
            "conv again": self.convolution,
            "shared": self.shared_convolution,
            "depthwise": lambda x: layers.DepthwiseConv2D(
                3, padding="same", depth_multiplier=self.pick([1, 2]), activation=self.pick(ACTIVATIONS)
            )(x),
            "separable": lambda x: layers.SeparableConv2D(4, self.pick([1, 3]), padding="same")(x),
            "transpose": lambda x: layers.Conv2DTranspose(4, self.pick([1, 2]), padding="same")(x),
            "dense": lambda x: layers.Dense(self.pick([3, 4]), activation=self.pick(ACTIVATIONS))(x),
            "einsum": lambda x: layers.EinsumDense(
                *self.pick([("abcd,de->abce", (*x.shape[1:3], 4)), ("...d,ed->...e", 3)]),
                bias_axes=self.pick([None, "e"]),
                activation=self.pick(ACTIVATIONS),
            )(x),
            "bn": lambda x: layers.BatchNormalization(scale=self.pick([True, False]))(x),
            "prelu": lambda x: layers.PReLU(
                shared_axes=self.pick([[1, 2], None, [1, 2, 3]]), alpha_initializer="uniform"
            )(x),
            "relu": lambda x: layers.ReLU(max_value=self.pick([None, 6.0]))(x),
            "scalar": lambda x: x * 0.5 + self.pick([0.0, 1.0]),
            "own activation": lambda x: layers.Conv2D(3, 1, activation=lambda x: x * x)(x),
            "own activation layer": lambda x: layers.Activation(lambda x: keras.ops.cumsum(x, axis=1))(x),
            "quotient": lambda x: x / (layers.Conv2D(x.shape[-1], 1, activation="sigmoid")(x) + 0.5),
            "root": lambda x: keras.ops.sqrt(keras.ops.square(x) + 1.0),
            "operator reshape": lambda x: keras.ops.reshape(x, (-1, x.shape[2], x.shape[1], x.shape[3])),
            "moved": lambda x: self.pick([keras.ops.flip, lambda x, axis: keras.ops.roll(x, 2, axis)])(
                x, axis=self.pick([1, 2, -1])
            ),
            "padded": lambda x: keras.ops.pad(
                x,
                ((0, 0), (1, 0), (0, 1), self.pick([(0, 0), (0, 0), (0, x.shape[-1] - 1)])),
                **self.pick(PADDINGS[small:]),
            ),
            "where": lambda x: keras.ops.where(x > self.pick([0.0, other]), x, self.pick([0.1 * x, other, 1.0])),
            "power": lambda x: (keras.ops.square(x) + 0.5) ** self.pick([other, -0.5, 2.0]),
            "stack": lambda x: keras.ops.max(
                keras.ops.stack([x, other], axis=self.pick([1, 3])), axis=self.pick([1, 2])
            ),
            "deviation": lambda x: x - keras.ops.std(x, axis=1, keepdims=True),
            "pool by an operation": lambda x: self.pick([keras.ops.max_pool, keras.ops.average_pool])(
                x, 2, strides=1, padding="same"
            ),
            "halves": lambda x: keras.ops.concatenate(
                keras.ops.split(keras.ops.concatenate([x, other], axis=-1), 2, axis=-1)[:: self.pick([1, -1])], axis=-1
            ),
            "gated": lambda x: keras.ops.glu(keras.ops.concatenate([x, other], axis=-1)),
            "products": lambda x: keras.ops.matmul(
                keras.ops.softmax(keras.ops.matmul(x, keras.ops.transpose(other, (0, 1, 3, 2)))), self.pick([x, other])
            ),
            "own layer": lambda x: Halved()(x),
            "statistics of the batch": lambda x: layers.BatchNormalization()(x, training=self.pick([None, True])),
            "leaky": lambda x: keras.ops.leaky_relu(x),
            "dropout": lambda x: layers.Dropout(0.5)(x),
            "pool": lambda x: layers.MaxPooling2D(2, strides=1, padding="same")(x),
            "average pool": lambda x: layers.AveragePooling2D(2, strides=1, padding="same")(x),
            "pad": lambda x: layers.ZeroPadding2D(1)(x) if small else layers.Cropping2D(1)(x),
            "upsample": lambda x: x if x.shape[1] > 8 else layers.UpSampling2D(2)(x),
            "add": lambda x: layers.Add()([x, other]),
            "operator": lambda x: x - other if self.pick([True, False]) else keras.ops.maximum(x, other),
            "multiply": lambda x: layers.Multiply()([x, other]),
            "maximum": lambda x: layers.Maximum()([x, other]),
            "concatenate": lambda x: layers.Concatenate()([x, self.pick(height_width)]),
            "concatenate rows": lambda x: layers.Concatenate(axis=1)([x, other]),
            "squeeze and excite": lambda x: layers.Multiply()(
                [
                    x,
                    layers.Conv2D(x.shape[-1], 1, activation="sigmoid")(
                        layers.Conv2D(3, 1, activation=squeeze)(layers.GlobalAveragePooling2D(keepdims=True)(x))
                    ),
                ]
            ),
            "spatial attention": lambda x: x * layers.Conv2D(1, 1, activation="sigmoid")(x),
            "layer normalization": lambda x: layers.LayerNormalization()(x),
            "reshape": lambda x: layers.Reshape((-1, x.shape[2], x.shape[3]))(
                layers.Reshape((x.shape[1] * x.shape[2], x.shape[3]))(x)
            ),
            "permute": lambda x: layers.Permute((2, 1, 3))(x),
            "nested": lambda x: keras.Sequential(
                [layers.Conv2D(4, 1, activation="relu"), layers.Conv2D(3, 3, padding="same")]
            )(x),
        }
        return kinds[self.pick(sorted(kinds))](x)

    def head(self, x):
        kinds = {
            "pool": lambda: layers.Dense(3)(layers.GlobalAveragePooling2D()(x)),
            "flatten": lambda: layers.Dense(3)(layers.Flatten()(x)),
            "flatten twice": lambda: layers.Dense(3)(layers.Dense(4, activation="relu")(layers.Flatten()(x))),
            "reshape": lambda: layers.Dense(2)(layers.Reshape((-1,))(x)),
            "mean": lambda: layers.Dense(2)(keras.ops.mean(x, axis=(1, 2))),
            "map": lambda: layers.Conv2D(2, 1)(x),
            "as it is": lambda: layers.Activation("linear")(x),
        }
        return kinds[self.pick(sorted(kinds))]()


def random_model(draw):
    keras.utils.set_random_seed(0)
    build = Builder(draw)
    inputs = keras.Input((5, 5, draw(st.sampled_from([1, 4]))))
    pool = [inputs, layers.Conv2D(4, 3, padding="same")(inputs)]
    for _ in range(draw(st.integers(1, 8))):
        pool.append(build.step(pool))
    model = keras.Model(inputs, [build.head(pool[-1]) for _ in range(draw(st.integers(1, 2)))])
    randomise(model, np.random.default_rng(draw(st.integers(0, 1000))), draw(st.sampled_from([0.0, 0.5, 1.0])))
    return kill_share(model, draw(st.sampled_from([0.3, 0.6, 1.0])), seed=draw(st.integers(0, 1000)))


# `--hypothesis-profile many` draws 2,000. JAX compiles every operation of every new shape.
@settings(max_examples=settings.default.max_examples if BACKEND == "tensorflow" else 3)
@given(data=st.data(), fold=st.booleans())
def test_random_graphs_keep_their_outputs(data, fold):
    model = random_model(data.draw)
    weights = model.get_weights()
    smaller, report = keras_rda.compress(model, fold_batch_norm=fold, report=True)
    assert_same_outputs(model, smaller)
    added_biases = sum(row.channels[1] for row in report.rows if row.channels is not None)
    assert smaller.count_params() <= model.count_params() + added_biases
    again = keras_rda.compress(smaller, fold_batch_norm=fold)
    assert again.count_params() == smaller.count_params()  # a fixed point
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@settings(max_examples=settings.default.max_examples if BACKEND == "tensorflow" else 3)
@given(data=st.data(), multiple_of=st.sampled_from([2, 3, 8]), fold=st.booleans())
def test_random_graphs_keep_multiples(data, multiple_of, fold):
    model = random_model(data.draw)
    smaller, report = keras_rda.compress(model, fold, report=True, multiple_of=multiple_of)
    assert_same_outputs(model, smaller)
    for before, after in (row.channels for row in report.rows if row.channels is not None):
        assert after == before or (after < before and after % multiple_of == 0)
    again, second = keras_rda.compress(smaller, fold, report=True, multiple_of=multiple_of)
    assert all(row.channels is None or len(set(row.channels)) == 1 for row in second.rows)
    assert again.count_params() == smaller.count_params()  # a fixed point


# --- one promise after the other -------------------------------------------------------------------------------------


def chain(*stack, shape=(6, 6, 3)):
    model = keras.Sequential([layers.Input(shape), *stack])
    return randomise(model, np.random.default_rng(0), zero_bias=0.0)


def channels(model, report=True):
    smaller, report = keras_rda.compress(model, report=True)
    assert_same_outputs(model, smaller)
    return {row.name: row.channels for row in report.rows}, smaller, report


def test_dead_filters_go_and_their_constant_moves_to_the_reader():
    model = chain(
        layers.Conv2D(8, 3, use_bias=False, name="a"),
        layers.BatchNormalization(name="bn"),
        layers.ReLU(),
        layers.Conv2D(4, 3, use_bias=False, name="b"),
    )
    kill(model.get_layer("a"), [0, 3, 5])
    cut, smaller, _ = channels(model)
    assert cut == {"a": (8, 5), "bn": (8, 5), "b": (4, 4)}
    assert smaller.get_layer("b").use_bias  # beta of the dead filters, through ReLU, is in it now
    assert [layer.name for layer in smaller.layers[1:]] == [layer.name for layer in model.layers]


def test_zero_padding_keeps_constants_that_are_not_zero():
    model = chain(
        layers.Conv2D(8, 3, padding="same", name="a"), layers.ReLU(), layers.Conv2D(4, 3, padding="same", name="b")
    )
    bias = np.array([1, -1, 0, 1, 1, 1, 1, 1], "float32")  # through ReLU: 1, 0, 0, …
    model.get_layer("a").bias.assign(bias)
    kill(model.get_layer("a"), [0, 1, 2])
    cut, _, report = channels(model)
    assert cut == {"a": (8, 6), "b": (4, 4)}  # the first sees the border: 1 inside, 0 outside
    (row, _) = report.rows
    assert row.zeros_kept == 1
    assert row.reasons == ("a constant that 'b' cannot take over, because of its zero padding",)
    assert "1: a constant that 'b' cannot take over" in str(report)


def test_unread_channels_go_whatever_they_compute():
    model = chain(layers.Dense(8, activation="relu", name="a"), layers.Dense(6, name="b"), layers.Dense(2), shape=(5,))
    kernel = keras.ops.convert_to_numpy(model.get_layer("b").kernel).copy()
    kernel[[1, 4]] = 0
    model.get_layer("b").kernel.assign(kernel)
    assert channels(model)[0] == {"a": (8, 6), "b": (6, 6), "dense": (2, 2)}


def test_einsum_dense_is_cut_where_it_is_a_dense_layer():
    model = chain(
        layers.Dense(6, activation="relu", name="a"),
        layers.EinsumDense("abc,dc->abd", (3, 8), name="b"),
        layers.EinsumDense("...c,cd->...d", 4, bias_axes="d", activation="relu", name="c"),
        layers.EinsumDense("abc,bcd->abd", (3, 4), name="a kernel for each place"),
        layers.EinsumDense("abc,cd->abd", (3, 4), bias_axes="bd", name="a bias for each place"),
        shape=(3, 5),
    )
    kill(model.get_layer("a"), [0, 1])
    kernel = np.array(model.get_layer("b").kernel)
    kernel[:3] = 0  # of its outputs, which are its first axis
    model.get_layer("b").kernel.assign(kernel)
    kill(model.get_layer("c"), [1])
    cut, smaller, report = channels(model)
    assert cut == {
        **{"a": (6, 4), "b": (8, 5), "c": (4, 4)},
        **{"a kernel for each place": None, "a bias for each place": None},
    }
    assert smaller.get_layer("b").bias_axes == "d"  # it takes over the constants of `a`
    multiply_adds = [row.multiply_adds for row in report.rows]
    assert multiply_adds == [(90, 60), (144, 60), (96, 60), (48, 48), (48, 48)]  # at three places


def test_removal_reaches_a_fixed_point():
    """The last layer reads nothing of b; so nothing of b, of a and of the input is read."""
    model = chain(layers.Dense(8, name="a"), layers.Dense(8, name="b"), layers.Dense(2, name="c"), shape=(5,))
    model.get_layer("c").kernel.assign(np.zeros((8, 2)))
    cut, smaller, _ = channels(model)
    assert cut == {"a": (8, 1), "b": (8, 1), "c": (2, 2)}
    assert smaller.input_shape == model.input_shape
    assert smaller.output_shape == model.output_shape


def test_additions_tie_and_report_why():
    inputs = keras.Input((6, 6, 3))
    a = layers.Conv2D(8, 3, name="a", use_bias=False)(inputs)
    b = layers.Conv2D(8, 3, name="b", use_bias=False)(inputs)
    x = layers.Add()([a, b])
    model = keras.Model(inputs, layers.Conv2D(2, 3, name="c")(x))
    kill(model.get_layer("a"), [0, 1, 2, 3])
    kill(model.get_layer("b"), [2, 3, 4])
    cut, _, report = channels(model)
    assert cut == {"a": (8, 6), "b": (8, 6), "c": (2, 2)}
    assert [(row.zeros_kept, row.reasons) for row in report.rows] == [
        (2, ("read by 'c'",)),
        (1, ("read by 'c'",)),
        (0, ()),
    ]


def test_depthwise_grouped_flatten_and_concatenation():
    inputs = keras.Input((6, 6, 3))
    a = layers.Conv2D(6, 3, name="a", use_bias=False)(inputs)
    depthwise = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise", use_bias=False)(a)
    grouped = layers.Conv2D(6, 3, groups=3, name="grouped", use_bias=False)(a)
    joined = layers.Concatenate()([depthwise, grouped])
    model = keras.Model(inputs, layers.Dense(2, name="dense")(layers.Flatten()(joined)))
    kill(model.get_layer("a"), [2, 3])  # the second group, and two channels of the depthwise convolution
    cut, smaller, _ = channels(model)
    assert cut == {"a": (6, 4), "depthwise": (12, 8), "grouped": (6, 4), "dense": (2, 2)}
    assert smaller.get_layer("grouped").groups == 2
    assert smaller.get_layer("dense").kernel.shape[0] == 2 * 2 * 12


def test_groups_stay_equal():
    inputs = keras.Input((6, 6, 3))
    a = layers.Conv2D(6, 1, name="a", use_bias=False)(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.Conv2D(4, 3, groups=2, name="grouped", use_bias=False)(a)))
    kill(model.get_layer("a"), [0, 1])  # group 0 keeps one input, group 1 three
    kill(model.get_layer("grouped"), [3])
    cut, _, _ = channels(model)
    assert cut["a"] == (6, 6)
    assert cut["grouped"] == (4, 4)
    kill(model.get_layer("a"), [3])
    kill(model.get_layer("grouped"), [1])
    cut, _, _ = channels(model)
    assert cut["a"] == (6, 4)
    assert cut["grouped"] == (4, 2)


@long_on_jax
def test_numbers_of_channels_are_kept_at_multiples():
    """11 of 24 channels are alive, and 5 stay as placeholders; of 12, 9 are, and the next multiple is more than 12."""
    model = chain(
        layers.Conv2D(24, 3, use_bias=False, name="a"),
        layers.BatchNormalization(name="bn"),
        layers.ReLU(),
        layers.Conv2D(12, 3, use_bias=False, name="b"),
        layers.Flatten(),
        layers.Dense(3, name="c"),
    )
    kill(model.get_layer("a"), range(1, 24, 2))
    kill(model.get_layer("a"), [0])
    kill(model.get_layer("b"), [0, 5, 7])
    smaller, report = keras_rda.compress(model, report=True, multiple_of=8)
    assert_same_outputs(model, smaller)
    assert {row.name: row.channels for row in report.rows} == {
        "a": (24, 16),
        "bn": (24, 16),
        "b": (12, 12),
        "c": (3, 3),
    }
    assert [row.placeholders for row in report.rows] == [5, 5, 3, 0]
    assert report.rows[0].reasons == ("their number must be a multiple of 8",)
    kernel = keras.ops.convert_to_numpy(smaller.get_layer("a").kernel)
    assert np.count_nonzero(kernel.any(axis=(0, 1, 2))) == 11
    kernel = keras.ops.convert_to_numpy(smaller.get_layer("b").kernel)
    assert np.count_nonzero(kernel.any(axis=(0, 1, 3))) == 11  # nobody reads the placeholders
    assert report.notes == (
        "Numbers of channels are multiples of 8, or as before. Placeholders, weights of zero that nobody reads: 13.",
    )
    assert report.to_dict()["layers"][0]["placeholders"] == 5
    again = keras_rda.compress(smaller, report=True, multiple_of=8)[1]
    assert "Nothing could be removed." in str(again)
    assert keras_rda.compress(smaller).count_params() == keras_rda.compress(model).count_params()


@long_on_jax
def test_multiples_through_groups_ties_and_concatenation():
    inputs = keras.Input((6, 6, 3))
    a = layers.Conv2D(16, 3, name="a", use_bias=False)(inputs)
    b = layers.Conv2D(16, 3, name="b", use_bias=False)(inputs)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise", use_bias=False)(layers.Add()([a, b]))
    grouped = layers.Conv2D(16, 1, groups=4, name="grouped", use_bias=False)(x)
    joined = layers.Concatenate()([x, grouped])
    model = keras.Model(inputs, layers.Dense(2, name="c")(layers.Flatten()(joined)))
    kill(model.get_layer("a"), range(5, 16))
    kill(model.get_layer("b"), range(5, 16))
    kill(model.get_layer("grouped"), range(1, 16))
    smaller, report = keras_rda.compress(model, report=True, multiple_of=4)
    assert_same_outputs(model, smaller)
    cut = {row.name: row.channels[1] for row in report.rows}
    assert cut == {"a": 8, "b": 8, "depthwise": 16, "grouped": 4, "c": 2}
    assert (
        smaller.get_layer("grouped").groups == 2
    )  # each of 2 channels; one alone would read a quarter of the channels
    assert smaller.get_layer("c").kernel.shape[0] == 2 * 2 * 20


@long_on_jax
@pytest.mark.parametrize(("multiple_of", "heads"), [(1, 1), (2, 2), (3, 1), (6, 2), (8, 4)])
def test_multiples_of_heads_times_their_units(multiple_of, heads):
    model = randomise(transformer(), np.random.default_rng(0))
    attention = model.get_layer("attention")  # 4 heads of 3 units
    arrays = attention.get_weights()
    arrays[6][1:] = 0
    attention.set_weights(arrays)
    smaller = keras_rda.compress(model, multiple_of=multiple_of)
    assert_same_outputs(model, smaller)
    assert smaller.get_layer("attention").num_heads == heads


@pytest.mark.parametrize("multiple_of", [0, -1, 1.5, True, "8", None])
def test_multiples_of_what_is_no_positive_integer_are_refused(multiple_of):
    model = chain(layers.Dense(2), shape=(3,))
    with pytest.raises(
        ValueError, match=f"multiple_of must be a positive integer, such as 8; received {multiple_of!r}"
    ):
        keras_rda.compress(model, multiple_of=multiple_of)


def test_shared_layers_are_cut_alike():
    shared = layers.Conv2D(6, 3, padding="same", name="shared", use_bias=False)
    inputs = [keras.Input((6, 6, 3), name="left"), keras.Input((6, 6, 3), name="right")]
    left, right = (shared(tensor) for tensor in inputs)
    kill_reader = layers.Dense(2, name="reads_all")
    model = keras.Model(inputs, [kill_reader(left), layers.Dense(2, name="reads_some")(right)])
    kill(shared, [0])
    kernel = keras.ops.convert_to_numpy(model.get_layer("reads_some").kernel).copy()
    kernel[1:4] = 0
    model.get_layer("reads_some").kernel.assign(kernel)
    assert channels(model)[0]["shared"] == (6, 5)


def test_shared_reader_with_different_constants():
    """A reader called twice folds a constant only if it is the same both times."""
    inputs = [keras.Input((4,), name="left"), keras.Input((4,), name="right")]
    a, b = layers.Dense(5, name="a"), layers.Dense(5, name="b")
    reader = layers.Dense(2, name="reader")
    model = keras.Model(inputs, [reader(a(inputs[0])), reader(b(inputs[1]))])
    for layer, bias in ((a, [1, 2, 3, 4, 5]), (b, [1, 2, 9, 4, 5])):
        kill(layer, [0, 1, 2])
        layer.bias.assign(bias)
    assert channels(model)[0] == {"a": (5, 3), "b": (5, 3), "reader": (2, 2)}


def test_nested_models_with_several_inputs_and_outputs():
    inner_input = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, name="conv")(inner_input)
    inner = keras.Model(inner_input, [layers.ReLU()(x), layers.GlobalMaxPooling2D()(x)], name="backbone")
    head = keras.Sequential([layers.Input((8,)), layers.Dense(4, name="conv"), layers.Dropout(0.5)], name="head")
    image, number = keras.Input((6, 6, 3), name="image"), keras.Input((4,), name="number")
    maps, pooled = inner(image, training=False)
    outputs = {"sum": layers.Add()([head(pooled), number]), "maps": layers.Conv2D(2, 1, name="maps")(maps)}
    model = keras.Model({"image": image, "number": number}, outputs)
    kill(inner.get_layer("conv"), [1, 2])
    cut, smaller, _ = channels(model)
    assert cut == {"conv": (8, 6), "head_conv": (4, 4), "maps": (2, 2)}
    assert sorted(smaller.input) == ["image", "number"]
    assert sorted(smaller.output) == ["maps", "sum"]
    assert smaller.name == model.name


def test_outputs_of_nested_models_keep_their_names():
    inputs = keras.Input((8,))
    heads = [
        keras.Sequential([layers.Dense(8), layers.Dense(size)], name=name) for name, size in (("cls", 3), ("age", 1))
    ]
    model = keras.Model(inputs, [head(inputs) for head in heads])
    smaller = channels(model)[1]
    assert smaller.output_names == model.output_names == ["cls", "age"]
    assert keras_rda.compress(smaller).output_names == ["cls", "age"]
    smaller.compile("sgd", loss={"cls": "mse", "age": "mse"})
    smaller.fit(np.ones((4, 8)), {"cls": np.ones((4, 3)), "age": np.ones((4, 1))}, verbose=0)


def test_backbone_of_any_size_is_counted():
    backbone = keras.Sequential([layers.Input((None, None, 3)), layers.Conv2D(4, 3)], name="backbone")
    inputs = keras.Input((10, 10, 3))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(backbone(inputs)))
    assert channels(model)[2].total("multiply_adds") == (64 * 3 * 9 * 4,) * 2
    unknown = chain(layers.RNN(layers.LSTMCell(3)), layers.Dense(6, name="hidden"), layers.Dense(2), shape=(4, 3))
    kill(unknown.get_layer("hidden"), [0])
    report = channels(unknown)[2]
    assert report.total("multiply_adds") == (None, None)
    assert "?" in str(report)


def test_nested_model_used_twice():
    inner = keras.Sequential([layers.Input((4,)), layers.Dense(6, name="hidden"), layers.Dense(4)])
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inner(inner(inputs)))
    kill(inner.get_layer("hidden"), [0, 5])
    assert channels(model)[0]["hidden"] == (6, 4)


def transformer(heads=4):
    tokens = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 8, name="embedding")(tokens)
    attention = layers.MultiHeadAttention(heads, 3, name="attention")
    x = layers.LayerNormalization()(x + attention(x, x))
    hidden = layers.Dense(16, activation="gelu", name="hidden")(x)
    x = layers.LayerNormalization()(x + layers.Dense(8, name="back")(hidden))
    return keras.Model(tokens, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def test_transformer_loses_hidden_units_and_heads():
    model = randomise(transformer(), np.random.default_rng(0))
    kill(model.get_layer("hidden"), range(0, 16, 2))
    attention = model.get_layer("attention")
    arrays = attention.get_weights()
    arrays[6][[0, 2]] = 0  # the output kernel (heads, size, out): nobody reads these heads
    attention.set_weights(arrays)
    cut, smaller, _ = channels(model)
    assert cut["hidden"] == (16, 8)
    assert smaller.get_layer("attention").num_heads == 2


def test_embedding_channels_and_masks():
    tokens = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 8, mask_zero=True, name="embedding")(tokens)
    x = layers.Dense(6)(x)
    model = keras.Model(tokens, layers.Dense(3)(layers.LSTM(4)(x)))
    kill(model.get_layer("embedding"), [0, 7], "embeddings")
    cut, smaller, _ = channels(model)
    assert cut["embedding"] == (8, 6)
    assert smaller.get_layer("embedding").mask_zero


class OwnRegularizer(keras.regularizers.Regularizer):
    """Without a configuration."""

    def __call__(self, x):
        return keras.ops.sum(x)


class OwnConstraint(keras.constraints.Constraint):
    """Not registered."""

    def __call__(self, w):
        return w


def dense_after(function, width=4):
    """A dense layer with a dead unit, `function`, and a dense layer."""
    inputs = keras.Input((5,))
    hidden = layers.Dense(width, name="a")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(function(hidden)))
    randomise(model, np.random.default_rng(0), zero_bias=0.0)
    kill(model.get_layer("a"), [1])
    model.get_layer("a").bias.assign(np.where(np.arange(width) == 1, 0, 1.0))
    return model


@long_on_jax
@pytest.mark.parametrize(
    "function",
    [
        lambda x: keras.ops.clip(x, [-1.0, -0.5, -0.1, 0.0], [1.0, 0.5, 0.1, 0.2]),
        lambda x: keras.ops.clip(x, np.full(4, -1.0), np.full(4, 1.0)),
        lambda x: keras.ops.vectorized_map(lambda row: row * 2, x),
        lambda x: x + np.arange(4.0),
        lambda x: layers.Activation(lambda x: keras.ops.cumsum(x, axis=-1))(x),
        lambda x: layers.Dense(3, activation=lambda x: x[:, ::-1])(x),
        lambda x: layers.Dense(3, kernel_regularizer=OwnRegularizer())(x),
        lambda x: layers.Dense(3, kernel_constraint=OwnConstraint())(x),
    ],
    ids=["lists", "arrays", "map", "constant", "own mixing", "own activation", "own regularizer", "own constraint"],
)
def test_code_of_the_users_own(function):
    channels(dense_after(function))


def adjacency(x):
    return np.random.default_rng(3).random((x.shape[1], x.shape[1])).astype("float32")


OPERATIONS = {
    "flip": lambda x: ops.flip(x, axis=1),
    "roll": lambda x: ops.roll(x, (1, 2), axis=(1, 2)),
    "pad": lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 2), (0, 0))),
    "pad by reflection": lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 2), (0, 0)), mode="reflect"),
    "power": lambda x: x**2 + ops.power(ops.square(x) + 1, 0.5),
    "where": lambda x: ops.where(x > 0, x, 0.1 * x),
    "stack": lambda x: ops.sum(ops.stack([x, ops.sin(x), ops.expm1(x)], axis=3), axis=3),
    "deviation": lambda x: ops.concatenate([ops.std(x, axis=(1, 2)), ops.var(x, axis=(1, 2))], axis=-1),
    "pool": lambda x: ops.max_pool(x, 2, strides=2) + ops.average_pool(x, 2, strides=2),
    "resize": lambda x: ops.image.resize(x, (9, 9)),
    "glu": lambda x: ops.glu(ops.concatenate([x, x], axis=-1)),
    "halves": lambda x: math.prod(ops.split(ops.concatenate([x, x], axis=-1), 2, axis=-1)),
    "matrices": lambda x: ops.matmul(ops.softmax(ops.matmul(x, ops.swapaxes(x, 2, 3))), x),
    "matrix, constant": lambda x: ops.matmul(adjacency(x), x),
    "matrix, of another": lambda x: ops.matmul(layers.Dense(x.shape[1], name="scores")(ops.stop_gradient(x)), x),
    "matrix, transposed": lambda x: ops.matmul(ops.swapaxes(x, 2, 3), adjacency(x)),
    "einsum, constant": lambda x: ops.einsum("bxyc,xz->bczy", x, adjacency(x)),
    "layer of one's own": Halved(),
    "lambda": layers.Lambda(lambda x: x * ops.sigmoid(x)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_pass_dead_channels_on(name):
    inputs = keras.Input((6, 6, 3))
    x = OPERATIONS[name](layers.Conv2D(8, 1, name="a")(inputs))
    if name in ("matrix, transposed", "einsum, constant"):
        x = ops.transpose(x, (0, 1, 3, 2)) if name.startswith("matrix") else ops.transpose(x, (0, 2, 3, 1))
    model = keras.Model(inputs, layers.Dense(2, name="b")(x))
    randomise(model, np.random.default_rng(0), zero_bias=0.0)
    kill(model.get_layer("a"), [1, 2, 5])
    model.get_layer("a").bias.assign(model.get_layer("a").bias * np.isin(range(8), [1, 2, 5], invert=True))
    assert channels(model)[0]["a"] == (8, 5)
    both = model.get_layer("b").kernel.shape[0] // 8
    unread = np.where(np.tile(np.arange(8), both)[:, None] == 3, 0, model.get_layer("b").kernel)
    model.get_layer("b").kernel.assign(unread)
    # A sum over the channels reads all.
    assert channels(model)[0]["a"] == (8, 5 if name == "matrices" or name == "matrix, of another" else 4)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ops.flip(x, axis=-1),
        lambda x: ops.roll(x, 6),
        lambda x: ops.roll(x, x.shape[-1], axis=-1),
        lambda x: ops.pad(x, ((0, 0), (0, 0), (0, 0), (1, 0))),
        lambda x: ops.where(np.arange(6) > 2, x, -x),
        lambda x: ops.where(x > ops.mean(x, axis=-1, keepdims=True), x, 0),
        lambda x: ops.matmul(x, adjacency(x)),
        lambda x: ops.matmul(x, x),
        lambda x: ops.einsum("bxyc,cd->bxyd", x, adjacency(x)),
        lambda x: ops.stack([x, x], axis=0)[0],
        lambda x: ops.split(x, [2], axis=-1)[1],
        Odd(),
    ],
)
def test_operations_that_mix_channels_are_walls(function):
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, layers.Dense(2)(function(layers.Conv2D(6, 1, name="a")(inputs))))
    randomise(model, np.random.default_rng(0), zero_bias=0.0)
    kill(model.get_layer("a"), [1, 2])
    model.get_layer("a").bias.assign(model.get_layer("a").bias * np.isin(range(6), [1, 2], invert=True))
    assert channels(model)[0]["a"] == (6, 6)


class OwnOfSizes(layers.Layer):
    """What it does to each element depends on sizes, or on where that is."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / float(x.shape[1]),
        lambda x: x * ops.cast(ops.shape(x)[2], x.dtype),
        lambda x: x / ops.cast(ops.shape(x)[0], x.dtype),
        lambda x: x * ops.cast(ops.expand_dims(ops.arange(x.shape[2]) < 3, -1), x.dtype),
    ],
)
def test_what_depends_on_sizes(function):
    """Neither a layer nor an activation of one's own is taken to act on each element alone then."""
    inputs = keras.Input((5, 6, 3))
    for x in (
        OwnOfSizes(function)(layers.Conv2D(8, 1, name="a")(inputs)),
        layers.Conv2D(8, 1, activation=function, name="a")(inputs),
    ):
        model = keras.Model(inputs, layers.Dense(2)(x))
        kill(model.get_layer("a"), [0, 1, 2])
        model.get_layer("a").bias.assign(np.full(8, 0.7))
        channels(model)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: ops.where(x > 0, y, np.arange(8, dtype="float32")),
        lambda x, y: ops.stack([x, y, np.ones((3, 4, 8), "float32")], axis=1),
        lambda x, y: ops.concatenate([x, np.ones((3, 4, 8), "float32")], axis=1),
        lambda x, y: ops.matmul(x, ops.swapaxes(layers.Dense(8)(y), 1, 2)),
        lambda x, y: ops.reshape(ops.transpose(ops.reshape(x, (-1, 2, 8)), (0, 2, 1)), (-1, 2, 8, 2)),
    ],
    ids=["where", "stack", "concatenate", "matmul", "reshape"],
)
def test_arrays_and_parts_of_samples_beside_channels(function):
    inputs = keras.Input(batch_shape=(3, 4, 6))
    x, y = layers.Dense(8, name="a")(inputs), layers.Dense(8, name="b")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="c")(function(x, y)))
    for layer in (model.get_layer("a"), *(layer for layer in model.layers if layer.name == "b")):
        kill(layer, [1, 2])
    channels(model)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow broadcasts no axis that is summed over")
def test_a_sum_over_channels_of_which_one_side_has_one():
    inputs = keras.Input((4, 6))
    x = layers.Dense(8, name="a")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(ops.einsum("bqd,bkd->bqk", x, layers.Dense(1)(x))))
    kill(model.get_layer("a"), [1, 2])
    channels(model)


def test_what_is_padded_with_a_number_is_not_zero():
    inputs = keras.Input((4, 6, 3))
    x = layers.Conv2D(4, 1, bias_initializer="ones", name="a")(inputs)
    for padded in (
        layers.Resizing(8, 8, pad_to_aspect_ratio=True, fill_value=2.0)(x),
        ops.image.resize(x, (8, 8), pad_to_aspect_ratio=True, fill_value=2.0),
        ops.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), constant_values=2.0),
    ):
        model = keras.Model(inputs, layers.Dense(2)(padded))
        kill(model.get_layer("a"), [0, 1, 2])
        model.get_layer("a").bias.assign([0.0, 1.0, 2.0, 1.0])
        channels(model)


def test_reshapes_by_operators_are_cut():
    for shape in ((-1, 6), (-1, 1, 1, 6), (-1, 1, 6)):
        model = dense_after(lambda x, shape=shape: keras.ops.reshape(x, shape), width=6)
        assert channels(model)[0]["a"] == (6, 5)


def test_placeholders_stay_finite():
    """Nobody reads the quotient: but 0 / 0 times a weight of zero would be NaN."""
    inputs = keras.Input((5,))
    quotient = layers.Dense(4, name="a")(inputs) / layers.Dense(4, activation="softplus", name="b")(inputs)
    root = keras.ops.sqrt(layers.Dense(4, activation="softplus", bias_initializer="ones", name="c")(inputs) - 0.5)
    model = keras.Model(inputs, layers.Dense(2, kernel_initializer="zeros")(layers.Concatenate()([quotient, root])))
    model.get_layer("c").bias.assign(np.full(4, 9.0))
    assert channels(model)[0]["a"] == (4, 1)


@pytest.mark.parametrize("as_layer", [True, False])
@pytest.mark.parametrize(("multiple_of", "filters"), [(1, 5), (4, 8)])
def test_placeholders_behind_a_function_of_ones_own_stay_finite(as_layer, multiple_of, filters):
    """Seven of twelve filters are unread. A placeholder of zeros would come out of the function as −∞, and −∞ · 0."""

    def function(x):
        return keras.ops.log(x + 1e-3) - 1 / x

    stack = [layers.Activation(function)] if as_layer else []
    first = layers.Conv2D(12, 1, activation=None if as_layer else function, name="a")
    model = chain(first, *stack, layers.Conv2D(3, 1, name="b"))
    for weight in first.weights:
        weight.assign(keras.ops.abs(weight) + 0.1)
    kernel = np.array(keras.ops.convert_to_numpy(model.get_layer("b").kernel))
    kernel[:, :, 5:] = 0
    model.get_layer("b").kernel.assign(kernel)
    smaller = keras_rda.compress(model, multiple_of=multiple_of)
    x = np.random.default_rng(0).random((2, 6, 6, 3), "float32")
    outputs = smaller.predict(x, verbose=0)
    assert np.isfinite(outputs).all()
    np.testing.assert_allclose(outputs, model.predict(x, verbose=0), rtol=1e-5)
    assert smaller.get_layer("a").filters == filters


def test_a_layer_with_one_call_that_is_a_wall_stays_whole():
    inputs = keras.Input((6, 6))
    for swap in (False, True):
        x = layers.Dense(6, name="a")(inputs)
        both = [x, layers.Permute((2, 1))(x)]
        shared = layers.Dense(6, name="shared")
        model = keras.Model(inputs, layers.Add()([shared(tensor) for tensor in (reversed(both) if swap else both)]))
        kill(model.get_layer("a"), [0, 1])
        assert channels(model)[0]["shared"] == (6, 6)
    first, second = (layers.Dense(6, name=name)(inputs) for name in "ab")
    normalization = layers.BatchNormalization()
    model = keras.Model(inputs, layers.Dense(2)(normalization(first) + normalization(second, training=True)))
    kill(model.get_layer("a"), [0])
    kill(model.get_layer("b"), [0])
    channels(model)


def test_layers_with_state_beside_their_configuration_are_shared():
    @keras.saving.register_keras_serializable("tests")
    class Factor(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.factor = 1.0

        def call(self, x):
            return x * self.factor

    factor = Factor(name="factor")
    factor.factor = 5.0
    _, _, report = channels(dense_after(factor))
    assert report.notes[-1] == "Factor 'factor': used by both models; its configuration does not make it anew."


def test_depthwise_channel_without_weights_does_not_read():
    """Its bias meets zero padding and stays; the channel that it would convolve goes as far as it can."""
    model = chain(
        layers.Dense(8, name="a"),
        layers.Dense(6, name="b"),
        layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
        layers.Conv2D(4, 3, padding="same"),
    )
    kill(model.get_layer("depthwise"), range(6))
    model.get_layer("depthwise").bias.assign(np.ones(6))
    cut, smaller, _ = channels(model)
    assert cut["a"] == (8, 1)
    assert cut["depthwise"] == (6, 6)
    assert keras_rda.compress(smaller).count_params() == smaller.count_params()


def test_optional_inputs_stay_optional():
    inputs = keras.Input((5,)), keras.Input((5,), optional=True, name="optional")
    try:
        model = keras.Model(inputs, layers.Dense(2)(inputs[0]))
    except ValueError:
        pytest.skip("this Keras takes no input that nothing reads")
    smaller = keras_rda.compress(model)
    smaller([np.ones((1, 5)), None])


def test_normalizations_in_a_row_and_of_another_precision():
    model = chain(layers.Dense(4), layers.BatchNormalization(), layers.BatchNormalization(), shape=(5,))
    smaller = keras_rda.compress(model, fold_batch_norm=True)
    assert [type(layer).__name__ for layer in smaller.layers] == ["InputLayer", "Dense", "Identity"]
    assert smaller.output_names == [model.layers[-1].name]
    assert_same_outputs(model, smaller)
    model = chain(layers.Dense(4, dtype="mixed_float16"), layers.BatchNormalization(dtype="float32"), shape=(5,))
    assert len(keras_rda.compress(model, fold_batch_norm=True).layers) == 3


def test_names_of_classes_that_keras_does_not_export_exist():
    """Renamed in another version, an operation would become a wall without a word."""
    modules = [m for n, m in sys.modules.items() if n.startswith(("keras.src.ops.", "keras.src.applications."))]
    missing = [name for name in rules.INTERNAL if not any(hasattr(module, name) for module in modules)]
    assert not missing


@keras.saving.register_keras_serializable("tests")
class Scale(layers.Layer):
    """A layer that `compress` does not know."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), initializer="random_uniform")

    def call(self, x):
        return x * self.factor


def test_unknown_layers_are_walls_with_a_note():
    model = chain(layers.Dense(8, name="a"), layers.Dense(8, name="b"), Scale(name="wall"), layers.Dense(2), shape=(5,))
    kill(model.get_layer("a"), [0, 1])
    kill(model.get_layer("b"), [0, 1])
    cut, smaller, report = channels(model)
    assert cut == {"a": (8, 6), "b": (8, 8), "wall": None, "dense": (2, 2)}
    note = "Scale 'wall': unknown, so no channel is cut on either side of it. It has weights of its own (variable)."
    assert report.notes == (note,)
    assert report.rows[1].reasons == ("unknown layer 'wall', which has weights of its own (variable)",)
    assert smaller.get_layer("wall") is not model.get_layer("wall")


def test_layers_that_cannot_be_copied_are_shared_with_a_note():
    class Opaque(layers.Layer):
        def __init__(self, argument, **kwargs):
            super().__init__(**kwargs)

        def build(self, shape):
            self.factor = self.add_weight(name="factor")

        def call(self, x):
            return self.factor * keras.ops.sort(x)

    model = chain(layers.Dense(8, name="a"), layers.Dense(8), Opaque(object()), shape=(5,))
    kill(model.get_layer("a"), [0, 1])
    cut, _, report = channels(model)
    assert cut["a"] == (8, 6)
    assert any(note.startswith("Opaque") and "used by both models" in note for note in report.notes)


def test_adapted_preprocessing_keeps_its_state():
    random = np.random.default_rng(0)
    normalization = layers.Normalization()
    normalization.adapt(random.normal(3, 2, (20, 5)))
    assert_same_outputs(*(model := chain(normalization, layers.Dense(4), shape=(5,)), keras_rda.compress(model)))
    if BACKEND != "tensorflow":
        return  # a lookup takes int64, which JAX does not have
    lookup = layers.IntegerLookup()
    lookup.adapt(np.array([1, 2, 3, 4]))
    inputs = keras.Input((3,), dtype="int64")
    model = keras.Model(inputs, layers.Dense(2)(layers.Embedding(6, 4)(lookup(inputs))))
    assert_same_outputs(model, keras_rda.compress(model))


def test_images_of_unknown_size_and_channels_first():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(8, 3, name="a")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    kill(model.get_layer("a"), [0, 1])
    assert channels(model)[0]["a"] == (8, 6)
    if BACKEND == "tensorflow":
        return  # its convolutions on the CPU are channels-last
    x = layers.Conv2D(8, 3, data_format="channels_first", name="a")(keras_input := keras.Input((3, 9, 7)))
    x = layers.BatchNormalization(axis=1)(x)
    x = layers.MaxPooling2D(2, data_format="channels_first")(layers.ReLU()(x))
    model = keras.Model(keras_input, layers.Dense(2)(layers.Flatten(data_format="channels_first")(x)))
    randomise(model, np.random.default_rng(0))
    kill(model.get_layer("a"), [0, 1])
    assert channels(model)[0]["a"] == (8, 6)


def test_trying_an_activation_says_nothing(recwarn):
    """Keras warns of a softmax over one channel, which only the trial has."""
    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(keras.layers.Dense(16)(inputs)))
    keras_rda.compress(model)
    assert not [warning for warning in recwarn if "softmax" in str(warning.message)]


@long_on_jax
@pytest.mark.parametrize("name", ["conv", "dense", "einsum", "depthwise", "separable", "transpose", "grouped"])
def test_batch_normalization_is_folded_on_request(name):
    convolutions = {
        "conv": lambda: layers.Conv2D(8, 3, use_bias=False),
        "dense": lambda: layers.Dense(8),
        "einsum": lambda: layers.EinsumDense("abcd,ed->abce", (6, 6, 8)),
        "depthwise": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
        "separable": lambda: layers.SeparableConv2D(8, 3, use_bias=False),
        "transpose": lambda: layers.Conv2DTranspose(8, 3),
        "grouped": lambda: layers.Conv2D(6, 3, groups=3),
    }
    model = chain(convolutions[name](), layers.BatchNormalization(), layers.ReLU(), layers.Dense(2))
    kill(model.layers[0], [1], "pointwise_kernel" if name == "separable" else "kernel")
    smaller = keras_rda.compress(model, fold_batch_norm=True)
    assert not any(isinstance(layer, layers.BatchNormalization) for layer in smaller.layers)
    assert_same_outputs(model, smaller)


def test_batch_normalization_that_others_look_behind_is_not_folded():
    inputs = keras.Input((5,))
    x = layers.Dense(4)(inputs)
    model = keras.Model(inputs, [x, layers.BatchNormalization()(x)])
    smaller = keras_rda.compress(randomise(model, np.random.default_rng(0)), fold_batch_norm=True)
    assert any(isinstance(layer, layers.BatchNormalization) for layer in smaller.layers)
    assert_same_outputs(model, smaller)


def test_original_is_not_touched_and_result_trains():
    model = chain(layers.Conv2D(8, 3, name="a"), layers.BatchNormalization(), layers.Flatten(), layers.Dense(3))
    kill(model.get_layer("a"), [0, 1])
    config, weights = model.get_config(), model.get_weights()
    smaller = keras_rda.compress(model)
    smaller.compile(keras_rda.MRDA(0.1), loss="mse")
    smaller.fit(np.ones((4, 6, 6, 3)), np.ones((4, 3)), verbose=0)
    assert model.get_config() == config
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert model.get_layer("a").output.shape == (None, 4, 4, 8)  # still called once


def test_result_is_saved_and_loaded(tmp_path):
    model = chain(layers.Conv2D(8, 3), layers.ReLU(), layers.Flatten(), layers.Dense(3))
    kill(model.layers[0], [0, 1])
    smaller = keras_rda.compress(model)
    smaller.save(tmp_path / "small.keras")
    assert_same_outputs(model, keras.models.load_model(tmp_path / "small.keras"))
    assert isinstance(smaller.layers[1].kernel_initializer, keras.initializers.GlorotUniform)


def test_dropout_that_is_always_on_and_training_statistics_are_walls():
    inputs = keras.Input((5,))
    x = layers.Dense(6, name="a", use_bias=False)(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.BatchNormalization()(x, training=True)))
    kill(model.get_layer("a"), [0, 1])
    cut, _, report = channels(model)
    assert cut["a"] == (6, 6)
    assert report.rows[0].zeros_kept == 2
    assert "training=True" in report.rows[0].reasons[0]


def test_weights_that_are_not_finite_are_refused():
    """Zero times infinity is NaN: without a dead channel, the outputs would be others."""
    model = chain(layers.Dense(4, name="a"), layers.Dense(2, name="b"), shape=(5,))
    kill(model.get_layer("a"), [0, 1])
    model.get_layer("b").kernel.assign(np.full((4, 2), np.inf))
    with pytest.raises(ValueError, match=r"weights 'sequential/b/kernel' are not finite"):
        keras_rda.compress(model)


def test_one_group_that_is_left_is_cut_like_an_ordinary_convolution():
    model = chain(
        layers.Conv2D(4, 1, use_bias=False, name="a"),
        layers.Conv2D(8, 1, groups=4, use_bias=False, name="b"),
        layers.Flatten(),
        layers.Dense(2),
    )
    kill(model.get_layer("b"), [0, 1, 2, 3, 4, 6, 7])
    assert channels(model)[0] == {"a": (4, 1), "b": (8, 1), "dense": (2, 2)}


def test_mixed_precision_keeps_its_policy():
    keras.config.set_dtype_policy("mixed_float16")
    model = chain(layers.Dense(6, name="a"), layers.Dense(2), shape=(5,))
    kill(model.get_layer("a"), [0, 1])
    smaller = keras_rda.compress(model)
    assert smaller.get_layer("a").dtype_policy.name == "mixed_float16"
    assert_same_outputs(model, smaller, 1e-2)


def test_report_counts_parameters_multiply_adds_and_bytes():
    model = chain(layers.Conv2D(8, 3, name="a"), layers.Flatten(), layers.Dense(2, name="b"))
    kill(model.get_layer("a"), [0, 1])
    _, _, report = channels(model)
    a, b = report.rows
    assert a.parameters == (3 * 9 * 8 + 8, 3 * 9 * 6 + 6)
    assert a.multiply_adds == (16 * 3 * 9 * 8, 16 * 3 * 9 * 6)  # at 4 × 4 positions
    assert b.multiply_adds == (16 * 8 * 2, 16 * 6 * 2)
    assert report.total("bytes") == tuple(4 * count for count in report.total("parameters"))
    dictionary = report.to_dict()
    assert dictionary["total"]["parameters"] == [model.count_params(), a.parameters[1] + b.parameters[1]]
    assert dictionary["layers"][0]["name"] == "a"
    for part in ("224 → 168", "all", "3,456 → 2,592"):
        assert part in str(report)
    sizes = " → ".join(map(output.size, report.total("bytes")))
    assert str(report).splitlines()[0] == f"2 of 10 channels removed, weights (dense) {sizes}"


def test_report_says_when_nothing_goes():
    model = chain(layers.Conv2D(8, 3, name="a"), layers.Flatten(), layers.Dense(2, name="b"))
    report = keras_rda.compress(model, report=True)[1]
    assert str(report).strip() == "Nothing to remove: no dead or unread channels."


def test_report_fits_a_terminal_and_breaks_no_word():
    inputs = keras.Input((8, 8, 3))
    names = "mobile_net_backbone_stage_3_cross_stage_partial_bottleneck_10_squeeze_and_excite_depthwise_conv", "b"
    x = layers.Conv2D(1024, 3, padding="same", name=names[0])(inputs)
    model = keras.Model(inputs, layers.Conv2D(2048, 3, padding="same", name=names[1])(x))
    kill(model.get_layer(names[0]), range(300))
    model.get_layer(names[0]).bias.assign(np.ones(1024))
    text = str(keras_rda.compress(model, report=True)[1])
    assert max(map(len, text.splitlines())) <= 100
    cells = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    assert "".join(cells) == f"{names[0]}{names[1]}all"
    assert all(cell.endswith("_") for cell in cells[:-3])
    assert f"300: a constant that '{names[1]}'" in " ".join(text.split())
    assert "18.9 M" in text  # 1,024 · 2,048 · 9 weights and 2,048 biases


def test_what_is_no_built_model_is_refused():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    class Overridden(keras.Model):
        def call(self, x):
            return 2 * super().call(x)

    with pytest.raises(ValueError, match=r"Subclassed '.*' is not built\. Call it once on data\."):
        keras_rda.compress(Subclassed())
    inputs = keras.Input((3,))
    overridden = Overridden(inputs, layers.Dense(2)(layers.Dense(4, name="hidden")(inputs)))
    kill(overridden.get_layer("hidden"), [0])
    smaller = keras_rda.compress(overridden)
    assert_same_outputs(overridden, smaller)
    assert smaller.count_params() < overridden.count_params()
    with pytest.raises(ValueError, match=r"Build it first: put a keras\.Input\(shape\) before its layers"):
        keras_rda.compress(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(TypeError, match=r"takes a keras\.Model; received Dense"):
        keras_rda.compress(layers.Dense(2))


# A few run always; `-m every` runs the others (minutes).
OFTEN = ["MobileNetV2", "DenseNet121", "ConvNeXtTiny", "Xception", "MobileNetV3Small"]
APPLICATIONS = [
    pytest.param(name, marks=() if name in OFTEN else pytest.mark.every)
    for name in dir(keras.applications)
    if name[0].isupper()
]


@long_on_jax
@pytest.mark.parametrize("name", APPLICATIONS)
def test_applications_keep_their_outputs(name):
    size = 75 if name in ("Xception", "InceptionV3", "InceptionResNetV2") else 32
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=5)
    kill_share(model, 0.5)
    smaller, report = keras_rda.compress(model, report=True)
    assert smaller.count_params() < model.count_params()
    assert not report.notes
    images = np.random.default_rng(0).uniform(-1, 1, (2, size, size, 3)).astype("float32")
    ours, theirs = (keras.ops.convert_to_numpy(m(images, training=False)) for m in (model, smaller))
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5 * np.abs(ours).max())
    print(f"{name}: {model.count_params():,} → {smaller.count_params():,}")


def dead_half(*between):
    """A network whose first layer computes half of its 16 channels from a bias alone."""
    model = keras.Sequential([keras.Input((16,)), *between, layers.Dense(3)])
    outputs(model)  # which creates the weights of activations
    for layer in model.layers[:-1]:
        if hasattr(layer, "kernel"):
            kernel = keras.ops.convert_to_numpy(layer.kernel).copy()
            kernel[..., :8] = 0
            layer.kernel.assign(kernel)
            layer.bias.assign(np.linspace(-1, 1, 16))
    return model


@keras.saving.register_keras_serializable(package="test_compress")
class Slope(layers.Layer):
    """A layer of a user's own with a weight for each channel."""

    def build(self, shape):
        self.slope = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.slope


@keras.saving.register_keras_serializable(package="test_compress")
def cubed(x):
    return x**3


@keras.saving.register_keras_serializable(package="test_compress")
def gated(x):
    return x * keras.ops.flip(x, axis=-1)


@keras.saving.register_keras_serializable(package="test_compress")
def centred(x):
    return x - keras.ops.mean(x)


@keras.saving.register_keras_serializable(package="test_compress")
def numbered(x):
    return x * keras.ops.arange(16, dtype="float32")


IMAGE = layers.Reshape((4, 4, 1))
OWN_ACTIVATIONS = {  # whether channels can be removed
    "PReLU": (lambda: [layers.Dense(16, activation=layers.PReLU("random_uniform"))], True),
    "PReLU, shared": (
        lambda: [
            IMAGE,
            layers.Conv2D(16, 3, activation=layers.PReLU("random_uniform", shared_axes=[1, 2])),
            layers.Flatten(),
        ],
        True,
    ),
    "LeakyReLU": (lambda: [layers.Dense(16, activation=layers.LeakyReLU(0.1))], True),
    "a function": (lambda: [layers.Dense(16, activation=cubed)], True),
    "a function in a layer": (lambda: [layers.Dense(16), layers.Activation(cubed)], True),
    "mixes": (lambda: [layers.Dense(16, activation=gated)], False),
    "mixes all alike": (lambda: [layers.Dense(16, activation=centred)], False),
    "knows its channels": (lambda: [layers.Dense(16, activation=numbered)], False),
    "has weights": (lambda: [layers.Dense(16, activation=Slope())], False),
    "softmax": (lambda: [layers.Dense(16, activation="softmax")], False),
}


@pytest.mark.parametrize("activation", [layers.PReLU, Slope, layers.LeakyReLU])
def test_activations_that_no_data_has_passed_yet(activation):
    """Keras creates their weights then; the user's model must not have those of a trial."""
    for between in (
        lambda: [layers.Dense(16, activation=activation())],
        lambda: [layers.Dense(16), layers.Activation(activation())],
    ):
        model = keras.Sequential([keras.Input((16,)), *between(), layers.Dense(3)])
        smaller = keras_rda.compress(model)
        assert_same_outputs(model, smaller)


@pytest.mark.parametrize("name", OWN_ACTIVATIONS)
def test_activations_of_all_kinds(name, tmp_path):
    make, removes = OWN_ACTIVATIONS[name]
    model = dead_half(*make())
    before = [keras.ops.convert_to_numpy(v).copy() for v in model.weights]
    smaller = keras_rda.compress(model)
    assert (smaller.count_params() < model.count_params()) == removes
    smaller.save(tmp_path / "model.keras")
    for other in (smaller, keras.models.load_model(tmp_path / "model.keras")):
        assert_same_outputs(model, other)
    assert not {id(v) for v in smaller.weights} & {id(v) for v in model.weights}
    for variable in smaller.weights:
        variable.assign(variable + 1)
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)


def test_an_activation_is_tried_once_and_keras_own_never(monkeypatch):
    tried, seems_elementwise = [], activations.seems_elementwise
    monkeypatch.setattr(
        activations, "seems_elementwise", lambda own, shape: tried.append((own, shape)) or seems_elementwise(own, shape)
    )
    own = [layers.Dense(16, activation=cubed) for _ in range(3)]
    keras_rda.compress(dead_half(*own, layers.Dense(16, activation=layers.LeakyReLU(0.1)), layers.Activation(cubed)))
    assert tried == [(cubed, (2, 7))]


def test_an_input_that_is_passed_through():
    x, number = keras.Input((4,), name="x"), keras.Input((1,), name="id")
    y = layers.Dense(2)(x)
    for out in ([y, number], {"y": y, "id": number}, [number, number, y]):
        try:
            model = keras.Model([x, number], out)
        except ValueError:
            pytest.skip("this Keras takes no input for an output yet")
        smaller = keras_rda.compress(model)
        assert smaller.output_names == model.output_names
        assert_same_outputs(model, smaller)


def test_a_state_stays_as_it_was():
    """Whether a layer of the user's own can be made anew is found out by calling it."""

    @keras.saving.register_keras_serializable(package="test_compress")
    class Counting(layers.Layer):
        def build(self, shape):
            self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x):
            self.count.assign_add(1.0)
            return x

    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), Counting(), layers.Dense(2)])
    count = model.layers[1].count
    before = float(keras.ops.convert_to_numpy(count))
    keras_rda.compress(model)
    assert float(keras.ops.convert_to_numpy(count)) == before


def test_a_graph_that_is_no_longer_where_it_was(monkeypatch):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    monkeypatch.delattr(model._functional, "_nodes_by_depth")
    with pytest.raises(
        RuntimeError, match=rf"does not go with Keras {keras.__version__}: a functional model has no _no"
    ):
        keras_rda.compress(model)
