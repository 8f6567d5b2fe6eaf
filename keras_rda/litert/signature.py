"""The inputs and outputs of a file's signature: what TensorFlow's converter can name."""

import keyword
import re
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from keras_rda.checks import is_positive_integer

_FIT = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")  # names of TensorFlow's operators


def flat(model):
    """The model with outputs in one list or dict, and input names that a signature can have; itself if it has both.

    An output of a nested structure is named by its place in it: `{"boxes": [a, b]}` becomes `boxes_0` and `boxes_1`,
    and of `[a, [b, c]]` the last is `output_1_1`. In names of inputs `_` replaces what cannot be. A Sequential model of
    a fixed batch size above 1 takes any, unless a layer keeps a state or computes with that size: without an Input,
    Keras gave it the size of the first batch it saw.

    Raises:
        ValueError: two outputs or two inputs would have the same name.
    """
    names, shapes = [tensor.name for tensor in model.inputs], [tuple(tensor.shape) for tensor in model.inputs]
    fitting = [_fit(name) for name in names]
    _check_different("inputs", fitting, names)
    batch, free = shapes[0][0], None
    if isinstance(model, keras.Sequential) and batch not in (None, 1):
        free = _free(model, fitting, shapes)
    if free is not None:
        model = free
    elif fitting != names:
        model = _around(model, fitting, shapes)
    outputs = model.outputs[0] if isinstance(model, keras.Sequential) else model.output
    children = list(outputs.values()) if isinstance(outputs, dict) else outputs
    if not isinstance(children, (list, tuple)) or all(hasattr(child, "shape") for child in children):
        return model
    places = [("_".join(map(str, path)), tensor) for path, tensor in keras.tree.flatten_with_path(outputs)]
    if not isinstance(outputs, dict):
        places = [(f"output_{place}", tensor) for place, tensor in places]
    _check_different("outputs", [place for place, _ in places], [place for place, _ in places])
    return keras.Model(model.input, dict(places), name=model.name)


def sized(model, input_shapes):
    """The model on inputs of `input_shapes`; see `export`.

    Raises:
        ValueError: they do not fit the model's inputs.
    """
    if input_shapes is None:
        return model
    names, shapes = [tensor.name for tensor in model.inputs], [tuple(tensor.shape) for tensor in model.inputs]
    if not isinstance(input_shapes, Mapping):
        input_shapes = {name: input_shapes for name, shape in zip(names, shapes, strict=True) if None in shape[1:]}
    if unknown := [name for name in input_shapes if name not in names]:
        raise ValueError(f"input_shapes has {unknown}, which are no inputs of the model; it has {names}.")
    fixed = []
    for name, shape in zip(names, shapes, strict=True):
        given = input_shapes.get(name, shape[1:])
        if (
            not isinstance(given, Sequence)
            or len(given) != len(shape) - 1
            or any(own not in (None, size) for own, size in zip(shape[1:], given, strict=True))
            or not all(size is None or is_positive_integer(size) for size in given)
        ):
            raise ValueError(
                f"input_shapes must give the input '{name}' a shape such as {shape[1:]} with positive numbers in "
                f"place of None, without the batch size; received {given!r}."
            )
        fixed.append((shape[0], *given))
    return _around(model, names, fixed)


def _around(model, names, shapes):
    inputs = [
        keras.Input(batch_shape=shape, dtype=tensor.dtype, name=name)
        for tensor, name, shape in zip(model.inputs, names, shapes, strict=True)
    ]
    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    inputs = keras.tree.pack_sequence_as(structure, inputs)
    return keras.Model(inputs, model(inputs), name=model.name)


def _free(model, names, shapes):
    """A Sequential model with any batch size; None if it needs its own."""
    if any(getattr(layer, "stateful", False) for layer in model.layers):
        return None
    try:
        free = _around(model, names, [(None, *shape[1:]) for shape in shapes])
        with keras.StatelessScope():
            free(np.zeros((1, *shapes[0][1:]), model.inputs[0].dtype), training=False)
    except Exception:  # whatever a layer makes of another batch size
        return None
    return free


def _fit(name):
    if not _FIT.fullmatch(name):
        name = re.sub(r"[^A-Za-z0-9_.\\/>-]", "_", name)
        name = name if _FIT.fullmatch(name) else f"x{name}"
    return f"{name}_" if keyword.iskeyword(name) else name


def _check_different(what, names, originals):
    if len(set(names)) < len(names):
        raise ValueError(f"The {what} {originals} would have the names {names} in the file: rename them.")
