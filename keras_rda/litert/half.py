"""Constants that float16 cannot hold stay in float32.

TensorFlow's converter rounds them without a word: to 65504 what is larger, to zero what is smaller than 6e-8. In a
`Normalization` of large or small features, nothing is left of the network's inputs then.
"""

import numpy as np

from keras_rda.litert.graph import OPERANDS, Graph, add_buffer

_LARGEST = float(np.finfo(np.float16).max)
_NORMAL = float(np.finfo(np.float16).smallest_normal)  # below it, float16 has fewer digits
_DIGITS = 2.0**-9
# Operators that use each entry of a constant for itself: it counts beside its own size, not beside the largest entry's.
_ENTRY_BY_ENTRY = {"ADD", "DIV", "MAXIMUM", "MINIMUM", "MUL", "SUB"}
_FACTORS = {"DIV", "MUL"}


def is_suspect(model):
    """Whether a float16 `ModelT` may have constants that were rounded to something else."""
    return any(_is_suspect(values, kinds) for _, _, values, kinds in _constants(Graph(model)))


def _is_suspect(values, kinds):
    size = np.abs(values.astype(np.float32))
    # A factor of zero may be one that was too small, and so may be weights that are all zero; of other constants, what
    # is small is lost beside the rest.
    smallest = 1.0
    if kinds & _FACTORS:
        smallest = size.min(initial=1)
    elif kinds & OPERANDS.keys() and values.ndim > 1:
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
    exacts, wide = {}, Graph(wide)
    for index in range(len(wide.tensors)):
        if wide.type(index) == "FLOAT32" and (array := wide.array(index)) is not None:
            exacts.setdefault((wide.name(index), wide.shape(index)), []).append(array)
    graph, notes = Graph(model), []
    for index, dequantizers, values, kinds in _constants(graph):
        found = exacts.get((graph.name(index), graph.shape(index)), [])
        if len(found) != 1:  # whether the file is right, running it will tell
            continue
        (exact,) = found
        largest = np.abs(exact) if kinds & _ENTRY_BY_ENTRY else np.abs(exact).max(initial=0)
        if not np.any(exact) or np.all(np.abs(values.astype(np.float32) - exact) <= _DIGITS * largest):
            continue
        buffer = add_buffer(model, exact)
        graph.tensors[index].buffer = 0  # nobody reads it any more
        for operator in dequantizers:
            graph.tensors[operator.outputs[0]].buffer = buffer
            graph.operators.remove(operator)
        notes.append(f"'{graph.short_name(index)}' stays in float32: its values, {_range(exact)}, are beyond float16.")
    return notes


def _constants(graph):
    """Of each float16 constant: its index, the DEQUANTIZE operators that read it, its values, the readers' kinds."""
    for index in range(len(graph.tensors)):
        values = graph.array(index) if graph.type(index) == "FLOAT16" else None
        dequantizers = graph.readers.get(index, [])
        if values is None or any(graph.kind(operator) != "DEQUANTIZE" for operator in dequantizers):
            continue
        behind = [reader for operator in dequantizers for reader in graph.readers.get(int(operator.outputs[0]), [])]
        yield index, dequantizers, values, {graph.kind(reader) for reader in behind}


def _range(values):
    size = np.abs(values[values != 0])
    return f"{size.min():.2g} to {size.max():.2g}"
