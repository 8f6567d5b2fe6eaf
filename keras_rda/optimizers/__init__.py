from keras_rda.optimizers.base import PenalizedOptimizer
from keras_rda.optimizers.mrda import MRDA
from keras_rda.optimizers.prox_sgd import ProxSGD
from keras_rda.optimizers.rda import RDA
from keras_rda.optimizers.rmda import RMDA
from keras_rda.optimizers.sda import SDA
from keras_rda.optimizers.sqrt_prox_sgd import SqrtProxSGD
from keras_rda.optimizers.xrda import XRDA

__all__ = ["MRDA", "RDA", "RMDA", "SDA", "XRDA", "PenalizedOptimizer", "ProxSGD", "SqrtProxSGD"]
