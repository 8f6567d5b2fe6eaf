"""The one reading of a LiteRT file's graph, on files made by hand."""

import numpy as np
import pytest
from helpers import without_keras
from test_encode import dense_layer

from keras_rda.litert import encode, flatbuffer, weights
from keras_rda.litert.graph import OPERANDS, Graph, add_buffer, names, schema

pytestmark = without_keras
KERNEL = np.where(np.arange(64 * 64).reshape(64, 64) % 32, 0, 1).astype("float16")


def test_a_constant_is_found_through_densify_and_dequantize():
    dense = Graph(dense_layer(KERNEL))
    (dequantize, layer) = dense.operators
    data, kernel, _ = layer.inputs
    assert [dense.name(index) for index in dense.sources(kernel)] == ["dequantized", "kernel"]
    assert (dense.constant(kernel), dense.constant(data)) == (2, None)
    assert dense.readers[2] == [dequantize]
    assert dense.producers[kernel] is dequantize
    np.testing.assert_array_equal(dense.array(2), KERNEL)
    assert dense.array(data) is dense.values(data) is None
    sparse = Graph(encode.encode(dense.model)[0])
    assert [sparse.kind(operator) for operator in sparse.operators] == ["DENSIFY", "DEQUANTIZE", "FULLY_CONNECTED"]
    stored = sparse.constant(sparse.operators[-1].inputs[1])
    assert sparse.type(stored) == "FLOAT16"
    assert sparse.array(stored) is None  # it is not stored in its shape
    assert len(sparse.values(stored)) == np.count_nonzero(KERNEL)


@pytest.mark.parametrize(
    ("number", "deprecated", "version", "is_reused"),
    [(22, 22, 1, True), (0, 22, 1, True), (22, 22, 9, False), (3, 3, 1, False)],
)
def test_an_operators_code_is_reused_if_kind_and_version_are_the_same(number, deprecated, version, is_reused):
    """22 is RESHAPE; old files have its number in one of two fields."""
    code, graph = schema(), Graph(dense_layer(KERNEL))
    codes = graph.model.operatorCodes
    codes.append(code.OperatorCodeT(builtinCode=number, deprecatedBuiltinCode=deprecated, version=version))
    graph.add_operator(1, "RESHAPE", [0, graph.add_constant([-1, 64])], [1], code.ReshapeOptionsT())
    assert len(codes) == (3 if is_reused else 4)
    assert graph.kind(graph.operators[1]) == "RESHAPE"
    assert codes[graph.operators[1].opcodeIndex].version == 1
    assert graph.operators[1].builtinOptionsType == code.BuiltinOptions.ReshapeOptions


def test_multiply_adds_are_counted_where_each_weight_is_used():
    """A kernel of 3·3·3·4·2 entries at the 5·5·5 positions of a transposed convolution's input, of one image."""
    code = schema()
    model = code.ModelT(3, [], [code.SubGraphT([], np.int32([0]), np.int32([3]), [])], b"", [code.BufferT()])
    graph, float32 = Graph(model), code.TensorType.FLOAT32
    kernel = np.ones((3, 3, 3, 4, 2), "float32")
    shapes = [1, 5, 5, 5, 2], kernel.shape, [5], [1, 10, 10, 10, 4]
    for name, shape, buffer in zip("xwsy", shapes, (0, add_buffer(model, kernel), 0, 0), strict=True):
        graph.add_tensor(shape, float32, name=name.encode(), buffer=buffer)
    number = code.BuiltinOperator.CONV_3D_TRANSPOSE
    model.operatorCodes.append(code.OperatorCodeT(builtinCode=number, deprecatedBuiltinCode=127, version=1))
    graph.operators.append(code.OperatorT(opcodeIndex=0, inputs=np.int32([2, 1, 0]), outputs=np.int32([3])))
    assert weights.multiply_adds(flatbuffer.read(flatbuffer.pack(model))) == {"w": kernel.size * 5**3}


def test_names_are_the_schemas():
    assert OPERANDS.keys() < set(names("BuiltinOperator").values())
    assert not any(name.startswith("_") for name in names("BuiltinOperator").values())
    graph = Graph(dense_layer(KERNEL))
    graph.model.operatorCodes[0].builtinCode = 10**6
    with pytest.raises(ValueError, match="an operator of the unknown kind 1000000: it is corrupt, or newer than this"):
        graph.kind(graph.operators[-1])
