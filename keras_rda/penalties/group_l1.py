"""The group lasso."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import keras
import numpy as np
from keras import ops

from keras_rda import kernels, layer_facts
from keras_rda.penalties import channels
from keras_rda.penalties.base import Penalty
from keras_rda.proximal import group_soft_threshold
from keras_rda.types import Schedulable


@keras.saving.register_keras_serializable(package="keras_rda")
class GroupL1(Penalty):
    """ψ(w) = λ·Σ_G √|G|·‖w_G‖₂, the group lasso: whole channels become zero, which `compress` then removes.

    A group is the part of a kernel that reads one input channel, or that computes one output filter. Input channels
    are the ones to remove: a channel nobody reads goes exactly, whatever computes it. A kernel of one group, such as
    the first convolution's on grey images, takes the step without penalty: at zero it would make the network constant.
    It pays in Dense layers and convolutions: in recurrent layers, attention and an EinsumDense over several axes its
    groups are no channels that `compress` can remove.

    With `groups="channels"` a group is all that reads a channel, in all kernels together. In a residual network many
    convolutions read the same channels, and one that keeps a channel keeps it for all; as one group they decide
    together. So it is for channels that are added, multiplied, joined, convolved depthwise, and for heads of attention.
    Channels that cannot go, such as the model's inputs, and kernels that read no others have no penalty.

    Args:
        strength: λ, a finite number ≥ 0, or a `keras.optimizers.schedules.LearningRateSchedule`.
        groups: `"inputs"` for input channels or `"outputs"` for output filters of single kernels; `"channels"` for what
            reads a channel in all of them, which needs `layout=model`.
        layout: The built Keras model to train, whose layers tell how their kernels are laid out; or a dict from whole
            names in a variable's path to the axes that number its groups: `{"attention/query/kernel": (1, 2)}`; of
            several that fit the longest counts. For kernels it does not name, names and ranks decide, as Keras names
            its layers: Dense, convolutions, transposed and depthwise ones. Kernels of rank 3 that are not a `conv1d`
            need it. With `groups="channels"` the model, which must be one that `compress` can read.
        weights: What decides how strongly a group is penalised: `"size"`, √|G|; or, with `groups="channels"`,
            `"multiply_adds"`, the root of what the model saves with the channel for one sample, on the same scale: of
            two channels that matter alike, the one that costs more goes first.

    Raises:
        TypeError: `layout` is neither a model nor a dict.
        ValueError: `groups` or `weights` is none of these; the model of `layout` is not built, has no channel that can
            go, or layers whose multiply-adds are not known; when the optimizer is built, a kernel whose groups are not
            known, or that the model of `layout` does not have.

    Examples:
        >>> penalty = keras_rda.GroupL1(1e-5, groups="channels", layout=model)
        >>> model.compile(keras_rda.XRDA(penalty=penalty), loss="mse")

    Reference: Yuan and Lin, J. R. Statist. Soc. B 68 (2006); Huang and Lee, ICLR 2022, for input channels.
    """

    def __init__(
        self,
        strength: Schedulable,
        groups: Literal["inputs", "outputs", "channels"] = "inputs",
        layout: keras.Model | Mapping[str, Any] | None = None,
        weights: Literal["size", "multiply_adds"] = "size",
    ) -> None:
        super().__init__(strength)
        if groups not in ("inputs", "outputs", "channels"):
            raise ValueError(
                'GroupL1: groups must be "inputs" (input channels), "outputs" (output filters) or "channels" (what '
                f"reads a channel, in all kernels together); received {groups!r}."
            )
        if weights not in ("size", "multiply_adds") or (weights == "multiply_adds" and groups != "channels"):
            raise ValueError(
                'GroupL1: weights must be "size" or, with groups="channels", "multiply_adds"; received '
                f"{weights!r} with groups={groups!r}."
            )
        self.groups, self.weights = groups, weights
        self._model_name = self._costs = None
        if isinstance(layout, keras.Model):
            self._model_name = layout.name
            axes = layer_facts.axes_of(layout)
            if not axes:
                raise ValueError(
                    f"GroupL1: layout={self._model_name!r} has no kernels yet: build the model first, with an Input or "
                    "model.build(input_shape)."
                )
            if groups == "channels":
                layout, found = channels.layout_of(layout)
                if weights == "multiply_adds" and found.unknown:
                    raise ValueError(
                        'GroupL1(weights="multiply_adds"): they are not known of the layers '
                        f"{', '.join(found.unknown)}: give the model's inputs a size, and take Keras' own layers."
                    )
                if weights == "multiply_adds":
                    self._costs = found.multiply_adds_of_each()
            else:
                layout = {path: getattr(own, groups) for path, own in axes.items()}
        elif not isinstance(layout, (Mapping, type(None))):
            raise TypeError(
                "GroupL1: layout must be a built Keras model, or a dict from paths to axes such as "
                f"{{'attention/query/kernel': (1, 2)}}; received {layout!r}."
            )
        elif groups == "channels" and not layout:
            raise ValueError(
                'GroupL1(groups="channels") must know which kernels read the same channels: pass layout=model.'
            )
        if weights == "multiply_adds" and self._costs is None:
            raise ValueError('GroupL1(weights="multiply_adds") must know what layers cost: pass layout=model.')
        check = channels.check if groups == "channels" else _check_axes
        self.layout = {part: own if own is None else check(part, own) for part, own in (layout or {}).items()}

    def for_variable(self, variable):
        path, shape = kernels.variable_path(variable), tuple(variable.shape)
        axes = self._axes(path, shape)
        if math.prod(shape[axis] for axis in axes) == 1:
            return None
        return _Groups(self, axes)

    def for_variables(self, variables):
        if self.groups != "channels":
            return super().for_variables(variables)
        return channels.penalties(self, self.layout, variables, self._costs)

    def value(self, w):
        return self._groups(w).value(w)

    def prox(self, w, step):
        return self._groups(w).prox(w, step)

    def magnitude(self, w):
        return self._groups(w).magnitude(w)

    def units(self, w):
        return self._groups(w).units(w)

    def _groups(self, w):
        if self.groups == "channels":
            raise TypeError('GroupL1(groups="channels") is known for all kernels together, not for one array.')
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
        layout = self.layout
        if self.groups == "channels":
            layout = {path: own if own is None else own.tolist() for path, own in layout.items()}
        costs = {} if self._costs is None else {"costs": self._costs.tolist()}
        return {**super().get_config(), "groups": self.groups, "layout": layout, "weights": self.weights, **costs}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The inverse of `get_config`."""
        costs = config.get("costs")
        if costs is None:
            return super().from_config(config)
        penalty = super().from_config({key: config[key] for key in config if key not in ("costs", "weights")})
        penalty.weights, penalty._costs = config["weights"], np.array(costs)
        return penalty


class _Groups:
    """The group lasso on a kernel whose groups are numbered by `axes`; λ is that of `penalty`."""

    shared = None

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


def _check_axes(part, axes):
    numbers_of_axes = (axes,) if isinstance(axes, numbers.Integral) else axes
    if (
        not isinstance(numbers_of_axes, Sequence)
        or not numbers_of_axes
        or not all(isinstance(axis, numbers.Integral) for axis in numbers_of_axes)
    ):
        raise ValueError(f"GroupL1: layout[{part!r}] must be an axis or a tuple of axes; received {axes!r}.")
    return tuple(map(int, numbers_of_axes))
