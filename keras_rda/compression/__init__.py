"""Removal of channels that are dead or that nobody reads: an ordinary Keras model with the same outputs."""

from keras_rda.compression.compressing import compress, is_supported
from keras_rda.compression.report import CompressionReport

__all__ = ["CompressionReport", "compress", "is_supported"]
