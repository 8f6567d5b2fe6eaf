"""Files for microcontrollers: constants that TFLite Micro decodes, its own interpreter, the header for firmware."""

import copy
import pathlib
import shutil
import subprocess

import keras
import numpy as np
import pytest
from helpers import BACKEND
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import keras_rda
from keras_rda.litert import convert, decode, flatbuffer, header
from keras_rda.litert import graph as litert_graph
from keras_rda.litert.machines import micro
from keras_rda.litert.machines.process import Run

needs_micro = pytest.mark.skipif(not micro.is_ready(), reason="no TFLite Micro: pip install 'keras_rda[micro]'")
pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="files are converted with TensorFlow, and run without Keras"
)
layers, schema = keras.layers, litert_graph.schema()
RANDOM = np.random.default_rng(0)


# The form


def decoded(entries, ancillary, shape, dtype, zero_point):
    """What DECODE makes of the form: entry by entry, as its kernel goes through them."""
    assert ancillary[:16].tolist() == [2, 1, 0, 0, 1] + [0] * 11
    values = iter(ancillary[16:].view(dtype))
    zero_points = np.broadcast_to(zero_point, shape).ravel()
    result = np.empty(len(zero_points), dtype)
    for number in range(len(result)):
        is_kept = entries[number >> 3] >> (~number & 7) & 1
        result[number] = next(values) if is_kept else zero_points[number]
    assert next(values, None) is None
    assert len(entries) == (len(result) + 7) // 8
    return result.reshape(shape)


@st.composite
def constants(draw):
    """An array with zeros, and a zero point of its own for the array, its first or its last axis."""
    dtype = draw(st.sampled_from(["int8", "int32", "int64", "float32"]))
    shape = draw(arrays.array_shapes(min_dims=1, max_dims=4, max_side=6))
    zero_point = 0
    if dtype == "int8":
        axis = draw(st.sampled_from([None, 0, len(shape) - 1]))
        sizes = [size if place == axis else 1 for place, size in enumerate(shape)]
        zero_point = draw(arrays.arrays("int64", sizes, elements=st.integers(-128, 127)))
    array = draw(arrays.arrays(dtype, shape))
    return np.where(draw(arrays.arrays(bool, shape)), array, zero_point).astype(dtype), zero_point


@given(constants())
def test_the_form_is_what_the_kernel_reads(constant):
    array, zero_point = constant
    entries, ancillary = decode.prune(array, zero_point)
    result = decoded(entries, ancillary, array.shape, array.dtype, zero_point)
    np.testing.assert_array_equal(result, array)  # and of NaNs, which are no zeros
    assert len(ancillary) == 16 + array.itemsize * np.count_nonzero(array != zero_point)


# Files of one operator


def dense_file(weights, zero_points=None, axis=0, bias=None, readers=1):
    """A `ModelT`: so many FULLY_CONNECTED operators in a row, each with the same weights; in int8 if they are."""
    units, features = weights.shape
    is_int8 = weights.dtype == np.int8
    type_ = schema.TensorType.INT8 if is_int8 else schema.TensorType.FLOAT32
    parameters = None
    if is_int8:
        zero_points = np.array([0] if zero_points is None else zero_points, np.int64)
        scales = np.full(len(zero_points), 0.01, np.float32)
        parameters = schema.QuantizationParametersT(scale=scales, zeroPoint=zero_points, quantizedDimension=axis)
    buffers = [schema.BufferT(), schema.BufferT(data=np.ascontiguousarray(weights).reshape(-1).view(np.uint8))]
    tensors = [schema.TensorT(name="weights", shape=np.array(weights.shape, np.int32), type=type_, buffer=1)]
    tensors[0].quantization = parameters
    if bias is not None:
        buffers.append(schema.BufferT(data=bias.view(np.uint8)))
        kind = schema.TensorType.INT32 if is_int8 else schema.TensorType.FLOAT32
        tensors.append(schema.TensorT(shape=np.array(bias.shape, np.int32), type=kind, buffer=2))
        if is_int8:
            scale = schema.QuantizationParametersT(scale=np.float32([0.0005]), zeroPoint=np.zeros(1, np.int64))
            tensors[1].quantization = scale
    first = len(tensors)
    for number in range(readers + 1):
        scale = schema.QuantizationParametersT(scale=np.float32([0.05]), zeroPoint=np.array([3], np.int64))
        size = units if number else features
        tensors.append(
            schema.TensorT(
                name=f"x{number}",
                shape=np.array([1, size], np.int32),
                type=type_,
                buffer=0,
                quantization=scale if is_int8 else None,
            )
        )
    operands = [0, 1] if bias is not None else [0, -1]
    operators = [
        schema.OperatorT(
            opcodeIndex=0,
            inputs=np.array([first + number, *operands], np.int32),
            outputs=np.array([first + number + 1], np.int32),
            builtinOptionsType=schema.BuiltinOptions.FullyConnectedOptions,
            builtinOptions=schema.FullyConnectedOptionsT(),
        )
        for number in range(readers)
    ]
    kind = schema.BuiltinOperator.FULLY_CONNECTED
    signature = schema.SignatureDefT(
        inputs=[schema.TensorMapT(name="x", tensorIndex=first)],
        outputs=[schema.TensorMapT(name="y", tensorIndex=first + readers)],
        signatureKey="serving_default",
    )
    model = schema.ModelT(
        version=3,
        operatorCodes=[schema.OperatorCodeT(builtinCode=kind, deprecatedBuiltinCode=kind, version=4)],
        subgraphs=[
            schema.SubGraphT(
                tensors=tensors,
                inputs=np.array([first], np.int32),
                outputs=np.array([first + readers], np.int32),
                operators=operators,
            )
        ],
        buffers=buffers,
        signatureDefs=[signature],
    )
    return flatbuffer.read(flatbuffer.pack(model))


def nameless(model):
    """The file's content without names of tensors, which `decode.encode` leaves out."""
    model = copy.deepcopy(model)
    for tensor in model.subgraphs[0].tensors:
        tensor.name = None
    return flatbuffer.pack(model)


def zeros_at(shape, share, dtype="int8", zero_point=0):
    values = RANDOM.integers(-100, 100, shape) if dtype == "int8" else RANDOM.normal(size=shape)
    return np.where(RANDOM.random(shape) < share, zero_point, values).astype(dtype)


def samples_of(shape, number):
    """Inputs between −1 and 1, each of another mean, for what averages over them."""
    means = np.linspace(-0.8, 0.8, number).reshape(-1, *(1 for _ in shape))
    return RANDOM.uniform(-0.2, 0.2, (number, *shape)) + means


def equal(directory, models, shape, repeats=0):
    """Run files dense and encoded on three samples; return their rows and both `Run`s, whose outputs are the same."""
    x = samples_of(shape, 3)
    encodings, jobs = [], []
    for number, model in enumerate(models):
        encoded, rows = decode.encode(model)
        encodings.append(rows)
        for name, content in (("dense", flatbuffer.pack(model)), ("micro", flatbuffer.pack(encoded))):
            path = directory / f"{number}-{name}.tflite"
            path.write_bytes(content)
            is_int8 = model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].type == schema.TensorType.INT8
            jobs.append((path, np.round(100 * x).astype("int8") if is_int8 else x.astype("float32")))
    runs = micro.run(jobs, repeats)
    for dense, decoded in zip(runs[::2], runs[1::2], strict=True):
        assert dense.error is None
        assert decoded.error is None
        for name, output in dense.outputs.items():
            np.testing.assert_array_equal(decoded.outputs[name], output)
            assert np.ptp(output, axis=0).any()  # a network that says the same of all would hide errors
    return [(rows, *pair) for rows, *pair in zip(encodings, runs[::2], runs[1::2], strict=True)]


@given(
    units=st.integers(1, 40),
    features=st.integers(1, 80),
    share=st.floats(0, 1),
    dtype=st.sampled_from(["int8", "float32"]),
    readers=st.integers(1, 3),
)
@settings(deadline=None)
def test_no_file_grows_and_bytes_are_a_bound(units, features, share, dtype, readers):
    features = units if readers > 1 else features
    model = dense_file(zeros_at((units, features), share, dtype), readers=readers)
    before = flatbuffer.pack(model)
    encoded, (row,) = decode.encode(model)
    dense, content = len(nameless(model)), len(flatbuffer.pack(encoded))
    assert flatbuffer.pack(model) == before
    assert row.zeros == pytest.approx(1 - np.count_nonzero(model.buffers[1].data.view(dtype)) / (units * features))
    if row.encoding == "dense":
        assert row.bytes == row.dense_bytes
        assert content == dense
    else:
        assert content - dense <= row.bytes - row.dense_bytes < 0


@needs_micro
def test_zero_points_axes_and_biases(tmp_path):
    points = RANDOM.integers(-20, 20, 48)
    per_unit = zeros_at((48, 48), 0.9, zero_point=points[:, None])
    models = [
        dense_file(zeros_at((48, 64), 0.9, "float32")),
        dense_file(zeros_at((48, 64), 0.9)),
        dense_file(zeros_at((48, 64), 0.9, zero_point=-7), zero_points=[-7]),
        dense_file(per_unit, zero_points=points),
        dense_file(zeros_at((48, 48), 0.9), bias=zeros_at(48, 0.9).astype("int32")),
        dense_file(zeros_at((400, 16), 0.9, "float32"), bias=zeros_at(400, 0.9, "float32")),
        dense_file(np.zeros((48, 64), "float32"), bias=zeros_at(48, 0, "float32")),
    ]
    shapes = [model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].shape[1:] for model in models]
    for number, (model, shape) in enumerate(zip(models[:-1], shapes, strict=False)):
        ((rows, _, run),) = equal(tmp_path, [model], shape)
        assert rows[0].encoding == "decoded, 1 bit an entry", number
        assert rows[0].zeros == pytest.approx(0.9, abs=0.03)
        assert run.arena > 0
    ((rows, *_),) = equal(tmp_path, [models[5]], (16,))
    assert [row.shape for row in rows] == [(400, 16), (400,)]  # the bias is encoded too


def test_quantisation_that_decode_refuses_stays_dense():
    weights, sixteen = zeros_at((32, 32), 0.9), zeros_at((16, 32), 0.9)
    for model in (
        dense_file(weights, zero_points=[0], axis=1),  # one channel along another axis than the first
        dense_file(weights, zero_points=[0] * 7),  # no channel has this many
        dense_file(sixteen, zero_points=[0] * 32, axis=2),  # no axis
    ):
        encoded, (row,) = decode.encode(model)
        assert (row.encoding, row.reason) == ("dense", "TFLite Micro does not decode this quantisation")
        assert flatbuffer.pack(encoded) == nameless(model)
    last = dense_file(sixteen, zero_points=[0] * 32, axis=1)
    assert decode.encode(last)[1][0].encoding == "decoded, 1 bit an entry"


@needs_micro
def test_a_constant_that_several_operators_read(tmp_path):
    model = dense_file(zeros_at((48, 48), 0.9), readers=3)
    ((rows, *_),) = equal(tmp_path, [model], (48,))
    encoded, _ = decode.encode(model)
    graph = encoded.subgraphs[0]
    names = [micro.name(encoded, operator) for operator in graph.operators]
    assert names == ["TFLM_DECODE", "FULLY_CONNECTED"] * 3
    assert len({int(operator.outputs[0]) for operator in graph.operators[::2]}) == 3
    assert len(rows) == 1


@needs_micro
def test_constants_that_share_a_buffer(tmp_path):
    model = dense_file(zeros_at((48, 48), 0.9), readers=2)
    graph = model.subgraphs[0]
    graph.tensors.append(copy.deepcopy(graph.tensors[0]))
    graph.operators[1].inputs = np.array([graph.operators[1].inputs[0], len(graph.tensors) - 1, -1], np.int32)
    ((rows, *_),) = equal(tmp_path, [model], (48,))
    assert [row.encoding for row in rows] == ["decoded, 1 bit an entry"] * 2
    assert rows[1].bytes == 0

    graph.tensors[-1].quantization.zeroPoint = np.array([1], np.int64)
    encoded, rows = decode.encode(model)
    assert {row.reason for row in rows} == {"other operators read the same buffer in another way"}
    assert flatbuffer.pack(encoded) == nameless(model)
    graph.tensors[-1].quantization.zeroPoint = np.array([0], np.int64)
    graph.operators.pop()  # nobody reads the second
    assert {row.reason for row in decode.encode(model)[1]} == {"no operator reads it"}


@needs_micro
def test_constants_that_subgraphs_share(tmp_path):
    model = dense_file(zeros_at((48, 48), 0.9))
    model.subgraphs.append(copy.deepcopy(model.subgraphs[0]))
    ((rows, *_),) = equal(tmp_path, [model], (48,))
    assert [row.encoding for row in rows] == ["decoded, 1 bit an entry"] * 2
    encoded, _ = decode.encode(model)
    assert [len(graph.operators) for graph in encoded.subgraphs] == [2, 2]
    assert len(encoded.buffers) == 3  # one form for both


@needs_micro
def test_decoded_constants_live_for_one_operator(tmp_path):
    """In firmware that gives DECODE memory of its own, each operator's constants overwrite those of the last."""
    runtime = pytest.importorskip("tflite_micro").runtime
    weights = zeros_at((48, 48), 0.9, "float32")
    contents = (
        flatbuffer.pack(dense_file(weights, readers=3)),
        flatbuffer.pack(decode.encode(dense_file(weights, readers=3))[0]),
    )
    x, outputs = RANDOM.normal(size=(1, 48)).astype("float32"), []
    for content in contents:
        interpreter = runtime.Interpreter.from_bytes(content, arena_size=2**17, alt_decompression_memory_size=10_000)
        interpreter.set_input(x, 0)
        interpreter.invoke()
        outputs.append(interpreter.get_output(0))
    np.testing.assert_array_equal(*outputs)


# Keras' networks


def sparse(model, share=0.9):
    """Random zeros in all kernels, and values at which the signal neither fades nor explodes."""
    for layer in model.layers:
        for weight in layer.weights:
            values = RANDOM.normal(size=weight.shape)
            if "kernel" in weight.path:
                mask = RANDOM.random(weight.shape) >= share
                inputs = np.maximum(mask.sum() / layer.output.shape[-1], 1)
                weight.assign(np.where(mask, values * np.sqrt(2 / inputs), 0))
            elif weight.path.split("/")[-1] in ("beta", "bias", "moving_mean"):
                weight.assign(0.1 * values)
    return model


def dense_content(model, quantize=None):
    name, shape = model.inputs[0].name, model.input_shape[1:]
    samples = [{name: sample[None].astype("float32")} for sample in samples_of(shape, 20)]
    return convert.convert(model, quantize, samples, batch_size=1)


def mlp():
    return keras.Sequential(
        [layers.Input((256,)), layers.Dense(256, "relu"), layers.Dense(128, "relu"), layers.Dense(10)]
    )


@needs_micro
@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("name", ["DS-CNN", "MLP", "digits-sparse.keras"])
def test_flash_arena_and_time(name, quantize, tmp_path):
    if name == "digits-sparse.keras":
        model = keras.models.load_model(f"saved_models/{name}", compile=False)
    else:
        model = sparse(keras_rda.models.DSCNN() if name == "DS-CNN" else mlp())
    content = dense_content(model, quantize)
    assert micro.missing(flatbuffer.read(content)) == []
    ((rows, dense, decoded),) = equal(tmp_path, [flatbuffer.read(content)], model.input_shape[1:], repeats=30)
    encoded = (tmp_path / "0-micro.tflite").read_bytes()
    assert b"DENSIFY" not in encoded
    assert len(encoded) <= 0.45 * len(content)
    assert dense.arena < decoded.arena <= dense.arena + 2 * max(np.prod(row.shape) * 4 for row in rows)
    print(
        f"\n{name} {quantize}: flash {len(content):,} → {len(encoded):,} ({len(encoded) / len(content):.3f}), "
        f"arena {dense.arena:,} → {decoded.arena:,}, time × {decoded.seconds / dense.seconds:.2f}"
    )


@needs_micro
def test_operators_whose_weights_are_decoded(tmp_path):
    x = layers.Input((8, 8, 4))
    y = layers.Conv2D(16, 3, activation="relu", padding="same")(x)
    y = layers.DepthwiseConv2D(5, depth_multiplier=4, padding="same")(y)
    y = layers.Conv2DTranspose(8, 3, strides=2)(y)
    y = layers.Reshape((-1, 8))(y)[:, :64]
    y = layers.EinsumDense("abc,cd->abd", (64, 64))(y)
    model = sparse(keras.Model(x, layers.Dense(10)(layers.Flatten()(y))))
    for quantize in (None, "int8"):
        ((rows, *_),) = equal(tmp_path, [flatbuffer.read(dense_content(model, quantize))], (8, 8, 4))
        kinds = {row.operator for row in rows if row.encoding != "dense"}
        assert kinds >= {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"}, quantize


@needs_micro
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_tables_and_products_are_decoded(quantize, tmp_path):
    import tensorflow as tf  # Keras' own look-up counts from the end too, by an operator that TFLite Micro lacks

    table, left = (zeros_at(shape, 0.9, "float32") / 100 for shape in ((300, 8), (1, 40, 12)))
    x = layers.Input((12, 4))
    look_up = layers.Lambda(lambda x: tf.gather(table, tf.cast(abs(x[:, :, 0]) * 299, "int32")), output_shape=(12, 8))
    found = [layers.Flatten()(y) for y in (keras.ops.matmul(left, x), look_up(x))]
    model = keras.Model(x, layers.Dense(5)(layers.Concatenate()(found)))
    ((rows, *_),) = equal(tmp_path, [flatbuffer.read(dense_content(model, quantize))], (12, 4))
    assert {row.operator for row in rows if row.encoding != "dense"} >= {"BATCH_MATMUL", "GATHER"}


# What goes wrong


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "net.tflite"
    path.write_bytes(flatbuffer.pack(decode.encode(dense_file(zeros_at((48, 64), 0.9, "float32")))[0]))
    return path


X = np.ones((2, 64), "float32")


@needs_micro
def test_arena_that_is_too_small(file):
    ((needed),) = (run.arena for run in micro.run([(file, X)]))
    (exact,) = micro.run([(file, X)], arena=needed)
    assert (exact.error, exact.arena, exact.seconds) == (None, needed, None)
    small, whole = micro.run([(file, X), (file, {"x": X})], arena=needed - 16)
    assert small.error == f"ValueError: an arena of {needed - 16} bytes is too small: the file takes {needed}"
    assert whole.error == small.error


@needs_micro
def test_inputs_that_do_not_fit(file):
    misnamed, misshapen, right = micro.run([(file, {"y": X}), (file, X[:, :-1]), (file, X)])
    assert misnamed == Run(None, "ValueError: the file takes the inputs ['x']; received ['y']", None)
    assert misshapen.outputs is None
    assert "ValueError" in misshapen.error
    assert right.error is None
    with pytest.raises(FileNotFoundError, match="no file"):
        micro.run([(file.parent / "none.tflite", X)])


@needs_micro
def test_unknown_operators_are_named(file, tmp_path):
    model = flatbuffer.read("saved_models/digits-sparse.tflite")
    assert micro.missing(model) == ["DENSIFY"]
    (run, other) = micro.run([("saved_models/digits-sparse.tflite", np.zeros((1, 8, 8, 1), "float32")), (file, X)])
    assert "Didn't find op for builtin opcode 'DENSIFY'" in run.error
    assert "\n" not in run.error
    assert other.error is None
    model = flatbuffer.read(file)
    assert micro.missing(model) == []
    model.operatorCodes[-1].customCode = "Mine"
    assert micro.missing(flatbuffer.read(flatbuffer.pack(model))) == ["Mine"]


@needs_micro
def test_crash_is_a_line(file, tmp_path):
    model = flatbuffer.read(dense_content(keras.Sequential([layers.Input((4,)), layers.Softmax()]), "int8"))
    graph = model.subgraphs[0]
    (softmax,) = (operator for operator in graph.operators if micro.name(model, operator) == "SOFTMAX")
    # As after inputs that are all the same: a check in its preparation ends the process.
    graph.tensors[softmax.inputs[0]].quantization.scale = np.float32([1e-12])
    (tmp_path / "softmax.tflite").write_bytes(flatbuffer.pack(model))
    crashed, other = micro.run([(tmp_path / "softmax.tflite", np.zeros((1, 4), "float32")), (file, X)])
    assert crashed.error == "the process crashed: SIGABRT"
    assert other.error is None


@needs_micro
def test_files_without_a_signature(file):
    model = flatbuffer.read(file)
    model.signatureDefs = None
    names = [f"tensor {index}" for index in range(len(model.subgraphs[0].tensors))]
    for tensor, name in zip(model.subgraphs[0].tensors, names, strict=True):
        tensor.name = name
    path, (takes,), (gives,) = file.with_name("other.tflite"), model.subgraphs[0].inputs, model.subgraphs[0].outputs
    path.write_bytes(flatbuffer.pack(model))
    signed, plain = micro.run([(file, X), (path, {names[takes]: X})])
    np.testing.assert_array_equal(plain.outputs[names[gives]], signed.outputs["y"])


@needs_micro
def test_signatures_of_another_subgraph(file):
    model = flatbuffer.read(file)
    model.subgraphs.append(copy.deepcopy(model.subgraphs[0]))
    model.signatureDefs[0].subgraphIndex = 1
    file.write_bytes(flatbuffer.pack(model))
    (run,) = micro.run([(file, X)])
    assert run.error == "ValueError: the signature runs the subgraph 1, and TFLite Micro runs the first one only"


def test_damaged_files(file, monkeypatch):
    content = file.read_bytes()
    damaged = file.with_name("damaged.tflite")
    damaged.write_bytes(content[: len(content) // 2])
    monkeypatch.setattr(micro, "is_ready", lambda: True)
    assert "is cut off or corrupt" in micro.run([(damaged, X)])[0].error
    with pytest.raises(ValueError, match="is cut off or corrupt"):
        header.header_text(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is not a LiteRT model"):
        header.header_text(b"")


def test_without_tflite_micro(file, monkeypatch):
    monkeypatch.setattr(micro, "is_ready", lambda: False)
    for call in (lambda: micro.run([(file, X)]), lambda: micro.missing(flatbuffer.read(file))):
        with pytest.raises(RuntimeError, match=r"not installed: python3 -m pip install 'keras_rda\[micro\]'"):
            call()


# The header


@pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler of C")
def test_header_compiles_to_the_file(file, tmp_path):
    (tmp_path / "model.h").write_text(header.header_text(file.read_bytes(), "net", arena=1234))
    (tmp_path / "main.c").write_text("""
#include <stdint.h>
#include <stdio.h>
#include "model.h"
#include "model.h"
int main(void) { fwrite(net, 1, net_len, stdout); return (uintptr_t)net % 16 != 0; }
""")
    for name, language in (("c", "c11"), ("c++", "c++17")):
        if name == "c++" and shutil.which("c++") is None:
            continue
        command = ["cc", f"-std={language}", "-Wall", "-Werror", "-x", name, "main.c", "-o", "main"]
        subprocess.run(command, cwd=tmp_path, check=True)
        assert subprocess.run([tmp_path / "main"], capture_output=True, check=True).stdout == file.read_bytes()
    text = (tmp_path / "model.h").read_text()
    assert "MicroMutableOpResolver<2> resolver;" in text
    assert "resolver.AddDecode();\n//     resolver.AddFullyConnected();" in text
    assert "Arena: 1234 bytes" in text


def test_header_of_bad_names(file):
    model = flatbuffer.read(file)
    for name in ("", "2d", "a b", "x;", "int", "class", "main"):
        with pytest.raises(ValueError, match="must be an identifier of C"):
            header.header_text(file.read_bytes(), name)
    model.operatorCodes[-1].customCode = "x\n#error"
    with pytest.raises(ValueError, match="custom operator that is no name in C"):
        header.header_text(flatbuffer.pack(model))


def test_names_of_the_resolver():
    names = {
        "CONV_2D": "AddConv2D",
        "BATCH_MATMUL": "AddBatchMatmul",
        "CUMSUM": "AddCumSum",
        "L2_POOL_2D": "AddL2Pool2D",
        "LOG_SOFTMAX": "AddLogSoftmax",
        "PADV2": "AddPadV2",
        "RELU6": "AddRelu6",
        "SELECT_V2": "AddSelectV2",
        "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
    }
    model = dense_file(zeros_at((4, 4), 0))
    for kind, call in names.items():
        number = getattr(schema.BuiltinOperator, kind)
        model.operatorCodes[0].builtinCode, model.operatorCodes[0].deprecatedBuiltinCode = number, min(number, 127)
        assert header.resolver_calls(model) == [call]
    custom = schema.BuiltinOperator.CUSTOM
    model.operatorCodes[0] = schema.OperatorCodeT(
        builtinCode=custom, deprecatedBuiltinCode=custom, customCode=b"TFLite_Detection_PostProcess"
    )
    assert header.resolver_calls(model) == ["AddDetectionPostprocess"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda model, decode: setattr(decode, "inputs", np.int32([])), "decodes 1 constants has 0 inputs"),
        (lambda model, decode: setattr(decode, "inputs", decode.inputs[:1]), "decodes 1 constants has 1 inputs"),
        (lambda model, decode: setattr(decode, "inputs", np.int32([-1, -1])), "decodes 1 constants has 2 inputs"),
        (lambda model, decode: stored_in(model, decode, 0, None), "a constant that is decoded is not there"),
        (lambda model, decode: stored_in(model, decode, 1, np.zeros(8, np.uint8)), "that is decoded is not there"),
        (lambda model, decode: stored_in(model, decode, 0, np.full(16, 255, np.uint8)), "from 128 bits and"),
        (lambda model, decode: shaped(model, decode, [0, 3]), "a constant of 0 entries is decoded from"),
    ],
)
def test_damaged_operators_of_its_own_are_refused(damage, said):
    model = flatbuffer.read(pathlib.Path(__file__).parents[1] / "saved_models/digits-ds-cnn.tflite")
    operators = model.subgraphs[0].operators
    damage(model, next(operator for operator in operators if micro.name(model, operator) == "TFLM_DECODE"))
    with pytest.raises(ValueError, match=f"cut off or corrupt: .*{said}"):
        flatbuffer.read(flatbuffer.pack(model))


def stored_in(model, decode, number, data):
    tensor = model.subgraphs[0].tensors[decode.inputs[number]]
    tensor.shape = np.int32([0 if data is None else len(data)])
    model.buffers[tensor.buffer].data = data


def shaped(model, decode, shape):
    model.subgraphs[0].tensors[decode.outputs[0]].shape = np.int32(shape)


def test_what_nothing_reads_is_left_out():
    """Names, and the scales of convolutions' biases; those of a dense layer are compared with its kernel's there."""
    model = keras.Sequential([keras.Input((6, 6, 2)), layers.Conv2D(8, 3), layers.DepthwiseConv2D(3), layers.Flatten()])
    model.add(layers.Dense(3))
    for layer in model.layers:
        for weight in layer.weights:
            weight.assign(RANDOM.normal(size=weight.shape))
    samples = [{model.inputs[0].name: x[None]} for x in RANDOM.normal(size=(8, 6, 6, 2)).astype("float32")]
    full = flatbuffer.read(convert.convert(model, "int8", samples, 1))
    before = flatbuffer.pack(full)
    tensors = litert_graph.graphs(decode.lean(full))[0].tensors
    assert flatbuffer.pack(full) == before
    assert not any(tensor.name for tensor in tensors)
    graph = litert_graph.graphs(full)[0]
    for operator in graph.operators:
        if len(operator.inputs) > 2 and graph.type(operator.inputs[2]) == "INT32":
            assert (tensors[operator.inputs[2]].quantization is None) == (graph.kind(operator) != "FULLY_CONNECTED")
