"""What the callbacks of this package add to an epoch's logs, and to TensorBoard."""

import collections
import importlib
import importlib.util
import pathlib
import tempfile

import keras
import numpy as np

from keras_rda.optimizers.base import PenalizedOptimizer, inner_optimizer

LARGEST = 128  # rows and columns of a picture


def penalty_strengths(model):
    """λ of each penalised variable, by its `id`, as paths may repeat; empty where the model's optimizer has none."""
    optimizer = inner_optimizer(model)
    if not isinstance(optimizer, PenalizedOptimizer) or optimizer.penalty is None or not optimizer.built:
        return {}
    strength = float(optimizer.penalty.strength.numpy())
    factors = np.exp(keras.ops.convert_to_numpy(optimizer.strength_exponents))
    penalised = [own for own in optimizer.trained if own.penalty is not None]
    return {id(own.variable): strength * float(factors[own.position]) for own in penalised}


def entries(zeros, strengths):
    """σ of the kernels in a `SparsitySummary`, and λ: where kernels have their own, the geometric mean."""
    found = {}
    if any(row.kernel for row in zeros.rows):
        found["kernel_sparsity"] = zeros.sparsity(kernels_only=True)
    if strengths:
        values = np.array([*strengths.values()])
        found["penalty_strength"] = float(np.exp(np.mean(np.log(values)))) if values.all() else float(values.min())
    return found


class Events:
    """TensorBoard's event files, in the run `sparsity` of a folder: σ and λ of each kernel, and where its zeros are.

    They are written as Keras' own `TensorBoard` callback does, by TensorFlow on every backend; and in a run of their
    own, because TensorBoard follows one file a run.

    Raises:
        ImportError: TensorBoard is not installed.
        OSError: the folder cannot be made or written to.
    """

    def __init__(self, log_dir):
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError(
                "SparsityLogger(log_dir=…) writes for TensorBoard, which is not installed: python3 -m pip install "
                "tensorboard does that."
            )
        folder = pathlib.Path(log_dir, "sparsity")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # raises here what TensorFlow would put in words of its graphs
            pass
        self._summary = importlib.import_module("tensorflow.summary")
        self._writer = self._summary.create_file_writer(str(folder))

    def write(self, epoch, zeros, strengths, variables):
        """Add an epoch: of the `variables` of which `zeros` is the `SparsitySummary`, the kernels."""
        seen = collections.Counter()
        with self._writer.as_default(step=epoch):
            for row, variable in zip(zeros.rows, variables, strict=True):
                # Variables of one path, as layers of one name have them, are told apart by numbers.
                tag = f"{row.path}_{seen[row.path]}" if seen[row.path] else row.path
                seen[row.path] += 1
                if row.kernel:
                    self._summary.scalar(f"sparsity/{tag}", row.sparsity)
                    self._summary.image(f"zeros/{tag}", picture(variable)[None, ..., None])
                if id(variable) in strengths:
                    self._summary.scalar(f"penalty_strength/{tag}", strengths[id(variable)])
        self._writer.flush()

    def close(self):
        self._writer.close()


def picture(kernel):
    """Where the zeros of a kernel are, as grey levels: white where all weights are zero, black where none is.

    A row is an input (and a position of a convolution's window), a column an output. Of large kernels a pixel is a
    block of weights, so that there are at most `LARGEST` in a row or column.
    """
    weights = keras.ops.convert_to_numpy(kernel)
    # A depthwise kernel ends with its multiplier, 1 as a rule: its columns are the channels before that.
    columns = next((size for size in reversed(weights.shape) if size > 1), 1)
    zeros = (weights.reshape(-1, columns) == 0).astype("float32")
    for axis in (0, 1):
        size = zeros.shape[axis]
        starts = np.linspace(0, size, min(size, LARGEST), endpoint=False).astype(int)
        lengths = np.diff(starts, append=size)
        zeros = np.add.reduceat(zeros, starts, axis) / np.expand_dims(lengths, 1 - axis)
    return np.round(255 * zeros).astype("uint8")
