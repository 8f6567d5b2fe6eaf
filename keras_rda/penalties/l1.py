"""Penalties of single weights."""

import keras
from keras import ops

from keras_rda.penalties.base import Penalty, check_strength
from keras_rda.proximal import soft_threshold
from keras_rda.types import Schedulable


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

    def magnitude(self, w):
        return ops.abs(w)


@keras.saving.register_keras_serializable(package="keras_rda")
class L1L2(L1):
    """ψ(w) = λ‖w‖₁ + (μ/2)‖w‖₂², the elastic net: zeros as with `L1`, and smaller weights.

    Unlike `weight_decay`, whose gradient enters the sums of dual averaging, μ acts in the proximal map. `XRDA`
    reweights both terms. `TargetSparsity` steers λ alone, and so the whole model only.

    Args:
        strength: λ, a finite number ≥ 0, or a `keras.optimizers.schedules.LearningRateSchedule`.
        l2: μ, a finite number ≥ 0.

    Reference: Zou and Hastie, J. R. Statist. Soc. B 67 (2005).
    """

    proportional = False

    def __init__(self, strength: Schedulable, l2: float) -> None:
        super().__init__(strength)
        self.l2 = check_strength(self, "l2 (μ)", l2, "1e-4")

    def value(self, w):
        return ops.add(super().value(w), 0.5 * self.l2 * ops.sum(ops.square(w)))

    def prox(self, w, step):
        return ops.divide(super().prox(w, step), ops.add(1.0, ops.multiply(self.l2, step)))

    def get_config(self):
        return {**super().get_config(), "l2": self.l2}
