"""`shrink`: LiteRT files that others made get smaller and compute the same, or are refused in a line."""

import io
import json
import sys
import zipfile

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import BACKEND, needs_emulation, sparsify, wide_network, without_keras
from hypothesis import given
from hypothesis import strategies as st
from test_encode import arrays, converted, decoded, dense_layer, tables
from test_xnnpack import TAILS, export, network

import keras_rda
from keras_rda import cli
from keras_rda.litert import (
    aarch64,
    appended,
    calls,
    convert,
    encode,
    flatbuffer,
    original,
    shrinking,
    sparse_format,
    xnnpack,
)
from keras_rda.litert.graph import Graph, schema
from keras_rda.litert.machines import here, process, wasm

litert = keras_rda.litert
tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras exports LiteRT on TensorFlow")
pytestmark = [
    without_keras,
    pytest.mark.filterwarnings(  # of TensorFlow's converter
        "ignore::DeprecationWarning", "ignore:Statistics for quantized inputs were expected:UserWarning"
    ),
]
layers = keras.layers


def kernel(zeros=0.9, shape=(64, 96), dtype="float32", seed=0):
    random = np.random.default_rng(seed)
    values = random.integers(-127, 128, shape) * (random.random(shape) >= zeros)
    return (values / 128 if dtype == "float32" else values).astype(dtype)


def written(path, model, suffix=b""):
    path.write_bytes(flatbuffer.pack(model) + suffix)
    return path


def assert_equal_files(source, target):
    """The interpreter gives the same for both, by the numbers of tensors, which are those that the source has."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    for types in (OpResolverType.AUTO, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES):
        results = []
        for path in (source, target):
            runs = Interpreter(model_path=str(path), experimental_op_resolver_type=types)
            runs.allocate_tensors()
            for detail in runs.get_input_details():
                values = np.random.default_rng(7).uniform(-2, 2, detail["shape"])
                runs.set_tensor(detail["index"], values.astype(detail["dtype"]))
            runs.invoke()
            results.append([(d["index"], d["name"], runs.get_tensor(d["index"])) for d in runs.get_output_details()])
        for ours, theirs in zip(*results, strict=True):
            assert ours[:2] == theirs[:2]
            np.testing.assert_array_equal(ours[2], theirs[2])


# --- Files of TensorFlow's converter ---------------------------------------------------------------------------------


@tensorflow_only
@pytest.mark.parametrize("quantize", [None, "float16", "dynamic", "int8"])
@pytest.mark.parametrize("machine", [None, "aarch64"])
def test_dense_files_get_smaller_and_compute_the_same(tmp_path, quantize, machine):
    if machine and not aarch64.is_ready():
        pytest.skip("AArch64 is not set up: python3 -m keras_rda.litert.aarch64")
    model, source = sparsify(wide_network()), tmp_path / "source.tflite"
    data = np.random.default_rng(0).uniform(-1, 1, (20, 8, 8, 3)).astype("float32")
    samples = [{"keras_tensor": sample[None]} for sample in data]
    source.write_bytes(convert.convert(model, quantize, samples))
    target = tmp_path / "target.tflite"
    report = litert.shrink(source, target, machine, data)
    assert report.bytes == target.stat().st_size < report.dense_bytes == source.stat().st_size
    # int8 weights of a dynamic file that inputs are quantised for stay dense: the arithmetic may not change.
    assert report.bytes < report.dense_bytes / (1.02 if quantize == "dynamic" else 1.8)
    assert report.max_difference == 0 or machine
    assert [check.largest for check in report.chosen.checks[:2]] == [0, 0]
    assert len(report.chosen.checks) == (3 if machine else 2)
    assert (report.source, report.quantize) == (str(source), quantize)
    assert report.sparsity > 0.8
    assert "differs from the source by 0 " in str(report)
    assert "Keras" not in str(report)
    assert_equal_files(source, target)
    # What is as small as it gets is refused.
    with pytest.raises(ValueError, match="cannot be made smaller and nothing was written"):
        litert.shrink(target, tmp_path / "again.tflite")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.tflite", "target.tflite"]


@tensorflow_only
@pytest.mark.parametrize("tail", ["ends in a kept mean", "kept mean → convolution"])
@pytest.mark.parametrize("emulated", [False, pytest.param(True, marks=needs_emulation)])
def test_tails_that_are_wrong_here_are_mended(tmp_path, monkeypatch, tail, emulated):
    """As on an Arm machine, where the default delegate is wrong or refuses the source: see `TAILS`."""
    plain = original._outputs

    def on_arm(path, entry, inputs, delegates):
        if delegates and emulated:
            runs = aarch64.run([(path, batch) for batch in inputs])
            if runs[0].error:
                raise RuntimeError(runs[0].error)
            return [run.outputs for run in runs]
        shift = delegates and bool(xnnpack.sparse_kernels(path).faults)
        if shift and TAILS[tail][1] == "refused":
            raise RuntimeError("it does not load")
        return [{k: a + np.float32(shift) for k, a in found.items()} for found in plain(path, entry, inputs, delegates)]

    monkeypatch.setattr(xnnpack, "here", lambda: None)
    monkeypatch.setattr(original, "_outputs", on_arm)
    source, target = export(network(TAILS[tail][0]), tmp_path / "source.tflite"), tmp_path / "target.tflite"
    report = litert.shrink(source, target)
    assert [check.runtime for check in report.chosen.checks] == list(here.RUNTIMES)
    assert "without delegates" in str(report)
    assert report.bytes == shrinking.gain(flatbuffer.read(source), source.read_bytes())
    assert xnnpack.sparse_kernels(target).eligible
    x = np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3)).astype("float32")
    ours, theirs = (litert.predict(path, x, delegates=False)["output_0"] for path in (source, target))
    np.testing.assert_array_equal(ours, theirs)


@tensorflow_only
def test_int8_weights_of_convolutions_in_float32_stay_dense(tmp_path):
    """Inputs are quantised for them on the fly, which cannot be had with zeros: nothing is wrong with the file."""
    model = keras.Sequential([layers.Input((8, 8, 64)), layers.Conv2D(96, 1)])
    source = tmp_path / "source.tflite"
    source.write_bytes(convert.convert(sparsify(model), "dynamic"))
    assert shrinking.gain(flatbuffer.read(source), source.read_bytes()) is None
    assert "shrink would not make it smaller" in command("inspect", source)
    with pytest.raises(ValueError, match="cannot be made smaller and nothing was written"):
        litert.shrink(source, tmp_path / "target.tflite")


@tensorflow_only
def test_what_tensorflow_encoded_is_encoded_anew(tmp_path):
    """Its pass compresses the last dimension only, whatever the size: small kernels come out dense here."""
    model = keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(64, 3, use_bias=False),
            layers.DepthwiseConv2D(3, use_bias=False),
            layers.Conv2D(96, 1),
        ]
    )
    sparsify(model, 0.6)
    source = tmp_path / "source.tflite"
    source.write_bytes(converted(model, "float32", sparse=True))
    before = flatbuffer.read(source)
    report = litert.shrink(source, tmp_path / "target.tflite")
    assert report.max_difference == 0
    assert {tensor.encoding for tensor in report.tensors} > {"dense"}
    assert all(tensor.bytes <= tensor.dense_bytes for tensor in report.tensors)
    assert_equal_files(source, tmp_path / "target.tflite")
    # As small as what a dense file becomes, but for tensors that nobody reads any more.
    dense, _ = encode.encode(flatbuffer.read(convert.convert(model)))
    assert report.bytes < len(flatbuffer.pack(dense)) + 100 * len(before.subgraphs[0].tensors)


@tensorflow_only
def test_free_sizes_states_and_rows_of_tables(tmp_path):
    inputs = keras.Input((None, None, 3))
    images = keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.Conv2D(64, 3, strides=2)(inputs)))
    tokens = keras.Input((7,), dtype="int32")
    text = keras.Model(tokens, layers.Dense(4)(layers.Flatten()(layers.Embedding(50, 64)(tokens))))
    steps = keras.Sequential([layers.Input(batch_shape=(1, 4, 24)), layers.LSTM(32, stateful=True, unroll=True)])
    for number, model in enumerate((images, text, steps)):
        source, target = tmp_path / f"{number}.tflite", tmp_path / f"{number}-small.tflite"
        source.write_bytes(convert.convert(sparsify(model, 0.9, alive=False)))
        report = litert.shrink(source, target)
        assert report.max_difference == 0
        assert report.bytes < report.dense_bytes * 0.8
        assert not report.chosen.notes
    (entry,) = calls.entries(flatbuffer.read(tmp_path / "1.tflite"))
    drawn = next(iter(entry.random(64, 1, 0).values()))
    assert drawn.dtype == np.int32
    assert 40 < drawn.max() < 50
    assert drawn.min() == 0


@tensorflow_only
def test_several_signatures_and_control_flow(tmp_path):
    import tensorflow as tf

    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.weight = tf.Variable(kernel(0.9, (80, 80)))

        @tf.function(input_signature=[tf.TensorSpec((None, 80), tf.float32, "x")])
        def once(self, x):
            return {"y": tf.matmul(x, self.weight)}

        @tf.function(input_signature=[tf.TensorSpec((2, 80), tf.float32, "x"), tf.TensorSpec((), tf.int32, "times")])
        def often(self, x, times):
            def body(number, x):
                return number + 1, tf.matmul(x, kernel(0.9, (80, 80), seed=1))

            return {"z": tf.while_loop(lambda number, x: number < times + 1, body, [0, x])[1]}

    module = Module()
    tf.saved_model.save(module, str(tmp_path / "saved"), {"once": module.once, "often": module.often})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved"), signature_keys=["once", "often"])
    source, target = tmp_path / "source.tflite", tmp_path / "target.tflite"
    source.write_bytes(converter.convert())
    model = flatbuffer.read(source)
    assert len(model.subgraphs) > 2
    assert {entry.key for entry in calls.entries(model)} == {"once", "often"}
    report = litert.shrink(source, target)
    assert report.max_difference == 0
    assert report.bytes < report.dense_bytes / 2
    from ai_edge_litert.interpreter import Interpreter

    x = np.random.default_rng(0).normal(size=(2, 80)).astype("float32")
    for key, inputs in (("once", {"x": x}), ("often", {"x": x, "times": np.int32(3)})):
        ours, theirs = (
            Interpreter(model_path=str(path)).get_signature_runner(key)(**inputs) for path in (source, target)
        )
        for name, array in ours.items():
            assert np.any(array)
            np.testing.assert_array_equal(array, theirs[name])


# --- Files made by hand ----------------------------------------------------------------------------------------------


def test_a_file_without_signature_and_with_equal_names(tmp_path):
    model = tables(kernel(), kernel(seed=1))
    for tensor in model.subgraphs[0].tensors:
        tensor.name = b"one name"
    for code in model.operatorCodes:
        code.builtinCode = 0  # as in files of old
    source = written(tmp_path / "source.tflite", model)
    report = litert.shrink(source, tmp_path / "target.tflite")
    assert report.bytes < report.dense_bytes / 2
    for delegate in (True, False):
        for received, array in zip(
            decoded(flatbuffer.read(tmp_path / "target.tflite"), delegate), (kernel(), kernel(seed=1)), strict=True
        ):
            np.testing.assert_array_equal(received, array)


def in_turns(names=(b"first", b"second")):
    """Two signatures, each with a subgraph of its own, that share their weights."""
    code, model, other = schema(), dense_layer(kernel()), dense_layer(kernel())
    model.subgraphs += other.subgraphs
    model.signatureDefs = [
        code.SignatureDefT([code.TensorMapT(b"x", 0)], [code.TensorMapT(b"y", 1)], name, number)
        for number, name in enumerate(names)
    ]
    return model


def test_signatures_that_share_weights(tmp_path):
    source = written(tmp_path / "source.tflite", in_turns())
    report = litert.shrink(source, tmp_path / "target.tflite")
    assert [tensor.bytes > 0 for tensor in report.tensors] == [True, False]
    target = flatbuffer.read(tmp_path / "target.tflite")
    assert len({Graph(target, graph).tensors[3].buffer for graph in target.subgraphs}) == 1
    # The second one is compared too.
    model = in_turns()
    model.buffers.append(schema().BufferT(kernel(seed=3).view(np.uint8).ravel()))
    model.subgraphs[1].tensors[2].buffer = len(model.buffers) - 1
    source = written(tmp_path / "source.tflite", model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "encode", spoiled)
        with pytest.raises(keras_rda.ExportError, match="No smaller file computes what"):
            litert.shrink(source, tmp_path / "other.tflite")
    assert not (tmp_path / "other.tflite").exists()


def spoiled(model, strategy, original=encode.encode):
    """An encoding in which the sign of the last constant's values is wrong."""
    sparse, rows = original(model, strategy)
    data = [buffer.data for buffer in sparse.buffers if buffer.data is not None and len(buffer.data) > 100][-1]
    data[3::4] ^= 0x80
    return sparse, rows


def archived(files, offset=0):
    """A ZIP archive that counts from `offset` bytes before its start."""
    content = io.BytesIO()
    content.write(b"\0" * offset)
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()[offset:]


@pytest.mark.parametrize("counts_from", ["the file", "the archive"])
def test_metadata_and_associated_files_survive(tmp_path, counts_from):
    code, model, labels = schema(), dense_layer(kernel()), {"labels.txt": "cat\ndog\n", "b.txt": "é" * 999}
    model.buffers.append(code.BufferT(np.frombuffer(b"the metadata's FlatBuffer", np.uint8)))
    model.metadata = [code.MetadataT(b"TFLITE_METADATA", 2)]
    model.description = b"made by somebody else"
    start = len(flatbuffer.pack(model))
    archive = archived(labels, start if counts_from == "the file" else 0)
    source = written(tmp_path / "source.tflite", model, archive)
    report = litert.shrink(source, tmp_path / "target.tflite")
    content = (tmp_path / "target.tflite").read_bytes()
    assert len(content) == report.bytes < report.dense_bytes == start + len(archive)
    target = flatbuffer.read(content)
    assert target.buffers[target.metadata[0].buffer].data.tobytes() == b"the metadata's FlatBuffer"
    assert target.description == b"made by somebody else"
    with zipfile.ZipFile(tmp_path / "target.tflite") as archive_there:
        assert archive_there.testzip() is None
        assert {name: archive_there.read(name).decode() for name in archive_there.namelist()} == labels
        first = archive_there.infolist()[0].header_offset
    if counts_from == "the archive":
        assert content.endswith(archive)
    assert content[first : first + 4] == b"PK\x03\x04"
    # Once more, with what counts from the file: nothing else is lost either.
    body, again = appended.split(content, target)
    assert flatbuffer.pack(target) == body
    assert appended.join(body, again, len(body)) == content


@pytest.mark.parametrize("length", [1, 14, 63, 64, 200])
@pytest.mark.parametrize("zeros", [0, 5, 100])
@pytest.mark.parametrize("last", ["weights", "zeros"])
def test_what_else_follows_the_flatbuffer_is_never_lost(tmp_path, length, zeros, last):
    """Zeros alone may: they are padding."""
    values = kernel()
    if last == "zeros":
        values[-20:] = 0
    model = dense_layer(values)
    for trailer in (b"\x01" * length, b"\0" * length + b"\x01"):
        refused(tmp_path, "content behind the FlatBuffer that is no ZIP archive", model, trailer + b"\0" * zeros)
    source = written(tmp_path / "source.tflite", model, b"\0" * (length + zeros))
    assert litert.shrink(source, tmp_path / "target.tflite").max_difference == 0


def test_metadata_that_share_a_weight_s_buffer_keep_it(tmp_path):
    model = dense_layer(kernel())
    model.metadata = [schema().MetadataT(b"its weights", 1)]
    smaller, rows = encode.encode(model)
    assert rows == []
    np.testing.assert_array_equal(smaller.buffers[1].data, model.buffers[1].data)


def test_custom_operators_are_named_where_they_do_not_run(tmp_path):
    code, model = schema(), dense_layer(kernel())
    custom = code.BuiltinOperator.CUSTOM
    model.operatorCodes.append(code.OperatorCodeT(custom, b"MyOwn", 1, custom))
    model.subgraphs[0].tensors.append(code.TensorT(np.int32([1, 64]), code.TensorType.FLOAT32, 0, b"z"))
    options = np.frombuffer(b"its options", np.uint8)
    model.subgraphs[0].operators.append(code.OperatorT(2, np.int32([1]), np.int32([3]), customOptions=options))
    model.subgraphs[0].outputs = np.int32([3])
    source = written(tmp_path / "source.tflite", model)
    with pytest.raises(
        ValueError, match=r"source does not run here.*so that a smaller file cannot be compared.*MyOwn"
    ) as caught:
        litert.shrink(source, tmp_path / "target.tflite")
    assert "\n" not in str(caught.value)
    # They would have survived.
    ((_, smaller, *_),) = shrinking.make(flatbuffer.read(source), source.read_bytes())
    operator = flatbuffer.read(smaller).subgraphs[0].operators[-1]
    assert operator.customOptions.tobytes() == b"its options"


def test_a_source_that_rolls_dice_is_refused(tmp_path):
    code, model = schema(), dense_layer(kernel())
    number = code.BuiltinOperator.RANDOM_UNIFORM
    model.operatorCodes.append(code.OperatorCodeT(127, None, 1, number))
    model.buffers.append(code.BufferT(np.int32([3]).view(np.uint8)))
    model.subgraphs[0].tensors += [
        code.TensorT(np.int32([1]), code.TensorType.INT32, 2, b"shape"),
        code.TensorT(np.int32([3]), code.TensorType.FLOAT32, 0, b"dice"),
    ]
    options = code.BuiltinOptions.RandomOptions
    model.subgraphs[0].operators.append(
        code.OperatorT(2, np.int32([3]), np.int32([4]), options, code.RandomOptionsT(seed=0, seed2=0))
    )
    model.subgraphs[0].outputs = np.int32([1, 4])
    with pytest.raises(ValueError, match="outputs change from run to run"):
        litert.shrink(written(tmp_path / "source.tflite", model), tmp_path / "target.tflite")


def refused(tmp_path, message, model, suffix=b"", target="target.tflite", **options):
    source = written(tmp_path / "source.tflite", model, suffix)
    with pytest.raises(ValueError, match=message) as caught:
        litert.shrink(source, tmp_path / target, **options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source.tflite"]


def test_bad_sources_and_targets_are_refused_in_a_line(tmp_path):
    model = dense_layer(kernel())
    refused(tmp_path, "cannot be made smaller and nothing was written: its zeros are too few", dense_layer(kernel(0)))
    refused(tmp_path, "is the target: name another file", model, target="source.tflite")
    refused(tmp_path, r"must end in '\.tflite'", model, target="target.lite")
    refused(tmp_path, "machine must be one of", model, machine="abacus")
    refused(tmp_path, "behind the FlatBuffer that is no ZIP archive", model, b"\x01" * 100)
    refused(tmp_path, r"data fit no way to call the file.*\(1, 96\)", model, data=np.zeros((3, 95)))
    refused(tmp_path, r"data fit no way to call the file", model, data={"y": np.zeros((3, 96))})
    model.buffers[1].offset, model.buffers[1].size = 4096, kernel().nbytes
    refused(tmp_path, "keeps weights outside the FlatBuffer", model)
    model = dense_layer(kernel())
    model.buffers[0].data = np.uint8([1, 2, 3, 4])
    for tensor in model.subgraphs[0].tensors[:2]:  # which are computed
        tensor.buffer = 2
    model.buffers.append(schema().BufferT())
    refused(tmp_path, "first buffer, which has to be empty", model)
    model = dense_layer(kernel())
    model.subgraphs[0].tensors[0].type = schema().TensorType.STRING
    refused(tmp_path, "The input 'x' of its first subgraph takes STRING", model)
    model = tables(np.zeros((40, 50), "float32"))
    encoded, _ = encode.encode(model)
    for tensor in encoded.subgraphs[0].tensors:
        if tensor.sparsity:
            tensor.shape = np.int32([2**31 - 1, 50])
            tensor.sparsity.dimMetadata[list(tensor.sparsity.traversalOrder).index(0)].denseSize = 2**31 - 1
    with pytest.raises(ValueError, match=r"more than 2 GB dense|cut off or corrupt"):
        litert.shrink(written(tmp_path / "source.tflite", encoded), tmp_path / "target.tflite")
    source = tmp_path / "source.tflite"
    for content, message in ((b"text", "is not a LiteRT model"), (source.read_bytes()[:300], "cut off or corrupt")):
        source.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            litert.shrink(source, tmp_path / "target.tflite")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        litert.shrink(tmp_path / "nowhere.tflite", tmp_path / "target.tflite")


def test_wrong_files_are_not_put_in_place(tmp_path, monkeypatch):
    source, target = written(tmp_path / "source.tflite", dense_layer(kernel())), tmp_path / "target.tflite"
    target.write_bytes(b"from before")
    monkeypatch.setattr(encode, "encode", spoiled)
    with pytest.raises(keras_rda.ExportError, match=r"nothing was written.*differs from the source by") as caught:
        litert.shrink(source, target)
    assert "\n" not in str(caught.value)
    assert target.read_bytes() == b"from before"
    assert len(list(tmp_path.iterdir())) == 2


def test_data_are_used_and_a_list_of_batches_too(tmp_path, monkeypatch):
    source = written(tmp_path / "source.tflite", dense_layer(kernel()))
    seen, original = [], calls.Entry.given
    monkeypatch.setattr(calls.Entry, "given", lambda entry, data: seen.append(original(entry, data)) or seen[-1])
    x = np.random.default_rng(0).normal(size=(9, 96))
    for data in (x, {"x": x}, [x], iter([{"x": x}])):
        assert litert.shrink(source, tmp_path / "target.tflite", data=data).max_difference == 0
    for samples in seen:
        assert len(samples) == 4
        np.testing.assert_array_equal(samples[3]["x"], x[3:4].astype("float32"))


def test_data_are_used_on_the_machine_too(tmp_path, monkeypatch):
    source, x, jobs = written(tmp_path / "source.tflite", dense_layer(kernel())), np.full((3, 96), 7, "float32"), []

    def run(new, repeats):
        jobs.extend(new)
        return process.run(new, repeats, 600, [sys.executable])

    monkeypatch.setattr(wasm, "check_ready", lambda: None)
    monkeypatch.setattr(wasm, "run", run)
    report = litert.shrink(source, tmp_path / "target.tflite", "wasm", x)
    assert [check.runtime for check in report.chosen.checks] == [*here.RUNTIMES, "wasm"]
    assert report.measured.ratio > 0
    assert [bool((inputs["x"] == 7).all()) for _, inputs in jobs] == [False, False, True, True]


# --- The form --------------------------------------------------------------------------------------------------------


@given(array=arrays(("float32", "float16", "int8")), data=st.data())
def test_expand_is_the_opposite_of_compress(array, data):
    order = tuple(data.draw(st.permutations(range(array.ndim))))
    compressed = tuple(data.draw(st.lists(st.booleans(), min_size=array.ndim, max_size=array.ndim)))
    np.testing.assert_array_equal(
        sparse_format.expand(*sparse_format.compress(array, order, compressed), array.shape), array
    )


def test_blocks_are_expanded():
    """Blocks of 1×4 of which the second and third are there, as TensorFlow's pass writes them."""
    code = schema()
    dense, compressed = code.DimensionType.DENSE, code.DimensionType.SPARSE_CSR
    vector, kind = code.Uint8VectorT, code.SparseIndexVector.Uint8Vector
    levels = [
        code.DimensionMetadataT(dense, 2),
        code.DimensionMetadataT(compressed, 0, kind, vector(np.uint8([0, 1, 2])), kind, vector(np.uint8([1, 0]))),
        code.DimensionMetadataT(dense, 4),
    ]
    sparsity = code.SparsityParametersT(np.int32([0, 1, 2]), np.int32([1]), levels)
    expected = np.zeros((2, 8))
    expected[0, 4:], expected[1, :4] = [1, 2, 3, 4], [5, 6, 7, 8]
    np.testing.assert_array_equal(sparse_format.expand(np.arange(1.0, 9.0), sparsity, (2, 8)), expected)


@given(array=arrays(), zeros=st.sampled_from([0.0, 0.3, 0.95]), data=st.data())
def test_encoding_anew_is_as_small_as_encoding(array, zeros, data):
    """Whatever the first encoding was; and it changes nothing that it would write itself."""
    random = np.random.default_rng(0)
    array = array * (random.random(array.shape) >= zeros).astype(array.dtype)
    best, (row,) = encode.encode(tables(array))
    again, (row_again,) = encode.encode(best)
    assert flatbuffer.pack(again) == flatbuffer.pack(best)
    assert row_again.encoding == row.encoding
    order = tuple(data.draw(st.permutations(range(array.ndim))))
    compressed = tuple(data.draw(st.lists(st.booleans(), min_size=array.ndim, max_size=array.ndim)))
    compressed = compressed if any(compressed) else (*compressed[1:], True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_format, "smallest", lambda array: (-(10**6), order, compressed))  # whatever it costs
        other, _ = encode.encode(tables(array))
    anew, (row_anew,) = encode.encode(other)
    assert row_anew.bytes <= row.bytes
    assert (row_anew.encoding == "dense") == (row.encoding == "dense")
    assert row_anew.zeros == pytest.approx(np.mean(array == 0))
    np.testing.assert_array_equal(decoded(anew)[0], array)


# --- The command -----------------------------------------------------------------------------------------------------


def command(*arguments, code=0):
    result = CliRunner().invoke(cli.main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


def test_command_and_what_inspect_tells(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "source.tflite", dense_layer(kernel()))
    np.save("x.npy", np.ones((2, 96)))
    found = json.loads(command("inspect", "source.tflite", "--json"))
    report = json.loads(
        command(
            "shrink",
            "source.tflite",
            "target.tflite",
            "--representative-data",
            "x.npy",
            *("--html", "page.html"),
            "--json",
        )
    )
    assert found["bytes"] == report["dense_bytes"] == (tmp_path / "source.tflite").stat().st_size
    assert found["bytes_of_shrink"] == report["bytes"] == (tmp_path / "target.tflite").stat().st_size
    assert len(found["tensors"]) == 1
    assert f"shrink would write {report['bytes']:,}" in command("inspect", "source.tflite")
    assert f"{report['bytes']:,} bytes; shrink would not make it smaller" in command("inspect", "target.tflite")
    page = (tmp_path / "page.html").read_text()
    assert "Verified against the source" in page
    assert "source.tflite" in page
    assert "Keras" not in page
    said = command("shrink", "target.tflite", "again.tflite", code=1)
    assert said.startswith("Error: 'target.tflite' cannot be made smaller")
    assert said.count("\n") == 1
    assert json.loads(command("inspect", "target.tflite", "--json"))["bytes_of_shrink"] is None
    assert "'micro' is not one of 'aarch64', 'wasm'" in command(
        "shrink", "source.tflite", "again.tflite", "--machine", "micro", code=2
    )
    written(tmp_path / "odd.tflite", dense_layer(kernel()), b"\x01" * 100)
    assert "is no ZIP archive" in command("inspect", "odd.tflite")
    assert json.loads(command("inspect", "odd.tflite", "--json"))["bytes_of_shrink"] is None


def test_names_that_repeat_are_refused(tmp_path):
    model = dense_layer(kernel())
    model.signatureDefs = [
        schema().SignatureDefT(
            inputs=[schema().TensorMapT(b"a", 0), schema().TensorMapT(b"a", 0)],
            outputs=[schema().TensorMapT(b"y", int(model.subgraphs[0].outputs[0]))],
            signatureKey=b"serving_default",
        )
    ]
    (tmp_path / "source.tflite").write_bytes(flatbuffer.pack(model))
    with pytest.raises(ValueError, match=r"several inputs named 'a', .*: rename them where the file is made"):
        keras_rda.litert.shrink(tmp_path / "source.tflite", tmp_path / "target.tflite")
    assert not (tmp_path / "target.tflite").exists()


@tensorflow_only
@pytest.mark.skipif(not wasm.is_ready(), reason="no LiteRT.js: python3 -m keras_rda.litert.wasm")
def test_a_source_that_does_not_run_on_the_machine_is_named(tmp_path):
    """Its batch size is free, which LiteRT.js does not take."""
    model = keras.Sequential([keras.Input((64,)), layers.Dense(64)])
    (tmp_path / "source.tflite").write_bytes(convert.convert(sparsify(model)))
    with pytest.raises(ValueError, match=r"source itself does not run on the machine 'wasm'.*Shrink it without"):
        keras_rda.litert.shrink(tmp_path / "source.tflite", tmp_path / "target.tflite", "wasm")
