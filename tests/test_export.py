"""LiteRT files: right, small, and nothing broken left behind."""

import keras
import numpy as np
import pytest
from conftest import BACKEND, small_network

import keras_rda
from keras_rda.litert import convert, verify

tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras exports LiteRT on TensorFlow")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorFlow's converter


def sparsify(model, share=0.9, seed=0):
    random = np.random.default_rng(seed)
    for layer in model.layers:
        for variable in layer.trainable_variables:
            if len(variable.shape) > 1:
                keep = random.random(variable.shape) > share
                variable.assign(keras.ops.convert_to_numpy(variable) * keep)
    return model


def wide_network():
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(32, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(64, 3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )


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


def broken_convert(model, path, sparse):
    """A converter that spoils the sparse file: it is the file of a model with one other weight."""
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    if sparse:
        other.layers[-1].bias.assign_add(keras.ops.ones(other.layers[-1].bias.shape) * 0.01)
    original_convert(other, path, sparse)


original_convert = convert.convert


@tensorflow_only
def test_wrong_file_is_not_put_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "convert", broken_convert)
    target = tmp_path / "model.tflite"
    target.write_bytes(b"the file from before")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(keras_rda.ExportError, match=r"is wrong: its outputs differ from Keras' by 0.01"):
        keras_rda.export(model, target)
    assert target.read_bytes() == b"the file from before"
    assert list(tmp_path.iterdir()) == [target]


@tensorflow_only
def test_block_sparse_dense_layer_with_odd_inputs_is_caught(tmp_path):
    """The converter's defect 1: a block-encoded FULLY_CONNECTED whose inputs are no multiple of 4 is silently wrong."""
    kernel = np.random.default_rng(0).normal(size=(30, 16)).astype("float32")
    kernel[4:28] = 0
    model = keras.Sequential([keras.Input((30,)), keras.layers.Dense(16)])
    model.layers[0].kernel.assign(kernel)
    convert.convert(model, tmp_path / "plain.tflite", sparse=True)
    assert not verify.compare(model, tmp_path / "plain.tflite").passed
    (tmp_path / "plain.tflite").unlink()
    with pytest.raises(keras_rda.ExportError, match="is wrong"):
        keras_rda.export(model, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


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
    assert verify.largest_difference(expected, expected).passed
    assert not verify.largest_difference(expected, outputs).passed


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
    with pytest.raises(ValueError, match=r"Wrap it: keras\.Model\(inputs, model\(inputs\)\)"):
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
    with pytest.raises(keras_rda.ExportError, match="itself has outputs that are not finite"):
        keras_rda.export(model, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_each_output_is_compared_on_its_own_scale():
    expected = {"large": np.full(1, 1e6), "small": np.ones(1)}
    assert not verify.largest_difference(expected, {**expected, "small": np.full(1, 1.5)}).passed
    assert verify.largest_difference(expected, {**expected, "large": np.full(1, 1e6 + 1)}).passed
    booleans = {"a": np.array([True, False])}
    assert verify.largest_difference(booleans, booleans).passed


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


@tensorflow_only
def test_unknown_dimensions_are_refused(tmp_path):
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs)))
    with pytest.raises(ValueError, match="only the batch size may be unknown"):
        keras_rda.export(model, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(BACKEND == "tensorflow", reason="the refusal on other backends")
def test_other_backends_are_told_what_to_do(tmp_path):
    with pytest.raises(RuntimeError, match="KERAS_BACKEND=tensorflow"):
        keras_rda.export(small_network(), tmp_path / "model.tflite")
