"""What models and files are fed with: the user's representative data, or random batches."""

import keras
import numpy as np

from keras_rda import compression
from keras_rda.litert.calls import SIZES

SAMPLES = 200  # of representative data: more of them hardly move the ranges of activations


def is_open(model):
    """Whether sizes of inputs are unknown besides the batch's."""
    return any(None in tensor.shape[1:] for tensor in model.inputs)


def check(model, machine=None):
    """Raise a `ValueError` for inputs that no batch can be drawn for, or that a machine does not take."""
    for tensor in model.inputs:
        if None in tensor.shape[1:] and machine is not None:
            raise ValueError(
                f"The input '{tensor.name}' has the shape {tuple(tensor.shape)}: with machine={machine!r} only the "
                "batch size may be unknown. Give the other sizes: export(…, input_shapes=…), or call the model on a "
                "keras.Input that has them."
            )
        if tensor.dtype == "string":
            raise ValueError(f"The input '{tensor.name}' takes strings; a LiteRT file of builtin operators cannot.")


def given(model, data, batch_size=None):
    """The first inputs of `representative_data`; see `export`.

    Args:
        model: The model, which may have a batch size of its own.
        data: `representative_data`.
        batch_size: That of the file, if it takes only one.

    Returns:
        A list of dicts of input name → array (1, …), or of that batch size.
    """
    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    if callable(data):
        raise TypeError("representative_data is a function; give what it returns: representative_data=function().")
    # A list is the inputs of a model that has several, else batches.
    several = isinstance(structure, (list, tuple))
    whole = hasattr(data, "shape") or isinstance(data, dict) or (several and isinstance(data, (list, tuple)))
    batches = [data] if whole else data
    samples, size = [], model.inputs[0].shape[0] or batch_size or 1
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
            if array.ndim != len(tensor.shape) or any(
                own not in (None, size) for own, size in zip(tensor.shape[1:], array.shape[1:], strict=True)
            ):
                raise ValueError(
                    f"representative_data for the input '{tensor.name}' must have the shape {tuple(tensor.shape)}; "
                    f"received {array.shape}. The first axis is the batch's (tf.data.Dataset: dataset.batch(1))."
                )
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
        raise ValueError(f"representative_data has no batch of {size}; give some hundred typical inputs.")
    return samples


def _names(structure):
    return keras.tree.map_structure(lambda leaf: getattr(leaf, "name", None) or type(leaf).__name__, structure)


def random(model, size, length=SIZES[0]):
    """A dict of input name → random batch of `size` (or of the batch that the model has); other sizes that are unknown
    are `length`.

    Drawn as what first reads an input says: from the distribution that a `Normalization` or `BatchNormalization` knows,
    from the range that a `Rescaling` maps to −1 … 1 or 0 … 1, from the indices that an `Embedding` or
    `CategoryEncoding` has; images of integers from 0 … 255, and other numbers between −1 and 1.
    """
    generator = np.random.default_rng(0)
    readers, indices = _readers(model), _indices(model)
    batches = {}
    for tensor in model.inputs:
        shape = (tensor.shape[0] or size, *(length if known is None else known for known in tensor.shape[1:]))
        values = _draw(generator, shape, tensor.dtype, readers.get(tensor.name, []), indices)
        if "float" not in tensor.dtype and tensor.dtype != "bool":
            limits = np.iinfo(tensor.dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        batches[tensor.name] = values.astype(tensor.dtype)
    return batches


def _draw(generator, shape, dtype, readers, indices):
    layers = keras.layers
    for layer in readers:
        if isinstance(layer, (layers.Embedding, layers.CategoryEncoding)):
            rows = (reader for reader in readers if isinstance(reader, (layers.Embedding, layers.CategoryEncoding)))
            return generator.integers(0, min(getattr(r, "input_dim", None) or r.num_tokens for r in rows), shape)
        if isinstance(layer, layers.Rescaling):
            scale, offset = (np.asarray(value, "float64") for value in (layer.scale, layer.offset))
            low = -1.0 if np.any(offset < 0) else 0.0
            with np.errstate(divide="ignore", invalid="ignore"):
                values = (generator.uniform(low, 1, shape) - offset) / scale
            return np.where(np.isfinite(values), values, 0)
        mean, variance = _statistics(layer)
        if mean is not None:
            values = generator.normal(size=shape)
            try:
                return (mean + np.sqrt(variance) * values).reshape(shape)
            except ValueError:  # the layer reads them in another order
                return mean.mean() + np.sqrt(variance.mean() + mean.var()) * values
    if dtype == "bool":
        return generator.integers(0, 2, shape)
    if "int" in dtype:
        is_image = len(shape) == 4 and shape[-1] in (1, 3, 4)
        return generator.integers(0, indices or (256 if is_image else 2), shape)
    return generator.uniform(-1, 1, shape)


def _indices(model):
    """How many integers every embedding table of the model has rows for; None without a table."""
    rows, stack = [], [model]
    while stack:
        layer = stack.pop()
        stack.extend(getattr(layer, "layers", []))
        if isinstance(layer, keras.layers.Embedding):
            rows.append(layer.input_dim)
    return min(rows, default=None)


def _statistics(layer):
    """Mean and variance of what a layer reads, as it remembers them; None and None of another layer."""
    if isinstance(layer, keras.layers.Normalization) and not layer.invert:
        arrays = layer.mean, layer.variance
    elif isinstance(layer, keras.layers.BatchNormalization) and layer.axis == -1:
        arrays = layer.moving_mean, layer.moving_variance
    else:
        return None, None
    return tuple(keras.ops.convert_to_numpy(array).astype("float64") for array in arrays)


# Layers and operations whose outputs are values of their inputs.
_PASSING = (
    *("Cast", "Flatten", "Identity", "Permute", "RepeatVector", "Reshape", "Resizing", "Masking", "Transpose"),
    *("Cropping1D", "Cropping2D", "Cropping3D", "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", "ExpandDims"),
    *("Dropout", "GaussianNoise", "RandomFlip", "RandomCrop", "RandomRotation", "RandomTranslation", "RandomZoom"),
)


def _readers(model):
    """Input name → the layers that read it, behind those that pass its values on, in the model's order."""
    if not compression.is_supported(model):
        return {}
    graph, readers = compression.rules.flatten(model), {}
    for tensor, symbolic in zip(graph.inputs, model.inputs, strict=True):
        seen, found = {tensor}, readers.setdefault(symbolic.name, [])
        for call in graph.calls:
            if seen.isdisjoint(call.inputs):
                continue
            if type(call.layer).__name__ in _PASSING:
                seen.update(call.outputs)
            else:
                found.append(call.layer)
    return readers
