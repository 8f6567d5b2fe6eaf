"""LiteRT files in a process of their own, on this machine and on an emulated Arm processor."""

import platform
import sys

import numpy as np
import pytest
from helpers import needs_emulation, without_keras

from keras_rda.litert import aarch64
from keras_rda.litert.machines.aarch64_set_up import small_file

pytestmark = without_keras
X = np.array([[-1.0, 2.0]])
HERE = [sys.executable]


@pytest.fixture
def file(tmp_path):
    (tmp_path / "small.tflite").write_bytes(small_file())
    return tmp_path / "small.tflite"


@pytest.fixture
def x86(monkeypatch, tmp_path):
    """A machine of another kind, without the emulation."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("KERAS_RDA_AARCH64", str(tmp_path / "emulation"))
    return tmp_path / "emulation"


def stub(directory, at_crash):
    """A Python whose LiteRT runs `at_crash` instead of loading a file named crash.tflite."""
    script = directory / "stub.py"
    script.write_text(f"""
import os, runpy, signal, sys, time
from ai_edge_litert import interpreter
load = interpreter.Interpreter
def fake(model_path):
    if model_path.endswith("crash.tflite"):
        {at_crash}
    return load(model_path=model_path)
interpreter.Interpreter = fake
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
""")
    return [sys.executable, str(script)]


def test_outputs_times_and_refusals(file, tmp_path):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"no LiteRT file")
    jobs = [(file, X), (broken, X), (file, {"x": np.ones((3, 2))}), (file, {"z": X})]
    first, refused, second, misnamed = aarch64.run(jobs, repeats=3, command=HERE)
    assert first.outputs["y"].tolist() == [[0, 2]]
    assert second.outputs["y"].tolist() == [[1, 1]] * 3
    assert 0 < first.seconds < 1
    assert first.error is None
    assert refused.outputs is refused.seconds is None
    assert refused.error.startswith("ValueError: ")
    assert "\n" not in refused.error
    assert misnamed.error == "ValueError: the file takes the inputs ['x']; received ['z']"
    assert aarch64.run([], command=HERE) == []
    assert aarch64.run([(file, X)], command=HERE)[0].seconds is None


@pytest.mark.parametrize("repeats", [0, 2])
def test_a_crash_loses_one_job_only(file, tmp_path, repeats):
    crashing = tmp_path / "crash.tflite"
    crashing.write_bytes(file.read_bytes())
    command = stub(tmp_path, "os.kill(os.getpid(), signal.SIGSEGV)")
    before, crashed, after = aarch64.run([(file, X), (crashing, X), (file, 2 * X)], repeats, command=command)
    assert crashed == aarch64.Run(None, "the process crashed: SIGSEGV", None)
    assert before.outputs["y"].tolist() == [[0, 2]]
    assert after.outputs["y"].tolist() == [[0, 4]]
    assert (before.seconds is None) == (after.seconds is None) == (repeats == 0)


def test_a_job_that_does_not_end_is_stopped(file, tmp_path):
    endless = tmp_path / "crash.tflite"
    endless.write_bytes(file.read_bytes())
    stuck, after = aarch64.run([(endless, X), (file, X)], timeout=8, command=stub(tmp_path, "time.sleep(100)"))
    assert stuck.error == "not done when the process was stopped after 8 s"
    assert after.outputs["y"].tolist() == [[0, 2]]


def test_what_is_missing_is_said(file, x86):
    assert not aarch64.is_ready()
    with pytest.raises(RuntimeError, match=r"not set up in .*emulation: python3 -m keras_rda\.litert\.aarch64"):
        aarch64.run([(file, X)])
    with pytest.raises(FileNotFoundError, match="There is no file"):
        aarch64.run([(file.with_name("other.tflite"), X)], command=HERE)
    with pytest.raises(RuntimeError, match=r"did not start: it cannot be started"):
        aarch64.run([(file, X)], command=["/no/python"])
    with pytest.raises(RuntimeError, match=r"did not start: the process ended with code 1. ModuleNotFoundError"):
        aarch64.run([(file, X)], command=[sys.executable, "-S"])


def test_arm_machines_need_no_emulation(x86, monkeypatch, file):
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert aarch64.is_ready()
    lines = []
    aarch64.set_up(log=lines.append)
    assert lines == ["This is an Arm machine: its own Python runs the files."]
    assert aarch64.run([(file, X)])[0].outputs["y"].tolist() == [[0, 2]]


def fake_tools(directory, script):
    for tool in ("apt-get", "dpkg"):
        (directory / tool).write_text(f"#!/bin/sh\n{script}\n")
        (directory / tool).chmod(0o755)


def test_failed_set_up_leaves_nothing_and_says_why(x86, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    with pytest.raises(RuntimeError, match=r"needs Debian or Ubuntu, .*: there is no apt-get here"):
        aarch64.set_up()
    fake_tools(tmp_path / "bin", "echo 'E: first' >&2; echo 'E: Failed to fetch' >&2; exit 100")
    with pytest.raises(RuntimeError, match=r"^apt-get failed: E: Failed to fetch$"):
        aarch64.set_up(log=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
    x86.mkdir()
    (x86 / "something").touch()
    with pytest.raises(RuntimeError, match="holds something else: delete it or name another folder"):
        aarch64.set_up()
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match=r"^Cannot set up the folder .*file/below"):
        aarch64.set_up(tmp_path / "file/below")


def test_a_ready_folder_is_left_alone(x86):
    x86.mkdir()
    (x86 / "versions.txt").write_text("LiteRT 1, Python 2")
    with pytest.raises(RuntimeError, match=r"holds something else|there is no (apt-get|dpkg)"):  # a file of the user's
        aarch64.set_up()
    assert not aarch64.is_ready()
    (x86 / "qemu-aarch64-static").touch()
    lines = []
    aarch64.set_up(log=lines.append)
    assert lines == [f"{x86} is ready: LiteRT 1, Python 2"]
    assert aarch64.folder() == x86
    assert aarch64.is_ready()


@needs_emulation
def test_emulated_processor_runs_a_file(file, tmp_path):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"no LiteRT file")
    right, refused = aarch64.run([(file, X), (broken, X)], repeats=1)
    assert right.outputs["y"].tolist() == [[0, 2]]
    assert right.seconds > 0
    assert refused.error
