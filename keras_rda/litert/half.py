"""Constants that float16 cannot hold stay in float32.

TensorFlow's converter rounds them without a word: to 65504 what is larger, to zero what is smaller than 6e-8. In a
`Normalization` of large or small features, nothing is left of the network's inputs then.
"""

import numpy as np

from keras_rda.litert import flatbuffer

_LARGEST = float(np.finfo(np.float16).max)
_NORMAL = float(np.finfo(np.float16).smallest_normal)  # below it, float16 has fewer digits
_DIGITS = 2.0**-9
# Operators that use each entry of a constant for itself: it counts beside its own size, not beside the largest entry's.
_ENTRY_BY_ENTRY = {"ADD", "DIV", "MAXIMUM", "MINIMUM", "MUL", "SUB"}
_FACTORS = {"DIV", "MUL"}
_WEIGHTED = {"BATCH_MATMUL", "CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"}


def is_suspect(model):
    """Whether a float16 `ModelT` may have constants that were rounded to something else."""
    return any(_is_suspect(values, kinds) for _, _, values, kinds in _constants(model))


def _is_suspect(values, kinds):
    size = np.abs(values.astype(np.float32))
    # A factor of zero may be one that was too small, and so may be weights that are all zero; of other constants, what
    # is small is lost beside the rest.
    smallest = 1.0
    if kinds & _FACTORS:
        smallest = size.min(initial=1)
    elif kinds & _WEIGHTED and values.ndim > 1:
        smallest = size.max(initial=0)
    return bool(size.max(initial=0) >= _LARGEST or smallest < _NORMAL)


def restore(model, wide):
    """Put constants back that float16 cannot hold.

    Args:
        model: A `ModelT` in float16; it is changed.
        wide: The `ModelT` of the same network in float32.

    Returns:
        A list of notes, one for each constant.
    """
    float32 = flatbuffer.schema().TensorType.FLOAT32
    names = {}
    for tensor in wide.subgraphs[0].tensors:
        if tensor.type == float32 and wide.buffers[tensor.buffer].data is not None:
            names.setdefault((tensor.name, tuple(tensor.shape)), []).append(wide.buffers[tensor.buffer].data)
    graph, notes = model.subgraphs[0], []
    for index, dequantizers, values, kinds in list(_constants(model)):
        tensor = graph.tensors[index]
        found = names.get((tensor.name, tuple(tensor.shape)), [])
        if len(found) != 1:  # whether the file is right, running it will tell
            continue
        exact = found[0].view(np.float32).reshape(tensor.shape)
        largest = np.abs(exact) if kinds & _ENTRY_BY_ENTRY else np.abs(exact).max(initial=0)
        if not np.any(exact) or np.all(np.abs(values.astype(np.float32) - exact) <= _DIGITS * largest):
            continue
        model.buffers.append(flatbuffer.schema().BufferT(data=found[0]))
        tensor.buffer = 0  # nobody reads it any more
        for operator in dequantizers:
            graph.tensors[operator.outputs[0]].buffer = len(model.buffers) - 1
            graph.operators.remove(operator)
        name = (tensor.name or b"").decode(errors="replace").split(";")[0]
        notes.append(f"'{name}' stays in float32: its values, {_range(exact)}, are beyond float16.")
    return notes


def _constants(model):
    """Of each float16 constant: its index, the DEQUANTIZE operators that read it, its values, the readers' kinds."""
    graph, readers = model.subgraphs[0], {}
    for operator in graph.operators:
        for index in operator.inputs:
            readers.setdefault(int(index), []).append(operator)
    for index, tensor in enumerate(graph.tensors):
        data = model.buffers[tensor.buffer].data
        if tensor.type != flatbuffer.schema().TensorType.FLOAT16 or data is None or not len(data) or tensor.sparsity:
            continue
        dequantizers = readers.get(index, [])
        if any(flatbuffer.operator_name(model, operator) != "DEQUANTIZE" for operator in dequantizers):
            continue
        behind = [reader for operator in dequantizers for reader in readers.get(int(operator.outputs[0]), [])]
        values = data.view(np.float16).reshape(tensor.shape)
        yield index, dequantizers, values, {flatbuffer.operator_name(model, reader) for reader in behind}


def _range(values):
    size = np.abs(values[values != 0])
    return f"{size.min():.2g} to {size.max():.2g}"
