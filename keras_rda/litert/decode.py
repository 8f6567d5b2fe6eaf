"""Zeros that take no flash of a microcontroller: constants in the form that TFLite Micro's operator DECODE fills in.

TFLite Micro has no DENSIFY. Its custom operator `TFLM_DECODE` writes a constant out again at every invocation, into the
arena, shortly before it is read: what is saved is flash, and the arithmetic is the dense file's. The form is the one
that `tensorflow/lite/micro/kernels/decode_state_prune.cc` of https://github.com/tensorflow/tflite-micro reads, which is
there since the second half of 2025.
"""

import copy
import itertools
import math

import numpy as np

from keras_rda.litert import weights
from keras_rda.litert.graph import (
    DECODE,
    DECODE_HEADER,
    DTYPES,
    PRUNING,
    WEIGHT_TYPES,
    add_buffer,
    graphs,
    holders,
    schema,
)
from keras_rda.litert.sparse_format import floor_bytes
from keras_rda.litert.weights import TensorEncoding

ENCODING = "decoded, 1 bit an entry"
# Operator → the operands that may be decoded. Its kernel looks at their values when it is invoked, not when it is
# prepared, as all do with a shape or an axis; each was run.
_READERS = {
    "BATCH_MATMUL": {0, 1},
    "CONV_2D": {1, 2},
    "DEPTHWISE_CONV_2D": {1, 2},
    "FULLY_CONNECTED": {1, 2},
    "GATHER": {0},
    "TRANSPOSE_CONV": {1, 3},
}
# The operator's kind of form (pruning), and the versions of the header and of the form.
_HEADER = np.array([PRUNING, 1, 0, 0, 1, *[0] * (DECODE_HEADER - 5)], np.uint8)
# Upper bounds, in bytes, of what is added besides the two arrays: FlatBuffers tables of two tensors, a buffer and an
# operator; and of another operator and its result for each reader after the first.
_DECODE_BYTES = 192
_READER_BYTES = 100


def encode(model):
    """Encode the zeros of a dense LiteRT model for TFLite Micro.

    Each constant that becomes smaller is stored as one bit an entry and the entries that are not zero. What nothing
    reads on a microcontroller is left out (`lean`).

    Args:
        model: A `ModelT` of `flatbuffer.read`. It is not changed.

    Returns:
        A new `ModelT`, and a list of `TensorEncoding`: its weights (constants of rank ≥ 2 in float32, float16 and int8)
        and whatever else is encoded. Zero is the zero point where they are quantised.

    Raises:
        ValueError: the model has an operator of a kind that the schema does not know.
    """
    model = copy.deepcopy(model)
    subgraphs = graphs(model)
    encodings, decoded = [], {}
    for places in holders(subgraphs).values():
        encodings += _encode_buffer(places, decoded)
    for graph in subgraphs:
        _insert(graph, {index: pair for (other, index), pair in decoded.items() if other is graph})
    return lean(model), encodings


def lean(model):
    """A `ModelT` without what nothing reads on a microcontroller: names of tensors, and how biases are quantised.

    A convolution with a scale for each channel derives that of its bias. `model` itself is not changed.
    """
    model = copy.copy(model)
    model.subgraphs = [copy.copy(graph) for graph in model.subgraphs]
    for graph in model.subgraphs:
        graph.tensors = [copy.copy(tensor) for tensor in graph.tensors]
        for tensor in graph.tensors:
            tensor.name = None
    for graph in graphs(model):
        for index, tensor in enumerate(graph.tensors):
            readers = {graph.kind(operator) for operator in graph.readers.get(index, ())}
            scales = None if tensor.quantization is None else tensor.quantization.scale
            is_bias = graph.type(index) == "INT32" and readers and readers <= {"CONV_2D", "DEPTHWISE_CONV_2D"}
            if is_bias and scales is not None and len(scales) > 1:
                tensor.quantization = None
    return model


def is_decoded(model):
    """Whether a `ModelT` has constants that TFLite Micro decodes, so that it runs nowhere else."""
    return any(code.customCode == DECODE for code in model.operatorCodes)


def stored(model):
    """List the weights of a `ModelT`, those that are decoded among them, as `weights.stored` does."""
    rows = weights.stored(model)
    if not is_decoded(model):
        return rows
    seen = set()
    for graph in graphs(model):
        for operator in graph.operators:
            if model.operatorCodes[operator.opcodeIndex].customCode != DECODE:
                continue
            for number, index in enumerate(map(int, operator.outputs)):
                entries, kept = (graph.tensors[i] for i in operator.inputs[2 * number : 2 * number + 2])
                if model.buffers[kept.buffer].data[0] != PRUNING or entries.buffer in seen:
                    continue  # other forms, of which this package writes none
                if graph.type(index) not in WEIGHT_TYPES or len(graph.shape(index)) < 2:
                    continue
                seen.add(entries.buffer)
                dtype, size = np.dtype(DTYPES[graph.type(index)]), math.prod(graph.shape(index))
                count = (len(model.buffers[kept.buffer].data) - _HEADER.size) // dtype.itemsize
                rows.append(
                    TensorEncoding(
                        name=graph.name(index),
                        operator=graph.kind(graph.readers[index][0]) if index in graph.readers else "",
                        shape=graph.shape(index),
                        dtype=dtype.name,
                        zeros=1 - count / size,
                        encoding=ENCODING,
                        bytes=sum(len(model.buffers[part.buffer].data) for part in (entries, kept)),
                        dense_bytes=size * dtype.itemsize,
                        floor_bytes=floor_bytes(size, count, dtype.itemsize),
                    )
                )
    return rows


def prune(array, zero_point=0):
    """The form of an array: which entries are kept, and a header with their values; both uint8, one-dimensional.

    Args:
        array: Of any type and shape.
        zero_point: What is left out: a number, or an array that broadcasts to the shape. (−0 comes back as 0.)
    """
    kept = array != zero_point
    return np.packbits(kept), np.concatenate([_HEADER, array[kept].view(np.uint8)])


def _encode_buffer(places, decoded):
    """Encode the buffer that the tensors at `places` share, if that is smaller; return `TensorEncoding`s.

    `decoded` is filled in: (graph, tensor) → the two tensors that it is decoded from.
    """
    arrays = {place: array for place in places if (array := place[0].array(place[1])) is not None and array.size}
    if not arrays:
        return []
    zero_points = [_zero_point(*place) for place in arrays]
    forms = [
        prune(array, 0 if zero_point is None else zero_point)
        for array, zero_point in zip(arrays.values(), zero_points, strict=True)
    ]
    array, (entries, kept) = next(iter(arrays.values())), forms[0]
    reason = next(filter(None, (_refusal(*place) for place in places)), "")
    if not all(np.array_equal(part, first) for form in forms for part, first in zip(form, forms[0], strict=True)):
        reason = "other operators read the same buffer in another way"
    size, encoding = _padded(array), "dense"
    if not reason:
        readers = sum(len(graph.readers[index]) for graph, index in places)
        added = _DECODE_BYTES * len(places) + _READER_BYTES * (readers - len(places))
        if _padded(entries) + _padded(kept) + added < size:
            size, encoding = _padded(entries) + _padded(kept) + added, ENCODING
            decoded |= _store(places, entries, kept)
    count = (kept.size - _HEADER.size) // array.itemsize
    uses = [
        (graph.name(index), graph.kind(graph.readers[index][0]) if index in graph.readers else "", own)
        for (graph, index), own in arrays.items()
    ]
    is_listed = [encoding != "dense" or (own.ndim > 1 and own.dtype.name.upper() in WEIGHT_TYPES) for *_, own in uses]
    return list(itertools.compress(weights.shared(uses, count, encoding, size, _padded(array), reason), is_listed))


def _padded(array):
    """The bytes of an array in a file, where it begins at a multiple of 16."""
    return -(-array.nbytes // 16) * 16


def _store(places, entries, kept):
    """Put the form of the constants at `places` into their buffer and a new one; return what `decoded` maps them to."""
    graph, index = places[0]
    buffers = graph.tensors[index].buffer, add_buffer(graph.model, kept)
    graph.model.buffers[buffers[0]].data = entries
    found = {}
    for graph, index in places:
        found[graph, index] = [
            graph.add_tensor(part.shape, schema().TensorType.UINT8, buffer=buffer)
            for part, buffer in zip((entries, kept), buffers, strict=True)
        ]
        graph.tensors[index].buffer = 0
    return found


def _refusal(graph, index):
    """Why a tensor cannot be decoded; empty if it can."""
    readers = graph.readers.get(index, [])
    if not readers or index in graph.subgraph.outputs or graph.tensors[index].isVariable:
        return "it is an output or a state of the graph" if readers else "no operator reads it"
    for operator in readers:
        kind = graph.kind(operator)
        operands = {position for position, operand in enumerate(operator.inputs) if operand == index}
        if not operands <= _READERS.get(kind, set()):
            return f"{kind} is not known to take decoded constants here"
    if graph.array(index) is None or graph.type(index) == "FLOAT16":
        return f"TFLite Micro does not decode {graph.type(index)}"
    return "TFLite Micro does not decode this quantisation" if _zero_point(graph, index) is None else ""


def _zero_point(graph, index):
    """What stands for zero in a constant, a number or an array that broadcasts to it; None if DECODE refuses it."""
    shape, quantization = graph.shape(index), graph.tensors[index].quantization
    if quantization is None or quantization.scale is None or quantization.zeroPoint is None:
        return 0
    axis, channels, zero_points = quantization.quantizedDimension, len(quantization.scale), quantization.zeroPoint
    if axis != 0 and (axis != len(shape) - 1 or channels == 1):
        return None
    if channels > 1 and graph.type(index) == "INT8":
        if shape[axis : axis + 1] != (channels,) or len(zero_points) != channels:
            return None
        return zero_points.reshape([-1 if dimension == axis else 1 for dimension in range(len(shape))])
    return int(zero_points[0]) if graph.type(index) == "INT8" or zero_points[0] == 0 else None


def _insert(graph, decoded):
    """Put one DECODE before each reader of the constants `decoded`, tensor → the two tensors that it is decoded from.

    Each reader has one of its own: TFLite Micro promises a decoded constant to the next operator only.
    """
    taken = set()
    for operator in list(graph.operators):
        constants = [index for index in dict.fromkeys(map(int, operator.inputs)) if index in decoded]
        if not constants:
            continue
        own = {}
        for index in constants:
            own[index] = index
            if index in taken:
                graph.tensors.append(copy.copy(graph.tensors[index]))
                own[index] = len(graph.tensors) - 1
        taken |= own.keys()
        operator.inputs = np.array([own.get(index, index) for index in map(int, operator.inputs)], np.int32)
        decode = schema().OperatorT(
            opcodeIndex=_code(graph.model),
            inputs=np.array([tensor for index in constants for tensor in decoded[index]], np.int32),
            outputs=np.array(list(own.values()), np.int32),
        )
        graph.operators.insert(graph.operators.index(operator), decode)


def _code(model):
    """The index of DECODE's code, which is appended if the model has none."""
    for index, code in enumerate(model.operatorCodes):
        if code.customCode == DECODE:
            return index
    custom = schema().BuiltinOperator.CUSTOM
    code = schema().OperatorCodeT(builtinCode=custom, deprecatedBuiltinCode=custom, customCode=DECODE, version=1)
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
