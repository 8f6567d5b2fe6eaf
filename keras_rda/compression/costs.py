"""What the layers of a model multiply and add for one sample."""

import math

import keras

from keras_rda import layer_facts
from keras_rda.kernels import is_kernel

layers = keras.layers


def positions(layer, calls):
    """How often each weight of the layer's kernels is multiplied for one sample, over all calls of the layer.

    Args:
        layer: One that `layer_facts` knows.
        calls: Its `Call`s.

    Returns:
        An int; None where a shape is not known.
    """
    if isinstance(layer, layers.MultiHeadAttention):
        found = [_tokens(call.inputs[0].shape) for call in calls]
    else:
        found = [layer_facts.positions(layer, call.inputs[0].shape, call.outputs[0].shape) for call in calls]
    return _over_parts(found, calls)


def attention(layer, calls):
    """What each head of multi-head attention multiplies besides its projections, with as many keys as queries; None
    where a shape is not known."""
    tokens = [_tokens(call.inputs[0].shape) for call in calls]
    total = _over_parts([None if count is None else count**2 for count in tokens], calls)
    return None if total is None else total * (layer.key_dim + layer.value_dim)


def multiply_adds(layer, calls):
    """Of a layer, over all its calls; None where a shape, or how it uses its weights, is not known."""
    facts = layer_facts.of(layer)
    heads = isinstance(layer, layers.MultiHeadAttention)
    if facts is not None and facts.positions is None and not heads:
        return 0
    if type(layer) not in layer_facts.TABLE:  # one of the user's own may use its weights in any way
        return None if any(len(weight.shape) > 1 for weight in layer.weights) else 0
    times = positions(layer, calls)
    if times is None:
        return None
    total = times * sum(math.prod(weight.shape) for weight in layer.weights if is_kernel(weight))
    return total + layer.num_heads * attention(layer, calls) if heads else total


def _over_parts(numbers, calls):
    """The sum over calls of a number for each entry of the batch; None where one, or how many entries, is not known."""
    parts = [call.inputs[0].parts for call in calls]
    return None if None in (*numbers, *parts) else sum(a * b for a, b in zip(numbers, parts, strict=True))


def _tokens(shape):
    return None if None in shape[1:] else math.prod(shape[1:-1])
