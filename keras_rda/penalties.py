"""Penalties ψ: what an optimizer adds to the loss to make weights exactly zero."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import keras
import numpy as np
from keras import ops

from keras_rda import kernels, layer_facts
from keras_rda.checks import check_number, is_number
from keras_rda.proximal import group_soft_threshold, soft_threshold
from keras_rda.types import Schedulable


class Penalty:
    """Base class: a non-negative `strength` λ times a function with its minimum at zero.

    A subclass defines `value` and `prox`, both reading `self.strength`, and registers itself with
    `keras.saving.register_keras_serializable` to be saved with a model. `XRDA` and `TargetSparsity` need `magnitude`
    too.

    >>> @keras.saving.register_keras_serializable(package="mine")
    ... class L0(keras_rda.Penalty):
    ...     def value(self, w):
    ...         return self.strength * keras.ops.sum(keras.ops.cast(w != 0, w.dtype))
    ...
    ...     def prox(self, w, step):  # hard thresholding
    ...         return keras.ops.where(self.magnitude(w) > self.strength * step, w, 0.0)
    ...
    ...     def magnitude(self, w):
    ...         return keras.ops.square(w) / 2
    >>> optimizer = keras_rda.MRDA(1.0, L0(1e-3))

    An optimizer holds the penalty object itself and saves its strength with its own state, so λ can be changed while
    training: `self.model.optimizer.penalty.strength = 1e-5` in a callback. (At the end of a batch, reach it this way:
    Keras on JAX keeps the state of a running epoch elsewhere until `self.model` is asked.) Optimizers that are given
    the same object share λ.

    Args:
        strength: λ, a finite number ≥ 0, or a `keras.optimizers.schedules.LearningRateSchedule` of the optimizer's
            updates. (Under gradient accumulation Keras counts batches for the learning rate's schedule instead.)
    """

    proportional = True  # whether all of ψ is proportional to λ, so that λ can be scaled for a kernel by way of `step`

    def __init__(self, strength: Schedulable) -> None:
        self._schedule = strength if isinstance(strength, keras.optimizers.schedules.LearningRateSchedule) else None
        initial = float(self._schedule(0)) if self._schedule else strength
        self._strength = keras.Variable(
            _check_strength(self, "the strength λ", initial, "1e-6"),
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            name="penalty_strength",
        )

    @property
    def strength(self):
        """λ as a scalar float32 `keras.Variable`; `penalty.strength.numpy()` reads it, under `tf.distribute` too."""
        return self._strength

    @strength.setter
    def strength(self, strength):
        if self.scheduled:
            raise TypeError(
                f"The strength of this {type(self).__name__} follows the schedule {type(self._schedule).__name__}, so "
                f"it cannot be set to {strength!r}. Create the penalty with a number to be able to set it."
            )
        self._strength.assign(_check_strength(self, "the strength λ", strength, "1e-6"))

    @property
    def scheduled(self):
        """Whether the strength follows a schedule, and so cannot be set."""
        return self._schedule is not None

    def follow_schedule(self, iterations):
        """Take the strength of a schedule at `iterations`, the optimizer's counter; without one, do nothing.

        A value of the schedule below zero counts as zero: a negative threshold would push weights away from zero.
        """
        if self._schedule is not None:
            self._strength.assign(ops.maximum(ops.cast(self._schedule(iterations), "float32"), 0.0))

    def for_variable(self, variable):
        """The penalty as it applies to `variable`: this object, unless a subclass depends on the kernel's layout.

        None lets the variable take the step without penalty. Called by `Optimizer.build`.
        """
        return self

    def value(self, w):
        """ψ(w), a scalar tensor, for one variable's weights `w`."""
        raise NotImplementedError(f"{type(self).__name__} must define value(w).")

    def prox(self, w, step):
        """`argmin_v step·ψ(v) + ½‖v − w‖²`, a tensor of the shape of `w`; `step` is a positive scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define prox(w, step).")

    @property
    def has_magnitude(self):
        """Whether the class defines `magnitude`."""
        return type(self).magnitude is not Penalty.magnitude

    def units(self, w):
        """How many parts of `w` become zero each by itself: its entries, unless a subclass has groups."""
        return math.prod(w.shape)

    def magnitude(self, w):
        """What the penalty compares with its threshold, a tensor that broadcasts against `w`: |w| for ℓ1.

        `prox(w, step)` is zero exactly where it is at most λ·step.

        `TargetSparsity` steers by it; `XRDA` reweights by it, and then calls `prox` with a `step` of the shape of `w`.
        A penalty without it goes with every other optimizer, at a λ of your choice.
        """
        raise NotImplementedError(f"{type(self).__name__} must define magnitude(w).")

    def get_config(self):
        """The constructor's arguments, as Keras saves them; a subclass with more of its own adds them.

        λ as it is now, or its schedule.
        """
        # By way of the shortest decimal of the float32: 1e-6, not 9.999999974752427e-07.
        strength = self._schedule or float(str(np.float32(self._strength.numpy())))
        return {"strength": keras.saving.serialize_keras_object(strength)}

    @classmethod
    def from_config(cls, config):
        """The inverse of `get_config`."""
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


Strength: TypeAlias = Schedulable | Penalty  # what an optimizer's `penalty` may be


@keras.saving.register_keras_serializable(package="keras_rda")
class L1(Penalty):
    """ψ(w) = λ‖w‖₁, the penalty of the paper (eq. 18).

    Args:
        strength: λ, a finite number ≥ 0, or a `keras.optimizers.schedules.LearningRateSchedule`.
    """

    def value(self, w):
        return ops.multiply(self.strength, ops.sum(ops.abs(w)))

    def prox(self, w, step):
        return soft_threshold(w, ops.multiply(self.strength, step))

    def magnitude(self, w):
        return ops.abs(w)


@keras.saving.register_keras_serializable(package="keras_rda")
class L1L2(L1):
    """ψ(w) = λ‖w‖₁ + (μ/2)‖w‖₂², the elastic net: zeros as with `L1`, and smaller weights.

    Unlike `weight_decay`, whose gradient enters the sums of dual averaging, μ acts in the proximal map. `XRDA`
    reweights both terms. `TargetSparsity` steers λ alone, and so the whole model only.

    Args:
        strength: λ, a finite number ≥ 0, or a `keras.optimizers.schedules.LearningRateSchedule`.
        l2: μ, a finite number ≥ 0.

    Reference: Zou and Hastie, J. R. Statist. Soc. B 67 (2005).
    """

    proportional = False

    def __init__(self, strength: Schedulable, l2: float) -> None:
        super().__init__(strength)
        self.l2 = _check_strength(self, "l2 (μ)", l2, "1e-4")

    def value(self, w):
        return ops.add(super().value(w), 0.5 * self.l2 * ops.sum(ops.square(w)))

    def prox(self, w, step):
        return ops.divide(super().prox(w, step), ops.add(1.0, ops.multiply(self.l2, step)))

    def get_config(self):
        return {**super().get_config(), "l2": self.l2}


@keras.saving.register_keras_serializable(package="keras_rda")
class GroupL1(Penalty):
    """ψ(w) = λ·Σ_G √|G|·‖w_G‖₂, the group lasso: whole channels become zero, which `compress` then removes.

    A group is the part of a kernel that reads one input channel, or that computes one output filter. Input channels
    are the ones to remove: a channel nobody reads goes exactly, whatever computes it. A kernel of one group, such as
    the first convolution's on grey images, takes the step without penalty: at zero it would make the network constant.
    It pays in Dense layers and convolutions: in recurrent layers, attention and an EinsumDense over several axes its
    groups are no channels that `compress` can remove.

    Args:
        strength: λ, a finite number ≥ 0, or a `keras.optimizers.schedules.LearningRateSchedule`.
        groups: `"inputs"` for input channels or `"outputs"` for output filters.
        layout: The built Keras model to train, whose layers tell how their kernels are laid out; or a dict from whole
            names in a variable's path to the axes that number its groups: `{"attention/query/kernel": (1, 2)}`; of
            several that fit the longest counts. For kernels it does not name, names and ranks decide, as Keras names
            its layers: Dense, convolutions, transposed and depthwise ones. Kernels of rank 3 that are not a `conv1d`
            need it.

    Raises:
        TypeError: `layout` is neither a model nor a dict.
        ValueError: `groups` is neither, or the model of `layout` is not built; when the optimizer is built, a kernel
            whose groups are not known, or that the model of `layout` does not have.

    Example:

    >>> model.compile(keras_rda.XRDA(penalty=keras_rda.GroupL1(1e-5, layout=model)), loss="mse")

    Reference: Yuan and Lin, J. R. Statist. Soc. B 68 (2006); Huang and Lee, ICLR 2022, for input channels.
    """

    def __init__(
        self,
        strength: Schedulable,
        groups: Literal["inputs", "outputs"] = "inputs",
        layout: keras.Model | Mapping[str, int | Sequence[int]] | None = None,
    ) -> None:
        super().__init__(strength)
        if groups not in ("inputs", "outputs"):
            raise ValueError(
                f'GroupL1: groups must be "inputs" (input channels) or "outputs" (output filters); received {groups!r}.'
            )
        self.groups = groups
        self._model_name = None
        if isinstance(layout, keras.Model):
            self._model_name = layout.name
            layout = {path: getattr(axes, groups) for path, axes in layer_facts.axes_of(layout).items()}
            if not layout:
                raise ValueError(
                    f"GroupL1: layout={self._model_name!r} has no kernels yet: build the model first, with an Input or "
                    "model.build(input_shape)."
                )
        elif not isinstance(layout, (Mapping, type(None))):
            raise TypeError(
                "GroupL1: layout must be a built Keras model, or a dict from paths to axes such as "
                f"{{'attention/query/kernel': (1, 2)}}; received {layout!r}."
            )
        self.layout = {part: axes if axes is None else _check_axes(part, axes) for part, axes in (layout or {}).items()}

    def for_variable(self, variable):
        path, shape = kernels.variable_path(variable), tuple(variable.shape)
        axes = self._axes(path, shape)
        if math.prod(shape[axis] for axis in axes) == 1:
            return None
        return _Groups(self, axes)

    def value(self, w):
        return self._groups(w).value(w)

    def prox(self, w, step):
        return self._groups(w).prox(w, step)

    def magnitude(self, w):
        return self._groups(w).magnitude(w)

    def units(self, w):
        return self._groups(w).units(w)

    def _groups(self, w):
        return _Groups(self, self._axes("", tuple(w.shape)))

    def _axes(self, path, shape):
        """The axes that number the groups of a kernel, as non-negative ints."""
        part = kernels.longest_part(path, self.layout)
        if part is not None:
            axes = self.layout[part]
        elif self._model_name and path:
            raise ValueError(
                f"GroupL1: the model {self._model_name!r}, which layout was given, has no kernel {path!r}; it has "
                f"{list(self.layout)}. Pass the model that is trained."
            )
        else:
            guess = layer_facts.guess_axes(path, shape) if len(shape) > 1 else None
            axes = guess and getattr(guess, self.groups)
        if axes is None or any(not -len(shape) <= axis < len(shape) for axis in axes):
            kind = {"inputs": "input channels", "outputs": "output filters"}[self.groups]
            other = {"inputs": "outputs", "outputs": "inputs"}[self.groups]
            raise ValueError(
                f"GroupL1(groups={self.groups!r}) knows no {kind} in {path or 'an array'!r} of shape {shape}"
                f"{'' if axes is None else f', whose groups layout puts on axes {axes}'}. Pass layout=model, or "
                f"layout={{{path or 'path'!r}: axes}} with the axes that number the groups; or choose "
                f"groups={other!r}, or L1; or take the variable out with optimizer.exclude_from_penalty()."
            )
        return tuple(axis % len(shape) for axis in axes)

    def get_config(self):
        return {**super().get_config(), "groups": self.groups, "layout": self.layout}


class _Groups:
    """The group lasso on a kernel whose groups are numbered by `axes`; λ is that of `penalty`."""

    def __init__(self, penalty, axes):
        self._penalty, self._axes = penalty, axes

    def _within(self, w):
        return tuple(axis for axis in range(len(w.shape)) if axis not in self._axes)

    def _root_size(self, w):
        return math.sqrt(math.prod(w.shape[axis] for axis in self._within(w)))

    def value(self, w):
        norms = ops.sqrt(ops.sum(ops.square(w), axis=self._within(w)))
        return ops.multiply(self._penalty.strength, self._root_size(w) * ops.sum(norms))

    def prox(self, w, step):
        threshold = ops.multiply(self._root_size(w) * self._penalty.strength, step)
        return group_soft_threshold(w, threshold, self._within(w))

    def units(self, w):
        return math.prod(w.shape[axis] for axis in self._axes)

    def magnitude(self, w):
        """The root mean square of each group."""
        return ops.sqrt(ops.mean(ops.square(w), axis=self._within(w), keepdims=True))


def get(penalty):
    """Return the `Penalty` that `penalty` stands for: a number is λ of `L1`."""
    if isinstance(penalty, Penalty):
        return penalty
    if isinstance(penalty, (numbers.Real, keras.optimizers.schedules.LearningRateSchedule)):
        return L1(penalty)
    raise TypeError(
        f"penalty must be a number λ ≥ 0, a schedule of λ, or a keras_rda Penalty; received {penalty!r} of type "
        f"{type(penalty).__name__}. For example: penalty=1e-6 or penalty=keras_rda.L1(1e-6)."
    )


def _check_strength(owner, name, number, example):
    # The kind before the range: a tensor has no truth value inside a compiled function.
    if not is_number(number):
        raise TypeError(
            f"{type(owner).__name__}: {name} must be a number ≥ 0, for example {example}; received {number!r} of type "
            f"{type(number).__name__}."
        )
    hint = "Typical values: 1e-8 to 1e-4."
    return check_number(owner, name, number, "finite and ≥ 0", lambda strength: strength >= 0, hint)


def _check_axes(part, axes):
    numbers_of_axes = (axes,) if isinstance(axes, numbers.Integral) else axes
    if (
        not isinstance(numbers_of_axes, Sequence)
        or not numbers_of_axes
        or not all(isinstance(axis, numbers.Integral) for axis in numbers_of_axes)
    ):
        raise ValueError(f"GroupL1: layout[{part!r}] must be an axis or a tuple of axes; received {axes!r}.")
    return tuple(map(int, numbers_of_axes))
