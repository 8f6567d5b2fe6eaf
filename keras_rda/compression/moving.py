"""The rules of layers and operations that only rearrange elements."""

import keras
import numpy as np

from keras_rda.compression.analysis import Channels
from keras_rda.compression.graph import Tensor
from keras_rda.compression.rule import Rule, Use
from keras_rda.compression.walls import mixing, single, wall


class Move(Rule):
    """Flatten and Reshape: where each channel goes is read off the layer itself, applied to indices.

    Args:
        target: The configuration's entry that holds the new shape, if there is one.
    """

    def __init__(self, target=None):
        self.target = target
        self.batch = int(target == "newshape")  # whether that shape has the batch in it

    def __call__(self, analysis, call):
        channels = single(analysis, call)
        if channels is None:
            return wall(analysis, call, f"'{call.name}' combines tensors")
        (tensor,), (out,) = call.inputs, call.outputs
        last = len(tensor.shape) - 1
        if self.target and channels.axis == last and out.shape[-1] == len(channels):
            # Row-major order with the last dimension as it was: nothing but the other dimensions changes.
            axis, order = len(out.shape) - 1, np.arange(len(channels))
        else:
            try:
                axis, order = (None, None) if None in tensor.shape[1:] else _moved(call, tensor, channels)[0]
            except Exception:  # two samples do not fill it
                axis = order = None
            if order is None:
                return wall(analysis, call, f"'{call.name}' splits or joins channels")
        moved = Channels(axis, channels.ids[order], channels.constant[order])
        analysis.channels[out] = moved
        if self.target:
            use = analysis.uses.setdefault(id(call.layer), Use(call.layer, self, channels, moved))
            if use.outputs is not moved:  # a layer that is called again has the same target
                if len(use.outputs) != len(moved) or use.outputs.axis != axis:
                    return wall(analysis, call, f"'{call.name}' is called with channels on different axes")
                analysis.tie(use.outputs.ids, moved.ids)

    def config(self, config, use, cut):
        shape = list(config[self.target])
        position = use.outputs.axis - 1 + self.batch
        if shape[position] != -1:
            shape[position] = int(cut.keep_outputs.sum())
        return {**config, self.target: shape}

    def weights(self, use, cut):
        return []


def rearrange(analysis, call):
    """An operation that moves elements along other axes than the channels', or repeats each channel as often."""
    tensor = call.inputs[0]
    channels = analysis.channels[tensor]
    # Numbers alone mean the same for fewer channels; and no axis, that all are one, or that those of size 1 go.
    numbers = (int, slice, type(None), type(...), Tensor)
    plain = all(isinstance(leaf, numbers) for leaf in keras.tree.flatten((call.args, call.kwargs)))
    plain &= getattr(call.layer, "axis", 0) is not None and isinstance(getattr(call.layer, "repeats", 1), int)
    if len(call.inputs) != 1 or not len(channels) or tensor in analysis.opaque or not plain:
        return mixing(analysis, call)
    try:
        found = _moved(call, tensor, channels)
    except Exception:  # sizes that are not known are no 4
        return mixing(analysis, call)
    for _, order in found:
        if order is None or not np.array_equal(order, np.repeat(np.arange(len(channels)), len(order) // len(channels))):
            return wall(analysis, call, f"'{call.name}' splits or joins channels")
    for out, (axis, order) in zip(call.outputs, found, strict=True):
        analysis.channels[out] = Channels(axis, channels.ids[order], channels.constant[order])


def split(analysis, call):
    """Parts along an axis: where that is the channels', those at the same place in each part stay or go together."""
    channels, rank = analysis.channels[call.inputs[0]], len(call.inputs[0].shape)
    parts = call.layer.indices_or_sections
    if call.layer.axis % rank != channels.axis or not isinstance(parts, int) or call.inputs[0] in analysis.opaque:
        return rearrange(analysis, call)
    sides = list(zip(np.split(channels.ids, parts), np.split(channels.constant, parts), strict=True))
    for (ids, constant), out in zip(sides, call.outputs, strict=True):
        analysis.tie(sides[0][0], ids)
        analysis.channels[out] = Channels(channels.axis, ids, constant)


def _moved(call, tensor, channels):
    """(axis, order) of every output: `order[i]` is the channel of the input that is the i-th there; (None, None) where
    channels do not lie along one axis. A batch that is not known counts as two samples, any other size as 4."""
    shape = [1] * len(tensor.shape)
    shape[channels.axis] = len(channels)
    whole = (tensor.shape[0] or 2 * (tensor.parts or 1), *(size or 4 for size in tensor.shape[1:]))
    index = np.broadcast_to(np.arange(len(channels), dtype="int32").reshape(shape), whole)
    args, kwargs = call.fill(lambda tensor: keras.ops.convert_to_tensor(index))
    outputs = keras.tree.flatten(call.layer.call(*args, **kwargs))
    return [_along_an_axis(keras.ops.convert_to_numpy(moved)) for moved in outputs]


def _along_an_axis(moved):
    if not moved.size:
        return None, None
    for axis in reversed(range(1, moved.ndim)):
        others = tuple(other for other in range(moved.ndim) if other != axis)
        first = moved.min(axis=others)
        if np.array_equal(first, moved.max(axis=others)):
            return axis, first
    return None, None
