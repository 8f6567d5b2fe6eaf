"""Keras models as LiteRT (TFLite) files that were compared with Keras before they are put in place."""

from keras_rda.litert.export import ExportError, export
from keras_rda.litert.report import ExportReport
from keras_rda.litert.verify import predict

__all__ = ["ExportError", "ExportReport", "export", "predict"]
