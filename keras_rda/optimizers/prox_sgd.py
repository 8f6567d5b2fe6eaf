import keras
from keras import ops

from keras_rda import penalties
from keras_rda.optimizers.base import PenalizedOptimizer


@keras.saving.register_keras_serializable(package="keras_rda")
class ProxSGD(PenalizedOptimizer):
    """Proximal stochastic gradient descent (FOBOS), the paper's baseline. It keeps no slots.

    ```
    α_t = learning_rate / √t
    w_{t+1} = prox_{α_t·ψ}(w_t − α_t·g_t)                 ℓ1: soft(w_t − α_t·g_t, α_t·λ)
    ```

    Its threshold `α_t·λ` falls with t, which is why it keeps few zeros (section 3.3).

    Args:
        learning_rate: 1/γ. Positive float, schedule, or callable without arguments. Defaults to 1.0.
        penalty: λ of the ℓ1 penalty, a schedule of λ, or a `keras_rda.Penalty`. Defaults to 1e-6.
        **kwargs: Arguments of `keras.optimizers.Optimizer`; see `PenalizedOptimizer`.

    Raises:
        TypeError: `penalty` is neither a number nor a `Penalty`.
        ValueError: an argument is out of its range.

    Reference: equations (8), (9), (19) and (20) of the paper; Duchi and Singer, JMLR 10 (2009).
    """

    def __init__(self, learning_rate=1.0, penalty=1e-6, **kwargs):
        super().__init__(learning_rate, penalties.get(penalty), **kwargs)

    def step(self, weights, gradient, rate, index, slots, prox):
        alpha = ops.divide(rate, ops.sqrt(self._float_steps(index)))
        return prox(ops.subtract(weights, ops.multiply(alpha, gradient)), alpha), slots
