"""What the layers of a model multiply and add for one sample."""

import math

import keras

from keras_rda import layer_facts
from keras_rda.kernels import is_kernel

layers = keras.layers


def shapes(flat):
    """{`Tensor`: its shape} of a `FlatModel`; sizes that a nested model leaves open are those that it is given here."""
    if all(None not in tensor.shape[1:] for call in flat.calls for tensor in call.outputs):
        return {tensor: tensor.shape for tensor in [*flat.inputs, *(t for call in flat.calls for t in call.outputs)]}
    specs = {tensor: keras.KerasTensor(tensor.shape, tensor.dtype) for tensor in flat.inputs}
    for call in flat.calls:
        args, kwargs = call.fill(specs.__getitem__)
        outputs = keras.tree.flatten(call.layer.compute_output_spec(*args, **kwargs))
        specs.update(zip(call.outputs, outputs, strict=True))
    return {tensor: tuple(spec.shape) for tensor, spec in specs.items()}


def positions(layer, calls, shapes):
    """How often each weight of the layer's kernels is multiplied for one sample, over all calls of the layer.

    Args:
        layer: One that `layer_facts` knows.
        calls: Its `Call`s.
        shapes: {`Tensor`: its shape}.

    Returns:
        An int; None where a shape is not known.
    """
    if isinstance(layer, layers.MultiHeadAttention):
        found = [_tokens(shapes[call.inputs[0]]) for call in calls]
    else:
        found = [layer_facts.positions(layer, shapes[call.inputs[0]], shapes[call.outputs[0]]) for call in calls]
    return None if None in found else sum(found)


def attention(layer, calls, shapes):
    """What each head of multi-head attention multiplies besides its projections, with as many keys as queries; None
    where a shape is not known."""
    tokens = [_tokens(shapes[call.inputs[0]]) for call in calls]
    return None if None in tokens else sum(count**2 for count in tokens) * (layer.key_dim + layer.value_dim)


def multiply_adds(layer, calls, shapes):
    """Of a layer, over all its calls; None where a shape, or how it uses its weights, is not known."""
    facts = layer_facts.of(layer)
    heads = isinstance(layer, layers.MultiHeadAttention)
    if facts is not None and facts.positions is None and not heads:
        return 0
    if type(layer) not in layer_facts.TABLE:  # one of the user's own may use its weights in any way
        return None if any(len(weight.shape) > 1 for weight in layer.weights) else 0
    times = positions(layer, calls, shapes)
    if times is None:
        return None
    total = times * sum(math.prod(weight.shape) for weight in layer.weights if is_kernel(weight))
    return total + layer.num_heads * attention(layer, calls, shapes) if heads else total


def _tokens(shape):
    return None if None in shape[1:] else math.prod(shape[1:-1])
