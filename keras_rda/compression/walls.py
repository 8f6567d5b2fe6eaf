"""Where a call's channels lie: what every rule asks, and the wall that stands where no rule knows an answer."""

import numpy as np

from keras_rda.compression.analysis import Channels


def wall(analysis, call, reason):
    """Everything that goes into the call stays; what comes out has channels of its own, which stay too."""
    for tensor in call.inputs:
        if tensor in analysis.channels:
            analysis.fix(analysis.channels[tensor].ids, reason)
    for tensor in call.outputs:
        analysis.channels[tensor] = opaque(analysis, tensor, reason)
    analysis.walled[id(call.layer)] = reason


def mixing(analysis, call):
    """The wall of a layer that mixes channels in a way that is not cut."""
    wall(analysis, call, f"'{call.name}' mixes channels")


def opaque(analysis, tensor, reason, axis=-1):
    """New channels on `axis`, all fixed; none where its size is not known."""
    axis %= max(len(tensor.shape), 1)
    size = tensor.shape[axis] if axis else None
    ids = analysis.fresh(size or 0)
    analysis.fix(ids, reason)
    analysis.opaque.add(tensor)
    return Channels(axis, ids, np.full(len(ids), np.nan))


def single(analysis, call, axis=None):
    """The channels of a call's one input (on `axis`); None if the call has another form."""
    if len(call.inputs) != 1 or len(call.outputs) != 1:
        return None
    (tensor,) = call.inputs
    channels = analysis.channels[tensor]
    if axis is not None and channels.axis != axis:
        # The channels of a model's input lie on no axis yet: the first layer that reads it decides.
        channels = opaque(analysis, tensor, "whole", axis) if tensor in analysis.opaque else None
    return channels if channels is None or len(channels) else None


def zero_stays(constant):
    """The constants behind a layer that pads with zeros: only a zero is one."""
    return np.where(constant == 0, 0.0, np.nan)
