"""Rules of dense layers and convolutions: every output is a weighted sum over the channels of its group."""

import math

import numpy as np
from keras import ops

from keras_rda import layer_facts
from keras_rda.compression.analysis import Reader
from keras_rda.compression.rule import OneTensorRule, bias_of, cut_bias
from keras_rda.compression.walls import zero_stays


class Linear(OneTensorRule):
    """Dense layers and convolutions, also transposed and grouped ones."""

    def __call__(self, analysis, call):
        if _is_depthwise(call.layer):
            return DEPTHWISE(analysis, call)
        return super().__call__(analysis, call)

    def outputs(self, analysis, layer, channels):
        ids = analysis.fresh(self._kernel(layer).shape[-1])
        if analysis.any_weights:
            return ids, np.full(len(ids), np.nan)
        constants = [
            self._constant(self._sums(layer, group), channels.constant[inputs], layer)
            for group, (inputs, _) in enumerate(self._groups(layer, len(channels), len(ids)))
        ]
        return ids, np.concatenate(constants) + self._bias(layer, len(ids))

    def _kernel(self, layer):
        """(taps, inputs of a group, outputs); the taps have any number of axes."""
        return np.moveaxis(ops.convert_to_numpy(layer.kernel), self._kernel_axes(layer), (-2, -1))

    def _kernel_axes(self, layer):
        """The kernel's axes of inputs and of outputs."""
        axes = layer_facts.axes_in(layer, layer.kernel)
        return *axes.inputs, *axes.outputs

    def _bias(self, layer, size):
        """What each of `size` outputs has as bias at all positions."""
        return bias_of(layer, size)

    def _constant(self, sums, constant, layer):
        """Σ k·w where every input that is read has a known constant k, NaN elsewhere."""
        total, nonzero = sums
        usable = self._absorbs(layer, constant)
        known = ~(nonzero & ~usable[:, None]).any(axis=0)
        return np.where(known, np.where(usable, constant, 0) @ total, np.nan)

    def _absorbs(self, layer, constant):
        return np.isfinite(constant) if _sees_no_border(layer) else constant == 0

    def _groups(self, layer, inputs, outputs):
        """Slices of the inputs and outputs of each group."""
        groups = getattr(layer, "groups", 1)
        parts = zip(np.arange(inputs).reshape(groups, -1), np.arange(outputs).reshape(groups, -1), strict=True)
        return [(slice(a[0], a[-1] + 1), slice(b[0], b[-1] + 1)) for a, b in parts]

    def _sums(self, layer, group):
        """Over the taps of the kernel of one group: Σ w in float64 and whether any w ≠ 0, both (in, out)."""
        kernel = self._kernel(layer)
        width = kernel.shape[-1] // getattr(layer, "groups", 1)
        kernel = kernel[..., group * width : (group + 1) * width].reshape(-1, kernel.shape[-2], width)
        return kernel.sum(axis=0, dtype="float64"), (kernel != 0).any(axis=0)

    def readers(self, use, name):
        absorbed = self._absorbs(use.layer, use.inputs.constant)
        for group, (ins, outs) in enumerate(self._groups(use.layer, len(use.inputs), len(use.outputs))):
            nonzero = self._sums(use.layer, group)[1]
            constant = np.isfinite(use.inputs.constant[ins])
            yield Reader(name, use.inputs.ids[ins], use.outputs.ids[outs], nonzero, absorbed[ins], constant)

    def kernels(self, use):
        kernel, (inputs, outputs) = use.layer.kernel, self._kernel_axes(use.layer)
        rank, groups = len(kernel.shape), getattr(use.layer, "groups", 1)
        reads = np.repeat(use.inputs.ids.reshape(groups, -1), len(use.outputs) // groups, axis=0).T
        if groups == 1:
            return [(kernel, _along(rank, inputs, use.inputs.ids), _along(rank, outputs, use.outputs.ids))]
        return [(kernel, reads.reshape(*[1] * (rank - 2), *reads.shape), _along(rank, outputs, use.outputs.ids))]

    def equal_groups(self, use):
        groups = getattr(use.layer, "groups", 1)
        return [] if groups == 1 else [(use.inputs.ids.reshape(groups, -1), use.outputs.ids.reshape(groups, -1))]

    def alive(self, use):
        groups = self._groups(use.layer, len(use.inputs), len(use.outputs))
        return np.concatenate([self._sums(use.layer, group)[1].any(axis=0) for group in range(len(groups))])

    def config(self, config, use, cut):
        config = {**config, layer_facts.of(use.layer).size: int(cut.keep_outputs.sum())}
        if config.get("groups", 1) > 1:
            width = len(use.outputs) // config["groups"]
            config["groups"] = int(cut.keep_outputs.reshape(-1, width).any(axis=1).sum())
        # Constants of channels that go are added to the bias.
        if not self.has_bias(config) and np.any(self._folded(use, cut)[cut.keep_outputs & cut.need_outputs]):
            config = self.with_bias(config)
        return config

    def _folded(self, use, cut):
        """What the channels that go contribute to each output."""
        constant = np.where(cut.need_inputs | ~np.isfinite(use.inputs.constant), 0, use.inputs.constant)
        if not constant.any():
            return np.zeros(len(use.outputs))
        groups = self._groups(use.layer, len(use.inputs), len(use.outputs))
        return np.concatenate([constant[ins] @ self._sums(use.layer, g)[0] for g, (ins, _) in enumerate(groups)])

    def weights(self, use, cut):
        arrays = self._cut_kernels(use, cut)
        if cut.use_bias:
            arrays.append(cut_bias(use, cut, self._folded(use, cut)))
        return arrays

    def _cut_kernels(self, use, cut):
        kernel = self._kernel(use.layer).copy()
        kernel[..., ~cut.need_outputs] = 0
        parts = []
        for ins, outs in self._groups(use.layer, len(use.inputs), len(use.outputs)):
            part = kernel[..., outs]
            part[..., ~cut.need_inputs[ins], :] = 0
            part = part[..., cut.keep_outputs[outs]]
            if part.shape[-1]:
                parts.append(part[..., cut.keep_inputs[ins], :])
        return [np.moveaxis(np.concatenate(parts, axis=-1), (-2, -1), self._kernel_axes(use.layer))]

    def scaled(self, use, arrays, scale):
        kernel, *rest = arrays
        axis = self._kernel_axes(use.layer)[1]
        return [np.moveaxis(np.moveaxis(kernel, axis, -1) * scale, -1, axis), *rest]


class Separable(Linear):
    """A depthwise convolution and a pointwise one in one layer."""

    def _kernel(self, layer):
        return ops.convert_to_numpy(layer.pointwise_kernel)

    def _sums(self, layer, group):
        depthwise, pointwise = self._kernels(layer)
        total = np.einsum("tcm,cmf->cf", depthwise.astype("float64"), pointwise.astype("float64"))
        nonzero = ((depthwise != 0).any(axis=0)[:, :, None] & (pointwise != 0)).any(axis=1)
        return total, nonzero

    def _kernels(self, layer):
        """(taps, channels, multiplier) and (channels, multiplier, filters)."""
        depthwise = ops.convert_to_numpy(layer.depthwise_kernel)
        size = depthwise.shape[-2:]
        return depthwise.reshape(-1, *size), self._kernel(layer).reshape(*size, -1)

    def kernels(self, use):
        depthwise, pointwise = use.layer.depthwise_kernel, use.layer.pointwise_kernel
        rank, ids = len(pointwise.shape), use.inputs.ids
        read_by_rows = np.repeat(ids, depthwise.shape[-1])
        channels = _along(rank, -2, ids)
        return [
            (depthwise, channels, channels),
            (pointwise, _along(rank, -2, read_by_rows), _along(rank, -1, use.outputs.ids)),
        ]

    def _cut_kernels(self, use, cut):
        rows = self._kernels(use.layer)[1] * cut.need_inputs[:, None, None] * cut.need_outputs
        rows = rows[cut.keep_inputs][..., cut.keep_outputs]
        depthwise, pointwise = ops.convert_to_numpy(use.layer.depthwise_kernel), self._kernel(use.layer)
        return [depthwise[..., cut.keep_inputs, :], rows.reshape(*pointwise.shape[:-2], -1, rows.shape[-1])]

    def scaled(self, use, arrays, scale):
        depthwise, pointwise, *rest = arrays
        return [depthwise, pointwise * scale, *rest]


class Depthwise(OneTensorRule):
    """Each channel is convolved alone: input and outputs of a channel stay or go together."""

    def outputs(self, analysis, layer, channels):
        kernel = self._kernel(layer, len(channels))
        total, nonzero = kernel.sum(axis=0, dtype="float64"), (kernel != 0).any(axis=0)
        constant = channels.constant if _sees_no_border(layer) else zero_stays(channels.constant)
        with np.errstate(invalid="ignore"):
            value = np.where(nonzero, constant[:, None] * total, 0).reshape(-1)
        # A channel without weights is not read: its outputs, a bias, may be needed without it.
        ids = np.repeat(channels.ids, kernel.shape[-1])
        dead = np.repeat(~nonzero.any(axis=1), kernel.shape[-1])
        return analysis.split(ids, dead), value + bias_of(layer, len(value))

    def _kernel(self, layer, channels):
        """(taps, channels, outputs of a channel)."""
        return ops.convert_to_numpy(layer.kernel).reshape(math.prod(layer.kernel_size), channels, -1)

    def kernels(self, use):
        kernel = use.layer.kernel
        shape = (*[1] * (len(kernel.shape) - 2), *kernel.shape[-2:])
        multiplier = len(use.outputs) // len(use.inputs)
        return [(kernel, np.repeat(use.inputs.ids, multiplier).reshape(shape), use.outputs.ids.reshape(shape))]

    def alive(self, use):
        return (self._kernel(use.layer, len(use.inputs)) != 0).any(axis=0).reshape(-1)

    def config(self, config, use, cut):
        if "groups" in config:  # a grouped convolution with one channel a group
            size = layer_facts.of(use.layer).size
            return {**config, size: int(cut.keep_outputs.sum()), "groups": int(cut.keep_inputs.sum())}
        return config

    def weights(self, use, cut):
        kernel = ops.convert_to_numpy(use.layer.kernel)
        multiplier = len(use.outputs) // len(use.inputs)
        flat = kernel.reshape(*kernel.shape[:-2], -1) * cut.need_outputs
        flat = flat[..., cut.keep_outputs]
        # Conv: (…, 1, channels × multiplier); DepthwiseConv: (…, channels, multiplier).
        shape = (1, -1) if _is_depthwise(use.layer) else (-1, multiplier)
        arrays = [flat.reshape(*kernel.shape[:-2], *shape)]
        if cut.use_bias:
            arrays.append(cut_bias(use, cut))
        return arrays

    def scaled(self, use, arrays, scale):
        kernel, *rest = arrays
        return [kernel * scale.reshape(kernel.shape[-2:]), *rest]


DEPTHWISE = Depthwise()


def _along(rank, axis, ids):
    """`ids` along one axis of an array of this rank."""
    shape = [1] * rank
    shape[axis] = -1
    return ids.reshape(shape)


def _sees_no_border(layer):
    """Whether every output sums over all taps of the kernel: a constant channel adds the same to each.

    Outputs of transposed convolutions near the border sum over fewer positions.
    """
    if layer_facts.of(layer).positions == "inputs":
        return False
    return getattr(layer, "padding", "valid") == "valid" or all(size == 1 for size in layer.kernel_size)


def _is_depthwise(layer):
    """Whether a convolution has one input and one output channel a group."""
    groups = getattr(layer, "groups", 1)
    return groups > 1 and layer.kernel.shape[-2:] == (1, groups)
