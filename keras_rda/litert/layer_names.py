"""The names of a LiteRT file's weights as Keras has them: the converter's are long, numbered otherwise, or missing."""

import re

import keras
import numpy as np

from keras_rda.litert.graph import WEIGHT_TYPES, graphs

# Where the axes of a Keras weight go. As they are: embeddings, depthwise and 3-D convolutions; output filters to the
# front: Dense and convolutions; so for transposed ones, which have them last but one; inputs to the back: EinsumDense.
_MOVES = ((0, 0), (-1, 0), (-2, 0), (0, -1))
# Cosine of a constant and its weight. Rounding to int8 leaves more than 0.99; equally shaped weights of other layers
# are near 0, but for channels of very few entries.
_ALIKE = 0.9
_SAME = (1.0, 1.0, True)  # a likeness, and that no tensor has it yet: none can be better
_ENOUGH = 1 << 16  # entries to compare, about
# Parts of the converter's names that say what is computed, not which layer does it.
_OPERATION = re.compile(r"[A-Z].*|(convolution|depthwise|separable_conv2d|batchnorm|mul|add|sub|truediv)(_\d+)?")
_WEIGHTED = re.compile(r"/(convolution|depthwise|separable_conv2d|MatMul|GatherV2)")


def keras_paths(model, content):
    """Find the Keras weight that each constant of a dense LiteRT file holds.

    The converter moves a weight's axes, multiplies each of its channels by a number where batch normalisation is folded
    into it, and rounds it. What is left of its content tells which it is; where several weights have the same content,
    their order does.

    Args:
        model: The Keras model that the file was converted from.
        content: The file, a `ModelT`.

    Returns:
        Dict of tensor name → path of the Keras weight, such as `"conv2d_1/kernel"`, as far as there is one.
    """
    weights = {}  # number of entries → paths and arrays
    for variable in model.weights:
        array = keras.ops.convert_to_numpy(variable)
        weights.setdefault(array.size, []).append((variable.path, np.atleast_1d(array)))
    paths = {}
    for name, constant in _constants(content):
        found, used = {}, set(paths.values())
        # Those without a tensor first: networks of many equal layers would compare each with each.
        for path, array in sorted(weights.get(constant.size, ()), key=lambda weight: weight[0] in used):
            if likeness := max((_likeness(constant, form) for form in _forms(array, constant.shape)), default=None):
                found.setdefault(path, (*likeness, path not in used))
                if found[path] == _SAME:
                    break
        best = max(found, key=found.get, default=None)  # the first of equals
        if best is not None and found[best][0] >= _ALIKE:
            paths[name] = best
    return paths


def label(tensor):
    """The name under which a `TensorEncoding` is shown: Keras', or what of the file's own tells the layer."""
    return tensor.keras_path or shortened(tensor.name)


def shortened(name):
    """What of a tensor's name in a LiteRT file tells the layer: `"block_1/conv2d_1"` of
    `"model_1/re_lu_1/Relu6;model_1/block_1/conv2d_1/convolution;"`.
    """
    pieces = [piece for piece in name.split(";") if piece]
    piece = next(filter(_WEIGHTED.search, pieces), pieces[0] if pieces else name)
    parts = [part for part in piece.split("/") if part]
    while len(parts) > 1 and _OPERATION.fullmatch(parts[-1]):
        parts.pop()
    return "/".join(parts[1:] or parts) or name


def _constants(content):
    """Names and values, as far as a factor, of the constants of rank ≥ 2, in the order in which the file has them."""
    for graph in graphs(content):
        for index, tensor in enumerate(graph.tensors):
            values = graph.array(index)
            if values is None or graph.type(index) not in WEIGHT_TYPES or values.ndim < 2:
                continue
            values = values.astype(np.float32)
            zero_points = getattr(tensor.quantization, "zeroPoint", None)
            if zero_points is not None and len(zero_points):
                values -= zero_points[0]  # all are 0 where there are several
            yield graph.name(index), values


def _forms(array, shape):
    """The array as the converter may have moved its axes, where that and no more than joining axes gives `shape`."""
    expected = [size for size in shape if size > 1]
    for start, end in dict.fromkeys((a % array.ndim, b % array.ndim) for a, b in _MOVES if a >= -array.ndim):
        form = np.moveaxis(array, start, end)
        own = [size for size in form.shape if size > 1]
        if own == expected or len(own) > len(expected):
            yield form


def _likeness(constant, weight):
    """How alike two arrays of the same size are, 0 to 1: whatever their channels are multiplied by, and as they are."""
    step = 1 + constant.size // _ENOUGH
    # In float64, where squares of what float32 holds do not overflow.
    constant, weight = (array[::step].astype("float64") for array in (constant, weight.reshape(constant.shape)))
    channels = max(_cosine(constant, weight, "ij,ij->i"), _cosine(constant, weight, "ij,ij->j"))
    return round(channels, 2), round(_cosine(constant, weight, "ij,ij->"), 3)


def _cosine(constant, weight, product):
    """Mean over the channels, of those that `constant` has not at zero, of the cosine (absolute) of their angle.

    `product` sums over all but the axis of the channels: the first (convolutions), or the last (depthwise ones).
    """
    shape = (len(constant), -1) if product.endswith("i") else (-1, constant.shape[-1])
    constant, weight = constant.reshape(shape), weight.reshape(shape)
    squares = np.atleast_1d(np.einsum(product, constant, constant))
    lengths = np.sqrt(squares * np.einsum(product, weight, weight))
    if not squares.any():
        return float(not weight.any())
    cosines = np.abs(np.einsum(product, constant, weight)) / np.where(lengths > 0, lengths, np.inf)
    return float(np.mean(cosines[squares > 0]))
