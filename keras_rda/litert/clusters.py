"""The clusters of a graph that XNNPACK's sparse kernels run, and what these get wrong.

The kernels take images channel by channel (NCHW), so XNNPACK uses them only where a whole cluster of operators can work
in that layout. This is `xnn_check_nchw_compatibility` and `xnn_subgraph_rewrite_for_nchw` of its `src/subgraph.c`.

The latter does not check what leaves a cluster: an operator there that cannot convert back to NHWC gives outputs in the
wrong order, or a file that does not load; so does a mean or sum that keeps its dimensions, wherever it stands. Such
places, seen with ai-edge-litert 2.3 on an emulated processor, are faults.
"""

from keras_rda.litert.delegation import FLOATS, PARAMETERS, UNARY, UNKNOWN, Delegation, Role

_REDUCTIONS = {"MEAN", "SUM"}


class Clusters:
    """A `Graph` after XNNPACK's analysis.

    Attributes:
        graph, delegation: The `Graph`, and its `Delegation`.
        nodes: Those that the delegate takes over and does not fuse away, in order.
        consumers: Tensor → a list of its `Node`s.
        faults: `Node` → what is wrong with it.
    """

    def __init__(self, graph):
        self.graph, self.delegation = graph, Delegation(graph)
        self.nodes = [node for group in self.delegation.groups for node in group]
        self.consumers = self.delegation.consumers(self.nodes)
        for node in self.nodes:
            node.role, node.why = _role(self.delegation, node)
        for group in self.delegation.groups:
            if any(self.delegation.is_hint(index) for node in group for index in node.operator.inputs):
                _engage(self.delegation, group)
        engaged = [node for node in self.nodes if node.engaged]
        self.faults = {node: fault for node in engaged if (fault := self._fault(node))}

    def _fault(self, node):
        """What XNNPACK gets wrong at a node that works in the cluster's layout; None if nothing."""
        if node.kind == "DEPTH_TO_SPACE":
            return None
        if node.kind == "FULLY_CONNECTED":
            rank = len(self.delegation.shape(node.inputs[0])) if node.inputs else 2
            return None if rank < 4 else "reads an input of rank 4 from the sparse kernels"
        if node.kind in _REDUCTIONS:
            # A kept dimension has the wrong place afterwards. Where a convolution reads it (squeeze and excite), the
            # outputs are right for the first image of a batch only.
            axes, keep = self.delegation.axes(node), node.operator.builtinOptions.keepDims
            if not keep and axes in ({1, 2}, {3}, {1, 2, 3}):
                return None
            return f"reduces the axes {sorted(axes)}{' and keeps them' if keep else ''} behind the sparse kernels"
        inside = any(consumer.engaged for consumer in self.consumers.get(node.output, ()))
        return None if inside else "leaves the sparse kernels without a mean or sum over height and width"


def _role(delegation, node):
    """The role that `xnn_check_nchw_compatibility` gives, and if it is none, why."""
    kind, shape = node.kind, delegation.shape
    used = [*node.inputs, node.output]
    if kind not in PARAMETERS:
        used += node.constants.values()
    if wrong := {delegation.type(index) for index in used} - FLOATS:
        return Role.NONE, f"computes with {', '.join(sorted(wrong))}, must be floating point"
    if kind == "FULLY_CONNECTED":
        return Role.INSIDE, ""
    if kind == "CONV_2D":
        return _role_of_convolution(delegation, node)
    if kind == "DEPTHWISE_CONV_2D":
        return _role_of_depthwise_convolution(delegation, node)
    if kind == "DEPTH_TO_SPACE":
        return Role.END, ""
    if kind in {"ADD", "MUL"}:
        ranks = {len(shape(index)) for index in (*node.inputs, *node.constants.values())}
        if ranks != {4}:
            return Role.NONE, f"operands of ranks {sorted(ranks)}, must be 4"
        # XNNPACK looks at the first operand's shape whichever is constant: a constant second operand never passes.
        if node.constants and sum(size != 1 for size in shape(node.operator.inputs[0])) > 1:
            return Role.NONE, "a constant operand"
        return Role.INSIDE, ""
    rank = len(shape(node.inputs[0])) if node.inputs else 0
    if kind in _REDUCTIONS | UNARY and rank != 4:
        return Role.NONE, f"an input of rank {rank}, must be 4"
    if kind in _REDUCTIONS:
        return Role.INSIDE | Role.END, ""
    if kind in UNARY:
        return Role.INSIDE, ""
    if kind == "RESIZE_BILINEAR":
        if min(shape(node.inputs[0])[1:3]) <= 1:
            return Role.NONE, "an input of height or width 1, must be larger"
        return Role.INSIDE, ""
    return Role.NONE, UNKNOWN


def _role_of_convolution(delegation, node):
    kernel, strides = delegation.kernel(node), node.strides
    channels = delegation.shape(node.operator.inputs[1])[3]
    groups = delegation.shape(node.operator.inputs[0])[3] // channels
    wrongs = (
        groups != 1 and f"{groups} groups, must be 1",
        max(node.dilation) > 1 and f"dilation {node.dilation}, must be 1",
        kernel not in {(1, 1), (3, 3)} and f"kernel {kernel[0]}×{kernel[1]}, must be 1×1, or 3×3 at the start",
        kernel == (1, 1) and strides != (1, 1) and f"1×1 with strides {strides}, must be 1",
        kernel == (1, 1) and _wrong_padding(node, 0),
        kernel == (3, 3) and channels != 3 and f"3×3 on {channels} channels, must be on 3, at the start",
        kernel == (3, 3) and strides != (2, 2) and f"3×3 with strides {strides}, must be 2",
        kernel == (3, 3) and _wrong_padding(node, 1),
    )
    return _unless(wrongs, Role.INSIDE if kernel == (1, 1) else Role.ENTRY)


def _role_of_depthwise_convolution(delegation, node):
    kernel, strides, multiplier = delegation.kernel(node), node.strides, node.operator.builtinOptions.depthMultiplier
    wrongs = (
        max(node.dilation) > 1 and f"dilation {node.dilation}, must be 1",
        multiplier != 1 and f"depth multiplier {multiplier}, must be 1",
        strides not in {(1, 1), (2, 2)} and f"strides {strides}, must be 1 or 2",
        kernel not in {(3, 3), (5, 5)} and f"kernel {kernel[0]}×{kernel[1]}, must be 3×3 or 5×5",
        _wrong_padding(node, kernel[0] // 2),
    )
    return _unless(wrongs, Role.INSIDE)


def _unless(wrongs, role):
    """The role, or the first thing that is wrong."""
    wrong = next(filter(None, wrongs), "")
    return (Role.NONE if wrong else role), wrong


def _wrong_padding(node, size):
    if node.padding == (size,) * 4 and not node.is_late:
        return ""
    top, bottom, left, right = node.padding
    sides = (top, bottom) if (top, bottom) == (left, right) else node.padding
    layer = " by a padding layer" if node.is_late else ""
    return f"padding {sides}{' of same' if node.is_late else ''}, must be {size} on every side{layer}"


def _engage(delegation, group):
    """`xnn_subgraph_rewrite_for_nchw`, step by step, of a group that has hints."""
    consumers, outside = delegation.consumers(group), delegation.outside(group)
    ENTRY, INSIDE, END, BROKEN = Role.ENTRY, Role.INSIDE, Role.END, Role.BROKEN

    def join(node):
        joined = False
        for index in node.inputs:
            producer = delegation.producers.get(index)
            if index in outside or producer not in group:
                node.role |= BROKEN
                if index in delegation.graph.subgraph.outputs:
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
        if not node.leader.role & BROKEN and delegation.counts(node):
            zeros, elements = delegation.zeros(node)
            node.leader.zeros += zeros
            node.leader.parameters += elements
    for node in active():
        node.engaged = node.leader.zeros * 3 > node.leader.parameters * 2
