"""Where a call's channels lie: what every rule asks, and the wall that stands where no rule knows an answer."""

import keras
import numpy as np

from keras_rda.compression.analysis import Channels

# Activations that act on each element alone: a constant channel stays one, and no channel depends on another.
ELEMENTWISE = {
    getattr(keras.activations, name)
    for name in (
        *("celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh"),
        *("leaky_relu", "linear", "log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_shrink"),
        *("softplus", "softsign", "sparse_plus", "sparse_sigmoid", "squareplus", "swish", "tanh", "tanh_shrink"),
        "threshold",
    )
    if hasattr(keras.activations, name)
}


def wall(analysis, call, reason):
    """Everything that goes into the call stays; what comes out has channels of its own, which stay too."""
    for tensor in call.inputs:
        if tensor in analysis.channels:
            analysis.fix(analysis.channels[tensor].ids, reason)
    for tensor in call.outputs:
        analysis.channels[tensor] = opaque(analysis, tensor, reason)
    analysis.walled[id(call.layer)] = reason


def opaque(analysis, tensor, reason, axis=-1):
    """New channels on `axis`, all fixed; none where its size is not known."""
    axis %= max(len(tensor.shape), 1)
    size = tensor.shape[axis] if axis else None
    ids = analysis.fresh(size or 0)
    analysis.fix(ids, reason)
    analysis.opaque.add(tensor)
    return Channels(axis, ids, np.full(len(ids), np.nan))


def mixing(analysis, call):
    wall(analysis, call, f"'{call.name}' mixes channels")


def channel_axis(layer, rank):
    return 1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1


def single(analysis, call, axis=None):
    """The channels of a call's one input (on `axis`); None if the call has another form."""
    if len(call.inputs) != 1 or len(call.outputs) != 1:
        return None
    (tensor,) = call.inputs
    channels = analysis.channels[tensor]
    if axis is not None and channels.axis != axis:
        # An input of the model has no layout yet: the first layer that reads it decides.
        channels = opaque(analysis, tensor, "whole", axis) if tensor in analysis.opaque else None
    return channels if channels is None or len(channels) else None


def zero_stays(layer, constant):
    return np.where(constant == 0, 0.0, np.nan)


def of_known(function, constant):
    """`function` of the known constants, in float32 as the network computes it; the unknown ones stay unknown."""
    known = np.isfinite(constant)
    if not known.any():
        return constant
    with np.errstate(over="ignore"):
        values = keras.ops.convert_to_tensor(np.where(known, constant, 0).astype("float32"))
    result = np.asarray(keras.ops.convert_to_numpy(function(values)), "float64")
    return np.where(known & np.isfinite(result), result, np.nan)


def activation_function(layer):
    """How a layer's own activation maps constants; None if it may mix channels."""
    activation = getattr(layer, "activation", None)
    if activation is None:
        return lambda constant: constant
    if activation in ELEMENTWISE:
        return lambda constant: of_known(activation, constant)
    return None
