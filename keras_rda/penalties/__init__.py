"""Penalties ψ: what an optimizer adds to the loss to make weights exactly zero."""

import numbers
from typing import TypeAlias

import keras

from keras_rda.penalties.base import Penalty
from keras_rda.penalties.group_l1 import GroupL1
from keras_rda.penalties.l1 import L1, L1L2
from keras_rda.types import Schedulable

__all__ = ["L1", "L1L2", "GroupL1", "Penalty", "Strength", "get"]

Strength: TypeAlias = Schedulable | Penalty
"""What an optimizer's `penalty` may be: λ of `L1`, a schedule of it, or a `Penalty`."""


def get(penalty):
    """Return the `Penalty` that `penalty` stands for: a number is λ of `L1`."""
    if isinstance(penalty, Penalty):
        return penalty
    if isinstance(penalty, (numbers.Real, keras.optimizers.schedules.LearningRateSchedule)):
        return L1(penalty)
    raise TypeError(
        f"penalty must be a number λ ≥ 0, a schedule of λ, or a keras_rda Penalty; received {penalty!r} of type "
        f"{type(penalty).__name__}. For example: penalty=1e-6 or penalty=keras_rda.L1(1e-6)."
    )
