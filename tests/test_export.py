"""LiteRT files: right, small, and nothing broken left behind."""

import contextlib
import importlib.metadata
import logging
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import BACKEND, small_network, sparsify, wide_network

import keras_rda
from keras_rda.litert import aarch64, convert, encode, flatbuffer, verification

tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras exports LiteRT on TensorFlow")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of TensorFlow's converter
    pytest.mark.usefixtures("runs_on_aarch64", "runs_compiled"),
]


@tensorflow_only
def test_exported_file_is_small_and_equal_to_keras(tmp_path):
    model = sparsify(wide_network())
    report = keras_rda.export(model, tmp_path / "model.tflite")
    assert report.bytes == (tmp_path / "model.tflite").stat().st_size
    assert report.bytes < report.dense_bytes / 4
    assert report.sparsity == keras_rda.sparsity(model, kernels_only=True) > 0.85
    x = np.random.default_rng(1).normal(size=(5, 8, 8, 3)).astype("float32")
    received = keras_rda.litert.predict(tmp_path / "model.tflite", x)["output_0"]
    np.testing.assert_allclose(received, model.predict(x, verbose=0), atol=1e-5)
    assert 0 < report.max_difference <= report.tolerance < 1e-3
    text = str(report)
    for part in (f"{report.bytes:,}", f"{report.dense_bytes:,}", "model.tflite"):
        assert part in text
    assert [file.name for file in tmp_path.iterdir()] == ["model.tflite"]


@tensorflow_only
def test_nothing_is_said_where_python_is_interactive(tmp_path, capfd):
    """As in notebooks, where TensorFlow's logger tells all that it does to the standard output."""
    import tensorflow as tf

    logger = tf.get_logger()
    before = logger.level
    logger.addHandler(handler := logging.StreamHandler(sys.stdout))
    try:
        logger.setLevel(logging.INFO)
        keras_rda.export(small_network(), tmp_path / "model.tflite")
        assert logger.level == logging.INFO
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert "Assets written" not in "".join(capfd.readouterr())


@tensorflow_only
@pytest.mark.parametrize("names", [list, dict], ids=["lists", "dicts"])
def test_several_inputs_and_outputs(tmp_path, names):
    layers = keras.layers
    left, right, tokens = (
        keras.Input((4,), name="left"),
        keras.Input((6,), name="a_right"),
        keras.Input((3,), dtype="int32", name="tokens"),
    )
    embedded = layers.Flatten()(layers.Embedding(5, 4)(tokens))
    outputs = [layers.Dense(3)(layers.Concatenate()([left, right])), layers.Dense(2)(embedded), layers.Dense(2)(left)]
    if names is dict:
        model = keras.Model({"left": left, "a_right": right, "tokens": tokens}, dict(zip("zyx", outputs, strict=True)))
    else:
        model = keras.Model([left, right, tokens], outputs)
    assert keras_rda.export(model, tmp_path / "model.tflite").max_difference <= 1e-5
    with pytest.raises(
        ValueError, match=r"takes a dict of the inputs \['a_right', 'left', 'tokens'\]; received one array"
    ):
        keras_rda.litert.predict(tmp_path / "model.tflite", np.zeros((1, 6), "float32"))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert keras_rda.export(loaded, tmp_path / "model.tflite").max_difference <= 1e-5


def spoiled(model, *arguments):
    """A converter that converts a model with one other bias."""
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    other.layers[-1].bias.assign_add(keras.ops.ones(other.layers[-1].bias.shape) * 0.01)
    return original_convert(other, *arguments)


original_convert, original_encode = convert.convert, encode.encode


@tensorflow_only
def test_wrong_file_is_not_put_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "convert", spoiled)
    target = tmp_path / "model.tflite"
    target.write_bytes(b"the file from before")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(keras_rda.ExportError, match=r"is right, and nothing was written.*differs from Keras by 0.01"):
        keras_rda.export(model, target)
    assert target.read_bytes() == b"the file from before"
    assert list(tmp_path.iterdir()) == [target]


@tensorflow_only
def test_candidate_that_is_wrong_is_passed_over_with_its_reason(tmp_path, monkeypatch):
    def wrong_encode(model, strategy):
        sparse, tensors = original_encode(model, strategy)
        data = max((buffer.data for buffer in sparse.buffers if buffer.data is not None), key=len)
        data.setflags(write=True)
        data[3::4] ^= 0x80  # the signs of the values
        return sparse, tensors

    monkeypatch.setattr(encode, "encode", wrong_encode)
    report = keras_rda.export(sparsify(wide_network()), tmp_path / "model.tflite")
    assert report.chosen.name == "dense"
    assert report.bytes == report.dense_bytes == (tmp_path / "model.tflite").stat().st_size
    sparse = next(candidate for candidate in report.candidates if candidate.name == "sparse")
    assert not sparse.passed
    assert "default delegate: differs from Keras by" in sparse.result
    assert sparse.result in report.to_dict()["candidates"][0]["result"]


@tensorflow_only
@pytest.mark.parametrize("quantize", [None, "float16", "dynamic", "int8"])
def test_quantized_files_are_small_and_verified(tmp_path, quantize):
    model = sparsify(wide_network())
    images = np.random.default_rng(0).uniform(-1, 1, (20, 8, 8, 3)).astype("float32")
    report = keras_rda.export(model, tmp_path / "model.tflite", quantize, images)
    assert report.chosen.passed
    assert report.bytes < report.dense_bytes / 1.5  # of the same quantisation; small files are mostly tables
    assert "sparse" in report.chosen.name
    ours = model.predict(images[:2], verbose=0)
    for delegates in (True, False):
        received = keras_rda.litert.predict(tmp_path / "model.tflite", images[:2], delegates)["output_0"]
        np.testing.assert_allclose(received, ours, atol=report.tolerance)
    assert report.tolerance < 0.1 * np.abs(ours).max()
    assert [latency.name for latency in report.latency] == ["dense", "sparse"]
    assert all(0 < latency.lower <= latency.median <= latency.upper for latency in report.latency)
    for tensor in report.tensors:
        assert tensor.bytes <= tensor.dense_bytes
        assert tensor.floor_bytes <= tensor.bytes


@tensorflow_only
def test_mobilenet_with_nine_zeros_in_ten(tmp_path):
    """At most 1/6 of the dense float32 file, and 1/10.5 in int8, also without removing dead channels first."""
    model = sparsify(keras.applications.MobileNet(weights=None, classifier_activation=None), alive=False)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # the statistics of one batch: an untrained network's outputs are constant without
    images = np.random.default_rng(0).uniform(-1, 1, (8, 224, 224, 3)).astype("float32")
    model(images, training=True)
    report = keras_rda.export(model, tmp_path / "model.tflite")
    bytes_of = {candidate.name: candidate.bytes for candidate in report.candidates}
    assert bytes_of["sparse"] <= bytes_of["dense"] / 6
    assert report.weight_bytes <= 1.4 * report.floor_bytes
    with pytest.warns(UserWarning, match="of 1000 channels"):  # random weights: some outputs hardly vary
        quantized = keras_rda.export(model, tmp_path / "model.tflite", "int8", images)
    assert {candidate.name: candidate.bytes for candidate in quantized.candidates}["sparse"] <= bytes_of["dense"] / 10.5
    assert quantized.bytes <= bytes_of["dense"] / 10.5


@tensorflow_only
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_each_file_is_parsed_once(tmp_path, monkeypatch, quantize):
    """An export parses what the converter wrote; `verify` and `benchmark` what somebody wrote."""
    model, parsed, read = sparsify(wide_network()), [], flatbuffer.read
    monkeypatch.setattr(flatbuffer, "read", lambda source: parsed.append(source) or read(source))
    images = np.random.default_rng(0).uniform(-1, 1, (20, 8, 8, 3)).astype("float32")
    path = tmp_path / "model.tflite"
    assert "sparse" in keras_rda.export(model, path, quantize, images).chosen.name
    assert [type(source) for source in parsed] == [bytes]
    keras_rda.litert.verify(model, path, images)
    keras_rda.litert.benchmark({"model": path}, seconds=0.01)
    keras_rda.litert.predict(path, images)
    assert parsed[1:] == [path] * 3


@tensorflow_only
def test_dead_channels_are_removed_on_the_way(tmp_path):
    model = wide_network()
    kernel = model.layers[0].kernel.numpy()
    kernel[..., ::2] = 0
    model.layers[0].kernel.assign(kernel)
    report = keras_rda.export(model, tmp_path / "model.tflite")
    assert report.chosen.name == "compressed, dense"
    assert report.bytes < 0.6 * report.dense_bytes
    assert [latency.name for latency in report.latency][-1] == "compressed, dense"


@tensorflow_only
def test_representative_data_is_needed_and_checked(tmp_path):
    model = wide_network()
    path = tmp_path / "model.tflite"
    with pytest.raises(ValueError, match="quantize='int8' needs representative_data: some hundred typical inputs"):
        keras_rda.export(model, path, "int8")
    with pytest.raises(ValueError, match=r"must have the shape \(None, 8, 8, 3\); received \(5, 9, 9, 3\)"):
        keras_rda.export(model, path, "int8", np.zeros((5, 9, 9, 3)))
    with pytest.raises(ValueError, match=r"dataset\.map\(lambda x, y: x\)"):
        keras_rda.export(model, path, "int8", [(np.zeros((5, 8, 8, 3)), np.zeros(5))])
    with pytest.raises(ValueError, match=r"values that are not finite"):
        keras_rda.export(model, path, "int8", np.full((5, 8, 8, 3), np.nan))
    with pytest.raises(TypeError, match=r"is a function; give what it returns"):
        keras_rda.export(model, path, "int8", lambda: [np.zeros((5, 8, 8, 3))])
    with pytest.raises(TypeError, match=r"received str\. Load it first"):
        keras_rda.export("model.keras", path)
    with pytest.raises(ValueError, match=r"representative_data has no batch of 1"):
        keras_rda.export(model, path, "int8", np.zeros((0, 8, 8, 3)))
    with pytest.raises(
        ValueError, match=r"quantize must be one of None, 'float16', 'dynamic', 'int8'; received 'int4'"
    ):
        keras_rda.export(model, path, "int4")
    with pytest.raises(ValueError, match=r"machine must be one of 'aarch64', 'wasm', 'micro'; received 'mips'"):
        keras_rda.export(model, path, machine="mips")
    with pytest.raises(ValueError, match=r"sparse must be True or False; received 'no'"):
        keras_rda.export(model, path, sparse="no")
    assert not list(tmp_path.iterdir())


@tensorflow_only
def test_outputs_that_rounding_destroys_are_named(tmp_path):
    """One scale for all channels of an output: beside values of a thousand, those of one are rounded to a constant."""
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(16, activation="relu")(inputs)
    large, small = keras.layers.Dense(1)(hidden) * 1000.0, keras.layers.Dense(3)(hidden)
    model = keras.Model(inputs, keras.layers.Concatenate()([large, small]))
    data = np.random.default_rng(0).normal(size=(50, 8)).astype("float32")
    with pytest.warns(UserWarning, match="3 of 4 channels of 'output_0' differ from Keras by as much as they vary"):
        report = keras_rda.export(model, tmp_path / "model.tflite", "int8", data)
    assert report.lost == ("3 of 4 channels of 'output_0'",)
    assert "lost in rounding" in str(report)
    batches = [data[:25], data[25:]]
    with pytest.warns(UserWarning, match="3 of 4 channels"):
        again = keras_rda.export(model, tmp_path / "model.tflite", "int8", batches)
    assert again.to_dict()["max_difference"] == report.max_difference


@tensorflow_only
def test_recurrent_layers_are_told_to_unroll(tmp_path):
    model = keras.Sequential([keras.Input((5, 3)), keras.layers.LSTM(4)])
    with pytest.raises(keras_rda.ExportError, match=r"TensorList.*Recurrent layers need unroll=True") as caught:
        keras_rda.export(model, tmp_path / "model.tflite")
    assert "\n" not in str(caught.value)
    model = keras.Sequential([keras.Input((5, 3)), keras.layers.LSTM(4, unroll=True)])
    assert keras_rda.export(model, tmp_path / "model.tflite").chosen.passed


@tensorflow_only
def test_representative_data_of_several_inputs_and_datasets(tmp_path):
    import tensorflow as tf

    left, right = keras.Input((4,), name="left"), keras.Input((6,), name="a_right")
    joined = keras.layers.Concatenate()([left, right])
    model = keras.Model({"left": left, "a_right": right}, keras.layers.Dense(3)(joined))
    random = np.random.default_rng(0)
    data = {"left": random.normal(size=(30, 4)), "a_right": random.normal(size=(30, 6))}
    first = keras_rda.export(model, tmp_path / "model.tflite", "int8", data)
    second = keras_rda.export(
        model, tmp_path / "model.tflite", "int8", tf.data.Dataset.from_tensor_slices(data).batch(7)
    )
    assert first.bytes == second.bytes
    assert first.max_difference == second.max_difference > 0


FULL_DISK = """
import resource, signal, sys, keras, keras_rda
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as on a full disk, the write fails and the process goes on
model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(512)])
converted = keras_rda.litert.convert.convert(model)
keras_rda.litert.convert.convert = lambda *arguments: converted  # the limit below is for the directory of the target
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    keras_rda.export(model, sys.argv[1])
except OSError as error:
    print("OSError:", error.strerror)
"""


@tensorflow_only
def test_full_disk_leaves_the_previous_file(tmp_path):
    target = tmp_path / "model.tflite"
    target.write_bytes(b"the file from before")
    result = subprocess.run([sys.executable, "-c", FULL_DISK, target], capture_output=True, text=True, timeout=300)
    assert result.stdout == "OSError: File too large\n"
    assert target.read_bytes() == b"the file from before"
    assert list(tmp_path.iterdir()) == [target]


@tensorflow_only
@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_directory_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        keras_rda.export(wide_network(), tmp_path / "model.tflite")


@tensorflow_only
@pytest.mark.skipif(not aarch64.is_ready(), reason="AArch64 is not set up: python3 -m keras_rda.litert.aarch64")
def test_export_verified_on_aarch64(tmp_path):
    report = keras_rda.export(sparsify(wide_network()), tmp_path / "model.tflite", machine="aarch64")
    assert [check.runtime for check in report.chosen.checks] == ["default delegate", "no delegates", "aarch64"]
    assert report.chosen.passed
    assert report.measured.ratio > 0
    assert "aarch64, dense : this" in str(report)


@tensorflow_only
def test_verify_accepts_its_model_and_no_other(tmp_path):
    model, other = wide_network(), wide_network()
    images = np.random.default_rng(0).uniform(-1, 1, (20, 8, 8, 3)).astype("float32")
    for quantize in (None, "int8"):
        keras_rda.export(model, tmp_path / "model.tflite", quantize, images)
        assert all(check.passed for check in keras_rda.litert.verify(model, tmp_path / "model.tflite"))
        assert not any(check.passed for check in keras_rda.litert.verify(other, tmp_path / "model.tflite"))


@tensorflow_only
@pytest.mark.parametrize("quantize", ["float16", "dynamic", "int8"])
def test_wrong_quantized_file_is_refused(tmp_path, monkeypatch, quantize):
    def weaker(model, *arguments):
        other = keras.models.clone_model(model)
        other.set_weights([*model.get_weights()[:-2], *(0.6 * array for array in model.get_weights()[-2:])])
        return original_convert(other, *arguments)

    monkeypatch.setattr(convert, "convert", weaker)
    images = np.random.default_rng(0).uniform(-1, 1, (20, 8, 8, 3)).astype("float32")
    with pytest.raises(keras_rda.ExportError, match="is right, and nothing was written"):
        keras_rda.export(wide_network(), tmp_path / "model.tflite", quantize, images)
    assert not list(tmp_path.iterdir())


@tensorflow_only
def test_calibration_with_untypical_data_is_refused(tmp_path):
    images = np.zeros((20, 8, 8, 3), "float32")
    images[-8:] = np.random.default_rng(0).uniform(-1, 1, (8, 8, 8, 3))
    model = wide_network()
    keras_rda.export(model, tmp_path / "model.tflite", "int8", images[-8:])
    assert all(check.passed for check in keras_rda.litert.verify(model, tmp_path / "model.tflite", images[-8:]))
    keras_rda.export(model, tmp_path / "zeros.tflite", "int8", images[:2])  # right for zeros, and for nothing else
    assert not any(check.passed for check in keras_rda.litert.verify(model, tmp_path / "zeros.tflite", images[-8:]))


@tensorflow_only
def test_verify_of_pixels_accepts_its_model_and_no_other(tmp_path):
    """Calibrated on 0 … 255, one step of an output is larger than all that inputs in (−1, 1) make."""
    model, other = wide_network(), wide_network()
    pixels = np.random.default_rng(0).uniform(0, 255, (20, 8, 8, 3)).astype("float32")
    keras_rda.export(model, tmp_path / "model.tflite", "int8", pixels)
    assert all(check.passed for check in keras_rda.litert.verify(model, tmp_path / "model.tflite", pixels))
    for data in (None, pixels):
        assert not keras_rda.litert.verify(other, tmp_path / "model.tflite", data)[0].passed


@tensorflow_only
def test_float16_stored_in_float32_is_still_float16(tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2DTranspose(64, 3, use_bias=False)])
    report = keras_rda.export(sparsify(model, 0.8, alive=False), tmp_path / "model.tflite", "float16")
    assert "float32 values" in report.tensors[0].encoding
    assert all(check.passed for check in keras_rda.litert.verify(model, tmp_path / "model.tflite"))


@tensorflow_only
def test_damaged_files_are_refused_in_one_line(tmp_path):
    keras_rda.export(wide_network(), tmp_path / "model.tflite")
    content = (tmp_path / "model.tflite").read_bytes()
    for name, damaged in {"cut": content[:5000], "empty": b"", "text": b"no model at all " * 99}.items():
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is not a LiteRT model|is cut off or corrupt") as caught:
            keras_rda.litert.predict(path, np.zeros((1, 8, 8, 3)))
        assert "\n" not in str(caught.value)


@tensorflow_only
def test_operator_outside_the_builtins_is_refused(tmp_path):
    @keras.saving.register_keras_serializable("tests")
    class Determinant(keras.layers.Layer):
        def call(self, x):
            return keras.ops.det(x)

    inputs = keras.Input((3, 3))
    model = keras.Model(inputs, Determinant()(inputs))
    with pytest.raises(keras_rda.ExportError, match="could not express the model"):
        keras_rda.export(model, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "outputs", [{"a": np.array([np.nan])}, {"b": np.ones(1)}, {"a": np.ones(2)}, {"a": np.ones(1) * 1.01}]
)
def test_difference_fails_on_nan_names_shapes_and_values(outputs):
    expected = {"a": np.ones(1)}
    assert verification.compare(expected, expected, {"a": 1e-4}).passed
    assert not verification.compare(expected, outputs, {"a": 1e-4}).passed


def test_path_must_be_writable(tmp_path):
    model = small_network()
    with pytest.raises(ValueError, match=r"must end in '\.tflite'; received .*model\.lite"):
        keras_rda.export(model, tmp_path / "model.lite")
    (tmp_path / "folder.tflite").mkdir()
    with pytest.raises(ValueError, match="is a directory"):
        keras_rda.export(model, tmp_path / "folder.tflite")
    with pytest.raises(FileNotFoundError, match="does not exist; create it first"):
        keras_rda.export(model, tmp_path / "nowhere" / "model.tflite")


@tensorflow_only
def test_subclassed_model_is_told_what_to_do(tmp_path):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Subclassed()
    model(np.ones((1, 3), "float32"))
    with pytest.raises(ValueError, match=r"wrap it: keras\.Model\(inputs, model\(inputs\)\)"):
        keras_rda.export(model, tmp_path / "model.tflite")
    inputs = keras.Input((3,))
    assert keras_rda.export(keras.Model(inputs, model(inputs)), tmp_path / "model.tflite").bytes > 0


@tensorflow_only
def test_frozen_models_and_models_without_kernels(tmp_path):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
    model.layers[0].kernel.assign(np.eye(64))
    model.trainable = False
    assert keras_rda.export(model, tmp_path / "model.tflite").sparsity == 63 / 64
    model = keras.Sequential([keras.Input((4,)), keras.layers.ReLU()])
    assert keras_rda.export(model, tmp_path / "model.tflite").sparsity == 0.0


@tensorflow_only
def test_dead_model_is_reported(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, kernel_initializer="zeros")])
    with pytest.warns(UserWarning, match="Every kernel of the model .* is zero, so the file computes a constant"):
        keras_rda.export(model, tmp_path / "model.tflite")


@tensorflow_only
def test_low_precision_models_are_told_what_to_do(tmp_path):
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, dtype="mixed_float16", name="half")])
    model = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=r"another precision: half \(float16\)\. Build the model under"):
        keras_rda.export(model, tmp_path / "model.tflite")


@tensorflow_only
def test_model_with_nan_is_reported(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.layers[0].bias.assign(np.full(3, np.nan))
    with pytest.raises(ValueError, match=r"The weights '.*bias' are not finite"):
        keras_rda.export(model, tmp_path / "model.tflite")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Activation(lambda x: x / 0)])
    with pytest.raises(keras_rda.ExportError, match=r"itself has outputs that are not finite for random inputs"):
        keras_rda.export(model, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_each_output_is_compared_on_its_own_scale():
    expected, tolerances = {"large": np.full(1, 1e6), "small": np.ones(1)}, {"large": 100, "small": 1e-4}
    assert not verification.compare(expected, {**expected, "small": np.full(1, 1.5)}, tolerances).passed
    assert verification.compare(expected, {**expected, "large": np.full(1, 1e6 + 1)}, tolerances).passed
    booleans = {"a": np.array([True, False])}
    assert verification.compare(booleans, booleans, {"a": 1e-4}).passed


@tensorflow_only
def test_predict_checks_its_inputs(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    keras_rda.export(model, tmp_path / "model.tflite")
    assert keras_rda.litert.predict(tmp_path / "model.tflite", [[1, 2, 3, 4]])["output_0"].shape == (1, 3)
    for wrong in (np.ones(4), np.ones((2, 5))):
        with pytest.raises(ValueError, match=r"has the shape \(-1, 4\) \(-1: any\); received"):
            keras_rda.litert.predict(tmp_path / "model.tflite", wrong)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        keras_rda.litert.predict(tmp_path / "other.tflite", np.ones((1, 4)))


def image_network():
    layers, inputs = keras.layers, keras.Input((None, None, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same")(inputs)))
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same")(layers.Conv2D(32, 3, activation="relu")(x))
    return keras.Model(inputs, [layers.GlobalAveragePooling2D()(x), x])


def sequence_network():
    layers, tokens = keras.layers, keras.Input((None,), dtype="int32")
    x = layers.Conv1D(24, 3, padding="causal", activation="relu")(layers.Embedding(30, 8)(tokens))
    x = layers.LayerNormalization()(layers.SeparableConv1D(24, 3, padding="same")(x) + x)
    return keras.Model(tokens, layers.Dense(4)(layers.GlobalMaxPooling1D()(x)))


@tensorflow_only
@pytest.mark.parametrize("make", [image_network, sequence_network])
@pytest.mark.parametrize("quantize", [None, "float16", "int8"])
def test_any_size(make, quantize, tmp_path):
    model, path, random = make(), tmp_path / "model.tflite", np.random.default_rng(0)
    sparsify(model)

    def batch(number, size):
        shape = (number, *(size if known is None else known for known in model.input_shape[1:]))
        if model.input.dtype == "int32":
            return random.integers(0, 30, shape).astype("int32")
        return random.normal(size=shape).astype("float32")

    data = batch(24, 20) if quantize == "int8" else None
    report = keras_rda.export(model, path, quantize, data)
    sizes = (20, 32, 14) if data is not None else (32, 51, 22)
    runtimes = [check.runtime for check in report.chosen.checks]
    assert [re.sub(r"\D*\d+, (\d+).*", r"\1", name) for name in runtimes[::2]] == [
        "default delegate",
        *map(str, sizes[1:]),
    ]
    assert report.bytes < report.dense_bytes
    assert {row.multiply_adds for row in report.tensors if "CONV" in row.operator} == {0}
    assert all(latency.median > 0 for latency in report.latency)
    tolerance = {None: 1e-4, "float16": 0.02, "int8": 0.3}[quantize]
    for size in (16, 37):
        x = batch(3, size)
        for ours, theirs in zip(keras_rda.litert.predict(path, x).values(), keras.tree.flatten(model(x)), strict=True):
            assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()
    assert len(keras_rda.litert.verify(model, path, data)) == 6
    assert keras_rda.litert.benchmark({"file": path}, seconds=0.05)[0].median > 0


class ByLength(keras.layers.Layer):
    """Multiplies with a number that the graph does not have right but for a length of 32."""

    def call(self, x):
        return x * ((x.shape[1] or 32) / 16)


@tensorflow_only
def test_a_file_that_is_right_at_one_size_only(tmp_path):
    inputs = keras.Input((None, 4))
    model = keras.Model(inputs, keras.layers.Dense(8)(ByLength()(inputs)))
    with pytest.raises(
        keras_rda.ExportError,
        match=r"inputs of \(2, 51, 4\): differs from Keras .* With fixed sizes it may be: input_sh",
    ):
        keras_rda.export(model, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())
    assert keras_rda.export(model, tmp_path / "model.tflite", input_shapes=(48, 4)).chosen.passed
    assert all(check.passed for check in keras_rda.litert.verify(model, tmp_path / "model.tflite"))


@tensorflow_only
@pytest.mark.parametrize("shapes", [(7,), {"tokens": (7,), "mask": [7]}])
def test_sizes_that_are_unknown_are_given(shapes, tmp_path):
    """A text model with a causal mask, made for the length of its inputs."""
    tokens, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("tokens", "mask"))
    x = keras.layers.Embedding(9, 6)(tokens) * keras.ops.expand_dims(keras.ops.cast(mask, "float32"), -1)
    x = keras.layers.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True)
    model = keras.Model({"tokens": tokens, "mask": mask}, keras.layers.Dense(4)(x))
    refused = contextlib.nullcontext()
    if tuple(map(int, importlib.metadata.version("tensorflow").split(".")[:2])) >= (2, 21):
        refused = pytest.raises(
            keras_rda.ExportError, match=r"StridedSlice\. With fixed sizes it may do: export\(…, input_shapes"
        )
    with refused:
        assert keras_rda.export(model, tmp_path / "model.tflite").chosen.passed
    report = keras_rda.export(model, tmp_path / "model.tflite", input_shapes=shapes)
    assert report.chosen.passed
    data = {"tokens": np.arange(14).reshape(2, 7) % 9, "mask": np.ones((2, 7))}
    data = {name: array.astype("int32") for name, array in data.items()}
    (ours,) = keras_rda.litert.predict(tmp_path / "model.tflite", data).values()
    np.testing.assert_allclose(ours, model(data), atol=1e-5)


@tensorflow_only
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((8,), r"the input 'image' a shape such as \(None, None, 3\) .* received \(8,\)"),
        ((8, 8, 1), r"received \(8, 8, 1\)"),
        ((8, -1, 3), r"received \(8, -1, 3\)"),
        (8, "received 8"),
        ({"picture": (8, 8, 3)}, r"has \['picture'\], which are no inputs of the model; it has \['image'\]"),
    ],
)
def test_sizes_that_do_not_fit(shapes, message, tmp_path):
    image = keras.Input((None, None, 3), name="image")
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(image)))
    with pytest.raises(ValueError, match=message):
        keras_rda.export(model, tmp_path / "model.tflite", input_shapes=shapes)
    assert keras_rda.export(model, tmp_path / "model.tflite", input_shapes=(8, 8, 3)).chosen.passed


@keras.saving.register_keras_serializable(package="tests")
class Doubled(keras.layers.Layer):
    def call(self, x):
        return 2 * x


other_backends = pytest.mark.skipif(BACKEND == "tensorflow", reason="the process of TensorFlow's on other backends")


@pytest.mark.skipif(BACKEND != "torch", reason="wraps a module of torch")
def test_modules_of_torch_are_refused_by_name(tmp_path):
    from torch import nn

    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.TorchModuleWrapper(nn.Linear(4, 3), "theirs", (None, 3))(inputs))
    smaller, report = keras_rda.compress(model, report=True)
    assert "TorchModuleWrapper 'theirs': unknown, so no channel is cut" in str(report)
    with pytest.raises(ValueError, match=r"cannot write the layers \['theirs'\]: a keras.layers.TorchModuleWrapper"):
        keras_rda.export(smaller, tmp_path / "model.tflite")


@other_backends
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_other_backends_export_in_a_process_of_tensorflow(quantize, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = wide_network()
    model = keras.Model(model.inputs[0], Doubled()(model.outputs[0]))
    sparsify(model)
    data = np.random.default_rng(0).normal(size=(32, *model.input_shape[1:])).astype("float32") if quantize else None
    report = keras_rda.export(model, "model.tflite", quantize, data)
    assert report.chosen.passed
    assert report.bytes == (tmp_path / "model.tflite").stat().st_size < report.dense_bytes
    x = np.random.default_rng(1).normal(size=(8, *model.input_shape[1:])).astype("float32")
    (ours,) = keras_rda.litert.predict("model.tflite", x).values()
    theirs = keras.ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(ours, theirs, atol=0.2 * np.abs(theirs).max() if quantize else 1e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["model.tflite"]


@other_backends
def test_what_goes_wrong_in_the_process_of_tensorflow(tmp_path):
    model = small_network()
    for variable in model.trainable_variables:
        variable.assign(0 * keras.ops.convert_to_tensor(variable))
    with pytest.warns(UserWarning, match="Every kernel of the model .* is zero"):
        keras_rda.export(model, tmp_path / "model.tflite")
    with pytest.raises(FileNotFoundError, match="does not exist; create it first"):
        keras_rda.export(model, tmp_path / "nowhere" / "model.tflite")

    class Unregistered(keras.layers.Layer):
        def call(self, x):
            return x

    with pytest.raises(RuntimeError, match=r"could not load the model in TensorFlow's process .* must be registered"):
        keras_rda.export(keras.Sequential([keras.Input((3,)), Unregistered()]), tmp_path / "other.tflite")
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, keras.ops.fft2((inputs, inputs)))
    with pytest.raises(keras_rda.ExportError, match="could not express the model"):
        keras_rda.export(model, tmp_path / "other.tflite")
    assert not (tmp_path / "other.tflite").exists()


def test_benchmark_needs_names():
    with pytest.raises(TypeError, match=r"must be a dict of name → path.*received \['model.tflite'\]"):
        keras_rda.litert.benchmark(["model.tflite"])
