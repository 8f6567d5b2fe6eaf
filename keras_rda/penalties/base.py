"""The base class of penalties ψ: what an optimizer adds to the loss to make weights exactly zero."""

import math
from collections.abc import Sequence
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_rda.checks import check_number, is_number
from keras_rda.types import Schedulable, Tensor


class Penalty:
    """Base class: a non-negative `strength` λ times a function with its minimum at zero.

    A subclass defines `value` and `prox`, both reading `self.strength`, and registers itself with
    `keras.saving.register_keras_serializable` to be saved with a model. `XRDA` and `TargetSparsity` need `magnitude`
    too.

    An optimizer holds the penalty object itself and saves its strength with its own state, so λ can be changed while
    training: `self.model.optimizer.penalty.strength = 1e-5` in a callback. (At the end of a batch, reach it this way:
    Keras on JAX keeps the state of a running epoch elsewhere until `self.model` is asked.) Optimizers that are given
    the same object share λ.

    Args:
        strength: λ, a finite number ≥ 0, or a `keras.optimizers.schedules.LearningRateSchedule` of the optimizer's
            updates. (Under gradient accumulation Keras counts batches for the learning rate's schedule instead.)

    Examples:
        >>> @keras.saving.register_keras_serializable(package="mine")
        ... class L0(keras_rda.Penalty):
        ...     def value(self, w):
        ...         return self.strength * keras.ops.sum(keras.ops.cast(w != 0, w.dtype))
        ...
        ...     def prox(self, w, step):  # hard thresholding
        ...         return keras.ops.where(self.magnitude(w) > self.strength * step, w, 0.0)
        ...
        ...     def magnitude(self, w):
        ...         return keras.ops.square(w) / 2
        >>> optimizer = keras_rda.MRDA(1.0, L0(1e-3))
    """

    shared = None  # the `SharedGroups` of a penalty whose groups lie in several variables
    proportional = True  # whether all of ψ is proportional to λ, so that λ can be scaled for a kernel by way of `step`

    def __init__(self, strength: Schedulable) -> None:
        self._schedule = strength if isinstance(strength, keras.optimizers.schedules.LearningRateSchedule) else None
        initial = float(self._schedule(0)) if self._schedule else strength
        self._strength = keras.Variable(
            check_strength(self, "the strength λ", initial, "1e-6"),
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            name="penalty_strength",
        )

    @property
    def strength(self) -> keras.Variable:
        """λ as a scalar float32 `keras.Variable`; `penalty.strength.numpy()` reads it, under `tf.distribute` too."""
        return self._strength

    @strength.setter
    def strength(self, strength: float) -> None:
        if self.scheduled:
            raise TypeError(
                f"The strength of this {type(self).__name__} follows the schedule {type(self._schedule).__name__}, so "
                f"it cannot be set to {strength!r}. Create the penalty with a number to be able to set it."
            )
        self._strength.assign(check_strength(self, "the strength λ", strength, "1e-6"))

    @property
    def scheduled(self) -> bool:
        """Whether the strength follows a schedule, and so cannot be set."""
        return self._schedule is not None

    def follow_schedule(self, iterations: Tensor) -> None:
        """Take the strength of a schedule at `iterations`, the optimizer's counter; without one, do nothing.

        A value of the schedule below zero counts as zero: a negative threshold would push weights away from zero.
        """
        if self._schedule is not None:
            self._strength.assign(ops.maximum(ops.cast(self._schedule(iterations), "float32"), 0.0))

    def for_variable(self, variable: keras.Variable) -> Any:
        """The penalty as it applies to `variable`: this object, unless a subclass depends on the kernel's layout.

        Another object needs this one's methods and `shared = None`; None lets the variable take the step without
        penalty. Called by `for_variables`.
        """
        return self

    def for_variables(self, variables: Sequence[keras.Variable]) -> list[Any]:
        """The penalty as it applies to each of `variables`, the kernels that an optimizer penalises.

        Called by `Optimizer.build`.
        """
        return [self.for_variable(variable) for variable in variables]

    def value(self, w: Tensor) -> Tensor:
        """ψ(w), a scalar tensor, for one variable's weights `w`."""
        raise NotImplementedError(f"{type(self).__name__} must define value(w).")

    def prox(self, w: Tensor, step: Tensor) -> Tensor:
        """`argmin_v step·ψ(v) + ½‖v − w‖²`, a tensor of the shape of `w`; `step` is a positive scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define prox(w, step).")

    @property
    def has_magnitude(self) -> bool:
        """Whether the class defines `magnitude`."""
        return type(self).magnitude is not Penalty.magnitude

    def units(self, w: Tensor) -> int:
        """How many parts of `w` become zero each by itself: its entries, unless a subclass has groups."""
        return math.prod(w.shape)

    def magnitude(self, w: Tensor) -> Tensor:
        """What the penalty compares with its threshold, a tensor that broadcasts against `w`: |w| for ℓ1.

        `prox(w, step)` is zero exactly where it is at most λ·step.

        `TargetSparsity` steers by it; `XRDA` reweights by it, and then calls `prox` with a `step` of the shape of `w`.
        A penalty without it goes with every other optimizer, at a λ of your choice.
        """
        raise NotImplementedError(f"{type(self).__name__} must define magnitude(w).")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as Keras saves them; a subclass with more of its own adds them.

        λ as it is now, or its schedule.
        """
        # By way of the shortest decimal of the float32: 1e-6, not 9.999999974752427e-07.
        strength = self._schedule or float(str(np.float32(self._strength.numpy())))
        return {"strength": keras.saving.serialize_keras_object(strength)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The inverse of `get_config`."""
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


def check_strength(owner, name, number, example):
    # The kind before the range: a tensor has no truth value inside a compiled function.
    if not is_number(number):
        raise TypeError(
            f"{type(owner).__name__}: {name} must be a number ≥ 0, for example {example}; received {number!r} of type "
            f"{type(number).__name__}."
        )
    hint = "Typical values: 1e-8 to 1e-4."
    return check_number(owner, name, number, "finite and ≥ 0", lambda strength: strength >= 0, hint)
