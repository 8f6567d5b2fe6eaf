"""`compress` in recurrent networks: what comes in, and units that stay at zero or that nobody reads."""

import keras
import numpy as np
import pytest
from helpers import BACKEND, values
from test_compress import assert_same_outputs, channels, kill_share, long_on_jax, randomise

import keras_rda
from keras_rda.compression import classes

layers = keras.layers
KINDS = {
    "SimpleRNN": lambda units, **options: layers.SimpleRNN(units, **options),
    "GRU": lambda units, **options: layers.GRU(units, **options),
    "GRU, reset before": lambda units, **options: layers.GRU(units, reset_after=False, **options),
    "LSTM": lambda units, **options: layers.LSTM(units, **options),
}
GATES = {"SimpleRNN": 1, "GRU": 3, "GRU, reset before": 3, "LSTM": 4}
CANDIDATE = {"SimpleRNN": 0, "GRU": 2, "GRU, reset before": 2, "LSTM": 2}


def network(*between, length=5, activation=None):
    inputs = keras.Input((length, 3))
    x = layers.Dense(8, activation, name="before")(inputs)
    for layer in between:
        x = layer(x)
    model = keras.Model(inputs, layers.Dense(2, name="after")(x))
    for layer in model._flatten_layers():
        if hasattr(layer, "recurrent_kernel") and layer.bias is not None:
            layer.bias.assign(np.random.default_rng(1).normal(size=layer.bias.shape))
    return model


def zero(variable, *where):
    (array,) = values([variable])
    array = array.copy()
    array[where] = 0
    variable.assign(array)


def kill_units(layer, units, kind):
    """Let these take up nothing, so that they stay at zero: only the candidate's columns are."""
    columns = CANDIDATE[kind] * layer.units + np.asarray(units)
    for variable in (layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias):
        if variable is not None:
            zero(variable, ..., columns)


@pytest.mark.parametrize("kind", KINDS)
def test_units_that_stay_at_zero_go(kind):
    model = network(KINDS[kind](6, name="units"))
    kill_units(model.get_layer("units"), [1, 4], kind)
    assert channels(model)[0] == {"before": (8, 8), "units": (6, 4), "after": (2, 2)}


@pytest.mark.parametrize("kind", KINDS)
def test_units_that_nobody_reads_go(kind):
    model = network(KINDS[kind](6, name="units"))
    zero(model.get_layer("after").kernel, [1, 4])
    assert channels(model)[0]["units"] == (6, 6)  # the others read them, a step later
    zero(model.get_layer("units").cell.recurrent_kernel, [1, 4])
    smaller = channels(model)[1]
    assert smaller.get_layer("units").units == 4
    assert smaller.get_layer("units").cell.kernel.shape == (8, 4 * GATES[kind])


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_constants_of_inputs_move_to_the_bias(kind, use_bias):
    model = network(KINDS[kind](6, use_bias=use_bias, name="units"), activation="sigmoid")
    before = model.get_layer("before")
    zero(before.kernel, ..., [0, 3, 5])
    before.bias.assign(np.linspace(-1, 1, 8))
    cut, smaller, _ = channels(model)
    assert cut["before"] == (8, 5)
    assert smaller.get_layer("units").use_bias


@pytest.mark.parametrize("kind", KINDS)
def test_units_begin_at_zero_but_need_not_stay_there(kind):
    """Half of a sigmoid of zero is taken up at every step."""
    model = network(KINDS[kind](6, activation="sigmoid", name="units"))
    kill_units(model.get_layer("units"), [1, 4], kind)
    assert channels(model)[0]["units"] == (6, 6)


def test_a_unit_at_zero_that_reads_one_that_is_not_does_not_stay():
    model = network(layers.SimpleRNN(4, use_bias=False, name="units"))
    cell = model.get_layer("units").cell
    zero(cell.kernel, ..., [0, 1, 2])
    cell.recurrent_kernel.assign(np.diag([1.0, 1, 1], 1))  # 0 is read by 1, 1 by 2, 2 by 3
    assert channels(model)[0]["units"] == (4, 1)
    cell.recurrent_kernel.assign(np.diag([1.0, 1, 1], -1))  # 3, which reads the inputs, by 2, 2 by 1, 1 by 0
    assert channels(model)[0]["units"] == (4, 4)


@long_on_jax
@pytest.mark.parametrize("seed", range(12))
def test_random_networks_keep_their_outputs(seed):
    random = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    recurrent = []
    for number in range(random.integers(1, 4)):
        kind = random.choice(list(KINDS))
        recurrent += [
            KINDS[kind](
                int(random.integers(2, 7)),
                activation=str(random.choice(["tanh", "relu", "sigmoid"])),
                use_bias=bool(random.random() < 0.6),
                return_sequences=True,
                go_backwards=bool(random.random() < 0.3),
                dropout=0.2,
                name=f"units_{number}",
            ),
            layers.BatchNormalization() if random.random() < 0.4 else layers.Dense(5, "relu"),
        ]
    model = network(*recurrent, layers.GRU(4), length=None, activation="sigmoid")
    randomise(model, random)
    kill_share(model, 0.5, seed)
    for layer in model._flatten_layers():
        if hasattr(layer, "recurrent_kernel"):
            zero(layer.recurrent_kernel, random.random(layer.units) < 0.7)
    smaller = keras_rda.compress(model)
    assert_same_outputs(model, smaller)
    assert smaller.count_params() < model.count_params()
    assert keras_rda.compress(smaller).count_params() == smaller.count_params()
    padded = keras_rda.compress(model, multiple_of=2)
    assert_same_outputs(model, padded)


@keras.saving.register_keras_serializable(package="test_recurrent")
def mixing(x):
    return x - keras.ops.mean(x, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (lambda: layers.LSTM(6, activation=mixing, name="units"), "an activation of 'units' may mix channels, or"),
        (lambda: layers.GRU(6, recurrent_activation=mixing, name="units"), "an activation of 'units' may mix"),
        (lambda: layers.GRU(6, recurrent_activation=lambda x: 1 / x, name="units"), "or may not be finite"),
        (lambda: layers.LSTM(6, stateful=True, name="units"), "'units' keeps its state, or is given one"),
    ],
)
def test_walls(layer, why):
    inputs = keras.Input(batch_shape=(3, 5, 3))
    x = layers.Dense(8, name="before")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="after")(layer()(x)))
    kill_units(model.get_layer("units"), [1, 4], "LSTM" if "LSTM" in str(model.get_layer("units")) else "GRU")
    zero(model.get_layer("before").kernel, ..., [0, 1])
    smaller, report = keras_rda.compress(model, report=True)
    assert {row.name: row.channels for row in report.rows}["before"] == (8, 8)
    assert any(why in reason for reason in report.rows[0].reasons)
    assert smaller.count_params() == model.count_params()


def test_a_state_to_begin_with_is_a_wall():
    inputs, state = keras.Input((5, 3)), keras.Input((6,))
    x = layers.SimpleRNN(6, name="units")(layers.Dense(8, name="before")(inputs), initial_state=state)
    model = keras.Model([inputs, state], layers.Dense(2)(x))
    kill_units(model.get_layer("units"), [1, 4], "SimpleRNN")
    assert channels(model)[0]["before"] == (8, 8)

    inputs = keras.Input(batch_shape=(3, 5, 3))
    x = layers.SimpleRNN(6, name="units")(inputs, initial_state=np.ones((3, 6), "float32"))
    model = keras.Model(inputs, layers.Dense(2)(x))
    kill_units(model.get_layer("units"), [1, 4], "SimpleRNN")
    assert channels(model)[1].get_layer("units").units == 6


def test_dropout_that_is_always_on_is_a_wall():
    inputs = keras.Input((5, 3))
    x = layers.GRU(6, dropout=0.5, name="units")(layers.Dense(8, "sigmoid", name="before")(inputs), training=True)
    model = keras.Model(inputs, layers.Dense(2)(x))
    zero(model.get_layer("before").kernel, ..., [0, 1])
    assert keras_rda.compress(model).get_layer("before").units == 8


@pytest.mark.parametrize("mode", ["concat", "sum", "ave", "mul"])
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_both_directions_come_out_one_by_one(kind, mode):
    both = layers.Bidirectional(KINDS[kind](6, return_sequences=True), merge_mode=mode)
    model = network(both, layers.Bidirectional(KINDS[kind](3)))
    zero(model.get_layer("before").kernel, ..., [0, 1])
    kill_units(both.forward_layer, [1, 4], kind)
    kill_units(both.backward_layer, [1, 2, 4], kind)
    smaller = channels(model)[1]
    units = {layer.units for layer in smaller.layers if hasattr(layer, "cell") and layer.return_sequences}
    # What is added or multiplied stays or goes together.
    assert units == ({4, 3} if mode == "concat" else {4})
    assert smaller.get_layer("before").units == 6


def test_masks_pass():
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(9, 8, mask_zero=True, name="table")(tokens)
    x = layers.GRU(6, return_sequences=True, name="first")(x)
    model = keras.Model(tokens, layers.Dense(2)(layers.Bidirectional(layers.LSTM(4), name="both")(x)))
    zero(model.get_layer("table").embeddings, ..., [2, 3])
    kill_units(model.get_layer("first"), [0, 5], "GRU")
    smaller, report = keras_rda.compress(model, report=True)
    batch = np.array([[3, 1, 2, 0, 0], [4, 0, 0, 0, 0]], "int32")
    np.testing.assert_allclose(*values([model(batch), smaller(batch)]), rtol=1e-5, atol=1e-6)
    assert smaller.get_layer("table").output_dim == 6
    assert any("'both': unknown" in note and "mask" in note for note in report.notes)


def test_what_the_layer_was_given_is_kept():
    layer = layers.LSTM(
        6,
        activation=lambda x: 0.5 * keras.ops.tanh(x),
        kernel_regularizer=keras.regularizers.L2(0.1),
        activity_regularizer=keras.regularizers.L2(0.2),
        recurrent_constraint=keras.constraints.MaxNorm(2.0),
        name="units",
    )
    model = network(layer)
    kill_units(layer, [1], "LSTM")
    new = channels(model)[1].get_layer("units")
    assert new.units == 5
    assert new.activation is layer.activation
    assert new.activity_regularizer is layer.activity_regularizer
    assert new.cell.kernel_regularizer is layer.cell.kernel_regularizer
    assert new.cell.recurrent_constraint is layer.cell.recurrent_constraint


def test_groups_of_channels_and_multiply_adds():
    """A unit's group: what reads it, at the next step and behind."""
    model = network(layers.GRU(6, name="units"))
    found = classes.read(model)
    assert {kernel.path: kernel.positions for kernel in found.kernels} == {
        "before/kernel": 5,
        "units/gru_cell/kernel": 5,
        "units/gru_cell/recurrent_kernel": 5,
        "after/kernel": 1,
    }
    assert found.number == 8 + 6
    total = 5 * 3 * 8 + 5 * (8 + 6) * 18 + 6 * 2
    assert keras_rda.summary(model).multiply_adds[0] == total
    penalty = keras_rda.GroupL1(1e-3, "channels", model)
    optimizer = keras_rda.XRDA(0.1, penalty)
    optimizer.build(model.trainable_variables)
    kill_units(model.get_layer("units"), [1], "GRU")
    assert keras_rda.summary(model).multiply_adds[1] == total - 5 * (8 * 3 + 6 * 3 + 15) - 2


@pytest.mark.skipif(BACKEND != "tensorflow", reason="on others a process of TensorFlow's does the same")
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_export(kind, tmp_path):
    model = network(KINDS[kind](64, unroll=True, name="units"))
    kill_units(model.get_layer("units"), range(32), kind)
    report = keras_rda.export(model, tmp_path / "model.tflite")
    assert report.chosen.passed
    assert report.bytes < 0.7 * report.dense_bytes
