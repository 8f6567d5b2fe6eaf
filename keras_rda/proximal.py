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


def group_soft_threshold(u, k, axes):
    """Proximal map of `k·Σ_G ‖w_G‖₂`: shrink the norm of every group of `u` by `k`, and stop at zero.

    Equal to `u_G·max(0, 1 − k / ‖u_G‖₂)`. A group with `‖u_G‖₂ ≤ k` is exactly zero; `k = 0` returns `u`.

    Args:
        u: Floating-point tensor of any shape.
        k: Threshold, non-negative: a scalar, or a tensor that broadcasts against `u` and is constant in each group.
        axes: The axes of `u` within a group; the others number the groups.

    Returns:
        Tensor of the shape and dtype of `u`.

    Reference: Yuan and Lin, J. R. Statist. Soc. B 68 (2006).
    """
    norm = ops.sqrt(ops.sum(ops.square(u), axis=axes, keepdims=True))
    survives = ops.logical_or(ops.greater(norm, k), ops.equal(k, 0))
    shrunk = ops.subtract(1.0, ops.divide(k, ops.where(ops.greater(norm, 0), norm, 1.0)))
    return ops.where(survives, ops.multiply(u, shrunk), ops.subtract(u, u))  # not 0: a NaN stays a NaN
