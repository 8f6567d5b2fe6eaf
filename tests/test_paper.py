"""The paper's experiments, in a short form, as a user runs them: on real digits in the shape of the paper's images."""

import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import BACKEND, values

import keras_rda
from examples.paper import checkpoint, commands, data, results, tables, training
from examples.paper.__main__ import main

pytestmark = pytest.mark.skipif(BACKEND == "torch", reason="examples/paper trains on TensorFlow and JAX")
SHORT = ("--epochs", 1, "--subset", 32, "--batch-size", 16, "--width", 2)


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


DEFAULT = {"table1-rda-1e-06", "table5-vgg16-sgd", "table6-mnist-sgd"}


def places():
    """Every cell of every table with `-m every`; three of different networks, data sets and methods by default."""
    for name, (_, cells) in tables.TABLES.items():
        for cell in cells:
            place = f"{name}-{cell.row}-{cell.column}"
            if cell.run.dataset != "imagenet":
                yield pytest.param(name, cell, marks=() if place in DEFAULT else pytest.mark.every, id=place)


def test_every_row_has_its_optimizer():
    makers = {"rda": keras_rda.MRDA, "prox-sgd": keras_rda.ProxSGD, "sqrt-prox-sgd": keras_rda.SqrtProxSGD}
    for _, cells in tables.TABLES.values():
        for run in {cell.run for cell in cells}:
            optimizer = training.make_optimizer(training.Settings(run, run.epochs), 100)
            if run.method in makers:
                assert type(optimizer) is makers[run.method]
                assert float(optimizer.learning_rate) == pytest.approx(1 / run.gamma)
                assert optimizer.penalty.strength == run.penalty
                assert optimizer.weight_decay == run.weight_decay
            else:
                assert type(optimizer) is (keras_rda.XRDA if run.method == "recipe" else keras.optimizers.SGD)


@pytest.mark.parametrize(("table", "cell"), list(places()))
def test_every_row_runs(table, cell, prepared, tmp_path):
    file = tmp_path / "results.jsonl"
    column = ("--column", cell.column) if cell.column else ()
    arguments = (table, "--row", cell.row, *column, *SHORT, "--data-dir", prepared, "--results", file)
    if cell.run.method == "recipe":
        arguments = (*arguments, "--epochs", 20)
    done = run(*arguments, "--output", tmp_path / "output")
    assert done.exit_code == 0, done.output
    (line,) = results.read(file)
    assert results.matching([line], cell.run) == [line]
    epochs = 20 if cell.run.method == "recipe" else 1
    assert "; scaled: " + line["scaled"] in done.output
    of = f"{epochs} of {cell.run.epochs} epochs"
    assert line["scaled"] == f"{of}, 32 training images, first stage of 2 of 64 filters"
    assert [0 <= line["top1"] <= line["top5"] <= 1, line["backend"], len(line["history"])] == [True, BACKEND, epochs]
    assert not list((tmp_path / "output").iterdir())  # the checkpoint of a finished run
    # The recorded command is this run's: nothing is left for it to do.
    start, _, words = line["command"].partition(" -m examples.paper ")
    assert start == f"KERAS_BACKEND={BACKEND} python"
    again = run(*words.replace("DIR", str(prepared)).split(), "--results", file, "--output", tmp_path / "output")
    assert again.exit_code == 0, again.output
    assert "epoch 1/" not in again.output
    assert len(results.read(file)) == 1


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Sixteen embedded digits, half of them grey, in archives like ImageNet's, built by `tensorflow-datasets`."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("imagenet")
    (digits, _), _ = keras_rda.datasets.load_digits()
    pictures = []
    for number, digit in enumerate(np.kron(15 * digits[:16], np.ones((1, 30 + 2 * 4, 40, 1), "uint8"))):
        digit = np.repeat(digit, 3, -1) if number % 2 else digit
        pictures.append((f"picture_{number:02}.JPEG", tf.io.encode_jpeg(digit).numpy()))

    def archive(files):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, content in files:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return buffer.getvalue()

    classes = [(f"{name}.tar", archive(pictures[k::2])) for k, name in enumerate(("n01440764", "n15075141"))]
    (folder / "ILSVRC2012_img_train.tar").write_bytes(archive(classes))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(archive(pictures))
    builder = tfds.builder("imagenet2012", data_dir=folder)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    return folder


@pytest.mark.skipif(BACKEND != "tensorflow", reason="ImageNet is streamed by TensorFlow")
@pytest.mark.parametrize("column", ["rda", pytest.param("sgd", marks=pytest.mark.every)])
def test_imagenet_runs(column, imagenet, tmp_path):
    file = tmp_path / "results.jsonl"
    scale = ("--epochs", 1, "--subset", 8, "--batch-size", 4)
    arguments = ("--column", column, *scale, "--data-dir", imagenet, "--results", file, "--output", tmp_path / "output")
    refused = run("table6", "--row", "imagenet", *arguments, "--width", 8)
    assert "take --width 16 or more, or set TF_ENABLE_ONEDNN_OPTS=0" in refused.output
    done = run("table6", "--row", "imagenet", *arguments, "--width", 16)
    assert done.exit_code == 0, done.output
    (line,) = results.read(file)
    assert line["dataset"] == "imagenet"
    assert line["scaled"] == "1 of 120 epochs, 8 training images, first stage of 16 of 64 filters"
    assert 0 <= line["top1"] <= line["top5"] <= 1
    assert np.isfinite(line["history"][0]["loss"])
    dataset = data.load("imagenet", imagenet, 8)
    assert dataset.steps(4) == 2
    ((images, labels),) = dataset.test_batches(500)
    assert images.shape == (16, 224, 224, 3)
    assert images.min() < -1 < 1 < images.max()
    assert len(set(labels)) > 2  # of the thousand classes
    # Without augmentation the images are seen as those of the test are, which here are the same.
    for augmentation, equal in (("none", True), ("standard", False)):
        batches = data.load("imagenet", imagenet, 8, augmentation).stream(4, seed=0, epochs=range(2))
        for image in next(iter(batches))[0]:
            assert any(np.array_equal(image, other) for other in images) == equal


def settings(method="rda", epochs=3):
    cell = next(cell for cell in tables.TABLES["table4"][1] if cell.row == method)
    quick = dataclasses.replace(cell.run, architecture="vgg16")
    return training.Settings(quick, epochs, subset=64, width=2, batch_size=16)


@pytest.mark.parametrize(
    ("method", "checkpoint_seconds"),
    [("rda", 1e9), *(pytest.param(method, 0, marks=pytest.mark.every) for method in ("rda", "recipe"))],
)
def test_a_killed_run_goes_on_with_the_same_bits(method, checkpoint_seconds, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", checkpoint_seconds)
    epochs = 3 if method == "rda" else 10

    class Killed(Exception):
        pass

    def kill(text):
        if text.startswith("epoch 2/"):
            raise Killed

    whole, model, _ = training.train(settings(method, epochs), prepared, tmp_path / "whole", print)
    with pytest.raises(Killed):
        training.train(settings(method, epochs), prepared, tmp_path / "killed", kill)
    texts = []
    resumed, other, _ = training.train(settings(method, epochs), prepared, tmp_path / "killed", texts.append)
    assert len(texts) == epochs - (1 if checkpoint_seconds else 2)
    for name in ("top1", "top5", "sigma"):
        assert whole[name] == resumed[name]
    for a, b in zip(values(model.variables), values(other.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [epoch["loss"] for epoch in whole["history"]] == [epoch["loss"] for epoch in resumed["history"]]
    # Killed after its last epoch: nothing is left to train.
    again, *_ = training.train(settings(method, epochs), prepared, tmp_path / "whole", kill)
    assert again == whole


def test_crops_and_flips():
    images = np.random.default_rng(0).integers(0, 255, (5, 6, 7, 2)).astype("uint8")
    rows, columns, flips = np.array([[0, 4, 8, 3, 5], [4, 0, 8, 2, 1], [0, 1, 0, 1, 1]], "int32")
    ours = np.asarray(data.crop_and_flip(images, rows, columns, flips))
    bordered = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    for n in range(5):
        crop = bordered[n, rows[n] : rows[n] + 6, columns[n] : columns[n] + 7]
        np.testing.assert_array_equal(ours[n], crop[:, ::-1] if flips[n] else crop)


def test_top_of_ties_and_of_what_is_not_finite():
    class Model:
        def __init__(self, logits):
            self.predict_on_batch = lambda images: np.asarray(logits, "float32")[: len(images)]

    images, labels = np.zeros((3, 8, 8, 1), "uint8"), np.array([0, 6, 2])
    dataset = data.Arrays(images, labels, images, labels, 7, False)
    assert training.top(Model(np.zeros((3, 7))), dataset) == (1 / 3, 2 / 3)  # a dead network names class 0
    assert training.top(Model(np.full((3, 7), np.nan)), dataset) == (0, 0)
    assert training.top(Model(np.eye(7)[[0, 6, 1]]), dataset) == (2 / 3, 1)


def test_render(tmp_path):
    file = tmp_path / "results.jsonl"
    assert run("render", "--results", file).exit_code == 1
    cell = next(cell for cell in tables.TABLES["table5"][1] if (cell.row, cell.column) == ("vgg16", "rda"))
    chosen = training.Settings(cell.run, 2, subset=32)
    epoch = {"loss": 1.0, "top1": 0.3, "top5": 0.8, "sigma": 0.5, "seconds": 1.0}
    line = chosen.flat() | epoch | {"history": [epoch] * 2, "scaled": chosen.scaled()}
    line |= {
        "device": "2 × x86_64",
        "versions": {},
        "constants": {},
        "command": commands.command_line("table5", cell, chosen),
    }
    results.append(file, line)
    same = tables.TABLES["table4"][1][2].run  # of ResNet18, which stands in five tables
    for seed, top1 in ((1, 0.5), (2, 0.6), (1, 0.8)):  # of equal seeds the newest counts
        results.append(file, line | {"architecture": same.architecture, "seed": seed, "top1": top1, "sigma": 0.93})
    done = run("render", "--results", file, "--output", tmp_path)
    assert done.exit_code == 0
    assert "The paper's tables" in done.output
    text = (tmp_path / "tables.md").read_text()
    row = "| rda |  | 70.00 ± 14.14 * | 90.67 |"  # far from the paper's, its σ is not
    (shown,) = (found for found in text.splitlines() if found.startswith(row))
    assert "| 0.930 ± 0.000 | 0.94 | 2 1 |" in shown or "| 0.930 ± 0.000 | 0.94 | 1 2 |" in shown
    assert f"| vgg16 | rda | {100 * line['top1']:.2f} * | 89.01 |" in text
    assert line["command"] in text
    assert text.count("not run") > 100
    assert "Not run with " in text
    assert text.rstrip().endswith(": table3.")
    (picture,) = tmp_path.glob("*.png")  # of the other tables one cell is there
    assert picture.name == f"table5-2-epochs-32-images-batches-128-float32-{BACKEND}.png"
    assert f"({picture.name})" in text
    # The paper's scale stands first, whenever it was run.
    full = training.Settings(cell.run, cell.run.epochs)
    results.append(file, line | full.flat() | {"scaled": ""})
    assert [caption.split(";")[0] for caption in results.scales(results.read(file))] == [
        "the paper's scale",
        "scaled: 2 epochs, 32 training images",
    ]
    results.append(file, line | training.Settings(same, 120).flat() | {"scaled": ""})
    assert run("render", "--results", file, "--output", tmp_path).exit_code == 0
    assert {picture.name, "sigma.png"} < {plot.name for plot in tmp_path.glob("*.png")}


def test_lines_that_a_kill_has_cut_off(tmp_path):
    file = tmp_path / "results.jsonl"
    settings = training.Settings(tables.TABLES["table4"][1][0].run, 1)
    line = {name: 0 for name in results.NEEDED["run"]} | settings.flat() | {"device": "2 × x86_64", "constants": {}}
    line["command"] = "python"
    results.append(file, line)
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:40])
    with pytest.warns(UserWarning, match="the last line is cut off"):
        assert len(results.read(file)) == 1
    results.append(file, line | {"seed": 1})  # in its place
    assert [found["seed"] for found in results.read(file)] == [0, 1]
    file.write_bytes(whole + whole[: whole.index(b"\\u") + 3])  # in the middle of a letter
    with pytest.warns(UserWarning, match="the last line is cut off"):
        assert len(results.read(file)) == 1
    file.write_bytes(whole.rstrip(b"\n"))  # only the end of the line is missing
    results.append(file, line | {"seed": 1})
    assert [found["seed"] for found in results.read(file)] == [0, 1]
    other = dataclasses.replace(settings, seed=1)
    assert results.find(results.read(file), other)["seed"] == 1
    assert results.find(results.read(file), dataclasses.replace(settings, width=32)) is None
    for damage, message in ((b"{\n" + whole, "line 1, is no JSON"), (b'{"format": 2}\n', "lacks .'method'")):
        file.write_bytes(damage)
        with pytest.raises(ValueError, match=message):
            results.read(file)


def test_other_constants_are_another_run(tmp_path, monkeypatch):
    cell = next(cell for cell in tables.TABLES["table4"][1] if cell.row == "sgd")
    settings = training.Settings(cell.run, 1)
    line = {name: 0 for name in results.NEEDED["run"]} | settings.flat() | {"constants": settings.constants()}
    assert results.find([line], settings) is line
    monkeypatch.setattr(training, "SGD_RATE", 0.2)
    assert results.find([line], settings) is None


def test_bad_input(prepared, tmp_path):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "cifar10.npz").write_bytes((prepared / "cifar10.npz").read_bytes()[:5000])
    other = tmp_path / "other.jsonl"
    other.write_text('{"format": 0}\n')
    arguments = ("--data-dir", prepared, "--results", other, "--output", tmp_path)
    none = (*arguments[:2], "--results", tmp_path / "no.jsonl")
    for words, message in (
        (("table4", "--row", "mrda", *arguments), "'mrda' is not one of 'sqrt-prox-sgd', 'prox-sgd', 'rda', 'sgd'"),
        (("table7",), "No such command 'table7'"),
        (("table4", *arguments), "line 1, is of another version (format 2 is expected)"),
        (("table4", *none, "--subset", 5), "fewer than a batch of 128"),
        (("table4", *none, "--subset", 65), "There are 64 training images: a subset of 65 is none"),
        (
            ("table4", "--data-dir", tmp_path, "--results", tmp_path / "no.jsonl"),
            "python -m examples.paper prepare cif",
        ),
        (("prepare", "cifar10", "--data-dir", tmp_path, "--output", tmp_path), "holds no prepared 'cifar10"),
        (("table4", *none[2:], "--data-dir", tmp_path / "damaged"), "npz is damaged"),
        (("table4", "--row", "recipe", *none, *SHORT), "needs 40 batches in all"),
        (("table4", "--row", "recipe", *none, *SHORT, "--epochs", 20, "--width", 1), "larger --width"),
        (("table4", *none, "--seed", -1), "0<=x<=4294967295"),
    ):
        done = run(*words)
        assert done.exit_code in (1, 2)
        assert not isinstance(done.exception, ValueError)
        assert message in done.output
    assert other.read_text() == '{"format": 0}\n'
    assert not (tmp_path / "no.jsonl").exists()


def test_another_version_does_not_go_on(prepared, tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(10)])
    checkpoint.Checkpoint(tmp_path, settings()).save(model, [])
    monkeypatch.setattr(checkpoint, "versions", lambda: {"keras": "0"})
    for _ in range(2):
        with pytest.raises(data.WrongSettings, match=r"was made by .*, and these are .*: delete it to begin anew"):
            training.train(settings(), prepared, tmp_path)
        (history,) = tmp_path.rglob("history.json")
        history.write_text("[]")  # as no version with settings wrote it


def test_bfloat16(prepared, tmp_path):
    try:
        _, model, _ = training.train(
            dataclasses.replace(settings(epochs=1), dtype="mixed_bfloat16"), prepared, tmp_path
        )
    finally:
        keras.config.set_dtype_policy("float32")
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
    assert {str(variable.dtype) for variable in model.optimizer.variables} <= {"float32", "int32", "int64"}
    assert model.layers[2].compute_dtype == "bfloat16"
    assert model.output.dtype == "float32"


def test_too_little_room(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"need up to .* has 0 MB left: choose another --output"):
        training.train(settings(), prepared, tmp_path)
    # What its own checkpoints take is not asked for again.
    own = checkpoint.Checkpoint(tmp_path, settings())
    (own.folder / "last").mkdir()
    (own.folder / "last" / "model.keras").write_bytes(bytes(2_000_000))
    own.check_room(keras.Sequential([keras.Input((100,)), keras.layers.Dense(300)]))


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's route")
def test_runs_where_there_is_no_tensorflow(prepared, tmp_path):
    script = (
        "import sys, runpy; sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None; "
        "sys.argv[0] = 'paper'; runpy.run_module('examples.paper', run_name='__main__')"
    )
    file = tmp_path / "results.jsonl"
    arguments = (*SHORT, "--data-dir", prepared, "--results", file, "--output", tmp_path)
    row = ("table5", "--row", "vgg16", "--column", "rda")
    subprocess.run([sys.executable, "-c", script, *map(str, (*row, *arguments))], check=True, env=os.environ)
    assert json.loads(file.read_text())["backend"] == "jax"
    done = run("table6", "--row", "imagenet", *arguments)
    assert "run this row with KERAS_BACKEND=tensorflow" in done.output
