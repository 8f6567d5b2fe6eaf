"""Rules of layers that shrink with their channels: how their configuration and weights look afterwards."""

import dataclasses
import math

import keras
import numpy as np

from keras_rda.compression.analysis import Channels, Reader
from keras_rda.compression.layout import activation_function, channel_axis, mixing, prelu, single, wall, zero_stays

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


class Rule:
    """A layer whose weights are cut. `cut` (see `surgery.Cut`) tells which channels are kept, needed and constant."""

    def __call__(self, analysis, call):
        layer = call.layer
        channels = single(analysis, call, self.axis(layer, call))
        if channels is None:
            return wall(analysis, call, f"'{call.name}' reads another axis than the channels'")
        if _is_rewritten(layer):
            return wall(analysis, call, f"'{call.name}' is quantised or has LoRA weights")
        axis = self.axis(layer, call, of_output=True)
        rank = len(call.outputs[0].shape)
        if not _is_activation_cut(layer, last=axis == rank - 1):
            return wall(analysis, call, f"the activation of '{call.name}' has weights that are not cut with it")
        outputs, constant = self.outputs(analysis, layer, channels)
        function = activation_function(layer, rank)
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
        return channel_axis(layer, len(tensor.shape))

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
        channels = single(analysis, call)
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
            return DEPTHWISE(analysis, call)
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
            arrays.append(_cut_bias(use, cut, self._folded(use, cut)))
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
        constant = channels.constant if uniform else zero_stays(layer, channels.constant)
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
        if cut.use_bias:
            arrays.append(_cut_bias(use, cut))
        return arrays

    def scaled(self, arrays, scale):
        kernel, *rest = arrays
        return [kernel * scale.reshape(kernel.shape[-2:]), *rest]


DEPTHWISE = Depthwise()


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
            arrays.append(_cut_bias(use, cut, self._folded(use, cut)))
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
            return channels.ids, prelu(layer, channels.constant)
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
        if _is_rewritten(layer):
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
        mixing(analysis, call)
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


def _cut_bias(use, cut, folded=0):
    """The bias of the outputs that are kept, with what the channels that go contributed."""
    bias = _bias(use.layer, len(use.outputs)) + folded
    return np.where(cut.need_outputs, bias, 0)[cut.keep_outputs]


def _is_activation_cut(layer, last):
    """Whether a layer's own activation shrinks with it: one without weights, or a PReLU on the `last` axis."""
    activation = getattr(layer, "activation", None)
    if isinstance(activation, layers.PReLU):
        return activation.built and last
    return not isinstance(activation, layers.Layer) or (activation.built and not activation.weights)


def _is_rewritten(layer):
    """Whether Keras keeps the layer's weights in another form than its configuration makes: quantised, or with LoRA."""
    return getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None)


def _is_depthwise(layer):
    """Whether a convolution has one input and one output channel a group."""
    groups = getattr(layer, "groups", 1)
    return groups > 1 and layer.kernel.shape[-2:] == (1, groups)
