"""Run a LiteRT file and compare it with the Keras model it came from."""

import dataclasses
import pathlib

import keras
import numpy as np

# Both sides compute in float32 and sum in different orders: over the depth of a network that moves outputs by some 1e-6
# of their size. A wrong file is off by far more (the defects seen start at 1e-2).
RELATIVE_TOLERANCE = 1e-4
_BATCH = 8


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest difference between a file's outputs and Keras', and the largest that is accepted.

    Attributes:
        largest: Absolute difference of the output that comes closest to its tolerance, or furthest over it.
        tolerance: Of that output: `RELATIVE_TOLERANCE` of its largest magnitude.
        finite: Whether Keras' outputs are finite.
    """

    largest: float
    tolerance: float
    finite: bool = True

    @property
    def passed(self):
        # Written so that a NaN fails.
        return bool(self.finite and self.largest <= self.tolerance)


def predict(path, inputs):
    """Run the LiteRT file at `path` on one batch.

    Args:
        path: The file.
        inputs: An array with the batch first, or, for a file of several inputs, a dict of input name → array; Keras
            names a file's inputs like the model's.

    Returns:
        Dict of output name → array. Keras names a file's outputs `output_0`, `output_1`, … unless the model returns a
        dict.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the inputs' names or shapes are not those of the file.
    """
    from ai_edge_litert.interpreter import Interpreter

    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    runner = Interpreter(model_path=str(path)).get_signature_runner()
    details = runner.get_input_details()
    if not isinstance(inputs, dict) and len(details) == 1:
        inputs = dict.fromkeys(details, inputs)
    names = sorted(inputs) if isinstance(inputs, dict) else "one array"
    if names != sorted(details):
        raise ValueError(f"The file {str(path)!r} takes a dict of the inputs {sorted(details)}; received {names}.")
    arrays = {name: np.asarray(inputs[name], detail["dtype"]) for name, detail in details.items()}
    for name, array in arrays.items():
        shape = tuple(int(size) for size in details[name]["shape_signature"])
        if len(shape) != array.ndim or any(a not in (-1, b) for a, b in zip(shape, array.shape, strict=True)):
            raise ValueError(
                f"The input '{name}' of {str(path)!r} has the shape {shape} (-1: any); received {array.shape}."
            )
    return runner(**arrays)


def compare(model, path):
    """Compare the file at `path` with `model` on random inputs; return a `Difference`."""
    random = np.random.default_rng(0)
    inputs = {tensor.name: _random_batch(tensor, random) for tensor in model.inputs}
    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    outputs = model.predict_on_batch(keras.tree.map_structure(lambda tensor: inputs[tensor.name], structure))
    if not isinstance(outputs, dict):
        outputs = {f"output_{i}": output for i, output in enumerate(keras.tree.flatten(outputs))}
    if len(inputs) == 1:  # a model that was cloned or loaded may have renamed its only input
        (inputs,) = inputs.values()
    return largest_difference(outputs, predict(path, inputs))


def largest_difference(expected, received):
    """Compare two dicts of name → array, each output on its own scale; return the worst `Difference`."""
    if {name: np.shape(array) for name, array in expected.items()} != {
        name: np.shape(array) for name, array in received.items()
    }:
        return Difference(float("inf"), 0.0)
    differences = []
    for name, array in expected.items():
        ours, theirs = np.asarray(array, "float64"), np.asarray(received[name], "float64")
        largest = float(np.max(np.abs(theirs - ours), initial=0))
        tolerance = RELATIVE_TOLERANCE * float(np.max(np.abs(ours), initial=0))
        differences.append(Difference(largest, tolerance, bool(np.all(np.isfinite(ours)))))
    return max(differences, key=lambda d: (not d.passed, d.largest - d.tolerance))


def check_inputs(model):
    """Raise a `ValueError` for inputs that no batch can be drawn for."""
    for tensor in model.inputs:
        if None in tensor.shape[1:]:
            raise ValueError(
                f"The input '{tensor.name}' has the shape {tuple(tensor.shape)}: only the batch size may be unknown."
            )
        if tensor.dtype == "string":
            raise ValueError(f"The input '{tensor.name}' takes strings; a LiteRT file of builtin operators cannot.")


def _random_batch(tensor, random):
    shape = (tensor.shape[0] or _BATCH, *tensor.shape[1:])
    if "int" in tensor.dtype:
        return random.integers(0, 2, shape).astype(tensor.dtype)  # indices that every embedding table has
    return random.uniform(-1, 1, shape).astype(tensor.dtype)
