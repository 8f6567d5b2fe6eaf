from typing import Any

import keras

from keras_rda import penalties
from keras_rda.checks import check_number
from keras_rda.optimizers.base import PenalizedOptimizer
from keras_rda.penalties import Strength
from keras_rda.types import Rate


@keras.saving.register_keras_serializable(package="keras_rda")
class ProxSGD(PenalizedOptimizer):
    """Proximal stochastic gradient descent (FOBOS), the paper's baseline, with momentum on request.

    ```
    α_t = learning_rate / t^exponent
    w_{t+1} = prox_{α_t·ψ}(w_t − α_t·g_t + momentum·(w_t − w_{t-1}))     ℓ1: soft(…, α_t·λ)
    ```

    Its threshold `α_t·λ` falls with t, which is why it keeps few zeros (section 3.3). `exponent=0` with a schedule
    and `momentum=0.9` is the usual SGD of deep learning with a proximal map: without penalty, every step is that of
    `keras.optimizers.SGD`.

    Slots: `velocity`, the last step `w_t − w_{t-1}`, where momentum is not zero.

    Args:
        learning_rate: 1/γ. Positive float, schedule, or callable without arguments. Defaults to 1.0.
        penalty: λ of the ℓ1 penalty, a schedule of λ, or a `keras_rda.Penalty`. Defaults to 1e-6, the paper's for 120
            epochs of CIFAR-10: in a short run that makes hardly any zeros, and `TargetSparsity` finds the λ that does.
        momentum: Number from 0 to below 1. Defaults to 0, the paper's.
        exponent: Decay of the step with t, a number from 0 to below 1. Defaults to 0.5, the paper's.
        **kwargs: Arguments of `keras.optimizers.Optimizer`; see `PenalizedOptimizer`.

    Raises:
        TypeError: `penalty` is neither a number nor a `Penalty`.
        ValueError: an argument is out of its range.

    Reference: equations (8), (9), (19) and (20) of the paper; Duchi and Singer, JMLR 10 (2009); for momentum, Ochs et
    al., SIAM J. Imaging Sciences 7 (2014).
    """

    def __init__(
        self,
        learning_rate: Rate = 1.0,
        penalty: Strength = 1e-6,
        momentum: float = 0.0,
        exponent: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, penalties.get(penalty), **kwargs)
        share = "a number from 0 to below 1, for example"
        self.momentum = check_number(self, "momentum", momentum, f"{share} 0.9", lambda m: 0 <= m < 1)
        self.exponent = check_number(
            self, "exponent (of the decay with t)", exponent, f"{share} the paper's 0.5", lambda e: 0 <= e < 1
        )

    def add_slots(self, variable, penalized):
        return {"velocity": self.add_slot(variable, "velocity")} if self.momentum else {}

    def step(self, weights, gradient, rate, now, slots, prox):
        alpha = rate * now.t**-self.exponent
        velocity = -alpha * gradient
        if self.momentum:
            velocity = velocity + self.momentum * slots["velocity"]
        u = weights + velocity
        new_weights = prox(u, alpha)
        if not self.momentum:
            return new_weights, slots
        # Not new_weights − weights, whose rounding is large beside a small step.
        return new_weights, {"velocity": velocity + (new_weights - u)}

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum, "exponent": self.exponent}
