import warnings
from typing import Any

import keras

from keras_rda import kernels, penalties
from keras_rda.optimizers.dual_averaging import DualAveraging
from keras_rda.penalties import Strength
from keras_rda.types import Rate


@keras.saving.register_keras_serializable(package="keras_rda")
class RDA(DualAveraging):
    """Regularised dual averaging as in Algorithm 1: `MRDA` that starts at the minimiser of its penalty, zero.

    ```
    S_t = S_{t-1} + learning_rate·g_t ;  A_t = A_{t-1} + learning_rate
    w_{t+1} = prox_{(A_t / √T_t)·ψ}(−S_t / √T_t)          T_t: t, while the rate does not fall; see `MRDA`
    ```

    Algorithm 1 sets `w_1 = w_0 = argmin ψ`: create the penalised kernels with `kernel_initializer="zeros"`. RDA does
    not edit weights that start elsewhere; it warns, because its steps are then those of `MRDA`. A deep network cannot
    start at zero (section 3.4: it would be a constant function), so RDA is for convex problems such as logistic
    regression.

    Args:
        learning_rate: 1/γ. Positive float, schedule, or callable without arguments. Defaults to 1.0.
        penalty: λ of the ℓ1 penalty, a schedule of λ, or a `keras_rda.Penalty`. Defaults to 1e-6, the paper's for 120
            epochs of CIFAR-10: in a short run that makes hardly any zeros, and `TargetSparsity` finds the λ that does.
        exponent: α in `β_t = γ·t^α`, between 0 and 1. Defaults to 0.5.
        **kwargs: Arguments of `keras.optimizers.Optimizer`; see `PenalizedOptimizer`.

    Raises:
        TypeError: `penalty` is neither a number nor a `Penalty`.
        ValueError: an argument is out of its range.

    Reference: the paper's Algorithm 1, equations (15)–(17), (22); Xiao, JMLR 11 (2010).
    """

    def __init__(
        self, learning_rate: Rate = 1.0, penalty: Strength = 1e-6, exponent: float = 0.5, **kwargs: Any
    ) -> None:
        super().__init__(learning_rate, penalties.get(penalty), "zero", exponent, **kwargs)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        nonzero = [
            kernels.variable_path(variable)
            for position, variable in enumerate(variables)
            if self.penalizes(position) and _any_nonzero(variable)
        ]
        if nonzero:
            warnings.warn(
                f"RDA starts at the minimiser of its penalty, w_1 = 0 (Algorithm 1), but these kernels are not zero: "
                f"{nonzero}. Its steps are those of MRDA from here. Use MRDA, or kernel_initializer='zeros' for a "
                "convex problem.",
                stacklevel=2,
            )

    def step(self, weights, gradient, rate, now, slots, prox):
        slots = self.add_to_sums(weights, rate * gradient, now, slots)
        u, threshold = self.prox_point(now, slots)
        return prox(u, threshold), slots

    def get_config(self):
        return {**super().get_config(), "exponent": self.exponent}


def _any_nonzero(variable):
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.init_scope():  # Keras builds the optimizer inside the traced train step, where values are symbolic
            return bool(tf.reduce_any(tf.not_equal(variable, 0)))
    return bool(keras.ops.any(keras.ops.not_equal(variable, 0)))
