"""What models and files are fed with: the user's representative data, or random batches."""

import keras
import numpy as np

SAMPLES = 200  # of representative data: more of them hardly move the ranges of activations


def check(model):
    """Raise a `ValueError` for inputs that no batch can be drawn for."""
    for tensor in model.inputs:
        if None in tensor.shape[1:]:
            raise ValueError(
                f"The input '{tensor.name}' has the shape {tuple(tensor.shape)}: only the batch size may be unknown."
            )
        if tensor.dtype == "string":
            raise ValueError(f"The input '{tensor.name}' takes strings; a LiteRT file of builtin operators cannot.")


def given(model, data):
    """The first inputs of `representative_data`: a list of dicts of input name → array (1, …); see `export`."""
    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    if callable(data):
        raise TypeError("representative_data is a function; give what it returns: representative_data=function().")
    # A list is the inputs of a model that has several, else batches.
    several = isinstance(structure, (list, tuple))
    whole = hasattr(data, "shape") or isinstance(data, dict) or (several and isinstance(data, (list, tuple)))
    batches = [data] if whole else data
    samples = []
    for batch in batches:
        try:
            keras.tree.assert_same_structure(structure, batch)
            arrays = keras.tree.flatten(batch)
        except (ValueError, TypeError):
            arrays = keras.tree.flatten(batch)
            if len(model.inputs) > 1 or len(arrays) > 1:
                raise ValueError(
                    f"representative_data must have the structure of the model's inputs, {_names(structure)}; received "
                    f"{_names(batch)}. A tf.data.Dataset with labels: dataset.map(lambda x, y: x)."
                ) from None
        arrays = [np.asarray(array) for array in arrays]
        if not all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f"):
            raise ValueError("representative_data has values that are not finite (NaN or infinity).")
        for array, tensor in zip(arrays, model.inputs, strict=True):
            if array.ndim != len(tensor.shape) or array.shape[1:] != tuple(tensor.shape[1:]):
                raise ValueError(
                    f"representative_data for the input '{tensor.name}' must have the shape {tuple(tensor.shape)}; "
                    f"received {array.shape}. The first axis is the batch's (tf.data.Dataset: dataset.batch(1))."
                )
        size = model.inputs[0].shape[0] or 1
        if len({len(array) for array in arrays}) > 1:
            raise ValueError(
                f"representative_data has inputs of different numbers: {[len(array) for array in arrays]}."
            )
        for index in range(0, len(arrays[0]) - size + 1, size):
            if len(samples) == SAMPLES:
                return samples
            samples.append(
                {
                    tensor.name: array[index : index + size].astype(tensor.dtype)
                    for tensor, array in zip(model.inputs, arrays, strict=True)
                }
            )
    if not samples:
        raise ValueError(
            f"representative_data has no batch of {model.inputs[0].shape[0] or 1}; give some hundred typical inputs."
        )
    return samples


def _names(structure):
    return keras.tree.map_structure(lambda leaf: getattr(leaf, "name", None) or type(leaf).__name__, structure)


def random(model, size):
    """A dict of input name → random batch of `size` (or of the batch that the model has)."""
    generator = np.random.default_rng(0)
    indices = _indices(model)
    return {tensor.name: _batch(tensor, generator, indices, size) for tensor in model.inputs}


def _indices(model):
    """How many integers every embedding table of the model has rows for."""
    rows, stack = [], [model]
    while stack:
        layer = stack.pop()
        stack.extend(getattr(layer, "layers", []))
        if isinstance(layer, keras.layers.Embedding):
            rows.append(layer.input_dim)
    return min(rows, default=2)


def _batch(tensor, generator, indices, size):
    shape = (tensor.shape[0] or size, *tensor.shape[1:])
    if "int" in tensor.dtype:
        return generator.integers(0, indices, shape).astype(tensor.dtype)
    return generator.uniform(-1, 1, shape).astype(tensor.dtype)
