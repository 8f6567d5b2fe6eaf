"""Heads of attention that is no `MultiHeadAttention`, and channels on other axes than the last."""

import keras
import numpy as np
import pytest
from helpers import BACKEND, values
from test_compress import assert_same_outputs, randomise

import keras_rda
from keras_rda.compression import classes

layers, ops = keras.layers, keras.ops


@keras.saving.register_keras_serializable(package="tests")
class Rotary(layers.Layer):
    """Turns pairs of units by an angle that grows with the position (Su et al., 2021)."""

    def call(self, x):
        positions, size = ops.shape(x)[1], x.shape[-1] // 2
        angles = ops.arange(positions, dtype="float32")[:, None] / ops.power(
            100.0, ops.arange(size, dtype="float32") / size
        )
        angles = angles[None, :, None, :]
        first, second = x[..., :size], x[..., size:]
        cosine, sine = ops.cos(angles), ops.sin(angles)
        return ops.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


class GroupedAttention(layers.Layer):
    """Rotary attention of 4 heads of queries and 2 of keys and values, as in Llama: written out with `keras.ops`."""

    def __init__(self, bias=None, fused=False, **kwargs):
        super().__init__(**kwargs)
        self.fused = fused
        self.query = layers.EinsumDense("bqm,muh->bquh", (None, 4, 6), bias_axes=bias, name="query")
        self.key = layers.EinsumDense("bkm,mvh->bkvh", (None, 2, 6), bias_axes=bias and "vh", name="key")
        self.value = layers.EinsumDense("bkm,mvh->bkvh", (None, 2, 6), bias_axes=bias and "vh", name="value")
        self.rotary, self.norm = Rotary(name="rotary"), layers.RMSNormalization(name="norm")

    def build(self, shape):
        self.back = layers.EinsumDense("bquh,uhm->bqm", (None, shape[-1]), name="back")
        for layer in (self.query, self.key, self.value):
            layer.build(shape)
        self.back.build((*shape[:-1], 4, 6))
        self.norm.build((*shape[:-1], 4, 6))

    def call(self, x):
        query, key, value = self.rotary(self.norm(self.query(x))), self.rotary(self.key(x)), self.value(x)
        key, value = ops.repeat(key, 2, axis=2), ops.repeat(value, 2, axis=2)
        if self.fused:
            return self.back(ops.dot_product_attention(query, key, value, scale=0.4))
        scores = ops.softmax(ops.einsum("bquh,bkuh->buqk", query, key) * 0.4)
        return self.back(ops.einsum("buqk,bkuh->bquh", self.mixed(scores), value))

    def mixed(self, scores):
        return scores


class TalkingHeads(GroupedAttention):
    def mixed(self, scores):
        return scores + ops.mean(scores, axis=1, keepdims=True)


class BiasedHeads(GroupedAttention):
    def mixed(self, scores):
        return scores * ops.reshape(ops.arange(1.0, 5.0), (1, 4, 1, 1))


def attending(attention):
    inputs = keras.Input((5, 8))
    x = layers.LayerNormalization()(inputs)
    x = layers.Add()([inputs, attention(x)])
    model = keras.Model(inputs, layers.Dense(3)(x))
    return randomise(model, np.random.default_rng(0), zero_bias=0.0)


def zero(variable, where):
    array = values([variable])[0].copy()
    array[where] = 0
    variable.assign(array)


@pytest.mark.parametrize("fused", [False, True])
def test_heads_of_grouped_rotary_attention(fused, tmp_path):
    """Two heads of queries share one of keys and values, and go with it."""
    model = attending(GroupedAttention(bias="uh", fused=fused, name="attention"))
    assert classes.read(model).number == 2
    attention = model.get_layer("attention")
    zero(attention.back.kernel, 0)
    assert keras_rda.compress(model).count_params() == model.count_params()
    zero(attention.back.kernel, 1)
    smaller, report = keras_rda.compress(model, report=True)
    assert_same_outputs(model, smaller)
    shapes = {layer.name: layer.get_weights()[0].shape for layer in smaller.layers if layer.weights}
    assert [shapes[name] for name in ("query", "key", "value")] == [(8, 2, 6), (8, 1, 6), (8, 1, 6)]
    assert shapes["back"] == (2, 6, 8)
    assert dict((row.name, row.channels) for row in report.rows)["query"] == (4, 2)
    smaller.save(tmp_path / "model.keras")
    assert_same_outputs(smaller, keras.models.load_model(tmp_path / "model.keras"))


def test_heads_whose_values_are_zero():
    """Their part of the output is zero, whatever reads it; a bias of the values is not."""
    model = attending(GroupedAttention(bias="uh", name="attention"))
    value = model.get_layer("attention").value
    zero(value.kernel, (slice(None), 1))
    assert keras_rda.compress(model).count_params() == model.count_params()
    zero(value.bias, 1)
    smaller = keras_rda.compress(model)
    assert_same_outputs(model, smaller)
    assert smaller.get_layer("back").get_weights()[0].shape == (2, 6, 8)


def test_the_last_head_is_a_placeholder():
    """A tensor needs a head, but nobody reads this one."""
    model = through(layers.Identity(), gone=6)
    smaller = keras_rda.compress(model)
    assert_same_outputs(model, smaller)
    assert heads_of(smaller) == 1
    assert not any(array.any() for array in smaller.get_layer("first").get_weights())


@pytest.mark.parametrize(("multiple_of", "heads"), [(1, 3), (6, 4), (9, 3), (5, 5), (7, 6)])
def test_heads_times_units_are_multiples(multiple_of, heads):
    smaller = keras_rda.compress(through(layers.Identity(), gone=3), multiple_of=multiple_of)
    assert heads_of(smaller) == heads


def test_a_constant_that_each_unit_of_a_head_reads_otherwise():
    """It cannot go into one bias a head; a zero can go."""
    inputs = keras.Input((5, 4))
    first = layers.Dense(6, name="first")
    heads = layers.EinsumDense("bqm,muh->bquh", (None, 2, 3), bias_axes="uh", name="heads")
    back = layers.EinsumDense("bquh,uhm->bqm", (None, 4), name="back")
    model = keras.Model(inputs, back(heads(first(inputs))))
    randomise(model, np.random.default_rng(0), zero_bias=0.0)
    zero(first.kernel, (slice(None), slice(0, 2)))
    zero(first.bias, slice(0, 1))
    smaller = keras_rda.compress(model)
    assert_same_outputs(model, smaller)
    assert smaller.get_layer("first").units == 5


def test_constants_that_differ_between_heads_are_walls():
    inputs = keras.Input((5, 8))
    into = layers.EinsumDense("bqm,muh->bquh", (None, 4, 3), name="into")
    back = layers.EinsumDense("bquh,uhm->bqm", (None, 8), name="back")
    x, random = into(inputs), np.random.default_rng(0)
    bias = ops.convert_to_tensor(random.normal(size=(1, 4, 5, 5)).astype("float32"))
    mask = np.tril(np.ones((4, 5, 5), bool))
    keys = random.normal(size=(1, 5, 4, 3)).astype("float32")
    scores = ops.einsum("bquh,bkuh->buqk", x, x)
    for heads in (
        ops.dot_product_attention(x, x, x, bias=bias),
        ops.dot_product_attention(x, ops.convert_to_tensor(keys), ops.convert_to_tensor(keys)),
        ops.einsum("buqk,bkuh->bquh", layers.Softmax()(scores, mask), x),
    ):
        model = keras.Model(inputs, back(heads))
        zero(back.kernel, slice(0, 2))
        assert keras_rda.compress(model).count_params() == model.count_params()
        classes.read(model)


@pytest.mark.parametrize(("heads", "left"), [(1, 2), (4, 4)])
def test_masks_that_are_the_same_for_all_heads(heads, left):
    inputs, mask = keras.Input((5, 8)), keras.Input((heads, 5, 5), dtype="bool")
    added = keras.Input((heads, 5, 5))
    into = layers.EinsumDense("bqm,muh->bquh", (None, 4, 3), name="into")
    back = layers.EinsumDense("bquh,uhm->bqm", (None, 8), name="back")
    x = into(inputs)
    scores = layers.Softmax()(ops.einsum("bquh,bkuh->buqk", x, x), mask)
    models = [
        keras.Model([inputs, mask], back(ops.einsum("buqk,bkuh->bquh", scores, x))),
        keras.Model([inputs, mask], back(ops.dot_product_attention(x, x, x, mask=mask))),
        keras.Model(
            [inputs, added], back(ops.einsum("buqk,bkuh->bquh", ops.einsum("bquh,bkuh->buqk", x, x) + added, x))
        ),
    ]
    zero(back.kernel, slice(0, 2))
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 5, 8)).astype("float32")
    for model in models:
        data = [x, np.tril(np.ones((2, heads, 5, 5), model.inputs[1].dtype))]
        smaller = keras_rda.compress(model)
        np.testing.assert_allclose(values([smaller(data)])[0], values([model(data)])[0], atol=1e-5)
        assert smaller.get_layer("into").get_weights()[0].shape == (8, left, 3)


def test_heads_that_know_of_one_another_stay():
    for kind in (TalkingHeads, BiasedHeads):
        model = attending(kind(name="attention"))
        zero(model.get_layer("attention").back.kernel, slice(0, 2))
        smaller = keras_rda.compress(model)
        assert_same_outputs(model, smaller)
        assert smaller.count_params() == model.count_params()


def test_groups_of_heads_become_zero_in_training():
    keras.utils.set_random_seed(0)
    model = attending(GroupedAttention(name="attention"))
    penalty = keras_rda.GroupL1(1.0, groups="channels", layout=model)
    model.compile(keras_rda.XRDA(0.1, penalty), "mse", jit_compile=False)
    x = np.random.default_rng(0).normal(size=(64, 5, 8)).astype("float32")
    model.fit(x, x[..., :3], epochs=8, verbose=0)
    back = values([model.get_layer("attention").back.kernel])[0]
    alive = (back != 0).any(axis=(1, 2))
    assert alive.sum() in (0, 2)
    assert (alive[0], alive[2]) == (alive[1], alive[3])
    assert_same_outputs(model, keras_rda.compress(model))


@pytest.mark.skipif(not hasattr(layers, "GroupQueryAttention"), reason="this Keras has none")
def test_heads_of_keras_grouped_query_attention():
    inputs = keras.Input((5, 8))
    attention = layers.GroupQueryAttention(6, 4, 2, name="attention", use_bias=False)
    model = keras.Model(inputs, layers.Dense(3)(attention(inputs, inputs)))
    zero(attention._output_dense.kernel, slice(2, 4))
    smaller = keras_rda.compress(model)
    assert_same_outputs(model, smaller)
    # Two heads of queries and their rows of the output, one of keys and one of values.
    assert smaller.count_params() == model.count_params() - (2 + 2 + 1 + 1) * 6 * 8


EQUATIONS = {
    "two axes of one": ("abc,cde->abde", (5, 4, 3), "de", "abde,dec->abc", (5, 8)),
    "one axis of two": ("abc,cd->abd", (5, 4), "d", "abd,dc->abc", (5, 8)),
    "the sequence last": ("abc,cd->adb", (4, 5), "d", "adb,dc->abc", (5, 8)),
    "two in front": ("abc,cde->adeb", (4, 3, 5), "de", "adeb,dec->abc", (5, 8)),
    "any axes": ("...c,cde->...de", (4, 3), "de", "...de,dec->...c", 8),
}


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_einsum_dense_of_any_equation(name, bias):
    """Two of four channels are dead, one of them by its constant."""
    first, shape, axes, second, back = EQUATIONS[name]
    inputs = keras.Input((5, 8))
    into = layers.EinsumDense(first, shape, bias_axes=axes if bias else None, activation="relu", name="into")
    out = layers.EinsumDense(second, back, bias_axes="c" if bias else None, name="out")
    model = keras.Model(inputs, out(into(inputs)))
    randomise(model, np.random.default_rng(0), zero_bias=0.0)
    zero(into.kernel, (slice(None), slice(0, 1)))
    zero(out.kernel, slice(1, 2))
    if bias and axes == "de":
        zero(into.bias, slice(0, 1))
    smaller = keras_rda.compress(model)
    assert_same_outputs(model, smaller)
    assert [layer.get_weights()[0].shape for layer in (smaller.get_layer("into"), smaller.get_layer("out"))] == [
        (8, 2, *into.kernel.shape[2:]),
        (2, *out.kernel.shape[1:]),
    ]


@pytest.mark.parametrize("bias", [True, False])
def test_normalisation_behind_any_axis_may_be_folded(bias):
    inputs = keras.Input((5, 8))
    into = layers.EinsumDense("abc,cd->adb", (4, 5), bias_axes="d" if bias else None, name="into")
    x = layers.BatchNormalization(axis=1)(into(inputs))
    out = layers.EinsumDense("adb,dc->abc", (5, 3), name="out")
    model = keras.Model(inputs, out(x))
    randomise(model, np.random.default_rng(0), zero_bias=0.0)
    zero(out.kernel, slice(0, 2))
    smaller = keras_rda.compress(model, fold_batch_norm=True)
    assert_same_outputs(model, smaller)
    assert smaller.get_layer("into").get_weights()[0].shape == (8, 2)


MOVES = {  # what is done to (batch, 5, 8), and how many of the 8 channels are left where 5 are not read
    "a slice": (lambda x: x[:, 1:], 3),
    "a slice of all channels": (lambda x: x[..., -8:], 3),
    "a slice of channels": (lambda x: x[..., :4], 8),
    "a place": (lambda x: x[:, 2][:, None], 3),
    "repeated positions": (lambda x: ops.repeat(x, 2, axis=1), 3),
    "repeated channels": (lambda x: ops.repeat(x, 2, axis=-1), 3),
    "channels repeated as a list says": (lambda x: ops.repeat(x, [2] * 8, axis=-1), 8),
    "split positions": (lambda x: ops.split(x, [2], axis=1)[1], 3),
    "empty parts": (lambda x: ops.split(x, [0, 2], axis=1)[1], 8),
    "split channels": (lambda x: ops.split(x, [8], axis=-1)[0], 8),
    "turned": (lambda x: ops.transpose(ops.transpose(x, (0, 2, 1)), (0, 2, 1)), 3),
    "swapped": (lambda x: ops.moveaxis(ops.swapaxes(x, 1, 2), 1, 2), 3),
    "an axis more": (lambda x: ops.squeeze(ops.expand_dims(x, 1), 1), 3),
    "all axes of one": (lambda x: ops.squeeze(ops.expand_dims(x, 1)), 8),
    "rolled": (lambda x: ops.roll(x, 8, axis=-1), 8),
    "rolled as one": (lambda x: ops.roll(x, 8), 8),
}


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("length", [5, None])
def test_what_moves_elements(name, length):
    move, left = MOVES[name]
    if BACKEND != "tensorflow" and "list" in name:
        pytest.skip("Keras repeats by a list on TensorFlow alone")
    inputs = keras.Input((length, 4))
    last = layers.Dense(3, name="last")
    x = move(layers.Dense(8, name="first")(inputs))
    model = keras.Model(inputs, last(x))
    times = x.shape[-1] // 8 or 1
    zero(last.kernel, slice(0, 5 * times))
    smaller = keras_rda.compress(model)
    data = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    np.testing.assert_allclose(values([smaller(data)])[0], values([model(data)])[0], atol=1e-5)
    unknown = length is None and name in ("empty parts",)
    assert smaller.get_layer("first").units == (8 if unknown else left)
    classes.read(model)


def test_einsum_dense_that_does_something_else_stays():
    inputs = keras.Input((5, 8))
    x = layers.EinsumDense("abc,bcd->abd", (5, 4), name="a kernel for each place")(inputs)
    x = layers.EinsumDense("abc,cde->abde", (5, 4, 3), bias_axes="bde", name="a bias for each place")(x)
    model = keras.Model(inputs, layers.EinsumDense("abde,dec->abc", (5, 2), name="last")(x))
    zero(model.layers[-1].kernel, 0)
    smaller = keras_rda.compress(model)
    assert_same_outputs(model, smaller)
    assert smaller.count_params() == model.count_params()


def normalised(kernel_zero=(), epsilon=0.1):
    """Channels 0, 2 and 4 of 6 are zero, whatever reads them."""
    model = keras.Sequential(
        [
            keras.Input((5, 4)),
            layers.Dense(6, use_bias=False, name="first"),
            layers.RMSNormalization(epsilon=epsilon, name="norm"),
            layers.Dense(3, name="last"),
        ]
    )
    randomise(model, np.random.default_rng(0), zero_bias=0.0)
    model.get_layer("norm").set_weights([np.random.default_rng(1).normal(size=6)])
    zero(model.get_layer("first").kernel, (slice(None), list(kernel_zero)))
    return model


def test_zeros_leave_a_root_mean_square():
    model = normalised([0, 2, 4])
    smaller = keras_rda.compress(model)
    assert_same_outputs(model, smaller)
    norm = smaller.get_layer("norm")
    assert norm.scale.shape == (3,)
    assert norm.epsilon == pytest.approx(0.2)
    again = keras_rda.compress(smaller)
    assert again.count_params() == smaller.count_params()


def test_what_counts_in_a_root_mean_square_stays():
    """Nobody reads channel 1, but the mean of squares does."""
    model = normalised([0])
    zero(model.get_layer("last").kernel, 1)
    smaller = keras_rda.compress(model)
    assert_same_outputs(model, smaller)
    assert smaller.get_layer("norm").scale.shape == (5,)
    assert classes.read(model).number == 0


def test_placeholders_in_a_root_mean_square_are_zero():
    """Behind a normalisation a channel is zero by a constant that a placeholder would not have."""
    inputs = keras.Input((5, 4))
    x = layers.Dense(6, name="first")(inputs)
    x = layers.BatchNormalization(name="shift")(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.RMSNormalization()(x)))
    first, shift = model.get_layer("first"), model.get_layer("shift")
    zero(first.kernel, (slice(None), slice(0, 3)))
    first.bias.assign(np.full(6, 2.0))
    shift.set_weights([np.ones(6), np.zeros(6), np.full(6, 2.0), np.ones(6)])
    for multiple_of in (1, 4):
        smaller = keras_rda.compress(model, multiple_of=multiple_of)
        assert_same_outputs(model, smaller)
        assert smaller.get_layer("first").units == (3 if multiple_of == 1 else 4)


@keras.saving.register_keras_serializable(package="tests")
class Slope(layers.Layer):
    """x·(1 + a·x), with one number a for all heads."""

    def build(self, shape):
        self.a = self.add_weight(name="a", initializer="ones")

    def call(self, x):
        return x * (1 + self.a * x)


@keras.saving.register_keras_serializable(package="tests")
class Mixer(layers.Layer):
    """x + a·mean(x) over the heads; a is zero at first."""

    def build(self, shape):
        self.a = self.add_weight(name="a", initializer="zeros")

    def call(self, x):
        return x + self.a * ops.mean(x, axis=2, keepdims=True)


@keras.saving.register_keras_serializable(package="tests")
class Shift(layers.Layer):
    """Each head takes the place of the next."""

    def call(self, x):
        return ops.roll(x, 1, axis=2)


@keras.saving.register_keras_serializable(package="tests")
class Counting(layers.Layer):
    """Many heads count less."""

    def call(self, x):
        return x * ops.full((x.shape[-1],), 2.0 if x.shape[2] >= 3 else 3.0)


@keras.saving.register_keras_serializable(package="tests")
class Even(layers.Layer):
    """Takes an even number of heads."""

    def call(self, x):
        assert x.shape[2] % 2 == 0
        return x * ops.full((x.shape[-1],), 2.0)


@keras.saving.register_keras_serializable(package="tests")
class InTraining(layers.Layer):
    """Mixes heads in training only."""

    def call(self, x, training=False):
        return x + ops.mean(x, axis=2, keepdims=True) if training else x


@keras.saving.register_keras_serializable(package="tests")
class Pole(layers.Layer):
    """Infinite at one half."""

    def call(self, x):
        return 1 / (x - 0.5)


def through(layer, heads=6, gone=2, activation=None):
    """`heads` heads of 3 units, of which nothing reads the first."""
    inputs = keras.Input((5, 4))
    first = layers.EinsumDense("abc,cde->abde", (5, heads, 3), bias_axes="de", activation=activation, name="first")
    last = layers.EinsumDense("abde,dec->abc", (5, 4), name="last")
    model = keras.Model(inputs, last(layer(first(inputs))))
    randomise(model, np.random.default_rng(0), zero_bias=0.0)
    zero(model.get_layer("last").kernel, slice(0, gone))
    return model


def heads_of(model):
    return model.get_layer("first").get_weights()[0].shape[1]


@pytest.mark.parametrize("make", [Slope, lambda: layers.LayerNormalization(), lambda: layers.Lambda(lambda x: x + 1)])
def test_layers_that_act_on_each_head_alone_pass_them_on(make):
    model = through(make())
    smaller = keras_rda.compress(model)
    assert_same_outputs(model, smaller)
    assert heads_of(smaller) == 4


@pytest.mark.parametrize(
    "make",
    [Mixer, Shift, Counting, Even, InTraining, layers.UnitNormalization],
)
def test_layers_that_mix_heads_are_walls_whatever_their_weights_are(make):
    model = through(make(), gone=4 if make is Counting else 3)
    if make is layers.UnitNormalization:
        model = through(make(axis=-2), gone=3)
    smaller = keras_rda.compress(model)
    assert_same_outputs(model, smaller)
    assert heads_of(smaller) == 6


def test_what_is_not_finite_everywhere_has_no_placeholders():
    """The value of one, sigmoid(0), is where this layer has its pole."""
    model = through(Pole(), activation="sigmoid")
    smaller = keras_rda.compress(model, multiple_of=5)
    assert_same_outputs(model, smaller)
    assert heads_of(smaller) == 5


def test_on_the_last_axis_a_layer_with_weights_is_not_tried():
    """It mixes channels more often than not."""
    calls = []

    class Watched(layers.Layer):
        def build(self, shape):
            self.factor = self.add_weight(name="factor")

        def call(self, x):
            calls.append(x.shape)
            return x * self.factor

    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, layers.Dense(3)(Watched()(layers.Dense(6)(inputs))))
    before = len(calls)
    keras_rda.compress(model)
    assert {shape[-1] for shape in calls[before:]} <= {6}


class Talkative(layers.Layer):
    """A feed-forward part that returns None beside its result, and has a name that another has too."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.back = layers.Dense(10, "relu", name="dense"), layers.Dense(8, name="back")

    def build(self, shape):
        self.hidden.build(shape)
        self.back.build((*shape[:-1], 10))

    def call(self, x):
        return self.back(self.hidden(x)), None


class Encoder(layers.Layer):
    """Two of these, and a constant beside the result."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = [Talkative(name="part"), Talkative(name="part")]

    def build(self, shape):
        for part in self.parts:
            part.build(shape)

    def call(self, x):
        for part in self.parts:
            change, nothing = part(x)
            assert nothing is None
            x = x + change
        return x, ops.zeros((0, 3))


def test_none_beside_tensors():
    inputs = keras.Input((5, 8))
    encoder = Encoder(name="encoder")
    model = keras.Model(inputs, layers.Dense(3)(encoder(inputs)[0]))
    for part in encoder.parts:
        zero(part.back.kernel, slice(0, 4))
    kinds = [type(layer) for layer in model._flatten_layers()]
    smaller = keras_rda.compress(model)
    assert_same_outputs(model, smaller)
    assert smaller.count_params() == model.count_params() - 2 * 4 * (2 * 8 + 1)
    assert [type(layer) for layer in model._flatten_layers()] == kinds
    assert [part.name for part in encoder.parts] == ["part", "part"]


class Stubborn(Talkative):
    """Its name cannot be another."""

    @property
    def name(self):
        return "part"

    @name.setter
    def name(self, value):
        if value != "part":
            raise AttributeError("a name for life")


def test_names_that_cannot_be_others():
    inputs = keras.Input((5, 8))
    encoder = Encoder(name="encoder")
    encoder.parts = [Stubborn(name="part"), Stubborn(name="part")]
    model = keras.Model(inputs, layers.Dense(3)(encoder(inputs)[0]))
    zero(encoder.parts[0].back.kernel, slice(0, 4))
    smaller, report = keras_rda.compress(model, report=True)
    assert_same_outputs(model, smaller)
    assert smaller.count_params() == model.count_params()
    assert any("a name for life" in note for note in report.notes)


@pytest.mark.skipif(BACKEND != "torch", reason="a module of torch")
def test_modules_of_torch_are_not_tried():
    import torch

    class Wrapper(layers.TorchModuleWrapper):
        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    inputs = keras.Input((3, 6, 6))
    first = layers.Conv2D(4, 3, data_format="channels_first")
    norm = Wrapper(torch.nn.BatchNorm2d(4))
    model = keras.Model(inputs, norm(first(inputs)))
    before = int(norm.module.num_batches_tracked)
    keras_rda.compress(model)
    assert int(norm.module.num_batches_tracked) == before


def test_a_constant_that_is_read_is_a_wall():
    inputs = keras.Input((5, 8))
    encoder = Encoder(name="encoder")
    x, constant = encoder(inputs)
    model = keras.Model(inputs, [layers.Dense(3)(x), constant])
    zero(encoder.parts[0].back.kernel, slice(0, 4))
    smaller, report = keras_rda.compress(model, report=True)
    assert smaller.count_params() == model.count_params()
    assert any("returns what does not depend on its inputs" in note for note in report.notes)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="files are compared with Keras on TensorFlow")
def test_a_file_without_those_heads(tmp_path):
    model = attending(GroupedAttention(name="attention"))
    before = keras_rda.export(model, tmp_path / "before.tflite")
    zero(model.get_layer("attention").back.kernel, slice(0, 2))
    after = keras_rda.export(model, tmp_path / "after.tflite")
    weights = (2 + 2 + 1 + 1) * 6 * 8
    assert after.bytes <= before.bytes - 4 * weights
