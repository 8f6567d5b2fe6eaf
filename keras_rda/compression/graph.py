"""A Keras model as a flat list of calls, nested models unrolled.

Keras' own graph has no public counterpart: `_keras` knows the private names.
"""

import dataclasses
import inspect

import keras

from keras_rda._keras import functional, levels, operation_of


@dataclasses.dataclass(eq=False)
class Tensor:
    """A symbolic tensor of the unrolled graph; `shape` has the batch first, None where unknown.

    `optional`: an input of the model that may be None.
    """

    shape: tuple
    dtype: str
    optional: bool = False


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a layer (or of a `keras.Operation` such as `keras.ops.add` on symbolic tensors).

    `args` and `kwargs` are the arguments with `Tensor`s in place of symbolic tensors. `name` is the layer's name,
    prefixed with those of the nested models around it where another layer has it too.
    """

    layer: keras.Operation
    name: str
    args: tuple
    kwargs: dict
    outputs: list

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
    """Calls in topological order, with the model's inputs and outputs as `Tensor`s."""

    inputs: list
    calls: list
    outputs: list


def advice(model):
    """What to do about a model without a graph."""
    if isinstance(model, keras.Sequential):
        return "Build it first: put a keras.Input(shape) before its layers, or call model.build((None, *shape))."
    return (
        "Its layers are called in Python: build the same network with keras.Model(inputs, outputs) from the layers it "
        "holds."
    )


def read(model):
    """Return the `FlatModel` of a functional `model` (see `functional`)."""
    model = functional(model)
    inputs = [
        Tensor(tuple(tensor.shape), tensor.dtype, getattr(operation_of(tensor), "optional", False))
        for tensor in model.inputs
    ]
    names = {}
    calls = []
    outputs = _unroll(model, inputs, (), {}, calls, names)
    return FlatModel(inputs, calls, outputs)


def _unroll(model, inputs, prefix, extra, calls, names):
    tensors = {id(symbolic): tensor for symbolic, tensor in zip(model.inputs, inputs, strict=True)}
    for nodes in levels(model):
        for node in nodes:
            # Keras runs a graph the same way: inputs that feed nothing, and what hangs on them, are skipped.
            if node.is_input or any(id(tensor) not in tensors for tensor in node.input_tensors):
                continue
            layer = node.operation
            args, kwargs = node.arguments.fill_in(tensors)
            if _accepts_training(layer):
                kwargs = {**kwargs, **{key: value for key, value in extra.items() if kwargs.get(key) is None}}
            inner = _inner(layer, args, kwargs)
            if inner is None:
                outputs = [Tensor(tuple(tensor.shape), tensor.dtype) for tensor in node.outputs]
                calls.append(Call(layer, _unique_name(layer, prefix, names), args, kwargs, outputs))
            else:
                passed = {} if kwargs.get("training") is None else {"training": kwargs["training"]}
                flat = keras.tree.flatten(args[0])
                outputs = _unroll(inner, flat, (*prefix, layer.name), passed, calls, names)
            tensors.update((id(symbolic), tensor) for symbolic, tensor in zip(node.outputs, outputs, strict=True))
    return [tensors[id(symbolic)] for symbolic in model.outputs]


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


def _unique_name(layer, prefix, names):
    """A layer keeps its name; a second layer of that name (from a nested model) gets the nested models' in front."""
    if id(layer) not in names:
        taken = set(names.values())
        name = layer.name
        for outer in reversed(prefix):
            if name not in taken:
                break
            name = f"{outer}_{name}"
        base, number = name, 1
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        names[id(layer)] = name
    return names[id(layer)]
