"""Run a LiteRT file and compare it with the Keras model it came from."""

import dataclasses

import keras
import numpy as np

# Both sides compute in float32 and sum in different orders: over the depth of a network that moves outputs by some 1e-6
# of their size. A wrong file is off by far more (the defects seen start at 1e-2).
RELATIVE_TOLERANCE = 1e-4
_BATCH = 8


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest absolute difference between a file's outputs and Keras', and the largest that is accepted."""

    largest: float
    tolerance: float

    @property
    def passed(self):
        # Written so that a NaN fails.
        return bool(self.largest <= self.tolerance)


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
        ValueError: the inputs are not those of the file.
    """
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path)).get_signature_runner()
    expected = sorted(runner.get_input_details())
    if not isinstance(inputs, dict):
        inputs = dict.fromkeys(expected[:1], inputs)
    if sorted(inputs) != expected:
        raise ValueError(f"The file {str(path)!r} has the inputs {expected}; received {sorted(inputs)}.")
    return runner(**inputs)


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
    """Compare two dicts of name → array; return a `Difference`."""
    if {name: np.shape(array) for name, array in expected.items()} != {
        name: np.shape(array) for name, array in received.items()
    }:
        return Difference(float("inf"), 0.0)
    largest = max(float(np.max(np.abs(received[name] - expected[name]), initial=0)) for name in expected)
    scale = max(float(np.max(np.abs(array), initial=0)) for array in expected.values())
    return Difference(largest, RELATIVE_TOLERANCE * scale)


def _random_batch(tensor, random):
    shape = (tensor.shape[0] or _BATCH, *tensor.shape[1:])
    if None in shape:
        raise ValueError(f"The input '{tensor.name}' has the shape {tensor.shape}: only the batch size may be unknown.")
    if "int" in tensor.dtype:
        return random.integers(0, 2, shape).astype(tensor.dtype)  # indices that every embedding table has
    return random.uniform(-1, 1, shape).astype(tensor.dtype)
