"""What is known of Keras' layers: which entry counts their outputs, how their kernels lie, where those are applied.

`GroupL1` takes its groups from here, `compress` how a layer shrinks, and its report the multiply-adds.
"""

import math
from typing import Literal, NamedTuple

import keras

from keras_rda import _keras
from keras_rda.kernels import is_kernel, is_nameless


class Axes(NamedTuple):
    """The axes of a kernel that number its input channels and its outputs, counted from the end.

    None where there are no such channels to tell apart: the inputs of a convolution with several groups.
    """

    inputs: tuple[int, ...] | None
    outputs: tuple[int, ...] | None


MIXING = Axes((-2,), (-1,))  # (…, inputs, outputs): every output reads every input
TRANSPOSED = Axes((-1,), (-2,))  # (…, outputs, inputs)
DEPTHWISE = Axes((-2,), (-2, -1))  # (…, channels, outputs of a channel)


class LayerFacts(NamedTuple):
    """One kind of layer.

    Attributes:
        size: The entry of its configuration that counts its outputs (for attention its heads); None where they follow
            from the inputs.
        axes: Those of its kernels; None where it has none, or where the layer itself tells (see `axes_in`).
        positions: Of which tensors the positions count how often a kernel is applied; None if it multiplies nothing,
            or element by element.
    """

    size: str | None
    axes: Axes | None
    positions: Literal["inputs", "outputs"] | None


def _of(facts, *names):
    return {getattr(keras.layers, name): facts for name in names}


TABLE = {
    **_of(LayerFacts("units", MIXING, "outputs"), "Dense"),
    **_of(LayerFacts("filters", MIXING, "outputs"), "Conv1D", "Conv2D", "Conv3D"),
    **_of(
        LayerFacts("filters", TRANSPOSED, "inputs"),
        *("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
    ),
    **_of(LayerFacts(None, DEPTHWISE, "outputs"), "DepthwiseConv1D", "DepthwiseConv2D"),
    **_of(LayerFacts("filters", None, "outputs"), "SeparableConv1D", "SeparableConv2D"),
    **_of(LayerFacts("output_shape", None, "outputs"), "EinsumDense"),
    **_of(LayerFacts("num_heads", None, None), "MultiHeadAttention"),
    **_of(LayerFacts("units", MIXING, "inputs"), "SimpleRNN", "GRU", "LSTM"),
    **_of(LayerFacts("output_dim", None, None), "Embedding"),
    **_of(LayerFacts(None, None, None), "PReLU"),
}
# Kernels of layers that have two, such as separable convolutions.
_BY_NAME = {"depthwise_kernel": DEPTHWISE, "pointwise_kernel": MIXING}


def of(layer):
    """The `LayerFacts` of a layer, a subclass's those of its base; None if they are not known."""
    return next((TABLE[kind] for kind in type(layer).__mro__ if kind in TABLE), None)


def channel_axis(layer, rank):
    """The axis of the channels in a layer's inputs or outputs of this rank."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1


def axes_of(model):
    """The `Axes` of every kernel in the layers of a built model, by path, as non-negative ints."""
    found = {}
    for layer in _keras.flat_layers(model):
        for variable in _keras.own_trainable_variables(layer):
            if is_kernel(variable):
                axes = _from_start(axes_in(layer, variable), len(variable.shape))
                axes = axes or guess_axes(variable.path, variable.shape) or Axes(None, None)
                if of(layer) is not None and getattr(layer, "groups", 1) > 1:
                    axes = Axes(None, axes.outputs)
                if found.setdefault(variable.path, axes) != axes:
                    raise ValueError(
                        f"Two kernels of the model {model.name!r} have the path {variable.path!r} and are laid out "
                        "differently: give their layers, or the models around them, different names."
                    )
    return found


def guess_axes(path, shape):
    """The `Axes` of a kernel by its name and rank, as non-negative ints.

    Args:
        path: Path of the variable, such as `"conv2d_1/kernel"`.
        shape: Its shape: Dense (inputs, outputs), convolution (…, inputs, outputs).

    Returns:
        `Axes`; or None where name and rank do not tell: a kernel of rank 3 may belong to Conv1D, EinsumDense or
        attention, one without a name to a module of torch.
    """
    rank = len(shape)
    if is_nameless(path):
        return None
    if rank == 3 and "conv1d" not in path and not any(name in path for name in _BY_NAME):
        return None
    # A convolution with a single filter has no filter to spare, so (…, channels, 1) is read as depthwise.
    if rank > 2 and ("depthwise" in path or shape[-1] == 1):
        return _from_start(DEPTHWISE, rank)
    return _from_start(TRANSPOSED if "transpose" in path else MIXING, rank)


def axes_in(layer, variable):
    """The `Axes` of a kernel of this layer; None if they are not known. Those of a grouped one's inputs are of a group.

    A separable convolution has two kernels, which lie differently, and EinsumDense has an equation.
    """
    facts = of(layer)
    if isinstance(layer, keras.layers.EinsumDense):
        _, kernel, outputs = operands(layer.equation)
        contracted = tuple(axis for axis, letter in enumerate(kernel) if letter not in outputs)
        kept = tuple(axis for axis, letter in enumerate(kernel) if letter in outputs)
        return Axes(contracted or None, kept or None)
    return _BY_NAME.get(variable.name) or (facts and facts.axes)


def operands(equation):
    """The letters of inputs, kernel and outputs in an equation such as "abc,cd->abd"."""
    both, outputs = equation.replace(" ", "").split("->")
    return *both.split(","), outputs


def positions(layer, inputs, outputs):
    """At how many positions of one sample the kernels of a layer are applied, by the shapes of its inputs and outputs.

    None where a shape is not known.
    """
    shape = inputs if of(layer).positions == "inputs" else outputs
    if isinstance(layer, keras.layers.EinsumDense):
        _, kernel, letters = operands(layer.equation)
        letters = letters.replace("...", "." * (len(shape) + 3 - len(letters)))
        numbered = [axis for axis, letter in enumerate(letters) if letter in kernel]
    else:
        numbered = [channel_axis(layer, len(shape))]
    sizes = [size for axis, size in enumerate(shape) if axis not in (0, *numbered)]
    return None if None in sizes else math.prod(sizes)


def _from_start(axes, rank):
    """The same `Axes` as non-negative ints, for a kernel of this rank."""
    return axes and Axes(*(numbers and tuple(axis % rank for axis in numbers) for numbers in axes))
