"""The examples run, in a short form, as a user runs them."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest
from conftest import BACKEND, small_network

import keras_rda

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
def test_quickstart_refuses():
    result = run("quickstart.py", "--epochs", 0, check=False)
    assert result.returncode == 2
    assert "--epochs must be at least 1; received 0" in result.stderr


def test_step_time(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    step_time = importlib.import_module("step_time")
    model = small_network()
    seconds, slots = step_time.measure(model, rounds=2)
    assert set(seconds) == {*step_time.OPTIMIZERS, "copy"}
    assert all(len(times) == 2 and min(times) > 0 for times in seconds.values())
    size = 4 * sum(row.size for row in keras_rda.summary(model).rows)
    assert slots["SGD, momentum"] <= slots["MRDA"] < slots["MRDA, center initial"]
    assert slots["MRDA, center initial"] >= 2 * size > 2 * slots["ProxSGD"]
    table, bandwidth = step_time.report(model, seconds, slots)
    assert table.row_count == len(step_time.OPTIMIZERS)
    assert bandwidth > 0
