"""Keras models as LiteRT (TFLite) files that were compared with Keras before they are put in place."""

from keras_rda.litert.export import ExportError, export
from keras_rda.litert.latency import Latency, benchmark
from keras_rda.litert.report import ExportReport
from keras_rda.litert.verification import Check, predict, verify

__all__ = ["Check", "ExportError", "ExportReport", "Latency", "benchmark", "export", "predict", "verify"]
