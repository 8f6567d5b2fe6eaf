"""Sparse encoding of a LiteRT file's zeros, constant by constant, where it makes the file smaller.

An encoded constant is followed by a DENSIFY operator that fills it in again when the file is loaded: zeros take no
space, and the arithmetic is the dense file's. (TensorFlow's own pass encodes whether or not the file gets smaller, and
hands FULLY_CONNECTED operators blocks that the runtime reads wrongly.)
"""

import copy
import math

import numpy as np

from keras_rda.litert import sparse_format
from keras_rda.litert.graph import WEIGHT_TYPES, graphs, holders, schema
from keras_rda.litert.recompress import recompress
from keras_rda.litert.routes import STRATEGIES, UNCHANGED, Route, plan
from keras_rda.litert.weights import shared

# Upper bounds, in bytes, of what is added besides values, indices and levels (FlatBuffers tables and alignment): a
# DEQUANTIZE; a convolution with its RESHAPEs, and a channel of its bias.
_DEQUANTIZE_BYTES = 200
_CONVOLUTION_BYTES = 800
_BIAS_BYTES = 16


def encode(model, strategy="smallest"):
    """Encode the zeros of a LiteRT model.

    Each constant is stored in the smallest of the ways that the runtime reads: dense, or compressed along its
    dimensions in whichever order is best; also one that is stored sparse already. Float32, float16 and full int8 files
    compute what they did, bit for bit.

    Args:
        model: A `ModelT` of `flatbuffer.read`. It is not changed.
        strategy: What to do where the runtime does not take sparse weights: operators that quantise their inputs on the
            fly (in dynamic-range files). `"smallest"`: they compute in float32, with int8 weights that are dequantised
            when the file is loaded. `"same arithmetic"`: their weights stay dense. `"float32 values"`: like the first,
            but nothing is dequantised after DENSIFY; int8 and float16 weights are stored in float32 instead, so that
            outputs can differ from the dense file's by float32 rounding. It is right even where XNNPACK leaves one of
            those operators to the interpreter. `"same arithmetic, float32 values"`: their weights stay dense, and what
            is dequantised before an operator is stored in float32, which is right there too.

    Returns:
        A new `ModelT`, and a list of `TensorEncoding`: its constants of rank ≥ 2 in float32, float16 and int8.

    Raises:
        ValueError: an unknown strategy.
    """
    if strategy not in (strategies := dict.fromkeys(STRATEGIES + UNCHANGED)):
        raise ValueError(f"strategy must be one of {', '.join(map(repr, strategies))}; received {strategy!r}.")
    model = copy.deepcopy(model)
    taken = {entry.buffer for entry in model.metadata or []}
    taken.update([] if model.metadataBuffer is None else map(int, model.metadataBuffer))  # of old files
    return model, [
        encoding
        for buffer, places in holders(graphs(model)).items()
        if buffer not in taken
        for encoding in _encode_buffer(places, strategy)
    ]


def _encode_buffer(places, strategy):
    """Encode the buffer that the tensors at `places` share, if they are such constants; return `TensorEncoding`s."""
    if any(graph.tensors[index].sparsity for graph, index in places):
        return recompress(places)
    constants = {place: array for place in places if (array := _array(*place)) is not None}
    if not constants:
        return []
    array = next(iter(constants.values()))
    plans = [plan(graph, index, strategy) for graph, index in constants]
    uses = {(*found[1:], _form(graph.tensors[index])) for found, (graph, index) in zip(plans, constants, strict=True)}
    _, route, reason = plans[0]
    if len(uses) > 1 or len(constants) < len(places):
        route, reason = None, "other operators read the same buffer in another way"
    nonzero = int(np.count_nonzero(array))
    size, encoding = (route and _encode_array(list(constants), array, route)) or (array.nbytes, "dense")
    uses = [
        (graph.name(index), found.operator, own)
        for ((graph, index), own), found in zip(constants.items(), plans, strict=True)
    ]
    return shared(uses, nonzero, encoding, size, array.nbytes, reason)


def _array(graph, index):
    """The constant `index` as an array, if it is one that can be encoded."""
    array = graph.array(index) if graph.type(index) in WEIGHT_TYPES else None
    return None if array is None or array.ndim < 2 or graph.tensors[index].isVariable else array


def _form(tensor):
    """What tensors of one buffer must have in common to be encoded as one."""
    scale = None if tensor.quantization is None else tensor.quantization.scale
    return tensor.type, tuple(tensor.shape), None if scale is None else np.asarray(scale).tobytes()


def _encode_array(constants, array, route):
    """Store the array of `constants` sparsely if that is smaller; return bytes and description, or None."""
    graph, index = constants[0]
    tensor = graph.tensors[index]
    values = _dequantized(array, tensor.quantization) if route is Route.FLOAT32 else array
    if route is Route.CONVOLUTION:
        values = values.reshape(len(array), 1, 1, -1)
    size, order, compressed = sparse_format.smallest(values)
    # Tensors that share a buffer share the values but not the indices: counting both for each is a bound.
    size = len(constants) * (size + sparse_format.DENSIFY_BYTES + sparse_format.LEVEL_BYTES * values.ndim)
    if route is Route.DEQUANTIZE:
        size += len(constants) * _DEQUANTIZE_BYTES
    if route is Route.CONVOLUTION:
        readers = sum(len(graph.readers[index]) for graph, index in constants)
        size += readers * (_CONVOLUTION_BYTES + _BIAS_BYTES * len(array))
    if size >= array.nbytes:
        return None
    stored, sparsity = sparse_format.compress(values, order, compressed)
    graph.model.buffers[tensor.buffer].data = stored.view(np.uint8)
    for place in constants:
        _make_sparse(*place, route, sparsity)
    return size, sparse_format.describe(sparsity)[1] + route.value


def _dequantized(array, quantization):
    if array.dtype != np.int8:
        return array.astype(np.float32)
    shape = [1] * array.ndim
    if len(quantization.scale) > 1:
        shape[quantization.quantizedDimension] = -1
    zero_point = quantization.zeroPoint.reshape(shape)
    return ((array - zero_point) * quantization.scale.reshape(shape)).astype(np.float32)


def _make_sparse(graph, index, route, sparsity):
    """Turn the constant `index` into the result of a DENSIFY, whose sparse input takes over its buffer."""
    tensor, code, readers = graph.tensors[index], schema(), graph.readers[index]
    if route is Route.FLOAT32:
        tensor.type, tensor.quantization = code.TensorType.FLOAT32, None
    if route is Route.CONVOLUTION:
        tensor.shape = np.array([tensor.shape[0], 1, 1, tensor.shape[1]], np.int32)
    # Without quantisation parameters, which only DENSIFY's result needs: they are 12 bytes a channel.
    source = graph.add_tensor(tensor.shape, tensor.type, buffer=tensor.buffer, sparsity=sparsity)
    tensor.buffer = 0
    if route is Route.FLOAT32 and graph.kind(readers[0]) == "DEQUANTIZE":
        for operator in readers:  # DENSIFY's result is what they computed
            graph.replace(operator, [("DENSIFY", [source], operator.outputs, code.DensifyOptionsT())])
        return
    result, place = index, graph.operators.index(readers[0])
    graph.add_operator(place, "DENSIFY", [source], [index], code.DensifyOptionsT())
    if route is Route.DEQUANTIZE:
        result = graph.add_tensor(tensor.shape, code.TensorType.FLOAT32)
        graph.add_operator(place + 1, "DEQUANTIZE", [index], [result], code.DequantizeOptionsT())
    for operator in readers:
        operator.inputs = np.where(np.asarray(operator.inputs) == index, result, operator.inputs)
        if hasattr(operator.builtinOptions, "asymmetricQuantizeInputs"):
            operator.builtinOptions.asymmetricQuantizeInputs &= route not in (Route.FLOAT32, Route.DEQUANTIZE)
        if route is Route.CONVOLUTION:
            graph.replace(operator, _convolution(graph, operator))


def _convolution(graph, operator):
    """FULLY_CONNECTED as a 1×1 CONV_2D between RESHAPEs: in int8, XNNPACK takes DENSIFY's result only there."""
    code, tensors = schema(), graph.tensors
    data, weights, *bias = map(int, operator.inputs)
    (output,) = map(int, operator.outputs)
    units, _, _, features = graph.shape(weights)
    if not bias or bias[0] < 0:  # CONV_2D insists on one
        scale = tensors[data].quantization.scale * tensors[weights].quantization.scale
        quantization = code.QuantizationParametersT(
            scale=scale.astype(np.float32), zeroPoint=np.zeros(len(scale), np.int64)
        )
        bias = [graph.add_constant(np.zeros(units), quantization=quantization)]
    batch = math.prod(graph.shape(output)) // units
    inner = [
        graph.add_tensor(
            [batch, 1, 1, size],
            tensors[like].type,
            quantization=tensors[like].quantization,
            shapeSignature=np.array([-1, 1, 1, size], np.int32),
        )
        for size, like in ((features, data), (units, output))
    ]
    shapes = [graph.add_constant(shape) for shape in ([-1, 1, 1, features], [-1, *graph.fixed_shape(output)])]
    options = code.Conv2DOptionsT(
        padding=code.Padding.VALID,
        strideW=1,
        strideH=1,
        fusedActivationFunction=operator.builtinOptions.fusedActivationFunction,
    )
    return [
        ("RESHAPE", [data, shapes[0]], [inner[0]], code.ReshapeOptionsT()),
        ("CONV_2D", [inner[0], weights, bias[0]], [inner[1]], options),
        ("RESHAPE", [inner[1], shapes[1]], [output], code.ReshapeOptionsT()),
    ]
