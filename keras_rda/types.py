"""What public arguments may be, for type checkers."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeAlias

import keras
import numpy as np

Path: TypeAlias = str | os.PathLike[str]
Schedulable: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule
Rate: TypeAlias = Schedulable | Callable[[], float]
Quantization: TypeAlias = Literal["float16", "dynamic", "int8"]
Machine: TypeAlias = Literal["aarch64", "wasm", "micro"]
Data: TypeAlias = np.ndarray | Mapping[str, np.ndarray] | Iterable
