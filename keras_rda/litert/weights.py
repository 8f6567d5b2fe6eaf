"""What a LiteRT file stores: its weights as they are, and the work they take."""

import dataclasses
import math

import numpy as np

from keras_rda.litert import encode, flatbuffer

# Operator → the operand that holds its weights, and the one whose positions they are used at (None: its output).
_WEIGHTS = {
    "CONV_2D": (1, None),
    "CONV_3D": (1, None),
    "DEPTHWISE_CONV_2D": (1, None),
    "FULLY_CONNECTED": (1, None),
    "TRANSPOSE_CONV": (1, 2),
}


def stored(model):
    """List the weights of a `ModelT` (constants of rank ≥ 2 in float32, float16 and int8) as `TensorEncoding`s."""
    schema = flatbuffer.schema()
    types = {schema.TensorType.FLOAT32: "float32", schema.TensorType.FLOAT16: "float16", schema.TensorType.INT8: "int8"}
    work = multiply_adds(model)
    rows = []
    for graph in model.subgraphs:
        readers = _readers(model, graph)
        for index, tensor in enumerate(graph.tensors):
            data = model.buffers[tensor.buffer].data
            if data is None or tensor.type not in types or tensor.shape is None or len(tensor.shape) < 2:
                continue
            if not math.prod(map(int, tensor.shape)):
                continue
            dtype = types[tensor.type]
            values = data.view(dtype)
            shape, nonzero = tuple(map(int, tensor.shape)), int(np.count_nonzero(values))
            name, operator = _use(graph, readers, index)
            encoding, indices = "dense", 0
            if tensor.sparsity is not None:
                vectors = [
                    vector.values
                    for level in tensor.sparsity.dimMetadata
                    for vector in (level.arraySegments, level.arrayIndices)
                    if vector is not None
                ]
                indices = sum(vector.nbytes for vector in vectors)
                encoding = f"sparse, {max((vector.itemsize for vector in vectors[1::2]), default=0)}-byte indices"
            rows.append(
                encode.TensorEncoding(
                    name=name,
                    operator=operator,
                    shape=shape,
                    dtype=dtype,
                    zeros=1 - nonzero / math.prod(shape),
                    encoding=encoding,
                    bytes=data.nbytes + indices,
                    dense_bytes=math.prod(shape) * values.itemsize,
                    floor_bytes=encode.floor_bytes(math.prod(shape), nonzero, values.itemsize),
                )
            )
    return in_order(rows, work)


def in_order(encodings, work):
    """`TensorEncoding`s in the order in which the file computes with them, and with their multiply-adds."""
    place = {name: number for number, name in enumerate(work)}
    rows = [dataclasses.replace(row, multiply_adds=work.get(row.name, 0)) for row in encodings]
    return sorted(rows, key=lambda row: place.get(row.name, len(place)))


def multiply_adds(model):
    """Multiplications of a weight in one invocation: dict of the weights' name → number, in the file's order."""
    work = {}
    for graph in model.subgraphs:
        sources = {}  # result of DENSIFY or DEQUANTIZE → what it is made from
        for operator in graph.operators:
            kind = flatbuffer.operator_name(model, operator)
            if kind in ("DENSIFY", "DEQUANTIZE"):
                sources[int(operator.outputs[0])] = int(operator.inputs[0])
            if kind not in _WEIGHTS:
                continue
            weights, positions = _WEIGHTS[kind]
            index = int(operator.inputs[weights])
            elements = math.prod(map(int, graph.tensors[index].shape))
            where = graph.tensors[int(operator.outputs[0] if positions is None else operator.inputs[positions])]
            names = {_name(graph, index)}
            while index in sources:
                index = sources[index]
                names.add(_name(graph, index))
            for name in names - {""}:
                work[name] = work.get(name, 0) + elements * math.prod(map(int, where.shape[:-1]))
    return work


def _readers(model, graph):
    """Tensor → the kind and the outputs of the first operator that reads it."""
    readers = {}
    for operator in graph.operators:
        for index in operator.inputs:
            readers.setdefault(int(index), (flatbuffer.operator_name(model, operator), operator.outputs))
    return readers


def _use(graph, readers, index):
    """The name of a constant and the operator that computes with it, behind DENSIFY and DEQUANTIZE."""
    name = _name(graph, index)
    kind, outputs = readers.get(index, ("", ()))
    while kind in ("DENSIFY", "DEQUANTIZE"):
        name = name or _name(graph, int(outputs[0]))
        kind, outputs = readers.get(int(outputs[0]), ("", ()))
    return name, kind


def _name(graph, index):
    return (graph.tensors[index].name or b"").decode(errors="replace")
