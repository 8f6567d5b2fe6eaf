"""A microcontroller's runtime on this machine: TFLite Micro, from the wheel `tflite-micro` (`keras_rda[micro]`).

Its kernels are the plain ones that every microcontroller has. Times are not a microcontroller's: compare them only with
each other. The arena is that of a machine of 64 bits: where pointers have 32, a file takes a little less.
"""

import importlib.util
import pathlib
import sys
import tempfile

from keras_rda.litert import flatbuffer
from keras_rda.litert.graph import operator_name, schema
from keras_rda.litert.machines import interface, process

BATCH_SIZE = 1
REPEATS = 20
MULTIPLE_OF = 1
_SCRIPT = pathlib.Path(__file__).with_name("micro_runner.py")


def is_ready():
    """Whether TFLite Micro is installed."""
    return importlib.util.find_spec("tflite_micro") is not None


def check_ready():
    """Raise a `RuntimeError` that says how to install TFLite Micro, unless `is_ready()`."""
    if not is_ready():
        raise RuntimeError("TFLite Micro is not installed: python3 -m pip install 'keras_rda[micro]' does that.")


def run(jobs, repeats=0, timeout=600, arena=None):
    """Run LiteRT files in TFLite Micro, in a process of their own.

    Args:
        jobs: Pairs of a `.tflite` file's path and its inputs: a dict of input name → array, or, for a file of one
            input, the array. The arrays have the samples first, any number of them; a file of batch size 1 takes them
            one by one.
        repeats: How often to time each file, round by round over all that loaded.
        timeout: Seconds that a process may take; then the job at work counts as failed, and the others go on.
        arena: Bytes of the arena. By default as many as a file takes, up to 256 MiB.

    Returns:
        A list of `process.Run`, one for each job, with the bytes of the arena that the file takes. A file that is
        damaged or refused, that does not fit the arena or that crashes the process has an `error`.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: TFLite Micro is not installed.
    """
    check_ready()
    return process.run(jobs, repeats, timeout, [sys.executable], (_SCRIPT, arena or 0), _write, _read)


def _write(directory, number, path, inputs):
    model = flatbuffer.read(path)
    subgraph, takes, gives = interface.of(model)
    if subgraph:
        raise ValueError(f"the signature runs the subgraph {subgraph}, and TFLite Micro runs the first one only")
    # The order of `takes` is that of the file.
    inputs = {str(place): array for place, array in enumerate(interface.arrays(takes, inputs).values())}
    outputs = list(model.subgraphs[0].outputs)
    places = {name: str(outputs.index(index)) for name, index in gives.items()}
    return {**process.save(directory, number, path, inputs), "places": places}


def _read(directory, entry, result):
    outputs = process.load(directory, entry, result)
    return {name: outputs[place] for name, place in entry["places"].items()}


def missing(model):
    """The operators of a `ModelT` that the installed TFLite Micro does not have.

    Returns:
        A sorted list of their names, such as `"DENSIFY"`.

    Raises:
        RuntimeError: TFLite Micro is not installed.
    """
    check_ready()
    kinds = {}
    for graph in model.subgraphs:
        for operator in graph.operators:
            kinds.setdefault(operator.opcodeIndex, operator)
    with tempfile.TemporaryDirectory() as directory:
        probes = []
        for index, operator in kinds.items():
            path = pathlib.Path(directory, f"{index}.tflite")
            path.write_bytes(_probe(model.operatorCodes[index], operator))
            probes.append((path, {}))
        runs = process.run(probes, 0, 600, [sys.executable], (_SCRIPT, 0), process.save)
    return sorted(
        {
            name(model, operator)
            for operator, run in zip(kinds.values(), runs, strict=True)
            if "builtin_code out of range" not in run.error
        }
    )


def name(model, operator):
    """The name of an operator's kind in the schema, such as `"CONV_2D"`; of a custom one its own."""
    custom = model.operatorCodes[operator.opcodeIndex].customCode
    return custom.decode(errors="replace") if custom else operator_name(model, operator)


def _probe(code, operator):
    """A file of this operator and of one that no runtime has: which of them is refused tells whether it has the first.

    TFLite Micro looks all operators up before it prepares any.
    """
    code_nobody_has = schema().OperatorCodeT(builtinCode=2**31 - 1, deprecatedBuiltinCode=127, version=1)
    options = {name: getattr(operator, name) for name in ("builtinOptions", "builtinOptionsType")}
    return flatbuffer.pack(
        schema().ModelT(
            version=3,
            operatorCodes=[code, code_nobody_has],
            subgraphs=[
                schema().SubGraphT(
                    tensors=[schema().TensorT(shape=[1], buffer=0)],
                    inputs=[0],
                    outputs=[0],
                    operators=[
                        schema().OperatorT(opcodeIndex=0, inputs=[0], outputs=[0], **options),
                        schema().OperatorT(opcodeIndex=1, inputs=[0], outputs=[0]),
                    ],
                )
            ],
            buffers=[schema().BufferT()],
        )
    )
