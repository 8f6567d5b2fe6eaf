"""The sums of dual averaging, by which SDA, RDA, MRDA and RMDA take their steps."""

from typing import Any, NamedTuple

from keras import ops

from keras_rda.checks import check_number
from keras_rda.optimizers.base import PenalizedOptimizer


class Sums(NamedTuple):
    """The scalars of a variable's update: its number `t`, `A_t` and `T_t`."""

    t: Any
    weight_sum: Any
    time: Any


class DualAveraging(PenalizedOptimizer):
    """Dual averaging with a penalty ψ and the prox centre `w_0`.

    Update rule, with `a_t` the learning rate at the variable's t-th update and `g_t` its gradient:

    ```
    S_t = S_{t-1} + a_t·g_t                               gradient_sum
    A_t = A_{t-1} + a_t                                   weight_sum
    T_t = T_{t-1} + (a_t / max(a_1, …, a_t))²             time: t, while the rate does not fall
    w_{t+1} = argmin_w ⟨S_t, w⟩ + A_t·ψ(w) + (T_t^α / 2)·‖w − w_0‖²
            = prox_{(A_t / T_t^α)·ψ}(w_0 − S_t / T_t^α)
    ```

    With a constant rate `a_t = 1/γ` this is the paper's step with `β_t = γ·t^α`. A learning-rate schedule weights the
    gradients, and the time with them: where the rate is zero, the sums, T_t and the weights stand still. (With t in the
    place of T_t, weights go on shrinking like 1/√t while the sums stand still.) Variables without penalty take the step
    with ψ = 0, centred on their initial values.

    Slots: `gradient_sum`; and `center`, the weights before the first step, where the centre is not zero.

    A variable does not move before its first gradient of positive rate: with `A_t = 0` the step would put it on its
    centre, and a warm-up that starts at zero would wipe a network whose centre is zero.
    """

    starts_from_weights = False
    strength_in_state = False
    weighs_time = True  # whether time is T_t, or t

    def __init__(self, learning_rate, penalty, center, exponent, **kwargs):
        super().__init__(learning_rate, penalty, **kwargs)
        if center not in ("zero", "initial"):
            raise ValueError(
                f'{type(self).__name__}: center must be "zero" or "initial"; received {center!r}. "initial" keeps the '
                'weights that training starts from, for example pretrained ones, as prox centre; "zero" is the '
                "paper's."
            )
        self.center = center
        self.exponent = check_number(
            self,
            "exponent (α in β_t = γ·t^α)",
            exponent,
            "a number between 0 and 1, where the method converges",
            lambda alpha: 0 < alpha < 1,
            "The paper's is 0.5.",
        )

    def add_slots(self, variable, penalized):
        names = ["gradient_sum"]
        if self.center == "initial" or not penalized:
            names.append("center")
        return {name: self.add_slot(variable, name) for name in names}

    def add_vectors(self, variables):
        # Row 0: A_t of every variable; row 1: what rounding took from it (Kahan). A plain float32 sum of ones stops at
        # 2²⁴, and one of small rates drifts.
        self._weight_sum = self.add_vector((2, variables), "weight_sum")
        if self.weighs_time:
            # Row 0: T_t of every variable; row 1: what rounding took from it; row 2: the largest rate so far.
            self._time = self.add_vector((3, variables), "time")

    def advance(self, counts, rate):
        t, counted = self.stage(ops.convert_to_tensor(self._steps)), ops.cast(counts, "float32")
        begins = ops.logical_and(counts, t == 1)
        total, lost = (ops.where(begins, 0.0, self._weight_sum[row]) for row in range(2))
        weight = self.gradient_weight(rate, ops.cast(t, "float32"))
        self._weight_sum.assign(ops.stack(_compensated_sum(total, lost, counted * weight)))
        if self.weighs_time:
            time, lost, largest = (self._time[row] for row in range(3))
            largest = ops.maximum(largest, counted * rate)
            taken = ops.square(counted * rate / ops.where(largest > 0.0, largest, 1.0))
            self._time.assign(ops.stack([*_compensated_sum(time, lost, taken), largest]))

    def stage(self, steps):
        """Of `steps` updates (of one variable, or a vector), those since the sums last started at zero."""
        return steps

    def gradient_weight(self, rate, t):
        """`a_t`, the weight of a gradient in the sums."""
        return rate

    def now(self, position):
        t = ops.cast(ops.maximum(self.stage(self._steps[position]), 1), "float32")
        time = t
        if self.weighs_time:
            time = self._time[0, position]
            time = ops.where(time > 0.0, time, 1.0)
        return Sums(t, self._weight_sum[0, position], time)

    def has_started(self, position):
        return self._weight_sum[0, position] > 0.0

    def add_to_sums(self, weights, weighted_gradient, now, slots, first_sum=0.0):
        """The slots with one more gradient: `S_t`, from `S_0 = first_sum` on, and the centre `w_0`."""
        begins = now.t == 1.0
        so_far = ops.where(begins, first_sum, slots["gradient_sum"])
        slots = {**slots, "gradient_sum": so_far + weighted_gradient}
        if "center" in slots:
            # Taken here and not in build(): build may run inside a trace, or before weights are loaded.
            slots["center"] = ops.where(begins, weights, slots["center"])
        return slots

    def prox_point(self, now, slots):
        """`w_0 − S_t / T_t^α` and `A_t / T_t^α`."""
        scale = now.time**-self.exponent
        u = -scale * slots["gradient_sum"]
        if "center" in slots:
            u = slots["center"] + u
        return u, scale * now.weight_sum


def _compensated_sum(total, lost, term):
    """`total + term`, and what rounding took from it; `lost` is what it took before (Kahan)."""
    term = term - lost
    new_total = total + term
    return [new_total, (new_total - total) - term]
