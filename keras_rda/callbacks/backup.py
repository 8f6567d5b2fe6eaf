"""Going on after a kill."""

import pathlib

import keras
import numpy as np

from keras_rda import _keras, output
from keras_rda.optimizers.base import inner_optimizer
from keras_rda.types import Path


class Backup(keras.callbacks.Callback):
    """Lets a run that was killed, at whatever moment, go on from its last whole epoch and end with the same bits.

    After each epoch all variables of model and optimizer go into one file, which is written beside and renamed: at any
    moment `path` holds a whole backup or nothing. (`keras.callbacks.BackupAndRestore` overwrites two files in place; a
    kill between them continues the wrong epoch, and HDF5 takes the process with it when the disk is full.) `fit` starts
    from the backup if there is one, and removes it when training ends. What has to outlast a kill after that, before
    the model is saved, needs `delete_checkpoint=False`: when such a run is started again, `fit` restores its end and
    returns. (Training that stopped early, as by `EarlyStopping`, goes on instead.) Delete the file when the model is
    saved, or the next run with it will not train.

    The same bits need the same batches in each epoch, whatever epoch a process starts with: `shuffle=False`, or a
    `PyDataset` that draws its order from the epoch's number.

    Args:
        path: A file name that ends with `.npz`. Its directory is made if need be.
        delete_checkpoint: Whether the backup is removed when training ends. Defaults to True.

    Raises:
        ValueError: `path` ends otherwise; when training begins, the model is not built, or the file is no backup of
            such a model with such an optimizer.
        OSError: there is no room, or no right, to write beside `path`; the backup of the epoch before is kept.

    Examples:
        >>> backup = keras_rda.Backup("run.npz")
        >>> history = model.fit(x, y, epochs=3, shuffle=False, callbacks=[backup], verbose=0)
    """

    def __init__(self, path: Path, delete_checkpoint: bool = True) -> None:
        super().__init__()
        self.path, self.delete_checkpoint = pathlib.Path(path), delete_checkpoint
        if self.path.suffix != ".npz":
            raise ValueError(f"Backup: path must end with .npz; received {str(path)!r}.")

    def on_train_begin(self, logs=None):
        if not self.model.built:
            raise ValueError(
                f"Backup needs a model whose weights exist before fit(): build {self.model.name!r}, or call it once."
            )
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._begin_at = 0
        if self.path.exists():
            self._begin_at = self._restore()
            _keras.begin_fit_at(self.model, self._begin_at)

    def on_epoch_begin(self, epoch, logs=None):
        if epoch < self._begin_at:
            raise _keras.incompatible(f"fit began at epoch {epoch} and not at {self._begin_at}, which Backup asked for")
        _keras.begin_fit_at(self.model, None)  # `fit` has read it; the next, if this is interrupted, has its own

    def on_epoch_end(self, epoch, logs=None):
        arrays = [keras.ops.convert_to_numpy(variable) for variable in self._variables()]
        with output.replacing(self.path) as unfinished, unfinished.open("wb") as file:
            # As bytes: NumPy's files have no bfloat16.
            packed = [np.frombuffer(a.tobytes(), "uint8") for a in arrays]
            np.savez(file, *packed, epoch=epoch + 1, kind=self._kind())

    def on_train_end(self, logs=None):
        if self.delete_checkpoint:
            self.path.unlink(missing_ok=True)
        _keras.begin_fit_at(self.model, None)  # where no epoch was left to begin

    def _variables(self):
        return [*self.model.variables, *self.model.optimizer.variables]

    def _kind(self):
        """What a backup has to fit: the optimizer's class, and shape and precision of all variables."""
        variables = [f"{tuple(v.shape)} {keras.backend.standardize_dtype(v.dtype)}" for v in self._variables()]
        return "\n".join([type(inner_optimizer(self.model)).__name__, *variables])

    def _restore(self):
        try:
            # Opened here: np.load leaves a file that it cannot read open.
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = dict(archive)
            epoch, kind = int(arrays.pop("epoch")), str(arrays.pop("kind"))
            if epoch < 1:
                raise ValueError(f"its epoch is {epoch}")
        except Exception as error:
            raise ValueError(f"{self.path} is no backup: {error}. Delete it to train from the start.") from error
        if kind != self._kind():
            ours, theirs = self._kind().split("\n"), kind.split("\n")
            raise ValueError(
                f"{self.path} is the backup of another run: {len(theirs) - 1} variables and {theirs[0]}, where this "
                f"has {len(ours) - 1} and {ours[0]}, or of other shapes. Choose another path, or delete it."
            )
        variables, values = self._variables(), []
        for number, variable in enumerate(variables):  # all of them, before the first is assigned
            now, saved = keras.ops.convert_to_numpy(variable), arrays.get(f"arr_{number}")
            if saved is None or saved.nbytes != now.nbytes:
                raise ValueError(
                    f"{self.path} is no backup: what it holds of {variable.path} is not {now.nbytes} bytes. Delete it "
                    "to train from the start."
                )
            values.append(np.frombuffer(saved.tobytes(), now.dtype).reshape(now.shape))
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return epoch
