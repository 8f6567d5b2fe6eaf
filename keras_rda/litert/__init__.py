"""Keras models as LiteRT (TFLite) files that were compared with Keras before they are put in place."""

import importlib

from keras_rda.litert import xnnpack
from keras_rda.litert.exporting import ExportError, export
from keras_rda.litert.latency import Latency, benchmark
from keras_rda.litert.machines.here import predict
from keras_rda.litert.report import ExportReport
from keras_rda.litert.shrinking import shrink
from keras_rda.litert.verification import Check, verify

__all__ = [
    "Check",
    "ExportError",
    "ExportReport",
    "Latency",
    "aarch64",
    "benchmark",
    "export",
    "predict",
    "shrink",
    "verify",
    "xnnpack",
]


def __getattr__(name):
    # Imported when it is asked for: `python3 -m keras_rda.litert.aarch64` runs that module by itself.
    if name == "aarch64":
        return importlib.import_module(f"{__name__}.aarch64")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
