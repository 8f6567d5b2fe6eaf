"""Sparse encoding of LiteRT files: what the real runtime decodes, with XNNPACK and without, and how small it gets."""

import keras
import numpy as np
import pytest
from helpers import BACKEND, without_keras
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_rda.litert import encode, flatbuffer, sparse_format
from keras_rda.litert.graph import schema

tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras exports LiteRT on TensorFlow")
pytestmark = [
    without_keras,
    pytest.mark.filterwarnings(  # of TensorFlow's converter
        "ignore::DeprecationWarning", "ignore:Statistics for quantized inputs were expected:UserWarning"
    ),
]
layers = keras.layers


def run(content, x, delegate=True):
    """The only output of a file, in the default interpreter (XNNPACK) or without delegates."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    types = OpResolverType.BUILTIN if delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    runner = Interpreter(model_content=content, experimental_op_resolver_type=types).get_signature_runner()
    (output,) = runner(**dict.fromkeys(runner.get_input_details(), x)).values()
    return output


def converted(model, kind, sparse=False):
    """The file that TensorFlow's converter makes; `sparse`: with its own pass for zeros."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [] if kind == "float32" else [tf.lite.Optimize.DEFAULT]
    if sparse:
        converter.optimizations.append(tf.lite.Optimize.EXPERIMENTAL_SPARSITY)
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind == "int8":
        converter.representative_dataset = lambda: ([batch(model, 1, seed)] for seed in range(4))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter.convert()


def batch(model, size=3, seed=9):
    return np.random.default_rng(seed).uniform(-1, 1, (size, *model.inputs[0].shape[1:])).astype("float32")


def with_zeros(model, share=0.9):
    random = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(keras.ops.convert_to_numpy(variable) * (random.random(variable.shape) > share))
    return model


def tables(*arrays, shared=False):
    """A file that gathers all rows of each array, and so gives back what the runtime decoded."""
    code = schema()
    types = {"float32": code.TensorType.FLOAT32, "int8": code.TensorType.INT8}
    tensors = [code.TensorT(np.array([len(arrays[0])], np.int32), code.TensorType.INT32, 0, b"rows")]
    buffers, operators, outputs = [code.BufferT()], [], []
    for i, array in enumerate(arrays):
        if not (shared and i):
            buffers.append(code.BufferT(np.ascontiguousarray(array).view(np.uint8).ravel()))
        shape, kind = np.array(array.shape, np.int32), types[array.dtype.name]
        tensors.append(code.TensorT(shape, kind, len(buffers) - 1, b"table%d" % i))
        tensors.append(code.TensorT(shape, kind, 0, b"output%d" % i))
        outputs.append(len(tensors) - 1)
        operators.append(
            code.OperatorT(
                inputs=np.array([len(tensors) - 2, 0], np.int32),
                outputs=np.array([len(tensors) - 1], np.int32),
                builtinOptionsType=code.BuiltinOptions.GatherOptions,
                builtinOptions=code.GatherOptionsT(),
            )
        )
    graph = code.SubGraphT(tensors, np.array([0], np.int32), np.array(outputs, np.int32), operators)
    gather = code.OperatorCodeT(code.BuiltinOperator.GATHER, None, 2, code.BuiltinOperator.GATHER)
    return code.ModelT(3, [gather], [graph], b"", buffers)


def decoded(model, delegate=True):
    """The outputs of a file of `tables`, which this package reads too."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    content = flatbuffer.pack(model)
    flatbuffer.read(content)
    types = OpResolverType.BUILTIN if delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=types)
    interpreter.allocate_tensors()
    (rows,) = interpreter.get_input_details()
    interpreter.set_tensor(rows["index"], np.arange(rows["shape"][0], dtype=np.int32))
    interpreter.invoke()
    return [interpreter.get_tensor(output["index"]) for output in interpreter.get_output_details()]


@st.composite
def arrays(draw, dtypes=("float32", "int8")):
    """Arrays with zeros at random and, in places, whole slices of zeros."""
    shape = draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
    shape[draw(st.integers(0, len(shape) - 1))] *= draw(st.sampled_from([1, 1, 30, 70]))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    array = random.integers(-127, 128, shape).astype(draw(st.sampled_from(dtypes)))
    array *= random.random(shape) > draw(st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
    for axis in draw(st.sets(st.integers(0, len(shape) - 1), max_size=2)):
        np.moveaxis(array, axis, 0)[random.random(shape[axis]) > 0.4] = 0
    return array


@settings(max_examples=60)
@given(array=arrays(), data=st.data())
def test_runtime_decodes_every_order_and_combination_of_levels(array, data):
    order = tuple(data.draw(st.permutations(range(array.ndim))))
    compressed = tuple(data.draw(st.lists(st.booleans(), min_size=array.ndim, max_size=array.ndim)))
    compressed = compressed if any(compressed) else (*compressed[1:], True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_format, "smallest", lambda array: (-(10**6), order, compressed))  # whatever it costs
        model, (encoding,) = encode.encode(tables(array))
    assert encoding.encoding.startswith("sparse")
    for delegate in (True, False):
        np.testing.assert_array_equal(decoded(model, delegate)[0], array)


@settings(max_examples=60)
@given(array=arrays())
def test_encoding_is_right_and_its_size_is_what_is_counted(array):
    dense = tables(array)
    model, (encoding,) = encode.encode(dense)
    np.testing.assert_array_equal(decoded(model)[0], array)
    before, after = len(flatbuffer.pack(dense)), len(flatbuffer.pack(model))
    assert encoding.dense_bytes == array.nbytes
    assert after - before <= encoding.bytes - encoding.dense_bytes <= 0
    assert encoding.zeros == pytest.approx(np.mean(array == 0))
    # The counted size is that of the stored vectors, and no single compressed dimension is smaller.
    size, order, compressed = sparse_format.smallest(array)
    if any(compressed):
        assert size == stored(array, order, compressed)
    for axis in range(array.ndim):
        order = (*(other for other in range(array.ndim) if other != axis), axis)
        if array.shape[axis] > 1:
            assert size <= stored(array, order, (*[False] * (array.ndim - 1), True))


def stored(array, order, compressed):
    """Bytes of the vectors of an encoding, each index as wide as its dimension asks for."""
    values, sparsity = sparse_format.compress(array, order, compressed)
    size = (values.nbytes if array.any() else 0) + sum(compressed) * sparse_format.COMPRESSED_BYTES
    for axis, level in zip(order, sparsity.dimMetadata, strict=True):
        if level.arrayIndices:
            width = 1 if array.shape[axis] <= 256 else 2
            size += level.arraySegments.values.nbytes + width * len(level.arrayIndices.values)
    return size


def dense_layer(kernel):
    """A file of one FULLY_CONNECTED with a kernel (units, features) of float32, float16 or int8 and float32 inputs."""
    code, (units, features) = schema(), kernel.shape
    kinds = {"float32": code.TensorType.FLOAT32, "float16": code.TensorType.FLOAT16, "int8": code.TensorType.INT8}
    scale = code.QuantizationParametersT(scale=np.float32([1 / 127]), zeroPoint=np.zeros(1, np.int64))

    def tensor(shape, name, kind="float32", buffer=0, quantization=None):
        return code.TensorT(np.array(shape, np.int32), kinds[kind], buffer, name, quantization)

    def operator(opcode, inputs, output, kind, options):
        inputs, outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        return code.OperatorT(opcode, inputs, outputs, getattr(code.BuiltinOptions, kind), options)

    tensors = [tensor([1, features], b"x"), tensor([1, units], b"y")]
    name, kind = b"kernel", kernel.dtype.name
    tensors.append(tensor(kernel.shape, name, kind, 1, scale if kind == "int8" else None))
    operators, read = [], 2
    if kind == "float16":
        tensors.append(tensor(kernel.shape, b"dequantized"))
        operators.append(operator(1, [2], 3, "DequantizeOptions", code.DequantizeOptionsT()))
        read = 3
    operators.append(operator(0, [0, read, -1], 1, "FullyConnectedOptions", code.FullyConnectedOptionsT()))
    builtin = code.BuiltinOperator
    versions = ((builtin.FULLY_CONNECTED, 3), (builtin.DEQUANTIZE, 3))
    codes = [code.OperatorCodeT(number, None, version, number) for number, version in versions]
    graph = code.SubGraphT(tensors, np.array([0], np.int32), np.array([1], np.int32), operators)
    return code.ModelT(3, codes, [graph], b"", [code.BufferT(), code.BufferT(kernel.view(np.uint8).ravel())])


def invoked(model, x):
    """The output of a file of `dense_layer`, with the default delegate and without; this package reads it too."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    content, outputs = flatbuffer.pack(model), []
    flatbuffer.read(content)
    for types in (OpResolverType.AUTO, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES):
        interpreter = Interpreter(model_content=content, experimental_op_resolver_type=types)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    return outputs


PATTERNS = {
    "none": lambda random, shape: np.ones(shape),
    "one": lambda random, shape: np.arange(np.prod(shape)).reshape(shape) == random.integers(np.prod(shape)),
    "all": lambda random, shape: np.zeros(shape),
    "a row": lambda random, shape: (np.arange(shape[0]) == random.integers(shape[0])).reshape(
        -1, *[1] * (len(shape) - 1)
    ),
    "a column": lambda random, shape: np.arange(shape[-1]) == random.integers(shape[-1]),
    "few": lambda random, shape: random.random(shape) > 0.95,
    "half": lambda random, shape: random.random(shape) > 0.5,
}


@given(
    pattern=st.sampled_from(sorted(PATTERNS)),
    dtype=st.sampled_from(["float32", "float16", "int8"]),
    strategy=st.sampled_from(encode.STRATEGIES),
    shape=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    seed=st.integers(0, 2**16),
)
def test_what_is_written_is_read(pattern, dtype, strategy, shape, seed):
    """By this package and by the runtime, which computes what it does with the dense file."""
    random = np.random.default_rng(seed)
    shape = tuple(min(size, 6) for size in shape) if len(shape) > 2 else tuple(shape)
    array = random.integers(1, 128, shape) * random.choice([-1, 1], shape) * PATTERNS[pattern](random, shape)
    array = np.ascontiguousarray(array).astype(dtype)
    if len(shape) > 2:
        array = array.astype("float32") if dtype == "float16" else array  # which GATHER does not take
        model, _ = encode.encode(tables(array), strategy)
        for delegate in (True, False):
            np.testing.assert_array_equal(decoded(model, delegate)[0], array)
        return
    dense, x = dense_layer(array), random.uniform(-1, 1, (1, shape[1])).astype("float32")
    model, (encoding,) = encode.encode(dense, strategy)
    kernel = array.astype("float64") / (127 if dtype == "int8" else 1)
    largest = np.abs(kernel).sum(axis=1).max()
    # Of dense int8 kernels inputs are quantised on the fly.
    rounding = 0.02 if dtype == "int8" and encoding.encoding == "dense" else 1e-5
    for received in invoked(model, x):
        np.testing.assert_allclose(received, x @ kernel.T, rtol=0, atol=rounding * largest + 1e-6)


@pytest.mark.parametrize("zeros", [0.9, 0.95])
def test_kernels_of_a_mobilenet_are_near_the_floor(zeros):
    shapes = [(32, 3, 3, 3), (64, 1, 1, 32), (128, 1, 1, 128), (512, 1, 1, 256), (1, 3, 3, 512), (512, 1, 1, 512)]
    random = np.random.default_rng(0)
    size = floor = 0
    for shape in shapes:
        array = (random.normal(size=shape) * (random.random(shape) > zeros)).astype("float32")
        _, (encoding,) = encode.encode(tables(array))
        size, floor = size + encoding.bytes, floor + encoding.floor_bytes
        p = 1 - encoding.zeros
        bits = array.size * (-p * np.log2(p) - (1 - p) * np.log2(1 - p))
        assert encoding.floor_bytes == pytest.approx(np.count_nonzero(array) * 4 + bits / 8, abs=1)
    assert floor < size < 1.4 * floor


def test_large_arrays_are_encoded_quickly_and_right():
    random = np.random.default_rng(0)
    array = (random.normal(size=(2048, 1500)) * (random.random((2048, 1500)) > 0.5)).astype("float32")  # Int32 segments
    model, (encoding,) = encode.encode(tables(array))
    assert encoding.encoding == "sparse, 2-byte indices"
    np.testing.assert_array_equal(decoded(model)[0], array)


def test_all_zero_constant_does_not_look_like_a_computed_tensor():
    model, (encoding,) = encode.encode(tables(np.zeros((64, 64), "float32")))
    assert (encoding.zeros, encoding.floor_bytes) == (1.0, 0)
    assert [len(buffer.data) for buffer in model.buffers[1:]] == [4]
    np.testing.assert_array_equal(decoded(model)[0], np.zeros((64, 64)))


def test_constants_that_share_a_buffer():
    array = np.zeros((40, 50), "float32")
    array[::7, ::5] = 1.5
    model, encodings = encode.encode(tables(array, array, shared=True))
    assert [encoding.name for encoding in encodings] == ["table0", "table1"]
    assert all(encoding.encoding == "sparse, 1-byte indices" for encoding in encodings)
    for received in decoded(model):
        np.testing.assert_array_equal(received, array)
    assert sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None) == np.count_nonzero(array) * 4
    # A vector with the same content shares the buffer: nothing can change.
    other = tables(array, array.ravel(), shared=True)
    _, encodings = encode.encode(other)
    assert [encoding.reason for encoding in encodings] == ["other operators read the same buffer in another way"]
    # One of them is also an output.
    both = tables(array, array, shared=True)
    both.subgraphs[0].outputs = np.array([2, 3], np.int32)
    model, encodings = encode.encode(both)
    assert {encoding.reason for encoding in encodings} == {"other operators read the same buffer in another way"}
    assert flatbuffer.pack(model) == flatbuffer.pack(both)


def test_model_is_not_changed_and_bytes_are_repeatable():
    array = np.zeros((64, 64), "float32")
    array[0, 0] = 1
    model = tables(array)
    before = flatbuffer.pack(model)
    first, second = (flatbuffer.pack(encode.encode(model)[0]) for _ in range(2))
    assert first == second != before == flatbuffer.pack(model)
    with pytest.raises(ValueError, match=r"strategy must be one of 'smallest', .*; received 'tiny'"):
        encode.encode(model, "tiny")


def network(*stack):
    return with_zeros(keras.Sequential([layers.Input((8, 8, 32)), *stack]))


NETWORKS = {
    "CONV_2D": lambda: network(layers.Conv2D(64, 3, strides=2, activation="relu")),
    "DEPTHWISE_CONV_2D": lambda: network(layers.DepthwiseConv2D(3, depth_multiplier=24)),
    "TRANSPOSE_CONV": lambda: network(layers.Conv2DTranspose(64, 3)),
    "FULLY_CONNECTED": lambda: network(layers.Dense(160, activation="relu"), layers.Dense(160, use_bias=False)),
}


@tensorflow_only
@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
@pytest.mark.parametrize("operator", NETWORKS)
def test_encoded_file_computes_what_the_dense_one_does(operator, kind):
    model = NETWORKS[operator]()
    content = converted(model, kind)
    dense = flatbuffer.read(content)
    encoded, encodings = encode.encode(dense)
    sparse = flatbuffer.pack(encoded)
    assert len(sparse) < len(content)
    assert encodings[0].encoding.startswith("sparse")
    assert (encodings[0].operator, encodings[0].dtype) == (operator, kind)
    for delegate in (True, False):
        x = batch(model)
        np.testing.assert_array_equal(run(sparse, x, delegate), run(content, x, delegate))


@tensorflow_only
@pytest.mark.parametrize("operator", NETWORKS)
def test_dynamic_range(operator):
    model = NETWORKS[operator]()
    content = converted(model, "dynamic")
    x = batch(model)
    expected = model.predict(x, verbose=0)
    sizes = {}
    for strategy in encode.STRATEGIES:
        encoded, (encoding, *_) = encode.encode(flatbuffer.read(content), strategy)
        assert encoding.dtype == "int8"
        assert bool(encoding.reason) == (strategy == "same arithmetic" and operator != "DEPTHWISE_CONV_2D")
        sparse = flatbuffer.pack(encoded)
        sizes[strategy] = len(sparse)
        for delegate in (True, False):
            received = run(sparse, x, delegate)
            np.testing.assert_allclose(received, expected, atol=0.02 * np.abs(expected).max())
            if strategy == "same arithmetic":
                np.testing.assert_array_equal(received, run(content, x, delegate))
    assert sizes["smallest"] <= sizes["float32 values"] <= sizes["same arithmetic"] <= len(content) + 1024


def blocked(inputs, outputs):
    """A dense layer whose zeros come in blocks that the converter encodes without DENSIFY."""
    kernel = np.random.default_rng(0).normal(size=(inputs, outputs)).astype("float32")
    kernel[16 : inputs - inputs % 16 - 16 or inputs] = 0
    model = keras.Sequential([layers.Input((inputs,)), layers.Dense(outputs)])
    model.layers[0].kernel.assign(kernel)
    return model


DEFECTS = {
    "1: blocks that do not divide the inputs": (lambda: blocked(100 + 2, 64), "float32"),
    "2: dynamic range after DENSIFY": (lambda: NETWORKS["CONV_2D"](), "dynamic"),
    "2: int8 dense layer after DENSIFY": (lambda: NETWORKS["FULLY_CONNECTED"](), "int8"),
    "3: dynamic range in blocks": (lambda: blocked(128, 64), "dynamic"),
    "4: float16 in blocks": (lambda: blocked(128, 64), "float16"),
    "4: float16 transposed convolution": (lambda: NETWORKS["TRANSPOSE_CONV"](), "float16"),
}


def run_if_loadable(content, x):
    try:
        return run(content, x)
    except RuntimeError:  # "failed to delegate", "failed to prepare"
        return None


@tensorflow_only
@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_of_the_converter_are_avoided(defect):
    build, kind = DEFECTS[defect]
    model = build()
    x = batch(model)
    dense = converted(model, kind)
    expected = run(dense, x)
    tolerance = (0.03 if kind == "dynamic" else 1e-5) * np.abs(expected).max()
    encoded, encodings = encode.encode(flatbuffer.read(dense))
    assert encodings[0].encoding.startswith("sparse")
    for delegate in (True, False):
        received = run(flatbuffer.pack(encoded), x, delegate)
        np.testing.assert_allclose(received, run(dense, x, delegate), atol=tolerance)
    plain = run_if_loadable(converted(model, kind, sparse=True), x)
    if kind == "int8" and plain is not None:
        pytest.skip("ai_edge_litert 2.1 takes it")
    assert plain is None or not np.max(np.abs(plain - expected)) <= tolerance  # NaN too


@tensorflow_only
def test_layer_that_is_used_twice_is_stored_once():
    inputs = keras.Input((128,))
    layer = layers.Dense(128, activation="relu")
    model = with_zeros(keras.Model(inputs, layer(layer(inputs))))
    for kind in ("float32", "int8"):
        content = converted(model, kind)
        encoded, (encoding,) = encode.encode(flatbuffer.read(content))
        assert encoding.encoding.startswith("sparse")
        x = batch(model)
        np.testing.assert_array_equal(run(flatbuffer.pack(encoded), x), run(content, x))
        kinds = [encoded.operatorCodes[operator.opcodeIndex].builtinCode for operator in encoded.subgraphs[0].operators]
        assert kinds.count(schema().BuiltinOperator.DENSIFY) == 1


def test_buffers_are_aligned_and_survive_the_round_trip():
    random = np.random.default_rng(0)
    model = tables(*(random.normal(size=(3, size)).astype("float32") for size in (1, 2, 5, 7)))
    content = flatbuffer.pack(model)
    again = flatbuffer.read(content)
    start = np.frombuffer(content, np.uint8).ctypes.data
    for ours, theirs in zip(model.buffers[1:], again.buffers[1:], strict=True):
        np.testing.assert_array_equal(ours.data, theirs.data)
        assert (theirs.data.ctypes.data - start) % 16 == 0
    assert flatbuffer.pack(again) == content


def test_corrupt_files_are_refused(tmp_path):
    content = flatbuffer.pack(tables(np.arange(64, dtype="float32").reshape(8, 8)))
    for end in range(len(content)):
        with pytest.raises(ValueError, match=r"is cut off or corrupt|is not a LiteRT model"):
            flatbuffer.read(content[:end])
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        damaged = bytearray(content)
        for position in random.integers(8, len(content), 10):
            damaged[position] = random.integers(256)
        try:  # damage to a value cannot be seen; damage to the structure must not raise anything else
            flatbuffer.read(bytes(damaged))
        except ValueError as error:
            refused += "\n" not in str(error)
    assert refused > 100
    (tmp_path / "model.tflite").write_bytes(b"PK\x03\x04 a zip archive")
    with pytest.raises(ValueError, match=r"model\.tflite' is not a LiteRT model: the identifier 'TFL3' is missing"):
        flatbuffer.read(tmp_path / "model.tflite")
    with pytest.raises(FileNotFoundError):
        flatbuffer.read(tmp_path / "other.tflite")
    wrong = tables(np.ones((4, 4), "float32"))
    wrong.subgraphs[0].operators[0].inputs = np.array([99, 0], np.int32)
    with pytest.raises(ValueError, match="an operator reads or writes a tensor that does not exist"):
        flatbuffer.read(flatbuffer.pack(wrong))
