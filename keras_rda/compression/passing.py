"""Rules of layers and operations that pass channels on: nothing of theirs shrinks with the channels."""

import dataclasses

import keras
import numpy as np

from keras_rda.compression import tracing
from keras_rda.compression.activations import is_elementwise, is_finite, of_known
from keras_rda.compression.analysis import Channels
from keras_rda.compression.graph import Tensor
from keras_rda.compression.walls import mixing, opaque, single, wall, zero_stays
from keras_rda.layer_facts import channel_axis

layers = keras.layers


def fragile(rule):
    """`rule`, for a function that is not finite everywhere."""

    def fragile(analysis, call):
        for tensor in call.inputs:
            analysis.fragile(analysis.channels[tensor].ids)
        return rule(analysis, call)

    return fragile


def spatial(constant):
    """A rule for layers that act on each channel alone over space; `constant` maps a constant channel's value."""

    def rule(analysis, call):
        channels = single(analysis, call, channel_axis(call.layer, len(call.inputs[0].shape)))
        if channels is None:
            return wall(analysis, call, f"'{call.name}' acts across channels")
        # A global pooling without keepdims drops the axes of space.
        axis = channel_axis(call.layer, len(call.outputs[0].shape))
        analysis.channels[call.outputs[0]] = Channels(axis, channels.ids, constant(call.layer, channels.constant))

    return rule


def same(layer, constant):
    return constant


def padding(layer, constant):
    return zero_stays(constant)


def resizing(layer, constant):
    return _padded(constant, layer.fill_value) if layer.pad_to_aspect_ratio else constant


def _padded(constant, value):
    """The constants behind what pads with a `value`."""
    return np.where(constant == value, constant, np.nan)


def elementwise(analysis, call):
    """A function of one tensor that acts on each element alone."""
    channels = single(analysis, call)
    # Arrays among the arguments, or kept by an operation, may have a number for each channel.
    others = [*call.args, *call.kwargs.values()]
    if not isinstance(call.layer, layers.Layer):
        others += [value for name, value in vars(call.layer).items() if not name.startswith("_")]
    lists = [other for other in others if isinstance(other, (list, tuple, dict))]
    if channels is None or lists or _has_arrays(others):
        return wall(analysis, call, f"'{call.name}' combines tensors")
    shape = [1] * len(call.inputs[0].shape)
    shape[channels.axis] = len(channels)

    def function(values):
        args, kwargs = call.fill(lambda tensor: keras.ops.reshape(values, shape))
        return keras.ops.reshape(call.layer.call(*args, **kwargs), (-1,))

    analysis.channels[call.outputs[0]] = Channels(channels.axis, channels.ids, of_known(function, channels.constant))


def _has_arrays(arguments):
    return tracing.has_arrays(keras.tree.flatten(arguments), Tensor)


def comparison(analysis, call):
    """Which elements are larger, as a mask: of floating-point numbers each channel's own."""
    if any("float" not in tensor.dtype or tensor in analysis.opaque for tensor in call.inputs):
        return mixing(analysis, call)
    return merge(unknown)(analysis, call)


def cast(analysis, call):
    """Another precision; but what is or becomes no floating-point number is for masks and indices."""
    if any("float" not in tensor.dtype for tensor in (*call.inputs, *call.outputs)):
        return mixing(analysis, call)
    # Larger numbers than float16 has become infinite.
    rule = fragile(elementwise) if call.outputs[0].dtype == "float16" else elementwise
    return rule(analysis, call)


def identity(analysis, call):
    """A layer that does nothing when the model predicts."""
    channels = single(analysis, call)
    if channels is None or call.kwargs.get("training") or any(arg is True for arg in call.args[1:]):
        return wall(analysis, call, f"'{call.name}' is called with training=True")
    analysis.channels[call.outputs[0]] = channels


def activation_layer(analysis, call):
    if is_elementwise(analysis, call.layer.activation, len(call.inputs[0].shape)):
        rule = elementwise if is_finite(call.layer.activation) else fragile(elementwise)
        return rule(analysis, call)
    if call.layer.activation in (keras.activations.softmax, keras.activations.log_softmax):
        return _softmax_like(analysis, call, -1)
    return mixing(analysis, call)


def softmax(analysis, call):
    return _softmax_like(analysis, call, call.layer.axis)


def _softmax_like(analysis, call, axes):
    tensor, mask = call.inputs[0], call.kwargs.get("mask", call.args[1] if len(call.args) > 1 else None)
    channels, rank = analysis.channels[tensor], len(tensor.shape)
    alike = is_shared(mask, channels.axis, rank)
    if not len(channels) or not alike or channels.axis in axes_of(axes, rank):
        return mixing(analysis, call)
    analysis.channels[call.outputs[0]] = channels.unknown()


def is_shared(array, axis, rank):
    """Whether a `Tensor`, an array or None, broadcast to `rank` axes, is the same for all channels on `axis`."""
    if array is None:
        return True
    shape = tuple(array.shape) if hasattr(array, "shape") else np.shape(array)
    axis -= rank - len(shape)
    return axis < 0 or shape[axis] == 1


def normalization(analysis, call):
    """A normalisation over some axes passes the channels on others."""
    channels = single(analysis, call)
    if channels is None or call.inputs[0] in analysis.opaque or channels.axis in normalized_axes(call):
        return mixing(analysis, call)
    analysis.channels[call.outputs[0]] = channels.unknown()


def normalized_axes(call):
    """The axes that a normalisation computes its statistics over."""
    return axes_of(call.layer.axis, len(call.inputs[0].shape))


def axes_of(axes, rank):
    """One axis or several, None for all, as a set counted from the batch."""
    if axes is None:
        return set(range(rank))
    return {axis % rank for axis in (axes if isinstance(axes, (list, tuple)) else [axes])}


def each_alone(analysis, call):
    """Pass channels through a layer whose kind does not tell, if it does the same to each alone, as far as numbers
    show; return whether it does. `compress` tries it again with those that stay.

    On the last axis the user's own layers mix channels more often than not. Of these only those are tried that have no
    weights and seem to act on each element alone, such as activations.
    """
    channels = single(analysis, call)
    tensor = call.inputs[0] if channels else None
    if channels is None or tensor in analysis.opaque or call.masked or call in analysis.refused:
        return False
    if tracing.is_of_others(call.layer):
        return False
    is_last = channels.axis == len(tensor.shape) - 1
    if is_last and not tracing.acts_on_elements(call.layer, call.args, call.kwargs, tensor):
        return False
    if not tracing.does_each_alone(call, tensor, channels.axis):
        return False
    analysis.tried.append((call, channels))
    analysis.fragile(channels.ids)  # what it makes of a placeholder's value is not known
    if is_last:
        elementwise(analysis, call)
        return call.outputs[0] not in analysis.opaque
    analysis.channels[call.outputs[0]] = channels.unknown()
    return True


def merge(function):
    """A rule for elementwise functions of several tensors; a dimension of 1 is broadcast."""

    def rule(analysis, call):
        tensors = call.inputs
        if not isinstance(call.layer, keras.layers.Layer) and len(tensors) == 1:
            if len(call.outputs) == 1 and call.outputs[0].shape == tensors[0].shape:
                return elementwise(analysis, call)
            return mixing(analysis, call)
        if _has_arrays((call.args, call.kwargs)):
            return wall(analysis, call, f"'{call.name}' combines tensors with an array")
        out = call.outputs[0]
        sides = [analysis.channels[tensor] for tensor in tensors]
        # On which axis an opaque tensor has its channels, such as a mask, is open.
        told = [side for tensor, side in zip(tensors, sides, strict=True) if tensor not in analysis.opaque]
        widest = max(told or sides, key=len)
        axis, width = widest.axis, len(widest)
        for position, (tensor, side) in enumerate(zip(tensors, sides, strict=True)):
            one = len(tensor.shape) > axis and tensor.shape[axis] == 1
            if one and tensor in analysis.opaque and side.axis != axis:
                side = sides[position] = opaque(analysis, tensor, f"'{call.name}' reads it for all channels", axis)
            alike = side.axis == axis and len(side) == width
            alone = len(side) == 1 and one
            if len(tensor.shape) != len(out.shape) or not width or not (alike or alone):
                return wall(analysis, call, f"'{call.name}' combines tensors with channels on different axes")
        for side in sides:
            if len(side) == width:
                analysis.tie(widest.ids, side.ids)
            else:
                analysis.broadcast(side.ids, widest.ids, call.name)
        constants = [np.broadcast_to(side.constant, (width,)) for side in sides]
        analysis.channels[out] = Channels(axis, widest.ids, function(constants))

    return rule


def of_constants(function):
    """`function` (of a list of arrays) of constants; unknown where one of them is."""

    def known(constants):
        with np.errstate(all="ignore"):
            result = np.asarray(function([constant.astype("float32") for constant in constants]), "float64")
        return np.where(np.isfinite(result), result, np.nan)

    return known


def unknown(constants):
    return np.full(len(constants[0]), np.nan)


def where(constants):
    """Of a condition and what is taken where it holds and where not; a number among the three is not here."""
    if len(constants) != 3:
        return unknown(constants)
    condition, first, second = constants
    return np.where(np.isnan(condition), np.where(first == second, first, np.nan), np.where(condition, first, second))


def product(constants):
    with np.errstate(all="ignore"):
        result = np.prod([constant.astype("float32") for constant in constants], axis=0, dtype="float32")
    zero = np.any([constant == 0 for constant in constants], axis=0)
    return np.where(zero, 0.0, np.where(np.isfinite(result), result, np.nan))


def concatenate(analysis, call):
    sides = _joined(analysis, call)
    out = call.outputs[0]
    where = call.layer.axis % len(out.shape)
    if sides and where == sides[0].axis:
        ids, constant = (np.concatenate([getattr(side, name) for side in sides]) for name in ("ids", "constant"))
        analysis.channels[out] = Channels(where, ids, constant)
    else:
        _side_by_side(analysis, call, sides, 0)


def stack(analysis, call):
    """Tensors side by side along a new axis."""
    sides, new = _joined(analysis, call), call.layer.axis % len(call.outputs[0].shape)
    _side_by_side(analysis, call, sides if new else [], int(bool(sides) and new <= sides[0].axis))


def _joined(analysis, call):
    """The `Channels` of tensors that are joined; none where they lie on different axes, or an array is among them."""
    sides = [analysis.channels[tensor] for tensor in call.inputs]
    alike = all(side.axis == sides[0].axis and len(side) for side in sides)
    return sides if alike and not _has_arrays((call.args, call.kwargs)) else []


def _side_by_side(analysis, call, sides, moved):
    """The same channels in all tensors, in the output on an axis that has `moved` so far."""
    if not sides or any(len(side) != len(sides[0]) for side in sides):
        return wall(analysis, call, f"'{call.name}' joins tensors with channels on different axes")
    for side in sides[1:]:
        analysis.tie(sides[0].ids, side.ids)
    constants = np.array([side.constant for side in sides])
    constant = np.where((constants == constants[0]).all(axis=0), constants[0], np.nan)
    analysis.channels[call.outputs[0]] = Channels(sides[0].axis + moved, sides[0].ids, constant)


def pad(analysis, call):
    """Padding along other axes than the channels'."""
    channels = single(analysis, call)
    if channels is None:
        return mixing(analysis, call)
    widths = np.broadcast_to(call.layer.pad_width, (len(call.inputs[0].shape), 2))
    if widths[channels.axis].any():
        return wall(analysis, call, f"'{call.name}' adds channels")
    constant = channels.constant
    if call.layer.mode == "constant":  # the others pad with what is there
        values = [value for value in (*call.args[1:], *call.kwargs.values()) if value is not None]
        constant = _padded(constant, values[0] if values else 0)
    analysis.channels[call.outputs[0]] = Channels(channels.axis, channels.ids, constant)


def along(analysis, call):
    """An operation that moves elements along its axes, if these are others than the channels'."""
    channels = single(analysis, call)
    if channels is None or {channels.axis, 0} & axes_of(call.layer.axis, len(call.inputs[0].shape)):
        return mixing(analysis, call)
    analysis.channels[call.outputs[0]] = channels


def gated(analysis, call):
    """One half of the channels, each times the sigmoid of one of the other half."""
    channels = single(analysis, call, call.layer.axis % len(call.inputs[0].shape))
    if channels is None:
        return mixing(analysis, call)
    first, second = np.split(channels.ids, 2)
    analysis.tie(first, second)
    constant = zero_stays(np.split(channels.constant, 2)[0])
    analysis.channels[call.outputs[0]] = Channels(channels.axis, first, constant)


def own_channels(analysis, call):
    """A layer with numbers for each channel that are part of its configuration: they are not cut."""
    channels = single(analysis, call)
    if channels is None:
        return mixing(analysis, call)
    analysis.fix(channels.ids, f"'{call.name}' has a number for each channel in its configuration")
    analysis.channels[call.outputs[0]] = channels.unknown()


def rescaling(analysis, call):
    if np.size(call.layer.scale) > 1 or np.size(call.layer.offset) > 1:
        return own_channels(analysis, call)
    return elementwise(analysis, call)


def repeat(analysis, call):
    channels = single(analysis, call, 1)
    if channels is None:
        return mixing(analysis, call)
    analysis.channels[call.outputs[0]] = Channels(2, channels.ids, channels.constant)


def permute(analysis, call):
    channels = single(analysis, call)
    if channels is None:
        return mixing(analysis, call)
    axis = 1 + list(call.layer.dims).index(channels.axis)
    analysis.channels[call.outputs[0]] = dataclasses.replace(channels, axis=axis)


def reduce(zero_only):
    """A reduction over other axes than the channels'."""

    def rule(analysis, call):
        channels = single(analysis, call)
        axes = axes_of(call.layer.axis, len(call.inputs[0].shape))
        if channels is None or channels.axis in axes or 0 in axes or getattr(call.layer, "initial", None) is not None:
            return mixing(analysis, call)
        axis = channels.axis if call.layer.keepdims else channels.axis - sum(a < channels.axis for a in axes)
        constant = zero_stays(channels.constant) if zero_only else channels.constant
        analysis.channels[call.outputs[0]] = Channels(axis, channels.ids, constant)

    return rule
