"""This machine: LiteRT files in this process, with the default delegate (XNNPACK) as applications run them, or none."""

import pathlib

import numpy as np

from keras_rda.litert import decode, flatbuffer
from keras_rda.litert.calls import SIZES
from keras_rda.litert.machines import interface
from keras_rda.types import Path

RUNTIMES = {"default delegate": True, "no delegates": False}  # name → whether delegates are used


def predict(path: Path, inputs: np.ndarray | dict[str, np.ndarray], delegates: bool = True) -> dict[str, np.ndarray]:
    """Run the LiteRT file at `path` on one batch; on several, one after the other, if it takes no such number at once.

    Args:
        path: The file.
        inputs: An array with the batch first, or, for a file of several inputs, a dict of input name → array; Keras
            names a file's inputs like the model's.
        delegates: Whether to use the default delegate (XNNPACK), as applications do.

    Returns:
        Dict of output name → array. Keras names a file's outputs `output_0`, `output_1`, … unless the model returns a
        dict.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a LiteRT file, or one for TFLite Micro, or the inputs' names or shapes are not those
            of the file.
        RuntimeError: the runtime refuses the file.
    """
    check_runs(path, read(path))
    return run(path, inputs, delegates)


def read(path):
    """Parse a file that others wrote. The interpreter trusts what it reads: such a file has to come through here first.

    Returns:
        A `ModelT`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no LiteRT file, or damaged.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    return flatbuffer.read(path)


def check_runs(path, model):
    """Raise a `ValueError` for a `ModelT` that only a microcontroller's runtime takes, or whose names repeat."""
    if decode.is_decoded(model):
        raise ValueError(
            f"The file {str(path)!r} has constants that only TFLite Micro decodes: machine='micro' runs it."
        )
    if model.signatureDefs:
        interface.of(model)


def interpreter(path, delegates=True):
    """`ai_edge_litert`'s interpreter of a file that was checked or that this package wrote."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.AUTO if delegates else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    return Interpreter(model_path=str(path), experimental_op_resolver_type=resolver)


def run(path, inputs, delegates=True, calls=1):
    """`predict` with such a file, so many times in a row: the outputs of the calls one after the other."""
    runs = interpreter(path, delegates)
    signatures = list(runs.get_signature_list())
    if not signatures:
        raise ValueError(
            f"The file {str(path)!r} has no signature, which Keras and TensorFlow 2 write into every file."
        )
    runner = runs.get_signature_runner(signatures[0])
    details = runner.get_input_details()
    given = inputs if isinstance(inputs, dict) else dict.fromkeys(details, inputs)
    if sorted(given) != sorted(details) or (given is not inputs and len(details) > 1):
        names = sorted(inputs) if isinstance(inputs, dict) else "one array"
        raise ValueError(f"The file {str(path)!r} takes a dict of the inputs {sorted(details)}; received {names}.")
    arrays = {name: np.asarray(given[name], detail["dtype"]) for name, detail in details.items()}
    batches = set()
    for name, array in arrays.items():
        shape = tuple(int(size) for size in details[name]["shape_signature"])
        size = shape[0] if shape and shape[0] > 0 else len(array) if array.ndim else 1
        fits = len(shape) == array.ndim and all(a in (-1, b) for a, b in zip(shape[1:], array.shape[1:], strict=True))
        if not fits or (shape and shape[0] > 0 and (not len(array) or len(array) % size)):
            raise ValueError(
                f"The input '{name}' of {str(path)!r} has the shape {shape} (-1: any); received {array.shape}."
            )
        batches.add(len(array) // size if size and array.ndim else 1)
    if len(batches) > 1:
        raise ValueError(f"The inputs are enough for {sorted(batches)} batches of {str(path)!r}: give as much of each.")
    parts = [arrays]
    if (number := batches.pop()) > 1:
        split = {name: np.split(array, number) for name, array in arrays.items()}
        parts = [{name: pieces[place] for name, pieces in split.items()} for place in range(number)]
    return in_a_row([runner(**part) for _ in range(calls) for part in parts])


def in_a_row(results):
    """Dicts of output name → array of several calls, as one; the arrays of a single call as they are."""
    if len(results) == 1:
        return results[0]
    return {name: np.concatenate([result[name] for result in results]) for name in results[0]}


def invocation(path):
    """A function that runs such a file once, on a batch of one random input: what `benchmark` times. Other sizes that
    are unknown are the first of `calls.SIZES` that it takes."""
    open_sizes = any(-1 in detail["shape_signature"][1:] for detail in interpreter(path).get_input_details())
    sizes = SIZES if open_sizes else (1,)
    for size in sizes:
        runs = interpreter(path)  # anew: one that has failed is of no use
        try:
            _feed(runs, size)
            if open_sizes:
                runs.invoke()
            return runs.invoke
        except (RuntimeError, ValueError):
            if size == sizes[-1]:
                raise


def _feed(runs, size):
    """Give an interpreter a batch of one random input."""
    random = np.random.default_rng(0)
    details = runs.get_input_details()
    shapes = [
        [
            known if known != -1 else size if axis else 1
            for axis, known in enumerate(map(int, detail["shape_signature"]))
        ]
        for detail in details
    ]
    for detail, shape in zip(details, shapes, strict=True):
        runs.resize_tensor_input(detail["index"], shape)
    runs.allocate_tensors()
    for detail, shape in zip(details, shapes, strict=True):
        draw = random.uniform(-1, 1, shape) if np.issubdtype(detail["dtype"], np.floating) else np.zeros(shape)
        runs.set_tensor(detail["index"], draw.astype(detail["dtype"]))
