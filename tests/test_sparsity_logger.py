import csv
import importlib.util
import io

import keras
import numpy as np
import pytest
from helpers import BACKEND, compiled, fit, small_network

import keras_rda
from keras_rda.callbacks import logs


def test_history_has_sparsity(digits):
    model = compiled(small_network(), keras_rda.MRDA(0.1, 0.01))
    history = fit(model, digits, [keras_rda.SparsityLogger()]).history
    assert history["sparsity"][-1] == keras_rda.sparsity(model)
    assert history["kernel_sparsity"][-1] == keras_rda.sparsity(model, kernels_only=True)
    assert 0 < history["sparsity"][-1] < 1


def test_progress_bar_shows_sparsity(digits, capsys):
    model = compiled(small_network(), keras_rda.MRDA(0.1, 0.01))
    fit(model, digits, [keras_rda.SparsityLogger()], verbose=2)
    assert f"sparsity: {keras_rda.sparsity(model):.4f}" in capsys.readouterr().out


def test_csv_log(digits, tmp_path):
    model = compiled(small_network(), keras_rda.MRDA(0.1, 0.01))
    fit(model, digits, [keras_rda.SparsityLogger(), keras.callbacks.CSVLogger(tmp_path / "log.csv")])
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["sparsity"]) == pytest.approx(keras_rda.sparsity(model))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="reads the event file with TensorFlow")
def test_tensorboard_log(digits, tmp_path):
    import tensorflow as tf

    model = compiled(small_network(), keras_rda.MRDA(0.1, 0.01))
    fit(model, digits, [keras_rda.SparsityLogger(), keras.callbacks.TensorBoard(tmp_path)])
    values = {}
    for file in (tmp_path / "train").iterdir():
        for record in tf.data.TFRecordDataset(str(file)):
            for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
                if value.tag == "epoch_sparsity":
                    values[file] = float(tf.make_ndarray(value.tensor))
    assert list(values.values()) == [pytest.approx(keras_rda.sparsity(model))]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_dead_network_is_reported_once_at_its_epoch(digits, policy):
    keras.config.set_dtype_policy(policy)
    model = compiled(small_network(), keras_rda.MRDA(1.0, 1e3))
    with pytest.warns(UserWarning, match=r"died in epoch 1: .* strength λ is 1000\. Train again") as record:
        fit(model, digits, [keras_rda.SparsityLogger()], epochs=3)
    assert sum("died" in str(warning.message) for warning in record) == 1
    assert keras_rda.sparsity(model, kernels_only=True) == 1.0


def test_network_that_dies_later_is_reported_then(digits):
    model = compiled(small_network(), optimizer := keras_rda.MRDA(1.0, 0.0))

    class RaiseStrength(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                optimizer.penalty.strength = 1e3

    with pytest.warns(UserWarning, match="died in epoch 2"):
        fit(model, digits, [keras_rda.SparsityLogger(), RaiseStrength()])


def test_single_layer_at_zero_is_not_dead(digits):
    """Logistic regression at w = 0, where RDA starts, has a gradient."""
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, kernel_initializer="zeros")]
    model = compiled(keras.Sequential(layers), keras_rda.RDA(1.0, 1e3))
    assert fit(model, digits, [keras_rda.SparsityLogger()]).history["kernel_sparsity"] == [1.0, 1.0]


def test_other_optimizers_and_models_without_kernels(digits):
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.BatchNormalization(), keras.layers.Flatten()])
    history = fit(compiled(model, "sgd"), digits, [keras_rda.SparsityLogger()]).history
    assert "kernel_sparsity" not in history
    assert np.all(np.array(history["sparsity"]) >= 0)


def events(folder):
    """What TensorBoard reads of a run: {tag: [(step, value)]}, of scalars, and of pictures as arrays."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    found = {}
    for file in folder.iterdir():
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                array = make_ndarray(value.tensor)
                if value.tag.startswith("zeros/"):  # width, height, the pictures as PNG
                    array = keras.utils.img_to_array(keras.utils.load_img(io.BytesIO(array[2]), color_mode="grayscale"))
                found.setdefault(value.tag, []).append((event.step, array))
    return found


def test_kernels_for_tensorboard(digits, tmp_path):
    """σ and λ of each kernel and a picture of its zeros, every epoch, on every backend, beside Keras' own callback."""
    model = compiled(small_network(), keras_rda.MRDA(0.1, 0.01))
    seen = {kernel.path: [] for kernel in (model.layers[0].kernel, model.layers[-1].kernel)}

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            for variable in self.model.trainable_variables:
                if variable.path in seen:
                    seen[variable.path].append(keras.ops.convert_to_numpy(variable) == 0)

    callbacks = [keras_rda.SparsityLogger(tmp_path), Watch(), keras.callbacks.TensorBoard(tmp_path)]
    fit(model, digits, callbacks, epochs=3)
    assert {path.name for path in tmp_path.iterdir()} == {"sparsity", "train"}
    found = events(tmp_path / "sparsity")
    assert set(found) == {f"{kind}/{path}" for kind in ("sparsity", "penalty_strength", "zeros") for path in seen}
    for path, zeros in seen.items():
        assert [step for step, _ in found[f"sparsity/{path}"]] == [0, 1, 2]
        assert [float(value) for _, value in found[f"sparsity/{path}"]] == pytest.approx([z.mean() for z in zeros])
        assert [float(value) for _, value in found[f"penalty_strength/{path}"]] == pytest.approx([0.01] * 3)
        for (_, picture), expected in zip(found[f"zeros/{path}"], zeros, strict=True):
            np.testing.assert_array_equal(picture[..., 0], 255 * expected.reshape(-1, expected.shape[-1]))
    assert 0 < seen[model.layers[-1].kernel.path][-1].mean() < 1


@pytest.mark.parametrize(("shape", "size"), [((3, 3, 20, 1), (9, 20)), ((300, 64), (128, 64)), ((5, 1), (1, 5))])
def test_pictures(shape, size):
    """Depthwise kernels by channel; of large kernels blocks, whose greys have the mean σ up to rounding."""
    kernel = np.random.default_rng(0).choice([0.0, 1.0], shape, p=[0.75, 0.25])
    picture = logs.picture(kernel)
    assert picture.shape == size
    rows = np.diff(np.linspace(0, shape[0], size[0] + 1).astype(int)) if shape[0] == 300 else np.ones(size[0])
    assert np.average(picture.mean(1), weights=rows) / 255 == pytest.approx(np.mean(kernel == 0), abs=0.005)
    if shape == (3, 3, 20, 1):
        np.testing.assert_array_equal(picture[:, 7] == 255, kernel[..., 7, 0].ravel() == 0)


def test_kernels_of_one_path_for_tensorboard(digits, tmp_path):
    """Layers may have one name, as in a subclassed model: each kernel has its own pictures."""

    class Two(keras.Model):
        def __init__(self):
            super().__init__(name="two")
            self.flat = keras.layers.Flatten()
            self.first, self.second = (keras.layers.Dense(10, name="same") for _ in range(2))

        def call(self, inputs):
            return self.second(self.first(self.flat(inputs)))

    model = Two()
    model(digits[0][:1])
    fit(compiled(model, keras_rda.MRDA(0.1, 0.01)), digits, [keras_rda.SparsityLogger(tmp_path)], epochs=1)
    found = events(tmp_path / "sparsity")
    kernels = [f"zeros/{model.first.kernel.path}{end}" for end in ("", "_1")]
    assert [len(found[tag]) for tag in kernels] == [1, 1]
    assert [found[tag][0][1].shape[:2] for tag in kernels] == [(64, 10), (10, 10)]


def test_folders_that_cannot_be_written_to(digits, tmp_path):
    with pytest.raises(TypeError, match=r"SparsityLogger: log_dir must be the path of a folder; received True\."):
        keras_rda.SparsityLogger(True)
    (tmp_path / "file").write_text("")
    model = compiled(small_network(), keras_rda.MRDA(0.1, 0.01))
    with pytest.raises(OSError, match="file"):
        fit(model, digits, [keras_rda.SparsityLogger(tmp_path / "file")])


def test_without_tensorboard(digits, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    model = compiled(small_network(), keras_rda.MRDA(0.1, 0.01))
    with pytest.raises(ImportError, match="TensorBoard, which is not installed: python3 -m pip install tensorboard"):
        fit(model, digits, [keras_rda.SparsityLogger(tmp_path / "logs")])
    assert not (tmp_path / "logs").exists()


def test_strength_is_logged_as_it_changes(digits):
    """A schedule's value after the epoch; under a loss scale too; none where the optimizer has no penalty."""
    keras.config.set_dtype_policy("mixed_float16")
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.01, 0.02])
    model = compiled(small_network(), keras_rda.MRDA(0.1, schedule))
    history = fit(model, digits, [keras_rda.SparsityLogger()], epochs=3).history
    assert history["penalty_strength"] == pytest.approx([0.01, 0.02, 0.02])
    history = fit(compiled(small_network(), keras_rda.SDA(0.1)), digits, [keras_rda.SparsityLogger()]).history
    assert "penalty_strength" not in history
