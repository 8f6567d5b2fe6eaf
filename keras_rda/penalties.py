"""Penalties ψ: what an optimizer adds to the loss to make weights exactly zero."""

import math
import numbers

import keras
import numpy as np
from keras import ops

from keras_rda.proximal import soft_threshold


class Penalty:
    """Base class: a non-negative `strength` λ times a function with its minimum at zero.

    A subclass defines `value` and `prox`, both reading `self.strength`, and registers itself with
    `keras.saving.register_keras_serializable` to be saved with a model.

    An optimizer holds the penalty object itself and saves its strength with its own state, so λ can be changed while
    training: `self.model.optimizer.penalty.strength = 1e-5` in a callback. (At the end of a batch, reach it this way:
    Keras on JAX keeps the state of a running epoch elsewhere until `self.model` is asked.) Optimizers that are given
    the same object share λ.

    Args:
        strength: λ, a finite number ≥ 0, or a `keras.optimizers.schedules.LearningRateSchedule` of the optimizer's
            iterations.
    """

    def __init__(self, strength):
        self._schedule = strength if isinstance(strength, keras.optimizers.schedules.LearningRateSchedule) else None
        initial = float(strength(0)) if self._schedule else strength
        self._strength = keras.Variable(
            _check_strength(type(self).__name__, initial),
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            name="penalty_strength",
        )

    @property
    def strength(self):
        """λ as a scalar float32 `keras.Variable`; `float(penalty.strength)` reads it."""
        return self._strength

    @strength.setter
    def strength(self, strength):
        if self._schedule is not None:
            raise TypeError(
                f"The strength of this {type(self).__name__} follows the schedule {type(self._schedule).__name__}, so "
                f"it cannot be set to {strength!r}. Create the penalty with a number to be able to set it."
            )
        self._strength.assign(_check_strength(type(self).__name__, strength))

    def follow_schedule(self, iterations):
        """Take the strength of a schedule at `iterations`, the optimizer's counter; without one, do nothing.

        A value of the schedule below zero counts as zero: a negative threshold would push weights away from zero.
        """
        if self._schedule is not None:
            self._strength.assign(ops.maximum(ops.cast(self._schedule(iterations), "float32"), 0.0))

    def value(self, w):
        """ψ(w), a scalar tensor, for one variable's weights `w`."""
        raise NotImplementedError(f"{type(self).__name__} must define value(w).")

    def prox(self, w, step):
        """`argmin_v step·ψ(v) + ½‖v − w‖²`, a tensor of the shape of `w`; `step` is a positive scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define prox(w, step).")

    def get_config(self):
        # By way of the shortest decimal of the float32: 1e-6, not 9.999999974752427e-07.
        strength = self._schedule or float(str(np.float32(self._strength.numpy())))
        return {"strength": keras.saving.serialize_keras_object(strength)}

    @classmethod
    def from_config(cls, config):
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


@keras.saving.register_keras_serializable(package="keras_rda")
class L1(Penalty):
    """ψ(w) = λ‖w‖₁, the penalty of the paper (eq. 18).

    Args:
        strength: λ, a finite number ≥ 0, or a `keras.optimizers.schedules.LearningRateSchedule`.
    """

    def value(self, w):
        return ops.multiply(self.strength, ops.sum(ops.abs(w)))

    def prox(self, w, step):
        return soft_threshold(w, ops.multiply(self.strength, step))


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


_NOT_KERNELS = frozenset({"bias", "gamma", "beta", "scale", "alpha"})


def variable_path(variable):
    """The path of a `keras.Variable`, or the name of a backend's own variable, which has no path."""
    return getattr(variable, "path", None) or variable.name.split(":")[0]


def is_kernel(variable):
    """Whether `variable` is penalised unless excluded: rank ≥ 2, no embedding table, bias or normalisation weight.

    A variable does not know its layer, so this goes by its name: not with "embedding" in it, nor one of `bias`,
    `gamma`, `beta`, `scale` (rank-2 biases of GRU and attention, normalisation over several axes) and `alpha` (PReLU).
    """
    name = variable_path(variable).split("/")[-1]
    return len(variable.shape) >= 2 and name not in _NOT_KERNELS and "embedding" not in name


def _check_strength(name, strength):
    # isinstance before the comparison: a tensor has no truth value inside a compiled function.
    if isinstance(strength, bool) or not isinstance(strength, numbers.Real):
        raise TypeError(
            f"{name}: the strength λ must be a number ≥ 0, for example 1e-6; received {strength!r} of type "
            f"{type(strength).__name__}."
        )
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(
            f"{name}: the strength λ must be finite and ≥ 0; received {strength!r}. Typical values: 1e-8 to 1e-4."
        )
    return float(strength)
