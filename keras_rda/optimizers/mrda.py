from typing import Any, Literal

import keras

from keras_rda import penalties
from keras_rda.optimizers.dual_averaging import DualAveraging
from keras_rda.penalties import Strength
from keras_rda.types import Rate


@keras.saving.register_keras_serializable(package="keras_rda")
class MRDA(DualAveraging):
    """Modified regularised dual averaging: trains weights that are exactly zero from the first step on.

    Update rule for a kernel, `t` counting its updates:

    ```
    S_t = S_{t-1} + learning_rate·g_t                     S_0 = 0, or −w_1 with start="weights"
    A_t = A_{t-1} + learning_rate                         A_0 = 0
    T_t = T_{t-1} + (learning_rate / its largest so far)² t, while the rate does not fall
    w_{t+1} = prox_{(A_t / √T_t)·ψ}(−S_t / √T_t)          ℓ1: soft(−S_t / √T_t, λ·A_t / √T_t)
    ```

    The paper's `γ` is `1 / learning_rate`, and its steps are those of a constant rate. A learning-rate schedule that
    ends near zero, such as `keras.optimizers.schedules.CosineDecay`, weights the gradients and brings most of the
    accuracy of dense training within an ordinary budget. Where the rate has fallen to zero, the weights stand still.

    With `center="zero"` the initial weights are forgotten at the first step (`w_2` depends on `g_1` alone): that needs
    a network with normalisation layers. Choose `center="initial"` for a pretrained network or one without them.

    `start="weights"` lets the initial weights fade like `w_1 / √T_t` instead. The paper's start makes `w_2` tiny, which
    makes the second gradient of a normalised network huge, and that one random direction stays in the sum for good.

    Biases, normalisation weights and embeddings take the step without penalty, centred on their initial values.

    Args:
        learning_rate: 1/γ. Positive float, `keras.optimizers.schedules.LearningRateSchedule`, or callable without
            arguments. Defaults to 1.0.
        penalty: λ of the ℓ1 penalty, a schedule of λ, or a `keras_rda.Penalty`. Defaults to 1e-6, the paper's for 120
            epochs of CIFAR-10: in a short run that makes hardly any zeros, and `TargetSparsity` finds the λ that does.
        center: `"zero"` or `"initial"`, the prox centre of the penalised kernels.
        exponent: α in `β_t = γ·t^α`, between 0 and 1. Defaults to 0.5, the optimal rate of Theorem 3.1.
        start: `"gradient"`, the paper's: the sum of a penalised kernel starts at zero; or `"weights"`: it starts at
            `−w_1`, so that without gradient and penalty the first step would end at `w_1`. With `center="initial"`,
            where that is so already, both are the same.
        **kwargs: Arguments of `keras.optimizers.Optimizer`; see `PenalizedOptimizer` for those with a meaning of
            their own here.

    Raises:
        TypeError: `penalty` is neither a number nor a `Penalty`.
        ValueError: an argument is out of its range.

    Examples:
        >>> model.compile(optimizer=keras_rda.MRDA(learning_rate=1.0, penalty=1e-6), loss="mse")
        >>> history = model.fit(x, y, epochs=20, callbacks=[keras_rda.TargetSparsity(0.9)], verbose=0)
        >>> round(keras_rda.sparsity(model, kernels_only=True), 2)
        0.9

    Reference: the paper's Algorithm 2, equations (27)–(29); (13), (14) and (22) for `center="initial"`.
    """

    def __init__(
        self,
        learning_rate: Rate = 1.0,
        penalty: Strength = 1e-6,
        center: Literal["zero", "initial"] = "zero",
        exponent: float = 0.5,
        start: Literal["gradient", "weights"] = "gradient",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, penalties.get(penalty), center, exponent, **kwargs)
        if start not in ("gradient", "weights"):
            raise ValueError(
                f'MRDA: start must be "gradient" or "weights"; received {start!r}. "gradient" is the paper\'s: the '
                'first step forgets the initial weights; with "weights" they fade like 1/√t.'
            )
        self.start = start

    def step(self, weights, gradient, rate, now, slots, prox):
        # A variable with a centre starts at its weights already.
        first_sum = -weights if self.start == "weights" and "center" not in slots else 0.0
        slots = self.add_to_sums(weights, rate * gradient, now, slots, first_sum)
        u, threshold = self.prox_point(now, slots)
        return prox(u, threshold), slots

    def get_config(self):
        config = {"center": self.center, "exponent": self.exponent, "start": self.start}
        return {**super().get_config(), **config}
