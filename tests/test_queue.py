"""The queue of the paper's experiments: its list, its order, its checkpoints and what carries it to another machine."""

import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import BACKEND, small_network, values

from examples.benchmarks import step_time
from examples.paper import checkpoint, commands, comparison, queue_list, results, run_queue, tables, training, transport
from examples.paper.__main__ import main

pytestmark = pytest.mark.skipif(BACKEND == "torch", reason="examples/paper trains on TensorFlow and JAX")
ROOT = pathlib.Path(__file__).parents[1]
SHORT = "[defaults]\nsubset = 32\nbatch_size = 16\nwidth = 2\n"


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def entry(table="table5", row="vgg16", column="rda", **options):
    """An entry of a list, of a small network unless told otherwise."""
    named = {"table": table, "row": row, "column": column} | options
    return "[[entry]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in named.items() if value != "")


def compared(task="digits", method="dense", **options):
    """An entry of a list that is cells of accuracy.py."""
    return entry(task=task, method=method, table="", row="", column="", **options)


def write_list(folder, *entries, head=SHORT):
    file = folder / "list.toml"
    file.write_text(head + "".join(entries))
    return file


def cell(table, row, column=""):
    return next(c for c in tables.TABLES[table][1] if (c.row, c.column) == (row, column))


def test_what_waits():
    """The order that the experiments were asked for in, each cell with its settings once."""
    runs = queue_list.read_list()
    assert len({run.key() for run in runs}) == len(runs)
    trained = [(run.settings, run.cell) for run in runs if isinstance(run, queue_list.TableRun)]
    assert all(settings.dtype == "mixed_bfloat16" for settings, _ in trained)
    first, *others = [settings for settings, _ in trained]
    assert (first.run.method, first.run.sparsity, first.epochs, first.seed) == ("recipe", 0.95, 120, 0)
    assert (first.augmentation, first.start, first.run.architecture) == ("standard", "gradient", "resnet18")
    assert [(s.run.method, s.run.penalty, s.run.gamma, s.epochs, s.augmentation, s.start) for s in others[:3]] == [
        ("rda", 1e-6, 1.0, 120, "none", "gradient"),
        ("rda", 1e-5, 1.0, 120, "none", "gradient"),
        ("rda", 1e-6, 1.0, 60, "standard", "weights"),
    ]
    assert {(s.augmentation, s.start, s.epochs) for s in others[3:]} == {("standard", "gradient", 120)}
    assert [run.network for run in runs if isinstance(run, queue_list.StepTime)] == ["resnet18", "resnet50"]
    cells = [run.cell for run in runs if isinstance(run, comparison.Comparison)]
    large_form = [c for c in cells if c.task == "cifar10_mobilenet_v1"]  # of mobilenet_cifar10.py
    assert [(c.method, c.sparsity) for c in large_form] == [("dense", 0), ("recipe", 0.9), ("channels_together", 0.5)]
    cells = [c for c in cells if c not in large_form]
    by_channels = [c for c in cells if c.method in comparison.accuracy_data.MULTIPLY_ADDS]
    others = ("cifar10_mobilenet_v2", "cifar10_squeeze_and_excite")
    assert len(by_channels) == 27  # networks, methods, seeds
    assert {(c.epochs, c.sparsity) for c in by_channels} == {(10, 0.667)}
    assert len([c for c in cells if c.task in others and c.method == "dense"]) == 6
    cells = [c for c in cells if c not in by_channels and c.task not in others]
    cells.sort(key=lambda c: c.task != "cifar10_resnet18")  # the others stand between them
    assert all((c.dtype, c.backend, c.threads) == ("mixed_bfloat16", BACKEND, None) for c in cells)
    large, small = cells[:21], cells[21:]
    assert [(c.method, c.sparsity, c.seed) for c in large[:7]] == [
        ("dense", 0, 0),
        *((method, sparsity, 0) for sparsity in (0.95, 0.98) for method in ("gmp", "acdc", "rigl")),
    ]
    assert {(c.task, c.epochs) for c in large} == {("cifar10_resnet18", 120)}
    assert {(c.task, c.epochs) for c in small} == {("cifar10", 10)}
    assert len(small) == 3 * (1 + 3 * 4)  # seeds, σ and methods
    seeds = [c.seed for c in small if c.method != "dense"]  # dense training comes with the channels
    assert seeds == sorted(seeds)
    of_table2 = [settings.run.gamma for settings, cell in trained if cell.row == "1e-06" and settings.run.gamma < 1]
    assert of_table2 == [number / 10 for number in range(1, 10)]  # γ = 1 is Table 1's
    recipes = [(s.run.sparsity, s.seed) for s, _ in trained if s.run.method == "recipe"]
    assert recipes == [(0.95, 0), (0.98, 0), (0.95, 1), (0.95, 2), (0.98, 1), (0.98, 2)]


def test_order_of_a_list(tmp_path):
    file = write_list(
        tmp_path,
        entry("table1", ["prox-sgd", "rda"], ["1e-06", "1e-02"], seed=[3, 1], purpose="why"),
        entry("table1", "rda", "1e-02", seed=1),  # there already
        entry("table4", "rda", "", seed=1, epsilon=1e-5, augmentation="none", start="weights"),
        compared(method=["recipe", "dense"], sparsity=[0.9, 0.5], seed=[1, 0], epochs=5, dtype="mixed_bfloat16"),
    )
    runs = queue_list.read_list(file)
    small = ", subset 32, width 2, batch_size 16"
    assert [str(run) for run in runs] == [
        *(
            f"table1 {row} {column} seed {seed}{small}"
            for row in ("prox-sgd", "rda")
            for column in ("1e-06", "1e-02")
            for seed in (3, 1)
        ),
        f"table4 rda seed 1{small}, augmentation none, epsilon 1e-05, start weights",
        *(
            f"digits {words}, epochs 5, dtype mixed_bfloat16"
            for seed in (1, 0)
            for words in (f"recipe σ 0.9 seed {seed}", f"dense seed {seed}", f"recipe σ 0.5 seed {seed}")
        ),
    ]
    assert runs[0].purpose == "why"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[entry]\n", "is no TOML"),
        ("runs = 3\n", r"takes a table \[defaults\] and tables \[\[entry\]\]; received \['runs'\]"),
        ("entry = 3\n", r"received \[3, {}\]"),
        ("defaults = 3\n", r"received \[\[\], 3\]"),
        (entry("table7"), "entry 1: table must be of .*received .'table7'"),
        (entry("table1", "rda", "1e-06") + entry("table1", "mrda"), "entry 2: row must be of .*received .'mrda'"),
        (entry("table1", "rda", 1e-6), "column must be of .*'1e-06'.*received .1e-06"),
        (entry(column="sgd", start="weights"), "start must be gradient where the method is not rda"),
        (entry(epochs=0), "epochs must be a whole number from 1; received 0"),
        (entry(width=1.5), "width must be a whole number from 1; received 1.5"),
        (entry(seed=-1), "seed must be a whole number from 0 to 4294967295; received -1"),
        (entry(augmentation="some"), "augmentation must be one of standard, none; received 'some'"),
        (entry(epsilon="small"), "epsilon must be a number; received 'small'"),
        (entry(epsilon=0), "epsilon must be a number above 0 and below 1; received 0.0"),
        ("entry = [3]\n", "entry 1: an entry is a table; received 3"),
        (compared("mnist"), "entry 1: task must be of .*'cifar10'.*received .'mnist'"),
        (compared(method="tfmot"), "method must be of .*'recipe'.*received .'tfmot'"),
        (compared(method=""), "method must be of .*received .None"),
        (compared(sparsity=[0.9, 95]), "sparsity must be a number above 0 and below 1; received 95"),
        (compared(epochs=1), "epochs must be a whole number from 2; received 1"),
        (compared(seed="one"), "seed must be a whole number from 0 to 4294967295; received 'one'"),
        (compared(dtype="float16"), "dtype must be one of float32, mixed_bfloat16; received 'float16'"),
        (compared(width=2), r"\['width'\] are none of \['task', 'method', "),
        (entry(epoch=3), r"\['epoch'\] are none of \['table', 'row', "),
        ('[[entry]]\nbenchmark = "speed"\n', "benchmark must be of .'step_time'"),
        ('[[entry]]\nbenchmark = "step_time"\nnetwork = "vgg"\n', "network must be of"),
        ('[[entry]]\nbenchmark = "step_time"\noptimizer = "sgd"\n', "optimizer must be of"),
        ('[[entry]]\nbenchmark = "step_time"\nrounds = 0\nepochs = 3\n', r"received rounds 0 and \['epochs'\]"),
    ],
)
def test_lists_that_are_none(text, message, tmp_path):
    file = write_list(tmp_path, text, head="")
    with pytest.raises(queue_list.BadList, match=message):
        queue_list.read_list(file)
    refused = invoke("queue", "--minutes", 1, "--list", file, "--output", tmp_path / "output")
    assert refused.exit_code == 1
    assert not (tmp_path / "output").exists()


@pytest.fixture
def small(monkeypatch):
    """A network that is compiled sooner than the paper's, in their place."""

    def make_model(settings, dataset):
        layers = keras.layers
        convolution = layers.Conv2D(4, 3, strides=4, use_bias=False)
        model = keras.Sequential([keras.Input(dataset.input_shape), convolution, layers.BatchNormalization()])
        model.add(layers.GlobalAveragePooling2D())
        model.add(layers.Dense(dataset.classes))
        return model

    monkeypatch.setattr(training, "make_model", make_model)


class Time:
    """A clock that every epoch of the queue moves on by ten seconds."""

    def __init__(self, monkeypatch):
        self.seconds, self.said = 0.0, []
        monkeypatch.setattr(run_queue.time, "monotonic", lambda: self.seconds)

    def report(self, text):
        self.said.append(text)


@pytest.fixture
def clock(monkeypatch):
    """Real training by a clock that each epoch moves on by ten seconds."""
    clock, original = Time(monkeypatch), training.Recorder.on_epoch_begin

    def on_epoch_begin(recorder, epoch, logs=None):
        clock.seconds += 10
        original(recorder, epoch, logs)

    monkeypatch.setattr(training.Recorder, "on_epoch_begin", on_epoch_begin)
    monkeypatch.setattr(run_queue.threading.Timer, "start", lambda timer: None)  # the watch goes by another clock
    return clock


def queue(runs, minutes, prepared, folder, clock):
    places = [folder / "checkpoints", folder / "output"]
    places[1].mkdir(exist_ok=True)
    return run_queue.Queue(runs, minutes, prepared, *places, clock.seconds, clock.report)


def test_a_run_that_cannot_end_is_put_back_where_a_shorter_one_can(prepared, tmp_path, clock, small):
    runs = queue_list.read_list(write_list(tmp_path, entry(epochs=20, purpose="long"), entry(column="sgd", epochs=4)))
    assert queue(runs, 105 / 60, prepared, tmp_path, clock).run() == []
    # After three epochs the long run is known to need 170 of the 75 seconds that are left; the other needs 40.
    said = [text.split(":")[0] for text in clock.said if not text.startswith("table")]
    long, short = [f"epoch {n}/20" for n in range(1, 21)], [f"epoch {n}/4" for n in range(1, 5)]
    assert said[: 3 + 4 + 3] == [*long[:3], *short, *long[3:6]]  # the last epoch that fits ends at 100 seconds
    assert clock.seconds == 100
    (line,) = results.read(tmp_path / "output" / "runs.jsonl")
    assert (line["method"], len(line["history"])) == ("sgd", 4)
    assert checkpoint.Checkpoint(tmp_path / "checkpoints", runs[0].settings).epochs() == 6
    assert any("put back, because it needs 2.8 minutes, and 1.2 are left" in text for text in clock.said)

    # Another machine goes on from what was taken home, with the same bits.
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "output").rename(other / "output")
    clock.said.clear()
    assert queue(runs[:1], 10, prepared, other, clock).run() == []
    assert "6 epochs are done" in clock.said[0]
    line, _, _ = training.train(runs[0].settings, prepared, tmp_path / "undisturbed")
    *_, brought = results.read(other / "output" / "runs.jsonl")
    assert [e["loss"] for e in brought["history"]] == [e["loss"] for e in line["history"]]
    assert [brought[name] for name in ("top1", "top5", "sigma")] == [line[name] for name in ("top1", "top5", "sigma")]
    assert "rounded" not in brought
    assert not checkpoint.Checkpoint(other / "checkpoints", runs[0].settings).folder.exists()


def test_a_comparison_that_cannot_end_is_not_begun(tmp_path, clock, monkeypatch):
    """It has no checkpoint, so it stops as soon as it is known to take too long."""

    def train(cell, watching):
        (watch,) = watching
        watch.set_params({"steps": 3})
        for epoch in range(cell.epochs):
            watch.on_epoch_begin(epoch)
            clock.seconds += 10
            watch.on_train_batch_end(2)  # which is not asked: the epoch ends
            watch.on_epoch_end(epoch, {"loss": 1.0, "accuracy": 0.5})
        return {"method": cell.method}

    monkeypatch.setattr(comparison.accuracy_training, "train", train)
    runs = queue_list.read_list(write_list(tmp_path, compared(epochs=[20, 4]), compared(seed=1, epochs=20)))
    assert queue(runs, 105 / 60, None, tmp_path, clock).run() == []
    said = [text.split(":")[0] for text in clock.said if text.startswith("epoch")]
    assert said == [f"epoch {n}/20" for n in (1, 2, 3)] + [f"epoch {n}/4" for n in (1, 2, 3, 4)]
    assert clock.said[-1] == "2 runs wait"
    text = (tmp_path / "output" / "runs.jsonl").read_text()
    assert text.count("\n") == 1
    assert '"benchmark": "accuracy", "method": "dense"' in text
    clock.said.clear()
    assert queue(runs[:1], 105 / 60, None, tmp_path, clock).run() == []  # nor where no other could
    assert [text.split(":")[0] for text in clock.said if text.startswith("epoch")] == said[:3]


def test_a_comparison_stops_when_the_time_is_over():
    class Clock:
        def is_over(self):
            return True

    watch = comparison.Watch(Clock(), 2)
    watch.set_params({"steps": 3})
    watch.on_train_batch_end(2)
    with pytest.raises(training.Paused):
        watch.on_train_batch_end(1)


def test_a_run_that_fails_leaves_the_time_to_the_others(prepared, tmp_path, clock, small):
    runs = queue_list.read_list(
        write_list(
            tmp_path,
            entry("table4", "recipe", "", epochs=1),  # too short to steer
            entry("table6", "imagenet", epochs=1),  # not there
            entry(epochs=1),
        )
    )
    failed = queue(runs, 1, prepared, tmp_path, clock).run()
    assert [str(run).split()[1] for run in failed] == ["recipe", "imagenet"]
    assert [line["architecture"] for line in results.read(tmp_path / "output" / "runs.jsonl")] == ["vgg16"]
    assert "0 runs wait, 2 failed" in clock.said


def test_a_network_not_seen_yet_counts_by_its_images(tmp_path):
    other = entry("table6", "mnist", epochs=5, subset=64)
    runs = queue_list.read_list(write_list(tmp_path, entry(epochs=3), other))
    waiting = run_queue.Queue(runs, 1, None, tmp_path, tmp_path, 0.0)
    assert waiting.needs(runs[1]) == 0
    waiting.seconds[runs[0].network()] = 2.0, 32
    assert [waiting.needs(run) for run in runs] == [6.0, 20.0]


def test_the_command(prepared, tmp_path, monkeypatch, small):
    model = small_network()
    small = keras.Model(model.inputs, model.outputs, name="resnet18")
    monkeypatch.setitem(step_time.NETWORKS, "resnet18", lambda: small)
    benchmark = '[[entry]]\nbenchmark = "step_time"\nnetwork = "resnet18"\noptimizer = "MRDA"\nrounds = 2\n'
    digits = compared(epochs=2)
    file = write_list(tmp_path, entry(epochs=1), benchmark, digits)
    ours = ("--results", tmp_path / "ours.jsonl", "--comparisons", tmp_path / "accuracy.jsonl")
    folders = ("--output", tmp_path / "output", "--checkpoints", tmp_path / "checkpoints")
    words = ("queue", "--list", file, "--data-dir", prepared, *folders, *ours)
    assert invoke(*words, "--minutes", "nan").exit_code == 2
    listed = invoke(*words, "--minutes", 0)  # says what waits
    assert listed.output.count("table5 vgg16 rda seed 0") == 1
    assert f"3 runs are listed, 0 are done, 3 wait, on {BACKEND}:" in listed.output
    done = invoke(*words, "--minutes", 10)
    assert done.exit_code == 0, done.output
    assert done.output.endswith("0 runs wait\n")
    lines = results.read(tmp_path / "output" / "runs.jsonl")
    assert [results.kind(line) for line in lines] == ["run", "step_time", "accuracy"]
    assert list(lines[1]["optimizers"]) == [step_time.BASELINE, "MRDA"]
    assert (lines[2]["backend"], lines[2]["threads"], len(lines[2]["versions"]) > 3) == (BACKEND, None, True)
    assert f"KERAS_BACKEND={BACKEND} python examples/benchmarks/accuracy.py --task digits" in lines[2]["command"]
    assert "3 runs are listed, 3 are done, 0 wait" in invoke(*words, "--minutes", 10).output

    # At home, twice.
    merge = ("merge", tmp_path / "output" / "runs.jsonl", *ours)
    assert invoke(*merge).output.count("new: ") == 3
    assert invoke(*merge).output.count("there already: ") == 3
    assert results.read(tmp_path / "ours.jsonl") == lines[:2]
    assert results.read(tmp_path / "accuracy.jsonl") == comparison.accuracy_data.read(tmp_path / "accuracy.jsonl")
    assert results.read(tmp_path / "accuracy.jsonl") == lines[2:]
    (tmp_path / "output" / "runs.jsonl").unlink()  # what is merged is done
    assert "3 runs are listed, 3 are done, 0 wait" in invoke(*words, "--minutes", 0).output
    text = (tmp_path / "tables.md").read_text()
    assert lines[0]["command"] in text
    assert "## Time of an update" in text
    assert f"| MRDA | {lines[1]['optimizers']['MRDA']['ratio']:.2f} |" in text
    for text, message in (
        ('{"format": 2, "benchmark": ["speed"]}\n', "line 1, is of the benchmark"),
        (json.dumps(lines[0] | {"top1": "high"}) + "\n", "['top1'] must be numbers"),
        ("\udc8d", "is no text of JSON lines"),
    ):
        (tmp_path / "output" / "runs.jsonl").write_bytes(text.encode(errors="surrogateescape"))
        assert message in invoke(*merge).output
    assert results.read(tmp_path / "ours.jsonl") == lines[:2]


def test_options_are_named_in_results_and_tables(prepared, tmp_path, small):
    file = tmp_path / "results.jsonl"
    words = ("table5", "--row", "vgg16", "--column", "rda", "--epochs", 1, "--subset", 32, "--batch-size", 16)
    words = (*words, "--width", 2, "--data-dir", prepared, "--results", file, "--output", tmp_path / "output")
    chosen = ("--augmentation", "none", "--epsilon", 1e-5, "--start", "weights")
    assert invoke(*words).exit_code == invoke(*words, *chosen).exit_code == 0
    plain, line = results.read(file)
    assert (plain["augmentation"], plain["epsilon"], plain["start"]) == ("standard", 1e-3, "gradient")
    assert (line["augmentation"], line["epsilon"], line["start"]) == ("none", 1e-5, "weights")
    assert "--augmentation none --epsilon 1e-05 --start weights --seed 0" in line["command"]
    assert plain["history"][0]["loss"] != line["history"][0]["loss"]
    captions = list(results.scales([line, plain]))
    assert [caption.partition(BACKEND)[2] for caption in captions] == [
        "",
        ", augmentation none, ε 1e-05, start weights",
    ]
    assert "start must be gradient" in invoke("table4", "--row", "sgd", "--start", "weights").output


def test_options_reach_the_network_and_the_data(prepared):
    settings = commands.settings(cell("table4", "rda"), 0, width=2, subset=32, augmentation="none", epsilon=1e-5)
    dataset = training.data.load("cifar10", prepared, 32, settings.augmentation)
    assert not dataset.augmented
    assert training.data.load("cifar10", prepared, 32).augmented
    model = training.make_model(settings, dataset)
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {layer.epsilon for layer in layers} == {1e-5}
    loaded = keras.models.model_from_json(model.to_json())  # a checkpoint keeps it
    assert {layer.epsilon for layer in loaded.layers if isinstance(layer, keras.layers.BatchNormalization)} == {1e-5}
    started = commands.settings(cell("table4", "rda"), 0, start="weights")
    assert training.make_optimizer(started, 10).start == "weights"


LEAVES = """
import sys, time
from examples.paper import queue_list, run_queue
run_queue.GRACE = 0
runs = queue_list.read_list(sys.argv[1])
run_queue.Queue(runs, 1 / 60, sys.argv[2], sys.argv[3], sys.argv[3], time.monotonic()).run()
print("came back")
"""


def test_a_call_that_cannot_be_interrupted_is_left_behind(prepared, tmp_path):
    """Compiling a whole ResNet18 takes more than the second that there is."""
    file = write_list(tmp_path, entry(epochs=100), head="[defaults]\nsubset = 64\nbatch_size = 16\n")
    done = subprocess.run(
        [sys.executable, "-c", LEAVES, file, prepared, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "The time is over in the middle of a call" in done.stdout
    assert "came back" not in done.stdout


def start_queue(prepared, folder, *arguments):
    words = [sys.executable, "-m", "examples.paper", "queue", "--data-dir", prepared, "--output", folder / "output"]
    words += ["--checkpoints", folder / "checkpoints", "--list", folder / "list.toml", *arguments]
    return subprocess.Popen(
        list(map(str, words)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


@pytest.mark.every
def test_killed_three_times(prepared, tmp_path, monkeypatch):
    """At random moments; the lines are those of an undisturbed queue."""
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    lines = {}
    random.seed(0)
    for name, kills in (("undisturbed", 0), ("killed", 3)):
        folder = tmp_path / name
        folder.mkdir()
        digits = entry(column=["sgd", "rda"], epochs=100)
        write_list(folder, entry("table4", ["recipe", "rda"], "", epochs=100), digits)
        for _ in range(kills):
            process = start_queue(prepared, folder, "--minutes", 10)
            for _ in range(random.randint(1, 140)):
                while not (said := process.stdout.readline()).startswith("epoch"):
                    assert process.poll() is None
            time.sleep(random.uniform(0, 0.2))  # between two lines
            process.send_signal(signal.SIGKILL)
            process.communicate()
            print(f"killed after {said.split(':')[0]}, {len(results.read(folder / 'output' / 'runs.jsonl'))} lines")
        process = start_queue(prepared, folder, "--minutes", 10)
        process.communicate()
        assert process.returncode == 0
        lines[name] = results.read(folder / "output" / "runs.jsonl")
    assert len(lines["killed"]) == len(lines["undisturbed"]) == 4
    for ours, theirs in zip(*lines.values(), strict=True):
        assert {name for name in ours if ours[name] != theirs[name]} <= {"seconds", "history"}
        for a, b in zip(ours["history"], theirs["history"], strict=True):
            assert a | {"seconds": 0} == b | {"seconds": 0}


@pytest.mark.every
def test_stops_in_time(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    write_list(tmp_path, entry("table4", "rda", "", epochs=100_000))
    start = time.monotonic()
    process = start_queue(prepared, tmp_path, "--minutes", 1)
    output = process.communicate()[0]
    seconds = time.monotonic() - start
    print(f"{seconds:.1f} s", output[-300:])
    assert process.returncode == 0
    assert 55 < seconds < 120
    assert "1 runs wait" in output
    assert (tmp_path / "output" / "checkpoint.json").exists()


def large_model():
    """With kernels of which some zeros are exact, and the slots of MRDA; 400 × 400 entries are rounded."""
    model = keras.Sequential([keras.Input((400,)), keras.layers.Dense(400), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    model.fit(np.random.default_rng(0).normal(size=(32, 400)), np.zeros((32, 2)), verbose=0)
    kernel = values([model.layers[0].kernel])[0]
    kernel[:, ::2] = 0
    model.layers[0].kernel.assign(kernel)
    return model


def test_a_large_checkpoint_goes_home_with_fewer_digits(tmp_path, monkeypatch):
    # Two arrays of 160,000 entries, 1.28 MB, of which 240,000 entries are not zero.
    settings = commands.settings(cell("table4", "rda"), 0)
    saved, model = checkpoint.Checkpoint(tmp_path / "here", settings), large_model()
    saved.save(model, [{"loss": 1.0}] * 7)
    for part in (400_000, 130_000, 80_000):
        monkeypatch.setattr(checkpoint, "COPY_PART", part)
        text = saved.write_copy(tmp_path / str(part))
        other = checkpoint.Checkpoint(tmp_path / f"there{part}", settings)
        if part == 80_000:
            assert "too large for a copy of 0 MiB" in text
            assert not checkpoint.Copy.is_in(tmp_path / str(part))
            continue
        files = [file.stat().st_size for file in (tmp_path / str(part)).iterdir()]
        assert max(files) <= part
        assert len(files) <= checkpoint.COPY_PARTS + 1
        other.take(checkpoint.Copy(tmp_path / str(part)))
        restored, history = other.restore()
        assert len(history) == 7
        ((epoch, digits),) = other.rounded or [(7, 23)]
        assert (epoch, digits == 23, digits >= 4) == (7, part == 400_000, True)
        for ours, theirs in zip(values(restored.variables), values(model.variables), strict=True):
            error = 0 if digits == 23 or theirs.size < checkpoint.LARGE else 2.0 ** -(digits + 1)
            np.testing.assert_allclose(ours, theirs, rtol=error, atol=0)
            np.testing.assert_array_equal(ours == 0, theirs == 0)
        assert (restored.optimizer.iterations == model.optimizer.iterations) == True  # noqa: E712 (a tensor)
        other.save(restored, history)
        assert json.loads((other.folder / "last" / "history.json").read_text())["rounded"] == other.rounded


def test_a_copy_of_another_run_is_left_alone(tmp_path):
    settings = commands.settings(cell("table4", "rda"), 0)
    saved = checkpoint.Checkpoint(tmp_path, settings)
    assert "no checkpoint" in saved.write_copy(tmp_path / "copy")
    assert not checkpoint.Copy.is_in(tmp_path / "copy")
    saved.save(small_network(), [{"loss": 1.0}])
    saved.write_copy(tmp_path / "copy")
    other = checkpoint.Checkpoint(tmp_path / "other", commands.settings(cell("table4", "rda"), 1))
    assert not other.is_of_same_run(checkpoint.Copy(tmp_path / "copy"))
    saved.save(small_network(), [{"loss": 2.0}] * 2)
    saved.take(checkpoint.Copy(tmp_path / "copy"))  # which is less far
    assert saved.epochs() == 2
    # Damaged, it is no reason to stop.
    (part,) = (tmp_path / "copy").glob("checkpoint-*")
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(training.data.WrongSettings, match=r"is damaged \(.* bytes\): bring them again"):
        checkpoint.Copy(tmp_path / "copy")
    runs = [queue_list.TableRun("table4", cell("table4", "rda"), settings, "")]
    again = run_queue.Queue(runs, 0, None, tmp_path, tmp_path / "copy", time.monotonic())
    with pytest.raises(
        run_queue.NotReady, match=r"bring them again\. Or delete .*checkpoint\.json, and its run begins"
    ):
        again.run()
    (tmp_path / "copy" / "checkpoint.json").unlink()
    again.run()
    assert checkpoint.Copy(tmp_path / "copy").epochs == 2


def test_folders_are_tried_before_the_first_run(tmp_path):
    def start(data_dir=None, output="output", checkpoints="checkpoints"):
        places = tmp_path / checkpoints, tmp_path / output
        return run_queue.Queue([], 0, data_dir, *places, time.monotonic(), lambda text: None)

    (tmp_path / "file").write_text("")
    for options, message in (
        ({"data_dir": tmp_path / "none"}, "--data-dir .*none is no folder"),
        ({"output": "file"}, "cannot be written to"),
        ({"checkpoints": "file"}, "cannot be written to"),
    ):
        with pytest.raises(run_queue.NotReady, match=message):
            start(**options).run()
    lock = start()._check_folders()
    with pytest.raises(run_queue.NotReady, match=r"Another queue uses .*checkpoints: wait for it"):
        start(output="other").run()
    lock.close()
    start(output="other").run()


def test_damaged_checkpoints_are_one_line(prepared, tmp_path, small):
    settings = queue_list.read_list(write_list(tmp_path, entry(epochs=3)))[0].settings
    saved = checkpoint.Checkpoint(tmp_path, settings)
    saved.save(small_network(), [{"loss": 1.0}])
    (saved.folder / "last" / "model.keras").write_bytes(b"PK")
    with pytest.raises(training.data.WrongSettings, match=r"is damaged \(.*\): delete it to begin anew"):
        saved.restore()
    (saved.folder / "last" / "history.json").write_text("{")
    assert saved.epochs() == 0
    with pytest.raises(training.data.WrongSettings, match=r"is damaged \(.*\): delete it to begin anew"):
        training.train(settings, prepared, tmp_path)


def test_interrupted_it_brings_its_checkpoint_home(prepared, tmp_path, small, monkeypatch):
    runs = queue_list.read_list(write_list(tmp_path, entry(epochs=50)))

    def report(text):
        if text.startswith("epoch 2/"):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run_queue.Queue(runs, 10, prepared, tmp_path, tmp_path / "home", time.monotonic(), report).run()
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoint.Copy(tmp_path / "home").epochs >= 2


def test_a_copy_of_another_version_stays_while_it_is_further(tmp_path, monkeypatch):
    settings = commands.settings(cell("table4", "rda"), 0)
    monkeypatch.setattr(checkpoint, "versions", lambda: {"keras": "0"})
    older = checkpoint.Checkpoint(tmp_path / "older", settings)
    older.save(small_network(), [{"loss": 1.0}] * 3)
    older.write_copy(tmp_path)
    monkeypatch.undo()
    runs, said = [queue_list.TableRun("table4", cell("table4", "rda"), settings, "")], []
    here = checkpoint.Checkpoint(tmp_path / "here", settings)
    for epochs, kept in ((1, 3), (4, 4)):
        here.save(small_network(), [{"loss": 1.0}] * epochs)
        run_queue.Queue(runs, 0, None, tmp_path / "here", tmp_path, time.monotonic(), said.append).run()
        assert checkpoint.Copy(tmp_path).epochs == kept
    assert "begins anew, and the copy stays while it is further: The copy was made by {'keras': '0'}" in said[0]


def test_what_is_left_behind_comes_home(tmp_path, monkeypatch):
    """In the middle of a call, and after a failure."""
    settings = commands.settings(cell("table4", "rda"), 0)
    checkpoint.Checkpoint(tmp_path, settings).save(small_network(), [{"loss": 1.0}] * 3)
    statuses, said = [], []
    monkeypatch.setattr(run_queue.os, "_exit", statuses.append)
    run = queue_list.TableRun("table4", cell("table4", "rda"), settings, "")
    left = run_queue.Queue([run], 1, None, tmp_path, tmp_path / "home", time.monotonic(), said.append)
    left._leave()
    assert checkpoint.Copy(tmp_path / "home").epochs == 3
    failed = run_queue.Queue([], 1, None, tmp_path, tmp_path / "failed", time.monotonic(), said.append)
    failed.failed.append(run)
    failed._leave()
    assert checkpoint.Copy(tmp_path / "failed").epochs == 3
    (tmp_path / "file").write_text("")
    run_queue.Queue([run], 1, None, tmp_path, tmp_path / "file", time.monotonic(), said.append)._leave()
    assert statuses == [0, 1, 1]
    assert said[-1].startswith("The checkpoint could not be copied: ")
    ended = run_queue.Queue([run], 0, None, tmp_path, tmp_path / "ended", time.monotonic(), said.append)
    ended.run()
    ended._leave()  # by then the other thread is about to end
    assert len(statuses) == 3


def test_pack(prepared, tmp_path, monkeypatch):
    """All but the wheels, which `-m every` downloads."""
    monkeypatch.setattr(transport, "_download_wheels", lambda root, folder, python: folder.mkdir())
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "runs.jsonl").write_text("")
    transport.pack(prepared, tmp_path / "bundle", "3.12", 10**6, ["mnist"], tmp_path / "home")
    with tarfile.open(fileobj=io.BytesIO(transport.join(tmp_path / "bundle", "bundle"))) as archive:
        names = set(archive.getnames())
    files = ("paper/queue.toml", "paper/run_queue.py", "paper/results/runs.jsonl", "benchmarks/step_time.py")
    files += ("device_loop.py", "benchmarks/accuracy_training.py", "benchmarks/results/accuracy.jsonl")
    assert {f"code/examples/{file}" for file in files} | {"data/mnist.npz", "output/runs.jsonl", "wheels"} <= names
    assert (tmp_path / "bundle" / "transport.py").exists()


def test_split_and_join(tmp_path):
    content = bytes(range(256)) * 10
    index = transport.split(io.BytesIO(content), tmp_path, "name", 1000)
    parts = [part["file"] for part in json.loads(index.read_text())["parts"]]
    assert [(tmp_path / part).stat().st_size for part in parts] == [1000, 1000, 560]
    assert transport.join(tmp_path, "name") == content
    second = tmp_path / parts[1]
    kept = second.read_bytes()
    second.write_bytes(kept[:-1] + b"?")
    with pytest.raises(transport.Incomplete, match=rf"Of 3 files {parts[1]} is damaged \(1000 of 1000 bytes\)"):
        transport.join(tmp_path, "name")
    second.unlink()
    with pytest.raises(transport.Incomplete, match=f"{parts[1]} is missing: bring them again"):
        transport.join(tmp_path, "name")
    second.write_bytes(kept)
    text = index.read_text()
    for damage, message in (
        (text[:-5], "is damaged"),
        (json.dumps({"parts": [{"file": "../name", "sha256": ""}]}), "is not the name of a file beside it"),
        (text.replace(json.loads(text)["sha256"], "0"), "does not belong to the files"),
    ):
        index.write_text(damage)
        with pytest.raises(transport.Incomplete, match=message):
            transport.join(tmp_path, "name")
    index.write_text(text)
    transport.split(io.BytesIO(content[:1500]), tmp_path, "name", 1000)
    assert len(list(tmp_path.iterdir())) == 3  # what it replaced is gone
    assert transport.join(tmp_path, "name") == content[:1500]


def script(*arguments, python=sys.executable, **options):
    return subprocess.run(list(map(str, [python, *arguments])), capture_output=True, text=True, **options)


def test_unpack_says_what_is_missing(tmp_path):
    """By the standard library alone, as it runs before anything is installed."""
    file = pathlib.Path(transport.__file__)
    words = ("-S", "-I", file, "unpack", tmp_path, "--to", tmp_path / "run")
    assert "bundle.json is missing" in script(*words).stderr
    transport.split(io.BytesIO(bytes(10)), tmp_path, "bundle", 10)
    next(tmp_path.glob("bundle-*")).unlink()
    assert "bundle-0-" in script(*words).stderr
    assert not (tmp_path / "run").exists()
    transport.split(io.BytesIO(bytes(10)), tmp_path, "bundle", 10, {"for": "3.7"})
    assert "The bundle is for Python 3.7, and this is" in script(*words).stderr
    (tmp_path / "run").mkdir()
    assert "exists already" in script(*words).stderr


@pytest.mark.every
@pytest.mark.skipif(BACKEND != "jax", reason="takes JAX to a machine without Keras")
def test_to_a_machine_with_jax_and_numpy_only(prepared, tmp_path):
    """From packing to a queue that ends, in a virtual environment without Keras and TensorFlow. Downloads packages."""
    bundle, run = tmp_path / "bundle", tmp_path / "run"
    words = ("-m", "examples.paper.transport", "pack", "--data-dir", prepared, "--output", bundle, "--part-mib", 1)
    packed = script(*words, cwd=ROOT, check=True).stdout
    assert len(packed.splitlines()) > 5
    script("-m", "venv", tmp_path / "bare", check=True)
    python = tmp_path / "bare" / "bin" / "python"
    script("-m", "pip", "install", "-q", "jax", "numpy", python=python, check=True)
    assert script("-c", "import keras", python=python).returncode == 1
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KERAS", "PYTHON"))}
    unpacked = script(bundle / "transport.py", "unpack", bundle, "--to", run, python=python, env=environment)
    assert unpacked.returncode == 0, unpacked.stderr
    *checked, command = unpacked.stdout.splitlines()
    assert "mnist.npz (64, 28, 28, 1) uint8" in "\n".join(checked)
    command = command.replace("MINUTES", "5")
    file = write_list(tmp_path, entry(epochs=1))
    done = subprocess.run(
        ["bash", "-c", f"{command} --list {file}"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout.endswith("0 runs wait\n"), done.stdout + done.stderr
    (line,) = results.read(run / "output" / "runs.jsonl")
    assert line["backend"] == "jax"


def test_a_copy_is_a_model_that_keras_reads(tmp_path):
    settings = commands.settings(cell("table4", "rda"), 0)
    saved, model = checkpoint.Checkpoint(tmp_path, settings), large_model()
    saved.save(model, [{"loss": 1.0}])
    saved.write_copy(tmp_path / "copy")
    (tmp_path / "copy.zip").write_bytes(transport.join(tmp_path / "copy", "checkpoint"))
    with zipfile.ZipFile(tmp_path / "copy.zip") as archive:
        archive.extractall(tmp_path / "extracted")
    read = keras.models.load_model(tmp_path / "extracted" / "model.keras")
    x = np.ones((1, 400))
    np.testing.assert_array_equal(read.predict(x, verbose=0), model.predict(x, verbose=0))
