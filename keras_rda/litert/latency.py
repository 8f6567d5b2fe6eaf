"""How long LiteRT files take, here or on another machine, measured in turns."""

import dataclasses
import time
from collections.abc import Callable, Mapping

import numpy as np

from keras_rda.litert.calls import entries
from keras_rda.litert.machines import MACHINES, check_machine, here
from keras_rda.types import Machine, Path


@dataclasses.dataclass(frozen=True)
class Latency:
    """How long one invocation takes, with a batch of one if the file takes any.

    Attributes:
        name: The file's name in `benchmark`.
        median: Seconds.
        lower: The first quartile, seconds.
        upper: The third.
        rounds: How many invocations were timed.
    """

    name: str
    median: float
    lower: float
    upper: float
    rounds: int


def benchmark(
    files: Mapping[str, Path],
    seconds: float = 1.0,
    progress: Callable[[float], object] | None = None,
    machine: Machine | None = None,
) -> list[Latency]:
    """Time LiteRT files round by round, each once a round, so that what else the machine does falls on all alike.

    Args:
        files: Dict of name → path.
        seconds: About how long to measure each file, in 5 to 1,000 rounds.
        progress: Called with the share that is done, between 0 and 1; not where a machine is given.
        machine: Where to run the files, if not here: `"aarch64"`, `"wasm"` or `"micro"` (see `export`).

    Returns:
        List of `Latency` in the order of `files`.

    Raises:
        TypeError: `files` is no dict.
        FileNotFoundError, ValueError, RuntimeError: as for `predict`, or the machine is not set up, or does not run a
            file.
    """
    if not isinstance(files, Mapping):
        raise TypeError(
            f"benchmark: files must be a dict of name → path, such as {{'dense': path}}; received {files!r}."
        )
    if machine is not None:
        check_machine(machine)
    models = {path: here.read(path) for path in files.values()}
    if machine is not None:
        return _on(machine, files, models, seconds)
    for path, model in models.items():
        here.check_runs(path, model)
    return in_turns({name: here.invocation(path) for name, path in files.items()}, seconds, progress)


def in_turns(invocations, seconds, progress=None):
    """`benchmark` of functions: a dict of name → what runs a file once."""
    functions = list(invocations.values())
    first = sum(_timed(function) for _ in range(2) for function in functions) / 2  # the first round warms up
    rounds = int(np.clip(seconds * len(functions) / max(first, 1e-9), 5, 1000))
    times = np.empty((rounds, len(functions)))
    for number in range(rounds):
        for index in np.roll(np.arange(len(functions)), number):  # no file always follows the same other
            times[number, index] = _timed(functions[index])
        if progress is not None:
            progress((number + 1) / rounds)
    return _latencies(invocations, times)


def _on(machine, files, models, seconds):
    """`benchmark` on a machine."""
    jobs = [
        (path, entry.random(*entry.sizes()[0], 0)) for path in files.values() for entry in entries(models[path])[:1]
    ]

    def times(rounds):
        runs = MACHINES[machine].run(jobs, rounds)
        for path, run in zip(files.values(), runs, strict=True):
            if run.error:
                raise RuntimeError(f"{str(path)!r} does not run on the machine {machine!r}: {run.error}")
        return np.array([run.times for run in runs]).T

    first = np.median(times(3), axis=0).sum()
    return _latencies(files, times(int(np.clip(seconds * len(jobs) / max(first, 1e-9), 5, 1000))))


def _latencies(names, times):
    """`Latency` of each name, by an array of the seconds (rounds, files)."""
    quartiles = np.percentile(times, [50, 25, 75], axis=0).T
    return [
        Latency(name, float(median), float(lower), float(upper), len(times))
        for name, (median, lower, upper) in zip(names, quartiles, strict=True)
    ]


def _timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
