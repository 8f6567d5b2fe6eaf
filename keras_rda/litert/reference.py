"""What Keras makes of a batch: that by which files are judged."""

import contextlib
import copy

import keras
import numpy as np

from keras_rda.litert import feeds
from keras_rda.litert.calls import SIZES
from keras_rda.litert.machines import here

_BATCH = 2
_CALLS = 3  # so often a model is called that keeps a state from one call to the next
_QUANTIZED_BATCH = 16  # rounding differs from input to input


class Reference:
    """Inputs, and Keras' outputs for them.

    Args:
        model: A Sequential or Functional model (see `feeds.check`).
        samples: A list of dicts of input name → array (1, …), or a whole batch where its size is fixed; by default,
            random ones.
        quantized: Whether for quantised files, which are compared on more inputs.
        batch_size: That of the files, if they take only one: inputs are as many whole batches.

    The variables of the model stay as they are, also those in which it keeps a state; such a model is called several
    times.

    Attributes:
        inputs: Array, or dict of input name → array if there are several.
        outputs: Dict of output name → array; of several calls, one after the other.
        others: Where sizes of inputs are unknown besides the batch's: a `Reference` each for a larger and a smaller
            one, as far as the model takes them.
    """

    def __init__(self, model, samples=None, quantized=False, batch_size=None):
        batch = model.inputs[0].shape[0] or batch_size or 1
        calls = -(-(_QUANTIZED_BATCH if quantized else _BATCH) // batch)  # of files of this size
        self.origin = (
            "for representative_data" if samples else "for random inputs; give representative_data, which is typical"
        )
        self.others = []
        self._few = slice(None) if model.inputs[0].shape[0] else slice(-(-_BATCH // batch) * batch)
        is_open = feeds.is_open(model)
        if samples:
            count = 1 if model.inputs[0].shape[0] else calls  # a fixed batch is one sample
            inputs = _joined(samples[:count])
            self._compute(model, inputs)
        else:
            sizes = SIZES if is_open else (None,)
            for size in sizes:
                inputs = feeds.random(model, calls * batch, size)
                try:
                    self._compute(model, inputs)
                    break
                except Exception:  # too small an image, or whatever the model refuses
                    if size == sizes[-1]:
                        raise
        if is_open:
            for share in (1.6, 0.7):
                other = copy.copy(self)
                with contextlib.suppress(Exception):
                    other._compute(model, _resized(model, inputs, share))
                    self.others.append(other)

    def _compute(self, model, inputs):
        structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
        given = keras.tree.map_structure(lambda tensor: inputs[tensor.name], structure)

        def call():
            outputs = model(given, training=False)
            if not isinstance(outputs, dict):
                outputs = {f"output_{i}": output for i, output in enumerate(keras.tree.flatten(outputs))}
            return {name: keras.ops.convert_to_numpy(output) for name, output in outputs.items()}

        with keras.StatelessScope() as scope:  # what the model assigns to its variables stays in here
            results = [call()]
            self._calls = _CALLS if scope.state_mapping else 1
            results += [call() for _ in range(1, self._calls)]
        self.outputs = here.in_a_row(results)
        # A model that was cloned or loaded may have renamed its only input.
        self.inputs = inputs if len(inputs) > 1 else next(iter(inputs.values()))

    @property
    def shapes(self):
        """Of the inputs, in words."""
        arrays = self.inputs.values() if isinstance(self.inputs, dict) else [self.inputs]
        return ", ".join(str(array.shape) for array in arrays)

    @property
    def finite(self):
        return all(np.isfinite(output).all() for output in self.outputs.values())

    def first_outputs(self):
        """Keras' outputs in the first call."""
        return {name: output[: len(output) // self._calls] for name, output in self.outputs.items()}

    def few(self):
        """A few of the inputs, for a machine that may be emulated, and Keras' outputs for them."""
        several = isinstance(self.inputs, dict)
        inputs = {k: v[self._few] for k, v in self.inputs.items()} if several else self.inputs[self._few]
        return inputs, {name: output[self._few] for name, output in self.first_outputs().items()}

    def run(self, path, delegates=True):
        """What a file that was checked, or that this package wrote, makes of the inputs; errors as for `predict`."""
        return here.run(path, self.inputs, delegates, self._calls)


def _joined(samples):
    """Samples as one batch: those that are as large as the first."""
    alike = [s for s in samples if all(s[name].shape == array.shape for name, array in samples[0].items())]
    return {name: np.concatenate([sample[name] for sample in alike]) for name in samples[0]}


def _resized(model, inputs, share):
    """The same values in arrays in which the sizes that are unknown are `share` times as large."""
    arrays = dict(inputs)
    for tensor in model.inputs:
        for axis, known in enumerate(tensor.shape[1:], 1):
            if known is None:
                array = arrays[tensor.name]
                indices = np.arange(max(1, int(share * array.shape[axis])))
                arrays[tensor.name] = np.take(array, indices, axis, mode="wrap")
    return arrays
