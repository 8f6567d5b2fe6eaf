"""What public arguments may be, for type checkers."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import keras
import numpy as np

Path: TypeAlias = str | os.PathLike[str]
"""A file's name, as text or as a `pathlib.Path`."""

Schedulable: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule
"""A number, or a schedule of it."""

Rate: TypeAlias = Schedulable | Callable[[], float]
"""A learning rate as Keras' own optimizers take it."""

Quantization: TypeAlias = Literal["float16", "dynamic", "int8"]
"""How a LiteRT file stores weights in fewer bits; see `export`."""

Machine: TypeAlias = Literal["aarch64", "wasm", "micro"]
"""Where else LiteRT files run; see `export`."""

Data: TypeAlias = np.ndarray | Mapping[str, np.ndarray] | Iterable
"""Samples: an array, a dict of input name → array, or an iterable of such."""

History: TypeAlias = keras.callbacks.History | Mapping[str, Sequence[float]]
"""What `model.fit` returns, or its dict of lists, a number an epoch."""

Jobs: TypeAlias = Iterable[tuple[Path, np.ndarray | Mapping[str, np.ndarray]]]
"""LiteRT files to run elsewhere, each with its inputs: an array, or a dict of input name → array."""

Tensor: TypeAlias = Any
"""A tensor of the backend, or a symbolic one where a step is traced."""
