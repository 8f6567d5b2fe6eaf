"""Fixtures. Run with KERAS_BACKEND=tensorflow, jax and torch."""

import contextlib
import importlib.metadata
import multiprocessing
import os
import pathlib
import sys

import keras
import numpy as np
import pytest
from helpers import BACKEND, KINDS, OPTIMIZERS, in_child
from hypothesis import settings

import keras_rda
from keras_rda.litert import aarch64, exporting, verification
from keras_rda.litert.machines import process

COMPILED = pathlib.Path(__file__).with_name("compiled_runner.py")

if BACKEND == "torch":
    import torch

    # Networks are tiny here, and processes that share two cores would wait for one another.
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

# Not the time of one example but its result: the first of a shape compiles. Derandomised, so that CI is repeatable.
settings.register_profile("tests", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("many", deadline=None, max_examples=2000)
settings.load_profile("tests")


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, default=100, help="damaged files for each reader")
    parser.addoption("--contract", type=pathlib.Path, help="folder for the table of test_combinations.py, as Markdown")


def pytest_terminal_summary(terminalreporter, config):
    """Write the contract's table: a row a cell of optimizer × mode × precision, a column a feature."""
    if config.option.contract is None:
        return
    table, numbers = {}, []
    for outcome in ("passed", "failed", "skipped"):
        reports = terminalreporter.getreports(outcome)
        # A module that is skipped whole has a report of its collection in the place of its tests'.
        reports = [report for report in reports if isinstance(report, pytest.TestReport) and report.user_properties]
        numbers.append(f"{len(reports)} {outcome}")
        for report in reports:
            for _, (optimizer, feature, precision, mode) in report.user_properties:
                reason = report.longrepr[2] if outcome == "skipped" else outcome
                table.setdefault((optimizer, mode, precision), {})[feature] = reason
    features = list(dict.fromkeys(feature for row in table.values() for feature in row))
    lines = [["optimizer", "mode", "precision", *features], ["---"] * (3 + len(features))]
    lines += [[*place, *(row.get(feature, "not run") for feature in features)] for place, row in table.items()]
    title = f"# The contract on {BACKEND}\n\nKeras {keras.version()}: {', '.join(numbers)}.\n\n"
    config.option.contract.mkdir(parents=True, exist_ok=True)
    (config.option.contract / f"{BACKEND}.md").write_text(
        title + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    )


@pytest.fixture(autouse=True)
def _fresh_state():
    keras.utils.clear_session(free_memory=False)  # names of layers start again; collecting garbage takes half a second
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_floatx("float32")


@contextlib.contextmanager
def exported_files(folder, wanted):
    """A list that grows with every export: (copies in `folder` of the files `wanted` of it, `Reference`, tolerances).

    `wanted` takes a `candidates.File` that was right and returns those to copy, none to leave it out. What is exported
    for microcontrollers is left out.
    """
    exported, original = [], exporting.check

    def check(reference, file, dense, tolerances, machine):
        result = original(reference, file, dense, tolerances, machine)
        if machine != "micro" and all(check.passed for check in result[0]) and (files := wanted(file)):
            paths = [folder / f"{len(exported)}-{number}.tflite" for number in range(len(files))]
            for path, each in zip(paths, files, strict=True):
                path.write_bytes(each.path.read_bytes())
            exported.append((paths, reference, tolerances))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "check", check)
        yield exported


@pytest.fixture(scope="module")
def runs_on_aarch64(tmp_path_factory):
    """Where AArch64 is set up, every file that the tests of a module export runs there too, in one process.

    For modules that export: `pytestmark = pytest.mark.usefixtures("runs_on_aarch64")`.
    """
    if BACKEND != "tensorflow" or not aarch64.is_ready():
        yield
        return
    with exported_files(tmp_path_factory.mktemp("aarch64"), lambda file: [file]) as exported:
        yield
    runs = aarch64.run([(path, reference.inputs) for (path,), reference, _ in exported]) if exported else []
    for run, (_, reference, tolerances) in zip(runs, exported, strict=True):
        assert not run.error
        assert verification.compare(reference.first_outputs(), run.outputs, tolerances).passed


@pytest.fixture(scope="module")
def runs_compiled(tmp_path_factory):
    """Every sparse file that the tests of a module export also runs in `CompiledModel`, where its dense twin does.

    LiteRT's newer entry points are where a release could stop to read sparse tensors. Tried: ai-edge-litert 2.3.0. It
    fails at some files whatever is in them: without operators, with a state, with int64, with outputs whose shape is
    computed from a free batch size.
    For modules that export: `pytestmark = pytest.mark.usefixtures("runs_compiled")`.
    """
    version = tuple(map(int, importlib.metadata.version("ai-edge-litert").split(".")[:2]))
    if BACKEND != "tensorflow" or version < (2, 3):  # where its Python interface tells no shapes
        yield
        return
    with exported_files(
        tmp_path_factory.mktemp("compiled"), lambda file: [] if file is file.twin else [file, file.twin]
    ) as exported:
        yield
    exported = [each for each in exported if not each[1].others]  # it resizes no file
    jobs = [(path, reference.few()[0]) for paths, reference, _ in exported for path in paths]
    runs = process.run(jobs, 0, 600, [sys.executable], (COMPILED, process.RUNNER.parent)) if jobs else []
    compared = 0
    for (paths, reference, tolerances), sparse, dense in zip(exported, runs[::2], runs[1::2], strict=True):
        if dense.error:
            continue
        assert not sparse.error, paths[0]
        expected = {name: output[: len(dense.outputs[name])] for name, output in reference.few()[1].items()}
        assert verification.compare(expected, sparse.outputs, tolerances).passed, paths[0]
        compared += 1
    assert compared * 2 >= len(exported), f"only {compared} of {len(exported)} dense files ran"


@pytest.fixture(params=OPTIMIZERS)
def make_optimizer(request):
    """Each optimizer in turn, as a function of keyword arguments."""
    return OPTIMIZERS[request.param]


@pytest.fixture(params=[pytest.param(o, marks=() if o in KINDS else pytest.mark.every) for o in OPTIMIZERS])
def make_optimizer_of_each_kind(request):
    """For promises that their common base class keeps: two optimizers by default, all with `-m every`."""
    return OPTIMIZERS[request.param]


@pytest.fixture
def digits():
    """The embedded training digits as float32 between 0 and 1, with their labels."""
    (images, labels), _ = keras_rda.datasets.load_digits()
    return (images / 16).astype("float32"), labels.astype("int32")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """The embedded digits, enlarged, in files like those that `python -m examples.paper prepare` writes."""
    folder = tmp_path_factory.mktemp("prepared")
    (x_train, y_train), (x_test, y_test) = keras_rda.datasets.load_digits()
    for name, size, channels in (("mnist", 28, 1), ("cifar10", 32, 3), ("cifar100", 32, 3)):

        def image(x, size=size, channels=channels):
            large = np.kron(15 * x, np.ones((1, 4, 4, 1), "uint8"))
            border = (32 - size) // 2
            return np.repeat(large[:, border : 32 - border, border : 32 - border], channels, -1)

        x = {"x_train": image(x_train[:64]), "x_test": image(x_test[:50])}
        np.savez(folder / f"{name}.npz", y_train=y_train[:64], y_test=y_test[:50], **x)
    return folder


@pytest.fixture(scope="module")
def run():
    """`in_child` from a process in which nothing was computed, however many tests ran in this one before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield lambda *arguments, **options: pool.apply(in_child, arguments, options)
