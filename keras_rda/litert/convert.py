"""Keras model → LiteRT file, through TensorFlow's converter."""


def convert(model, path, sparse):
    """Write `model` to `path` in float32, with sparse encoding of its zeros or without.

    Only LiteRT's builtin operators: the Flex operators that Keras allows by default do not run in `ai_edge_litert`.
    """
    import tensorflow as tf

    model.export(
        str(path),
        format="litert",
        verbose=False,
        optimizations=[tf.lite.Optimize.EXPERIMENTAL_SPARSITY] if sparse else [],
        target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]},
    )
