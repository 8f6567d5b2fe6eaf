from keras_rda.callbacks.sparsity_logger import SparsityLogger
from keras_rda.callbacks.target_sparsity import TargetSparsity

__all__ = ["SparsityLogger", "TargetSparsity"]
