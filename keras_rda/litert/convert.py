"""Keras model → dense LiteRT file, through TensorFlow's converter."""

import contextlib
import io
import logging
import pathlib
import tempfile
import warnings

import keras

QUANTIZATIONS = (None, "float16", "dynamic", "int8")


def convert(model, quantize=None, samples=None, batch_size=None):
    """Convert `model` with dense weights.

    Only LiteRT's builtin operators: the Flex operators that Keras allows by default do not run in `ai_edge_litert`.
    TensorFlow's own sparse encoding is not used: it writes files that are larger, wrong or refused (see `encode`).

    Args:
        model: A Functional or Sequential model.
        quantize: One of `QUANTIZATIONS`.
        samples: For `"int8"`, a list of dicts of input name → array (1, …), by which the ranges of activations are
            found.
        batch_size: The only one that the file takes, which LiteRT.js and microcontrollers need; None: any.

    Returns:
        The file's content, `bytes`.
    """
    import tensorflow as tf

    target = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
    if quantize == "float16":
        target["supported_types"] = [tf.float16]
    options = {"target_spec": target, "optimizations": [tf.lite.Optimize.DEFAULT] if quantize else []}
    if quantize == "int8":
        # A file's only input is passed by position: a model that was cloned or loaded may have renamed it.
        single = len(model.inputs) == 1
        options["representative_dataset"] = lambda: (list(x.values()) if single else x for x in samples)
    if batch_size is not None:
        structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
        options["input_signature"] = [
            keras.tree.map_structure(
                lambda tensor: keras.InputSpec(
                    shape=(batch_size, *tensor.shape[1:]), dtype=tensor.dtype, name=tensor.name
                ),
                structure,
            )
        ]
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "model.tflite"
        # Keras 3.13 says where its intermediate files are, whatever `verbose`.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _warnings_only(tf.get_logger()):
            # Of every calibrated file whose inputs stay float32, as they do here; and of TensorFlow's own calibrator.
            warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected", UserWarning)
            warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated", UserWarning)
            model.export(str(path), format="litert", verbose=False, **options)
        return path.read_bytes()


@contextlib.contextmanager
def _warnings_only(logger):
    """Let a logger pass nothing below warnings: in notebooks TensorFlow's says where its intermediate files are."""
    before = logger.level
    logger.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(before)
