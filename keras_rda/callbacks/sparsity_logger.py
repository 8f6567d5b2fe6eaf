"""Watching σ during `model.fit`."""

import warnings

import keras

from keras_rda.metrics import summarize
from keras_rda.optimizers.base import inner_optimizer


class SparsityLogger(keras.callbacks.Callback):
    """Logs σ after every epoch, and reports a network that has died.

    Adds `sparsity` (all trainable weights, eq. 30) and `kernel_sparsity` (the ones penalised by default) to the epoch's
    logs: the progress bar and `History` show them, and `TensorBoard`, `CSVLogger`, `EarlyStopping` or `ModelCheckpoint`
    when they stand after it in `callbacks`.

    A network of several layers whose kernels are all zero is a constant function, and no gradient reaches them: it does
    not come back by itself. The epoch at which that happens gets a warning.
    """

    def on_train_begin(self, logs=None):
        self._dead = False

    def on_epoch_end(self, epoch, logs=None):
        zeros = summarize(self.model.trainable_variables)
        if not zeros.rows:
            return
        kernels = sum(row.kernel for row in zeros.rows)
        if logs is not None:
            logs["sparsity"] = zeros.sparsity()
            if kernels:
                logs["kernel_sparsity"] = zeros.sparsity(kernels_only=True)
        # A single layer, as in logistic regression, has a gradient even at zero.
        if kernels > 1 and not self._dead and zeros.sparsity(kernels_only=True) == 1.0:
            self._dead = True
            warnings.warn(
                f"The network died in epoch {epoch + 1}: every kernel is zero, so its output is constant and no "
                f"gradient reaches the kernels.{_penalty_note(self.model)} Train again from fresh weights with a "
                "smaller penalty; in a network without normalisation layers, with center='initial' and a smaller "
                "learning_rate.",
                stacklevel=2,
            )


def _penalty_note(model):
    penalty = getattr(inner_optimizer(model), "penalty", None)
    return "" if penalty is None else f" The penalty's strength λ is {penalty.strength.numpy():g}."
