"""What a LiteRT file must satisfy before anything trusts it: neither FlatBuffers' parser nor LiteRT's runtime checks.

What an operator makes of its operands is left to the runtime, which refuses, or crashes (`keras-rda` survives that).
"""

import math

import numpy as np

from keras_rda.litert.graph import (
    DECODE,
    DECODE_HEADER,
    DTYPES,
    OPERANDS,
    PRUNING,
    UNPACKING,
    names,
    operator_number,
    schema,
)

_DENSE, _COMPRESSED = 0, 1  # DimensionType of the schema
_LARGEST_RANK = 8  # more than LiteRT's kernels take
# Operators of which this package looks at operands by position → how many inputs it takes for granted.
_INPUTS = {kind: 1 + max(*operands.weights, operands.positions or 0) for kind, operands in OPERANDS.items()}
_INPUTS |= dict.fromkeys(UNPACKING, 1)
# Options that hold texts.
_TEXTS = {
    "StableHLOCompositeOptions": ("Name",),
    "StablehloCustomCallOptions": ("CallTargetName", "BackendConfig"),
    "VarHandleOptions": ("Container", "SharedName"),
}


def check_extent(model, size):
    """Refuse content whose tables refer to the same few bytes so often that reading it would take forever.

    Args:
        model: A `Model`, the schema's accessor.
        size: Bytes of the content.

    Raises:
        ValueError: tables, lists and names take more than four times the content, or the weights of all tensors more
            than sixty-four times (signatures share weights).
        struct.error: an offset points outside.
    """
    budget = 4 * size

    def spend(amount):
        nonlocal budget
        budget -= amount
        if budget < 0:
            raise ValueError("its parts overlap")

    def each(table, *names):
        for name in names:
            length = getattr(table, f"{name}Length")()
            spend(32 * length)  # a table has at least 8 bytes, its place among others included
            yield from (getattr(table, name)(index) for index in range(length))

    def lists(table, *names):
        for name in names:
            spend(4 * getattr(table, f"{name}Length")())

    def texts(table, *names):
        for name in names:
            spend(len(getattr(table, name)() or b""))

    texts(model, "Description")
    data = [buffer.DataLength() for buffer in each(model, "Buffers")]
    for code in each(model, "OperatorCodes"):
        texts(code, "CustomCode")
    for named in each(model, "Metadata", "ExternalBufferGroups"):
        texts(named, "Name")
    for buffer in each(model, "ExternalBuffers"):
        texts(buffer, "Packing")
    for signature in each(model, "SignatureDefs"):
        texts(signature, "SignatureKey")
        for place in each(signature, "Inputs", "Outputs"):
            texts(place, "Name")
    for graph in each(model, "Subgraphs"):
        texts(graph, "Name")
        lists(graph, "Inputs", "Outputs")
        for operator in each(graph, "Operators"):
            lists(operator, "Inputs", "Outputs", "Intermediates", "MutatingVariableInputs")
            for union in ("BuiltinOptions", "BuiltinOptions2"):
                kind, content = names(union).get(getattr(operator, f"{union}Type")()), getattr(operator, union)()
                if content is not None and kind in _TEXTS:
                    options = getattr(schema(), kind)()
                    options.Init(content.Bytes, content.Pos)
                    texts(options, *_TEXTS[kind])
        for tensor in each(graph, "Tensors"):
            texts(tensor, "Name")
            lists(tensor, "Shape", "ShapeSignature")
            for variant in each(tensor, "VariantTensors"):
                lists(variant, "Shape")
            if tensor.Buffer() < len(data):
                spend(data[tensor.Buffer()] // 16)
            if sparsity := tensor.Sparsity():
                lists(sparsity, "TraversalOrder", "BlockMap")
                for level in each(sparsity, "DimMetadata"):
                    spend(_indices(level) // 16)


def _indices(level):
    """How many indices a level of a sparse tensor has."""
    found = 0
    for name in ("ArraySegments", "ArrayIndices"):
        kind, content = names("SparseIndexVector").get(getattr(level, f"{name}Type")(), "NONE"), getattr(level, name)()
        if content is not None and kind != "NONE":
            vector = getattr(schema(), kind)()
            vector.Init(content.Bytes, content.Pos)
            found += vector.ValuesLength()
    return found


def problem(model):
    """What is wrong with a `ModelT`, in words; empty if nothing is."""
    if not model.subgraphs or not model.buffers:
        return "it has no subgraph or buffer"
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
        found = _tensors(model, graph) or _operators(model, graph)
        if found:
            return found
    return ""


def _tensors(model, graph):
    for tensor in graph.tensors:
        if not 0 <= tensor.buffer < len(model.buffers):
            return f"a tensor's buffer {tensor.buffer} does not exist"
        data, dtype = model.buffers[tensor.buffer].data, DTYPES.get(names("TensorType").get(tensor.type))
        shape = [] if tensor.shape is None else [int(length) for length in tensor.shape]
        if len(shape) > _LARGEST_RANK or any(length < 0 for length in shape):
            return f"a tensor of rank {len(shape)} has the shape {tuple(shape[:_LARGEST_RANK])}"
        if data is None or not len(data) or dtype is None:
            continue
        entries = math.prod(shape) if tensor.sparsity is None else _stored_entries(tensor.sparsity, shape)
        if entries is None:
            return "the indices of a sparse tensor point outside it"
        if tensor.sparsity is not None:
            # An empty buffer means that a tensor is computed, so one without values that are not zero keeps an entry.
            entries = max(entries, 1)
        itemsize = np.dtype(dtype).itemsize
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


def _operators(model, graph):
    tensors, written, read = graph.tensors, set(), set()
    for indices in (graph.inputs, graph.outputs):
        if indices is not None and any(not 0 <= index < len(tensors) for index in indices):
            return "an input or output of a subgraph does not exist"
    for operator in graph.operators or []:
        if not 0 <= operator.opcodeIndex < len(model.operatorCodes or []):
            return f"an operator's code {operator.opcodeIndex} does not exist"
        inputs, outputs = (
            [] if indices is None else [int(index) for index in indices]
            for indices in (operator.inputs, operator.outputs)
        )
        # An input may be -1: it is left out.
        if any(not -1 <= index < len(tensors) for index in inputs) or any(
            not 0 <= index < len(tensors) for index in outputs
        ):
            return "an operator reads or writes a tensor that does not exist"
        kind = names("BuiltinOperator").get(operator_number(model.operatorCodes[operator.opcodeIndex]))
        wanted = _INPUTS.get(kind, 0)
        if wanted and (len(inputs) < wanted or -1 in inputs[:wanted] or not outputs):
            return f"an operator of the kind {kind} has {len(inputs)} inputs and {len(outputs)} outputs"
        is_decode = model.operatorCodes[operator.opcodeIndex].customCode == DECODE
        if is_decode and (found := _decoded(model, tensors, inputs, outputs)):
            return found
        read.update(inputs)
        if len(set(outputs)) < len(outputs) or not (written.isdisjoint(outputs) and read.isdisjoint(outputs)):
            return "an operator reads what only a later one writes, or two write the same tensor"
        written.update(outputs)
    return ""


def _decoded(model, tensors, inputs, outputs):
    """What is wrong with an operator of TFLite Micro that decodes constants; empty if nothing is."""
    if len(inputs) != 2 * len(outputs) or -1 in inputs:
        return f"an operator that decodes {len(outputs)} constants has {len(inputs)} inputs"
    for output, bits, kept in zip(outputs, inputs[::2], inputs[1::2], strict=True):
        bits, kept = (model.buffers[tensors[index].buffer].data for index in (bits, kept))
        if bits is None or kept is None or len(kept) < DECODE_HEADER:
            return "a constant that is decoded is not there"
        shape, dtype = tensors[output].shape, DTYPES.get(names("TensorType").get(tensors[output].type))
        if kept[0] != PRUNING or dtype is None:
            continue
        entries, values = math.prod(map(int, [] if shape is None else shape)), len(kept) - DECODE_HEADER
        bits = np.unpackbits(np.asarray(bits, np.uint8))
        if len(bits) != -(-entries // 8) * 8 or values != np.count_nonzero(bits[:entries]) * np.dtype(dtype).itemsize:
            return f"a constant of {entries} entries is decoded from {len(bits)} bits and {values} bytes"
    return ""
