"""The command line: what it prints, and that errors are one line and exit status 1."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import BACKEND

import keras_rda
from keras_rda import cli
from keras_rda.litert import aarch64

layers = keras.layers
pytestmark = [
    pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras exports LiteRT on TensorFlow"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of TensorFlow's converter
    pytest.mark.usefixtures("runs_on_aarch64", "runs_compiled"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder, the working directory, with a model in it of which half of the filters are dead."""
    monkeypatch.chdir(tmp_path)
    model = keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(32, 3, name="conv"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(10, name="dense"),
        ]
    )
    kernel = keras.ops.convert_to_numpy(model.get_layer("conv").kernel).copy()
    kernel[..., ::2] = 0
    model.get_layer("conv").kernel.assign(kernel)
    model.save("model.keras")
    return tmp_path


def run(*arguments, code=0):
    """Exit code, standard output and standard error of a command."""
    result = CliRunner().invoke(cli.main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    if code:
        assert isinstance(result.exception, SystemExit)
        return result.stderr
    return result.stdout


def test_from_model_to_verified_file(folder):
    table = run("inspect", "model.keras")
    assert "conv/kernel" in table
    *_, (*all_weights, _), (*kernels, _) = [line.split() for line in table.strip().splitlines()]
    assert (all_weights[0], kernels[0]) == ("all", "kernels")
    assert kernels[-1] == f"{keras_rda.sparsity(keras.models.load_model('model.keras'), kernels_only=True):.4f}"
    rows = json.loads(run("inspect", "model.keras", "--json"))
    assert rows[0]["sparsity"] == 0.5
    assert "32 → 16" in run("compress", "model.keras", "small.keras")
    assert "32 → 24" in run("compress", "model.keras", "dozens.keras", "--multiple-of", "12")
    assert "0 is not in the range" in run("compress", "model.keras", "x.keras", "--multiple-of", "0", code=2)
    assert "relu" not in run("compress", "model.keras", "folded.keras", "--fold-batch-norm")
    plain = json.loads(run("export", "small.keras", "small.tflite", "--json", "--html", "report.html"))
    assert plain["bytes"] == (folder / "small.tflite").stat().st_size
    assert "<!doctype html>" in (folder / "report.html").read_text()
    tensors = json.loads(run("inspect", "small.tflite", "--json"))["tensors"]
    assert [tensor["operator"] for tensor in tensors] == ["CONV_2D", "FULLY_CONNECTED"]
    head, *_, last, gain = run("inspect", "small.tflite").splitlines()
    assert head.split()[0] == "tensor"  # names of the file's own
    assert last.rstrip().endswith("operators left out")
    assert gain == f"{plain['bytes']:,} bytes; shrink would not make it smaller"
    assert run("verify", "model.keras", "small.tflite").count("passed") == 2
    checks = json.loads(run("verify", "model.keras", "small.tflite", "--json"))
    assert [check["passed"] for check in checks] == [True, True]
    run("export", "model.keras", "other.tflite")
    table = run("benchmark", "small.tflite", "other.tflite", "--seconds", "0.05")
    assert table.count(".tflite") == 2
    (latency,) = json.loads(run("benchmark", "small.tflite", "--seconds", "0.05", "--json"))
    assert 0 < latency["lower"] <= latency["median"] <= latency["upper"]
    assert sorted(path.name for path in folder.iterdir()) == [
        *("dozens.keras", "folded.keras", "model.keras", "other.tflite", "report.html", "small.keras", "small.tflite")
    ]


def test_quantized_with_representative_data(folder):
    images = np.random.default_rng(0).uniform(-1, 1, (10, 8, 8, 3)).astype("float32")
    np.save("images.npy", images)
    np.savez("images.npz", keras_tensor=images)
    for name in ("images.npy", "images.npz"):
        run("export", "model.keras", "int8.tflite", "--quantize", "int8", "--representative-data", name)
        assert run("verify", "model.keras", "int8.tflite").count("passed") == 2
    assert "needs representative_data" in run("export", "model.keras", "x.tflite", "--quantize", "int8", code=1)


def test_sizes_of_inputs(folder):
    text, image = keras.Input((None,), dtype="int32", name="text"), keras.Input((None, None, 3), name="image")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(5, 4)(text))
    model = keras.Model([text, image], layers.Add()([x, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))]))
    model.save("open.keras")
    shapes = ["--input-shape", "text=6", "--input-shape", "image=8,8,3"]
    assert json.loads(run("export", "open.keras", "open.tflite", *shapes, "--json"))["path"] == "open.tflite"
    for wrong in (["--input-shape", "text"], ["--input-shape", "6", *shapes]):
        assert "takes" in run("export", "open.keras", "other.tflite", *wrong, code=2)
    assert "no inputs of the model" in run("export", "open.keras", "other.tflite", "--input-shape", "words=6", code=1)


@pytest.mark.parametrize("command", ["", "inspect", "compress", "export", "shrink", "verify", "benchmark"])
def test_help(command):
    text = run(*command.split(), "--help")
    assert "Usage:" in text
    assert "..." not in text.partition("Commands:")[2]  # each command in a line


def test_wrong_pair_fails(folder):
    small = keras.Sequential([layers.Input((5, 5, 3)), layers.Flatten(), layers.Dense(10)])
    keras_rda.export(small, "small.tflite")
    assert "received (2, 8, 8, 3)" in run("verify", "model.keras", "small.tflite", code=1)
    other = keras.Sequential([layers.Input((8, 8, 3)), layers.Flatten(), layers.Dense(10)])
    keras_rda.export(other, "other.tflite")
    message = run("verify", "model.keras", "other.tflite", code=1)
    assert message.splitlines()[-1] == "Error: other.tflite does not compute what model.keras does."


@pytest.mark.skipif(not aarch64.is_ready(), reason="AArch64 is not set up: python3 -m keras_rda.litert.aarch64")
def test_verify_on_aarch64(folder):
    run("export", "model.keras", "model.tflite")
    assert "aarch64" in run("verify", "model.keras", "model.tflite", "--machine", "aarch64")


@pytest.mark.parametrize(
    "command", ["inspect FILE", "compress FILE out.keras", "export FILE out.tflite", "verify FILE FILE"]
)
@pytest.mark.parametrize("name", ["cut.keras", "text.keras", "model.h5"])
def test_damaged_models_end_in_one_line(folder, command, name):
    content = (folder / "model.keras").read_bytes()
    (folder / "cut.keras").write_bytes(content[: len(content) // 2])
    (folder / "text.keras").write_text("no model")
    (folder / "model.h5").write_text("no model")
    message = run(*command.replace("FILE", name).split(), code=1)
    assert message.startswith("Error: ")
    assert message.count("\n") == 1
    assert not list(folder.glob("out.*"))


@pytest.mark.parametrize(
    "command", ["inspect FILE", "benchmark FILE", "verify model.keras FILE", "shrink FILE x.tflite"]
)
def test_damaged_files_end_in_one_line(folder, command):
    (folder / "text.tflite").write_text("no model at all")
    message = run(*command.replace("FILE", "text.tflite").split(), code=1)
    assert message == "Error: The file 'text.tflite' is not a LiteRT model: the identifier 'TFL3' is missing.\n"


def test_wrong_words_and_missing_files_are_explained(folder):
    assert "No such command 'prune'" in run("prune", code=2)
    assert "'missing.keras' does not exist" in run("inspect", "missing.keras", code=2)
    assert "must end in '.keras'; received 'out.h5'" in run("compress", "model.keras", "out.h5", code=2)
    assert "must end in '.tflite'" in run("export", "model.keras", "out.lite", code=1)
    assert "does not exist; create it first" in run("export", "model.keras", "nowhere/out.tflite", code=1)
    assert "does not exist; create it first" in run("compress", "model.keras", "nowhere/out.keras", code=1)
    assert "create it first" in run("export", "model.keras", "out.tflite", "--html", "nowhere/out.html", code=1)
    assert not (folder / "out.tflite").exists()
    (folder / "data.npy").write_text("no array")
    data = ["--quantize", "int8", "--representative-data", "data.npy"]
    assert "is no '.npy' or '.npz' file of numbers" in run("export", "model.keras", "out.tflite", *data, code=1)
    assert "'int4' is not one of" in run("export", "model.keras", "out.tflite", "--quantize", "int4", code=2)


def test_untrusted_models_run_no_code(folder):
    """A Lambda layer carries Python code; safe mode refuses it before it can run."""
    model = keras.Sequential(
        [layers.Input((3,)), layers.Lambda(lambda x: __import__("pathlib").Path("ran").touch() or x)]
    )
    model.save("lambda.keras")
    (folder / "ran").unlink()  # building the model ran it
    message = run("compress", "lambda.keras", "out.keras", code=1)
    assert message.startswith("Error: 'lambda.keras' cannot be loaded: it carries Python code (a Lambda layer)")
    assert message.count("\n") == 1
    assert not (folder / "ran").exists()


def test_failed_save_keeps_the_previous_model(folder, monkeypatch):
    (folder / "small.keras").write_text("from before")
    before = sorted(folder.iterdir())

    def half(model, path):
        path.write_text("half of a mod")
        raise OSError("No space left on device")

    monkeypatch.setattr(keras.Model, "save", half)
    assert run("compress", "model.keras", "small.keras", code=1) == "Error: No space left on device\n"
    assert (folder / "small.keras").read_text() == "from before"
    assert sorted(folder.iterdir()) == before


def test_command_is_installed():
    result = subprocess.run(
        [sys.executable, "-c", "from importlib.metadata import entry_points as e; print(e(name='keras-rda'))"],
        capture_output=True,
        text=True,
    )
    assert "keras_rda.cli:run" in result.stdout
