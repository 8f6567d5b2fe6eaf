"""A Keras model as a flat list of calls, nested models unrolled.

Keras' own graph has no public counterpart: `_keras` knows the private names.
"""

import dataclasses
import inspect
import itertools
import math

import keras

from keras_rda._keras import flat_layers, functional, has_mask, levels, nodes_restored, operation_of
from keras_rda.compression import tracing


@dataclasses.dataclass(eq=False)
class Tensor:
    """A symbolic tensor of the unrolled graph; `shape` has the batch first, None where unknown.

    `optional`: an input of the model that may be None. `parts`: in how many entries of the batch one sample is, such as
    the steps of a sequence or the windows of an image; None where that is not known.
    """

    shape: tuple
    dtype: str
    optional: bool = False
    parts: int | None = 1


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a layer (or of a `keras.Operation` such as `keras.ops.add` on symbolic tensors).

    `args` and `kwargs` are the arguments with `Tensor`s in place of symbolic tensors. `name` is the layer's name,
    prefixed with those of the layers and models around it where another layer has it too. `opaque` says why a layer
    made of layers could not be read; it completes "it". `masked`: whether a layer that is not known is given a mask, or
    makes one.
    """

    layer: keras.Operation
    name: str
    args: tuple
    kwargs: dict
    outputs: list
    opaque: str = ""
    masked: bool = False

    @property
    def inputs(self):
        return [leaf for leaf in keras.tree.flatten((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    def fill(self, value_of):
        """(args, kwargs) with `value_of(tensor)` in place of every `Tensor`."""
        return keras.tree.map_structure(
            lambda leaf: value_of(leaf) if isinstance(leaf, Tensor) else leaf, (self.args, self.kwargs)
        )


@dataclasses.dataclass
class FlatModel:
    """Calls in topological order, with the model's inputs and outputs as `Tensor`s.

    `traced`: names of the layers made of layers whose calls are among them in their place.
    """

    inputs: list
    calls: list
    outputs: list
    traced: list


def without(model):
    """What to say of a model without a graph."""
    name = f"{type(model).__name__} '{model.name}'"
    if isinstance(model, keras.Sequential):
        return (
            f"{name} is not built. Build it first: put a keras.Input(shape) before its layers, or call "
            "model.build((None, *shape))."
        )
    if not model.built:
        return f"{name} is not built. Call it once on data."
    why = "has none"
    try:
        _symbolic(model)
    except tracing.Untraceable as error:
        why = str(error)
    return (
        f"{name} {why}. Call it on a keras.Input of the right shape and dtype, keras.Model(x, model(x)); or build the "
        "same network with keras.Model(inputs, outputs) from the layers it holds."
    )


def as_functional(model):
    """The functional model that `model` is, or that a built subclassed one makes of an input; None if it has none.

    A subclassed model is one call of that graph, which `read` reads further if it can.
    """
    if functional(model) is not None:
        return model
    if isinstance(model, keras.Sequential) or not model.built:
        return None
    try:
        return _symbolic(model)
    except tracing.Untraceable:
        return None


def _symbolic(model):
    """A functional model whose one call is that of a subclassed one."""
    try:
        with nodes_restored(model):
            if getattr(model, "inputs", None):  # a functional one that overrides `call`
                inputs = keras.tree.map_structure(
                    lambda own: keras.Input(own.shape[1:], dtype=own.dtype, name=own.name), model.input
                )
            else:
                shape = (model.get_build_config() or {}).get("input_shape")
                if shape is None:
                    raise tracing.Untraceable("does not say which inputs it takes")
                inputs = _inputs(shape, _dtype(model, shape))
            return keras.Model(inputs, model(inputs), name=model.name)
    except tracing.Untraceable:
        raise
    except Exception as error:  # whatever the user's code makes of symbolic tensors
        raise tracing.Untraceable(f"cannot be called with symbolic tensors ({tracing.first_line(error)})") from error


def _dtype(model, shape):
    """The dtype of a subclassed model's inputs, which Keras does not keep: that of indices where it has a table, else
    of its weights."""
    if not any(isinstance(layer, keras.layers.Embedding) for layer in flat_layers(model)):
        return model.variable_dtype
    if not isinstance(shape, (tuple, list)) or not all(isinstance(size, (int, type(None))) for size in shape):
        raise tracing.Untraceable("has several inputs, some of which may be indices")
    return "int32"


def _inputs(shape, dtype, name=None):
    """Inputs of a shape, or of a structure of shapes, but for the size of the batch."""
    if isinstance(shape, dict):
        return {key: _inputs(own, dtype, key) for key, own in shape.items()}
    if not all(isinstance(size, (int, type(None))) for size in shape):
        return [_inputs(own, dtype) for own in shape]
    return keras.Input(shape[1:], dtype=dtype, name=name)


def read(model, is_known):
    """Return the `FlatModel` of a functional `model` (see `functional`).

    Args:
        is_known: Whether a layer is to stay one call; else, if it is made of layers, these are read (`tracing`).
    """
    model = functional(model)
    inputs = [
        Tensor(tuple(tensor.shape), tensor.dtype, getattr(operation_of(tensor), "optional", False))
        for tensor in model.inputs
    ]
    refused = set()
    while True:
        reader = _Reader(is_known, refused)
        outputs = reader.unroll(model, inputs)
        # A layer that is called again in a way that cannot be read alike would be there twice.
        mixed = reader.unrolled & reader.attentions.keys()
        mixed |= (reader.unrolled | reader.attentions.keys()) & {id(call.layer) for call in reader.calls if call.opaque}
        if not mixed:
            return FlatModel(inputs, reader.calls, outputs, reader.traced)
        refused |= mixed


class _Reader:
    """Lists the calls of a model, and of the models and layers within.

    Args:
        is_known: As for `read`.
        refused: `id`s of layers that stay one call each.

    Attributes:
        calls: What was listed.
        unrolled: `id`s of layers made of layers, of which the calls within were listed; `traced`: their names.
        attentions: The layers that were listed as multi-head attention, by `id`s of those that are derived from it.
    """

    def __init__(self, is_known, refused):
        self.calls, self.unrolled, self.traced, self.attentions = [], set(), [], {}
        self._is_known, self._refused, self._names = is_known, refused, {}

    def unroll(self, model, inputs, prefix=(), extra=None):
        """List the calls of a functional model on `inputs`; return its outputs.

        Args:
            prefix: Names of the models and layers around it.
            extra: Keyword arguments that all layers in it are given which take them.
        """
        tensors = {id(symbolic): tensor for symbolic, tensor in zip(model.inputs, inputs, strict=True)}
        read = {id(tensor) for nodes in levels(model) for node in nodes for tensor in node.input_tensors}
        read |= set(map(id, model.outputs))
        for nodes in levels(model):
            for node in nodes:
                # Keras runs a graph the same way: inputs that feed nothing, and what hangs on them, are skipped.
                if node.is_input or any(id(tensor) not in tensors for tensor in node.input_tensors):
                    continue
                layer = node.operation
                args, kwargs = node.arguments.fill_in(tensors)
                if _accepts_training(layer):
                    kwargs = {**kwargs, **{k: value for k, value in (extra or {}).items() if kwargs.get(k) is None}}
                used = [id(tensor) in read for tensor in node.outputs]
                tensors.update(self._call(node, layer, args, kwargs, used, prefix))
        return [tensors[id(symbolic)] for symbolic in model.outputs]

    def _call(self, node, layer, args, kwargs, used, prefix):
        """List a call, or those within it; return pairs of `id`s of its symbolic outputs and what they are here."""
        inner, flat, reason = _inner(layer, args, kwargs), keras.tree.flatten(args[:1]), ""
        masked, symbolic = False, node.outputs
        if inner is None and isinstance(layer, keras.layers.Layer) and not self._is_known(layer):
            flat = tracing.distinct(args, kwargs, _is_tensor)
            try:
                masked = any(has_mask(tensor) for tensor in (*node.input_tensors, *node.outputs))
                if id(layer) in self._refused:
                    raise tracing.Untraceable("is called elsewhere in a way that cannot be read")
                if masked:
                    raise tracing.Untraceable("is given a mask, or makes one")
                attention = self._attention(layer, args, kwargs)
                if attention is None:
                    inner = tracing.trace(layer, args, kwargs, _is_tensor, used)
                    symbolic = list(itertools.compress(node.outputs, used))
                    self.traced.append(layer.name)
                    self.unrolled.add(id(layer))
                else:
                    layer, kwargs = attention
            except tracing.Untraceable as error:
                reason = str(error)
        if inner is None:
            outputs = [
                Tensor(tuple(spec.shape), spec.dtype, parts=_parts(layer, args, kwargs, spec.shape))
                for spec in _outputs(node, layer, args, kwargs)
            ]
            self.calls.append(Call(layer, self._name(layer, prefix), args, kwargs, outputs, reason, masked))
        else:
            passed = {} if kwargs.get("training") is None else {"training": kwargs["training"]}
            outputs = self.unroll(inner, flat, (*prefix, layer.name), passed)
        return zip(map(id, symbolic), outputs, strict=True)

    def _attention(self, layer, args, kwargs):
        """A layer of a class derived from multi-head attention as one of that itself, the same in all calls; None if
        it is none."""
        if not isinstance(layer, keras.layers.MultiHeadAttention):
            return None
        try:
            plain, kwargs = tracing.as_attention(layer, args, kwargs, _is_tensor)
        except tracing.Untraceable:
            return None
        return self.attentions.setdefault(id(layer), plain), kwargs

    def _name(self, layer, prefix):
        """A layer keeps its name; a second layer of that name (from a nested model) gets the nested models' in
        front."""
        if id(layer) not in self._names:
            taken = set(self._names.values())
            name = layer.name
            for outer in reversed(prefix):
                if name not in taken:
                    break
                name = f"{outer}_{name}"
            base, number = name, 1
            while name in taken:
                name, number = f"{base}_{number}", number + 1
            self._names[id(layer)] = name
        return self._names[id(layer)]


def _is_tensor(leaf):
    return isinstance(leaf, Tensor)


def _parts(operation, args, kwargs, shape):
    """The `Tensor.parts` of what an operation returns in this shape: `keras.ops.reshape` may divide a sample."""
    given = [leaf for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, Tensor)]
    parts = [tensor.parts for tensor in given]
    if None in parts:
        return None
    if isinstance(operation, keras.layers.Layer) or type(operation).__name__ != "Reshape" or None in shape[1:]:
        return max(parts, default=1)
    sizes, size = given[0].shape[1:], math.prod(shape[1:])
    total = 0 if None in sizes else parts[0] * math.prod(sizes)
    return total // size if total and size and total % size == 0 else None


def _outputs(node, layer, args, kwargs):
    """Symbolic tensors like those that the call of a node returns for `args` and `kwargs`.

    Around a nested model more of the sizes may be known than when its graph was made.
    """
    given = [leaf for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, Tensor)]
    if all(tensor.shape == tuple(own.shape) for tensor, own in zip(given, node.input_tensors, strict=True)):
        return node.outputs
    args, kwargs = keras.tree.map_structure(
        lambda leaf: keras.KerasTensor(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf, (args, kwargs)
    )
    return keras.tree.flatten(layer.compute_output_spec(*args, **kwargs))


def _inner(layer, args, kwargs):
    """The graph of a nested model, if this call of it can be unrolled."""
    inner = functional(layer) if isinstance(layer, keras.Model) else None
    if inner is None or len(args) != 1 or kwargs.get("mask") is not None:
        return None
    tensors = keras.tree.flatten(args[0])
    structure = inner.inputs if isinstance(layer, keras.Sequential) else layer.input
    names = sorted(structure) if isinstance(structure, dict) else None
    if (sorted(args[0]) if isinstance(args[0], dict) else None) != names or len(tensors) != len(inner.inputs):
        return None
    # Keras reshapes (batch,) to (batch, 1) and back where the ranks of a nested model's inputs differ.
    same = all(len(a.shape) == len(b.shape) and a.dtype == b.dtype for a, b in zip(tensors, inner.inputs, strict=True))
    return inner if same else None


def _accepts_training(layer):
    return isinstance(layer, keras.Model) or "training" in inspect.signature(layer.call).parameters
