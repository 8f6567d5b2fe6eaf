"""Run LiteRT files in a Python process of their own, so that a crash loses one job only (`runner` is what it runs)."""

import dataclasses
import json
import pathlib
import re
import signal
import statistics
import subprocess
import tempfile

import numpy as np

from keras_rda.litert import flatbuffer
from keras_rda.litert.machines import interface
from keras_rda.output import one_line

RUNNER = pathlib.Path(__file__).with_name("runner.py")


@dataclasses.dataclass(frozen=True)
class Run:
    """What became of one job.

    Attributes:
        outputs: Output name → array, of LiteRT's default delegate; None after an error.
        error: One line: why the file was refused, or how its process ended; None if it ran.
        times: Seconds of one invocation in each round; None if no times were asked for, or after an error.
        arena: Bytes of working memory, where a runtime has an arena of its own: see `micro`.
    """

    outputs: dict | None
    error: str | None
    times: list[float] | None
    arena: int | None = None

    @property
    def seconds(self) -> float | None:
        """The median of the times; None without."""
        return statistics.median(self.times) if self.times else None


def ratio(run, other):
    """Times of another `Run` over this one's, the median of rounds in turns; None for itself, or without times."""
    if run is other or not run.times or not other.times:
        return None
    ratios = [theirs / ours for theirs, ours in zip(other.times, run.times, strict=True) if ours]
    return statistics.median(ratios) if ratios else None


def run(jobs, repeats, timeout, command, script=(RUNNER,), write=None, read=None):
    """Run LiteRT files with the Python that a command line starts; arguments and errors as for `aarch64.run`.

    `script` is what it runs, a path and first arguments; the last is the folder that `runner` describes. `write` and
    `read`, as for `work`, are by default those of a script that knows inputs and outputs by the names in the file.
    """
    runner = "The Python that runs LiteRT files"
    return work(jobs, repeats, timeout, [*command, *script], write or _write, read or load, runner)


def work(jobs, repeats, timeout, command, write, read, runner, advice=""):
    """Let processes run LiteRT files, one after the other: a job that ends its process fails, the others go on.

    Args:
        jobs, repeats, timeout: As for `aarch64.run`.
        command: The command line of a process; its last argument is a folder with the jobs, as in `runner`.
        write: Called with that folder, a job's number, its path and its inputs: puts them there; returns what stands of
            the job in `jobs.json`, a dict. A `ValueError` is the job's error.
        read: Called with the folder, what `write` returned and what the process says in the job's `.json`: returns its
            outputs, a dict of name → array.
        runner: What runs the files, in words.
        advice: What to do if it does not start.

    Returns:
        A list of `Run`, one for each job.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: the process does not start.
    """
    jobs = [(pathlib.Path(path).absolute(), inputs) for path, inputs in jobs]
    for path, _ in jobs:
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {str(path)!r}.")
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        entries, errors = {}, {}
        for number, (path, inputs) in enumerate(jobs):
            try:
                entries[number] = {"id": number, **write(directory, number, path, inputs)}
            except ValueError as error:
                errors[number] = one_line(f"ValueError: {error}")
        waiting = list(entries.values())
        while waiting:
            (directory / "jobs.json").write_text(json.dumps({"repeats": repeats, "jobs": waiting}))
            end = _run_process(directory, timeout, command)
            if end is None:
                break
            if not (directory / "current").exists():
                raise RuntimeError(f"{runner} did not start: {end.rstrip('.')}. {advice}".rstrip())
            # The job at work ended the process. Those before it have their results, and run again only to be timed.
            errors[int((directory / "current").read_text())] = end
            waiting = [
                entry
                for number, entry in entries.items()
                if number not in errors and (repeats or not (directory / f"{number}.json").exists())
            ]
        file = directory / "times.json"
        times = json.loads(file.read_text()) if file.exists() else {}
        return [
            Run(None, errors[number], None)
            if number in errors
            else _result(directory, entries[number], read, times.get(str(number)))
            for number in range(len(jobs))
        ]


def _result(directory, entry, read, times):
    result = json.loads((directory / f"{entry['id']}.json").read_text())
    if result["error"]:
        return Run(None, one_line(result["error"]), None)
    return Run(read(directory, entry, result), None, times, result.get("arena"))


def _run_process(directory, timeout, command):
    """Run the jobs of `directory` in a new process; return None, or a line on how it ended before they were done."""
    (directory / "current").unlink(missing_ok=True)
    try:
        process = subprocess.run(
            [*map(str, command), str(directory)], timeout=timeout, capture_output=True, text=True, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return f"not done when the process was stopped after {timeout:g} s"
    except OSError as error:
        return f"it cannot be started. {error}"
    if process.returncode < 0:
        return f"the process crashed: {signal.Signals(-process.returncode).name}"
    if process.returncode > 0:
        return f"the process ended with code {process.returncode}. {telling_line(process.stderr)}"
    return None


def _write(directory, number, path, inputs):
    _, takes, _ = interface.of(flatbuffer.read(path))
    return save(directory, number, path, interface.arrays(takes, inputs))


def save(directory, number, path, inputs):
    """Put a job there for `runner`, its inputs a dict of name → array; return its entry."""
    np.savez(directory / f"{number}.in.npz", *inputs.values())
    return {"path": str(path), "inputs": list(inputs)}


def load(directory, entry, result):
    """A job's outputs, a dict of name → array."""
    with np.load(directory / f"{entry['id']}.out.npz") as arrays:
        return dict(zip(result["outputs"], arrays.values(), strict=True))


def telling_line(text):
    """The line of a standard error that names the error: below it Node.js writes a trace and its version."""
    lines = text.strip().splitlines() or [""]
    return ([line for line in lines if re.match(r"[\w.]*Error\b", line)] or lines)[-1]
