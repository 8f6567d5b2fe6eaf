"""Which files run with XNNPACK's sparse kernels, what those get wrong, and what they gain: seen on an emulated Arm."""

import platform
import sys

import keras
import numpy as np
import pytest
from helpers import BACKEND, needs_emulation, without_keras

import keras_rda
from keras_rda.litert import aarch64, encode, flatbuffer, repair, xnnpack
from keras_rda.litert.layer_names import shortened
from keras_rda.litert.machines.aarch64_set_up import small_file

tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras exports LiteRT on TensorFlow")
pytestmark = [without_keras, pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # of TensorFlow's converter
layers = keras.layers


def sparsify(model, zeros=0.9):
    """Random weights, with zeros in 1×1 convolutions and dense layers; biases too, so that no output is constant."""
    random = np.random.default_rng(0)
    for layer in model.layers:
        for variable in layer.trainable_variables:
            shape = variable.shape
            values = random.normal(size=shape) * (np.prod(shape[:-1]) / 2) ** -0.5
            if len(shape) == 2 or shape[:2] == (1, 1):
                values *= random.random(shape) > zeros
            variable.assign(values)
    return model


def export(model, path, half=False, sparse=True):
    import tensorflow as tf

    optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY] * sparse + [tf.lite.Optimize.DEFAULT] * half
    target = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS], "supported_types": [tf.float16] * half}
    model.export(str(path), format="litert", verbose=False, optimizations=optimizations, target_spec=target)
    return path


def network(tail, **options):
    """A network of 32×32 images that the sparse kernels run, up to its `tail`."""
    images = keras.Input((32, 32, 3))
    x = layers.ZeroPadding2D(1)(images)
    x = layers.Conv2D(16, 3, strides=2, activation="relu")(x)
    for _ in range(2):
        x = layers.DepthwiseConv2D(3, padding="same")(x)
        x = layers.Conv2D(32, 1, activation="relu")(x)
    return sparsify(keras.Model(images, tail(x)), **options)


CONSTANT = np.random.default_rng(2).normal(size=(1, 1, 1, 32)).astype("float32")


def head(x):
    return layers.Dense(10)(layers.GlobalAveragePooling2D()(x))


def squeeze_and_excite(x):
    scale = layers.GlobalAveragePooling2D(keepdims=True)(x)
    scale = layers.Conv2D(8, 1, activation="relu")(scale)
    return layers.Multiply()([x, layers.Conv2D(32, 1)(scale)])


@tensorflow_only  # building them takes JAX a minute, and nothing here depends on it
@pytest.mark.parametrize(("name", "ours"), [("MobileNet", "MobileNetV1"), ("MobileNetV2", "MobileNetV2")])
def test_mobilenets_have_the_sizes_of_keras(name, ours):
    theirs = getattr(keras.applications, name)((64, 64, 3), alpha=0.5, weights=None, classes=7)
    model = getattr(keras_rda.models, ours)((64, 64, 3), alpha=0.5, classes=7)
    # MobileNet's head is a 1×1 convolution.
    shapes = [tuple(size for size in w.shape if size != 1) for w in model.weights]
    assert shapes == [tuple(size for size in w.shape if size != 1) for w in theirs.weights]
    assert model.output_shape == (None, 7)


@pytest.fixture(scope="session")
def mobilenet(tmp_path_factory):
    """(model, {(half, sparse): file}) of a small MobileNetV1."""
    directory = tmp_path_factory.mktemp("mobilenet")
    model = sparsify(keras_rda.models.MobileNetV1((64, 64, 3), alpha=0.5, classes=10))
    files = {}
    for half in (False, True):
        files[half, False] = export(model, directory / f"{half}-dense.tflite", half, sparse=False)
        files[half, True] = directory / f"{half}-sparse.tflite"
        files[half, True].write_bytes(flatbuffer.pack(encode.encode(flatbuffer.read(files[half, False]))[0]))
    return model, files


@tensorflow_only
@pytest.mark.xdist_group("mobilenet")
def test_mobilenets_of_this_package_run_sparse(mobilenet, tmp_path):
    model, files = mobilenet
    weights = [w for w in model.weights if len(w.shape) == 2 or w.shape[:2] == (1, 1)]
    zeros = sum(np.sum(w.numpy() == 0) for w in weights) / sum(np.size(w) for w in weights)
    for half in (False, True):
        found = xnnpack.sparse_kernels(files[half, True])
        assert found.eligible
        assert found.reasons == found.faults == ()
        assert len(found.operators) == 13
        assert found.zeros == pytest.approx(zeros, abs=1e-3 if half else 0)  # in float16 the smallest weights are zeros
        dense = xnnpack.sparse_kernels(files[half, False])
        assert dense.reasons == ("No weight is stored sparse in floating point: zeros are not looked for.",)
        assert not dense.eligible
    model = sparsify(keras_rda.models.MobileNetV2((32, 32, 3), alpha=0.35, classes=10))
    assert len(xnnpack.sparse_kernels(export(model, tmp_path / "v2.tflite")).operators) == 34


@tensorflow_only
@pytest.mark.parametrize("name", ["MobileNet", pytest.param("MobileNetV2", marks=pytest.mark.every)])
def test_mobilenets_of_keras_do_not(name, tmp_path):
    model = getattr(keras.applications, name)((32, 32, 3), alpha=0.35 if name[-1] == "2" else 0.25, weights=None)
    found = xnnpack.sparse_kernels(export(sparsify(model), tmp_path / "model.tflite"))
    assert not found.eligible
    assert found.operators == found.faults == ()
    assert found.reasons[0].startswith("CONV_2D ")
    strided = [reason for reason in found.reasons if "CONV_2D" in reason]
    assert len(strided) == 5  # in both networks
    # The converter has made "same" of the padding layer.
    assert all(r.endswith(": padding (0, 1) of same, must be 1 on every side by a padding layer") for r in strided)


REASONS = {
    "few zeros": (head, {"zeros": 0.5}, r"Zeros: 0\.\d{3} of the weights .* must be more than 2/3"),
    "max pooling": (
        lambda x: layers.Dense(10)(layers.GlobalMaxPooling2D()(x)),
        {},
        r"REDUCE_MAX '.*': not among the operators",
    ),
    "no mean": (lambda x: layers.Dense(10)(layers.Flatten()(x)), {}, "There is no mean or sum over height and width"),
    "3×3 inside": (lambda x: head(layers.Conv2D(8, 3)(x)), {}, r"CONV_2D '.*': 3×3 on 32 channels, must be on 3"),
    "also an output": (lambda x: [head(x), x], {}, r"MEAN '.*': its input is also an output of the network"),
    "stride": (
        lambda x: head(layers.DepthwiseConv2D(3, strides=2, padding="same")(x)),
        {},
        r"DEPTHWISE_CONV_2D '.*': padding \(0, 1\) of same, must be 1 on every side by a padding layer",
    ),
    "padding": (
        lambda x: head(layers.DepthwiseConv2D(3)(layers.ZeroPadding2D(((1, 0), (2, 0)))(x))),
        {},
        r"DEPTHWISE_CONV_2D '.*': padding \(1, 0, 2, 0\), must be 1 on every side$",
    ),
    "1×1 stride": (lambda x: head(layers.Conv2D(8, 1, strides=2)(x)), {}, r"CONV_2D '.*': 1×1 with strides \(2, 2\)"),
}


@tensorflow_only
@pytest.mark.parametrize("case", REASONS)
def test_reasons(case, tmp_path):
    tail, options, reason = REASONS[case]
    found = xnnpack.sparse_kernels(export(network(tail, **options), tmp_path / "model.tflite"))
    assert not found.eligible
    assert found.operators == found.faults == ()
    assert any(pytest.raises(AssertionError, match=reason).matches(AssertionError(text)) for text in found.reasons)


@tensorflow_only
def test_integer_weights_have_no_sparse_kernels(tmp_path):
    import tensorflow as tf

    optimizations = [tf.lite.Optimize.DEFAULT, tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    model = network(lambda x: head(layers.Conv2D(128, 1)(x)))
    model.export(str(tmp_path / "m.tflite"), format="litert", verbose=False, optimizations=optimizations)
    found = xnnpack.sparse_kernels(tmp_path / "m.tflite")
    assert not found.eligible
    assert any("computes with INT8, must be floating point" in reason for reason in found.reasons)


@pytest.mark.parametrize("outputs", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize(("share", "together"), [(0.1, 1), (0.5, 1), (0.1, 4), (0.3, 2), (0.8, 1), (0.95, 1), (0, 1)])
def test_blocks_of_output_channels_as_xnnpack_counts_them(outputs, share, together):
    """Its counts: in fours, then in what is left in twos; its conditions `5 n ≥ 18 blocks` and `5 n ≥ 9 blocks`."""
    random = np.random.default_rng(0)
    mask = np.repeat(random.random((-(-outputs // together), 50)) < share, together, axis=0)[:outputs]
    fours, twos = outputs // 4 * 4, outputs // 2 * 2
    values, blocks2, blocks4 = 0, 0, 0
    for row in range(0, fours, 4):
        for a, b, c, d in mask[row : row + 4].T.astype(int):
            values += a + b + c + d
            blocks2 += (a | b) + (c | d)
            blocks4 += a | b | c | d
    values4 = values
    for row in range(fours, twos, 2):
        for a, b in mask[row : row + 2].T.astype(int):
            values += a + b
            blocks2 += a | b
    expected = 4 if values4 * 5 >= blocks4 * 18 else 2 if values * 5 >= blocks2 * 9 else 1
    assert xnnpack._block(mask) == expected
    if outputs == 16:
        assert expected == (4 if share in (0, 0.95) else together)


RANDOM = np.random.default_rng(0)
KERNELS = {  # which weights of a 1×1 convolution (inputs, outputs) are not zero → its blocks, whether they are slower
    "scattered": (RANDOM.random((16, 32)) < 0.5, 1, False),
    "30 % of zeros": (RANDOM.random((16, 32)) < 0.7, 1, False),
    "few zeros": (RANDOM.random((16, 32)) < 0.97, 4, True),
    "twos": (np.repeat(RANDOM.random((16, 16)) < 0.3, 2, axis=1), 2, True),
    "fours": (np.repeat(RANDOM.random((16, 8)) < 0.3, 4, axis=1), 4, True),
    "few fours": (np.repeat(RANDOM.random((16, 8)) < 0.05, 4, axis=1), 4, False),
}


@tensorflow_only
@pytest.mark.parametrize("name", KERNELS)
def test_convolutions_that_are_slower_in_the_browser(name, tmp_path):
    mask, block, is_slower = KERNELS[name]
    model = network(lambda x: layers.Dense(200)(layers.GlobalAveragePooling2D()(x)))
    _, layer, _ = (layer for layer in model.layers if type(layer) is layers.Conv2D)
    layer.kernel.assign(np.random.default_rng(0).normal(size=layer.kernel.shape) * mask)
    found = xnnpack.sparse_kernels(export(model, tmp_path / "model.tflite"))
    assert found.eligible
    assert found.blocks == (block, 1)
    if not is_slower:
        assert found.browser == ""
        return
    shown = shortened(found.operators[0])
    assert found.browser.startswith(f"1 of 2 sparse convolutions are slower than dense in browsers: '{shown}'. Their")
    if name == "few zeros":  # which survive that export removes a channel
        report = keras_rda.export(model, tmp_path / "model.tflite")
        assert report.sparse_kernels.blocks == found.blocks
        assert report.speed()[-1] == ("zeros slower, browser", report.sparse_kernels.browser)


@tensorflow_only
@pytest.mark.parametrize(("block", "is_slower"), [(1, False), (4, True)])
def test_what_zeros_make_slower_in_browsers_runs_dense_there(block, is_slower, tmp_path):
    model, random = network(head), np.random.default_rng(0)
    for layer in model.layers:
        if type(layer) is layers.Conv2D and layer.kernel_size == (1, 1):
            *inputs, outputs = layer.kernel.shape
            mask = np.repeat(random.random((*inputs, outputs // block)) < 0.25, block, axis=-1)
            layer.kernel.assign(random.normal(size=mask.shape) * mask)
    path, images = export(model, tmp_path / "model.tflite"), random.normal(size=(2, 32, 32, 3)).astype("float32")
    assert xnnpack.sparse_kernels(path).is_slower_in_browser is is_slower
    for machine in (None, "aarch64", "wasm"):
        content = flatbuffer.read(path)
        kernels, notes = repair.mend(content, machine)
        is_dense = is_slower and machine == "wasm"
        assert kernels.eligible is not is_dense
        assert kernels.is_slower_in_browser is (is_slower and not is_dense)
        assert [note.split(": ")[0] for note in notes] == [
            "2 of 2 sparse convolutions are slower than dense in browsers"
        ] * is_dense
        mended = tmp_path / "mended.tflite"
        mended.write_bytes(flatbuffer.pack(content))
        np.testing.assert_allclose(
            keras_rda.litert.predict(mended, images)["output_0"], model(images, training=False), atol=1e-5
        )


def test_files_that_are_none(tmp_path):
    (tmp_path / "text.tflite").write_text("no LiteRT file at all")
    with pytest.raises(ValueError, match="is not a LiteRT model"):
        xnnpack.sparse_kernels(tmp_path / "text.tflite")
    with pytest.raises(FileNotFoundError):
        xnnpack.sparse_kernels(tmp_path / "none.tflite")
    (tmp_path / "small.tflite").write_bytes(small_file())
    found = xnnpack.sparse_kernels(path=tmp_path / "small.tflite")
    assert not found.eligible
    assert "There is no 1×1 convolution with stride 1 in floating point." in found.reasons
    model = flatbuffer.read(tmp_path / "small.tflite")
    model.subgraphs[0].operators[0].inputs = [7]
    with pytest.raises(ValueError, match="The LiteRT file's operators are damaged: IndexError"):
        xnnpack.analyze(model)


def test_this_machine_is_named(monkeypatch):
    for machine, text in {"aarch64": None, "arm64": None, "s390x": "kind 's390x'"}.items():
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        assert (text is None and xnnpack.here() is None) or text in xnnpack.here()
    for flags, text in {"sse4_2 avx avx2": "no sparse kernels for x86 processors with AVX", "sse4_2": None}.items():
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(xnnpack, "_cpu_flags", lambda flags=flags: set(flags.split()))
        assert (text is None and xnnpack.here() is None) or text in xnnpack.here()


# What XNNPACK does to the plain file where it has the sparse kernels, and whether the repaired one keeps them.
TAILS = {
    "kept mean → convolution": (
        lambda x: layers.Conv2D(10, 1)(layers.GlobalAveragePooling2D(keepdims=True)(x)),
        "refused",
        True,
    ),
    "ends in a kept mean": (layers.GlobalAveragePooling2D(keepdims=True), "wrong", True),
    "kept mean → sigmoid → dense": (
        lambda x: layers.Dense(10)(
            layers.Flatten()(layers.Activation("sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x)))
        ),
        "refused",
        True,
    ),
    "squeeze and excite → max pooling": (
        lambda x: layers.Dense(10)(layers.GlobalMaxPooling2D()(layers.DepthwiseConv2D(3)(squeeze_and_excite(x)))),
        "wrong",
        False,
    ),
    "second output": (lambda x: [head(x), layers.Conv2D(8, 1)(x)], "wrong", False),
    "activation of a constant sum": (lambda x: head(layers.ReLU()(x + CONSTANT)), "wrong", False),
    "squeeze and excite → mean": (lambda x: head(squeeze_and_excite(x)), "wrong", False),
    "mean times map": (
        lambda x: head(layers.Multiply()([x, layers.GlobalAveragePooling2D(keepdims=True)(x)])),
        "refused",
        False,
    ),
    "mean": (head, None, True),
}


@tensorflow_only
@needs_emulation
@pytest.mark.parametrize(
    "half", [pytest.param(False, id="float32"), pytest.param(True, id="float16", marks=pytest.mark.every)]
)
def test_repaired_files_are_right_where_plain_ones_are_not(half, tmp_path):
    # Several images of different scale: with one only, some defects do not show.
    images = np.random.default_rng(1).uniform(-1, 1, (3, 32, 32, 3)).astype("float32")
    images *= np.float32([1, 3, 0.2]).reshape(3, 1, 1, 1)
    jobs, expected = [], []
    for number, (tail, defect, stays_sparse) in enumerate(TAILS.values()):
        model = network(tail)
        expected.append([np.asarray(output) for output in keras.tree.flatten(model(images))])
        plain = export(model, tmp_path / f"{number}.tflite", half)
        content = flatbuffer.read(plain)
        _, notes = repair.repair_tails(content)
        repaired = tmp_path / f"{number}-repaired.tflite"
        repaired.write_bytes(flatbuffer.pack(content))
        assert bool(notes) == bool(xnnpack.sparse_kernels(plain).faults) == bool(defect)
        found = xnnpack.sparse_kernels(repaired)
        assert (found.eligible, found.faults) == (stays_sparse, ())
        assert repair.repair_tails(content)[1] == []
        jobs += [(plain, images), (repaired, images)]
    runs = aarch64.run(jobs)
    native = aarch64.run(jobs, command=[sys.executable])

    def is_right(run, outputs):
        received = [run.outputs[name] for name in sorted(run.outputs)]
        return all(
            a.shape == b.shape and np.max(np.abs(a - b)) <= (3e-3 if half else 1e-5) * np.max(np.abs(b))
            for a, b in zip(received, outputs, strict=True)
        )

    for number, (name, (_, defect, _)) in enumerate(TAILS.items()):
        plain, repaired = runs[2 * number : 2 * number + 2]
        assert is_right(repaired, expected[number]), name
        assert all(is_right(run, expected[number]) for run in native[2 * number : 2 * number + 2]), name
        if defect == "refused":
            assert plain.error, name
        else:
            assert plain.error is None, name
            assert is_right(plain, expected[number]) == (defect is None), name


@tensorflow_only
def test_export_repairs_tails_and_says_so(tmp_path):
    """Where AArch64 is set up, the fixture of conftest.py also runs the files there."""
    for name in ("kept mean → convolution", "ends in a kept mean"):
        report = keras_rda.export(network(TAILS[name][0]), tmp_path / "model.tflite")
        assert "sparse" in report.chosen.name
        assert any("a RESHAPE restores the dimensions" in note for note in report.chosen.notes)
        assert report.sparse_kernels.eligible
        assert "note" in str(report)


@tensorflow_only
@needs_emulation
@pytest.mark.xdist_group("mobilenet")
def test_zeros_run_faster_on_arm(mobilenet):
    model, files = mobilenet
    images = np.random.default_rng(1).uniform(-1, 1, (1, 64, 64, 3)).astype("float32")
    expected = np.asarray(model(images))
    runs = dict(zip(files, aarch64.run([(file, images) for file in files.values()], repeats=9), strict=True))
    for half in (False, True):
        dense, sparse = runs[half, False], runs[half, True]
        np.testing.assert_allclose(sparse.outputs["output_0"], expected, atol=1e-3 if half else 1e-6)
        ratio = sparse.seconds / dense.seconds
        print(f"emulated, {'float16' if half else 'float32'}: sparse / dense = {ratio:.2f}")
        assert ratio <= 0.5  # 0.26 and 0.29 were measured
