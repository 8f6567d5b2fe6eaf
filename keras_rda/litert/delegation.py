"""What LiteRT hands to XNNPACK of a graph, and how XNNPACK sees it: LiteRT's `xnnpack_delegate.cc` step by step.

The operators that XNNPACK can take over come to it in groups. In a group, zeros that pad an image belong to the
convolution that reads it, and activations are operators of their own.
"""

import enum
import math

import numpy as np

from keras_rda.litert import sparse_format
from keras_rda.litert.graph import UNPACKING, schema
from keras_rda.litert.layer_names import shortened

FLOATS = {"FLOAT32", "FLOAT16"}
# fmt: off
UNARY = {
    "ABS", "CEIL", "ELU", "EXP", "FLOOR", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOG", "LOGISTIC", "NEG", "RELU", "RELU6",
    "RELU_N1_TO_1", "ROUND", "RSQRT", "SQRT", "SQUARE", "TANH",
}
# Their further inputs are parameters, not values.
PARAMETERS = {
    "EXPAND_DIMS", "MEAN", "PAD", "REDUCE_MAX", "REDUCE_MIN", "RESHAPE", "RESIZE_BILINEAR", "SLICE", "STRIDED_SLICE",
    "SUM", "TRANSPOSE",
}
# What the delegate takes over; operators that it leaves to LiteRT cut the graph into several of XNNPACK's.
_DELEGATED = UNARY | PARAMETERS | {
    "ADD", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "DEPTH_TO_SPACE", "DIV",
    "FULLY_CONNECTED", "MAXIMUM", "MAX_POOL_2D", "MINIMUM", "MUL", "PRELU", "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT",
    "SQUARED_DIFFERENCE", "SUB", "TRANSPOSE_CONV",
}
# fmt: on
UNKNOWN = "not among the operators of the sparse kernels"


class Role(enum.Flag):
    """What an operator does in a cluster: it brings a value into its layout, works in it, brings it back, spoils it."""

    NONE = 0
    ENTRY = enum.auto()
    INSIDE = enum.auto()
    END = enum.auto()
    BROKEN = enum.auto()


class Node:
    """An operator as XNNPACK sees it: with the padding before it fused, and constants unpacked.

    Attributes:
        operator: The `OperatorT`; `kind`: its name in the schema; `name`: of its first output, `output`; None and
            empty if it has none.
        inputs: Tensors that are computed, the padding's instead of the padded.
        constants: Input position → tensor that holds the constant.
        padding: (top, bottom, left, right) of a convolution; `is_late`: XNNPACK finds it while running only, because it
            is "same" with strides.
        role: Its `Role`s; `why`: why it has none.
        leader: Of its cluster, which sums up `parameters` and `zeros`; `engaged`: whether its inputs are in the
            cluster's layout.
    """

    def __init__(self, operator, kind, name):
        self.operator, self.kind, self.name = operator, kind, name
        self.output = operator.outputs[0] if len(operator.outputs) else None  # an operator may only assign a state
        self.inputs, self.constants, self.padding, self.is_late = [], {}, (0, 0, 0, 0), False
        self.role, self.why, self.leader, self.engaged = Role.NONE, UNKNOWN, self, False
        self.parameters = self.zeros = 0

    def __str__(self):
        return f"{self.kind} '{shortened(self.name)}'"

    @property
    def strides(self):
        options = self.operator.builtinOptions
        return options.strideH, options.strideW

    @property
    def dilation(self):
        options = self.operator.builtinOptions
        return options.dilationHFactor, options.dilationWFactor


class Delegation:
    """A `Graph` as XNNPACK sees it.

    Attributes:
        graph: The `Graph`.
        groups: Lists of the `Node`s that the delegate takes over together and does not fuse away, in order.
        producers: Tensor → its `Node`, whoever runs that.
    """

    def __init__(self, graph):
        self.graph, self.producers = graph, {}
        self._between = {}  # tensors between an operator and its activation → the activation's output
        self._fused = set()
        self.groups = [self._fuse(group) for group in self._partitions()]

    def shape(self, index):
        return self.graph.shape(self._between.get(index, index))

    def type(self, index):
        return self.graph.type(self._between.get(index, index))

    def kernel(self, node):
        """Height and width of a convolution's kernel."""
        return self.shape(node.operator.inputs[1])[1:3]

    def counts(self, node):
        """Whether XNNPACK counts the zeros of this operator's weights."""
        if 1 not in node.constants:
            return False
        return node.kind == "FULLY_CONNECTED" or (node.kind == "CONV_2D" and max(self.kernel(node)) == 1)

    def zeros(self, node):
        """(zeros, elements) of the weights of a convolution or dense layer."""
        stored = node.constants[1]
        values, elements = self.graph.values(stored), math.prod(self.shape(stored))
        return (0 if values is None else elements - int(np.count_nonzero(values))), elements

    def nonzero(self, node):
        """Which weights of a 1×1 convolution are not zero: a bool array (outputs, inputs)."""
        stored = node.constants[1]
        values, shape, sparsity = self.graph.values(stored), self.shape(stored), self.graph.tensors[stored].sparsity
        if values is None:
            values = np.ones(math.prod(shape), bool)
        elif sparsity is not None:
            if math.prod(shape) * values.itemsize >= sparse_format.LARGEST:
                raise ValueError(f"a sparse kernel of shape {shape} is more than 2 GB dense")
            values = sparse_format.expand(values, sparsity, shape)
        return values.reshape(shape[0], -1) != 0

    def axes(self, node):
        """The axes of a MEAN or SUM."""
        data, axes = node.operator.inputs
        return {int(axis) % len(self.shape(data)) for axis in self.graph.array(axes).ravel()}

    def is_hint(self, index):
        """Whether a constant comes out of DENSIFY in floating point, at which the delegate looks for zeros."""
        *made, stored = sources = self.graph.sources(index)
        is_dense = all(self.graph.kind(self.graph.producers[result]) != "DENSIFY" for result in made)
        return (
            not is_dense and self.graph.is_stored(stored) and all(self.type(source) in FLOATS for source in sources[1:])
        )

    def consumers(self, group):
        """Tensor → the `Node`s of a group that read it."""
        consumers = {}
        for node in group:
            for index in node.inputs:
                consumers.setdefault(index, []).append(node)
        return consumers

    def outside(self, group):
        """Tensors that the group takes from or gives to others."""
        own = {index for node in group for index in (*node.operator.outputs, node.output)}
        others = set(self.producers.values()) - set(group) - self._fused
        read = {index for node in others for index in node.inputs}
        outside = {index for node in group for index in node.inputs if index not in own}
        return outside | read & own | {*self.graph.subgraph.inputs, *self.graph.subgraph.outputs}

    def _partitions(self):
        """Nodes in the groups that LiteRT hands to the delegate: in turn, all it can take over next, all it cannot."""
        graph, waiting = self.graph, []
        for operator in graph.operators:
            kind = graph.kind(operator)
            stored = {int(index): graph.constant(index) for index in operator.inputs if index >= 0}
            if kind in UNPACKING and stored[operator.inputs[0]] is not None:
                continue
            node = Node(operator, kind, graph.short_name(operator.outputs[0]) if len(operator.outputs) else "")
            node.constants = {
                position: stored[index]
                for position, index in enumerate(operator.inputs)
                if stored.get(index) is not None
            }
            node.inputs = [int(index) for index in operator.inputs if index >= 0 and stored[index] is None]
            delegated = kind in _DELEGATED and (kind not in PARAMETERS or len(node.inputs) == 1)
            waiting.append((node, delegated))
            for index in operator.outputs:
                self.producers[index] = node
            if kind in {"ADD", "SUB", "MUL", "DIV"} and operator.builtinOptions.fusedActivationFunction:
                waiting.append((self._split(node), delegated))
        # As TensorFlow's PartitionGraphIntoIndependentNodeSubsets.
        ready, groups, takes = set(graph.subgraph.inputs), [], True
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
        return groups

    def _split(self, node):
        """Separate the activation from an arithmetic operator, as XNNPACK does; return its node.

        It matters: the activation may work in the cluster's layout where the operator does not.
        """
        activation = Node(node.operator, "RELU", node.name)
        between = len(self.graph.tensors) + len(self._between)
        self._between[between] = node.output
        self.producers[node.output], self.producers[between] = activation, node
        node.output, activation.inputs = between, [between]
        return activation

    def _fuse(self, group):
        """Fuse a zero padding into the only convolution that reads it, and note convolutions' own padding."""
        consumers, outside = self.consumers(group), self.outside(group)
        for node in group:
            if node.kind not in {"CONV_2D", "DEPTHWISE_CONV_2D"}:
                continue
            if node.operator.builtinOptions.padding == schema().Padding.SAME:
                node.padding = self._same_padding(node)
                node.is_late = max(node.strides) > 1
                continue
            padding = self.producers.get(node.inputs[0]) if node.inputs else None
            if padding not in group or padding.kind != "PAD" or padding.output in outside:
                continue
            if len(consumers[padding.output]) != 1:
                continue
            amounts = self.graph.array(padding.operator.inputs[1]).reshape(-1, 2)
            if len(amounts) == 4 and not amounts[[0, 3]].any():
                node.padding = tuple(int(amount) for amount in amounts[1:3].ravel())
                node.inputs[0] = padding.inputs[0]
                padding.why = ""
                self._fused.add(padding)
        return [node for node in group if node not in self._fused]

    def _same_padding(self, node):
        sizes, padding = self.shape(node.operator.inputs[0])[1:3], ()
        for size, stride, kernel, dilation in zip(sizes, node.strides, self.kernel(node), node.dilation, strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
            padding += (total // 2, total - total // 2)
        return padding
