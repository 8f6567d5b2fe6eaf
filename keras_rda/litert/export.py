"""`export`: convert, compare with Keras, and only then put the file in place."""

import os
import pathlib
import tempfile
import warnings

import keras

from keras_rda import metrics
from keras_rda.litert import convert, verify
from keras_rda.litert.report import ExportReport
from keras_rda.penalties import is_kernel


class ExportError(RuntimeError):
    """A file could not be made, or was wrong; nothing was left at the path."""


def export(model, path):
    """Write `model` as a float32 LiteRT file in which zeros take no space, verified against Keras.

    The file's outputs are compared with the model's on random inputs, in the `ai_edge_litert` interpreter with its
    default delegate. A file at `path` is replaced only by one that passed, in one atomic step.

    Args:
        model: A built Sequential or Functional model in float32; only the batch size may be unknown.
        path: Where to write the file, ending in `.tflite`; its directory must exist.

    Returns:
        `ExportReport`: sizes and the largest difference; `print` shows a table.

    Raises:
        ExportError: the model does not convert to LiteRT's builtin operators, or the file's outputs differ from Keras'.
        RuntimeError: the Keras backend is not TensorFlow.
        ValueError, FileNotFoundError: `path` cannot be written to, the model has no symbolic inputs, an input has an
            unknown dimension besides the batch size, or layers do not compute in float32.
    """
    path = pathlib.Path(path)
    if path.suffix != ".tflite":
        raise ValueError(f"path must end in '.tflite'; received {str(path)!r}.")
    if path.is_dir():
        raise ValueError(f"path must name a file; {str(path)!r} is a directory.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The directory {str(path.parent)!r} does not exist; create it first.")
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"export() needs Keras' TensorFlow backend, and this process runs {keras.backend.backend()!r}. Save the "
            "model (model.save('model.keras')) and export it in a process started with KERAS_BACKEND=tensorflow."
        )
    if not getattr(model, "inputs", None):
        raise ValueError(
            f"export() needs a Sequential or Functional model that is built; received {type(model).__name__} "
            f"'{model.name}' without symbolic inputs. Wrap it: keras.Model(inputs, model(inputs)) with "
            "inputs = keras.Input(shape)."
        )
    verify.check_inputs(model)
    if wrong := sorted({f"{layer.name} ({layer.compute_dtype})" for layer in _layers(model) if _is_low(layer)}):
        raise ValueError(
            f"export() writes float32 files; these layers compute in another precision: {', '.join(wrong)}. Build the "
            "model under keras.config.set_dtype_policy('float32'), copy the weights with set_weights(get_weights()), "
            "and export that."
        )
    kernels = metrics.summarize([variable for variable in model.weights if is_kernel(variable)])
    sparsity = kernels.sparsity() if kernels.rows else 0.0
    if sparsity == 1.0:
        warnings.warn(
            f"Every kernel of the model '{model.name}' is zero, so the file computes a constant: the penalty was too "
            "strong. Train again with a smaller one.",
            stacklevel=2,
        )
    # In the same directory, so that the rename is atomic; hidden and removed whatever happens.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as directory:
        files = {sparse: pathlib.Path(directory) / f"sparse-{sparse}.tflite" for sparse in (False, True)}
        for sparse, file in files.items():
            try:
                convert.convert(model, file, sparse)
            except Exception as error:
                raise ExportError(
                    f"The converter could not express the model '{model.name}' in LiteRT's builtin operators: {error}"
                ) from error
        difference = verify.compare(model, files[True])
        if not difference.finite:
            raise ExportError(f"The model '{model.name}' itself has outputs that are not finite; no file was written.")
        if not difference.passed:
            raise ExportError(
                f"The sparse file of the model '{model.name}' is wrong: its outputs differ from Keras' by "
                f"{difference.largest:.3g}, and at most {difference.tolerance:.3g} is float32 rounding. Nothing was "
                f"written to {str(path)!r}."
            )
        report = ExportReport(
            path=str(path),
            bytes=files[True].stat().st_size,
            dense_bytes=files[False].stat().st_size,
            sparsity=sparsity,
            max_difference=difference.largest,
            tolerance=difference.tolerance,
        )
        os.replace(files[True], path)
    return report


def _layers(model):
    for layer in model.layers:
        yield from _layers(layer) if isinstance(layer, keras.Model) else (layer,)


def _is_low(layer):
    return "float" in layer.compute_dtype and layer.compute_dtype != "float32"
