"""Whether XNNPACK runs the zeros of a LiteRT file with its sparse kernels, and whether it does so rightly.

XNNPACK, LiteRT's default delegate, has kernels for 1×1 convolutions with unstructured zeros. They take images channel
by channel (NCHW), so XNNPACK uses them only where a whole cluster of operators can work in that layout. The analysis is
XNNPACK's own: `xnn_check_nchw_compatibility` and `xnn_subgraph_rewrite_for_nchw` of its `src/subgraph.c`, tried when
LiteRT's `xnnpack_delegate.cc` finds a weight that comes out of DENSIFY in floating point.

That function does not check what leaves a cluster: an operator there that cannot convert back to NHWC gives outputs in
the wrong order, or a file that does not load; so does a mean or sum that keeps its dimensions, wherever it stands. Such
places, seen with ai-edge-litert 2.3 on an emulated processor, are reported as faults; `repair.repair_tails` mends them.
"""

import dataclasses
import pathlib
import platform

import numpy as np

from keras_rda.litert import flatbuffer
from keras_rda.litert.layer_names import shortened

# Roles of an operator: it brings a value into the cluster's layout, works in it, brings it back, or spoils the cluster.
ENTRY, INSIDE, END, BROKEN = 1, 2, 4, 8
# fmt: off
_UNARY = {
    "ABS", "CEIL", "ELU", "EXP", "FLOOR", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOG", "LOGISTIC", "NEG", "RELU", "RELU6",
    "RELU_N1_TO_1", "ROUND", "RSQRT", "SQRT", "SQUARE", "TANH",
}
# Their further inputs are parameters, not values.
_PARAMETERS = {
    "EXPAND_DIMS", "MEAN", "PAD", "REDUCE_MAX", "REDUCE_MIN", "RESHAPE", "RESIZE_BILINEAR", "SLICE", "STRIDED_SLICE",
    "SUM", "TRANSPOSE",
}
# What the delegate takes over; operators that it leaves to LiteRT cut the graph into several of XNNPACK's.
_DELEGATED = _UNARY | _PARAMETERS | {
    "ADD", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "DEPTH_TO_SPACE", "DIV",
    "FULLY_CONNECTED", "MAXIMUM", "MAX_POOL_2D", "MINIMUM", "MUL", "PRELU", "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT",
    "SQUARED_DIFFERENCE", "SUB", "TRANSPOSE_CONV",
}
# fmt: on
_UNKNOWN = "not among the operators of the sparse kernels"


@dataclasses.dataclass(frozen=True)
class SparseKernels:
    """What XNNPACK's sparse kernels make of a file, where they exist (see `here`).

    Attributes:
        eligible: Whether some convolutions run sparse, and rightly.
        reasons: If not, why, operator by operator.
        operators: Names of the 1×1 convolutions that run sparse.
        zeros: Share of zeros in the weights that XNNPACK counts: of those convolutions and the dense layers behind
            them; if there are none, of all 1×1 convolutions and dense layers. More than 2/3 are needed.
        faults: Those of `reasons` for which the file is wrong or does not load where the kernels exist.
    """

    eligible: bool
    reasons: tuple[str, ...]
    operators: tuple[str, ...]
    zeros: float
    faults: tuple[str, ...] = ()


def sparse_kernels(path):
    """Say whether the `.tflite` file at `path` runs faster for its zeros on Arm; return `SparseKernels`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no LiteRT file.
    """
    return analyze(flatbuffer.read(path))[0]


def here():
    """Say in a line why this machine has no sparse kernels; None if it has."""
    machine = platform.machine().lower()
    if machine in {"aarch64", "arm64", "armv7l", "armv8l"}:
        return None
    if machine not in {"x86_64", "amd64", "i686"}:
        return f"XNNPACK is not known to have sparse kernels for processors of the kind {machine!r}."
    if "avx" in _cpu_flags():
        return "XNNPACK has no sparse kernels for x86 processors with AVX: zeros make files smaller here, not faster."
    return None


def _cpu_flags():
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    # Where it cannot be read: all x86 processors that run current systems have AVX.
    return set(cpuinfo.read_text().split()) if cpuinfo.is_file() else {"avx"}


class Node:
    """An operator as XNNPACK sees it: with the padding before it fused, and constants unpacked.

    Attributes:
        operator: The `OperatorT`; `kind`: its name in the schema; `name`: of its first output, `output`; None and
            empty if it has none.
        inputs: Tensors that are computed, the padding's instead of the padded.
        constants: Input position → tensor that holds the constant.
        padding: (top, bottom, left, right) of a convolution; `is_late`: XNNPACK finds it while running only, because it
            is "same" with strides.
        role: `ENTRY`, `INSIDE`, `END`, `BROKEN`, combined; `why`: why it has none.
        leader: Of its cluster; `engaged`: whether its inputs are in the cluster's layout.
    """

    def __init__(self, operator, kind, name):
        self.operator, self.kind, self.name = operator, kind, name
        self.output = operator.outputs[0] if len(operator.outputs) else None  # an operator may only assign a state
        self.inputs, self.constants, self.padding, self.is_late = [], {}, (0, 0, 0, 0), False
        self.role, self.why, self.leader, self.engaged = 0, _UNKNOWN, self, False
        self.parameters = self.zeros = 0

    def __str__(self):
        return f"{self.kind} '{shortened(self.name)}'"


class Graph:
    """The first subgraph of a `ModelT`, after XNNPACK's analysis.

    Attributes:
        nodes: Those that the delegate takes over and does not fuse away, in order.
        producers, consumers: Tensor → its `Node`, a list of its `Node`s.
        faults: `Node` → what is wrong with it.
    """

    def __init__(self, model):
        schema = flatbuffer.schema()
        self.model, self.subgraph = model, model.subgraphs[0]
        self.tensors = self.subgraph.tensors
        self._types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
        self._same = schema.Padding.SAME
        self._stored, self._sparse = {}, set()  # constant → tensor that holds it; constants that come out of DENSIFY
        self.nodes, self.producers, self.consumers, self.faults = [], {}, {}, {}
        self._fused, self._between = (
            set(),
            {},
        )  # tensors between an operator and its activation → the activation's output
        for index, tensor in enumerate(self.tensors):
            if self._data(tensor) is not None:
                self._stored[index] = index
        groups = self._partitions()
        self.nodes = [node for group in groups for node in group]
        for group in groups:
            self._engage(group)
        for node in self.nodes:
            if node.engaged and (fault := self._fault(node)):
                self.faults[node] = fault

    def shape(self, index):
        shape = self.tensors[self._between.get(index, index)].shape
        return [int(size) for size in shape] if shape is not None else []

    def constant(self, index):
        """The values of a constant that is stored dense; None of another tensor."""
        data = self._data(self.tensors[index])
        return None if data is None else data.view({"INT32": np.int32, "INT64": np.int64}[self._type(index)])

    def zeros(self, node):
        """(zeros, elements) of the weights of a convolution or dense layer."""
        stored = self._stored[node.operator.inputs[1]]
        values = self._data(self.tensors[stored])
        kind = {"FLOAT32": np.float32, "FLOAT16": np.float16, "INT8": np.int8}.get(self._type(stored))
        elements = int(np.prod(self.shape(stored)))
        return (elements - int(np.count_nonzero(values.view(kind))) if kind else 0), elements

    def counts(self, node):
        """Whether XNNPACK counts the zeros of this operator's weights."""
        if 1 not in node.constants:
            return False
        return node.kind == "FULLY_CONNECTED" or (node.kind == "CONV_2D" and max(self._kernel(node)) == 1)

    def axes(self, node):
        """The axes of a MEAN or SUM."""
        rank = len(self.shape(node.operator.inputs[0]))
        return {int(axis) % rank for axis in self.constant(node.operator.inputs[1]).ravel()}

    @property
    def is_hinted(self):
        return bool(self._sparse)

    def _data(self, tensor):
        data = self.model.buffers[tensor.buffer].data
        return np.asarray(data, np.uint8) if data is not None and len(data) else None

    def _type(self, index):
        return self._types[self.tensors[self._between.get(index, index)].type]

    def _kernel(self, node):
        return self.shape(node.operator.inputs[1])[1:3]

    def _partitions(self):
        """Nodes in the groups that LiteRT hands to the delegate: in turn, all it can take over next, all it cannot."""
        waiting = []
        for operator in self.subgraph.operators:
            kind = flatbuffer.operator_name(self.model, operator)
            inputs = [int(index) for index in operator.inputs if index >= 0]
            if kind in {"DENSIFY", "DEQUANTIZE"} and inputs[0] in self._stored:
                self._stored[operator.outputs[0]] = self._stored[inputs[0]]
                is_float = self._type(inputs[0]) in {"FLOAT32", "FLOAT16"}
                if is_float and (kind == "DENSIFY" or inputs[0] in self._sparse):
                    self._sparse.add(operator.outputs[0])
                continue
            names = [(self.tensors[index].name or b"").decode(errors="replace") for index in operator.outputs]
            node = Node(operator, kind, names[0].split(";")[0] if names else "")
            node.constants = {i: self._stored[t] for i, t in enumerate(operator.inputs) if t in self._stored}
            node.inputs = [index for index in inputs if index not in self._stored]
            delegated = kind in _DELEGATED
            if kind in _PARAMETERS:
                delegated &= len(node.inputs) == 1
            waiting.append((node, delegated))
            for index in operator.outputs:
                self.producers[index] = node
            if kind in {"ADD", "SUB", "MUL", "DIV"} and operator.builtinOptions.fusedActivationFunction:
                waiting.append((self._split(node), delegated))
        # As TensorFlow's PartitionGraphIntoIndependentNodeSubsets.
        ready, groups, takes = set(self.subgraph.inputs), [], True
        while waiting:
            group, left = [], []
            for node, delegated in waiting:
                if delegated == takes and all(i in ready or i not in self.producers for i in node.inputs):
                    group.append(node)
                    ready.update(node.operator.outputs, [node.output])
                else:
                    left.append((node, delegated))
            if takes:
                groups.append(group)
            if not group and len(left) == len(waiting) and not takes:
                raise ValueError("its operators are not in order")
            waiting, takes = left, not takes
        return [self._fuse(group) for group in groups]

    def _split(self, node):
        """Separate the activation from an arithmetic operator, as XNNPACK does; return its node.

        It matters: the activation may work in the cluster's layout where the operator does not.
        """
        activation = Node(node.operator, "RELU", node.name)
        between = len(self.tensors) + len(self._between)
        self._between[between] = node.output
        self.producers[node.output], self.producers[between] = activation, node
        node.output, activation.inputs = between, [between]
        return activation

    def _fuse(self, group):
        """Fuse a zero padding into the only convolution that reads it, and note convolutions' own padding."""
        consumers, outside = self._consumers(group), self._outside(group)
        for node in group:
            if node.kind not in {"CONV_2D", "DEPTHWISE_CONV_2D"}:
                continue
            options = node.operator.builtinOptions
            if options.padding == self._same:
                node.padding = self._same_padding(node)
                node.is_late = max(options.strideH, options.strideW) > 1
                continue
            padding = self.producers.get(node.inputs[0]) if node.inputs else None
            if padding not in group or padding.kind != "PAD" or padding.output in outside:
                continue
            if len(consumers[padding.output]) != 1:
                continue
            amounts = self.constant(padding.operator.inputs[1]).reshape(-1, 2)
            if len(amounts) == 4 and not amounts[[0, 3]].any():
                node.padding = tuple(int(amount) for amount in amounts[1:3].ravel())
                node.inputs[0] = padding.inputs[0]
                padding.why = ""
                self._fused.add(padding)
        return [node for node in group if node not in self._fused]

    def _same_padding(self, node):
        options, padding = node.operator.builtinOptions, ()
        sizes = self.shape(node.operator.inputs[0])[1:3]
        strides = options.strideH, options.strideW
        for size, stride, kernel, dilation in zip(
            sizes, strides, self._kernel(node), self._dilation(node), strict=True
        ):
            total = max(0, (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
            padding += (total // 2, total - total // 2)
        return padding

    def _dilation(self, node):
        options = node.operator.builtinOptions
        return options.dilationHFactor, options.dilationWFactor

    def _consumers(self, group):
        consumers = {}
        for node in group:
            for index in node.inputs:
                consumers.setdefault(index, []).append(node)
        return consumers

    def _outside(self, group):
        """Tensors that the group takes from or gives to others."""
        own = {index for node in group for index in (*node.operator.outputs, node.output)}
        others = set(self.producers.values()) - set(group) - self._fused
        read = {index for node in others for index in node.inputs}
        outside = {index for node in group for index in node.inputs if index not in own}
        return outside | read & own | {*self.subgraph.inputs, *self.subgraph.outputs}

    def _compatible(self, node):
        """The role that `xnn_check_nchw_compatibility` gives, and if it is none, why."""
        kind, options = node.kind, node.operator.builtinOptions
        used = [*node.inputs, node.output]
        if kind not in _PARAMETERS:
            used += node.constants.values()
        if wrong := {self._type(index) for index in used} - {"FLOAT32", "FLOAT16"}:
            return 0, f"computes with {', '.join(sorted(wrong))}, must be floating point"
        if kind == "FULLY_CONNECTED":
            return INSIDE, ""
        if kind == "CONV_2D":
            return self._compatible_convolution(node)
        if kind == "DEPTHWISE_CONV_2D":
            kernel, strides = self._kernel(node), (options.strideH, options.strideW)
            for wrong in (
                max(self._dilation(node)) > 1 and f"dilation {self._dilation(node)}, must be 1",
                options.depthMultiplier != 1 and f"depth multiplier {options.depthMultiplier}, must be 1",
                strides not in {(1, 1), (2, 2)} and f"strides {strides}, must be 1 or 2",
                kernel not in ([3, 3], [5, 5]) and f"kernel {kernel[0]}×{kernel[1]}, must be 3×3 or 5×5",
                self._wrong_padding(node, kernel[0] // 2),
            ):
                if wrong:
                    return 0, wrong
            return INSIDE, ""
        if kind == "DEPTH_TO_SPACE":
            return END, ""
        ranks = {len(self.shape(index)) for index in (*node.inputs, *node.constants.values())}
        if kind in {"ADD", "MUL"}:
            if ranks != {4}:
                return 0, f"operands of ranks {sorted(ranks)}, must be 4"
            # XNNPACK looks at the first operand's shape whichever is constant: a constant second operand never passes.
            if node.constants and sum(size != 1 for size in self.shape(node.operator.inputs[0])) > 1:
                return 0, "a constant operand"
            return INSIDE, ""
        rank = len(self.shape(node.inputs[0])) if node.inputs else 0
        if kind in {"MEAN", "SUM"} | _UNARY and rank != 4:
            return 0, f"an input of rank {rank}, must be 4"
        if kind in {"MEAN", "SUM"}:
            return INSIDE | END, ""
        if kind in _UNARY:
            return INSIDE, ""
        if kind == "RESIZE_BILINEAR":
            small = min(self.shape(node.inputs[0])[1:3]) <= 1
            return (0, "an input of height or width 1, must be larger") if small else (INSIDE, "")
        return 0, _UNKNOWN

    def _compatible_convolution(self, node):
        options, kernel = node.operator.builtinOptions, self._kernel(node)
        strides = (options.strideH, options.strideW)
        channels = self.shape(node.operator.inputs[1])[3]
        groups = self.shape(node.operator.inputs[0])[3] // channels
        for wrong in (
            groups != 1 and f"{groups} groups, must be 1",
            max(self._dilation(node)) > 1 and f"dilation {self._dilation(node)}, must be 1",
            kernel not in ([1, 1], [3, 3]) and f"kernel {kernel[0]}×{kernel[1]}, must be 1×1, or 3×3 at the start",
            kernel == [1, 1] and strides != (1, 1) and f"1×1 with strides {strides}, must be 1",
            kernel == [1, 1] and self._wrong_padding(node, 0),
            kernel == [3, 3] and channels != 3 and f"3×3 on {channels} channels, must be on 3, at the start",
            kernel == [3, 3] and strides != (2, 2) and f"3×3 with strides {strides}, must be 2",
            kernel == [3, 3] and self._wrong_padding(node, 1),
        ):
            if wrong:
                return 0, wrong
        return (INSIDE if kernel == [1, 1] else ENTRY), ""

    def _wrong_padding(self, node, size):
        if node.padding == (size,) * 4 and not node.is_late:
            return ""
        top, bottom, left, right = node.padding
        sides = (top, bottom) if (top, bottom) == (left, right) else node.padding
        layer = " by a padding layer" if node.is_late else ""
        return f"padding {sides}{' of same' if node.is_late else ''}, must be {size} on every side{layer}"

    def _engage(self, group):
        """`xnn_subgraph_rewrite_for_nchw`, step by step."""
        consumers, outside = self._consumers(group), self._outside(group)
        for node in group:
            for index in node.inputs:
                self.consumers.setdefault(index, []).append(node)
            node.role, node.why = self._compatible(node)
        if not any(self._sparse & set(node.operator.inputs) for node in group):
            return

        def join(node):
            joined = False
            for index in node.inputs:
                producer = self.producers.get(index)
                if index in outside or producer not in group:
                    node.role |= BROKEN
                    if index in self.subgraph.outputs:
                        node.why = "its input is also an output of the network, must be read here only"
                elif producer.role & (ENTRY | INSIDE) and not producer.role & BROKEN:
                    producer.role &= ~END
                    if producer.leader is not node.leader:
                        later = max(producer.leader, node.leader, key=group.index)
                        producer.leader = node.leader = later
                        joined = True
                else:
                    node.role |= BROKEN
            return joined

        again = any([join(node) for node in group if node.role & END])
        if not again:
            return
        while again:
            again = any([join(node) for node in group if node.role & (INSIDE | END) and not node.role & BROKEN])
        for node in group:
            node.leader.role |= node.role & BROKEN

        def active():
            return [n for n in group if n.role & (INSIDE | END) and not n.leader.role & BROKEN]

        compatible = {}
        for node in active():
            for index in node.inputs:
                compatible[index] = compatible.get(index, 0) + 1
        for node in active():
            for index in node.inputs:
                if compatible[index] != len(consumers[index]):
                    node.leader.role |= BROKEN
                    node.why = "its input is also read by an operator that is not among those of the sparse kernels"
        for node in group:
            if not node.leader.role & BROKEN and self.counts(node):
                zeros, elements = self.zeros(node)
                node.leader.zeros += zeros
                node.leader.parameters += elements
        for node in active():
            node.engaged = node.leader.zeros * 3 > node.leader.parameters * 2

    def _fault(self, node):
        """What XNNPACK gets wrong at a node that works in the cluster's layout; None if nothing."""
        inside = any(consumer.engaged for consumer in self.consumers.get(node.output, ()))
        if node.kind == "DEPTH_TO_SPACE":
            return None
        if node.kind == "FULLY_CONNECTED":
            rank = len(self.shape(node.inputs[0])) if node.inputs else 2
            return None if rank < 4 else "reads an input of rank 4 from the sparse kernels"
        if node.kind in {"MEAN", "SUM"}:
            # A kept dimension has the wrong place afterwards. Where a convolution reads it (squeeze and excite), the
            # outputs are right for the first image of a batch only.
            axes, keep = self.axes(node), node.operator.builtinOptions.keepDims
            if not keep and axes in ({1, 2}, {3}, {1, 2, 3}):
                return None
            return f"reduces the axes {sorted(axes)}{' and keeps them' if keep else ''} behind the sparse kernels"
        return None if inside else "leaves the sparse kernels without a mean or sum over height and width"


def analyze(model):
    """Analyse a `ModelT`; return its `SparseKernels` and `Graph`."""
    try:
        graph = Graph(model)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"The LiteRT file's operators are damaged: {error!r}.") from error
    runs = [node for node in graph.nodes if node.engaged and node.kind == "CONV_2D"]
    counted = [node for node in graph.nodes if graph.counts(node) and (node.engaged or not runs)]
    zeros, elements = np.sum([graph.zeros(node) for node in counted], axis=0) if counted else (0, 0)
    faults = tuple(f"{node}: {fault}" for node, fault in graph.faults.items())
    share = float(zeros / elements) if elements else 0.0
    reasons = faults or (() if runs else tuple(_reasons(graph, share)))
    return SparseKernels(bool(runs and not faults), reasons, tuple(node.name for node in runs), share, faults), graph


def _reasons(graph, share):
    if not graph.is_hinted:
        yield "No weight is stored sparse in floating point: zeros are not looked for."
    cluster = [node for node in graph.nodes if node.role & (ENTRY | INSIDE | END) and node.kind != "FULLY_CONNECTED"]
    if not any(node.kind == "CONV_2D" and node.role & INSIDE for node in graph.nodes):
        yield "There is no 1×1 convolution with stride 1 in floating point."
    beside = {consumer for node in cluster for consumer in graph.consumers.get(node.output, ())}
    beside |= {graph.producers.get(index) for node in cluster for index in node.inputs}
    for node in dict.fromkeys(graph.producers.values()):
        if node.why and (node.role or node in beside):
            yield f"{node}: {node.why}"
        elif node in cluster and not node.role & ENTRY and set(node.inputs) & set(graph.subgraph.inputs):
            yield f"{node}: reads the network's input, which only a 3×3 convolution with stride 2 on 3 channels can"
    if not any(node.kind in {"MEAN", "SUM", "DEPTH_TO_SPACE"} and node.role for node in graph.nodes):
        yield "There is no mean or sum over height and width, nor DEPTH_TO_SPACE, at the end."
    if share * 3 <= 2:
        yield f"Zeros: {share:.3f} of the weights of 1×1 convolutions and dense layers, must be more than 2/3."
