"""Layers made of layers, and subclassed models, are read as graphs and compressed."""

import re

import keras
import numpy as np
import pytest
from helpers import BACKEND, values
from test_compress import assert_same_outputs, kill, randomise

import keras_rda
from keras_rda.compression import classes

layers = keras.layers


@keras.saving.register_keras_serializable(package="tests")
class Block(layers.Layer):
    """x + back(dropout(hidden(norm(x))))"""

    def __init__(self, units=16, rate=0.0, **kwargs):
        super().__init__(**kwargs)
        self.units, self.rate = units, rate
        self.norm = layers.LayerNormalization()
        self.hidden = layers.Dense(units, "relu", name="hidden")
        self.dropout = layers.Dropout(rate)

    def build(self, shape):
        self.back = layers.Dense(shape[-1], name="back")
        self.norm.build(shape)
        self.hidden.build(shape)
        self.back.build((*shape[:-1], self.units))

    def call(self, x, training=None):
        return x + self.back(self.dropout(self.hidden(self.norm(x)), training=training))

    def get_config(self):
        return {**super().get_config(), "units": self.units, "rate": self.rate}


class Stack(layers.Layer):
    """Blocks in a block, the first of them twice."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [Block(name="one"), Block(name="two")]

    def call(self, x):
        one, two = self.blocks
        return keras.ops.tanh(one(two(one(x))))


def kill_hidden(model, every=2):
    """Zero every second hidden unit; return how many weights and biases compute or read those."""
    gone = 0
    for layer in model._flatten_layers():
        if "hidden" in layer.name:
            kernel, bias = values([layer.kernel, layer.bias])
            kernel, bias = kernel.copy(), bias.copy()
            kernel[:, ::every] = bias[::every] = 0
            layer.kernel.assign(kernel)
            layer.bias.assign(bias)
            gone += len(bias[::every])
    return gone


def network(*blocks):
    x = inputs = keras.Input((6, 4), name="sequence")
    for block in blocks:
        x = block(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling1D()(x)))
    return randomise(model, np.random.default_rng(0), zero_bias=0.0) or model


@pytest.mark.parametrize("make", [lambda: [Block()], lambda: [Block(), Block(8)], lambda: [Stack()]])
def test_hidden_units_within_layers_go(make, tmp_path):
    model = network(*make())
    gone = kill_hidden(model)
    smaller, report = keras_rda.compress(model, report=True)
    assert_same_outputs(model, smaller)
    assert smaller.count_params() == model.count_params() - gone * (4 + 1 + 4)
    assert not report.notes
    assert [tensor.name for tensor in smaller.inputs] == ["sequence"]
    smaller.save(tmp_path / "smaller.keras")
    assert_same_outputs(smaller, keras.models.load_model(tmp_path / "smaller.keras"), tolerance=0)


def test_the_model_is_left_as_it_was():
    model = network(Block())
    block = model.layers[1]
    before = [len(layer._inbound_nodes) for layer in block._flatten_layers()], state_of(model)
    keras_rda.compress(model)
    classes.read(model)
    assert ([len(layer._inbound_nodes) for layer in block._flatten_layers()], state_of(model)) == before


def state_of(model):
    return [array.tobytes() for array in values(model.weights)]


def test_dropout_within_stays_dropout():
    model = network(Block(rate=0.5))
    smaller = keras_rda.compress(model)
    x = np.ones((2, 6, 4), "float32")
    assert np.any(values([smaller(x, training=True)])[0] != values([smaller(x, training=True)])[0])
    np.testing.assert_array_equal(*values([smaller(x), smaller(x, training=False)]))


def test_groups_of_channels_within_layers():
    model = network(Block(name="block"))
    layout = keras_rda.GroupL1(1e-3, "channels", model).layout
    assert {path: own is not None for path, own in layout.items()} == {
        "block/hidden/kernel": False,
        "block/back/kernel": True,
        "head/kernel": False,
    }


class Odd(layers.Layer):
    """A block with something odd in its call."""

    def __init__(self, odd):
        super().__init__(name="odd")
        self.odd, self.dense = odd, layers.Dense(4, name="hidden")
        self.seed = keras.random.SeedGenerator(0)

    def build(self, shape):
        self.dense.build(shape)
        if self.odd == "own weights":
            self.scale = self.add_weight((), name="scale")
        if self.odd == "state":
            self.seen = layers.BatchNormalization(name="norm")
            self.seen.build(shape)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)

    def call(self, x):
        if self.odd == "own weights":
            x = x * self.scale
        if self.odd == "values" and keras.ops.convert_to_numpy(x).max() > 0:
            x = -x
        if self.odd == "numbers":
            x = keras.ops.add(x, np.random.default_rng().normal(size=(1, 1, 4)).astype("float32"))
        if self.odd == "seeded numbers":
            x = x + keras.random.normal((1, 1, 4), seed=self.seed)
        if self.odd == "state":
            self.seen.moving_mean.assign(self.seen.moving_mean + 1)
        if self.odd == "constant":
            return keras.ops.ones((2, 6, 4))
        if self.odd == "weights of another":
            return x @ self.dense.kernel
        if self.odd == "condition":
            x = keras.ops.cond(keras.ops.max(x) > 0, lambda: x, lambda: -x)
        if self.odd == "tied weights":
            return self.dense(x) @ keras.ops.transpose(self.dense.kernel)
        return self.dense(x)


REASONS = {
    "own weights": r"has weights of its own \(scale\)",
    "values": r"cannot be called with symbolic tensors \(",
    "numbers": "computes something else than its graph: it draws numbers, or looks at values or weights",
    "seeded numbers": "changes a state",
    "condition": "c",  # where it fails depends on the backend
    "state": "changes a state",
    "constant": "returns what does not depend on its inputs",
    "weights of another": "computes with weights of layers outside these layers' calls",
    "tied weights": "computes something else than its graph: it draws numbers, or looks at values or weights",
}


@pytest.mark.parametrize("odd", REASONS)
def test_what_no_graph_tells_is_a_wall_with_its_reason(odd):
    inputs = keras.Input((6, 4), batch_size=2)
    layer = Odd(odd)
    outputs = layers.Dense(3)(layer(layers.Dense(4)(inputs)))
    model = keras.Model(inputs, outputs)
    before = state_of(model)
    smaller, report = keras_rda.compress(model, report=True)
    assert state_of(model) == before
    assert smaller.count_params() == model.count_params()
    assert any(re.search(f"Odd 'odd': unknown, .* It {REASONS[odd]}", note) for note in report.notes)


class Masked(Block):
    def compute_mask(self, x, mask=None):
        return mask


def test_masks_are_a_wall():
    inputs = keras.Input((6,), dtype="int32")
    block = Masked()
    block.supports_masking = True
    x = block(layers.Embedding(5, 4, mask_zero=True)(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    report = keras_rda.compress(model, report=True)[1]
    assert any("It is given a mask, or makes one." in note for note in report.notes)


class Words(layers.Layer):
    """A table of words that tells which are padding."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = layers.Embedding(5, 4)

    def compute_mask(self, ids, mask=None):
        return ids != 0

    def build(self, shape):
        self.table.build(shape)

    def call(self, ids):
        return 2 * self.table(ids)


def test_what_makes_a_mask_keeps_it():
    inputs = keras.Input((6,), dtype="int32")
    x = Words(name="words")(inputs)
    x = x + layers.MultiHeadAttention(2, 3)(x, x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    smaller, report = keras_rda.compress(model, report=True)
    assert any("It is given a mask, or makes one." in note for note in report.notes)
    ids = np.array([[1, 2, 3, 0, 0, 0], [4, 0, 0, 0, 0, 0]], "int32")
    np.testing.assert_allclose(*values([model(ids), smaller(ids)]), rtol=1e-5, atol=1e-6)


class Causal(layers.Layer):
    """Multiplies with a mask that is made for the size of the batch; `shaped` names what else is."""

    def __init__(self, shaped=None, **kwargs):
        super().__init__(**kwargs)
        self.block, self.shaped = Block(), shaped

    def build(self, shape):
        self.block.build(shape)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)

    def call(self, x):
        batch, length = keras.ops.shape(x)[:2]
        mask = np.tril(np.ones((batch, length, 1), "float32"))
        if self.shaped == "reshape":
            x = keras.ops.reshape(x, (batch, length, -1))
        if self.shaped == "broadcast":
            x = keras.ops.broadcast_to(x, (batch, length, 4))
        return keras.ops.multiply(self.block(x), mask)


def test_what_is_made_for_the_size_of_a_batch():
    """A mask for one does for all, and `reshape` finds out the size; other shapes do not."""
    for shaped in (None, "reshape"):
        model = network(Causal(shaped, name="causal"))
        gone = kill_hidden(model)
        smaller = keras_rda.compress(model)
        assert_same_outputs(model, smaller)
        assert smaller.count_params() == model.count_params() - 9 * gone
        again = keras.models.model_from_json(smaller.to_json())
        again.set_weights(smaller.get_weights())
        assert_same_outputs(smaller, again)
    model = network(Causal("broadcast", name="causal"))
    kill_hidden(model)
    smaller = keras_rda.compress(model)
    assert_same_outputs(model, smaller)
    assert smaller.count_params() == model.count_params()


def test_sizes_that_are_not_known_may_be_fixed():
    sequence = keras.Input((None, 4))
    inner = keras.Model(sequence, Causal(name="causal")(sequence))
    report = keras_rda.compress(inner, report=True)[1]
    assert any("call the model on an Input of fixed size" in note for note in report.notes)
    inputs = keras.Input((6, 4))
    model = keras.Model(inputs, inner(inputs))
    gone = kill_hidden(model)
    assert gone
    smaller = keras_rda.compress(model)
    assert_same_outputs(model, smaller)
    assert smaller.count_params() == model.count_params() - 9 * gone


@pytest.mark.parametrize("steps", [5, None])
def test_time_distributed(steps):
    """A dense layer is applied to the last axis of anything; for others the steps of all samples become samples."""
    images = keras.Input((steps, 6, 6, 3))
    x = layers.TimeDistributed(layers.Conv2D(8, 3, activation="relu", name="convolution"), name="steps")(images)
    x = layers.TimeDistributed(layers.GlobalAveragePooling2D())(x)
    x = layers.TimeDistributed(layers.Dense(6, "relu", name="hidden"))(x)
    model = keras.Model(images, layers.GRU(4)(layers.TimeDistributed(layers.Dense(5, name="back"))(x)))
    kill_hidden(model)
    kill(model.get_layer("steps").layer, [0, 2, 4, 6])
    smaller, report = keras_rda.compress(model, report=True)
    x = np.random.default_rng(0).normal(size=(3, 5, 6, 6, 3)).astype("float32")
    np.testing.assert_allclose(*values([model(x), smaller(x)]), rtol=1e-5, atol=1e-6)
    cut = {row.name: row.channels for row in report.rows}
    assert cut["hidden"] == (6, 3)
    if steps:
        assert cut["convolution"] == (8, 4)
        of_a_step = 16 * 27 * 8 + 8 * 6 + 6 * 5 + 12 * (5 + 4)
        assert report.total("multiply_adds")[0] == 5 * of_a_step
    else:  # Keras reshapes no two sizes that are not known
        assert any("'steps': unknown" in note for note in report.notes)


class Gate(layers.Layer):
    """One half of the channels times the other, as in NAFNet."""

    def call(self, x):
        first, second = keras.ops.split(x, 2, axis=-1)
        return first * second


class Numbered(layers.Layer):
    """Holds an array, as rotary positions do."""

    def call(self, x):
        return x * keras.ops.arange(1, 1 + x.shape[1], dtype="float32")[:, None]


def test_layers_made_of_operations(tmp_path):
    inputs = keras.Input((6, 4))
    x = Gate(name="gate")(layers.Dense(16, name="a")(inputs))
    y = layers.Dense(8, "tanh", name="b")(inputs)
    distance = layers.Lambda(lambda pair: keras.ops.sum((pair[0] - pair[1]) ** 2, axis=1), name="distance")([x, y])
    model = keras.Model(inputs, layers.Dense(2)(distance))
    kill(model.get_layer("a"), [0, 3, 9])  # of the gate's channels 0, 3 and 1
    kill(model.get_layer("b"), [0, 1, 2])
    smaller, report = keras_rda.compress(model, report=True)
    assert_same_outputs(model, smaller)
    assert not report.notes
    assert {row.name: row.channels for row in report.rows if row.channels} == {
        "a": (16, 12),
        "b": (8, 6),
        "dense": (2, 2),
    }
    assert not any(isinstance(layer, (Gate, layers.Lambda)) for layer in smaller.layers)
    smaller.save(tmp_path / "smaller.keras")  # without code of one's own
    assert_same_outputs(smaller, keras.models.load_model(tmp_path / "smaller.keras"), tolerance=0)


class DropPath(layers.Layer):
    """Stochastic depth, as in examples of Keras: nothing where the model predicts."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, x, training=None):
        if not training:
            return x
        shape = (keras.ops.shape(x)[0], *[1] * (len(x.shape) - 1))
        return x * keras.ops.floor(0.5 + keras.random.uniform(shape, seed=self.seed_generator))


class Dropping(layers.Layer):
    """A block that draws by itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.seed_generator = layers.Dense(8, name="hidden"), keras.random.SeedGenerator(1)

    def call(self, x, training=None):
        x = self.hidden(x)
        return keras.random.dropout(x, 0.5, seed=self.seed_generator) if training else x


def test_layers_that_draw_in_training_stay():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(DropPath(name="path")(layers.Dense(8, name="hidden")(inputs))))
    gone = kill_hidden(model)
    smaller = keras_rda.compress(model)
    assert_same_outputs(model, smaller)
    assert isinstance(smaller.get_layer("path"), DropPath)
    assert smaller.count_params() == model.count_params() - gone * (4 + 1 + 2)

    model = keras.Model(inputs, layers.Dense(2)(Dropping(name="block")(layers.Dense(8)(inputs))))
    smaller, report = keras_rda.compress(model, report=True)
    assert isinstance(smaller.get_layer("block"), Dropping)
    assert any("It draws numbers" in note for note in report.notes)


def test_activity_regularizers_stay():
    inputs = keras.Input((5, 4))
    steps = layers.TimeDistributed(layers.Dense(4), activity_regularizer="l1", name="steps")
    model = keras.Model(inputs, layers.Dense(2)(steps(inputs)))
    smaller = keras_rda.compress(model)
    x = np.ones((3, 5, 4), "float32")
    model(x), smaller(x)
    np.testing.assert_allclose(*values([sum(model.losses), sum(smaller.losses)]), rtol=1e-5)


def test_layers_with_arrays_stay():
    inputs = keras.Input((6, 4))
    model = keras.Model(inputs, layers.Dense(2)(Numbered(name="numbered")(layers.Dense(8)(inputs))))
    smaller, report = keras_rda.compress(model, report=True)
    assert isinstance(smaller.get_layer("numbered"), Numbered)
    assert any("It has no layers within" in note for note in report.notes)


def test_windows_of_an_image_are_counted():
    images = keras.Input((8, 8, 3))
    windows = keras.ops.transpose(keras.ops.reshape(images, (-1, 2, 4, 2, 4, 3)), (0, 1, 3, 2, 4, 5))
    windows = keras.ops.reshape(windows, (-1, 16, 3))  # four of each image
    x = layers.MultiHeadAttention(2, 5)(windows, windows)
    x = keras.ops.reshape(layers.Dense(6)(x), (-1, 4 * 16, 6))
    model = keras.Model(images, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    attention = 16 * 4 * 3 * 10 + 2 * 16**2 * (5 + 5)
    assert keras_rda.summary(model).multiply_adds[0] == 4 * (attention + 16 * 3 * 6) + 6 * 2
    # Parts of samples of any length, three samples in two, and samples in pairs.
    for inputs, shape in (((None, 3), (-1, 4, 3)), ((4, 3), (-1, 6, 3)), ((4, 3), (-1, 8, 3))):
        inputs = keras.Input(inputs)
        unknown = keras.Model(inputs, layers.Dense(2)(keras.ops.reshape(inputs, shape)))
        assert keras_rda.summary(unknown).multiply_adds is None


class Perceptron(keras.Model):
    """As in Keras' guide “Making new layers and models via subclassing”."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = layers.Dense(32, "relu", name="hidden")
        self.dropout = layers.Dropout(0.5)
        self.classifier = layers.Dense(5, "softmax")

    def call(self, inputs, training=False):
        if isinstance(inputs, dict):
            inputs = keras.ops.concatenate([inputs["a"], inputs["b"]], axis=-1)
        return self.classifier(self.dropout(self.hidden(inputs), training=training))


def test_subclassed_models(tmp_path):
    model = Perceptron(name="perceptron")
    x = np.random.default_rng(0).normal(size=(7, 10)).astype("float32")
    with pytest.raises(ValueError, match=r"Perceptron 'perceptron' is not built\. Call it once on data"):
        keras_rda.compress(model)
    expected = values([model(x)])[0]
    gone = kill_hidden(model)
    expected = values([model(x)])[0]
    smaller, report = keras_rda.compress(model, report=True)
    np.testing.assert_allclose(values([smaller(x)])[0], expected, rtol=1e-5, atol=1e-6)
    assert smaller.count_params() == model.count_params() - gone * (10 + 1 + 5)
    assert smaller.name == "perceptron"
    assert not model._inbound_nodes
    assert keras_rda.summary(model).multiply_adds == report.total("multiply_adds")
    if BACKEND == "tensorflow":
        result = keras_rda.export(smaller, tmp_path / "model.tflite")
        assert result.chosen.passed


@pytest.fixture
def policy(request):
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    "policy",
    [
        *("mixed_bfloat16", "mixed_float16"),
        pytest.param("float64", marks=pytest.mark.skipif(BACKEND == "jax", reason="JAX has no float64 by default")),
    ],
    indirect=True,
)
def test_layers_that_compute_in_another_precision_than_their_inputs(policy):
    """Keras casts what a layer is given before its `call` sees it."""
    x = np.random.default_rng(0).normal(size=(7, 10)).astype("float32")
    model = Perceptron(name="perceptron")
    model(x)
    gone = kill_hidden(model)
    smaller = keras_rda.compress(model)
    assert smaller.inputs[0].dtype == model.variable_dtype
    np.testing.assert_array_equal(*(array.astype("float32") for array in values([model(x), smaller(x)])))
    assert smaller.count_params() == model.count_params() - gone * (10 + 1 + 5)

    sequence = keras.Input((6, 4), dtype="float32")
    model = keras.Model(sequence, Block()(sequence))
    gone = kill_hidden(model)
    smaller, report = keras_rda.compress(model, report=True)
    assert not report.notes
    x = np.random.default_rng(1).normal(size=(2, 6, 4)).astype("float32")
    np.testing.assert_allclose(*(array.astype("float32") for array in values([model(x), smaller(x)])), rtol=1e-2)
    assert smaller.count_params() == model.count_params() - gone * (4 + 1 + 4)


def test_subclassed_models_of_several_inputs():
    model = Perceptron()
    data = {name: np.ones((3, 4), "float32") for name in "ab"}
    model(data)
    kill_hidden(model)
    smaller = keras_rda.compress(model)
    np.testing.assert_allclose(*values([smaller(data), model(data)]), rtol=1e-5)
    assert smaller.count_params() < model.count_params()


class IndexModel(keras.Model):
    def __init__(self, several=False):
        super().__init__(name="words")
        self.several = several
        self.table, self.head = layers.Embedding(2000, 4), layers.Dense(3)

    def call(self, ids):
        ids = ids["a"] + ids["b"] if self.several else ids
        return self.head(layers.GlobalAveragePooling1D()(self.table(ids)))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"], indirect=True)
def test_subclassed_models_of_indices(policy):
    """Which bfloat16 would round to others."""
    model = IndexModel()
    ids = np.array([[999, 1999, 3]], "int32")
    model(ids)
    smaller = keras_rda.compress(model)
    assert smaller.inputs[0].dtype == "int32"
    np.testing.assert_allclose(*(array.astype("float32") for array in values([model(ids), smaller(ids)])), rtol=1e-2)
    several = IndexModel(several=True)
    several({"a": ids, "b": 0 * ids})
    with pytest.raises(ValueError, match=r"has several inputs, some of which may be indices\. Call it on a keras"):
        keras_rda.compress(several)


def test_subclassed_models_that_are_no_graph():
    class Own(keras.Model):
        def __init__(self):
            super().__init__(name="own")
            self.dense = layers.Dense(2)

        def build(self, shape):
            self.dense.build(shape)
            self.scale = self.add_weight((), name="scale")

        def call(self, x):
            return self.dense(x) * self.scale

    model = Own()
    model(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"Own 'own' has weights of its own \(scale\)\. Build the same network with"):
        keras_rda.compress(model)


class Uncopied(layers.Layer):
    """No configuration makes it anew, so the smaller model takes it as it is, under its own name."""

    def __init__(self, factor):
        super().__init__(name="uncopied")
        self.factor = factor

    def call(self, x, y=0.0):
        return self.factor * x + y


class Around(layers.Layer):
    def __init__(self, pair=False, scale=None, **kwargs):
        super().__init__(**kwargs)
        self.pair, self.scale, self.uncopied, self.block = pair, scale, Uncopied(0.5), Block()

    def build(self, shape):
        self.block.build(shape)

    def call(self, x):
        if self.scale is not None:
            return self.block(self.uncopied(x, y=self.scale))
        return self.block(self.uncopied(x, x) if self.pair else self.uncopied(x))


def test_layers_of_one_name_that_cannot_be_made_anew():
    """As in KerasHub's networks: each layer has a `drop_path` that is an `Identity` without configuration."""
    model = network(Around(name="one"), layers.Dense(4), Around(name="two"))
    gone = kill_hidden(model)
    smaller, report = keras_rda.compress(model, report=True)
    assert_same_outputs(model, smaller)
    assert smaller.count_params() == model.count_params() - 9 * gone
    assert "Uncopied 'two_uncopied': used by both models; " in "".join(report.notes)


def test_what_cannot_be_built_anew_stays_whole():
    """Two layers of one name, both in layers made of layers, that take two tensors."""
    around = [Around(pair=True, name=name) for name in ("one", "two")]
    model = network(around[0], layers.Dense(8, name="hidden"), layers.Dense(4), around[1])
    kill_hidden(model)
    smaller, report = keras_rda.compress(model, report=True)
    assert_same_outputs(model, smaller)
    assert smaller.count_params() < model.count_params()
    assert "stay whole, as the model cannot be built from what is within: " in report.notes[-1]
    assert "uncopied" in report.notes[-1]
    alone = network(Around(name="one"))
    gone = kill_hidden(alone)
    smaller, report = keras_rda.compress(alone, report=True)
    assert_same_outputs(alone, smaller)
    assert smaller.count_params() == alone.count_params() - 9 * gone


@keras.saving.register_keras_serializable(package="tests")
class CachedAttention(layers.MultiHeadAttention):
    """As KerasHub's: takes a cache, or is what it is derived from."""

    def compute_output_spec(self, query, value, key=None, cache=None, training=None):
        return keras.KerasTensor(query.shape, query.dtype)

    def call(self, query, value, key=None, cache=None, training=None):
        found = super().call(query, value, key, training=training)
        return found if cache is None else keras.ops.concatenate([cache, found], 1)


class DoubledAttention(layers.MultiHeadAttention):
    def call(self, query, value, key=None):
        return 2 * super().call(query, value, key)


def attending(kind, **arguments):
    inputs = keras.Input((6, 4))
    layer = kind(num_heads=4, key_dim=3, name="attention")
    x = layers.LayerNormalization()(layer(inputs, inputs, **arguments))
    model = keras.Model(inputs, layers.Dense(2)(layer(x, x, **arguments)))
    randomise(model, np.random.default_rng(0))
    output = layer.weights[6]
    array = values([output])[0].copy()
    array[[0, 2]] = 0
    output.assign(array)
    return model


def test_heads_of_what_is_derived_from_attention(tmp_path):
    model = attending(CachedAttention, cache=None)
    smaller = keras_rda.compress(model)
    assert_same_outputs(model, smaller)
    attention = smaller.get_layer("attention")
    assert (type(attention), attention.num_heads) == (layers.MultiHeadAttention, 2)
    assert classes.read(model).number == 4
    smaller.save(tmp_path / "model.keras")
    assert_same_outputs(smaller, keras.models.load_model(tmp_path / "model.keras"))


def test_heads_of_what_computes_otherwise_than_attention():
    """It is read as what it is made of, and loses as many."""
    model = attending(DoubledAttention)
    smaller = keras_rda.compress(model)
    assert_same_outputs(model, smaller)
    plain = attending(CachedAttention, cache=None)
    assert model.count_params() - smaller.count_params() == (
        plain.count_params() - keras_rda.compress(plain).count_params()
    )


def test_other_precision_passes_channels_on():
    inputs = keras.Input((6,))
    hidden = keras.ops.silu(keras.ops.cast(layers.Dense(8, name="hidden")(inputs), "float16"))
    model = keras.Model(inputs, layers.Dense(2)(keras.ops.cast(hidden, "float32")))
    randomise(model, np.random.default_rng(0), zero_bias=0.0)
    gone = kill_hidden(model)
    smaller = keras_rda.compress(model)
    assert_same_outputs(model, smaller)
    assert smaller.count_params() == model.count_params() - 9 * gone


class SelfAttention(layers.MultiHeadAttention):
    """Adds what attends to itself."""

    def call(self, query, value, key=None):
        found = super().call(query, value, key)
        return found + query if query is value else found


class Same(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.block = Block()

    def build(self, x_shape, y_shape):
        self.block.build(x_shape)

    def call(self, x, y):
        return self.block(x) * (1.0 if x is y else -1.0)


def test_a_tensor_that_is_given_twice_is_one():
    assert_same_outputs(model := attending(SelfAttention), keras_rda.compress(model))
    inputs = keras.Input((6, 4))
    model = keras.Model(inputs, layers.Dense(2)(Same()(inputs, inputs)))
    randomise(model, np.random.default_rng(0), zero_bias=0.0)
    gone = kill_hidden(model)
    smaller = keras_rda.compress(model)
    assert_same_outputs(model, smaller)
    assert smaller.count_params() == model.count_params() - 9 * gone


class Reversed(layers.MultiHeadAttention):
    """Does in training what the graph of a prediction does not tell."""

    def call(self, query, value, key=None, training=None):
        found = super().call(query, value, key, training=training)
        return -found if training else found


class Noisy(layers.MultiHeadAttention):
    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        self.noise = layers.GaussianNoise(1.0)

    def call(self, query, value, key=None, training=None):
        return self.noise(super().call(query, value, key, training=training), training=training)


class ReversedBlock(Block):
    def call(self, x, training=None):
        found = super().call(x, training)
        return -found if training else found


def test_what_only_training_does_is_kept():
    x = np.random.default_rng(0).normal(size=(3, 6, 4)).astype("float32")
    for kind in (Reversed, Noisy):
        smaller = keras_rda.compress(model := attending(kind))
        assert_same_outputs(model, smaller)
        trained = values([smaller(x, training=True), smaller(x)])
        assert np.abs(trained[0] - trained[1]).max() > 0.1
    model = network(ReversedBlock())
    kill_hidden(model)
    smaller, report = keras_rda.compress(model, report=True)
    np.testing.assert_allclose(*values([smaller(x, training=True), model(x, training=True)]), rtol=1e-5, atol=1e-6)
    assert "computes something else in training than its graph" in "".join(report.notes)


def test_layers_that_are_called_in_two_ways_stay_one():
    inputs = keras.Input((6, 4))
    attention = CachedAttention(num_heads=4, key_dim=3, name="attention")
    model = keras.Model(inputs, layers.Dense(2)(attention(attention(inputs, inputs), inputs, cache=inputs)))
    smaller, report = keras_rda.compress(model, report=True)
    assert_same_outputs(model, smaller)
    assert smaller.count_params() == model.count_params()
    twice = Double(name="twice")
    model = keras.Model(inputs, layers.Dense(2)(twice(twice(inputs), by_value=True)))
    kill_hidden(model)
    smaller, report = keras_rda.compress(model, report=True)
    assert_same_outputs(model, smaller)
    assert smaller.count_params() == model.count_params()
    assert "is called elsewhere in a way that cannot be read" in "".join(report.notes)


class Double(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.block = Block()

    def build(self, shape):
        self.block.build(shape)

    def compute_output_spec(self, x, by_value=False):
        return keras.KerasTensor(x.shape, x.dtype)

    def call(self, x, by_value=False):
        return 2 * self.block(x) if by_value and keras.ops.convert_to_numpy(keras.ops.sum(x)) > 0 else self.block(x)


def test_numbers_that_are_too_large_for_float16():
    """A dead channel of 1e5 is infinite in float16, and infinity times zero no number."""
    inputs = keras.Input((3,))
    hidden = layers.Dense(4, name="hidden")
    x = keras.ops.cast(keras.ops.cast(hidden(inputs), "float16"), "float32")
    model = keras.Model(inputs, layers.Dense(2)(x))
    kernel, bias = values(hidden.weights)
    kernel, bias = kernel.copy(), bias.copy()
    kernel[:, 0], bias[0] = 0, 1e5
    hidden.set_weights([kernel, bias])
    data = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(*values([model(data), keras_rda.compress(model)(data)]))


def test_layers_of_one_name_that_take_more_than_a_tensor():
    """They cannot be made anew under another name: all stay whole, and the report says so."""
    model = network(Around(scale=3.0, name="one"), layers.Dense(4), Around(scale=3.0, name="two"))
    kill_hidden(model)
    smaller, report = keras_rda.compress(model, report=True)
    assert_same_outputs(model, smaller)
    assert 'The name "uncopied" is used 2 times' in report.notes[-1]
