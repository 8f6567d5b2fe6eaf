"""The examples run, in a short form, as a user runs them."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from conftest import BACKEND

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def run(script, *arguments, check=True):
    return subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, arguments)],
        check=check,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "140"},
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the quickstart runs on TensorFlow whatever the tests run on")
def test_quickstart(tmp_path):
    output = run("quickstart.py", "--epochs", 2, "--output", tmp_path).stdout
    rows = {
        match[1]: [float(cell.replace(",", "")) for cell in match[2].split("│")]
        for match in re.finditer(r"│ (SGD|MRDA) +│(.+)│\n", output)
    }
    assert list(rows) == ["SGD", "MRDA"]
    for top1, litert_top1, sigma, dense, sparse, ratio, difference in rows.values():
        assert top1 == litert_top1
        assert 0 <= sigma < 1
        assert sparse / dense == pytest.approx(ratio, abs=1e-3)
        assert difference < 1e-3
    assert rows["MRDA"][2] > 0.3
    assert {file.name for file in tmp_path.iterdir()} == {"digits-sgd.tflite", "digits-mrda.tflite", "digits.png"}
    assert (tmp_path / "digits-mrda.tflite").stat().st_size == rows["MRDA"][4]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the quickstart runs on TensorFlow whatever the tests run on")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--epochs", "0"], "--epochs must be at least 1"), (["--dataset", "mnits"], "invalid choice: 'mnits'")],
)
def test_quickstart_refuses(arguments, message):
    result = run("quickstart.py", *arguments, check=False)
    assert result.returncode == 2
    assert message in result.stderr


def test_step_time():
    output = run("benchmarks/step_time.py", "--model", "MobileNet", "--rounds", 1).stdout
    assert "4.2 M trainable parameters" in output
    for name in ("SGD, momentum", "MRDA", "MRDA, center initial", "SDA", "ProxSGD", "SqrtProxSGD", "Adam", "Ftrl"):
        assert re.search(rf"│ {name} +│ +\d+\.\d\d │", output)
    assert re.search(r"Memory bandwidth of a copy: \d+\.\d GB/s", output)
