"""How long LiteRT files take on this machine, measured in turns."""

import dataclasses
import time
from collections.abc import Callable, Mapping

import numpy as np

from keras_rda.litert.machines import here
from keras_rda.types import Path


@dataclasses.dataclass(frozen=True)
class Latency:
    """How long one invocation with a batch of one takes.

    Attributes:
        name: The file's name in `benchmark`.
        median: Seconds.
        lower, upper: Quartiles, seconds.
        rounds: How many invocations were timed.
    """

    name: str
    median: float
    lower: float
    upper: float
    rounds: int


def benchmark(
    files: Mapping[str, Path], seconds: float = 1.0, progress: Callable[[float], object] | None = None
) -> list[Latency]:
    """Time LiteRT files round by round, each once a round, so that what else the machine does falls on all alike.

    Args:
        files: Dict of name → path.
        seconds: About how long to measure each file, in 5 to 1,000 rounds.
        progress: Called with the share that is done, between 0 and 1.

    Returns:
        List of `Latency` in the order of `files`.

    Raises:
        TypeError: `files` is no dict.
        FileNotFoundError, ValueError, RuntimeError: as for `predict`.
    """
    if not isinstance(files, Mapping):
        raise TypeError(
            f"benchmark: files must be a dict of name → path, such as {{'dense': path}}; received {files!r}."
        )
    for path in files.values():
        here.read(path)
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
    quartiles = np.percentile(times, [50, 25, 75], axis=0).T
    return [
        Latency(name, float(median), float(lower), float(upper), rounds)
        for name, (median, lower, upper) in zip(invocations, quartiles, strict=True)
    ]


def _timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
