from typing import Any, NamedTuple

import keras
from keras import ops

from keras_rda import penalties
from keras_rda.checks import check_number
from keras_rda.optimizers.base import PenalizedOptimizer
from keras_rda.penalties import Strength
from keras_rda.types import Rate


class Momentum(NamedTuple):
    """The scalars of a variable's update: its number `t`, and the largest rate so far."""

    t: Any
    peak_rate: Any


@keras.saving.register_keras_serializable(package="keras_rda")
class XRDA(PenalizedOptimizer):
    """Extended regularised dual averaging: momentum, and small weights thresholded harder than large ones.

    Update rule for a kernel, with `s_t` the learning rate, `q_t = exp(−s_t / time_scale)` and `M = reweighting`:

    ```
    r_t = q_t·r_{t-1} + (1 − q_t)·|w_t|                   magnitude
    b_t = M / (1 + (M − 1)·r_t / max(r_t))                between 1 for the largest and M for zero
    v_t = q_t·v_{t-1} + (1 − q_t)·g_t                     velocity
    w_{t+1} = prox_{s_t·b_t·ψ}(w_t − s_t·v_t)             ℓ1: soft(w_t − s_t·v_t, λ·s_t·b_t)
    ```

    Thresholds are relative to each kernel's largest weight, so one λ suits layers of different scale. With a group
    penalty, `|w|` is the root mean square of a group and `b_t` is the group's. Variables without penalty have
    `b_t = 0`.

    With `averaging` a ≠ 0, points and thresholds are averaged too, as in the paper; a = 1 is dual averaging centred on
    the initial weights. Networks were not seen to become better by it:

    ```
    z_t = a_t·z_{t-1} + (1 − a_t)·w_t − s_t·v_t           center, z_0 = w_1
    B_t = a_t·B_{t-1} + s_t·b_t                           threshold
    w_{t+1} = prox_{B_t·ψ}(z_t)
    ```

    Slots: `velocity`, and of penalised kernels `magnitude` (r); unless a = 0 also `center` (z), and of penalised
    kernels `threshold` (B).

    Args:
        learning_rate: s. Positive float, `keras.optimizers.schedules.LearningRateSchedule`, or callable without
            arguments; a cosine from 1 to zero suits networks with normalisation. With momentum, s = 1 is SGD's 0.1.
            Defaults to 1.0.
        penalty: λ of the ℓ1 penalty, a schedule of λ, or a `keras_rda.Penalty` that has a `magnitude`. Defaults to
            1e-6, from which `TargetSparsity` steers; without it, choose λ for the length of training.
        averaging: a, a number from 0 to 1, or None for `1 − s_t / max(s_1 … s_t)`: a cosine rate makes it rise from 0
            to 1. At 1, z and B are plain float32 sums of all updates: after a million of a constant rate, B is off by
            up to 1.5 %. Defaults to 0.
        reweighting: M, at least 1, where all thresholds are equal. Defaults to 500.
        time_scale: τ, the memory of velocity and magnitude in units of the sum of the rates. Defaults to 9.5.
        **kwargs: Arguments of `keras.optimizers.Optimizer`; see `PenalizedOptimizer`.

    Raises:
        TypeError: `penalty` is neither a number nor a `Penalty`, or has no `magnitude`.
        ValueError: an argument is out of its range.

    Reference: Siegel, Chen and Xu, Training Sparse Neural Networks using Compressed Sensing, arXiv 2008.09661, and
    the authors' code.
    """

    def __init__(
        self,
        learning_rate: Rate = 1.0,
        penalty: Strength = 1e-6,
        averaging: float | None = 0.0,
        reweighting: float = 500.0,
        time_scale: float = 9.5,
        **kwargs: Any,
    ) -> None:
        penalty = penalties.get(penalty)
        if not penalty.has_magnitude:
            raise TypeError(
                f"XRDA reweights by the penalty's magnitude(w), which {type(penalty).__name__} does not define. Define "
                "it (and let prox take a step of the shape of w), choose L1, GroupL1 or another penalty that has it, "
                "or an optimizer that needs prox alone, such as MRDA, RMDA or ProxSGD."
            )
        super().__init__(learning_rate, penalty, **kwargs)
        if averaging is not None:
            averaging = check_number(
                self, "averaging (a)", averaging, "a number from 0 to 1, or None", lambda a: 0 <= a <= 1
            )
        self.averaging = averaging
        self.reweighting = check_number(self, "reweighting (M)", reweighting, "a finite number ≥ 1", lambda m: m >= 1)
        self.time_scale = check_number(
            self, "time_scale (τ)", time_scale, "a finite number above 0", lambda tau: tau > 0
        )

    def add_slots(self, variable, penalized):
        names = ["velocity"]
        if penalized:
            names.append("magnitude")
        if self.averaging != 0:
            names.append("center")
            if penalized:
                names.append("threshold")
        return {name: self.add_slot(variable, name) for name in names}

    def add_vectors(self, variables):
        self._peak_rate = self.add_vector((), "peak_rate")

    def advance(self, counts, rate):
        self._peak_rate.assign(ops.maximum(ops.convert_to_tensor(self._peak_rate), rate))

    def now(self, position):
        return Momentum(*super().now(position), ops.convert_to_tensor(self._peak_rate))

    def step(self, weights, gradient, rate, now, slots, prox):
        # 1 − q_t; near the end of a schedule the difference would lose its digits.
        gain = -ops.expm1(-rate / self.time_scale)

        def moving_average(average, value):
            return average + gain * (value - average)

        slots = {**slots, "velocity": moving_average(slots["velocity"], gradient)}
        z = weights
        if "center" in slots:
            a = self._average_share(rate, now.peak_rate)
            so_far = ops.where(now.t == 1.0, weights, slots["center"])
            z = a * so_far + (1.0 - a) * weights
        z = z - rate * slots["velocity"]
        if "center" in slots:
            slots["center"] = z
        if "magnitude" not in slots:  # no penalty
            return z, slots
        slots["magnitude"] = moving_average(slots["magnitude"], prox.magnitude(weights))
        threshold = rate * self._reweight(slots["magnitude"])
        if "threshold" in slots:
            threshold = slots["threshold"] = a * slots["threshold"] + threshold
        return prox(z, threshold), slots

    def prox_point(self, now, slots):
        return (slots["center"], slots["threshold"]) if "threshold" in slots else None

    def prox_step(self):
        return float(ops.convert_to_numpy(self.learning_rate))

    def return_strengths(self, kernels):
        states = [kernel.state for kernel in kernels]
        if any("center" in state for state in states):
            return None
        magnitudes = self.magnitudes(kernels, [state["velocity"] for state in states])
        return [
            magnitude / self._reweight(state["magnitude"]) for magnitude, state in zip(magnitudes, states, strict=True)
        ]

    def _average_share(self, rate, peak_rate):
        """`a_t`."""
        if self.averaging is not None:
            return self.averaging
        return 1.0 - rate / ops.where(peak_rate > 0.0, peak_rate, 1.0)

    def _reweight(self, magnitude):
        """`b_t`; a kernel that is zero throughout has the largest threshold everywhere."""
        largest = ops.amax(magnitude)  # `ops.max` ends the graph of torch.compile
        relative = magnitude / ops.where(largest > 0.0, largest, 1.0)
        return self.reweighting / (1.0 + (self.reweighting - 1.0) * relative)

    def get_config(self):
        config = {"averaging": self.averaging, "reweighting": self.reweighting, "time_scale": self.time_scale}
        return {**super().get_config(), **config}
