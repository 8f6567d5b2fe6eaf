import numbers
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_rda import penalties
from keras_rda.optimizers.dual_averaging import DualAveraging
from keras_rda.penalties import Strength
from keras_rda.types import Rate


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
        penalty: λ of the ℓ1 penalty, a schedule of λ, or a `keras_rda.Penalty` such as `GroupL1`. Defaults to 1e-6.
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
        if not (penalties.is_float32(averaging) and 0 < averaging <= 1):
            raise ValueError(
                f"RMDA: averaging (c) must be a number above 0 and at most 1, for example 0.1; received {averaging!r}."
            )
        self.averaging = float(averaging)
        self.restarts = _check_restarts(restarts)
        if restarts is None and isinstance(learning_rate, keras.optimizers.schedules.PiecewiseConstantDecay):
            # The rate of update t is the schedule's at t·(batches an update) − 1, which changes where that exceeds the
            # boundary: Keras' schedules count batches.
            batches = self.gradient_accumulation_steps or 1
            drops = {(int(boundary) + 1) // batches for boundary in learning_rate.boundaries}
            self.restarts = _check_restarts(sorted(drops - {0}))

    def _stage(self, steps):
        start = ops.zeros_like(steps)
        for restart in self.restarts:
            start = ops.where(ops.greater(steps, restart), ops.cast(restart, steps.dtype), start)
        return ops.subtract(steps, start)

    def _elapsed(self, index):
        return ops.cast(ops.maximum(self._stage(self._steps[index]), 1), "float32")  # t of the stage

    def _gradient_weight(self, rate, steps):
        return ops.multiply(rate, ops.sqrt(ops.cast(self._stage(steps), "float32")))

    def step(self, weights, gradient, rate, index, slots, prox):
        minimizer, slots = super().step(weights, gradient, rate, index, slots, prox)
        steps = self._steps[index]
        growing = ops.minimum(self.averaging * ops.sqrt(ops.cast(self._stage(steps), "float32")), 1.0)
        in_last_stage = ops.greater(steps, self.restarts[-1] if self.restarts else 0)
        c = ops.where(in_last_stage, growing, self.averaging)
        # Not w + c·(ŵ − w), which is not exactly ŵ at c = 1.
        return ops.add(ops.multiply(ops.subtract(1.0, c), weights), ops.multiply(c, minimizer)), slots

    def sparse_weights(self, index):
        """ŵ of the variable at `index`: it has zeros before the iterates have them."""
        point = self.prox_point(index)
        return super().sparse_weights(index) if point is None else self._prox(index)(*point)

    def get_config(self):
        config = super().get_config()
        del config["center"], config["exponent"]
        return {**config, "averaging": self.averaging, "restarts": list(self.restarts)}


def _check_restarts(restarts):
    restarts = () if restarts is None else restarts
    whole = isinstance(restarts, Sequence) and all(
        isinstance(r, numbers.Integral) and not isinstance(r, bool) and r > 0 for r in restarts
    )
    if not whole or list(restarts) != sorted(set(restarts)):
        raise ValueError(
            f"RMDA: restarts must be increasing whole numbers of updates, for example (1000, 1500); received "
            f"{restarts!r}."
        )
    return tuple(map(int, restarts))
