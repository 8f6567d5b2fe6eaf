"""What a rule of a layer whose weights are cut must define. `rules` says which layer has which."""

import abc
import dataclasses

import keras
import numpy as np
from keras import ops

from keras_rda.compression.activations import activation_function, is_finite
from keras_rda.compression.analysis import Channels
from keras_rda.compression.walls import single, wall
from keras_rda.layer_facts import channel_axis


@dataclasses.dataclass
class Use:
    """A layer whose weights are cut: the channels of its first call; later calls of the layer are tied to it.

    `inputs.constant` is NaN where two calls differ.
    """

    layer: keras.layers.Layer
    rule: "Rule"
    inputs: Channels
    outputs: Channels


@dataclasses.dataclass
class Cut:
    """What becomes of the channels of one layer; all bool arrays.

    A channel that is kept but not needed is a placeholder: its weights are zero, and nobody reads it. A channel that is
    not needed but has a known constant adds it to the biases of its readers.
    """

    keep_inputs: np.ndarray
    need_inputs: np.ndarray
    keep_outputs: np.ndarray
    need_outputs: np.ndarray
    use_bias: bool = False


class Rule(abc.ABC):
    """How a layer is read whose weights are cut, and how the smaller one is made.

    Every rule defines the call itself and `weights`; the other methods answer for a layer that mixes no channels and
    whose configuration counts none. `OneTensorRule` defines the call for layers with one input and one output.
    """

    @abc.abstractmethod
    def __call__(self, analysis, call):
        """Forwards: register the layer's `Use` in `analysis.uses` and give the call's outputs their `Channels` in
        `analysis.channels`; or build a `wall`."""

    def readers(self, use, name):
        """The `Reader`s of this layer, once all its calls are known; `name` is the layer's."""
        return []

    def kernels(self, use):
        """(variable, reads, computes) of every kernel: the ids of the channels that its weights read and compute, int
        arrays that broadcast to its shape."""
        return []

    def equal_groups(self, use):
        """Pairs of ids (groups, channels of a group) of inputs and outputs that must be cut alike."""
        return []

    def width(self, use):
        """How many channels of the layer's weights each of its outputs stands for."""
        return 1

    def alive(self, use):
        """Bool (outputs,): which outputs have weights that are not zero. The report names the others that stay."""
        return np.ones(len(use.outputs), bool)

    def owner(self, layer, key):
        """The object that has what the entry `key` of the layer's configuration names, such as an activation."""
        return layer

    def config(self, config, use, cut):
        """The configuration of the smaller layer, from that of the layer."""
        return config

    def has_bias(self, config):
        """Whether a layer of this configuration has a bias."""
        return bool(config.get("use_bias"))

    def with_bias(self, config):
        """The configuration of a layer that has one."""
        return {**config, "use_bias": True}

    @abc.abstractmethod
    def weights(self, use, cut):
        """The arrays of the smaller layer in the order of `set_weights`; the bias, if `cut.use_bias`, is the last."""

    def scaled(self, use, arrays, scale):
        """The `arrays` of `weights` with the outputs that stay multiplied by their `scale`; the bias is left alone."""
        raise NotImplementedError(f"{type(self).__name__} must define scaled(use, arrays, scale).")

    def is_scalable(self, layer):
        """Whether a BatchNormalization can be multiplied into the layer's weights: the class defines `scaled`."""
        return type(self).scaled is not Rule.scaled


class OneTensorRule(Rule):
    """A layer that makes one tensor of one, by weights that belong to channels on one axis of each."""

    @abc.abstractmethod
    def outputs(self, analysis, layer, channels):
        """(ids, constants) of the outputs, before the layer's activation, for the `Channels` of the input."""

    def axes(self, layer, inputs, outputs):
        """The axes of the channels in the input and the output of the layer."""
        return channel_axis(layer, len(inputs.shape)), channel_axis(layer, len(outputs.shape))

    def __call__(self, analysis, call):
        layer = call.layer
        before, axis = self.axes(layer, call.inputs[0], call.outputs[0])
        channels = single(analysis, call, before)
        if channels is None:
            return wall(analysis, call, f"'{call.name}' reads another axis than the channels'")
        if is_rewritten(layer):
            return wall(analysis, call, f"'{call.name}' is quantised or has LoRA weights")
        rank = len(call.outputs[0].shape)
        if not _is_activation_cut(layer, last=axis == rank - 1):
            return wall(analysis, call, f"the activation of '{call.name}' has weights that are not cut with it")
        outputs, constant = self.outputs(analysis, layer, channels)
        function = activation_function(analysis, layer, rank)
        first = analysis.uses.setdefault(id(layer), Use(layer, self, channels, Channels(axis, outputs, constant)))
        if first.inputs is not channels:
            analysis.tie(first.inputs.ids, channels.ids)
            analysis.tie(first.outputs.ids, outputs)
            same = first.inputs.constant == channels.constant
            first.inputs = dataclasses.replace(first.inputs, constant=np.where(same, channels.constant, np.nan))
        if not is_finite(getattr(layer, "activation", None)):
            analysis.fragile(outputs)
        if function is None:
            analysis.fix(outputs, f"the activation of '{call.name}' may mix channels")
        after = np.full(len(outputs), np.nan) if function is None else function(constant)
        analysis.channels[call.outputs[0]] = Channels(axis, outputs, after)


def is_rewritten(layer):
    """Whether Keras keeps the layer's weights in another form than its configuration makes: quantised, or with LoRA."""
    return getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None)


def bias_of(layer, size):
    """The bias of `size` outputs in float64; zeros if the layer has none."""
    return np.zeros(size) if layer.bias is None else ops.convert_to_numpy(layer.bias).astype("float64")


def cut_bias(use, cut, folded=0):
    """The bias of the outputs that are kept, with what the channels that go contributed."""
    bias = bias_of(use.layer, len(use.outputs)) + folded
    return np.where(cut.need_outputs, bias, 0)[cut.keep_outputs]


def _is_activation_cut(layer, last):
    """Whether a layer's own activation shrinks with it: one without weights, or a PReLU on the `last` axis."""
    activation = getattr(layer, "activation", None)
    if isinstance(activation, keras.layers.PReLU):
        return activation.built and last
    return not isinstance(activation, keras.layers.Layer) or (activation.built and not activation.weights)
