"""The examples run, in a short form, as a user runs them."""

import dataclasses
import importlib
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import BACKEND, COMPILES, PREPARED, small_network

import keras_rda
from examples import device_loop
from keras_rda.litert.machines import aarch64, micro, wasm

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason="it runs on TensorFlow whatever the tests run on")
FOLDERS = ("docs", "examples", "keras_rda", "saved_models", "tests")


def run(script, *arguments, check=True):
    return subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, arguments)],
        check=check,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "140"},
    )


def table_rows(output, row):
    """The numbers of a printed table's rows: `row` matches one, with groups for its name and its columns of numbers."""
    return {
        match[1]: [float(cell.replace(",", "")) for cell in match[2].split("│")] for match in re.finditer(row, output)
    }


def is_picture(file):
    """Whether a file is a picture as wide as a README, in which something is drawn: of many grey levels."""
    image = keras.utils.img_to_array(keras.utils.load_img(file, color_mode="grayscale"))
    return image.shape[1] >= 960 and len(np.unique(image)) > 25


@tensorflow_only
def test_quickstart(tmp_path):
    output = run("quickstart.py", "--epochs", 2, "--output", tmp_path).stdout
    rows = table_rows(output, r"│ (SGD|MRDA) +│(.+)│\n")
    assert list(rows) == ["SGD", "MRDA"]
    for top1, litert_top1, sigma, dense, sparse, ratio, difference in rows.values():
        assert top1 == litert_top1
        assert 0 <= sigma < 1
        assert sparse / dense == pytest.approx(ratio, abs=1e-3)
        assert difference < 1e-3
    assert rows["MRDA"][2] > 0.3
    assert {file.name for file in tmp_path.iterdir()} == {"digits-sgd.tflite", "digits-mrda.tflite", "digits.png"}
    assert (tmp_path / "digits-mrda.tflite").stat().st_size == rows["MRDA"][4]
    assert is_picture(tmp_path / "digits.png")


@pytest.mark.parametrize(
    ("name", "epochs", "message"),
    [
        pytest.param("quickstart", 0, "at least 1; received 0", marks=tensorflow_only),
        pytest.param("recipe", 7, "at least 8, to have two in a quarter of them; received 7", marks=tensorflow_only),
        ("custom_loop", 0, "at least 1; received 0"),
    ],
)
def test_too_few_epochs_are_refused(name, epochs, message, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--epochs", str(epochs)])
    with pytest.raises(SystemExit, match="2"):
        example.main()
    assert f"--epochs must be {message}" in capsys.readouterr().err


@tensorflow_only
def test_recipe(tmp_path):
    output = run("recipe.py", "--epochs", 8, "--output", tmp_path).stdout
    rows = table_rows(output, r"│ ([\w-]+) +│[ \d+]+│(.+)│\n")
    assert list(rows) == ["dense", "sparse", "fine-tuned"]
    for name, sigma in (("dense", 0.0), ("sparse", 0.95), ("fine-tuned", 0.9)):
        top1, measured, size = rows[name]
        assert top1 > 80
        assert measured == pytest.approx(sigma, abs=0.005)
        assert size == (tmp_path / f"digits-{name}.tflite").stat().st_size
    assert is_picture(tmp_path / "digits-recipe.png")


def test_custom_loop(tmp_path):
    lines = run("custom_loop.py", "--epochs", 4, "--output", tmp_path).stdout.splitlines()
    epochs = [list(map(float, re.findall(r"(?:loss|top-1|σ) ([\d.]+)", line))) for line in lines]
    assert len(epochs) == 4
    assert epochs[-1][0] < epochs[0][0]
    assert epochs[-1][1] > 80
    assert epochs[-1][2] > 0.3
    assert is_picture(tmp_path / "custom-loop.png")


@pytest.mark.skipif(BACKEND != "tensorflow", reason="it exports, which needs TensorFlow")
def test_phone(tmp_path):
    output = run("phone.py", "--epochs", 4, "--output", tmp_path).stdout
    rows = re.findall(r"│ (\w+) +│ +([\d,]+) │ +1/([\d.]+) │ +([\d.]+) │", output)
    sizes = {name: int(size.replace(",", "")) for name, size, *_ in rows}
    assert list(sizes) == ["None", "float16", "dynamic", "int8"]
    assert sizes["None"] > sizes["float16"] > sizes["int8"]
    assert all(float(top1) > 80 for *_, top1 in rows)
    for name, size in sizes.items():
        assert (tmp_path / f"digits-{'float32' if name == 'None' else name}.tflite").stat().st_size == size
    assert is_picture(tmp_path / "digits-phone.png")


@pytest.mark.skipif(BACKEND != "tensorflow", reason="it exports, which needs TensorFlow")
@pytest.mark.skipif(not micro.is_ready(), reason="no TFLite Micro: pip install 'keras_rda[micro]'")
def test_microcontroller(tmp_path):
    output = run("microcontroller.py", "--epochs", 8, "--width", 32, "--sparsity", 0.5, "--output", tmp_path).stdout
    rows = re.findall(r"│ ([\w ]+?) +│ +([\d,]+) │ +([\d,]+) │ +([\d.]+) │ +([\d.]*) │", output)
    sizes = {name: int(size.replace(",", "")) for name, size, *_ in rows}
    assert list(sizes) == ["dense", "channels removed", "zeros left out"]
    assert sizes["dense"] >= sizes["channels removed"] > sizes["zeros left out"]
    assert sizes["zeros left out"] == (tmp_path / "digits-ds-cnn.tflite").stat().st_size
    assert all(float(top1) > 80 for *_, top1 in rows[1:])
    assert f"digits_ds_cnn_len = {sizes['zeros left out']};" in (tmp_path / "digits_ds_cnn.h").read_text()
    assert is_picture(tmp_path / "digits-ds-cnn.png")


@pytest.mark.every  # two minutes of small trainings
@tensorflow_only
@pytest.mark.skipif(not PREPARED.is_dir(), reason=f"no prepared tensorflow-datasets at {PREPARED}")
def test_mobilenet_cifar10(tmp_path):
    arguments = ("--subset", 512, "--epochs", 16, "--data-dir", PREPARED, "--output", tmp_path)
    run("mobilenet_cifar10.py", "--pretrain", *arguments)
    trained = keras.models.load_model(tmp_path / "cifar10-mobilenet.keras")
    assert {weight.dtype for weight in trained.weights} == {"float16"}
    output = run("mobilenet_cifar10.py", *arguments).stdout
    rows = {name: row for name, row in re.findall(r"│ (dense|zeros|channels) +│(.+)│", output)}
    values = {
        name: [float(value.replace(",", "")) for value in re.findall(r"[\d.,]+", row)] for name, row in rows.items()
    }
    assert list(values) == ["dense", "zeros", "channels"]
    for name, (_, size, *speeds) in values.items():
        assert size == (tmp_path / f"mobilenet-{name}.tflite").stat().st_size
        assert len(speeds) == 1 + wasm.is_ready() + (aarch64.is_ready() and not aarch64.is_arm())
    assert values["dense"][0] > 80  # of the saved model
    assert set(values["dense"][2:]) == {1.0}
    assert values["zeros"][1] < 0.25 * values["dense"][1]
    assert values["channels"][1] < 0.8 * values["dense"][1]
    assert (tmp_path / "mobilenet.png").stat().st_size > 5000


@pytest.mark.skipif(BACKEND != "tensorflow", reason="its files need TensorFlow; test_a_cell_on_jax")
def test_accuracy(tmp_path):
    """Real runs on the embedded digits; what is done already is not done again, and a line cut off by a kill is."""
    results = tmp_path / "results.jsonl"
    arguments = ("--task", "digits", "--seed", 0, "--epochs", 32, "--sparsity", 0.9, "--results", results)
    methods = ("l1_threshold", "fine_tuning", "gmp")
    output = run("benchmarks/accuracy.py", *arguments, "--method", *methods).stdout
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert {line["method"] for line in lines} == set(methods)
    for line in lines:
        assert line["sigma"] == pytest.approx(0.9, abs=0.005)
        assert line["top1"] > 0.8
        assert BACKEND != "tensorflow" or 50_000 < line["bytes"] < 0.2 * 885_056  # dense
        assert f"{line['method']} σ {line['sigma']:.4f} top-1 {line['top1']:.4f}" in output
        assert str(tmp_path) not in line["command"]
        assert line["versions"]["keras"] == keras.version()
    assert results.with_suffix(".png").stat().st_size > 10_000
    assert [0.8 < line["dense_top1"] < 1 for line in lines if line["method"] == "fine_tuning"] == [True]
    assert {line["method"] for line in lines if "settings" in line} == {"gmp"}
    results.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]) + json.dumps(lines[-1])[:50])
    again = run("benchmarks/accuracy.py", *arguments, "--method", *methods)
    assert f"1/1 digits {lines[-1]['method']}" in again.stdout
    assert "a line that is cut off is left out" in again.stderr
    assert json.loads(results.read_text().splitlines()[-1])["top1"] == lines[-1]["top1"]  # same seed, same batches


WITHOUT_TENSORFLOW = """
import sys, runpy
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
sys.path.insert(0, sys.argv[1])
sys.argv = ["accuracy.py", *sys.argv[2:]]
runpy.run_module("accuracy", run_name="__main__")
"""


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's loop")
@pytest.mark.parametrize(
    ("method", "epochs", "sparsity"),
    [
        ("recipe", 6, 0.9),
        ("gmp", 6, 0.9),
        pytest.param("rigl", 6, 0.9, marks=pytest.mark.every),
        pytest.param("acdc", 6, 0.9, marks=pytest.mark.every),
        pytest.param("l1_threshold", 8, 0.9, marks=pytest.mark.every),
        pytest.param("fine_tuning", 48, 0.9, marks=pytest.mark.every),
        pytest.param("channels", 48, 0.65, marks=pytest.mark.every),
        ("channels_together", 24, 0.5),
        pytest.param("channels_by_cost", 24, 0.5, marks=pytest.mark.every),
        pytest.param("channels_by_kernel", 24, 0.5, marks=pytest.mark.every),
    ],
)
def test_a_cell_on_jax(method, epochs, sparsity, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    data, training = (importlib.import_module(name) for name in ("accuracy_data", "accuracy_training"))
    cell = data.make_cell("digits", method, sparsity, 0, epochs, data_dir=None, threads=None, backend=BACKEND)
    line = training.train(cell)
    assert line["backend"] == "jax"
    if method in data.MULTIPLY_ADDS:
        before, after = line["multiply_adds"]
        assert after / before == pytest.approx(1 - sparsity, abs=0.01)
    else:
        assert line["sigma"] == pytest.approx(sparsity, abs=0.005)
    assert line["top1"] > 0.8
    assert line["train_top1"] > 0.8
    assert ("dense_top1" in line) == (method in ("fine_tuning", "channels"))
    assert "bytes" not in line
    if method != "recipe":
        return
    # Another process, where there is no TensorFlow, has the same numbers.
    words = [EXAMPLES / "benchmarks", "--cell", json.dumps(dataclasses.asdict(cell))]
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, *map(str, words)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) | {"seconds": 0} == line | {"seconds": 0}


def test_images_of_a_cell(prepared, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    data = importlib.import_module("accuracy_data")
    cell = data.make_cell("cifar10_resnet18", "dense", 0.9, 0, data_dir=prepared, threads=None)
    assert (cell.epochs, cell.sparsity) == (120, 0)
    arrays = data.dataset(cell)
    assert (arrays.input_shape, arrays.augmented) == ((32, 32, 3), True)
    assert not data.dataset(data.make_cell("digits", "dense", 0.9, 0, data_dir=None, threads=None)).augmented
    batches, (x_test, _) = data.load(keras.utils.PyDataset, cell)
    assert batches[0][0].shape == (64, 32, 32, 3)
    np.testing.assert_allclose(x_test, arrays.standardized(arrays.x_test), atol=1e-5)


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's loop")
def test_device_loop():
    """Means over what it was given; penalties count; epochs that others have drawn are passed over."""
    x = np.arange(24, dtype="float32").reshape(12, 2) % 5
    y = np.arange(12) % 3
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1))])
    kernel = np.array([[1.0, 0, -1], [0.5, 0, 2]])
    model.set_weights([kernel, np.zeros(3)])
    model.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(batch)

    def fit(batch_size, seed, epochs, earlier=0):
        places = (x, y, batch_size, seed, epochs, 2, [Watch()], lambda key, images: images)
        return device_loop.fit(model, *places, earlier)

    logs = fit(4, 0, range(1))
    assert seen == [1, 2]  # three steps, two a call
    logits = x @ kernel
    losses = np.log(np.sum(np.exp(logits), 1)) - logits[np.arange(12), y]
    assert logs["loss"] == pytest.approx(np.mean(losses) + 0.1 * np.sum(kernel**2), rel=1e-5)
    assert logs["accuracy"] == pytest.approx(np.mean(np.argmax(logits, 1) == y))
    # Of eight out of twelve images, an epoch's loss tells which.
    one, other, shifted = fit(8, 0, range(3)), fit(8, 1, range(3)), fit(8, 0, range(1), earlier=2)
    assert one == shifted != other


def test_texts_of_pictures_do_not_overlap(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    plotting = importlib.import_module("plotting")
    assert plotting.apart([5.0, 30.0], 12, 0) == {0: 5, 1: 30}
    assert plotting.apart([30.0, 20.0, 22.0], 12, 0) == {1: 12, 2: 24, 0: 36}  # around the mean, in their order
    assert plotting.apart([1.0, 1.0, 40.0], 12, 4) == {0: 4, 1: 16, 2: 40}


def pages():
    """The Markdown files of the repository, by their places in it."""
    pages = itertools.chain(ROOT.glob("*.md"), *(ROOT.glob(f"{folder}/**/*.md") for folder in FOLDERS))
    return [page for page in sorted(pages) if EXAMPLES / "output" not in page.parents]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages(page):
    """Every relative link names a file of the repository, and its fragment a heading, as GitHub spells it."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, fragment = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{target} is not there"
        if fragment:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert fragment in slugs, f"{target}: {file.name} has {slugs}"


@pytest.mark.every
@pytest.mark.skipif(BACKEND != "tensorflow", reason="it exports, which needs TensorFlow")
def test_structured(tmp_path):
    results = tmp_path / "results.jsonl"
    arguments = ("--task", "digits", "--seed", 0, "--epochs", 48, "--results", results, "--output", tmp_path)
    methods = ("recipe", "channels", "channels_by_kernel")
    output = run("benchmarks/structured.py", *arguments, "--method", *methods).stdout
    assert re.search(r"│ channels +│ +[\d.]+ │", output)
    lines = {line["method"]: line for line in map(json.loads, results.read_text().splitlines())}
    assert list(lines) == ["dense", *methods]
    dense, by_kernel = (lines[method]["multiply_adds"] for method in ("dense", "channels_by_kernel"))
    assert by_kernel / dense == pytest.approx(0.333, abs=0.01)
    assert lines["recipe"]["sigma"] == pytest.approx(0.95, abs=0.005)
    assert lines["channels"]["parameters"] < 0.5 * lines["dense"]["parameters"]
    assert lines["channels"]["milliseconds"] < lines["dense"]["milliseconds"]
    for line in lines.values():
        assert line["top1"] > 0.8
        assert line["bytes"] in {file.stat().st_size for file in tmp_path.glob("*.tflite")}
        assert str(tmp_path) not in line["command"]


def test_accuracy_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    accuracy = importlib.import_module("accuracy")
    for arguments, message in (
        (("--sparsity", 95), "--sparsity must be above 0 and below 1; received 95.0"),
        (("--epochs", 1), "--epochs must be at least 2, one of them for fine-tuning; received 1"),
        (("--show", "--results", tmp_path / "none.jsonl"), "holds no results yet"),
        *(
            [(("--method", "tfmot"), "--method tfmot trains in Keras 2: run it with KERAS_BACKEND=tensorflow")]
            * (BACKEND == "jax")
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["accuracy.py", *map(str, arguments)])
        with pytest.raises(SystemExit, match="2"):
            accuracy.main()
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("sparsities", [(0.0,), (0.9,), (0.0, 0.9, 0.95)])
def test_accuracy_shows_what_is_there(tmp_path, monkeypatch, capsys, sparsities):
    """Dense training alone, without it, and methods of which one has a curve."""
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    accuracy = importlib.import_module("accuracy")
    results = tmp_path / "results.jsonl"
    lines = [
        {
            "task": "digits",
            "method": method,
            "sparsity": sparsity,
            "sigma": sparsity,
            "epochs": 2,
            "top1": 0.9,
            "seconds": 1,
        }
        for sparsity, method in zip(
            sparsities, ("recipe" if sparsities[0] else "dense", "recipe", "recipe"), strict=False
        )
    ]
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "--show", "--results", str(results)])
    accuracy.main()
    assert capsys.readouterr().out.count("digits") == len(sparsities)
    assert results.with_suffix(".png").stat().st_size > 5_000


def test_accuracy_shows_backends_and_types_apart(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    shown = importlib.import_module("accuracy_shown")
    line = {"task": "digits", "method": "recipe", "sparsity": 0.9, "sigma": 0.9, "epochs": 2, "top1": 0.9, "seconds": 1}
    places = [("tensorflow", "float32"), ("jax", "float32"), ("jax", "mixed_bfloat16")]
    table = shown.table([line | {"backend": backend, "dtype": dtype} for backend, dtype in places])
    assert list(table.columns[0].cells) == ["digits", "digits, jax", "digits, jax, mixed_bfloat16"]


def test_batches_depend_on_seed_and_epoch_alone(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    data = importlib.import_module("accuracy_data")

    def batch(seed, epochs):
        cell = data.Cell("digits", "dense", 0.0, seed, 20, None, 1)
        batches, _ = data.load(keras.utils.PyDataset, cell)
        for _ in range(epochs):
            batches.on_epoch_end()
        return batches[3]

    for images, labels in (batch(0, 0), batch(0, 2)):
        assert images.shape == (128, 8, 8, 1)
        assert images.dtype == np.float32
        assert labels.shape == (128,)
    np.testing.assert_array_equal(batch(0, 2)[0], batch(0, 2)[0])
    assert np.any(batch(0, 2)[1] != batch(0, 0)[1])
    assert np.any(batch(1, 0)[1] != batch(0, 0)[1])


def test_augmentation_crops_and_flips(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    data = importlib.import_module("accuracy_data")
    images = np.zeros((200, 8, 8, 1), np.uint8)
    images[:, 4, 2] = 9
    moved = data.augmented(images, np.random.default_rng(0))
    assert moved.shape == images.shape
    places = {tuple(place) for image in moved for place in np.argwhere(image[..., 0] == 9)}
    assert {row for row, _ in places} == set(range(8))  # 4 rows up or down
    assert {column for _, column in places} == set(range(8))  # 2 moved by up to 4, or its mirror 5
    assert all(np.count_nonzero(image) <= 1 for image in moved)


def test_step_time(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    step_time = importlib.import_module("step_time")
    model = small_network()
    measured = step_time.measure(model, rounds=2, eager=not COMPILES)
    optimizers = measured["optimizers"]
    assert list(optimizers) == list(step_time.OPTIMIZERS)
    assert min(of["seconds"] for of in optimizers.values()) > 0 < measured["copy"]
    assert optimizers[step_time.BASELINE]["ratio"] == 1
    size = 4 * sum(row.size for row in keras_rda.summary(model).rows)
    assert measured["parameters"] == size // 4
    slots = {name: of["slots"] for name, of in optimizers.items()}
    assert slots["SGD, momentum"] <= slots["MRDA"] < slots["MRDA, center initial"]
    assert slots["MRDA, center initial"] >= 2 * size > 2 * slots["ProxSGD"]
    assert step_time.report(measured)[0].row_count == len(step_time.OPTIMIZERS)
    optimizers["MRDA"]["ratio"] = 100
    assert "MRDA" in step_time.report(measured)[1]


def test_step_time_of_several_updates_in_a_call(monkeypatch):
    """As on a GPU: they are those of as many calls, and the time is that of one."""
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    step_time = importlib.import_module("step_time")
    model = small_network()
    measured = step_time.measure(model, 1, ["MRDA"], repeats=3, eager=not COMPILES)
    assert list(measured["optimizers"]) == [step_time.BASELINE, "MRDA"]
    assert json.loads(json.dumps(measured)) == measured
    optimizer = keras_rda.MRDA()
    gradients = [keras.ops.ones(v.shape) for v in model.trainable_variables]
    if BACKEND == "jax":  # a GPU's copy, on the CPU
        monkeypatch.setattr(step_time, "on_accelerator", lambda: True)
        monkeypatch.setattr(step_time, "LARGE", 1000)
        copy, moved = step_time.compiled_copy(10, 7)
        copy()
        assert moved == 2 * 4 * 1000 * 7
    slots = step_time.compiled_update(optimizer, model.trainable_variables, gradients, 3, not COMPILES)()
    assert int(slots[0][0] if BACKEND == "jax" else optimizer.iterations) == 3


@pytest.mark.skipif(BACKEND != "tensorflow", reason="trains on TensorFlow")
def test_overhead(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    overhead = importlib.import_module("overhead")

    def network(keras, layers, shape):
        return keras.Sequential([keras.Input(shape), layers.GlobalAveragePooling2D(), layers.Dense(10)])

    monkeypatch.setattr(overhead.data, "residual", network)
    monkeypatch.setattr(overhead.importlib.util, "find_spec", lambda name: None)  # a minute of another process
    ratios = overhead.epochs(2, 3, jit_compile=False)
    assert list(ratios) == list(overhead.OPTIMIZERS)
    assert ratios["SGD, momentum"] == 1
    assert min(ratios.values()) > 0
    clock = itertools.accumulate([0, 2, 1, 6, 1, 2, 1, 7, 1, 2, 1, 8])  # a takes 2 s, b 6, 7 and 8
    monkeypatch.setattr(overhead.time, "perf_counter", lambda: next(clock))
    assert overhead.in_turns({"a": lambda: None, "b": lambda: None}, 3) == {"a": 1, "b": 3.5}


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute")
def test_distributed(tmp_path):
    def train(*arguments, **options):
        return run("distributed.py", "--epochs", 5, *arguments, **options).stdout.splitlines()

    alone = train("--output", tmp_path / "alone.keras")
    together = train("--output", tmp_path / "together.keras", "--local-workers", 2)
    assert alone[-1].startswith("1 of 1 workers")
    assert together[-1].startswith("2 of 2 workers")
    ours, theirs = (re.findall(r"([\d.]+)(?: %|$)", lines[-1]) for lines in (together, alone))
    assert float(ours[0]) == pytest.approx(float(theirs[0]), abs=1.0)  # top-1, of 360 images
    assert float(ours[1]) == pytest.approx(float(theirs[1]), abs=0.001)
    assert float(ours[1]) == pytest.approx(0.9, abs=0.005)
    assert is_picture(tmp_path / "alone.png")
    assert is_picture(tmp_path / "together.png")

    # A worker of two is killed in the third epoch; started again, they end with the bits of those that were not.
    killed = ("--output", tmp_path / "killed.keras", "--backup", tmp_path / "backup.npz")
    command = [sys.executable, EXAMPLES / "distributed.py", "--epochs", "5", *killed, "--local-workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        next(line for line in launcher.stdout if line.startswith("epoch 2"))
        workers = pathlib.Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(workers[1]), signal.SIGKILL)
        assert launcher.wait() == 1
    assert not (tmp_path / "killed.keras").exists()

    # The second worker does not see the first one's backup.
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in (one, other)]
    workers = []
    for index, file in enumerate(("backup.npz", "no.npz")):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        alone = [sys.executable, EXAMPLES / "distributed.py", "--epochs", "5", "--backup", tmp_path / file]
        environment = {**os.environ, "TF_CONFIG": json.dumps(task)}
        workers.append(subprocess.Popen(alone, stderr=subprocess.PIPE, text=True, env=environment))
    for process in workers:
        assert "The workers have read different backups" in process.communicate(timeout=120)[1]
        assert process.returncode == 1

    again = train(*killed, "--local-workers", 2)
    assert [line.split(":")[0] for line in again[:-1]] == ["epoch 3", "epoch 4", "epoch 5"]
    assert not (tmp_path / "backup.npz").exists()
    models = [keras.models.load_model(tmp_path / name) for name in ("together.keras", "killed.keras")]
    for a, b in zip(*(model.variables + model.optimizer.variables for model in models), strict=True):
        np.testing.assert_array_equal(a, b)

    result = run("distributed.py", "--local-workers", 0, check=False)
    assert result.returncode == 2
    assert "--local-workers must be at least 1; received 0" in result.stderr
