"""Rewrite places of a LiteRT file that XNNPACK's sparse kernels get wrong (see `clusters`), or slow."""

import numpy as np

from keras_rda.litert import xnnpack
from keras_rda.litert.delegation import Role
from keras_rda.litert.graph import schema


def mend(model, machine=None):
    """`repair_tails`; and where zeros would make a file for browsers slower there, its sparse kernels are not used.

    Args:
        model: As for `repair_tails`.
        machine: The machine that the file is for; see `export`.

    Returns:
        As `repair_tails`.
    """
    kernels, notes = repair_tails(model)
    if machine != "wasm" or not kernels.is_slower_in_browser:
        return kernels, notes
    for subgraph in model.subgraphs:
        clusters = xnnpack.analyze(model, subgraph)[1]
        for leader in dict.fromkeys(node.leader for node in clusters.nodes if node.engaged):
            notes.append(f"{kernels.browser} So it {_break(clusters, leader)}.")
    return xnnpack.analyze(model)[0], notes


def repair_tails(model):
    """Rewrite the `ModelT` in place so that what leaves XNNPACK's sparse kernels is right, and loads.

    A mean or sum over height and width that keeps these dimensions no longer does, and a RESHAPE restores them. At the
    end of a network it stays sparse; in squeeze and excite the cluster is lost and runs dense. Any other place that
    XNNPACK gets wrong makes the cluster run dense as well, by a RESHAPE to the same shape at its start. The file
    computes the same as before in all cases.

    Args:
        model: A `ModelT` (`flatbuffer.read`) with its zeros stored sparse.

    Returns:
        What the kernels make of its first subgraph now, `SparseKernels`, and a list of notes, one for each change.

    Raises:
        ValueError: a graph cannot be read, or what has to be mended has an unknown height or width.
    """
    repaired = [_repair(model, subgraph) for subgraph in model.subgraphs]
    return repaired[0][0], [note for _, notes in repaired for note in notes]


def _repair(model, subgraph):
    notes = []
    while True:
        kernels, clusters = xnnpack.analyze(model, subgraph)
        if not clusters.faults:
            return kernels, notes
        delegation = clusters.delegation
        reductions = {node: None for fault in clusters.faults for node in _reductions(delegation, fault)}
        for node in reductions:
            node.operator.builtinOptions.keepDims = False
            axes, shape = delegation.axes(node), clusters.graph.shape(node.output)
            _reshape(clusters.graph, node, [size for axis, size in enumerate(shape) if axis not in axes])
            notes.append(f"{node}: a RESHAPE restores the dimensions it kept.")
        if not reductions:
            fault = next(iter(clusters.faults))
            notes.append(f"{fault}: {clusters.faults[fault]}; {_break(clusters, fault.leader)}.")


def _break(clusters, leader):
    """Let a cluster run dense; return in words how."""
    entry = next(node for node in clusters.nodes if node.leader is leader and node.role & Role.ENTRY)
    _reshape(clusters.graph, entry, clusters.graph.shape(entry.output))
    return f"runs dense, by a RESHAPE after {entry}"


def _reductions(delegation, node):
    """The reductions that a fault comes from, if all that it reads comes from such, over 1×1 images only; else none."""
    if node.kind in {"MEAN", "SUM"}:
        is_repairable = node.operator.builtinOptions.keepDims and delegation.axes(node) in ({1, 2}, {3})
        return [node] if is_repairable else []
    found = []
    for index in node.inputs:
        if delegation.shape(index)[1:3] != (1, 1) or index not in delegation.producers:
            return []
        behind = _reductions(delegation, delegation.producers[index])
        if not behind:
            return []
        found += behind
    return found


def _reshape(graph, node, shape):
    """Let a node give a tensor of `shape`, and a RESHAPE after it what the node gave before."""
    if None in graph.fixed_shape(node.output):
        raise ValueError(
            f"{node} would be wrong in XNNPACK's sparse kernels, and cannot be mended: its shape is not fixed."
        )
    output, kept = graph.tensors[node.output], np.int32([-1, *graph.shape(node.output)[1:]])  # any batch
    signature, name = output.shapeSignature, output.name or b""
    if signature is not None:
        signature = np.int32([signature[0], *shape[1:]])
    before = graph.add_tensor(shape, output.type, name=name + b"_before", buffer=0, shapeSignature=signature)
    node.operator.outputs = np.int32([before])
    constant = graph.add_constant(kept, name=name + b"_shape")
    place = graph.operators.index(node.operator) + 1
    graph.add_operator(place, "RESHAPE", [before, constant], [node.output], schema().ReshapeOptionsT(newShape=kept))
