"""What the README says first is true, word for word."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from helpers import BACKEND

import keras_rda

README = pathlib.Path(__file__).parents[1] / "README.md"


@pytest.mark.skipif(BACKEND != "tensorflow", reason="export needs the TensorFlow backend")
def test_first_snippet(tmp_path):
    """As a script of its own, as it stands: the accuracy and the bytes that its comments promise."""
    snippet, *_ = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    accuracy = float(re.search(r"# accuracy: (\S+)", snippet)[1])
    sparse, dense = map(float, re.search(r"# (\d+) kB instead of (\d+)", snippet).groups())
    done = subprocess.run(
        [sys.executable, "-c", snippet + "\nprint('sparsity', keras_rda.sparsity(model, kernels_only=True))"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100", "PYTHONPATH": str(pathlib.Path(keras_rda.__file__).parents[1])},
    )
    assert not done.returncode, done.stderr[-2000:]
    measured = [float(number) for number in re.findall(r"accuracy: (\d\.\d+)", done.stdout)]
    assert measured[-1] == pytest.approx(accuracy, abs=0.015)
    assert float(re.search(r"sparsity (\S+)", done.stdout)[1]) == pytest.approx(0.95, abs=0.005)
    assert (tmp_path / "model.tflite").stat().st_size / 1000 == pytest.approx(sparse, rel=0.15)
    assert float(re.search(r"dense (\d+),(\d+)", done.stdout)[1]) == pytest.approx(dense, rel=0.05)
    assert "UserWarning" not in done.stderr


def test_two_commands():
    """Exactly two commands set up and run: the main job, and the tests that CI runs."""
    text = README.read_text()
    commands = re.findall(r"^python3 -m pip install -e .*$", text, re.M)
    assert len(commands) == 2
    assert commands[0].endswith("&& python3 examples/quickstart.py")
    assert commands[1].count("python3 -m pytest") == 2
