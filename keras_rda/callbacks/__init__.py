from keras_rda.callbacks.backup import Backup
from keras_rda.callbacks.sparsity_logger import SparsityLogger
from keras_rda.callbacks.target_sparsity import TargetSparsity

__all__ = ["Backup", "SparsityLogger", "TargetSparsity"]
