"""LiteRT files as Python objects (the FlatBuffers object API that ships with `ai_edge_litert`), and back."""

import pathlib
import struct

import flatbuffers
import numpy as np

from keras_rda.litert import validity
from keras_rda.litert.graph import schema

_IDENTIFIER = b"TFL3"


def read(source):
    """Parse a LiteRT file.

    Args:
        source: Its path, or its content as `bytes`.

    Returns:
        A `ModelT`. Its buffers are read-only NumPy views of the content (uint8), not copies. Shapes, operators and what
        they read and write are never None, but empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the content is not a LiteRT file, is cut off or corrupt (`validity` says what is checked), or keeps
            weights outside the FlatBuffer.
    """
    name = "The content" if isinstance(source, bytes) else f"The file {str(source)!r}"
    content = source if isinstance(source, bytes) else pathlib.Path(source).read_bytes()
    if content[4:8] != _IDENTIFIER:
        raise ValueError(f"{name} is not a LiteRT model: the identifier 'TFL3' is missing.")
    try:
        validity.check_extent(schema().Model.GetRootAs(content), len(content))
        model = schema().ModelT.InitFromPackedBuf(content)
        problem = validity.problem(model)
    # All that the parser raises on offsets that point nowhere.
    except (struct.error, ValueError, TypeError, IndexError, AttributeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{name} is cut off or corrupt.") from error
    if problem:
        raise ValueError(f"{name} is cut off or corrupt: {problem}.")
    operators = (operator for graph in model.subgraphs for operator in graph.operators or [])
    is_outside = any(buffer.offset > 1 for buffer in model.buffers) or any(
        operator.largeCustomOptionsOffset > 1 for operator in operators
    )
    if model.externalBuffers or is_outside:
        raise ValueError(
            f"{name} keeps weights outside the FlatBuffer (as models of more than 2 GB do): not supported."
        )
    model.operatorCodes = model.operatorCodes or []  # a network may only pass its input through
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.shape = np.zeros(0, np.int32) if tensor.shape is None else tensor.shape
        graph.operators = graph.operators or []
        for node in (graph, *graph.operators):
            node.inputs, node.outputs = (
                np.zeros(0, np.int32) if indices is None else indices for indices in (node.inputs, node.outputs)
            )
    return model


def pack(model):
    """Serialise a `ModelT`; return `bytes`. The same model gives the same bytes.

    Raises:
        ValueError: the file would exceed the 2 GB of a FlatBuffer.
    """
    builder = _Builder(1024)
    try:
        builder.Finish(model.Pack(builder), _IDENTIFIER)
    except flatbuffers.builder.BuilderSizeError as error:
        raise ValueError("The model exceeds the 2 GB that a FlatBuffer can hold.") from error
    return bytes(builder.Output())


class _Builder(flatbuffers.Builder):
    """Puts byte vectors (the buffers of weights) at multiples of 16, and writes equal vectors of numbers once.

    The schema asks for the former and kernels rely on it, but the Python object API forgets it. The latter saves the
    zero points of int8 files: 8 bytes for every channel of every weight and bias, all of them zero.
    """

    def __init__(self, initial_size):
        super().__init__(initial_size)
        self._written = {}

    def StartVector(self, elemSize, numElems, alignment):
        return super().StartVector(elemSize, numElems, 16 if elemSize == 1 else alignment)

    def CreateNumpyVector(self, x):
        if x.itemsize == 1:
            return super().CreateNumpyVector(x)
        key = x.dtype.str, x.tobytes()
        if key not in self._written:
            self._written[key] = super().CreateNumpyVector(x)
        return self._written[key]
