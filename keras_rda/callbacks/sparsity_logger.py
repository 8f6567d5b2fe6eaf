"""Watching σ and λ during `model.fit`."""

import os
import warnings

import keras

from keras_rda.callbacks.logs import Events, entries, penalty_strengths
from keras_rda.metrics import summarize
from keras_rda.optimizers.base import inner_optimizer
from keras_rda.types import Path


class SparsityLogger(keras.callbacks.Callback):
    """Logs σ and λ after every epoch, and reports a network that has died.

    Adds to the epoch's logs `sparsity` (all trainable weights, eq. 30), `kernel_sparsity` (the ones penalised by
    default) and `penalty_strength` (λ, where the optimizer has one; the geometric mean where kernels have their own).
    The progress bar and `History` show them, `plot_history` draws them, and `TensorBoard`, `CSVLogger`, `EarlyStopping`
    or `ModelCheckpoint` get them when they stand after it in `callbacks`.

    With a `log_dir` TensorBoard also gets, in a run of the name `sparsity` there, σ and λ of each kernel, and under
    “Images” where its zeros are: white where weights are zero, a row an input, a column an output, at most 128 of each
    (in larger kernels a pixel is a block, the lighter the more of it is zero). TensorBoard shows ten epochs of a
    picture, `tensorboard --logdir logs --samples_per_plugin images=1000` all of them.

    A network of several layers whose kernels are all zero is a constant function, and no gradient reaches them: it does
    not come back by itself. The epoch at which that happens gets a warning.

    Args:
        log_dir: A folder, as of `keras.callbacks.TensorBoard`. Defaults to None: nothing is written.

    Raises:
        TypeError: `log_dir` is no path.
        ImportError, OSError: when training begins, TensorBoard is not installed, or the folder cannot be made or
            written to.
        tensorflow.errors.OpError: the disk is full.

    Examples:
        >>> callbacks = [keras_rda.SparsityLogger("logs"), keras.callbacks.TensorBoard("logs")]
        >>> history = model.fit(x, y, epochs=2, callbacks=callbacks, verbose=0)
        >>> sorted(history.history)
        ['kernel_sparsity', 'loss', 'penalty_strength', 'sparsity']
    """

    def __init__(self, log_dir: Path | None = None) -> None:
        super().__init__()
        if not isinstance(log_dir, str | os.PathLike | None):
            raise TypeError(f"SparsityLogger: log_dir must be the path of a folder; received {log_dir!r}.")
        self.log_dir = log_dir

    def on_train_begin(self, logs=None):
        self._dead = False
        self._events = None if self.log_dir is None else Events(self.log_dir)

    def on_train_end(self, logs=None):
        if self._events is not None:
            self._events.close()

    def on_epoch_end(self, epoch, logs=None):
        variables = self.model.trainable_variables
        zeros, strengths = summarize(variables), penalty_strengths(self.model)
        if not zeros.rows:
            return
        if logs is not None:
            logs |= {"sparsity": zeros.sparsity()} | entries(zeros, strengths)
        if self._events is not None:
            self._events.write(epoch, zeros, strengths, variables)
        kernels = sum(row.kernel for row in zeros.rows)
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
