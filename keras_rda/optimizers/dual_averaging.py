"""The step that SDA, RDA and MRDA share."""

from keras import ops

from keras_rda.optimizers.base import PenalizedOptimizer
from keras_rda.penalties import is_float32


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

    strength_in_state = False
    starts_from_weights = False
    weighs_time = True  # whether time is T_t

    def __init__(self, learning_rate, penalty, center, exponent, **kwargs):
        super().__init__(learning_rate, penalty, **kwargs)
        name = type(self).__name__
        if center not in ("zero", "initial"):
            raise ValueError(
                f'{name}: center must be "zero" or "initial"; received {center!r}. "initial" keeps the weights that '
                'training starts from, for example pretrained ones, as prox centre; "zero" is the paper\'s.'
            )
        if not (is_float32(exponent) and 0 < exponent < 1):
            raise ValueError(
                f"{name}: exponent (α in β_t = γ·t^α) must be a number between 0 and 1, where the method converges; "
                f"received {exponent!r}. The paper's is 0.5."
            )
        self.center = center
        self.exponent = float(exponent)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        # Row 0: A_t of every variable; row 1: what rounding took from it (Kahan). A plain float32 sum of ones stops at
        # 2²⁴, and one of small rates drifts.
        self._weight_sum = self.add_variable(
            (2, len(variables)), dtype="float32", name="weight_sum", aggregation="only_first_replica"
        )
        if self.weighs_time:
            # Row 0: T_t of every variable; row 1: what rounding took from it; row 2: the largest rate so far.
            self._time = self.add_variable(
                (3, len(variables)), dtype="float32", name="time", aggregation="only_first_replica"
            )

    def add_slots(self, variable, penalized):
        names = ["gradient_sum"]
        if self.center == "initial" or not penalized:
            names.append("center")
        return {name: self.add_slot(variable, name) for name in names}

    def _advance(self, indices, grads, rate):
        counts = super()._advance(indices, grads, rate)
        steps = ops.convert_to_tensor(self._steps)
        begins = ops.logical_and(counts, ops.equal(self._stage(steps), 1))
        total, lost = ops.where(begins, 0.0, self._weight_sum[0]), ops.where(begins, 0.0, self._weight_sum[1])
        weight = ops.multiply(ops.cast(counts, "float32"), self._gradient_weight(rate, steps))
        self._weight_sum.assign(ops.stack(_compensated_sum(total, lost, weight)))
        if self.weighs_time:
            rates = ops.multiply(ops.cast(counts, "float32"), rate)
            largest = ops.maximum(self._time[2], rates)
            step = ops.square(ops.divide(rates, ops.where(ops.greater(largest, 0.0), largest, 1.0)))
            self._time.assign(ops.stack([*_compensated_sum(self._time[0], self._time[1], step), largest]))
        return counts

    def _moves(self, index):
        return ops.greater(self._weight_sum[0, index], 0.0)

    def step(self, weights, gradient, rate, index, slots, prox):
        stage = self._stage(self._steps[index])
        weighted = ops.multiply(self._gradient_weight(rate, self._steps[index]), gradient)
        so_far = ops.where(ops.equal(stage, 1), self._first_sum(weights, slots), slots["gradient_sum"])
        slots = {**slots, "gradient_sum": ops.add(so_far, weighted)}
        if "center" in slots:
            # Taken here and not in build(): build may run inside a trace, or before weights are loaded.
            slots["center"] = ops.where(ops.less_equal(stage, 1), weights, slots["center"])
        return prox(*self._prox_arguments(index, slots)), slots

    def _first_sum(self, weights, slots):
        """S_0 of a variable with these weights before its first step and these slots."""
        return 0.0

    def _prox_arguments(self, index, slots):
        """`w_0 − S_t / T_t^α` and `A_t / T_t^α`, where the sums stand."""
        scale = ops.power(self._elapsed(index), -self.exponent)
        u = ops.multiply(ops.negative(scale), slots["gradient_sum"])
        if "center" in slots:
            u = ops.add(slots["center"], u)
        return u, ops.multiply(scale, self._weight_sum[0, index])

    def prox_point(self, index):
        slots = {name: ops.convert_to_tensor(slot) for name, slot in self._slots[index].items()}
        return self._prox_arguments(index, slots) if bool(self._moves(index)) else None

    def _elapsed(self, index):
        """T_t of the variable at `index`, a float32 scalar; 1 before its first step, whose result is discarded."""
        return ops.where(ops.greater(self._time[0, index], 0.0), self._time[0, index], 1.0)

    def _stage(self, steps):
        """Of `steps` updates (of one variable, or a vector), those since the sums last started at zero."""
        return steps

    def _gradient_weight(self, rate, steps):
        """`a_t`, the weight of the gradient of the update `steps` (of one variable, or a vector)."""
        return rate

    def get_config(self):
        return {**super().get_config(), "center": self.center, "exponent": self.exponent}


def _compensated_sum(total, lost, term):
    """`total + term`, and what rounding took from it; `lost` is what it took before (Kahan)."""
    term = ops.subtract(term, lost)
    new_total = ops.add(total, term)
    return [new_total, ops.subtract(ops.subtract(new_total, total), term)]
