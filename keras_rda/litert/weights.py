"""What a LiteRT file stores: its weights as they are, and the work they take."""

import dataclasses
import math

import numpy as np

from keras_rda.litert import sparse_format
from keras_rda.litert.graph import OPERANDS, UNPACKING, WEIGHT_TYPES, graphs


@dataclasses.dataclass(frozen=True)
class TensorEncoding:
    """How one constant of rank ≥ 2 is stored.

    Attributes:
        name: The tensor's name in the file, which TensorFlow's converter makes from names of layers; it may number them
            otherwise than Keras does.
        operator: The operator that computes with it, such as `"CONV_2D"`.
        shape: Its shape in the dense file.
        dtype: Its type in the dense file: `"float32"`, `"float16"` or `"int8"`. The converter leaves small tensors in
            float32 whatever was asked for.
        zeros: σ, the share of entries that are zero.
        encoding: `"dense"`, or such as `"sparse, 1-byte indices"`, followed by what else changed: `"float32 values"`
            are stored, the operator computes in `"float32 arithmetic"`, or it is expressed `"as a convolution"`.
        bytes: What it takes in the file, with its indices and the operators that were added: at most so many. (Without
            the operators if the file alone was read: `stored`.)
        dense_bytes: What it takes in the dense file.
        floor_bytes: Information-theoretic floor for zeros at random: the other values, and n·H(σ)/8 bytes that tell
            where they are (n entries; H: binary entropy in bits).
        reason: Why it stayed dense although zeros could have been saved; ``""`` if dense is the smallest.
        multiply_adds: Multiplications of its entries in one invocation, dense; 0 where sizes of inputs are not known.
        keras_path: Path of the Keras weight that it holds, such as `"conv2d_1/kernel"`; `""` where that is not known.
    """

    name: str
    operator: str
    shape: tuple
    dtype: str
    zeros: float
    encoding: str
    bytes: int
    dense_bytes: int
    floor_bytes: int
    reason: str = ""
    multiply_adds: int = 0
    keras_path: str = ""


def stored(model):
    """List the weights of a `ModelT` (constants of rank ≥ 2 in float32, float16 and int8) as `TensorEncoding`s."""
    rows = []
    for graph in graphs(model):
        for index, tensor in enumerate(graph.tensors):
            values, shape = graph.values(index), graph.shape(index)
            if values is None or graph.type(index) not in WEIGHT_TYPES or len(shape) < 2 or not math.prod(shape):
                continue
            nonzero, (name, operator) = int(np.count_nonzero(values)), use(graph, index)
            indices, encoding = sparse_format.describe(tensor.sparsity) if tensor.sparsity else (0, "dense")
            rows.append(
                TensorEncoding(
                    name=name,
                    operator=operator,
                    shape=shape,
                    dtype=values.dtype.name,
                    zeros=1 - nonzero / math.prod(shape),
                    encoding=encoding,
                    bytes=values.nbytes + indices,
                    dense_bytes=math.prod(shape) * values.itemsize,
                    floor_bytes=sparse_format.floor_bytes(math.prod(shape), nonzero, values.itemsize),
                )
            )
    return in_order(rows, multiply_adds(model))


def shared(uses, nonzero, encoding, size, dense_bytes, reason):
    """`TensorEncoding`s of tensors that share a buffer, whose bytes are counted for the first alone.

    Args:
        uses: Triples (name, operator, array) of them.
        nonzero: How many entries of each are not zero.
        encoding, size, dense_bytes, reason: How the buffer is stored, its bytes, what they are dense, and why it is.
    """
    first = uses[0][2]
    counted = (size, dense_bytes, sparse_format.floor_bytes(first.size, nonzero, first.itemsize))
    return [
        TensorEncoding(
            name,
            operator,
            array.shape,
            array.dtype.name,
            1 - nonzero / array.size,
            encoding,
            *((0, 0, 0) if number else counted),
            reason if nonzero < array.size else "",
        )
        for number, (name, operator, array) in enumerate(uses)
    ]


def use(graph, index):
    """The name of a constant and the operator that computes with it, behind DENSIFY and DEQUANTIZE."""
    name = graph.name(index)
    while readers := graph.readers.get(index):
        kind = graph.kind(readers[0])
        if kind not in UNPACKING:
            return name, kind
        index = int(readers[0].outputs[0])
        name = name or graph.name(index)
    return name, ""


def in_order(encodings, work):
    """`TensorEncoding`s in the order in which the file computes with them, and with their multiply-adds."""
    place = {name: number for number, name in enumerate(work)}
    rows = [dataclasses.replace(row, multiply_adds=work.get(row.name, 0)) for row in encodings]
    return sorted(rows, key=lambda row: place.get(row.name, len(place)))


def multiply_adds(model):
    """Multiplications of a weight of a `ModelT` in one invocation: dict of its name → number, in the file's order."""
    work = {}
    for graph in graphs(model):
        for operator in graph.operators:
            weights, positions = OPERANDS.get(graph.kind(operator), ((), None))
            if positions is None:
                continue
            where = graph.shape([*operator.inputs, *operator.outputs][positions])
            sources = graph.sources(operator.inputs[weights[0]])
            number = math.prod(graph.shape(sources[0])) * math.prod(where[:-1])
            if None in graph.fixed_shape([*operator.inputs, *operator.outputs][positions]):
                number = 0  # it depends on sizes that are not known
            for name in dict.fromkeys(map(graph.name, sources)):
                if name:
                    work[name] = work.get(name, 0) + number
    return work
