"""How large the file of a model would be: for those who train it to a size."""

import pathlib
import tempfile

import keras

from keras_rda.litert import candidates, feeds, on_tensorflow, signature


def file_bytes(model, quantize=None):
    """The bytes of the smallest and of the dense LiteRT file that `export` would compare with Keras.

    Args:
        model: One that `exporting.checked` has let pass.
        quantize: As for `export`. No data is needed: no size depends on the ranges of activations.

    Raises:
        ExportError: the model does not convert.
        RuntimeError: on JAX and torch, it could not be loaded on TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        return on_tensorflow.file_bytes(model, quantize=quantize)
    model = signature.flat(model)
    samples = [feeds.random(model, 1)] if quantize == "int8" else None
    with tempfile.TemporaryDirectory() as folder:
        files = candidates.make(model, quantize, samples, pathlib.Path(folder))
    written = [file.candidate.bytes for file in files.values() if file.path is not None]
    return min(written), files["dense"].candidate.bytes
