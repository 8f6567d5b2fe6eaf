"""One subgraph of a LiteRT file, by which all that read or rewrite one do it; and what LiteRT's schema calls things."""

import functools
import typing

import numpy as np

# The schema's types whose entries this package looks at.
DTYPES = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
}
WEIGHT_TYPES = {"FLOAT32", "FLOAT16", "INT8"}


class Operands(typing.NamedTuple):
    """Where an operator has its weights.

    Attributes:
        weights: The inputs that may be weights.
        positions: The tensor, counted through inputs and outputs, at whose positions each weight is used once; None
            where that depends on the operator.
    """

    weights: tuple[int, ...]
    positions: int | None


_OUTPUT = -1
OPERANDS = {
    "BATCH_MATMUL": Operands((0, 1), None),
    "CONV_2D": Operands((1,), _OUTPUT),
    "CONV_3D": Operands((1,), _OUTPUT),
    "CONV_3D_TRANSPOSE": Operands((1,), 2),
    "DEPTHWISE_CONV_2D": Operands((1,), _OUTPUT),
    "FULLY_CONNECTED": Operands((1,), _OUTPUT),
    "TRANSPOSE_CONV": Operands((1,), 2),
}
UNPACKING = {"DENSIFY", "DEQUANTIZE"}  # operators whose only input is a constant in another form, or a computed value
# TFLite Micro's custom operator that decodes constants; bytes of its header, of which the first says how.
DECODE, DECODE_HEADER, PRUNING = b"TFLM_DECODE", 16, 2
# Versions in which operators are written: the oldest that take what this package gives them.
_VERSIONS = {"CONV_2D": 3, "DENSIFY": 1, "DEQUANTIZE": 5, "RESHAPE": 1}


# `ai_edge_litert.tools.flatbuffer_utils` has a reader, a writer and names too. They are not used: since 2.3 its reader
# renumbers buffers, in 2.1 it does not; it takes damaged files; its writer does not align weights; and what it calls
# an operator or type it finds by going through the schema each time.
def schema():
    """The module of the schema's classes: `ModelT`, `TensorT`, `BuiltinOperator`, …"""
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


@functools.cache
def names(enumeration):
    """Number → name of what the schema enumerates, such as `"BuiltinOperator"`."""
    members = vars(getattr(schema(), enumeration)).items()
    return {value: name for name, value in members if isinstance(value, int) and not name.startswith("_")}


def operator_number(code):
    """The number of an operator's kind, by its `OperatorCodeT`."""
    return max(code.builtinCode, code.deprecatedBuiltinCode)  # old files have only the latter


def operator_name(model, operator):
    """The name of an operator's kind in the schema, such as `"CONV_2D"`.

    Raises:
        ValueError: the schema has none for it.
    """
    number = operator_number(model.operatorCodes[operator.opcodeIndex])
    if number not in names("BuiltinOperator"):
        raise ValueError(
            f"The file has an operator of the unknown kind {number}: it is corrupt, or newer than this runtime."
        )
    return names("BuiltinOperator")[number]


def add_buffer(model, array):
    """Append the content of an array to a `ModelT`; return the buffer's number."""
    model.buffers.append(schema().BufferT(data=np.ascontiguousarray(array).reshape(-1).view(np.uint8)))
    return len(model.buffers) - 1


class Graph:
    """One subgraph of a `ModelT`: the first, unless another is given.

    Attributes:
        model, subgraph: The `ModelT` and its `SubGraphT`.
        tensors, operators: The subgraph's lists.
        readers: Tensor → the operators that read it, in order; as it was when the `Graph` was made.
        producers: Tensor → the operator that writes it; likewise.
    """

    def __init__(self, model, subgraph=None):
        self.model, self.subgraph = model, subgraph or model.subgraphs[0]
        self.tensors, self.operators = self.subgraph.tensors, self.subgraph.operators
        self.readers, self.producers = {}, {}
        for operator in self.operators:
            for index in dict.fromkeys(map(int, operator.inputs)):
                self.readers.setdefault(index, []).append(operator)
            for index in operator.outputs:
                self.producers[int(index)] = operator

    def kind(self, operator):
        """The name of an operator's kind in the schema, such as `"CONV_2D"`."""
        return operator_name(self.model, operator)

    def name(self, index):
        return (self.tensors[index].name or b"").decode(errors="replace")

    def short_name(self, index):
        """The first of the names that the converter joined, where it made one operator of several."""
        return self.name(index).split(";")[0]

    def shape(self, index):
        shape = self.tensors[index].shape
        return () if shape is None else tuple(map(int, shape))

    def fixed_shape(self, index):
        """The dimensions after the first; None for one that is unknown."""
        signature = self.tensors[index].shapeSignature
        shape = self.shape(index) if signature is None else map(int, signature)
        return [None if size < 0 else size for size in shape][1:]

    def type(self, index):
        """The name of a tensor's type in the schema, such as `"FLOAT32"`."""
        return names("TensorType").get(self.tensors[index].type, str(self.tensors[index].type))

    def values(self, index):
        """All that is stored of a constant, in one dimension; None of what is computed or of a type not looked at."""
        data, dtype = self.model.buffers[self.tensors[index].buffer].data, DTYPES.get(self.type(index))
        return None if data is None or not len(data) or dtype is None else data.view(dtype)

    def array(self, index):
        """A constant that is stored dense, in its shape; None of all else."""
        values = None if self.tensors[index].sparsity else self.values(index)
        return None if values is None else values.reshape(self.shape(index))

    def is_stored(self, index):
        data = self.model.buffers[self.tensors[index].buffer].data
        return data is not None and len(data) > 0

    def sources(self, index):
        """A tensor, and what it is made from through DENSIFY and DEQUANTIZE: a list that ends with what is not."""
        found = [int(index)]
        while (producer := self.producers.get(found[-1])) and self.kind(producer) in UNPACKING:
            found.append(int(producer.inputs[0]))
        return found

    def constant(self, index):
        """The tensor in which a constant is stored, itself or what is unpacked to it; None of what is computed."""
        stored = self.sources(index)[-1]
        return stored if self.is_stored(stored) else None

    def add_tensor(self, shape, type_, **fields):
        """Append a tensor; return its number.

        Args:
            shape: Its shape.
            type_: Its type in the schema, a number.
            **fields: Further fields of `TensorT`.
        """
        self.tensors.append(schema().TensorT(shape=np.asarray(shape, np.int32), type=type_, **fields))
        return len(self.tensors) - 1

    def add_constant(self, values, **fields):
        """Append a constant of int32 numbers; return its tensor's number. `fields`: see `add_tensor`."""
        values = np.asarray(values, np.int32)
        buffer = add_buffer(self.model, values)
        return self.add_tensor(values.shape, schema().TensorType.INT32, buffer=buffer, **fields)

    def add_operator(self, place, kind, inputs, outputs, options):
        """Put an operator before what is at `place` in the list of operators.

        Args:
            place: An index of `operators`.
            kind: Its name in the schema, one that is in `_VERSIONS`.
            inputs, outputs: Numbers of tensors.
            options: An object such as `Conv2DOptionsT`.
        """
        union = type(options).__name__.removesuffix("T")
        operator = schema().OperatorT(
            opcodeIndex=self._code(kind),
            inputs=np.array(inputs, np.int32),
            outputs=np.array(outputs, np.int32),
            builtinOptionsType=getattr(schema().BuiltinOptions, union),
            builtinOptions=options,
        )
        self.operators.insert(place, operator)

    def replace(self, operator, new):
        """Put others in the place of an operator: a list of arguments of `add_operator` after the first."""
        place = self.operators.index(operator)
        del self.operators[place]
        for offset, arguments in enumerate(new):
            self.add_operator(place + offset, *arguments)

    def _code(self, kind):
        """The index of an operator's code, which is appended if the file has none."""
        number, version = getattr(schema().BuiltinOperator, kind), _VERSIONS[kind]
        codes = self.model.operatorCodes
        for index, code in enumerate(codes):
            if operator_number(code) == number and code.version == version:
                return index
        codes.append(schema().OperatorCodeT(deprecatedBuiltinCode=number, version=version, builtinCode=number))
        return len(codes) - 1


def graphs(model):
    """The `Graph` of each subgraph of a `ModelT`, in order."""
    return [Graph(model, subgraph) for subgraph in model.subgraphs]


def holders(subgraphs):
    """Of `graphs`: dict of buffer → the pairs (`Graph`, tensor) that hold it, as constants of the same content may."""
    found = {}
    for graph in subgraphs:
        for index, tensor in enumerate(graph.tensors):
            found.setdefault(tensor.buffer, []).append((graph, index))
    return found
