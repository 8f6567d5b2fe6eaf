import csv

import keras
import numpy as np
import pytest
from helpers import BACKEND, compiled, fit, small_network

import keras_rda


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
