"""Train sparse networks with regularised dual averaging in Keras 3, and export the zeros as smaller LiteRT files."""

from keras_rda import datasets, litert, models, optimizers
from keras_rda.callbacks import Backup, SparsityLogger, TargetSparsity
from keras_rda.compression import CompressionReport, compress
from keras_rda.constraints import freeze_zeros
from keras_rda.litert import ExportError, ExportReport, export
from keras_rda.metrics import sparsity, summary
from keras_rda.optimizers import MRDA, RDA, RMDA, SDA, XRDA, ProxSGD, SqrtProxSGD
from keras_rda.penalties import L1, L1L2, GroupL1, Penalty
from keras_rda.plotting import plot_history
from keras_rda.sensitivities import Sensitivity, sensitivity

__version__ = "0.1.0"

__all__ = [
    "L1",
    "L1L2",
    "MRDA",
    "RDA",
    "RMDA",
    "SDA",
    "XRDA",
    "Backup",
    "CompressionReport",
    "ExportError",
    "ExportReport",
    "GroupL1",
    "Penalty",
    "ProxSGD",
    "Sensitivity",
    "SparsityLogger",
    "SqrtProxSGD",
    "TargetSparsity",
    "compress",
    "datasets",
    "export",
    "freeze_zeros",
    "litert",
    "models",
    "optimizers",
    "plot_history",
    "sensitivity",
    "sparsity",
    "summary",
]
