"""The rule of EinsumDense where it is a dense layer."""

from keras_rda import layer_facts
from keras_rda.compression.linear import Linear
from keras_rda.compression.walls import mixing


class Einsum(Linear):
    """EinsumDense, such as "abc,cd->abd": a sum over the last axis of the inputs gives the last of the outputs."""

    def __call__(self, analysis, call):
        if not _is_dense(call.layer):
            return mixing(analysis, call)
        return super().__call__(analysis, call)

    def config(self, config, use, cut):
        shape = config["output_shape"]
        config = super().config(config, use, cut)
        return {**config, "output_shape": (*shape[:-1], config["output_shape"])}

    def has_bias(self, config):
        return bool(config["bias_axes"])

    def with_bias(self, config):
        return {**config, "bias_axes": layer_facts.operands(config["equation"])[2][-1]}


def _is_dense(layer):
    inputs, kernel, outputs = layer_facts.operands(layer.equation)
    return (
        sorted(kernel) == sorted(inputs[-1] + outputs[-1])
        and inputs[:-1] == outputs[:-1]
        and inputs[-1] not in outputs
        and layer.bias_axes in (None, "", outputs[-1])
    )
