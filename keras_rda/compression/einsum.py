"""The rules of EinsumDense: a dense layer, or one to and from the heads of attention."""

import math

import numpy as np
from keras import ops

from keras_rda import layer_facts
from keras_rda.compression.linear import Linear
from keras_rda.compression.rule import bias_of
from keras_rda.compression.walls import mixing


class Einsum(Linear):
    """EinsumDense, such as "abc,cd->abd": a sum over axes of the inputs gives an axis of the outputs.

    The channels are the first of the axes that are summed over, those behind it are like the taps of a convolution:
    of "bquh,uhm->bqm" the heads u, each of h units.
    """

    def __call__(self, analysis, call):
        letters = _letters(call.layer)
        if letters is None:
            return mixing(analysis, call)
        if len(letters[1]) > 1 and self is not TO_HEADS:
            return TO_HEADS(analysis, call)
        return super().__call__(analysis, call)

    def axes(self, layer, inputs, outputs):
        before, _, after = layer_facts.operands(layer.equation)
        summed, new = _letters(layer)
        return (
            len(inputs.shape) - len(before) + before.index(summed[0]),
            len(outputs.shape) - len(after) + after.index(new[0]),
        )

    def _kernel_axes(self, layer):
        kernel = layer_facts.operands(layer.equation)[1]
        return tuple(kernel.index(letters[0]) for letters in _letters(layer))

    def _bias(self, layer, size):
        # Behind the axis of the channels Keras' bias has an axis of size 1 for every other one of the outputs.
        return bias_of(layer, size).reshape(size)

    def config(self, config, use, cut):
        cut_config = super().config(config, use, cut)
        shape = list(config["output_shape"])
        shape[-1 - _behind(use.layer)] = cut_config["output_shape"]
        return {**cut_config, "output_shape": tuple(shape)}

    def has_bias(self, config):
        return bool(config["bias_axes"])

    def with_bias(self, config):
        return {**config, "bias_axes": _new(*layer_facts.operands(config["equation"]))}

    def weights(self, use, cut):
        arrays = self._cut_kernels(use, cut)
        if cut.use_bias:
            bias = self._bias(use.layer, len(use.outputs)) + self._folded(use, cut)
            bias = np.where(cut.need_outputs, bias, 0)[cut.keep_outputs]
            arrays.append(bias.reshape(-1, *[1] * _behind(use.layer)))
        return arrays

    def is_scalable(self, layer):
        return _behind(layer) == 0  # else a bias is no vector


class ToHeads(Einsum):
    """EinsumDense that makes several axes, such as "bqm,muh->bquh": the channels are the first of them, the heads u."""

    def _absorbs(self, layer, constant):
        return constant == 0  # any other constant is another one for each unit of a head

    def _bias(self, layer, size):
        if layer.bias is None:
            return np.zeros(size)
        return np.where(ops.convert_to_numpy(layer.bias).reshape(size, -1).any(axis=1), np.nan, 0)

    def width(self, use):
        kernel, new = layer_facts.operands(use.layer.equation)[1], _letters(use.layer)[1]
        return math.prod(use.layer.kernel.shape[kernel.index(letter)] for letter in new[1:])

    def weights(self, use, cut):
        arrays = self._cut_kernels(use, cut)
        if cut.use_bias:
            bias = ops.convert_to_numpy(use.layer.bias).copy()
            bias[~cut.need_outputs] = 0
            arrays.append(bias[cut.keep_outputs])
        return arrays


TO_HEADS = ToHeads()


def _behind(layer):
    """How many axes of the outputs lie behind that of the channels."""
    after = layer_facts.operands(layer.equation)[2]
    return len(after) - 1 - after.index(_letters(layer)[1][0])


def _letters(layer):
    """Letters of the axes that are summed over, and of those that the sum makes; None if the layer does more than to
    sum over some axes of the inputs, or its bias is not one of what the sum makes."""
    inputs, kernel, outputs = layer_facts.operands(layer.equation)
    summed, new = "".join(letter for letter in inputs if letter not in outputs), _new(inputs, kernel, outputs)
    known = (
        summed
        and new
        and sorted(kernel) == sorted(summed + new)
        and [letter for letter in inputs if letter in outputs] == [letter for letter in outputs if letter not in new]
        and "..." not in inputs.lstrip(".") + outputs.lstrip(".")
        and layer.bias_axes in (None, "", new)
    )
    return (summed, new) if known else None


def _new(inputs, kernel, outputs):
    return "".join(letter for letter in outputs if letter not in inputs)
