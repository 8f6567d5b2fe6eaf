"""The models in saved_models/ are what their table says, measured on real data."""

import hashlib
import pathlib
import re

import keras
import numpy as np
import pytest
from helpers import BACKEND, PREPARED

import keras_rda
from keras_rda.litert import decode, flatbuffer
from keras_rda.litert.machines import micro

FOLDER = pathlib.Path(__file__).parents[1] / "saved_models"
ROW = r"\| `([\w.-]+)` \| `[^`]+` \| \w+ \| \d+ \| ([\d.]+) \| ([\d.]+) \| ([\d,]+) \| `(\w+)` \|"
ROWS = re.findall(ROW, (FOLDER / "README.md").read_text())


def test_every_model_has_a_row():
    models = {file.name for file in FOLDER.iterdir() if file.suffix in (".keras", ".tflite")}
    assert models == {name for name, *_ in ROWS}
    assert models


@pytest.mark.parametrize(("name", "top1", "sigma", "size", "sha256"), ROWS)
def test_saved_model(name, top1, sigma, size, sha256):
    file = FOLDER / name
    content = file.read_bytes()
    assert hashlib.sha256(content).hexdigest() == sha256
    assert len(content) == int(size.replace(",", "")) < 2e6
    if name.startswith("cifar10"):  # its network scales the images itself
        if not PREPARED.is_dir():
            pytest.skip(f"no prepared tensorflow-datasets at {PREPARED}")
        x, y = keras_rda.datasets.load("cifar10", PREPARED)[1]
    else:
        (x_train, _), (x, y) = keras_rda.datasets.load_digits()
        x = ((x - x_train.mean((0, 1, 2))) / x_train.std((0, 1, 2))).astype("float32")
    model = keras.models.load_model(file.with_suffix(".keras"))
    kernels_sigma = keras_rda.sparsity(model, kernels_only=True)
    if file.suffix == ".tflite":
        tensors = decode.stored(flatbuffer.read(file))
        sizes = [np.prod(tensor.shape) for tensor in tensors]
        kernels_sigma = np.average([tensor.zeros for tensor in tensors], weights=sizes)
    assert kernels_sigma == pytest.approx(float(sigma), abs=5e-5)
    if file.suffix == ".keras":
        logits = model.predict(x, batch_size=360, verbose=0)
    elif decode.is_decoded(flatbuffer.read(file)):
        if not micro.is_ready():
            pytest.skip("no TFLite Micro: pip install 'keras_rda[micro]'")
        logits = micro.run([(file, x)])[0].outputs["output_0"]
    elif BACKEND == "tensorflow":
        logits = np.concatenate([keras_rda.litert.predict(file, part)["output_0"] for part in np.split(x, 2)])
    else:
        pytest.skip("LiteRT files do not depend on the backend")
    assert 100 * np.mean(np.argmax(logits, -1) == y) == pytest.approx(
        float(top1), abs=0.3
    )  # an image: roundings differ
