"""What users' networks met: each in every precision, exported and right, or refused by name."""

import itertools
import re

import keras
import numpy as np
import pytest
from helpers import BACKEND

import keras_rda
from keras_rda.litert import candidates, convert, encode, feeds, flatbuffer, signature, verification
from keras_rda.litert.graph import schema
from keras_rda.litert.machines import here

pytestmark = [
    pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras exports LiteRT on TensorFlow"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of TensorFlow's converter
    pytest.mark.usefixtures("runs_on_aarch64", "runs_compiled"),
]
layers = keras.layers
PRECISIONS = (None, "float16", "dynamic", "int8")


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(40, *shape)).astype("float32")


def zeroed(model, *names):
    for variable in model.weights:
        if variable.path.endswith(names):
            variable.assign(np.zeros(variable.shape))
    return model


def attention():
    """Query and key are zero, which `compress` cannot remove."""
    x = keras.Input((8, 16))
    attended = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 8)(x, x))
    model = keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling1D()(attended)))
    return zeroed(model, "query/kernel", "key/kernel")


def recurrent(layer):
    model = keras.Sequential([keras.Input((5, 16)), layer(12, unroll=True), layers.Dense(2)])
    return zeroed(model, "recurrent_kernel")


class Mixing(layers.Layer):
    """A layer of a user's own, which `compress` does not know."""

    def call(self, x):
        return x - keras.ops.mean(x, axis=-1, keepdims=True)


def before_own_layer():
    return zeroed(keras.Sequential([keras.Input((24,)), layers.Dense(24), Mixing(), layers.Dense(2)]), "dense/kernel")


def stateful(layer):
    return keras.Sequential([keras.Input(batch_shape=(2, 5, 3)), layer(4, stateful=True, unroll=True), layers.Dense(2)])


def prelu():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(16, activation=layers.PReLU("ones")), layers.Dense(2)])
    model(data(6))  # which creates the slopes
    model.layers[0].kernel.assign(keras.ops.convert_to_numpy(model.layers[0].kernel) * (np.arange(16) > 7))
    return model


def classes():
    import tensorflow as tf

    x = keras.Input((6,))
    return keras.Model(x, layers.Lambda(lambda y: tf.argmax(y, -1), output_shape=())(layers.Dense(3)(x)))


def nested():
    x = keras.Input((6,), name="my input")
    return keras.Model(x, {"boxes": [layers.Dense(3)(x), layers.Dense(2)(x)], "score": layers.Dense(1)(x)})


def built_by_its_first_batch():
    model = keras.Sequential([layers.Dense(8, activation="relu"), layers.Dense(2)])
    model(data(6)[:32])
    return model


NETWORKS = {
    "attention": attention,
    "LSTM": lambda: recurrent(layers.LSTM),
    "GRU": lambda: recurrent(layers.GRU),
    "SimpleRNN": lambda: recurrent(layers.SimpleRNN),
    "before an own layer": before_own_layer,
    "stateful LSTM": lambda: stateful(layers.LSTM),
    "stateful GRU": lambda: stateful(layers.GRU),
    "PReLU": prelu,
    "classes": classes,
    "nested": nested,
    "no Input": built_by_its_first_batch,
}
OFTEN = {
    *(("attention", quantize) for quantize in PRECISIONS),
    *(
        ("stateful LSTM", None),
        ("stateful LSTM", "int8"),
        ("classes", "int8"),
        ("nested", "int8"),
        ("no Input", "int8"),
    ),
}
CELLS = [
    pytest.param(*cell, marks=() if cell in OFTEN else pytest.mark.every)
    for cell in itertools.product(NETWORKS, PRECISIONS)
]


@pytest.mark.parametrize(("name", "quantize"), CELLS)
def test_exported_and_right(name, quantize, tmp_path):
    keras.utils.set_random_seed(0)
    model = NETWORKS[name]()
    x = data(*model.inputs[0].shape[1:])
    states = [v for layer in model.layers for v in keras.tree.flatten(getattr(layer, "states", None)) if v is not None]
    before = [keras.ops.convert_to_numpy(state).copy() for state in states]
    report = keras_rda.export(model, tmp_path / "model.tflite", quantize, x)
    assert report.chosen.passed
    for _ in range(2):  # a second time from the same state
        assert all(check.passed for check in keras_rda.litert.verify(model, tmp_path / "model.tflite", x))
    for state, value in zip(states, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(state), value)
    if quantize is None:  # against Keras itself, on other data
        other = data(*model.inputs[0].shape[1:], seed=1)[: 2 if states else 7]
        received = keras_rda.litert.predict(tmp_path / "model.tflite", other)
        expected = keras.tree.flatten(model(other, training=False))
        for ours, theirs in zip(sorted(received), expected, strict=True):
            np.testing.assert_allclose(received[ours], keras.ops.convert_to_numpy(theirs), rtol=1e-4, atol=1e-5)


def test_names_of_nested_outputs_and_of_inputs(tmp_path):
    report = keras_rda.export(nested(), tmp_path / "model.tflite")
    assert report.chosen.passed
    signatures = here.interpreter(tmp_path / "model.tflite").get_signature_list()
    assert next(iter(signatures.values())) == {"inputs": ["my_input"], "outputs": ["boxes_0", "boxes_1", "score"]}
    x = keras.Input((4,), name="a b")
    y = keras.Input((4,), name="a_b")
    with pytest.raises(ValueError, match=r"inputs \['a b', 'a_b'\] would have the names \['a_b', 'a_b'\] in the file"):
        keras_rda.export(keras.Model([x, y], x + y), tmp_path / "model.tflite")
    dense = layers.Dense(1)(x)
    with pytest.raises(ValueError, match=r"outputs .* would have the names \['a_0', 'a_0', 'b'\]"):
        keras_rda.export(keras.Model(x, {"a": [dense], "a_0": dense, "b": dense}), tmp_path / "model.tflite")


def test_any_batch_without_an_input(tmp_path):
    model = built_by_its_first_batch()
    assert model.inputs[0].shape == (32, 6)
    keras_rda.export(model, tmp_path / "model.tflite", "int8", data(6)[:20])  # fewer than the batch that it saw
    assert keras_rda.litert.predict(tmp_path / "model.tflite", data(6)[:3])["output_0"].shape == (3, 2)


def test_a_batch_size_that_layers_compute_with_stays():
    layer = layers.Lambda(lambda x: keras.ops.reshape(x, (4, 3, 2)))
    model = keras.Sequential([keras.Input(batch_shape=(4, 6)), layer, layers.Dense(2)])
    assert signature.flat(model) is model


def test_state_goes_from_call_to_call(tmp_path):
    """A file that starts anew at each call is wrong, and a later state of the model another file's."""
    model = stateful(layers.LSTM)
    keras_rda.export(model, tmp_path / "model.tflite")
    forgetful = keras.models.clone_model(model)
    forgetful.layers[0].stateful = False
    forgetful.set_weights(model.get_weights())
    keras_rda.export(forgetful, tmp_path / "forgetful.tflite")
    assert not any(check.passed for check in keras_rda.litert.verify(model, tmp_path / "forgetful.tflite"))
    model(data(5, 3)[:2])
    assert not any(check.passed for check in keras_rda.litert.verify(model, tmp_path / "model.tflite"))


def test_a_candidate_that_fails_is_a_result(tmp_path, monkeypatch):
    original = encode.encode

    def broken(model, strategy="smallest"):
        if strategy == "smallest":
            raise IndexError("a fault of the encoder")
        return original(model, strategy)

    monkeypatch.setattr(encode, "encode", broken)
    report = keras_rda.export(attention(), tmp_path / "model.tflite", "dynamic")
    results = {candidate.name: candidate.result for candidate in report.candidates}
    assert results["sparse"] == "the encoding: a fault of the encoder"
    assert report.chosen.passed
    assert "a fault of the encoder" in str(report)
    monkeypatch.undo()
    monkeypatch.setattr(candidates.half, "is_suspect", lambda graph: 1 / 0)
    with pytest.raises(keras_rda.ExportError, match="division by zero"):
        keras_rda.export(attention(), tmp_path / "model.tflite", "float16")
    monkeypatch.undo()
    run = verification.Reference.run

    def fails(reference, path, delegates=True):
        if "dense" not in str(path):
            raise OSError("cannot be read")
        return run(reference, path, delegates)

    monkeypatch.setattr(verification.Reference, "run", fails)
    assert keras_rda.export(attention(), tmp_path / "model.tflite").chosen.name == "dense"


def test_a_network_that_passes_its_input_through(tmp_path):
    x = keras.Input((3,))
    keras_rda.export(keras.Model(x, x), tmp_path / "model.tflite")
    received = keras_rda.litert.predict(tmp_path / "model.tflite", data(3)[:2])
    np.testing.assert_array_equal(received["output_0"], data(3)[:2])


def normalised(mean, deviation):
    x = np.random.default_rng(0).normal(mean, deviation, (200, 4)).astype("float32")
    normalization = layers.Normalization()
    normalization.adapt(x)
    return keras.Sequential([keras.Input((4,)), normalization, layers.Dense(8, activation="relu"), layers.Dense(2)]), x


@pytest.mark.parametrize(("mean", "deviation"), [(5e5, 1e5), (1e-3, 1e-4), (2e9, 1e8), (0, 1e-6), (0, 1e9)])
def test_float16_of_features_that_it_cannot_hold(mean, deviation, tmp_path):
    """By random inputs alone; then on rows that the network was made for."""
    model, x = normalised(mean, deviation)
    report = keras_rda.export(model, tmp_path / "model.tflite", "float16")
    received, expected = keras_rda.litert.predict(tmp_path / "model.tflite", x)["output_0"], model.predict(x, verbose=0)
    np.testing.assert_allclose(received, expected, rtol=0, atol=0.01 * np.abs(expected).max())
    kept = [note for note in report.chosen.notes if "stays in float32: its values, " in note]
    assert len(kept) == {(1e-3, 1e-4): 0, (0, 1e-6): 2, (0, 1e9): 2}.get((mean, deviation), len(kept))
    types = schema().TensorType
    stored = {tensor.type for tensor in flatbuffer.read(tmp_path / "model.tflite").subgraphs[0].tensors}
    assert types.FLOAT16 in stored  # the kernels


def test_float16_of_weights_that_are_small_altogether(tmp_path):
    """As trained on features of 1e9 without a normalisation."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, activation="relu"), layers.Dense(2)])
    model.layers[0].kernel.assign(1e-9 * data(4)[:8].T)
    model.layers[0].bias.assign(np.ones(8))
    report = keras_rda.export(model, tmp_path / "model.tflite", "float16")
    assert "stays in float32" in report.chosen.notes[0]
    x = 5e8 * data(4) + 1e9
    received = keras_rda.litert.predict(tmp_path / "model.tflite", x)["output_0"]
    np.testing.assert_allclose(received, model.predict(x, verbose=0), rtol=0, atol=0.01)


def test_other_float16_files_are_the_converters(tmp_path):
    """Nothing of a usual network is suspected, so it is converted once."""
    x = keras.Input((8, 8, 3))
    y = layers.BatchNormalization()(layers.Conv2D(8, 3, use_bias=False)(layers.Rescaling(1 / 255)(x)))
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling2D()(layers.ReLU()(y))))
    graph = flatbuffer.read(convert.convert(model, "float16"))
    assert not candidates.half.is_suspect(graph)


def test_random_inputs_are_those_the_first_layers_know():
    normalization, batch = layers.Normalization(), layers.BatchNormalization()
    normalization.adapt(np.random.default_rng(0).normal([100, -5], [10, 0.1], (1000, 2)))
    inputs = {
        "normalised": keras.Input((2,), name="normalised"),
        "batch": keras.Input((3,), name="batch"),
        "pixels": keras.Input((4, 4, 3), name="pixels"),
        "signed": keras.Input((4, 4, 3), name="signed"),
        "image": keras.Input((4, 4, 3), name="image", dtype="uint8"),
        "words": keras.Input((5,), name="words", dtype="int32"),
        "codes": keras.Input((5,), name="codes", dtype="int32"),
        "plain": keras.Input((2,), name="plain"),
    }
    outputs = [
        normalization(layers.Dropout(0.5)(inputs["normalised"])),
        batch(inputs["batch"]),
        layers.Flatten()(layers.Rescaling(1 / 255)(inputs["pixels"])),
        layers.Flatten()(layers.Rescaling(1 / 127.5, -1)(layers.Resizing(2, 2)(inputs["signed"]))),
        layers.Flatten()(layers.Rescaling(1.0)(keras.ops.cast(inputs["image"], "float32"))),
        layers.Flatten()(layers.Embedding(1000, 2)(inputs["words"])),
        layers.CategoryEncoding(7)(inputs["codes"]),
        layers.Dense(1)(inputs["plain"]),
    ]
    model = keras.Model(inputs, layers.Concatenate()(outputs))
    batch.moving_mean.assign([3, 4, 5])
    drawn = feeds.random(model, 500)
    assert {name: array.dtype.name for name, array in drawn.items()} == {name: t.dtype for name, t in inputs.items()}
    np.testing.assert_allclose(drawn["normalised"].mean(0), [100, -5], rtol=0.02)
    np.testing.assert_allclose(drawn["normalised"].std(0), [10, 0.1], rtol=0.1)
    np.testing.assert_allclose(drawn["batch"].mean(0), [3, 4, 5], atol=0.2)
    for name, low, high in (
        *(("pixels", 0, 255), ("signed", 0, 255), ("words", 0, 999), ("codes", 0, 6)),
        *(("image", 0, 1), ("plain", -1, 1)),  # the image's values are what Rescaling maps to 0 … 1
    ):
        assert low <= drawn[name].min() < low + 0.02 * (high - low) + 1e-6
        assert high - 0.02 * (high - low) - 1e-6 < drawn[name].max() <= high + 1e-4 * high
    again = feeds.random(model, 500)
    assert all(np.array_equal(drawn[name], again[name]) for name in drawn)


@pytest.mark.parametrize("behind", [layers.Flatten(), layers.Permute((2, 3, 1))])
def test_statistics_of_another_order(behind):
    """Their mean and spread are all that is known of the input."""
    x = keras.Input((3, 4, 4))
    normalization = layers.BatchNormalization()
    model = keras.Model(x, normalization(behind(x)))
    normalization.moving_mean.assign(np.full(normalization.moving_mean.shape, 7.0))
    drawn = feeds.random(model, 100)[x.name]
    assert drawn.shape == (100, 3, 4, 4)
    assert abs(drawn.mean() - 7) < 0.2
    assert abs(drawn.std() - 1) < 0.2


def test_integer_images_and_tables_inside_other_layers():
    x = keras.Input((4, 4, 1), dtype="uint8")
    assert feeds.random(keras.Model(x, layers.Flatten()(x)), 100)[x.name].max() > 200

    class Inner(layers.Layer):
        def __init__(self):
            super().__init__()
            self.layers = [layers.Embedding(50, 2)]

        def call(self, tokens):
            return self.layers[0](tokens)

    tokens = keras.Input((6,), dtype="int32")
    drawn = feeds.random(keras.Model(tokens, Inner()(tokens)), 100)[tokens.name]
    assert 40 < drawn.max() < 50


@pytest.mark.parametrize(("received", "passes"), [([0, 1, 2, 3], True), ([0, 1, 2, 300], False), ([0, 1, 2, 4], False)])
def test_integers_are_compared_by_the_share_that_agrees(received, passes):
    expected, received = {"y": np.array([0, 1, 2, 3])}, {"y": np.array(received)}
    check = verification.compare(expected, received, {"y": 0.0}, "here")
    assert check.passed == passes
    assert check.largest == (0 if passes else 0.25)
    assert str(check) == f"here: differs from Keras in {100 * check.largest:.1f}% (accepted: 0.0%)"
    assert verification.compare(expected, received, {"y": 0.25}).passed


def test_argmax_is_told_the_way_out(tmp_path):
    x = keras.Input((4,))
    model = keras.Model(x, keras.ops.argmax(layers.Dense(3)(x), -1))
    with pytest.raises(keras_rda.ExportError, match=r"argmax and argmin do: end the model before them"):
        keras_rda.export(model, tmp_path / "model.tflite")


def test_what_int8_cannot_run_is_not_blamed_on_the_data(tmp_path):
    x = keras.Input((5, 3))
    model = keras.Model(x, layers.Dense(2)(layers.LSTM(4, unroll=True)(layers.Masking()(x))))
    samples = data(5, 3)
    samples[::2, 3:] = 0
    with pytest.raises(keras_rda.ExportError, match=r"What int8 cannot run, quantize='dynamic' may\.$"):
        keras_rda.export(model, tmp_path / "model.tflite", "int8", samples)
    assert keras_rda.export(model, tmp_path / "model.tflite", "dynamic", samples).chosen.passed


def test_models_of_keras_2_are_told_the_way_out():
    kind = type("Sequential", (), {"__module__": "tf_keras.src.engine.sequential"})
    for function in (keras_rda.compress, keras_rda.sparsity, keras_rda.summary, keras_rda.freeze_zeros):
        with pytest.raises(
            TypeError, match=rf"{function.__name__}\(\) takes a keras.Model; received Sequential. It is one"
        ):
            function(kind())
    with pytest.raises(TypeError, match=re.escape("save it as .h5, and load that with keras.models.load_model(path)")):
        keras_rda.export(kind(), "model.tflite")
    with pytest.raises(TypeError, match=r"received str\. Load it first"):
        keras_rda.litert.verify("model.keras", "model.tflite")
