"""What is known of one variable that an optimizer trains."""

import dataclasses
from typing import Any

from keras import ops

from keras_rda.penalties import Penalty


@dataclasses.dataclass(eq=False)
class Trained:
    """A variable with its penalty and its slots.

    Attributes:
        position: Its place among the variables that the optimizer was built for, and in the optimizer's vectors.
        variable: The variable of the model.
        penalty: Its own `Penalty`, or None.
        decays: Whether `weight_decay` is for it.
        slots: Name → the variables of its shape that the optimizer keeps for it.
    """

    position: int
    variable: Any
    penalty: Penalty | None
    decays: bool
    slots: dict[str, Any]

    @property
    def value(self):
        """The weights, a tensor of the variable's dtype. On torch variables ask for gradients, also where none are."""
        return ops.stop_gradient(ops.convert_to_tensor(self.variable))

    def set(self, value):
        """Set the weights; an optimizer whose next step starts elsewhere overwrites them."""
        self.variable.assign(ops.cast(value, self.variable.dtype))

    @property
    def precise(self):
        """The weights in float32: of low precision, as their last step left them, unless they were set since."""
        weights = ops.cast(self.value, "float32")
        if "weights" not in self.slots:
            return weights
        precise = ops.convert_to_tensor(self.slots["weights"])
        return ops.where(ops.equal(ops.cast(precise, self.variable.dtype), self.value), precise, weights)

    @property
    def state(self):
        """The slots that the optimizer's rule keeps, as tensors."""
        return {name: ops.convert_to_tensor(slot) for name, slot in self.slots.items() if name != "weights"}


class Prox:
    """The proximal map of a variable's penalty; for a variable without penalty, the identity.

    Args:
        penalty: A `Penalty`, or None.
        factor: What its λ is multiplied by, a scalar.
    """

    def __init__(self, penalty, factor=1.0):
        self.penalty, self.factor = penalty, factor

    def __call__(self, u, step):
        """`argmin_w step·ψ(w) + ½‖w − u‖²`, of the shape of `u`."""
        return u if self.penalty is None else self.penalty.prox(u, self.factor * step)

    def magnitude(self, w):
        """What the penalty compares with λ·step, a tensor that broadcasts against `w`."""
        return self.penalty.magnitude(w)
