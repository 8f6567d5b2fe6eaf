"""Removal of channels that are dead or that nobody reads: an ordinary Keras model with the same outputs.

An example with the package's words, which `tests/test_public.py` runs. An image of one channel goes through three
layers: a convolution `first` of 3 filters without bias, a batch normalisation, and a convolution `second` of 1 filter.

>>> import numpy as np
>>> model = keras.Sequential([
...     keras.Input((4, 4, 1)),
...     keras.layers.Conv2D(3, 1, use_bias=False, name="first"),
...     keras.layers.BatchNormalization(epsilon=0.0, name="normalization"),
...     keras.layers.Conv2D(1, 1, name="second"),
... ])
>>> first = np.array([2.0, 0.0, 3.0]).reshape(1, 1, 1, 3)
>>> model.get_layer("first").set_weights([first])
>>> gamma, beta, mean, variance = [1.0, 2.0, 1.0], [0.0, 5.0, 0.0], [0.0, 1.0, 0.0], [1.0, 4.0, 1.0]
>>> model.get_layer("normalization").set_weights(list(map(np.array, (gamma, beta, mean, variance))))
>>> second = np.array([1.0, 10.0, 0.0]).reshape(1, 1, 3, 1)
>>> model.get_layer("second").set_weights([second, np.array([7.0])])

- `graph` reads the model as a list of *calls* of layers on tensors. A tensor has one *id* a channel (within attention a
  head: `Channels.axis` says along which axis). What must stay or go together is tied and makes one *class*: the
  outputs of `first` and of `normalization`, which hands its channels on, have the same three ids, so cutting a class
  cuts both layers.
- Forwards, each call meets its layer's rule (`rules`). That of a layer whose weights shrink with its channels (`rule`)
  registers a *use*: the layer with the channels of its inputs and outputs. Here there are three. Any other layer only
  passes channels on (`passing`), or is a *wall*: nothing that goes in is cut, and what comes out is *opaque*, which
  means that its channels all stay. The model's input is opaque, and its output stays whole.
- Some channels have a *constant*: channel 1 of `first` has only zero weights, so it is 0 everywhere, and behind the
  normalisation 2·(0 − 1)/√4 + 5 = 4. Such a channel is called dead.
- `second` mixes channels by its weights: it is a *reader*, of channel 0 (weight 1) and of channel 1 (weight 10), not of
  channel 2 (weight 0). It does not need channel 1, because the bias takes the constant over exactly: 7 + 10·4 = 47.
  (With zero padding it could not: near the border the sum has fewer terms.)
- Backwards (`analysis.Analysis.solve`), what a needed channel is computed from is needed: the output needs channel 0.
  Nobody needs the channels 1 and 2, the one dead, the other unread, and both go. What is cut: two filters of `first`,
  two entries of each vector of `normalization`, and the two rows of `second` that read them.

>>> smaller, report = keras_rda.compress(model, report=True)
>>> [(row.name, row.channels) for row in report.rows]
[('first', (3, 1)), ('normalization', (3, 1)), ('second', (1, 1))]
>>> kernel, bias = smaller.get_layer("second").get_weights()
>>> kernel.shape, kernel.item(), bias.item()
((1, 1, 1, 1), 1.0, 47.0)

`surgery` builds the smaller model from the same calls, and `report` says what became of each layer.
"""

from keras_rda.compression.compressing import compress, is_supported, multiply_adds
from keras_rda.compression.report import CompressionReport

__all__ = ["CompressionReport", "compress", "is_supported", "multiply_adds"]
