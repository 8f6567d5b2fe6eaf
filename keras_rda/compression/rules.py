"""How each kind of layer carries channels. To teach `compress` a layer, add it to `RULES`.

A rule is called with the analysis and a call, and gives the call's outputs their channels. The rule of a layer that is
cut is a `Rule`, which also says how the layer's configuration and weights look afterwards. Whatever has no rule is a
wall: its inputs stay whole, and its outputs begin anew.
"""

import dataclasses
import math

import keras
import numpy as np

from keras_rda.compression.analysis import Channels, Reader
from keras_rda.compression.graph import Tensor

layers = keras.layers


@dataclasses.dataclass
class Use:
    """A layer whose weights are cut: the channels of its first call; later calls of the layer are tied to it.

    `inputs.constant` is NaN where two calls differ.
    """

    layer: keras.layers.Layer
    rule: "Rule"
    inputs: Channels
    outputs: Channels


# Activations that act on each element alone: a constant channel stays one, and no channel depends on another.
_ELEMENTWISE = {
    getattr(keras.activations, name)
    for name in (
        *("celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh"),
        *("leaky_relu", "linear", "log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_shrink"),
        *("softplus", "softsign", "sparse_plus", "sparse_sigmoid", "squareplus", "swish", "tanh", "tanh_shrink"),
        "threshold",
    )
    if hasattr(keras.activations, name)
}


def forward(analysis, call):
    """Give the outputs of `call` their channels."""
    kind = type(call.layer)
    private = INTERNAL.get(kind.__name__) if kind.__module__.startswith(("keras.src.ops.", "keras.src.appl")) else None
    rule = RULES.get(kind, private)
    if rule is None:
        analysis.notes.append(f"{kind.__name__} '{call.name}': unknown, so no channel is cut on either side of it.")
        return wall(analysis, call, f"unknown layer '{call.name}'")
    if isinstance(rule, Rule) and not _has_configuration(call.layer):
        return wall(analysis, call, f"'{call.name}' has no configuration from which a smaller one can be made")
    return rule(analysis, call)


def _has_configuration(layer):
    """Whether the layer can say how it was made: one with a regularizer or constraint without configuration cannot."""
    try:
        layer.get_config()
    except (NotImplementedError, TypeError, ValueError, AttributeError):
        return False
    return True


def wall(analysis, call, reason):
    """Everything that goes into the call stays; what comes out has channels of its own, which stay too."""
    for tensor in call.inputs:
        if tensor in analysis.channels:
            analysis.fix(analysis.channels[tensor].ids, reason)
    for tensor in call.outputs:
        analysis.channels[tensor] = opaque(analysis, tensor, reason)
    analysis.walled[id(call.layer)] = reason


def opaque(analysis, tensor, reason, axis=-1):
    """New channels on `axis`, all fixed; none where its size is not known."""
    axis %= max(len(tensor.shape), 1)
    size = tensor.shape[axis] if axis else None
    ids = analysis.fresh(size or 0)
    analysis.fix(ids, reason)
    analysis.opaque.add(tensor)
    return Channels(axis, ids, np.full(len(ids), np.nan))


def _mixing(analysis, call):
    wall(analysis, call, f"'{call.name}' mixes channels")


def _channel_axis(layer, rank):
    return 1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1


def _fragile(rule):
    """`rule`, for a function that is not finite everywhere."""

    def fragile(analysis, call):
        for tensor in call.inputs:
            analysis.fragile(analysis.channels[tensor].ids)
        return rule(analysis, call)

    return fragile


def _single(analysis, call, axis=None):
    """The channels of a call's one input (on `axis`); None if the call has another form."""
    if len(call.inputs) != 1 or len(call.outputs) != 1:
        return None
    (tensor,) = call.inputs
    channels = analysis.channels[tensor]
    if axis is not None and channels.axis != axis:
        # An input of the model has no layout yet: the first layer that reads it decides.
        channels = opaque(analysis, tensor, "whole", axis) if tensor in analysis.opaque else None
    return channels if channels is None or len(channels) else None


def _spatial(constant):
    """A rule for layers that act on each channel alone over space; `constant` maps a constant channel's value."""

    def rule(analysis, call):
        channels = _single(analysis, call, _channel_axis(call.layer, len(call.inputs[0].shape)))
        if channels is None:
            return wall(analysis, call, f"'{call.name}' acts across channels")
        # A global pooling without keepdims drops the axes of space.
        axis = _channel_axis(call.layer, len(call.outputs[0].shape))
        analysis.channels[call.outputs[0]] = Channels(axis, channels.ids, constant(call.layer, channels.constant))

    return rule


def _zero_stays(layer, constant):
    return np.where(constant == 0, 0.0, np.nan)


def _same(layer, constant):
    return constant


def _resizing(layer, constant):
    return _zero_stays(layer, constant) if layer.pad_to_aspect_ratio else constant


def _elementwise(analysis, call):
    """A function of one tensor that acts on each element alone."""
    channels = _single(analysis, call)
    # Arrays among the arguments, or kept by an operation, may have a number for each channel.
    others = [*call.args, *call.kwargs.values()]
    if not isinstance(call.layer, layers.Layer):
        others += [value for name, value in vars(call.layer).items() if not name.startswith("_")]
    arrays = [other for other in others if hasattr(other, "shape") and not isinstance(other, Tensor)]
    lists = [other for other in others if isinstance(other, (list, tuple, dict))]
    if channels is None or lists or any(math.prod(array.shape) > 1 for array in arrays):
        return wall(analysis, call, f"'{call.name}' combines tensors")
    shape = [1] * len(call.inputs[0].shape)
    shape[channels.axis] = len(channels)

    def function(values):
        args, kwargs = call.fill(lambda tensor: keras.ops.reshape(values, shape))
        return keras.ops.reshape(call.layer.call(*args, **kwargs), (-1,))

    analysis.channels[call.outputs[0]] = Channels(channels.axis, channels.ids, _apply(function, channels.constant))


def _identity(analysis, call):
    """A layer that does nothing when the model predicts."""
    channels = _single(analysis, call)
    if channels is None or call.kwargs.get("training") or any(arg is True for arg in call.args[1:]):
        return wall(analysis, call, f"'{call.name}' is called with training=True")
    analysis.channels[call.outputs[0]] = channels


def _apply(function, constant):
    """`function` of the known constants, in float32 as the network computes it; the unknown ones stay unknown."""
    known = np.isfinite(constant)
    if not known.any():
        return constant
    with np.errstate(over="ignore"):
        values = keras.ops.convert_to_tensor(np.where(known, constant, 0).astype("float32"))
    result = np.asarray(keras.ops.convert_to_numpy(function(values)), "float64")
    return np.where(known & np.isfinite(result), result, np.nan)


def _activation(layer):
    """How a layer's own activation maps constants; None if it may mix channels."""
    activation = getattr(layer, "activation", None)
    if activation is None:
        return lambda constant: constant
    if activation in _ELEMENTWISE:
        return lambda constant: _apply(activation, constant)
    return None


def _activation_layer(analysis, call):
    if call.layer.activation in _ELEMENTWISE:
        return _elementwise(analysis, call)
    if call.layer.activation in (keras.activations.softmax, keras.activations.log_softmax):
        return _softmax_like(analysis, call, -1)
    return _mixing(analysis, call)


def _softmax(analysis, call):
    axes = call.layer.axis
    return _softmax_like(analysis, call, *(axes if isinstance(axes, (list, tuple)) else (axes,)))


def _softmax_like(analysis, call, *axes):
    channels = _single(analysis, call)
    if channels is None or channels.axis in [axis % len(call.inputs[0].shape) for axis in axes]:
        return _mixing(analysis, call)
    analysis.channels[call.outputs[0]] = channels.unknown()


def _merge(function):
    """A rule for elementwise functions of several tensors; a dimension of 1 is broadcast."""

    def rule(analysis, call):
        tensors = call.inputs
        if not isinstance(call.layer, keras.layers.Layer) and len(tensors) == 1:
            if len(call.outputs) == 1 and call.outputs[0].shape == tensors[0].shape:
                return _elementwise(analysis, call)
            return _mixing(analysis, call)
        out = call.outputs[0]
        sides = [analysis.channels[tensor] for tensor in tensors]
        widest = max(sides, key=len)
        axis, width = widest.axis, len(widest)
        for tensor, side in zip(tensors, sides, strict=True):
            alike = side.axis == axis and len(side) == width
            alone = len(side) == 1 and len(tensor.shape) > axis and tensor.shape[axis] == 1
            if len(tensor.shape) != len(out.shape) or not width or not (alike or alone):
                return wall(analysis, call, f"'{call.name}' combines tensors of different layouts")
        for side in sides:
            if len(side) == width:
                analysis.tie(widest.ids, side.ids)
            else:
                analysis.broadcast(side.ids, widest.ids, call.name)
        constants = [np.broadcast_to(side.constant, (width,)) for side in sides]
        analysis.channels[out] = Channels(axis, widest.ids, function(constants))

    return rule


def _constants(function):
    """`function` (of a list of arrays) of constants; unknown where one of them is."""

    def known(constants):
        with np.errstate(all="ignore"):
            result = np.asarray(function([constant.astype("float32") for constant in constants]), "float64")
        return np.where(np.isfinite(result), result, np.nan)

    return known


def _product(constants):
    with np.errstate(all="ignore"):
        result = np.prod([constant.astype("float32") for constant in constants], axis=0, dtype="float32")
    zero = np.any([constant == 0 for constant in constants], axis=0)
    return np.where(zero, 0.0, np.where(np.isfinite(result), result, np.nan))


def _concatenate(analysis, call):
    sides = [analysis.channels[tensor] for tensor in call.inputs]
    out = call.outputs[0]
    where = call.layer.axis % len(out.shape)
    axis = sides[0].axis
    if any(side.axis != axis or not len(side) for side in sides):
        return wall(analysis, call, f"'{call.name}' joins tensors of different layouts")
    if where != axis and any(len(side) != len(sides[0]) for side in sides):
        return wall(analysis, call, f"'{call.name}' joins tensors of different layouts")
    if where == axis:
        ids, constant = (np.concatenate([getattr(side, name) for side in sides]) for name in ("ids", "constant"))
        analysis.channels[out] = Channels(axis, ids, constant)
    else:
        for side in sides[1:]:
            analysis.tie(sides[0].ids, side.ids)
        constants = np.array([side.constant for side in sides])
        equal = (constants == constants[0]).all(axis=0)
        analysis.channels[out] = Channels(axis, sides[0].ids, np.where(equal, constants[0], np.nan))


class Rule:
    """A layer whose weights are cut. `cut` (see `surgery.Cut`) tells which channels are kept, needed and constant."""

    def __call__(self, analysis, call):
        layer = call.layer
        channels = _single(analysis, call, self.axis(layer, call))
        if channels is None:
            return wall(analysis, call, f"'{call.name}' reads another axis than the channels'")
        if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
            return wall(analysis, call, f"'{call.name}' is quantised or has LoRA weights")
        axis = self.axis(layer, call, of_output=True)
        outputs, constant = self.outputs(analysis, layer, channels)
        function = _activation(layer)
        first = analysis.uses.setdefault(id(layer), Use(layer, self, channels, Channels(axis, outputs, constant)))
        if first.inputs is not channels:
            analysis.tie(first.inputs.ids, channels.ids)
            analysis.tie(first.outputs.ids, outputs)
            same = first.inputs.constant == channels.constant
            first.inputs = dataclasses.replace(first.inputs, constant=np.where(same, channels.constant, np.nan))
        if function is None:
            analysis.fix(outputs, f"the activation of '{call.name}' may mix channels")
        after = constant if function is None else function(constant)
        unknown = np.full(len(outputs), np.nan)
        analysis.channels[call.outputs[0]] = Channels(axis, outputs, unknown if function is None else after)

    def axis(self, layer, call, of_output=False):
        tensor = call.outputs[0] if of_output else call.inputs[0]
        return _channel_axis(layer, len(tensor.shape))

    def readers(self, use, name):
        """The `Reader`s of this layer, once all its calls are known."""
        return []

    def equal_groups(self, use):
        """Pairs of ids (groups, channels of a group) of inputs and outputs that must be cut alike."""
        return []

    def config(self, config, use, cut):
        return config


class Move(Rule):
    """Layers that only rearrange elements: where each channel goes is read off the layer itself, applied to indices."""

    def __init__(self, target=None):
        self.target = target  # the configuration's entry that holds the new shape
        self.batch = int(target == "newshape")  # whether that shape has the batch in it

    def __call__(self, analysis, call):
        channels = _single(analysis, call)
        if channels is None:
            return wall(analysis, call, f"'{call.name}' combines tensors")
        (tensor,), (out,) = call.inputs, call.outputs
        last = len(tensor.shape) - 1
        if self.target and channels.axis == last and out.shape[-1] == len(channels):
            # Row-major order with the last dimension as it was: nothing but the other dimensions changes.
            axis, order = len(out.shape) - 1, np.arange(len(channels))
        else:
            axis, order = self._trace(call, tensor, channels)
            if order is None:
                return wall(analysis, call, f"'{call.name}' splits or joins channels")
        moved = Channels(axis, channels.ids[order], channels.constant[order])
        analysis.channels[out] = moved
        if self.target:
            use = analysis.uses.setdefault(id(call.layer), Use(call.layer, self, channels, moved))
            if use.outputs is not moved:  # a layer that is called again has the same target
                if len(use.outputs) != len(moved) or use.outputs.axis != axis:
                    return wall(analysis, call, f"'{call.name}' is called with different layouts")
                analysis.tie(use.outputs.ids, moved.ids)

    def _trace(self, call, tensor, channels):
        if None in tensor.shape[1:]:
            return None, None
        shape = [1] * len(tensor.shape)
        shape[channels.axis] = len(channels)
        whole = (tensor.shape[0] or 1, *tensor.shape[1:])
        index = np.broadcast_to(np.arange(len(channels), dtype="int32").reshape(shape), whole)
        args, kwargs = call.fill(lambda tensor: index)
        moved = keras.ops.convert_to_numpy(call.layer.call(*args, **kwargs))
        for axis in reversed(range(1, moved.ndim)):
            others = tuple(range(axis)), tuple(range(axis + 1, moved.ndim))
            if np.array_equal(moved.min(axis=others[0] + others[1]), moved.max(axis=others[0] + others[1])):
                return axis, moved.min(axis=others[0] + others[1])
        return None, None

    def config(self, config, use, cut):
        shape = list(config[self.target])
        position = use.outputs.axis - 1 + self.batch
        if shape[position] != -1:
            shape[position] = int(cut.keep_outputs.sum())
        return {**config, self.target: shape}

    def weights(self, use, cut):
        return []


class Linear(Rule):
    """Dense layers and convolutions: every output is a weighted sum over the channels of its group.

    Args:
        size: The configuration's entry for the number of outputs.
        axes: Axes of the kernel for inputs and outputs.
        transposed: Whether the layer is a transposed convolution. Their outputs near the border sum over fewer
            positions, so only a zero is constant through one.
    """

    def __init__(self, size, axes=(-2, -1), transposed=False):
        self.size, self.axes, self.transposed = size, axes, transposed

    def __call__(self, analysis, call):
        if _is_depthwise(call.layer):
            return _DEPTHWISE(analysis, call)
        return super().__call__(analysis, call)

    def outputs(self, analysis, layer, channels):
        ids = analysis.fresh(_kernel(layer).shape[self.axes[1]])
        return ids, np.concatenate(
            [
                self._constant(self._sums(layer, group), channels.constant[inputs], layer)
                for group, (inputs, _) in enumerate(self._groups(layer, len(channels), len(ids)))
            ]
        ) + _bias(layer, len(ids))

    def _constant(self, sums, constant, layer):
        """Σ k·w where every input that is read has a known constant k, NaN elsewhere."""
        total, magnitude = sums
        usable = self._absorbs(layer, constant)
        known = ~(magnitude & ~usable[:, None]).any(axis=0)
        return np.where(known, np.where(usable, constant, 0) @ total, np.nan)

    def _absorbs(self, layer, constant):
        return np.isfinite(constant) if self._sees_no_padding(layer) else constant == 0

    def _sees_no_padding(self, layer):
        if self.transposed:
            return False
        return getattr(layer, "padding", "valid") == "valid" or all(size == 1 for size in layer.kernel_size)

    def _groups(self, layer, inputs, outputs):
        """Slices of the inputs and outputs of each group."""
        groups = getattr(layer, "groups", 1)
        parts = zip(np.arange(inputs).reshape(groups, -1), np.arange(outputs).reshape(groups, -1), strict=True)
        return [(slice(a[0], a[-1] + 1), slice(b[0], b[-1] + 1)) for a, b in parts]

    def _sums(self, layer, group):
        """Over the taps of the kernel of one group: Σ w in float64 and whether any w ≠ 0, both (in, out)."""
        kernel = np.moveaxis(_kernel(layer), self.axes, (-2, -1))
        width = kernel.shape[-1] // getattr(layer, "groups", 1)
        kernel = kernel[..., group * width : (group + 1) * width].reshape(-1, kernel.shape[-2], width)
        return kernel.sum(axis=0, dtype="float64"), (kernel != 0).any(axis=0)

    def readers(self, use, name):
        absorbed = self._absorbs(use.layer, use.inputs.constant)
        for group, (ins, outs) in enumerate(self._groups(use.layer, len(use.inputs), len(use.outputs))):
            nonzero = self._sums(use.layer, group)[1]
            constant = np.isfinite(use.inputs.constant[ins])
            yield Reader(name, use.inputs.ids[ins], use.outputs.ids[outs], nonzero, absorbed[ins], constant)

    def equal_groups(self, use):
        groups = getattr(use.layer, "groups", 1)
        return [] if groups == 1 else [(use.inputs.ids.reshape(groups, -1), use.outputs.ids.reshape(groups, -1))]

    def alive(self, use):
        """Which outputs have weights that are not zero."""
        groups = self._groups(use.layer, len(use.inputs), len(use.outputs))
        return np.concatenate([self._sums(use.layer, group)[1].any(axis=0) for group in range(len(groups))])

    def config(self, config, use, cut):
        config = {**config, self.size: int(cut.keep_outputs.sum())}
        if config.get("groups", 1) > 1:
            width = len(use.outputs) // config["groups"]
            config["groups"] = int(cut.keep_outputs.reshape(-1, width).any(axis=1).sum())
        # Constants of channels that go are added to the bias.
        if not use.layer.use_bias and np.any(self._folded(use, cut)[cut.keep_outputs & cut.need_outputs]):
            config["use_bias"] = True
        return config

    def _folded(self, use, cut):
        """What the channels that go contribute to each output."""
        constant = np.where(cut.need_inputs | ~np.isfinite(use.inputs.constant), 0, use.inputs.constant)
        if not constant.any():
            return np.zeros(len(use.outputs))
        groups = self._groups(use.layer, len(use.inputs), len(use.outputs))
        return np.concatenate([constant[ins] @ self._sums(use.layer, g)[0] for g, (ins, _) in enumerate(groups)])

    def weights(self, use, cut):
        layer = use.layer
        kernel = np.moveaxis(_kernel(layer), self.axes, (-2, -1)).copy()
        inputs, outputs = len(use.inputs), len(use.outputs)
        kernel[..., ~cut.need_outputs] = 0
        parts = []
        for ins, outs in self._groups(layer, inputs, outputs):
            part = kernel[..., outs]
            part[..., ~cut.need_inputs[ins], :] = 0
            part = part[..., cut.keep_outputs[outs]]
            if part.shape[-1]:
                parts.append(part[..., cut.keep_inputs[ins], :])
        arrays = [np.moveaxis(np.concatenate(parts, axis=-1), (-2, -1), self.axes)]
        if cut.use_bias:
            bias = _bias(layer, outputs) + self._folded(use, cut)
            arrays.append(np.where(cut.need_outputs, bias, 0)[cut.keep_outputs])
        return arrays

    def scaled(self, arrays, scale):
        """The weights with every output multiplied by its `scale`."""
        kernel, *rest = arrays
        return [np.moveaxis(np.moveaxis(kernel, self.axes[1], -1) * scale, -1, self.axes[1]), *rest]


class Depthwise(Rule):
    """Each channel is convolved alone: input and outputs of a channel stay or go together."""

    def outputs(self, analysis, layer, channels):
        kernel = self._kernel(layer, len(channels))
        total, nonzero = kernel.sum(axis=0, dtype="float64"), (kernel != 0).any(axis=0)
        uniform = layer.padding == "valid" or all(size == 1 for size in layer.kernel_size)
        constant = channels.constant if uniform else _zero_stays(layer, channels.constant)
        with np.errstate(invalid="ignore"):
            value = np.where(nonzero, constant[:, None] * total, 0).reshape(-1)
        # A channel without weights is not read: its outputs, a bias, may be needed without it.
        ids = np.repeat(channels.ids, kernel.shape[-1])
        dead = np.repeat(~nonzero.any(axis=1), kernel.shape[-1])
        ids = _split(analysis, ids, dead)
        return ids, value + _bias(layer, len(value))

    def _kernel(self, layer, channels):
        """(taps, channels, outputs of a channel)."""
        return _kernel(layer).reshape(math.prod(layer.kernel_size), channels, -1)

    def alive(self, use):
        return (self._kernel(use.layer, len(use.inputs)) != 0).any(axis=0).reshape(-1)

    def config(self, config, use, cut):
        if "groups" in config:  # a grouped convolution with one channel a group
            return {**config, "filters": int(cut.keep_outputs.sum()), "groups": int(cut.keep_inputs.sum())}
        return config

    def weights(self, use, cut):
        kernel = _kernel(use.layer)
        multiplier = len(use.outputs) // len(use.inputs)
        flat = kernel.reshape(*kernel.shape[:-2], -1) * cut.need_outputs
        flat = flat[..., cut.keep_outputs]
        # Conv: (…, 1, channels × multiplier); DepthwiseConv: (…, channels, multiplier).
        shape = (1, -1) if _is_depthwise(use.layer) else (-1, multiplier)
        arrays = [flat.reshape(*kernel.shape[:-2], *shape)]
        if use.layer.use_bias:
            arrays.append(np.where(cut.need_outputs, _bias(use.layer, len(use.outputs)), 0)[cut.keep_outputs])
        return arrays

    def scaled(self, arrays, scale):
        kernel, *rest = arrays
        return [kernel * scale.reshape(kernel.shape[-2:]), *rest]


class Separable(Linear):
    """A depthwise convolution and a pointwise one in one layer."""

    def __init__(self):
        super().__init__("filters")

    def outputs(self, analysis, layer, channels):
        ids = analysis.fresh(_values(layer.pointwise_kernel).shape[-1])
        return ids, self._constant(self._sums(layer, 0), channels.constant, layer) + _bias(layer, len(ids))

    def _sums(self, layer, group):
        depthwise, pointwise = self._kernels(layer)
        total = np.einsum("tcm,cmf->cf", depthwise.astype("float64"), pointwise.astype("float64"))
        nonzero = ((depthwise != 0).any(axis=0)[:, :, None] & (pointwise != 0)).any(axis=1)
        return total, nonzero

    def _kernels(self, layer):
        """(taps, channels, multiplier) and (channels, multiplier, filters)."""
        depthwise, pointwise = _values(layer.depthwise_kernel), _values(layer.pointwise_kernel)
        return depthwise.reshape(-1, *depthwise.shape[-2:]), pointwise.reshape(*depthwise.shape[-2:], -1)

    def weights(self, use, cut):
        layer = use.layer
        depthwise, pointwise = _values(layer.depthwise_kernel), _values(layer.pointwise_kernel)
        rows = self._kernels(layer)[1] * cut.need_inputs[:, None, None] * cut.need_outputs
        rows = rows[cut.keep_inputs][..., cut.keep_outputs]
        arrays = [
            depthwise[..., cut.keep_inputs, :],
            rows.reshape(*pointwise.shape[:-2], -1, rows.shape[-1]),
        ]
        if cut.use_bias:
            bias = _bias(layer, len(use.outputs)) + self._folded(use, cut)
            arrays.append(np.where(cut.need_outputs, bias, 0)[cut.keep_outputs])
        return arrays

    def scaled(self, arrays, scale):
        depthwise, pointwise, *rest = arrays
        return [depthwise, pointwise * scale, *rest]


class PerChannel(Rule):
    """Layers with a number for each channel. `weights` of the layer are vectors, or end in the channel axis."""

    def __call__(self, analysis, call):
        if isinstance(call.layer, layers.BatchNormalization) and call.kwargs.get("training"):
            return wall(analysis, call, f"'{call.name}' is called with training=True")
        return super().__call__(analysis, call)

    def axis(self, layer, call, of_output=False):
        rank = len(call.inputs[0].shape)
        return layer.axis % rank if isinstance(layer, layers.BatchNormalization) else rank - 1

    def outputs(self, analysis, layer, channels):
        if isinstance(layer, layers.PReLU):
            alpha = _values(layer.alpha).astype("float64")
            slopes = np.broadcast_to(alpha, (*alpha.shape[:-1], len(channels))).reshape(-1, len(channels))
            uniform = np.where((slopes == slopes[0]).all(axis=0), slopes[0], np.nan)
            return channels.ids, np.where(channels.constant >= 0, channels.constant, uniform * channels.constant)
        scale, offset = normalization(layer)
        value = np.where(scale == 0, 0, channels.constant * scale) + offset
        return _split(analysis, channels.ids, scale == 0), np.where(np.isfinite(value), value, np.nan)

    def weights(self, use, cut):
        return [
            array if array.shape[-1] != len(use.inputs) else array[..., cut.keep_inputs]
            for array in map(_values, use.layer.weights)
        ]


class Table(Rule):
    """An embedding: channels begin here; its inputs are indices."""

    def __call__(self, analysis, call):
        layer, (out,) = call.layer, call.outputs
        if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
            return wall(analysis, call, f"'{call.name}' is quantised or has LoRA weights")
        for tensor in call.inputs:
            analysis.fix(analysis.channels[tensor].ids, f"indices of '{call.name}'")
        table = _values(layer.embeddings)
        uniform = np.where((table == table[0]).all(axis=0), table[0].astype("float64"), np.nan)
        ids = analysis.fresh(table.shape[1])
        channels = Channels(len(out.shape) - 1, ids, uniform)
        first = analysis.uses.setdefault(id(layer), Use(layer, self, channels, channels))
        analysis.tie(first.outputs.ids, ids)
        analysis.channels[out] = channels

    def config(self, config, use, cut):
        return {**config, "output_dim": int(cut.keep_outputs.sum())}

    def weights(self, use, cut):
        return [_values(use.layer.embeddings)[:, cut.keep_outputs]]


class Heads(Rule):
    """Multi-head attention: its inputs and outputs stay whole; heads that add nothing to the output go."""

    def __call__(self, analysis, call):
        layer = call.layer
        _mixing(analysis, call)
        del analysis.walled[id(layer)]  # inside, heads can go all the same
        if len(layer.weights) != (8 if layer.use_bias else 4):  # LoRA
            return
        heads = analysis.fresh(layer.num_heads)
        channels = Channels(1, heads, np.full(len(heads), np.nan))
        use = analysis.uses.setdefault(id(layer), Use(layer, self, channels, channels))
        # A mask, or scores that are asked for, may have an axis of heads.
        plain = len(call.outputs) == 1 and all(len(tensor.shape) == 3 for tensor in call.inputs)
        alive = self._alive(layer) if plain else slice(None)
        analysis.fix(use.inputs.ids[alive], f"a head of '{call.name}' with weights")

    def _alive(self, layer):
        value, bias, output = self._parts(layer)
        reads = (value != 0).any(axis=(0, 2)) | (bias != 0).any(axis=1)
        return reads & (output != 0).any(axis=(1, 2))

    def _parts(self, layer):
        """Value kernel (in, heads, size), value bias (heads, size), output kernel (heads, size, out)."""
        arrays = layer.get_weights()
        value, output = (arrays[4], arrays[6]) if layer.use_bias else (arrays[2], arrays[3])
        bias = arrays[5] if layer.use_bias else np.zeros(value.shape[1:])
        return value, bias, output.reshape(*output.shape[:2], -1)

    def config(self, config, use, cut):
        return {**config, "num_heads": int(cut.keep_inputs.sum())}

    def weights(self, use, cut):
        *projections, output = np.array_split(np.arange(len(use.layer.weights)), 4)
        arrays = use.layer.get_weights()
        for index in np.concatenate(projections):  # kernels (in, heads, size), biases (heads, size)
            arrays[index] = arrays[index].compress(cut.keep_inputs, axis=arrays[index].ndim - 2)
        arrays[output[0]] = arrays[output[0]].compress(cut.keep_inputs, axis=0)  # (heads, size, out)
        return arrays


def _split(analysis, ids, dead):
    """Ids of their own for the `dead` channels, whose inputs are not read, but which are cut only with them."""
    own = np.where(dead, -1, ids)
    own[dead] = analysis.fresh(int(dead.sum()))
    analysis.follow(ids[dead], own[dead])
    return own


def normalization(layer):
    """(scale, offset) of a BatchNormalization as it predicts, each (channels,) in float64."""
    mean, variance = (_values(value).astype("float64") for value in (layer.moving_mean, layer.moving_variance))
    scale = 1 / np.sqrt(variance + layer.epsilon)
    if layer.scale:
        scale = scale * _values(layer.gamma)
    return scale, (_values(layer.beta) if layer.center else 0) - mean * scale


def _values(variable):
    return keras.ops.convert_to_numpy(variable)


def _kernel(layer):
    return _values(layer.kernel)


def _bias(layer, size):
    return _values(layer.bias).astype("float64") if layer.use_bias else np.zeros(size)


def _is_depthwise(layer):
    """Whether a convolution has one input channel a group."""
    return getattr(layer, "groups", 1) > 1 and layer.kernel.shape[-2] == 1


def _own_channels(analysis, call):
    """A layer with numbers for each channel that are part of its configuration: they are not cut."""
    channels = _single(analysis, call)
    if channels is None:
        return _mixing(analysis, call)
    analysis.fix(channels.ids, f"'{call.name}' has a number for each channel in its configuration")
    analysis.channels[call.outputs[0]] = channels.unknown()


def _rescaling(analysis, call):
    if np.size(call.layer.scale) > 1 or np.size(call.layer.offset) > 1:
        return _own_channels(analysis, call)
    return _elementwise(analysis, call)


def _repeat(analysis, call):
    channels = _single(analysis, call, 1)
    if channels is None:
        return _mixing(analysis, call)
    analysis.channels[call.outputs[0]] = Channels(2, channels.ids, channels.constant)


def _permute(analysis, call):
    channels = _single(analysis, call)
    if channels is None:
        return _mixing(analysis, call)
    axis = 1 + list(call.layer.dims).index(channels.axis)
    analysis.channels[call.outputs[0]] = dataclasses.replace(channels, axis=axis)


def _reduce(zero_only):
    """A reduction over other axes than the channels'."""

    def rule(analysis, call):
        channels = _single(analysis, call)
        rank = len(call.inputs[0].shape)
        axes = call.layer.axis
        axes = range(rank) if axes is None else axes if isinstance(axes, (list, tuple)) else [axes]
        axes = {axis % rank for axis in axes}
        if channels is None or channels.axis in axes or 0 in axes or getattr(call.layer, "initial", None) is not None:
            return _mixing(analysis, call)
        axis = channels.axis if call.layer.keepdims else channels.axis - sum(a < channels.axis for a in axes)
        constant = _zero_stays(None, channels.constant) if zero_only else channels.constant
        analysis.channels[call.outputs[0]] = Channels(axis, channels.ids, constant)

    return rule


_DEPTHWISE = Depthwise()
_CONVOLUTION = Linear("filters")
_TRANSPOSED = Linear("filters", axes=(-1, -2), transposed=True)
_ADD = _merge(_constants(sum))
_SUBTRACT = _merge(_constants(lambda arrays: arrays[0] - arrays[1]))
_MULTIPLY = _merge(_product)
_MAXIMUM = _merge(_constants(lambda arrays: np.max(arrays, axis=0)))
_MINIMUM = _merge(_constants(lambda arrays: np.min(arrays, axis=0)))


def _named(*names):
    """Layers of these names; a few came with later versions of Keras."""
    return [getattr(layers, name) for name in names if hasattr(layers, name)]


def _dimensions(name, *numbers):
    return _named(*(f"{name}{number}D" for number in numbers))


RULES = {
    layers.Dense: Linear("units"),
    **dict.fromkeys(_dimensions("Conv", 1, 2, 3), _CONVOLUTION),
    **dict.fromkeys(_named("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), _TRANSPOSED),
    **dict.fromkeys(_dimensions("DepthwiseConv", 1, 2), _DEPTHWISE),
    **dict.fromkeys(_dimensions("SeparableConv", 1, 2), Separable()),
    layers.Embedding: Table(),
    layers.MultiHeadAttention: Heads(),
    **dict.fromkeys([layers.BatchNormalization, layers.PReLU], PerChannel()),
    **dict.fromkeys([layers.ReLU, layers.LeakyReLU, layers.ELU], _elementwise),
    layers.Activation: _activation_layer,
    layers.Softmax: _softmax,
    layers.Rescaling: _rescaling,
    layers.Normalization: _own_channels,
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
        _identity,
    ),
    **dict.fromkeys(_dimensions("MaxPooling", 1, 2, 3), _spatial(_same)),
    **dict.fromkeys(_dimensions("AveragePooling", 1, 2, 3), _spatial(_same)),
    **dict.fromkeys(_dimensions("GlobalMaxPooling", 1, 2, 3), _spatial(_same)),
    **dict.fromkeys(_dimensions("GlobalAveragePooling", 1, 2, 3), _spatial(_same)),
    **dict.fromkeys(_dimensions("AdaptiveMaxPooling", 1, 2, 3), _spatial(_same)),
    **dict.fromkeys(_dimensions("AdaptiveAveragePooling", 1, 2, 3), _spatial(_same)),
    **dict.fromkeys(_dimensions("UpSampling", 1, 2, 3), _spatial(_same)),
    **dict.fromkeys(_dimensions("Cropping", 1, 2, 3), _spatial(_same)),
    **dict.fromkeys(_dimensions("ZeroPadding", 1, 2, 3), _spatial(_zero_stays)),
    layers.Resizing: _spatial(_resizing),
    layers.Add: _ADD,
    layers.Subtract: _SUBTRACT,
    layers.Multiply: _MULTIPLY,
    layers.Average: _merge(_constants(lambda arrays: sum(arrays) / len(arrays))),
    layers.Maximum: _MAXIMUM,
    layers.Minimum: _MINIMUM,
    layers.Concatenate: _concatenate,
    layers.Flatten: Move(),
    layers.Reshape: Move("target_shape"),
    layers.Permute: _permute,
    layers.RepeatVector: _repeat,
    **dict.fromkeys(
        _named(
            *("LayerNormalization", "GroupNormalization", "RMSNormalization", "UnitNormalization", "Dot", "Masking"),
            *("Attention", "AdditiveAttention", "GroupQueryAttention", "EinsumDense", "TimeDistributed"),
            *("Bidirectional", "LSTM", "GRU", "SimpleRNN", "RNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"),
        ),
        _mixing,
    ),
}

# Classes that Keras does not export, by name: the operations behind `keras.ops`, and layers of `keras.applications`.
INTERNAL = {
    "CustomScaleLayer": _merge(_constants(lambda arrays: np.where(np.any(arrays, axis=0), np.nan, 0))),
    "LayerScale": _own_channels,
    "StochasticDepth": _identity,
    "Add": _ADD,
    "Subtract": _SUBTRACT,
    "Multiply": _MULTIPLY,
    **dict.fromkeys(("Divide", "TrueDivide"), _fragile(_merge(_constants(lambda arrays: arrays[0] / arrays[1])))),
    "Maximum": _MAXIMUM,
    "Minimum": _MINIMUM,
    "Concatenate": _concatenate,
    **dict.fromkeys(("Log", "Log1p", "Reciprocal", "Rsqrt", "Sqrt"), _fragile(_elementwise)),
    # Of masks.
    **dict.fromkeys(("Any", "Cast", "Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "NotEqual"), _mixing),
    "Reshape": Move("newshape"),
    "Mean": _reduce(zero_only=False),
    "Max": _reduce(zero_only=False),
    "Min": _reduce(zero_only=False),
    "Sum": _reduce(zero_only=True),
    **dict.fromkeys(
        (
            *("Abs", "Absolute", "Celu", "Clip", "Elu", "Exp", "Gelu", "HardShrink", "HardSigmoid", "HardSilu"),
            *("HardTanh", "LeakyRelu", "LogSigmoid", "Negative", "Relu", "Relu6", "Selu", "Sigmoid", "Sign", "Silu"),
            *("SoftShrink", "Softplus", "Softsign", "Square", "Squareplus", "Tanh", "TanhShrink"),
        ),
        _elementwise,
    ),
}
