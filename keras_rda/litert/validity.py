"""What a LiteRT file must satisfy before anything trusts it: neither FlatBuffers' parser nor LiteRT's runtime checks.

What an operator makes of its operands is left to the runtime, which refuses, or crashes (`keras-rda` survives that).
"""

import math

import numpy as np

_DENSE, _COMPRESSED = 0, 1  # DimensionType of the schema
# Operators of which this package looks at operands by position → how many inputs it takes for granted.
_INPUTS = {
    "CONV_2D": 2,
    "CONV_3D": 2,
    "DENSIFY": 1,
    "DEPTHWISE_CONV_2D": 2,
    "DEQUANTIZE": 1,
    "FULLY_CONNECTED": 2,
    "TRANSPOSE_CONV": 3,
}


def check_extent(model, size):
    """Refuse content whose tables refer to the same few bytes so often that parsing would take forever.

    Args:
        model: A `Model`, the schema's accessor.
        size: Bytes of the content.

    Raises:
        ValueError: tables and names take more than four times the content.
        struct.error: an offset points outside.
    """
    budget = 4 * size

    def spend(amount):
        nonlocal budget
        budget -= amount
        if budget < 0:
            raise ValueError("its parts overlap")

    def each(table, name):
        length = getattr(table, f"{name}Length")()
        spend(4 * length)
        return (getattr(table, name)(index) for index in range(length))

    def text(string):
        spend(len(string or b""))

    text(model.Description())
    each(model, "Buffers")
    for code in each(model, "OperatorCodes"):
        text(code.CustomCode())
    for entry in each(model, "Metadata"):
        text(entry.Name())
    for signature in each(model, "SignatureDefs"):
        text(signature.SignatureKey())
        for side in ("Inputs", "Outputs"):
            for place in each(signature, side):
                text(place.Name())
    for graph in each(model, "Subgraphs"):
        text(graph.Name())
        each(graph, "Operators")
        for tensor in each(graph, "Tensors"):
            text(tensor.Name())
            each(tensor, "VariantTensors")
            if tensor.Sparsity() is not None:
                each(tensor.Sparsity(), "DimMetadata")


def operator_number(model, operator):
    """The number of an operator's kind in the schema."""
    code = model.operatorCodes[operator.opcodeIndex]
    return max(code.builtinCode, code.deprecatedBuiltinCode)  # old files have only the latter


def problem(model, schema, operator_names):
    """What is wrong with a `ModelT`, in words; empty if nothing is. `operator_names`: number → name."""
    if not model.subgraphs or not model.buffers or not model.operatorCodes:
        return "it has no subgraph, buffer or operator code"
    for entry in model.metadata or []:
        if not 0 <= entry.buffer < len(model.buffers):
            return f"the buffer {entry.buffer} of its metadata does not exist"
    for signature in model.signatureDefs or []:
        if not 0 <= signature.subgraphIndex < len(model.subgraphs):
            return f"the subgraph {signature.subgraphIndex} of a signature does not exist"
        tensors = model.subgraphs[signature.subgraphIndex].tensors or []
        for place in [*(signature.inputs or []), *(signature.outputs or [])]:
            if not 0 <= place.tensorIndex < len(tensors) or place.name is None:
                return f"the tensor {place.tensorIndex} of a signature does not exist, or has no name"
    for graph in model.subgraphs:
        if not graph.tensors:
            return "a subgraph has no tensors"
        found = _tensors(model, graph, schema) or _operators(model, graph, operator_names)
        if found:
            return found
    return ""


def _tensors(model, graph, schema):
    sizes = {
        schema.TensorType.FLOAT32: 4,
        schema.TensorType.FLOAT16: 2,
        schema.TensorType.INT8: 1,
        schema.TensorType.INT32: 4,
        schema.TensorType.INT64: 8,
    }
    for tensor in graph.tensors:
        if not 0 <= tensor.buffer < len(model.buffers):
            return f"a tensor's buffer {tensor.buffer} does not exist"
        data, itemsize = model.buffers[tensor.buffer].data, sizes.get(tensor.type)
        shape = [] if tensor.shape is None else [int(length) for length in tensor.shape]
        if any(length < 0 for length in shape):
            return f"a tensor has the shape {tuple(shape)}"
        if data is None or not len(data) or itemsize is None:
            continue
        entries = math.prod(shape) if tensor.sparsity is None else _stored_entries(tensor.sparsity, shape)
        if entries is None:
            return "the indices of a sparse tensor point outside it"
        if len(data) != entries * itemsize:
            return f"a tensor of {entries} entries of {itemsize} bytes has {len(data)} bytes"
    return ""


def _stored_entries(sparsity, shape):
    """How many values a sparse encoding of a shape stores; None if it does not describe such a tensor."""
    blocked = [] if sparsity.blockMap is None else [int(axis) for axis in sparsity.blockMap]
    order = [] if sparsity.traversalOrder is None else [int(axis) for axis in sparsity.traversalOrder]
    levels, rank = sparsity.dimMetadata or [], len(shape)
    if sorted(order) != list(range(rank + len(blocked))) or len(levels) != len(order):
        return None
    sizes = shape + [int(levels[order.index(rank + block)].denseSize) for block in range(len(blocked))]
    for axis, size in zip(blocked, sizes[rank:], strict=True):
        if not 0 <= axis < rank or size < 1 or sizes[axis] % size:
            return None
        sizes[axis] //= size
    entries = 1
    for axis, level in zip(order, levels, strict=True):
        if level.format == _DENSE and level.denseSize == sizes[axis]:
            entries *= sizes[axis]
        elif level.format == _COMPRESSED and level.arraySegments is not None and level.arrayIndices is not None:
            segments, indices = (
                np.asarray([] if vector.values is None else vector.values, np.int64)
                for vector in (level.arraySegments, level.arrayIndices)
            )
            if len(segments) != entries + 1 or segments[0] != 0 or segments[-1] != len(indices):
                return None
            if np.any(np.diff(segments) < 0) or np.any(indices < 0) or np.any(indices >= sizes[axis]):
                return None
            entries = len(indices)
        else:
            return None
    return entries


def _operators(model, graph, operator_names):
    tensors, written, read = graph.tensors, set(), set()
    for indices in (graph.inputs, graph.outputs):
        if indices is not None and any(not 0 <= index < len(tensors) for index in indices):
            return "an input or output of a subgraph does not exist"
    for operator in graph.operators or []:
        if not 0 <= operator.opcodeIndex < len(model.operatorCodes):
            return f"an operator's code {operator.opcodeIndex} does not exist"
        inputs, outputs = (
            [] if indices is None else [int(index) for index in indices]
            for indices in (operator.inputs, operator.outputs)
        )
        if any(not -1 <= index < len(tensors) for index in inputs + outputs):
            return "an operator reads or writes a tensor that does not exist"
        kind = operator_names.get(operator_number(model, operator))
        wanted = _INPUTS.get(kind, 0)
        if wanted and (len(inputs) < wanted or -1 in inputs[:wanted] or not outputs):
            return f"an operator of the kind {kind} has {len(inputs)} inputs and {len(outputs)} outputs"
        read.update(inputs)
        new = set(outputs) - {-1}
        if new & (read | written):
            return "an operator reads what only a later one writes, or two write the same tensor"
        written |= new
    return ""
