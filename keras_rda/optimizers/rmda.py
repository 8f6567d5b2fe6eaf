from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_rda import penalties
from keras_rda.checks import check_number, is_positive_integer
from keras_rda.optimizers.dual_averaging import DualAveraging
from keras_rda.penalties import Strength
from keras_rda.types import Rate


class Stage(NamedTuple):
    """The scalars of a variable's update: `t`, `A_t` and `T_t = t` of the stage, and whether the stage is the last."""

    t: Any
    weight_sum: Any
    time: Any
    is_last: Any


@keras.saving.register_keras_serializable(package="keras_rda")
class RMDA(DualAveraging):
    """Regularised modernised dual averaging: iterate averaging and restarts, for structured sparsity.

    Update rule, with `t` counting the updates of a stage and `w_0` the weights at its beginning:

    ```
    a_t = learning_rate·√t
    S_t = S_{t-1} + a_t·g_t ;  A_t = A_{t-1} + a_t
    ŵ_t = prox_{(A_t / √t)·ψ}(w_0 − S_t / √t)
    w_{t+1} = (1 − c_t)·w_t + c_t·ŵ_t
    ```

    A stage ends where the learning rate drops: the sums start again at zero from `w_0 = w_t`. `c_t = averaging`, and
    `min(averaging·√t, 1)` in the last stage: the iterates have exact zeros once it has reached 1, after
    `1 / averaging²` updates of that stage.

    Slots: `gradient_sum` and `center`.

    Args:
        learning_rate: η. Positive float, schedule, or callable without arguments. Defaults to 0.1.
        penalty: λ of the ℓ1 penalty, a schedule of λ, or a `keras_rda.Penalty` such as `GroupL1`. Defaults to 1e-6,
            which makes hardly any zeros in a short run: `TargetSparsity` finds the λ that does.
        averaging: c, above 0 and at most 1. Defaults to 0.1.
        restarts: Increasing numbers of updates after which a stage ends. None, the default, takes the places where a
            `keras.optimizers.schedules.PiecewiseConstantDecay` changes the rate; other rates have one stage.
        **kwargs: Arguments of `keras.optimizers.Optimizer`; see `PenalizedOptimizer`.

    Raises:
        TypeError: `penalty` is neither a number nor a `Penalty`.
        ValueError: an argument is out of its range.

    Reference: Huang and Lee, Training Structured Neural Networks Through Manifold Identification and Variance
    Reduction, ICLR 2022, Algorithm 1.
    """

    starts_from_weights = True
    weighs_time = False

    def __init__(
        self,
        learning_rate: Rate = 0.1,
        penalty: Strength = 1e-6,
        averaging: float = 0.1,
        restarts: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, penalties.get(penalty), "initial", 0.5, **kwargs)
        self.averaging = check_number(
            self,
            "averaging (c)",
            averaging,
            "a number above 0 and at most 1, for example 0.1",
            lambda c: 0 < c <= 1,
        )
        self.restarts = _check_restarts(restarts)
        if restarts is None and isinstance(learning_rate, keras.optimizers.schedules.PiecewiseConstantDecay):
            # The rate of update t is the schedule's at t·(batches an update) − 1, which changes where that exceeds the
            # boundary: Keras' schedules count batches.
            batches = self.gradient_accumulation_steps or 1
            drops = {(int(boundary) + 1) // batches for boundary in learning_rate.boundaries}
            self.restarts = _check_restarts(sorted(drops - {0}))

    def stage(self, steps):
        start = ops.zeros_like(steps)
        for restart in self.restarts:
            start = ops.where(steps > restart, ops.cast(restart, steps.dtype), start)
        return steps - start

    def gradient_weight(self, rate, t):
        return rate * ops.sqrt(t)

    def now(self, position):
        is_last = self._steps[position] > (self.restarts[-1] if self.restarts else 0)
        return Stage(*super().now(position), is_last)

    def step(self, weights, gradient, rate, now, slots, prox):
        slots = self.add_to_sums(weights, self.gradient_weight(rate, now.t) * gradient, now, slots)
        u, threshold = self.prox_point(now, slots)
        growing = ops.minimum(self.averaging * ops.sqrt(now.t), 1.0)
        c = ops.where(now.is_last, growing, self.averaging)
        # Not w + c·(ŵ − w), which is not exactly ŵ at c = 1.
        return (1.0 - c) * weights + c * prox(u, threshold), slots

    def sparse_weights(self, kernels):
        # ŵ has zeros before the iterates have them.
        points = [self.present_prox_point(kernel) for kernel in kernels]
        minimizers = self.proximal_points(kernels, points)
        return [
            ops.where(ops.any(step > 0), minimizer, ops.cast(kernel.value, "float32"))
            for kernel, (_, step), minimizer in zip(kernels, points, minimizers, strict=True)
        ]

    def get_config(self):
        return {**super().get_config(), "averaging": self.averaging, "restarts": list(self.restarts)}


def _check_restarts(restarts):
    restarts = () if restarts is None else restarts
    whole = isinstance(restarts, Sequence) and all(map(is_positive_integer, restarts))
    if not whole or list(restarts) != sorted(set(restarts)):
        raise ValueError(
            f"RMDA: restarts must be increasing whole numbers of updates, for example (1000, 1500); received "
            f"{restarts!r}."
        )
    return tuple(map(int, restarts))
