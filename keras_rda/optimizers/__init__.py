from keras_rda.optimizers.base import PenalizedOptimizer
from keras_rda.optimizers.mrda import MRDA
from keras_rda.optimizers.prox_sgd import ProxSGD
from keras_rda.optimizers.rda import RDA
from keras_rda.optimizers.sda import SDA
from keras_rda.optimizers.sqrt_prox_sgd import SqrtProxSGD

__all__ = ["MRDA", "RDA", "SDA", "PenalizedOptimizer", "ProxSGD", "SqrtProxSGD"]
