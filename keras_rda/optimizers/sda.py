from typing import Any

import keras

from keras_rda.optimizers.dual_averaging import DualAveraging
from keras_rda.types import Rate


@keras.saving.register_keras_serializable(package="keras_rda")
class SDA(DualAveraging):
    """Simple dual averaging: Nesterov's method, dense, centred on the initial weights.

    ```
    S_t = S_{t-1} + learning_rate·g_t
    w_{t+1} = w_0 − S_t / √T_t                            T_t: t, while the rate does not fall; see `MRDA`
    ```

    Args:
        learning_rate: 1/γ. Positive float, schedule, or callable without arguments. Defaults to 1.0.
        exponent: α in `β_t = γ·t^α`, between 0 and 1. Defaults to 0.5.
        **kwargs: Arguments of `keras.optimizers.Optimizer`; see `PenalizedOptimizer`.

    Raises:
        ValueError: an argument is out of its range.

    Reference: equations (5)–(7) of the paper.
    """

    def __init__(self, learning_rate: Rate = 1.0, exponent: float = 0.5, **kwargs: Any) -> None:
        super().__init__(learning_rate, None, "initial", exponent, **kwargs)

    def step(self, weights, gradient, rate, now, slots, prox):
        slots = self.add_to_sums(weights, rate * gradient, now, slots)
        return slots["center"] - now.time**-self.exponent * slots["gradient_sum"], slots

    def get_config(self):
        return {**super().get_config(), "exponent": self.exponent}
