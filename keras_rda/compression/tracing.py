"""Layers made of layers, and subclassed models, read as functional models.

What their `call` does in Python is followed once, with symbolic tensors: what is made of Keras' layers and operations
becomes a graph. Python may also branch on values, keep a state or draw numbers, which a graph does not tell: so the
graph is believed only where it computes on numbers what the layer does, on several draws, with different weights.
"""

import contextlib
import inspect
import itertools
import math

import keras
import numpy as np

from keras_rda import _keras
from keras_rda.compression.activations import seems_elementwise

# For sizes that are not known: of sequences and of images.
SIZES = (8, 32, 64)
# What numbers are drawn for the check: of both signs, negative and small, positive and large.
DRAWS = (lambda x: x, lambda x: -0.1 * np.abs(x), lambda x: 10 * np.abs(x))


class Untraceable(Exception):
    """A layer cannot be read as a graph; the message completes "it"."""


def trace(layer, args, kwargs, is_tensor, used):
    """What a layer computes as a functional model.

    Args:
        layer: A built layer without weights of its own.
        args, kwargs: Its arguments.
        is_tensor: Whether a leaf of these is a tensor, with `shape` and `dtype`.
        used: Whether anything reads each of its outputs: what nothing reads need not depend on the inputs.

    Returns:
        The model; its inputs are the tensors among the arguments, in their order, its outputs those that are used.

    Raises:
        Untraceable: it cannot be read.
    """
    if own := _keras.own_variables(layer):
        raise Untraceable(f"has weights of its own ({', '.join(variable.name for variable in own)})")
    if layer.activity_regularizer is not None:
        raise Untraceable("has an activity regularizer")
    tensors = distinct(args, kwargs, is_tensor)
    if _keras.sublayers(layer):
        return _graph(layer, args, kwargs, tensors, used)
    # A layer of the user's own that acts on each element alone, or with arrays that it holds, is better left as it is:
    # it may do the same to each channel alone.
    unknown = not is_of_keras(layer) and not is_of_others(layer)
    if unknown and not (len(tensors) == 1 and acts_on_elements(layer, args, kwargs, tensors[0])):
        model = _graph(layer, args, kwargs, tensors, used)
        if not has_arrays(_keras.arguments_of_nodes(model), keras.KerasTensor):
            return model
    raise Untraceable("has no layers within")


def has_arrays(leaves, kind):
    """Whether there are arrays of several numbers among arguments, beside the symbolic tensors of a `kind`."""
    return any(math.prod(getattr(leaf, "shape", ())) > 1 for leaf in leaves if not isinstance(leaf, kind))


def is_of_keras(layer):
    """Whether a layer is one of Keras' own, of which the kind tells what it does."""
    return type(layer).__module__.startswith("keras.") and not isinstance(layer, keras.layers.Lambda)


def is_of_others(layer):
    """Whether a layer holds what is of another framework: it may have a state that Keras does not know, and that a call
    would change."""
    names = ("FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper")
    return isinstance(layer, tuple(getattr(keras.layers, name) for name in names if hasattr(keras.layers, name)))


def acts_on_elements(layer, args, kwargs, tensor):
    """Whether a layer that has no weights and is made of no layers acts on each element of `tensor`, the one among its
    arguments, alone, as far as numbers show."""
    if _keras.own_variables(layer) or _keras.sublayers(layer) or "float" not in tensor.dtype:
        return False
    shape = (2, *(size or SIZES[0] for size in tensor.shape[1:]))
    return seems_elementwise(lambda values: _call(layer, args, kwargs, [tensor], [values]), shape)


def _graph(layer, args, kwargs, tensors, used):
    # What is made for a batch of one, such as a mask, may do for any: the check tells.
    sizes = (None,) if all(tensor.shape[0] is not None for tensor in tensors) else (None, 1)
    for function, size in itertools.product(_functions(layer), sizes):
        try:
            return _traced(layer, function, args, kwargs, tensors, used, size)
        except Untraceable as error:
            failure = error
    raise failure


def _functions(layer):
    """What may compute the same as a layer: its call, but that of TimeDistributed is one of the layer within for each
    step."""
    if not isinstance(layer, keras.layers.TimeDistributed):
        return [layer.call]

    def inner(inputs, training=None, mask=None):
        return layer.layer(inputs, **({} if training is None else {"training": training}))

    def inner_of_samples(inputs, **options):
        """The steps of all samples as samples."""
        outputs = inner(keras.ops.reshape(inputs, (-1, *inputs.shape[2:])), **options)
        return keras.ops.reshape(outputs, (-1, inputs.shape[1], *outputs.shape[1:]))

    return [inner, inner_of_samples]


def _traced(layer, function, args, kwargs, tensors, used, batch_size):
    inputs = [
        keras.Input(batch_shape=(tensor.shape[0] or batch_size, *tensor.shape[1:]), dtype=tensor.dtype)
        for tensor in tensors
    ]
    with keras.StatelessScope() as scope, contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_keras.read_by_symbols(layer))
            # Before `call`, a layer makes all floats those that it computes with.
            cast = [layer.dtype_policy.convert_input(x, layer.autocast, layer.input_dtype) for x in inputs]
            outputs = _call(function, args, kwargs, tensors, cast)
        except Exception as error:  # whatever the user's code makes of symbolic tensors
            open_sizes = any(None in tensor.shape[1:] for tensor in tensors)
            advice = "; call the model on an Input of fixed size" if open_sizes else ""
            raise Untraceable(f"cannot be called with symbolic tensors ({first_line(error)}){advice}") from error
        leaves = _used(outputs, used)
        if not all(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
            raise Untraceable("returns what does not depend on its inputs")
        if any(scope.get_current_value(variable) is not None for variable in layer.variables):
            raise Untraceable("changes a state")
        try:
            model = keras.Model(inputs, leaves)
        except ValueError as error:
            raise Untraceable(f"computes with tensors from elsewhere ({first_line(error)})") from error
    if any(isinstance(leaf, keras.Variable) for leaf in _keras.arguments_of_nodes(model)):
        raise Untraceable("computes with weights of layers outside these layers' calls")
    if wrong := _keras.untold(model):
        raise Untraceable(f"is made of layers that do not tell what they return ({wrong.name})")
    if any(tensor.shape[0] is None for tensor in tensors):
        _keras.free_reshapes(model, batch_size)
    _check(layer, args, kwargs, tensors, model, used)
    if _keras.draws(layer):  # in training, which is not compared then
        raise Untraceable("draws numbers")
    return model


def _used(outputs, used):
    return list(itertools.compress(keras.tree.flatten(outputs), used))


def does_each_alone(call, tensor, axis, some=None):
    """Whether a call does the same to each channel of `tensor`, the one among its arguments, alone.

    Tried on several draws, after the first with other weights: with all channels and with some of them, in any order;
    in training too, where nothing random is within.

    Args:
        axis: That of the channels.
        some: Int array: the channels to try it with alone. By default half of them.
    """
    layer, number = call.layer, tensor.shape[axis]
    if number < 2 or "float" not in tensor.dtype:
        return False
    trains = _trains(layer, call.kwargs) and not _keras.is_random(layer)

    def apply(values, weights, options):
        with keras.StatelessScope(state_mapping=weights) as scope:
            arguments = call.kwargs | options
            made = _call(layer, call.args, arguments, [tensor], [keras.ops.convert_to_tensor(values)])
            if not weights and any(scope.get_current_value(variable) is not None for variable in layer.variables):
                raise Untraceable("changes a state")
        made = keras.ops.convert_to_numpy(made)
        if made.shape != values.shape:
            raise Untraceable("returns another shape")
        return made

    try:
        for seed, draw in enumerate(DRAWS):
            random, weights = np.random.default_rng(seed), _others(layer) if seed else []
            values = keras.ops.convert_to_numpy(_draw(tensor, SIZES[0], random, draw))
            order = random.permutation(number)
            for options in ({}, {"training": True})[: 1 + trains]:
                made = apply(values, weights, options)
                for subset in (order, order[: (number + 1) // 2] if some is None else some):
                    if not _are_close(made.take(subset, axis), apply(values.take(subset, axis), weights, options)):
                        return False
        return True
    except Exception:  # whatever a layer makes of fewer channels
        return False


def as_attention(layer, args, kwargs, is_tensor):
    """A layer of a class derived from `MultiHeadAttention` as one of that class itself.

    Args:
        layer, args, kwargs, is_tensor: As for `trace`.

    Returns:
        A layer with the same weights, and those of `kwargs` that it takes.

    Raises:
        Untraceable: it computes something else.
    """
    plain = _keras.as_base(layer, keras.layers.MultiHeadAttention)
    if len(plain.weights) != (8 if plain.get_config()["use_bias"] else 4) or _keras.added_layers(layer):
        raise Untraceable("has other weights or layers than multi-head attention")
    taken = inspect.signature(plain.call).parameters
    given = {name: value for name, value in kwargs.items() if name in taken or value is not None}
    if unknown := given.keys() - taken.keys():
        raise Untraceable(f"takes what multi-head attention does not ({', '.join(sorted(unknown))})")
    tensors = distinct(args, kwargs, is_tensor)

    def model(values, **options):
        return _call(plain, args, given | options, tensors, values)

    _check(layer, args, kwargs, tensors, model, itertools.repeat(True))
    return plain, given


def distinct(args, kwargs, is_tensor):
    """The tensors among arguments, each once: a layer may ask whether two of them are one."""
    return list(dict.fromkeys(leaf for leaf in keras.tree.flatten((args, kwargs)) if is_tensor(leaf)))


def _call(function, args, kwargs, tensors, values):
    """The function of the arguments, with `values` in place of `tensors`."""
    value_of = {id(tensor): value for tensor, value in zip(tensors, values, strict=True)}
    args, kwargs = keras.tree.map_structure(lambda leaf: value_of.get(id(leaf), leaf), (args, kwargs))
    return function(*args, **kwargs)


def _check(layer, args, kwargs, tensors, model, used):
    """Raise unless the model, a function of `tensors`, computes what the layer does, as far as it is used, on several
    draws of numbers, and with other weights after the first: what is computed of weights outside their layers would be
    a constant of the graph. In training too, where nothing random is within."""
    weights = []
    for seed, draw in enumerate(DRAWS):
        random, ours = np.random.default_rng(seed), None
        if seed == 1:  # once: it is as much memory as the layer's
            weights = _others(layer)
        for size in SIZES:
            values = [_draw(tensor, size, random, draw) for tensor in tensors]
            try:
                theirs, ours = _both(layer, args, kwargs, tensors, model, used, values, weights, {})
                if any(isinstance(leaf, keras.KerasTensor) for leaf in keras.tree.flatten((ours, theirs))):
                    ours, failure = None, "it has no values"
                break
            except Exception as error:  # too small an image, or whatever the layer refuses
                failure = error
        if ours is None:
            raise Untraceable(f"cannot be tried on numbers ({first_line(failure)})")
        if not _are_close(theirs, ours):
            raise Untraceable("computes something else than its graph: it draws numbers, or looks at values or weights")
    if _trains(layer, kwargs) and not _keras.is_random(layer):
        try:
            alike = _are_close(*_both(layer, args, kwargs, tensors, model, used, values, weights, {"training": True}))
        except Exception as error:
            raise Untraceable(f"cannot be tried in training ({first_line(error)})") from error
        if not alike:
            raise Untraceable("computes something else in training than its graph")


def _trains(layer, kwargs):
    """Whether a call may do something else in training; Keras lets `fit` have its way where a graph says False."""
    return "training" in inspect.signature(layer.call).parameters and not kwargs.get("training")


def _others(layer):
    """Other weights than a layer's, for a scope without state."""
    return [(v, 1.25 * v + 0.1) for v in layer.variables if "float" in v.dtype]


def _both(layer, args, kwargs, tensors, model, used, values, weights, options):
    """What the layer, as far as it is used, and the model make of values, with other `weights`."""
    with keras.StatelessScope(state_mapping=weights):
        theirs = _used(_call(layer, args, kwargs | options, tensors, values), used)
    with keras.StatelessScope(state_mapping=weights):
        return theirs, model(values, **options)


def _are_close(theirs, ours):
    for a, b in zip(keras.tree.flatten(ours), keras.tree.flatten(theirs), strict=True):
        a, b = keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b)
        scale = np.abs(b[np.isfinite(b)]).max(initial=0.0) if b.dtype.kind == "f" else 0
        if a.shape != b.shape or not np.allclose(a, b, rtol=1e-5, atol=1e-5 * scale, equal_nan=True):
            return False
    return True


def _draw(tensor, size, random, draw):
    shape = [2 if axis == 0 and length is None else length or size for axis, length in enumerate(tensor.shape)]
    if "float" in tensor.dtype:
        return keras.ops.convert_to_tensor(draw(random.normal(size=shape)).astype(tensor.dtype))
    # Indices that every table has, and masks.
    return keras.ops.cast(random.integers(2, size=math.prod(shape)).reshape(shape), tensor.dtype)


def first_line(error):
    """What an error says, in short."""
    return str(error).strip().partition("\n")[0][:120]
