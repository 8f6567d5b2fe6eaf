"""Keeping zeros while any Keras optimizer fine-tunes the other weights."""

import keras
import numpy as np
from keras import ops

from keras_rda import _keras
from keras_rda.kernels import is_kernel
from keras_rda.optimizers.base import PenalizedOptimizer, inner_optimizer


class ZeroPattern(keras.constraints.Constraint):
    """Constraint that keeps the zeros which `variable` has now, after applying the constraint it had before."""

    def __init__(self, variable):
        self._survives = ops.not_equal(variable, 0)
        self._before = variable.constraint

    def __call__(self, w):
        if self._before is not None:
            w = self._before(w)
        w = ops.convert_to_tensor(w)
        return ops.where(self._survives, w, ops.zeros_like(w))

    def revived(self, array):
        """How many entries of `array`, the variable's value, should be zero and are not."""
        return int(np.count_nonzero(array[~keras.ops.convert_to_numpy(self._survives)]))


def freeze_zeros(model: keras.Model) -> None:
    """Keep the zeros of a model's kernels, whatever optimizer trains it from here.

    It sets the `constraint` of the model's trainable kernels (rank ≥ 2, no embedding tables, biases or normalisation
    weights), which Keras applies after each update; one byte a weight. Constraints set this way are not part of a saved
    model: after loading, call it again.

    A train step of your own (`tf.function`, `jax.jit`) takes the constraints in when it is traced: make it after this
    call, or anew. If zeros have come back, `sparsity`, `summary`, `SparsityLogger` and `export` warn.

    Args:
        model: A built Keras model, compiled before or afterwards.

    Raises:
        ValueError: the model has no trainable kernels (not built, or all frozen), or its optimizer is one of Keras' own
            with `use_ema`: Keras puts the averages in place after the constraints, and they have no zeros. Or layers
            have LoRA, which adds what has no zeros to their kernels.
    """
    _keras.check_model("freeze_zeros", model)
    if adapted := [layer.name for layer in _keras.flat_layers(model) if hasattr(layer, "lora_kernel_a")]:
        raise ValueError(
            f"freeze_zeros() cannot keep the zeros of the model '{model.name}': the layers {adapted} have LoRA, whose "
            "product of two dense factors is added to their kernels. Call it on the model without enable_lora(): what "
            "is not zero is trained then."
        )
    optimizer = inner_optimizer(model)
    if getattr(optimizer, "use_ema", False) and not isinstance(optimizer, PenalizedOptimizer):
        raise ValueError(
            f"freeze_zeros() cannot keep the zeros of the model '{model.name}': its optimizer has use_ema=True, and "
            "averages have no exact zeros. Compile the model with use_ema=False."
        )
    kernels = [variable for variable in model.trainable_variables if is_kernel(variable)]
    if not kernels:
        raise ValueError(
            f"freeze_zeros() found no trainable kernels in the model '{model.name}': build it first, and set "
            "trainable=True on the layers to fine-tune."
        )
    for kernel in kernels:
        # A second call freezes the zeros of that moment and needs no chain of patterns.
        if isinstance(kernel.constraint, ZeroPattern):
            kernel.constraint = kernel.constraint._before
        kernel.constraint = ZeroPattern(kernel)
    if model.compiled:
        model.make_train_function(force=True)  # one that is traced already would not see the constraints
