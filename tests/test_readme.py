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


SNIPPET, CHANNELS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


def run(code, folder):
    """Run code as a script of its own; return the last accuracy that it printed, and all that it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100", "PYTHONPATH": str(pathlib.Path(keras_rda.__file__).parents[1])},
    )
    assert not done.returncode, done.stderr[-2000:]
    assert "UserWarning" not in done.stderr
    return float(re.findall(r"accuracy: (\d\.\d+)", done.stdout)[-1]), done.stdout


@pytest.mark.skipif(BACKEND != "tensorflow", reason="export needs the TensorFlow backend")
def test_first_snippet(tmp_path):
    """As it stands: the accuracy and the bytes that its comments promise."""
    accuracy = float(re.search(r"# accuracy: (\S+)", SNIPPET)[1])
    sparse, dense = map(float, re.search(r"# (\d+) kB instead of (\d+)", SNIPPET).groups())
    measured, printed = run(f"{SNIPPET}\nprint('sparsity', keras_rda.sparsity(model, kernels_only=True))", tmp_path)
    assert measured == pytest.approx(accuracy, abs=0.015)
    assert float(re.search(r"sparsity (\S+)", printed)[1]) == pytest.approx(0.95, abs=0.005)
    assert (tmp_path / "model.tflite").stat().st_size / 1000 == pytest.approx(sparse, rel=0.15)
    assert float(re.search(r"dense (\d+),(\d+)", printed)[1]) == pytest.approx(dense, rel=0.05)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the first snippet is one of TensorFlow")
def test_channels(tmp_path):
    """The first snippet with the second's penalty and target: the accuracy and the parameters of its comment."""
    patterns = (r"(penalty = .*)", r"XRDA\(.*?\)", r"Target.*?\)", r"small = .*")
    penalty, optimizer, target, call = (re.search(pattern, CHANNELS)[0] for pattern in patterns)
    code = SNIPPET.replace("model.compile(", f"{penalty}\nmodel.compile(", 1)
    code = code.replace("XRDA(rate, weight_decay=5e-4)", optimizer).replace("TargetSparsity(0.95)", target)
    code = re.sub(r"print\(.*", f"{call}\nprint('parameters', small.count_params(), model.count_params())", code)
    after, before, accuracy = re.search(r"about ([\d,]+) of ([\d,]+) parameters, accuracy (\S+)", call).groups()
    measured, printed = run(f"import keras\nkeras.utils.set_random_seed(0)\n{code}", tmp_path)
    assert measured == pytest.approx(float(accuracy), abs=0.015)
    found = list(map(int, re.search(r"parameters (\d+) (\d+)", printed).groups()))
    assert found == [pytest.approx(int(after.replace(",", "")), rel=0.15), int(before.replace(",", ""))]


def test_two_commands():
    """Exactly two commands set up and run: the main job, and the tests that CI runs."""
    text = README.read_text()
    commands = re.findall(r"^python3 -m pip install -e .*$", text, re.M)
    assert len(commands) == 2
    assert commands[0].endswith("&& python3 examples/quickstart.py")
    assert commands[1].count("python3 -m pytest") == 2
    # Torch beside it, in the one line by which .ci/run finds the command.
    (torch,) = (line for line in text.splitlines() if "KERAS_BACKEND=torch" in line)
    assert re.fullmatch(r"python3 -m pip install torch==\S+ && KERAS_BACKEND=torch python3 -m pytest -n 2", torch)
