"""Which rule each kind of layer has. To teach `compress` a layer, add it to `RULES`.

A rule is called with the analysis and a call, and gives the call's outputs their channels: a function of `passing`, or
a `rule.Rule` if the layer has weights or a configuration that shrink. Whatever has no rule is a wall: its inputs stay
whole, and its outputs begin anew.
"""

import warnings

import keras
import numpy as np

from keras_rda.compression import attention, graph, passing
from keras_rda.compression.einsum import Einsum
from keras_rda.compression.linear import DEPTHWISE, Linear, Separable
from keras_rda.compression.moving import Move, rearrange, split
from keras_rda.compression.per_channel import MeanSquare, PerChannel, Table
from keras_rda.compression.recurrent import Recurrent
from keras_rda.compression.rule import Rule
from keras_rda.compression.walls import mixing, opaque, wall

layers = keras.layers


def flatten(model, trace=True):
    """The `FlatModel` of a model; None if it has no graph. With `trace`, layers that have no rule are read where they
    are made of layers."""
    functional = graph.as_functional(model)
    if functional is None:
        return None
    return graph.read(functional, lambda layer: not trace or _rule(layer) is not None)


def read(analysis, flat):
    """Give every tensor of a `FlatModel` its channels, and fix what no zero can remove."""
    for tensor in flat.inputs:
        analysis.channels[tensor] = opaque(analysis, tensor, "an input of the model")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The object being serialized includes a `lambda`", UserWarning)
        for call in flat.calls:
            forward(analysis, call)
    for tensor in flat.outputs:
        analysis.fix(analysis.channels[tensor].ids, "an output of the model")
    for key in analysis.uses.keys() & analysis.walled.keys():  # one call of the layer is a wall: it stays whole
        for channels in (analysis.uses[key].inputs, analysis.uses[key].outputs):
            analysis.fix(channels.ids, analysis.walled[key])


def forward(analysis, call):
    """Give the outputs of `call` their channels."""
    kind, rule = type(call.layer), _rule(call.layer)
    if rule is None:
        if isinstance(call.layer, layers.Layer) and passing.each_alone(analysis, call):
            return None
        why = f" It {call.opaque}." if call.opaque else ""
        if isinstance(call.layer, layers.Layer):
            analysis.notes.append(
                f"{kind.__name__} '{call.name}': unknown, so no channel is cut on either side of it.{why}"
            )
        else:
            analysis.unknown_operations.add(kind.__name__)
        which = f", which {call.opaque}" if call.opaque else ""
        return wall(analysis, call, f"unknown layer '{call.name}'{which}")
    if isinstance(rule, Rule) and not _has_configuration(call.layer):
        return wall(analysis, call, f"'{call.name}' has no configuration from which a smaller one can be made")
    return rule(analysis, call)


def _rule(layer):
    kind = type(layer)
    private = INTERNAL.get(kind.__name__) if kind.__module__.startswith(("keras.src.ops.", "keras.src.appl")) else None
    return RULES.get(kind, private)


def _has_configuration(layer):
    """Whether the layer can say how it was made: one with a regularizer or constraint without configuration cannot."""
    try:
        layer.get_config()
    except (NotImplementedError, TypeError, ValueError, AttributeError):
        return False
    return True


_LINEAR = Linear()
_ADD = passing.merge(passing.of_constants(sum))
_SUBTRACT = passing.merge(passing.of_constants(lambda arrays: arrays[0] - arrays[1]))
_MULTIPLY = passing.merge(passing.product)
_MAXIMUM = passing.merge(passing.of_constants(lambda arrays: np.max(arrays, axis=0)))
_DIVIDE = passing.merge(passing.of_constants(lambda arrays: arrays[0] / arrays[1]))
_MINIMUM = passing.merge(passing.of_constants(lambda arrays: np.min(arrays, axis=0)))
_POWER = passing.merge(passing.of_constants(lambda arrays: arrays[0] ** arrays[1]))


def _named(*names):
    """Layers of these names; a few came with later versions of Keras."""
    return [getattr(layers, name) for name in names if hasattr(layers, name)]


def _dimensions(name, *numbers):
    return _named(*(f"{name}{number}D" for number in numbers))


RULES = {
    layers.Dense: _LINEAR,
    **dict.fromkeys(_dimensions("Conv", 1, 2, 3), _LINEAR),
    **dict.fromkeys(_named("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), _LINEAR),
    **dict.fromkeys(_dimensions("DepthwiseConv", 1, 2), DEPTHWISE),
    **dict.fromkeys(_dimensions("SeparableConv", 1, 2), Separable()),
    layers.EinsumDense: Einsum(),
    layers.Embedding: Table(),
    layers.MultiHeadAttention: attention.Heads(),
    layers.SimpleRNN: Recurrent(gates=1, candidate=0),
    layers.GRU: Recurrent(gates=3, candidate=2),
    layers.LSTM: Recurrent(gates=4, candidate=2),
    **dict.fromkeys([layers.BatchNormalization, layers.PReLU], PerChannel()),
    **dict.fromkeys([layers.ReLU, layers.LeakyReLU, layers.ELU], passing.elementwise),
    layers.Activation: passing.activation_layer,
    layers.Softmax: passing.softmax,
    **dict.fromkeys([layers.LayerNormalization, layers.UnitNormalization], passing.normalization),
    layers.RMSNormalization: MeanSquare(),
    layers.Rescaling: passing.rescaling,
    layers.Normalization: passing.own_channels,
    **dict.fromkeys(
        _named(
            *("Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise", "SpatialDropout1D", "SpatialDropout2D"),
            *("SpatialDropout3D", "ActivityRegularization", "Identity"),
            # Augmentation, which happens in training only.
            *("RandomBrightness", "RandomColorDegeneration", "RandomColorJitter", "RandomContrast", "RandomErasing"),
            *("RandomElasticTransform", "RandomFlip", "RandomGaussianBlur", "RandomGrayscale", "RandomHue"),
            *("RandomInvert", "RandomPerspective", "RandomPosterization", "RandomRotation", "RandomSaturation"),
            *("RandomSharpness", "RandomShear", "RandomTranslation", "RandomZoom"),
        ),
        passing.identity,
    ),
    **{
        kind: passing.spatial(passing.same)
        for name in (
            *("MaxPooling", "AveragePooling", "GlobalMaxPooling", "GlobalAveragePooling", "AdaptiveMaxPooling"),
            *("AdaptiveAveragePooling", "UpSampling", "Cropping"),
        )
        for kind in _dimensions(name, 1, 2, 3)
    },
    **dict.fromkeys(_dimensions("ZeroPadding", 1, 2, 3), passing.spatial(passing.padding)),
    layers.Resizing: passing.spatial(passing.resizing),
    layers.Add: _ADD,
    layers.Subtract: _SUBTRACT,
    layers.Multiply: _MULTIPLY,
    layers.Average: passing.merge(passing.of_constants(lambda arrays: sum(arrays) / len(arrays))),
    layers.Maximum: _MAXIMUM,
    layers.Minimum: _MINIMUM,
    layers.Concatenate: passing.concatenate,
    layers.Flatten: Move(),
    layers.Reshape: Move("target_shape"),
    layers.Permute: passing.permute,
    layers.RepeatVector: passing.repeat,
    **dict.fromkeys(
        _named(
            *("GroupNormalization", "Dot", "Masking", "Attention", "AdditiveAttention"),
            *("RNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"),
        ),
        mixing,
    ),
}


# Classes that Keras does not export, by name: the operations behind `keras.ops`, and layers of `keras.applications`.
INTERNAL = {
    "CustomScaleLayer": passing.merge(passing.of_constants(lambda arrays: np.where(np.any(arrays, axis=0), np.nan, 0))),
    "LayerScale": passing.own_channels,
    "StochasticDepth": passing.identity,
    "Add": _ADD,
    "Subtract": _SUBTRACT,
    "Multiply": _MULTIPLY,
    **dict.fromkeys(("Divide", "TrueDivide"), passing.fragile(_DIVIDE)),
    "Maximum": _MAXIMUM,
    "Minimum": _MINIMUM,
    "Concatenate": passing.concatenate,
    "Power": passing.fragile(_POWER),
    "Where": passing.merge(passing.where),
    "Stack": passing.stack,
    "Pad": passing.pad,
    **dict.fromkeys(("Flip", "Roll"), passing.along),
    **dict.fromkeys(
        ("Log", "Log1p", "Log2", "Log10", "Reciprocal", "Rsqrt", "Sqrt"), passing.fragile(passing.elementwise)
    ),
    **dict.fromkeys(("Cast", "ConvertToTensor"), passing.cast),
    "Any": mixing,
    **dict.fromkeys(("Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "NotEqual"), passing.comparison),
    "Einsum": attention.einsum,
    "Matmul": attention.matmul,
    "DotProductAttention": attention.dot_product_attention,
    "Reshape": Move("newshape"),
    "Split": split,
    **dict.fromkeys(
        ("ExpandDims", "GetItem", "Moveaxis", "Repeat", "Squeeze", "Swapaxes", "Transpose"),
        rearrange,
    ),
    **dict.fromkeys(("LogSoftmax", "Softmax"), passing.softmax),
    "Mean": passing.reduce(zero_only=False),
    "Max": passing.reduce(zero_only=False),
    "Min": passing.reduce(zero_only=False),
    **dict.fromkeys(("Sum", "Std", "Var"), passing.reduce(zero_only=True)),
    **dict.fromkeys(("AveragePool", "MaxPool"), passing.spatial(passing.same)),
    "Resize": passing.spatial(passing.resizing),
    "Glu": passing.gated,
    **dict.fromkeys(
        (
            *("Abs", "Absolute", "Arctan", "Ceil", "Celu", "Clip", "Copy", "Cos", "Elu", "Erf", "Exp", "Expm1"),
            *("Floor", "Gelu", "HardShrink", "HardSigmoid", "HardSilu", "HardTanh", "LeakyRelu", "LogSigmoid"),
            *("Negative", "Relu", "Relu6", "Round", "Selu", "Sigmoid", "Sign", "Silu", "Sin", "SoftShrink", "Softplus"),
            *("Softsign", "SparsePlus", "SparseSigmoid", "Square", "Squareplus", "StopGradient", "Tanh", "TanhShrink"),
            *("Threshold", "Trunc"),
        ),
        passing.elementwise,
    ),
}
