"""Constants that a file stores sparse already, in fewer bytes: others compress the last dimension only, and small ones.

TensorFlow's pass writes such files, Google ships some. Only what is stored changes: DENSIFY fills in the same values.
"""

import math

import numpy as np

from keras_rda.litert import sparse_format
from keras_rda.litert.graph import WEIGHT_TYPES
from keras_rda.litert.weights import shared, use


def recompress(places):
    """Store the sparse constants at `places`, pairs (`Graph`, tensor) that share a buffer, in fewer bytes if possible.

    Returns:
        A list of `TensorEncoding`.

    Raises:
        ValueError: one would take more than 2 GB dense.
    """
    graph, index = places[0]
    values, sparsity = graph.values(index), graph.tensors[index].sparsity
    is_weight = values is not None and sparsity and graph.type(index) in WEIGHT_TYPES and len(graph.shape(index)) > 1
    if not is_weight:
        return []
    if math.prod(graph.shape(index)) * values.itemsize >= sparse_format.LARGEST:
        raise ValueError(
            f"The sparse tensor '{graph.name(index)}' of shape {graph.shape(index)} is more than 2 GB dense."
        )
    array = sparse_format.expand(values, sparsity, graph.shape(index))
    nonzero, size = int(np.count_nonzero(array)), len(places) * _bytes(values, sparsity)
    encoding, reason = sparse_format.describe(sparsity)[1], _refusal(places, array)
    if not reason:
        smallest, order, compressed = sparse_format.smallest(array)
        smallest += sparse_format.DENSIFY_BYTES + sparse_format.LEVEL_BYTES * array.ndim
        if array.nbytes < min(size, len(places) * smallest):
            size, encoding = array.nbytes, "dense"
            _make_dense(places, array)
        elif len(places) * smallest < size:
            stored, sparsity = sparse_format.compress(array, order, compressed)
            size, encoding = len(places) * smallest, sparse_format.describe(sparsity)[1]
            graph.model.buffers[graph.tensors[index].buffer].data = stored.view(np.uint8)
            for graph, index in places:
                graph.tensors[index].sparsity = sparsity
    return shared([(*use(*place), array) for place in places], nonzero, encoding, size, array.nbytes, reason)


def _bytes(values, sparsity):
    """What a sparse constant takes now, counted as that of `sparse_format.smallest` is."""
    levels = sparsity.dimMetadata
    compressed = sum(level.arrayIndices is not None for level in levels)
    return (
        values.nbytes
        + sparse_format.describe(sparsity)[0]
        + sparse_format.DENSIFY_BYTES
        + sparse_format.LEVEL_BYTES * len(levels)
        + sparse_format.COMPRESSED_BYTES * compressed
    )


def _refusal(places, array):
    """Why constants stay as they are; empty if they need not."""
    for graph, index in places:
        tensor, readers = graph.tensors[index], graph.readers.get(index, [])
        if [graph.kind(operator) for operator in readers] != ["DENSIFY"]:
            return f"{graph.kind(readers[0])} reads it sparse" if readers else "no operator reads it"
        if index in graph.subgraph.outputs or readers[0].outputs[0] in graph.subgraph.outputs:
            return "it is an output of the graph"
        is_same = tensor.sparsity and graph.type(index) in WEIGHT_TYPES and graph.shape(index) == array.shape
        if not is_same or not np.array_equal(
            sparse_format.expand(graph.values(index), tensor.sparsity, array.shape), array
        ):
            return "other operators read the same buffer in another way"
    return ""


def _make_dense(places, array):
    """Let the results of DENSIFY hold the array themselves."""
    for graph, index in places:
        tensor, (densify,) = graph.tensors[index], graph.readers[index]
        graph.model.buffers[tensor.buffer].data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        graph.tensors[densify.outputs[0]].buffer = tensor.buffer
        graph.operators.remove(densify)
        # Nobody reads it any more. It stays, so that others keep their numbers.
        tensor.buffer, tensor.sparsity, tensor.name, tensor.quantization = 0, None, None, None
