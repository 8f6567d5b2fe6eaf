"""Both columns of docs/coming_from_tfmot.md: TensorFlow Model Optimization's in a process of its own, which it switches
to Keras 2, and this package's here."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pages
import pytest
from helpers import BACKEND

import keras_rda

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("tensorflow_model_optimization") is None,
        reason='TensorFlow Model Optimization is not installed: python3 -m pip install -e ".[benchmarks]"',
    ),
    pytest.mark.skipif(BACKEND != "tensorflow", reason="the first column is TensorFlow's whatever the backend"),
]
PAGE = "coming_from_tfmot.md"
CODE = pages.code(PAGE)
# What the first column is asked when all of it has run.
ASKED = """
def told(model):
    kernels = [v.numpy() for v in model.trainable_variables if len(v.shape) > 1]
    return [1 - np.count_nonzero(kernel) / kernel.size for kernel in kernels]

right = theirs.predict(x_test, verbose=0).argmax(-1) == y_test
values = [len(np.unique(v)) for v in clustered.trainable_variables if len(v.shape) > 1]
np.savez("told.npz", theirs=told(theirs), partly=told(partly), accuracy=right.mean(), values=values)
"""
REFUSED = """
import pytest
prune, constant = tfmot.sparsity.keras.prune_low_magnitude, tfmot.sparsity.keras.ConstantSparsity(0.5, 0)
with pytest.raises(ValueError, match="2-dimensional weights"):
    prune(model, pruning_schedule=constant, block_size=(1, 4))
with pytest.raises(ValueError, match="supported layer"):
    prune(tf_keras.Sequential([layers.Input((2,)), layers.Rescaling(1 / 16)]), pruning_schedule=constant)
with pytest.raises(ValueError, match="Could not find"):
    prune(model, pruning_schedule=constant, pruning_policy=tfmot.sparsity.keras.PruneForLatencyOnXNNPack())
forgotten = prune(model, pruning_schedule=constant)
forgotten.compile("adam", loss)
with pytest.raises(tf.errors.InvalidArgumentError, match="assert"):
    forgotten.fit(x[:32], y[:32], verbose=0)
"""


@pytest.fixture(scope="module")
def columns(tmp_path_factory):
    """The folder in which both have run, and the names of this package's."""
    folder = tmp_path_factory.mktemp("tfmot")
    names, before = {}, pathlib.Path.cwd()
    os.chdir(folder)
    try:
        keras.utils.set_random_seed(0)
        exec(CODE["The data"], names)
        seed = CODE["TensorFlow Model Optimization"].replace(
            "layers, epochs", "tf_keras.utils.set_random_seed(0)\nlayers, epochs", 1
        )
        done = subprocess.run(
            [sys.executable, "-c", seed + ASKED + REFUSED], capture_output=True, text=True, timeout=600
        )
        assert not done.returncode, done.stderr[-3000:]
        exec(CODE["keras_rda"], names)
    finally:
        os.chdir(before)
    return folder, names


def sigmas(model):
    return {row.path.split("/")[-2]: row.sparsity for row in keras_rda.summary(model).rows if row.kernel}


def test_both_train_a_sparse_network(columns):
    folder, names = columns
    told = np.load(folder / "told.npz")
    np.testing.assert_allclose(told["theirs"], 0.9, atol=0.005)
    ours = names["model"].predict(names["x_test"], verbose=0).argmax(-1) == names["y_test"]
    assert keras_rda.sparsity(names["model"], kernels_only=True) >= 0.895
    assert ours.mean() > 0.97
    assert ours.mean() >= told["accuracy"] - 0.01
    assert list((folder / "logs-theirs").rglob("events*"))
    assert list((folder / "logs-ours").rglob("events*"))


def test_a_model_is_brought_over(columns):
    """Its outputs and zeros, and the zeros save bytes that theirs do not."""
    folder, names = columns
    assert names["difference"] < 1e-5
    np.testing.assert_allclose(list(sigmas(names["brought"]).values()), np.load(folder / "told.npz")["theirs"])
    sizes = [(folder / f"{name}.tflite").stat().st_size for name in ("brought", "theirs-sparse", "theirs")]
    assert sizes[0] < 0.8 * sizes[1]
    assert sizes[1] < 0.2 * sizes[2]
    (outputs,) = keras_rda.litert.predict(folder / "brought.tflite", names["x_test"]).values()
    np.testing.assert_allclose(outputs, np.load(folder / "theirs.npy"), atol=1e-3)


def test_some_layers_only(columns):
    folder, names = columns
    np.testing.assert_allclose(np.load(folder / "told.npz")["partly"], [0, 0.5, 0.5], atol=0.005)
    found = sigmas(names["partly"])
    assert found["hidden"] == pytest.approx(0.9, abs=0.005)
    assert found["logits"] == pytest.approx(0.5, abs=0.005)
    assert found["convolution"] < 0.05


def test_trained_on_and_quantised(columns):
    folder, names = columns
    assert (np.load(folder / "told.npz")["values"] <= 8).all()  # clusters, which the page says are missing here
    assert names["report"].quantize == "int8"
    assert keras_rda.sparsity(names["model"], kernels_only=True) >= 0.895
    (outputs,) = keras_rda.litert.predict(folder / "ours.tflite", names["x_test"]).values()
    assert np.mean(outputs.argmax(-1) == names["y_test"]) > 0.96


def test_every_call_of_the_first_column_is_in_the_table():
    """What the page uses of TensorFlow Model Optimization it also says something about."""
    text = (pages.DOCS / PAGE).read_text(encoding="utf-8")
    table = text[text.index("## Call by call") :]
    called = set(re.findall(r"tfmot\.[\w.]+\.(\w+)\(", CODE["TensorFlow Model Optimization"]))
    assert len(called) > 6
    missing = {name for name in called if name not in table}
    assert missing <= {"quantize_annotate_model"}
