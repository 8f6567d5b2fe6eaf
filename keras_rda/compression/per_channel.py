"""Rules of layers with numbers for each channel: normalisation, slopes, tables."""

import numpy as np
from keras import layers, ops

from keras_rda import layer_facts
from keras_rda.compression import passing
from keras_rda.compression.activations import prelu
from keras_rda.compression.analysis import Channels, Reader
from keras_rda.compression.rule import OneTensorRule, Rule, Use, is_rewritten
from keras_rda.compression.walls import mixing, wall, zero_stays


class PerChannel(OneTensorRule):
    """Layers with a number for each channel. `weights` of the layer are vectors, or end in the channel axis."""

    def __call__(self, analysis, call):
        if isinstance(call.layer, layers.BatchNormalization) and call.kwargs.get("training"):
            return wall(analysis, call, f"'{call.name}' is called with training=True")
        return super().__call__(analysis, call)

    def axes(self, layer, inputs, outputs):
        axis = layer.axis if isinstance(layer, layers.BatchNormalization) else -1
        return axis % len(inputs.shape), axis % len(outputs.shape)

    def outputs(self, analysis, layer, channels):
        if isinstance(layer, layers.PReLU):
            return channels.ids, prelu(layer, channels.constant)
        scale, offset = normalization(layer)
        value = np.where(scale == 0, 0, channels.constant * scale) + offset
        return analysis.split(channels.ids, scale == 0), np.where(np.isfinite(value), value, np.nan)

    def weights(self, use, cut):
        return [
            array if array.shape[-1] != len(use.inputs) else array[..., cut.keep_inputs]
            for array in use.layer.get_weights()
        ]


class MeanSquare(OneTensorRule):
    """RMSNormalization: x·γ/√(mean of x² over all channels + ε), with γ the scale.

    Every output reads every channel that is not zero. Where n′ of n channels stay and all others are zero, the mean is
    n′/n of the one over those that stay: with ε·n/n′ and γ·√(n/n′) the outputs are the same.
    """

    def __call__(self, analysis, call):
        (tensor,) = call.inputs
        last = len(tensor.shape) - 1
        if passing.normalized_axes(call) != {last} or analysis.channels[tensor].axis != last:
            return passing.normalization(analysis, call)
        if analysis.any_weights:  # whatever reads its outputs, it reads all of them itself
            return mixing(analysis, call)
        return super().__call__(analysis, call)

    def axes(self, layer, inputs, outputs):
        return len(inputs.shape) - 1, len(outputs.shape) - 1

    def outputs(self, analysis, layer, channels):
        analysis.fragile(channels.ids)  # a placeholder that is not zero would count
        return channels.ids, zero_stays(channels.constant)

    def readers(self, use, name):
        ids, zero = use.inputs.ids, use.inputs.constant == 0
        return [Reader(name, ids, ids, np.broadcast_to(True, (len(ids), len(ids))), zero, zero)]

    def config(self, config, use, cut):
        return {**config, "epsilon": config["epsilon"] * _share(cut)}

    def weights(self, use, cut):
        return [array[cut.keep_inputs] * np.sqrt(_share(cut)) for array in use.layer.get_weights()]


def _share(cut):
    return len(cut.keep_inputs) / cut.keep_inputs.sum()


class Table(Rule):
    """An embedding: channels begin here; its inputs are indices."""

    def __call__(self, analysis, call):
        layer, (out,) = call.layer, call.outputs
        if is_rewritten(layer):
            return wall(analysis, call, f"'{call.name}' is quantised or has LoRA weights")
        for tensor in call.inputs:
            analysis.fix(analysis.channels[tensor].ids, f"indices of '{call.name}'")
        table = ops.convert_to_numpy(layer.embeddings)
        uniform = np.where((table == table[0]).all(axis=0), table[0].astype("float64"), np.nan)
        ids = analysis.fresh(table.shape[1])
        channels = Channels(len(out.shape) - 1, ids, uniform)
        first = analysis.uses.setdefault(id(layer), Use(layer, self, channels, channels))
        analysis.tie(first.outputs.ids, ids)
        analysis.channels[out] = channels

    def config(self, config, use, cut):
        return {**config, layer_facts.of(use.layer).size: int(cut.keep_outputs.sum())}

    def weights(self, use, cut):
        return [ops.convert_to_numpy(use.layer.embeddings)[:, cut.keep_outputs]]


def normalization(layer):
    """(scale, offset) of a BatchNormalization as it predicts, each (channels,) in float64."""
    mean, variance = (ops.convert_to_numpy(v).astype("float64") for v in (layer.moving_mean, layer.moving_variance))
    scale = 1 / np.sqrt(variance + layer.epsilon)
    if layer.scale:
        scale = scale * ops.convert_to_numpy(layer.gamma)
    return scale, (ops.convert_to_numpy(layer.beta) if layer.center else 0) - mean * scale
