"""Run LiteRT files in a Python process of their own, so that a crash loses one job only (`runner` is what it runs)."""

import dataclasses
import json
import pathlib
import signal
import statistics
import subprocess
import tempfile

import numpy as np

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
    def seconds(self):
        """The median of the times; None without."""
        return statistics.median(self.times) if self.times else None


def run(jobs, repeats, timeout, command, script=(RUNNER,)):
    """Run LiteRT files with the Python that a command line starts; arguments and errors as for `aarch64.run`.

    `script` is what it runs, a path and first arguments; the last is the folder that `runner` describes.
    """
    jobs = [(pathlib.Path(path).absolute(), inputs) for path, inputs in jobs]
    for path, _ in jobs:
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {str(path)!r}.")
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        entries = []
        for number, (path, inputs) in enumerate(jobs):
            names = list(inputs) if isinstance(inputs, dict) else None
            np.savez(directory / f"{number}.in.npz", *([inputs] if names is None else inputs.values()))
            entries.append({"id": number, "path": str(path), "inputs": names})
        crashes = {}
        while entries:
            (directory / "jobs.json").write_text(json.dumps({"repeats": repeats, "jobs": entries}))
            end = _run_process(directory, timeout, [*command, *map(str, script)])
            if end is None:
                break
            # The job at work ended the process. Those before it have their results, and run again only to be timed.
            crashes[int((directory / "current").read_text())] = end
            entries = [
                entry
                for entry in entries
                if entry["id"] not in crashes and (repeats or not (directory / f"{entry['id']}.json").exists())
            ]
        file = directory / "times.json"
        times = json.loads(file.read_text()) if file.exists() else {}
        return [
            Run(None, crashes[number], None) if number in crashes else _result(directory, number, times)
            for number in range(len(jobs))
        ]


def _result(directory, number, times):
    result = json.loads((directory / f"{number}.json").read_text())
    if result["error"]:
        return Run(None, result["error"], None)
    with np.load(directory / f"{number}.out.npz") as arrays:
        outputs = dict(zip(result["outputs"], arrays.values(), strict=True))
    return Run(outputs, None, times.get(str(number)), result["arena"])


def _run_process(directory, timeout, command):
    """Run the jobs of `directory` in a new process; return None, or a line on how it ended before they were done."""
    (directory / "current").unlink(missing_ok=True)
    try:
        process = subprocess.run([*command, str(directory)], timeout=timeout, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        end, said = f"not done when the process was stopped after {timeout:g} s", ""
    except OSError as error:
        end, said = "it cannot be started", str(error)
    else:
        if process.returncode == 0:
            return None
        end, said = f"the process ended with code {process.returncode}", process.stderr
        if process.returncode < 0:
            end = f"the process crashed: {signal.Signals(-process.returncode).name}"
    if not (directory / "current").exists():
        raise RuntimeError(f"The Python that runs LiteRT files did not start: {end}. {last_line(said)}")
    return end


def last_line(text):
    return (text.strip().splitlines() or [""])[-1]
