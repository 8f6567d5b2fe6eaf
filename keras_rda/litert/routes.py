"""How the runtime takes a constant whose zeros are stored sparse: what was found by running each way, on each operator.

A sparse constant is followed by a DENSIFY operator that fills it in when the file is loaded.
"""

import enum
import typing

from keras_rda.litert.graph import OPERANDS

STRATEGIES = ("smallest", "float32 values", "same arithmetic")
UNCHANGED = ("same arithmetic", "same arithmetic, float32 values")  # the arithmetic, whatever the file is

# Operator → the operands that may come from DENSIFY; each was run with and without XNNPACK.
_SPARSE = {kind: operands.weights for kind, operands in OPERANDS.items()} | {"GATHER": (0,)}
# XNNPACK unpacks DENSIFY → DEQUANTIZE for the operators it takes. Where it leaves the reader to the interpreter, it
# hands back the DEQUANTIZE but not the DENSIFY, and the reader computes with memory that nobody wrote. It takes these.
_UNPACKED = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
# Operators that XNNPACK takes also where they quantise float32 inputs on the fly. It then looks for the weights in the
# file instead of in DENSIFY's result, and the file does not load.
_ON_THE_FLY = {"BATCH_MATMUL", "CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"}


class Route(enum.Enum):
    """What is written for a sparse constant beside DENSIFY; the value describes it in a report."""

    DENSIFY = ""
    FLOAT32 = ", float32 values"
    DEQUANTIZE = ", float32 arithmetic"
    CONVOLUTION = ", as a convolution"


class Plan(typing.NamedTuple):
    """The operator that reads a constant, the `Route` (None: it stays dense), and why it stays dense."""

    operator: str
    route: Route | None
    reason: str = ""


def plan(graph, index, strategy):
    """The `Plan` for the constant `index` of a `Graph`; `strategy` as of `encode`."""
    readers = graph.readers.get(index, [])
    kinds = [graph.kind(operator) for operator in readers]
    if not readers or index in graph.subgraph.outputs:
        return Plan("", None, "it is an output of the graph" if readers else "no operator reads it")
    if set(kinds) == {"DEQUANTIZE"}:
        outputs = [int(operator.outputs[0]) for operator in readers]
        plans = [plan(graph, output, strategy) for output in outputs]
        if failed := next((found for found in plans if found.route is None), None):
            return failed
        behind = {graph.kind(operator) for output in outputs for operator in graph.readers[output]}
        is_unpacked = behind <= _UNPACKED and "float32 values" not in strategy
        return Plan(plans[0].operator, Route.DENSIFY if is_unpacked else Route.FLOAT32)
    routes = set()
    for operator, kind in zip(readers, kinds, strict=True):
        operands = {position for position, read in enumerate(operator.inputs) if read == index}
        if not operands <= set(_SPARSE.get(kind, ())):
            return Plan(kind, None, f"{kind} is not known to take sparse constants here")
        found = _of_reader(graph, operator, index, strategy)
        if found.route is None:
            return found
        routes.add(found.route)
    if len(routes) > 1:
        return Plan(kinds[0], None, "its readers need it in different forms")
    return Plan(kinds[0], routes.pop())


def _of_reader(graph, operator, index, strategy):
    kind, types = graph.kind(operator), (graph.type(index), graph.type(operator.outputs[0]))
    if types == ("INT8", "FLOAT32") and kind in _ON_THE_FLY:
        if strategy in UNCHANGED:
            return Plan(kind, None, f"{kind} quantises its input on the fly and needs dense weights")
        is_unpacked = kind in _UNPACKED and strategy == "smallest"
        return Plan(kind, Route.DEQUANTIZE if is_unpacked else Route.FLOAT32)
    if types == ("INT8", "INT8") and kind == "FULLY_CONNECTED":
        if None in graph.fixed_shape(operator.outputs[0]) or operator.builtinOptions.weightsFormat:
            return Plan(kind, None, "FULLY_CONNECTED in int8 needs dense weights")
        return Plan(kind, Route.CONVOLUTION)
    return Plan(kind, Route.DENSIFY)
