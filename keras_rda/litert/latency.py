"""How long LiteRT files take on this machine, measured in turns."""

import dataclasses
import time
from collections.abc import Callable, Mapping

import numpy as np

from keras_rda.litert import verification
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
    invocations = [_invocation(path) for path in files.values()]
    first = sum(_timed(invocation) for _ in range(2) for invocation in invocations) / 2  # the first round warms up
    rounds = int(np.clip(seconds * len(files) / max(first, 1e-9), 5, 1000))
    times = np.empty((rounds, len(files)))
    for number in range(rounds):
        for index in np.roll(np.arange(len(files)), number):  # no file always follows the same other
            times[number, index] = _timed(invocations[index])
        if progress is not None:
            progress((number + 1) / rounds)
    quartiles = np.percentile(times, [50, 25, 75], axis=0).T
    return [
        Latency(name, float(median), float(lower), float(upper), rounds)
        for name, (median, lower, upper) in zip(files, quartiles, strict=True)
    ]


def _invocation(path):
    interpreter = verification.interpreter(path)
    random = np.random.default_rng(0)
    details = interpreter.get_input_details()
    shapes = [[1 if size == -1 else int(size) for size in detail["shape_signature"]] for detail in details]
    for detail, shape in zip(details, shapes, strict=True):
        interpreter.resize_tensor_input(detail["index"], shape)
    interpreter.allocate_tensors()
    for detail, shape in zip(details, shapes, strict=True):
        draw = random.uniform(-1, 1, shape) if np.issubdtype(detail["dtype"], np.floating) else np.zeros(shape)
        interpreter.set_tensor(detail["index"], draw.astype(detail["dtype"]))
    return interpreter.invoke


def _timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
