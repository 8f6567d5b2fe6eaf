from typing import Any

import keras
from keras import ops

from keras_rda import penalties
from keras_rda.optimizers.base import PenalizedOptimizer
from keras_rda.penalties import Strength
from keras_rda.types import Rate


@keras.saving.register_keras_serializable(package="keras_rda")
class SqrtProxSGD(PenalizedOptimizer):
    """√t-prox-SGD: `ProxSGD` with a threshold that grows like √t, the paper's negative example. It keeps no slots.

    ```
    α_t = learning_rate / √t
    w_{t+1} = prox_{√t·ψ}(w_t − α_t·g_t)                  ℓ1: soft(w_t − α_t·g_t, √t·λ)
    ```

    It approximates minimising `f(w) + t·λ‖w‖₁`, so it ends at w = 0 (section 3.3).

    Args:
        learning_rate: 1/γ. Positive float, schedule, or callable without arguments. Defaults to 1.0.
        penalty: λ of the ℓ1 penalty, a schedule of λ, or a `keras_rda.Penalty`. Defaults to 1e-6, at which long
            training collapses, because the threshold grows with √t; the paper uses 1e-8. `TargetSparsity` finds the λ
            for a wanted σ.
        **kwargs: Arguments of `keras.optimizers.Optimizer`; see `PenalizedOptimizer`.

    Raises:
        TypeError: `penalty` is neither a number nor a `Penalty`.
        ValueError: an argument is out of its range.

    Reference: equations (23)–(26) of the paper.
    """

    def __init__(self, learning_rate: Rate = 1.0, penalty: Strength = 1e-6, **kwargs: Any) -> None:
        super().__init__(learning_rate, penalties.get(penalty), **kwargs)

    def step(self, weights, gradient, rate, now, slots, prox):
        root = ops.sqrt(now.t)
        return prox(weights - rate / root * gradient, root), slots
