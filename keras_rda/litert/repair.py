"""Rewrite places of a LiteRT file that XNNPACK's sparse kernels get wrong (see `xnnpack`)."""

import numpy as np

from keras_rda.litert import flatbuffer, xnnpack


def repair_tails(model):
    """Rewrite the `ModelT` in place so that what leaves XNNPACK's sparse kernels is right, and loads.

    A mean or sum over height and width that keeps these dimensions no longer does, and a RESHAPE restores them. At the
    end of a network it stays sparse; in squeeze and excite the cluster is lost and runs dense. Any other place that
    XNNPACK gets wrong makes the cluster run dense as well, by a RESHAPE to the same shape at its start. The file
    computes the same as before in all cases.

    Args:
        model: A `ModelT` (`flatbuffer.read`) with its zeros stored sparse.

    Returns:
        A list of notes, one for each change; empty if nothing was wrong.

    Raises:
        ValueError: the graph cannot be read.
    """
    notes = []
    while graph := _faulty(model):
        reductions = {node: None for fault in graph.faults for node in _reductions(graph, fault)}
        if reductions:
            for node in reductions:
                _drop_dimensions(graph, node)
                notes.append(f"{node}: a RESHAPE restores the dimensions it kept.")
            continue
        fault = next(iter(graph.faults))
        entry = next(node for node in graph.nodes if node.leader is fault.leader and node.role & xnnpack.ENTRY)
        _separate(graph, entry)
        notes.append(f"{fault}: {graph.faults[fault]}; runs dense, by a RESHAPE after {entry}.")
    return notes


def _faulty(model):
    _, graph = xnnpack.analyze(model)
    return graph if graph.faults else None


def _reductions(graph, node):
    """The reductions that a fault comes from, if all that it reads comes from such, over 1×1 images only; else none."""
    if node.kind in {"MEAN", "SUM"}:
        repairable = node.operator.builtinOptions.keepDims and graph.axes(node) in ({1, 2}, {3})
        return [node] if repairable else []
    found = []
    for index in node.inputs:
        if graph.shape(index)[1:3] != [1, 1] or index not in graph.producers:
            return []
        behind = _reductions(graph, graph.producers[index])
        if not behind:
            return []
        found += behind
    return found


def _drop_dimensions(graph, node):
    output = node.output
    shape = graph.shape(output)
    kept = [size for axis, size in enumerate(shape) if axis not in graph.axes(node)]
    node.operator.builtinOptions.keepDims = False
    reduced = _new_tensor(graph, output, kept)
    node.operator.outputs = np.int32([reduced])
    _add_reshape(graph, node.operator, reduced, output, shape)


def _separate(graph, node):
    """Put a RESHAPE between a node and all that read it."""
    output = node.output
    before = _new_tensor(graph, output, graph.shape(output))
    node.operator.outputs = np.int32([before])
    _add_reshape(graph, node.operator, before, output, graph.shape(output))


def _new_tensor(graph, like, shape):
    schema = flatbuffer.schema()
    original = graph.tensors[like]
    graph.tensors.append(
        schema.TensorT(name=(original.name or b"") + b"_before", type=original.type, shape=np.int32(shape), buffer=0)
    )
    if original.shapeSignature is not None:
        graph.tensors[-1].shapeSignature = np.int32([original.shapeSignature[0], *shape[1:]])
    return len(graph.tensors) - 1


def _add_reshape(graph, after, source, target, shape):
    schema = flatbuffer.schema()
    shape = np.int32([-1, *shape[1:]])  # any batch
    graph.model.buffers.append(schema.BufferT(data=np.frombuffer(shape.tobytes(), np.uint8)))
    graph.tensors.append(
        schema.TensorT(
            name=(graph.tensors[target].name or b"") + b"_shape",
            type=schema.TensorType.INT32,
            shape=np.int32([len(shape)]),
            buffer=len(graph.model.buffers) - 1,
        )
    )
    operator = schema.OperatorT(
        opcodeIndex=_reshape_code(graph.model),
        inputs=np.int32([source, len(graph.tensors) - 1]),
        outputs=np.int32([target]),
        builtinOptionsType=schema.BuiltinOptions.ReshapeOptions,
        builtinOptions=schema.ReshapeOptionsT(newShape=shape),
    )
    graph.subgraph.operators.insert(graph.subgraph.operators.index(after) + 1, operator)


def _reshape_code(model):
    schema = flatbuffer.schema()
    reshape = schema.BuiltinOperator.RESHAPE
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == reshape:
            return index
    model.operatorCodes.append(schema.OperatorCodeT(builtinCode=reshape, deprecatedBuiltinCode=reshape, version=1))
    return len(model.operatorCodes) - 1
