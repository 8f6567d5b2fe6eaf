"""The rule of recurrent layers: SimpleRNN, GRU and LSTM."""

import dataclasses

import numpy as np
from keras import ops

from keras_rda.compression.activations import is_elementwise, is_finite, of_known
from keras_rda.compression.analysis import Reader
from keras_rda.compression.graph import Tensor
from keras_rda.compression.rule import OneTensorRule
from keras_rda.compression.walls import wall


class Recurrent(OneTensorRule):
    """A layer whose units read its inputs, and each other's outputs of the step before.

    Args:
        gates: The columns of its kernels lie in so many parts, each with one for every unit.
        candidate: The part that computes what a unit takes up. Where that is zero, the unit stays at the zero at which
            it begins.
    """

    def __init__(self, gates, candidate):
        self.gates, self.candidate = gates, candidate

    def __call__(self, analysis, call):
        layer, given = call.layer, (*call.args[1:], call.kwargs.get("initial_state"))
        if layer.stateful or any(state is not None for state in given):
            return wall(analysis, call, f"'{call.name}' keeps its state, or is given one")
        if call.kwargs.get("training"):
            return wall(analysis, call, f"'{call.name}' is called with training=True")
        if not is_elementwise(analysis, layer.activation, 2) or not is_finite(
            getattr(layer, "recurrent_activation", None)
        ):
            return wall(analysis, call, f"an activation of '{call.name}' may mix channels, or may not be finite")
        mask = call.kwargs.get("mask")
        if isinstance(mask, Tensor):  # of steps: whole, and as good for fewer channels
            analysis.fix(analysis.channels[mask].ids, f"a mask of '{call.name}'")
            call = dataclasses.replace(call, kwargs={**call.kwargs, "mask": None})
        return super().__call__(analysis, call)

    def owner(self, layer, key):
        return layer if key == "activity_regularizer" else layer.cell

    def outputs(self, analysis, layer, channels):
        ids = analysis.fresh(layer.units)
        zero = np.zeros(len(ids), bool) if analysis.any_weights else self._stay_zero(layer, channels.constant)
        return ids, np.where(zero, 0, np.nan)

    def _stay_zero(self, layer, constant):
        """Bool (units,): which are zero at every step, for the constants of the inputs."""
        if of_known(layer.activation, np.zeros(1))[0] != 0:
            return np.zeros(layer.units, bool)
        kernel, recurrent, bias = (array[:, self.candidate] != 0 for array in self._arrays(layer))
        zero = ~kernel[constant != 0].any(axis=0) & ~bias.any(axis=0)
        while (reads := zero & recurrent[~zero].any(axis=0)).any():
            zero &= ~reads
        return zero

    def _arrays(self, layer):
        """Kernel (inputs, gates, units), recurrent kernel (units, gates, units), and bias (rows, gates, units) in
        float64, zeros where the layer has none. The GRU's has two rows, of which the first belongs to the kernel."""
        cell, shape = layer.cell, (-1, self.gates, layer.units)
        rows = 2 if getattr(layer, "reset_after", False) else 1
        bias = np.zeros((rows, *shape[1:])) if cell.bias is None else ops.convert_to_numpy(cell.bias)
        kernels = (ops.convert_to_numpy(kernel).reshape(shape) for kernel in (cell.kernel, cell.recurrent_kernel))
        return *kernels, bias.astype("float64").reshape(shape)

    def readers(self, use, name):
        kernel, recurrent, _ = ((array != 0).any(axis=1) for array in self._arrays(use.layer))
        known, zero = np.isfinite(use.inputs.constant), self._stay_zero(use.layer, use.inputs.constant)
        return [
            Reader(name, use.inputs.ids, use.outputs.ids, kernel, known, known),
            Reader(name, use.outputs.ids, use.outputs.ids, recurrent, zero, zero),
        ]

    def kernels(self, use):
        cell, computes = use.layer.cell, np.tile(use.outputs.ids, self.gates)[None]
        return [
            (cell.kernel, use.inputs.ids[:, None], computes),
            (cell.recurrent_kernel, use.outputs.ids[:, None], computes),
        ]

    def alive(self, use):
        return np.any([(array != 0).any(axis=(0, 1)) for array in self._arrays(use.layer)[:2]], axis=0)

    def config(self, config, use, cut):
        config = {**config, "units": int(cut.keep_outputs.sum())}
        return self.with_bias(config) if self._folded(use, cut)[:, cut.need_outputs].any() else config

    def _folded(self, use, cut):
        """What the constants of inputs that go add to the bias: (gates, units)."""
        constant = np.where(cut.need_inputs | ~np.isfinite(use.inputs.constant), 0, use.inputs.constant)
        return np.tensordot(constant, self._arrays(use.layer)[0].astype("float64"), 1)

    def weights(self, use, cut):
        kernel, recurrent, bias = self._arrays(use.layer)
        kernel = (kernel * cut.need_inputs[:, None, None])[cut.keep_inputs]
        recurrent = (recurrent * cut.need_outputs[:, None, None])[cut.keep_outputs]
        bias[0] += self._folded(use, cut)
        arrays = [kernel, recurrent, *([bias] if cut.use_bias else [])]
        left = [(array * cut.need_outputs)[..., cut.keep_outputs] for array in arrays]
        shaped = [array.reshape(len(array), -1) for array in left]
        if cut.use_bias and len(bias) == 1:  # Keras' has no axis of one row
            shaped[-1] = shaped[-1][0]
        return shaped
