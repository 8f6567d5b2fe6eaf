"""Sparse encoding of a LiteRT file's zeros, constant by constant, where it makes the file smaller.

An encoded constant is followed by a DENSIFY operator that fills it in again when the file is loaded: zeros take no
space, and the arithmetic is the dense file's. (TensorFlow's own pass encodes whether or not the file gets smaller, and
hands FULLY_CONNECTED operators blocks that the runtime reads wrongly.)
"""

import copy
import dataclasses
import itertools
import math

import numpy as np

from keras_rda.litert.flatbuffer import operator_name, schema

STRATEGIES = ("smallest", "float32 values", "same arithmetic")

# Operator → the operands that may come from DENSIFY; each was run with and without XNNPACK.
_READERS = {
    "BATCH_MATMUL": (0, 1),
    "CONV_2D": (1,),
    "CONV_3D": (1,),
    "CONV_3D_TRANSPOSE": (1,),
    "DEPTHWISE_CONV_2D": (1,),
    "FULLY_CONNECTED": (1,),
    "GATHER": (0,),
    "TRANSPOSE_CONV": (1,),
}
# XNNPACK unpacks DENSIFY → DEQUANTIZE for the operators it takes. Where it leaves the reader to the interpreter, it
# hands back the DEQUANTIZE but not the DENSIFY, and the reader computes with memory that nobody wrote. It takes these.
_UNPACKED = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
# Operators that XNNPACK takes also where they quantise float32 inputs on the fly. It then looks for the weights in the
# file instead of in DENSIFY's result, and the file does not load.
_ON_THE_FLY = {"BATCH_MATMUL", "CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"}
# Upper bounds, in bytes, of what is added besides values and indices (FlatBuffers tables and alignment): a sparse
# tensor with its DENSIFY; a level of the encoding, and more for a compressed one; a DEQUANTIZE; a convolution with its
# RESHAPEs, and a channel of its bias.
_DENSIFY_BYTES = 200
_LEVEL_BYTES = 24
_COMPRESSED_BYTES = 72
_DEQUANTIZE_BYTES = 200
_CONVOLUTION_BYTES = 800
_BIAS_BYTES = 16
_ROUTE_NAMES = {
    "densify": "",
    "float32": ", float32 values",
    "dequantize": ", float32 arithmetic",
    "convolution": ", as a convolution",
}


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
        bytes: What it takes in the file, with its indices and the operators that were added: at most so many.
        dense_bytes: What it takes in the dense file.
        floor_bytes: Information-theoretic floor for zeros at random: the other values, and n·H(σ)/8 bytes that tell
            where they are (n entries; H: binary entropy in bits).
        reason: Why it stayed dense although zeros could have been saved; ``""`` if dense is the smallest.
        multiply_adds: Multiplications of its entries in one invocation, dense.
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


def encode(model, strategy="smallest"):
    """Encode the zeros of a dense LiteRT model.

    Each constant is stored in the smallest of the ways that the runtime reads: dense, or compressed along its
    dimensions in whichever order is best. Float32, float16 and full int8 files compute what they did, bit for bit.

    Args:
        model: A `ModelT` of `flatbuffer.read`. It is not changed.
        strategy: What to do where the runtime does not take sparse weights: operators that quantise their inputs on the
            fly (in dynamic-range files). `"smallest"`: they compute in float32, with int8 weights that are dequantised
            when the file is loaded. `"same arithmetic"`: their weights stay dense. `"float32 values"`: like the first,
            but nothing is dequantised after DENSIFY; int8 and float16 weights are stored in float32 instead, so that
            outputs can differ from the dense file's by float32 rounding. It is right even where XNNPACK leaves one of
            those operators to the interpreter.

    Returns:
        A new `ModelT`, and a list of `TensorEncoding`: its constants of rank ≥ 2 in float32, float16 and int8.

    Raises:
        ValueError: an unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(map(repr, STRATEGIES))}; received {strategy!r}.")
    model = copy.deepcopy(model)
    graphs = [_Graph(model, subgraph) for subgraph in model.subgraphs]
    holders = {}  # constants with the same content may share a buffer
    for graph in graphs:
        for index, tensor in enumerate(graph.tensors):
            holders.setdefault(tensor.buffer, []).append((graph, index))
    encodings = [encoding for places in holders.values() for encoding in _encode_buffer(model, places, strategy)]
    for graph in graphs:
        graph.rewrite()
    return model, encodings


def _encode_buffer(model, places, strategy):
    """Encode the buffer that the tensors at `places` share, if they are such constants; return `TensorEncoding`s."""
    arrays = [graph.array(index) for graph, index in places]
    constants = [(graph, index) for (graph, index), array in zip(places, arrays, strict=True) if array is not None]
    if not constants:
        return []
    plans = [graph.plan(index, strategy) for graph, index in constants]
    uses = {(plan[1:], _form(graph.tensors[index])) for plan, (graph, index) in zip(plans, constants, strict=True)}
    route, reason = plans[0][1:]
    if len(uses) > 1 or len(constants) < len(places):
        route, reason = "", "other operators read the same buffer in another way"
    array = next(array for array in arrays if array is not None)
    nonzero = int(np.count_nonzero(array))
    results = [
        TensorEncoding(
            name=(graph.tensors[index].name or b"").decode(errors="replace"),
            operator=operator,
            shape=tuple(map(int, graph.tensors[index].shape)),
            dtype=array.dtype.name,
            zeros=1 - nonzero / array.size,
            encoding="dense",
            bytes=0,  # counted for the first alone
            dense_bytes=0,
            floor_bytes=0,
            reason=reason if nonzero < array.size else "",
        )
        for (graph, index), (operator, *_) in zip(constants, plans, strict=True)
    ]
    size, encoding = (route and _encode_array(model, constants, array, route)) or (array.nbytes, "dense")
    floor = floor_bytes(array.size, nonzero, array.itemsize)
    results = [dataclasses.replace(result, encoding=encoding) for result in results]
    results[0] = dataclasses.replace(results[0], bytes=size, dense_bytes=array.nbytes, floor_bytes=floor)
    return results


def _encode_array(model, constants, array, route):
    """Store the array of `constants` sparsely if that is smaller; return bytes and description, or None."""
    tensor = constants[0][0].tensors[constants[0][1]]
    values = _dequantized(array, tensor.quantization) if route == "float32" else array
    if route == "convolution":
        values = values.reshape(len(array), 1, 1, -1)
    size, order, compressed = _smallest(values)
    # Tensors that share a buffer share the values but not the indices: counting both for each is a bound.
    size = len(constants) * (size + _DENSIFY_BYTES + _LEVEL_BYTES * values.ndim)
    if route == "dequantize":
        size += len(constants) * _DEQUANTIZE_BYTES
    if route == "convolution":
        readers = sum(len(graph.readers[index]) for graph, index in constants)
        size += readers * (_CONVOLUTION_BYTES + _BIAS_BYTES * len(array))
    if size >= array.nbytes:
        return None
    stored, levels = _compress(values, order, compressed)
    model.buffers[tensor.buffer].data = stored.view(np.uint8)
    for graph, index in constants:
        graph.make_sparse(index, route, order, levels)
    width = next(level for level in reversed(levels) if level.arrayIndices).arrayIndices.values.itemsize
    return size, f"sparse, {width}-byte indices{_ROUTE_NAMES[route]}"


def _form(tensor):
    """What tensors of one buffer must have in common to be encoded as one."""
    scale = None if tensor.quantization is None else tensor.quantization.scale
    return tensor.type, tuple(tensor.shape), None if scale is None else np.asarray(scale).tobytes()


class _Graph:
    """A subgraph in which constants become sparse: who reads what, and the operators to add."""

    def __init__(self, model, subgraph):
        self.model, self.subgraph, self.tensors = model, subgraph, subgraph.tensors
        self.readers = {}
        for operator in subgraph.operators:
            for index in dict.fromkeys(operator.inputs):
                self.readers.setdefault(int(index), []).append(operator)
        self.replacements = {}

    def array(self, index):
        """The constant `index` as an array, if it is one that can be encoded."""
        tensor = self.tensors[index]
        types = schema().TensorType
        dtype = {types.FLOAT32: np.float32, types.FLOAT16: np.float16, types.INT8: np.int8}.get(tensor.type)
        data = self.model.buffers[tensor.buffer].data
        if dtype is None or data is None or tensor.sparsity or tensor.shape is None or len(tensor.shape) < 2:
            return None
        size = math.prod(map(int, tensor.shape))
        if tensor.isVariable or size == 0 or len(data) != size * np.dtype(dtype).itemsize:
            return None
        return data.view(dtype).reshape(tensor.shape)

    def name(self, operator):
        return operator_name(self.model, operator)

    def plan(self, index, strategy):
        """How the constant can be encoded: operator's name, route (``""``: not at all), reason why not."""
        readers = self.readers.get(index, [])
        names = [self.name(operator) for operator in readers]
        if not readers or index in self.subgraph.outputs:
            return "", "", "it is an output of the graph" if readers else "no operator reads it"
        if set(names) == {"DEQUANTIZE"}:
            outputs = [operator.outputs[0] for operator in readers]
            plans = [self.plan(output, strategy) for output in outputs]
            failed = next((plan for plan in plans if not plan[1]), None)
            if failed:
                return failed
            consumers = {self.name(operator) for output in outputs for operator in self.readers[output]}
            unpacked = consumers <= _UNPACKED and strategy != "float32 values"
            return plans[0][0], "densify" if unpacked else "float32", ""
        routes = set()
        for operator, name in zip(readers, names, strict=True):
            operands = [position for position, i in enumerate(operator.inputs) if i == index]
            if not set(operands) <= set(_READERS.get(name, ())):
                return name, "", f"{name} is not known to take sparse constants here"
            route, reason = self._route(operator, name, index, strategy)
            if not route:
                return name, "", reason
            routes.add(route)
        if len(routes) > 1:
            return names[0], "", "its readers need it in different forms"
        return names[0], routes.pop(), ""

    def _route(self, operator, name, index, strategy):
        types = schema().TensorType
        kinds = self.tensors[index].type, self.tensors[operator.outputs[0]].type
        if kinds == (types.INT8, types.FLOAT32) and name in _ON_THE_FLY:
            if strategy == "same arithmetic":
                return "", f"{name} quantises its input on the fly and needs dense weights"
            return "dequantize" if name in _UNPACKED and strategy == "smallest" else "float32", ""
        if kinds == (types.INT8, types.INT8) and name == "FULLY_CONNECTED":
            if None in self._fixed_shape(operator.outputs[0]) or operator.builtinOptions.weightsFormat:
                return "", "FULLY_CONNECTED in int8 needs dense weights"
            return "convolution", ""
        return "densify", ""

    def make_sparse(self, index, route, order, levels):
        """Turn the constant `index` into the result of a DENSIFY, whose sparse input takes over its buffer."""
        tensor, code = self.tensors[index], schema()
        readers = self.readers[index]
        sparsity = code.SparsityParametersT(np.asarray(order, np.int32), None, levels)
        if route == "float32":
            tensor.type, tensor.quantization = code.TensorType.FLOAT32, None
        if route == "convolution":
            tensor.shape = np.array([tensor.shape[0], 1, 1, tensor.shape[1]], np.int32)
        # Without quantisation parameters, which only DENSIFY's result needs: they are 12 bytes a channel.
        source = self._add_tensor(tensor.shape, tensor.type, tensor.buffer, sparsity=sparsity)
        tensor.buffer = 0
        result = index
        if route == "float32" and self.name(readers[0]) == "DEQUANTIZE":
            for operator in readers:  # DENSIFY's result is what they computed
                self.replacements[id(operator)] = [self._densify(source, operator.outputs[0])]
            return
        added = [self._densify(source, index)]
        if route == "dequantize":
            result = self._add_tensor(tensor.shape, code.TensorType.FLOAT32)
            added.append(
                self._operator("DEQUANTIZE", 5, [index], [result], "DequantizeOptions", code.DequantizeOptionsT())
            )
        for operator in readers:
            operator.inputs = np.where(np.asarray(operator.inputs) == index, result, operator.inputs)
            if hasattr(operator.builtinOptions, "asymmetricQuantizeInputs"):
                operator.builtinOptions.asymmetricQuantizeInputs &= route not in ("float32", "dequantize")
            new = self._convolution(operator) if route == "convolution" else [operator]
            self.replacements[id(operator)] = added + self.replacements.get(id(operator), new)
            added = []  # once, before the first reader

    def rewrite(self):
        """Put the new operators in place: each before the first that reads its result."""
        operators = self.subgraph.operators
        self.subgraph.operators = [new for old in operators for new in self.replacements.get(id(old), [old])]

    def _convolution(self, operator):
        """FULLY_CONNECTED as a 1×1 CONV_2D between RESHAPEs: in int8, XNNPACK takes DENSIFY's result only there."""
        code = schema()
        data, weights, *bias = map(int, operator.inputs)
        (output,) = map(int, operator.outputs)
        units, _, _, features = self.tensors[weights].shape
        if not bias or bias[0] < 0:  # CONV_2D insists on one
            bias = [self._add_constant(np.zeros(units, np.int32))]
            scale = self.tensors[data].quantization.scale * self.tensors[weights].quantization.scale
            self.tensors[bias[0]].quantization = code.QuantizationParametersT(
                scale=scale.astype(np.float32), zeroPoint=np.zeros(len(scale), np.int64)
            )
        rows = math.prod(map(int, self.tensors[output].shape)) // int(units)
        inner = [
            self._add_tensor([rows, 1, 1, size], like.type, quantization=like.quantization, signature=[-1, 1, 1, size])
            for size, like in ((features, self.tensors[data]), (units, self.tensors[output]))
        ]
        shapes = [
            self._add_constant(np.array(shape, np.int32))
            for shape in ([-1, 1, 1, features], [-1, *self._fixed_shape(output)])
        ]
        options = code.Conv2DOptionsT(
            padding=code.Padding.VALID,
            strideW=1,
            strideH=1,
            fusedActivationFunction=operator.builtinOptions.fusedActivationFunction,
        )
        reshape = "RESHAPE", 1
        return [
            self._operator(*reshape, [data, shapes[0]], [inner[0]], "ReshapeOptions", code.ReshapeOptionsT()),
            self._operator("CONV_2D", 3, [inner[0], weights, bias[0]], [inner[1]], "Conv2DOptions", options),
            self._operator(*reshape, [inner[1], shapes[1]], [output], "ReshapeOptions", code.ReshapeOptionsT()),
        ]

    def _fixed_shape(self, index):
        """The dimensions after the first; None for one that is unknown."""
        tensor = self.tensors[index]
        shape = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
        return [None if size < 0 else int(size) for size in shape[1:]]

    def _add_tensor(self, shape, type_, buffer=0, sparsity=None, quantization=None, signature=None):
        self.tensors.append(
            schema().TensorT(
                shape=np.asarray(shape, np.int32),
                type=type_,
                buffer=buffer,
                quantization=quantization,
                sparsity=sparsity,
                shapeSignature=None if signature is None else np.asarray(signature, np.int32),
            )
        )
        return len(self.tensors) - 1

    def _add_constant(self, array):
        self.model.buffers.append(schema().BufferT(array.view(np.uint8)))
        return self._add_tensor(array.shape, schema().TensorType.INT32, len(self.model.buffers) - 1)

    def _densify(self, source, result):
        return self._operator("DENSIFY", 1, [source], [result], "DensifyOptions", schema().DensifyOptionsT())

    def _operator(self, name, version, inputs, outputs, kind, options):
        code, codes = schema(), self.model.operatorCodes
        builtin = getattr(code.BuiltinOperator, name)
        new = code.OperatorCodeT(deprecatedBuiltinCode=builtin, version=version, builtinCode=builtin)
        if all(vars(new) != vars(old) for old in codes):
            codes.append(new)
        return code.OperatorT(
            opcodeIndex=next(i for i, old in enumerate(codes) if vars(old) == vars(new)),
            inputs=np.array(inputs, np.int32),
            outputs=np.array(outputs, np.int32),
            builtinOptionsType=getattr(code.BuiltinOptions, kind),
            builtinOptions=options,
        )


def _smallest(array):
    """The cheapest encoding of `array`'s zeros: bytes of values and indices, order of dimensions, which are compressed.

    A level is either dense, and then has an entry for each index, or compressed, and then lists the indices below which
    something is not zero, and where each list ends. Both kinds are read in any order and combination.

    (A dimension cannot be split so that its indices fit one byte: the runtime reads `block_map` only with dense inner
    blocks, and divides by zero on a compressed one.)
    """
    wide = [axis for axis, size in enumerate(array.shape) if size > 1]
    units = [axis for axis, size in enumerate(array.shape) if size == 1]
    counts = _prefixes(array, wide)
    best = math.inf, None, None
    for order in itertools.permutations(wide):
        for compressed in itertools.product((False, True), repeat=len(order)):
            size, entries = sum(compressed) * _COMPRESSED_BYTES, 1
            for level, axis in enumerate(order):
                if compressed[level]:
                    below = counts[frozenset(order[: level + 1])]
                    size += (entries + 1) * _width(below) + below * _width(array.shape[axis] - 1)
                    entries = below
                else:
                    entries *= array.shape[axis]
            size += entries * array.itemsize
            if any(compressed) and size < best[0]:
                best = size, (*units, *order), (*(False for _ in units), *compressed)
    if not wide:
        return array.nbytes, tuple(units), tuple(False for _ in units)
    return best


def _prefixes(array, axes):
    """For each set of `axes`, the number of their indices below which `array` is not zero everywhere."""
    masks = {frozenset(axes): (array != 0).reshape([array.shape[axis] for axis in axes])}
    for length in range(len(axes) - 1, 0, -1):
        for subset in itertools.combinations(axes, length):
            superset = min((s for s in masks if len(s) == length + 1 and s > set(subset)), key=lambda s: masks[s].size)
            (extra,) = superset - set(subset)
            masks[frozenset(subset)] = masks[superset].any(axis=sorted(superset).index(extra))
    return {subset: int(np.count_nonzero(mask)) for subset, mask in masks.items()}


def _compress(array, order, compressed):
    """The stored values of `array`, and its levels as `DimensionMetadataT`."""
    code = schema()
    array = np.ascontiguousarray(array.transpose(order))
    present = array != 0
    entries = np.zeros(1, np.int64)  # flat indices, over the levels so far, of what is stored
    levels = []
    for level, size in enumerate(array.shape):
        if not compressed[level]:
            entries = (entries[:, None] * size + np.arange(size)).ravel()
            levels.append(code.DimensionMetadataT(format=code.DimensionType.DENSE, denseSize=size))
            continue
        below = present.reshape(math.prod(array.shape[:level]), size, -1).any(-1)[entries]
        parents, indices = np.nonzero(below)
        segments = np.concatenate([[0], np.cumsum(np.count_nonzero(below, axis=1))])
        entries = entries[parents] * size + indices
        levels.append(code.DimensionMetadataT(code.DimensionType.SPARSE_CSR, 0, *_vector(segments), *_vector(indices)))
    # An empty buffer means elsewhere that a tensor is computed: an all-zero one keeps a value, which is not read.
    return array.ravel()[entries] if len(entries) else array.ravel()[:1], levels


def _vector(values):
    """Union type and vector of the smallest unsigned integers that hold `values`."""
    code = schema()
    kinds = {1: ("Uint8Vector", np.uint8), 2: ("Uint16Vector", np.uint16), 4: ("Int32Vector", np.int32)}
    name, dtype = kinds[_width(int(values.max(initial=0)))]
    return getattr(code.SparseIndexVector, name), getattr(code, f"{name}T")(values.astype(dtype))


def _width(largest):
    return 1 if largest < 2**8 else 2 if largest < 2**16 else 4


def _dequantized(array, quantization):
    if array.dtype != np.int8:
        return array.astype(np.float32)
    shape = [1] * array.ndim
    if len(quantization.scale) > 1:
        shape[quantization.quantizedDimension] = -1
    zero_point = quantization.zeroPoint.reshape(shape)
    return ((array - zero_point) * quantization.scale.reshape(shape)).astype(np.float32)


def floor_bytes(size, nonzero, itemsize):
    """The fewest bytes in which `nonzero` of `size` entries, anywhere, can be stored: n·H(σ)/8 bytes for positions."""
    shares = (nonzero / size, 1 - nonzero / size)
    entropy = -sum(share * math.log2(share) for share in shares if share > 0)
    return nonzero * itemsize + math.ceil(size * entropy / 8)
