"""Proximal maps as pure functions on `keras.ops`.

`prox_{k·φ}(u) = argmin_w k·φ(w) + ½‖w − u‖²`. They run on every Keras backend, eagerly and compiled.
"""

from keras import ops


def soft_threshold(u, k):
    """Proximal map of `k·‖w‖₁`: shrink every entry of `u` towards zero by `k`, and stop at zero.

    Equal to `sign(u)·max(|u| − k, 0)`, written so that an entry with `|u| ≤ k` is exactly zero, `k = 0` returns
    `u` bit for bit, and a NaN stays a NaN.

    Args:
        u: Floating-point tensor of any shape.
        k: Threshold, non-negative: a scalar, or a tensor that broadcasts against `u`.

    Returns:
        Tensor of the shape and dtype of `u`.

    Reference: equations (20), (22) and (24) of the paper.
    """
    return ops.subtract(u, ops.maximum(ops.negative(k), ops.minimum(u, k)))
