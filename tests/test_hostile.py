"""Damaged files and files made up to harm: an error or a right answer, never a hang, a crash, or a wrong file.

`--fuzz 10000` tries that many of each kind instead of a hundred.
"""

import collections
import contextlib
import io
import json
import os
import pathlib
import signal
import sys
import time
import warnings
import zipfile

import flatbuffers
import keras
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import BACKEND, compiled, small_network, state

import keras_rda
from keras_rda import cli
from keras_rda.litert import decode, flatbuffer, metadata, shrinking, xnnpack
from keras_rda.litert import graph as litert_graph
from keras_rda.output import one_line

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, so that each needs no imports"),
    pytest.mark.usefixtures("runs_on_aarch64", "runs_compiled"),
]
litert = pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras exports LiteRT on TensorFlow")
BATCH = 50  # damaged models that one process reads
NUMBERS = (0, 1, 2, 3, 127, 255, 2**15, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def damaged(content, random):
    """Some bytes, integers or stretches of `content` changed, or an end of it missing."""
    content = bytearray(content)
    for _ in range(random.integers(1, 5)):
        place, kind = int(random.integers(len(content))), random.integers(8)
        if kind < 2:
            content[place] = random.integers(256)
        elif kind < 3:
            content[place] ^= 1 << random.integers(8)
        elif kind < 6:  # an offset, a length or an index, where it lies in most formats
            place = min(place // 4 * 4, max(0, len(content) - 4))
            near = int.from_bytes(content[place : place + 4], "little") + int(random.integers(-8, 9))
            number = random.choice([*NUMBERS, len(content), near % 2**32])
            content[place : place + 4] = int(number).to_bytes(4, "little")
        elif kind < 7:
            length, source = int(random.integers(1, 64)), int(random.integers(len(content)))
            stretch = content[source : source + length]
            content[place : place + len(stretch)] = stretch
        elif random.random() < 0.2:
            del content[max(place, 1) :]
    return bytes(content)


def values_changed(value, random, share):
    """A copy of a JSON value with some of its parts replaced by others, or gone."""
    if random.random() < share:
        others = (None, True, -1, 0, 1, 7, 1e300, float("nan"), "", "relu", "os", "Dense", "__init__", [], [1, -2], {})
        return others[random.integers(len(others))]
    if isinstance(value, dict):
        return {k: values_changed(v, random, share) for k, v in value.items() if random.random() > share / 4}
    if isinstance(value, list):
        return [values_changed(v, random, share) for v in value]
    return value


def damaged_model(content, random):
    """A `.keras` file, damaged as a whole or in one of its members; then the archive itself is whole."""
    kind = random.integers(4)
    if kind == 0:
        return damaged(content, random)
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new:
        for name in old.namelist():
            member = old.read(name)
            if kind == 1 and name == "config.json":
                member = json.dumps(values_changed(json.loads(member), random, 10 ** random.uniform(-3, -1))).encode()
            elif name.endswith({2: "config.json", 3: ".h5"}.get(kind, "/")):
                member = damaged(member, random)
            new.writestr(name, member)
    return result.getvalue()


@contextlib.contextmanager
def at_most(seconds):
    def stop(number, frame):
        raise TimeoutError("a hang")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def read_or_refused(read, originals, count):
    """Damage the originals in turns and count how `read` takes that; fail on all but its end or a ValueError."""
    found = collections.Counter()
    for seed in range(count):
        content = damaged(originals[seed % len(originals)], np.random.default_rng(seed))
        try:
            with at_most(10):
                read(content)
            found["read"] += 1
        except ValueError:
            found["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    print(dict(found))
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small trained-looking model, and LiteRT files of it: sparse, int8, dense."""
    folder = tmp_path_factory.mktemp("files")
    keras.utils.set_random_seed(0)
    model = small_network()
    for layer in (model.layers[0], model.layers[-1]):
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        layer.kernel.assign(np.where(np.random.default_rng(0).random(kernel.shape) < 0.9, 0, kernel))
    model.save(folder / "model.keras")
    if BACKEND == "tensorflow":
        data = np.random.default_rng(0).uniform(-1, 1, (20, 8, 8, 1)).astype("float32")
        keras_rda.export(model, folder / "sparse.tflite")
        keras_rda.export(model, folder / "int8.tflite", quantize="int8", representative_data=data)
        model.export(str(folder / "dense.tflite"), format="litert", verbose=False)
        decoded, _ = decode.encode(flatbuffer.read(folder / "dense.tflite"))
        (folder / "micro.tflite").write_bytes(flatbuffer.pack(decoded))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- LiteRT files ----------------------------------------------------------------------------------------------------


def look_into(content):
    """All that the package reads out of a LiteRT file without running it."""
    model = flatbuffer.read(content)
    decode.stored(model)
    xnnpack.analyze(model)
    metadata.quantization(model)
    metadata.output_steps(model)
    shrinking.gain(model, content)


@litert
def test_damaged_litert_files_are_read_or_refused(files, pytestconfig):
    names = [name for name in files if name.endswith(".tflite")]
    originals = [files[name] for name in names]
    found = read_or_refused(look_into, originals, 10 * pytestconfig.option.fuzz)  # they take some milliseconds
    assert min(found["read"], found["refused"]) > 0.1 * found.total()


def of_equal_parts(*, tensors=0, operators=0, name=b"", data=0, option=None):
    """A file in which `tensors` tensors and `operators` operators are two tables, with names of 100 kB, and so on."""
    schema = litert_graph.schema()
    builder = flatbuffers.Builder()

    def many(start, part, count):
        start(builder, count)
        for _ in range(count):
            builder.PrependUOffsetTRelative(part)
        return builder.EndVector()

    long, content = builder.CreateString(name), builder.CreateByteVector(bytes(data))
    options = None
    if option:
        options_type, add = option
        getattr(schema, f"{options_type}Start")(builder)
        getattr(schema, f"{options_type}Add{add}")(builder, long)
        options = getattr(schema, f"{options_type}End")(builder)
    schema.BufferStart(builder)
    schema.BufferAddData(builder, content)
    buffers = many(schema.ModelStartBuffersVector, schema.BufferEnd(builder), 1)
    schema.TensorStart(builder)
    schema.TensorAddName(builder, long)
    tensors = many(schema.SubGraphStartTensorsVector, schema.TensorEnd(builder), tensors)
    schema.OperatorStart(builder)
    if options is not None:
        kinds = schema.BuiltinOptions if hasattr(schema.BuiltinOptions, options_type) else schema.BuiltinOptions2
        union = "BuiltinOptions" + ("2" if kinds is schema.BuiltinOptions2 else "")
        getattr(schema, f"OperatorAdd{union}Type")(builder, getattr(kinds, options_type))
        getattr(schema, f"OperatorAdd{union}")(builder, options)
    operators = many(schema.SubGraphStartOperatorsVector, schema.OperatorEnd(builder), operators)
    schema.SubGraphStart(builder)
    schema.SubGraphAddTensors(builder, tensors)
    schema.SubGraphAddOperators(builder, operators)
    graph = schema.SubGraphEnd(builder)
    graphs = many(schema.ModelStartSubgraphsVector, graph, 1 if option or data else 2_000)
    schema.ModelStart(builder)
    schema.ModelAddBuffers(builder, buffers)
    schema.ModelAddSubgraphs(builder, graphs)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize(
    "parts",
    [
        {"tensors": 2_000, "name": b"n" * 100_000},
        {"tensors": 50_000, "name": b"n"},
        {"tensors": 20_000, "data": 2_000_000},
        {"operators": 2_000, "name": b"n" * 100_000, "option": ("VarHandleOptions", "SharedName")},
        {"operators": 2_000, "name": b"n" * 100_000, "option": ("StableHLOCompositeOptions", "Name")},
        {"operators": 2_000, "name": b"n" * 100_000, "option": ("StablehloCustomCallOptions", "BackendConfig")},
    ],
    ids=lambda parts: "-".join(parts),
)
def test_tables_that_refer_to_the_same_part_over_and_over_are_refused(parts, monkeypatch):
    """Files of a few hundred kB that would be 4 million tensors with names of 100 kB, or 2.5 billion tensors."""
    content = of_equal_parts(**parts)
    # Without looking: these would take all of the memory, or minutes.
    monkeypatch.setattr(litert_graph.schema().ModelT, "InitFromPackedBuf", None)
    with at_most(10), pytest.raises(ValueError, match="cut off or corrupt") as refusal:
        flatbuffer.read(content)
    assert str(refusal.value.__cause__) == "its parts overlap"


def commands(folder, jobs, report):
    """Run the installed command for each job (arguments, contents of files); write how each ended."""
    os.chdir(folder)
    with report.open("a") as lines:
        for number, (arguments, contents) in jobs:
            for name, content in contents.items():
                (folder / name).write_bytes(content)
            start = time.monotonic()
            child = os.fork()
            if not child:
                output = os.open(folder / "output", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
                os.dup2(output, 1)
                os.dup2(output, 2)
                sys.argv = ["keras-rda", *arguments]
                signal.alarm(120)
                try:
                    cli.run()
                except SystemExit as end:
                    sys.stdout.flush()
                    os._exit(end.code or 0)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said = (folder / "output").read_text(errors="replace").splitlines()
            errors = [line for line in said if line.startswith("Error: ")]
            lines.write(json.dumps([number, code, errors or said[-1:], time.monotonic() - start]) + "\n")
            lines.flush()


@litert
@pytest.mark.parametrize(
    "command",
    ["inspect FILE", "benchmark FILE --seconds 0.001", "verify model.keras FILE", "shrink FILE smaller.tflite"],
)
def test_commands_survive_damaged_litert_files(run, files, tmp_path, pytestconfig, command):
    names = [name for name in files if name.endswith(".tflite")]
    (tmp_path / "model.keras").write_bytes(files["model.keras"])
    jobs = []
    for seed in range(pytestconfig.option.fuzz // 5):
        content = damaged(files[names[seed % len(names)]], np.random.default_rng(seed))
        jobs.append((seed, (command.replace("FILE", "damaged.tflite").split(), {"damaged.tflite": content})))
    report = tmp_path / "report"
    assert run(commands, tmp_path, jobs, report) == 0
    assert_survived(report, len(jobs))


def assert_survived(report, count):
    """Every command ended by itself, in time, with its output or with one line of error."""
    ends = [json.loads(line) for line in report.read_text().splitlines()]
    assert len(ends) == count
    for seed, code, said, seconds in ends:
        assert code in (0, 1), f"seed {seed}: {code}, {said}"
        assert not code or [line[:7] for line in said] == ["Error: "], f"seed {seed}: {said}"
        assert seconds < 100, f"seed {seed}: {seconds} s"
    crashed = collections.Counter(said.split()[8] for _, _, (said,), _ in ends if said.startswith("Error: the process"))
    print(f"{count} commands: {sum(not code for _, code, *_ in ends)} did, {dict(crashed)} inside, the others refused")


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def crashing_command(output):
    os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY), 2)
    cli.main = crash
    cli.run()


@pytest.mark.skipif(sys.platform != "linux", reason="the command runs in a process of its own on Linux only")
def test_command_survives_a_crash(run, tmp_path):
    assert run(crashing_command, tmp_path / "said") == 1
    (line,) = [line for line in (tmp_path / "said").read_text().splitlines() if line.startswith("Error")]
    assert "ended with SIGSEGV" in line


def slow_command(folder):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background job it is ignored

    def sleep():
        (folder / "child").write_text(str(os.getpid()))
        time.sleep(60)

    cli.main = sleep
    try:
        cli.run()
    except SystemExit as end:
        os._exit(end.code)
    except KeyboardInterrupt:  # in the child, where click says "Aborted!"
        os._exit(1)


@pytest.mark.skipif(sys.platform != "linux", reason="the command runs in a process of its own on Linux only")
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 1), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_stopped_command_leaves_no_process(tmp_path, number, status):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of fork(), but the child computes nothing
        command = os.fork()
        if not command:
            slow_command(tmp_path)
    with at_most(20):
        while not (tmp_path / "child").exists() or not (child := (tmp_path / "child").read_text()):
            time.sleep(0.01)
        os.kill(command, number)
        assert os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]) == status
        # Gone, or dead and nobody's yet.
        with contextlib.suppress(FileNotFoundError):
            while " Z " not in pathlib.Path(f"/proc/{child}/stat").read_text():
                time.sleep(0.01)


@litert
def test_names_are_no_markup_and_command_no_terminal(files, tmp_path):
    model = flatbuffer.read(files["sparse.tflite"])
    for number, tensor in enumerate(model.subgraphs[0].tensors):
        tensor.name = f"[bold]\x1b[2J\r:smile: {number}".encode()
    (tmp_path / "[bold]a.tflite").write_bytes(flatbuffer.pack(model))
    done = CliRunner().invoke(cli.main, ["inspect", str(tmp_path / "[bold]a.tflite")])
    assert done.exit_code == 0, done.output
    assert "[bold]\N{REPLACEMENT CHARACTER}[2J:smile: " in done.output
    assert "\x1b" not in done.output
    done = CliRunner().invoke(cli.main, ["inspect", str(tmp_path / "\x1b[2J[red].tflite")])
    assert done.exit_code == 2
    assert "\x1b" not in one_line(ValueError("a\x1b[2Jb"))


@litert
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda level: level.arrayIndices.values.__setitem__(0, 200), "indices of a sparse tensor point outside"),
        (lambda level: level.arraySegments.values.__setitem__(1, 250), "indices of a sparse tensor point outside"),
        (lambda level: level.arraySegments.values.__setitem__(0, 1), "indices of a sparse tensor point outside"),
        (lambda level: setattr(level, "arrayIndices", None), "indices of a sparse tensor point outside"),
        (lambda level: setattr(level, "format", 7), "indices of a sparse tensor point outside"),
    ],
)
def test_sparse_tensors_whose_indices_point_outside_are_refused(files, change, problem):
    """LiteRT trusts them: it would write outside its memory."""
    model = flatbuffer.read(files["sparse.tflite"])
    levels = [
        level
        for tensor in model.subgraphs[0].tensors
        if tensor.sparsity is not None
        for level in tensor.sparsity.dimMetadata
        if level.arraySegments is not None
    ]
    for vector in (levels[0].arraySegments, levels[0].arrayIndices):
        vector.values = vector.values.copy()
    flatbuffer.read(flatbuffer.pack(model))
    change(levels[0])
    with pytest.raises(ValueError, match=problem):
        flatbuffer.read(flatbuffer.pack(model))


@litert
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        # An operand that is left out would be made from itself without end.
        (lambda graph, densify: vars(densify).update(inputs=[densify.inputs[0], -1], outputs=[-1]), "does not exist"),
        (lambda graph, densify: vars(densify).update(outputs=[densify.outputs[0]] * 2), "two write the same tensor"),
        (lambda graph, densify: vars(graph.tensors[0]).update(shape=[1] * 9), r"rank 9 has the shape \(1, 1,"),
    ],
)
def test_graphs_that_would_never_end_are_refused(files, change, problem):
    model = flatbuffer.read(files["sparse.tflite"])
    (graph,) = model.subgraphs
    densify = next(node for node in graph.operators if litert_graph.operator_name(model, node) == "DENSIFY")
    change(graph, densify)
    with pytest.raises(ValueError, match=problem):
        flatbuffer.read(flatbuffer.pack(model))


# --- Keras models ----------------------------------------------------------------------------------------------------


def compress_all(folder, jobs, report):
    """Load and compress each model; write "refused", or how far the outputs of the smaller model are off."""
    x = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 1)).astype("float32")
    with report.open("a") as lines:
        for seed, content in jobs:
            lines.write(f"[{seed}, ")
            lines.flush()
            (folder / "damaged.keras").write_bytes(content)
            try:
                model = cli._load(folder / "damaged.keras")
                smaller = keras_rda.compress(model)
            except (ValueError, TypeError, RuntimeError, OSError) as error:
                result = ["refused", type(error).__name__, str(error)[:200]]
            except Exception as error:
                result = ["raised", type(error).__name__, str(error)[:500]]
            else:
                try:
                    ours = np.concatenate([np.ravel(y) for y in keras.tree.flatten(model(x, training=False))])
                except Exception as error:  # a damaged model that does not compute
                    result = ["computes nothing", type(error).__name__, str(error)[:200]]
                else:
                    theirs = np.concatenate([np.ravel(y) for y in keras.tree.flatten(smaller(x, training=False))])
                    same = np.allclose(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)
                    result = ["equal" if same else "wrong", "", ""]
            lines.write(json.dumps(result) + "]\n")
            lines.flush()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="minutes of compilation on JAX; what reads files is Keras' own")
def test_damaged_models_are_compressed_right_or_refused(run, files, tmp_path, pytestconfig):
    found = collections.Counter()
    jobs = [
        (seed, damaged_model(files["model.keras"], np.random.default_rng(seed)))
        for seed in range(pytestconfig.option.fuzz)
    ]
    report = tmp_path / "report"
    while jobs:
        report.unlink(missing_ok=True)
        status = run(compress_all, tmp_path, jobs[:BATCH], report)
        *lines, last = [*report.read_text().split("\n")]
        for line in lines:
            seed, (outcome, kind, text) = json.loads(line)
            assert outcome not in ("wrong", "raised"), f"seed {seed}: {outcome} {kind} {text}"
            found[outcome] += 1
        if status:  # a library crashed, which the command line survives
            found[f"crashed, {status}"] += 1
            print(f"seed {last[1:-2]} crashed")
        jobs = jobs[len(lines) + bool(status) :]
    print(dict(found))
    assert found["refused"] > 0
    assert found["equal"] > 0


# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npy", "npz", "compressed.npz"])
def test_damaged_arrays_are_read_or_refused(tmp_path, pytestconfig, suffix):
    array = np.random.default_rng(0).uniform(size=(20, 8)).astype("float32")
    original, path = io.BytesIO(), tmp_path / f"damaged.{suffix}"
    {"npy": np.save, "npz": np.savez, "compressed.npz": np.savez_compressed}[suffix](original, array)

    def read(content):
        path.write_bytes(content)
        cli._arrays(path)

    found = read_or_refused(read, [original.getvalue()], pytestconfig.option.fuzz)
    assert found["refused"] > 0


def test_damaged_backups_are_restored_whole_or_refused(tmp_path, pytestconfig):
    path = tmp_path / "run.npz"
    model = compiled(small_network(), keras_rda.MRDA())
    backup = keras_rda.Backup(path)
    backup.set_model(model)
    backup.on_train_begin()
    backup.on_epoch_end(1)
    before, original = state(model), path.read_bytes()

    def read(content):
        path.write_bytes(content)
        try:
            backup.on_train_begin()
        finally:  # nothing is set from a backup that is refused
            for now, then in zip(state(model), before, strict=True):
                np.testing.assert_array_equal(now, then)

    found = read_or_refused(read, [original], pytestconfig.option.fuzz)
    assert found["refused"] > 0
