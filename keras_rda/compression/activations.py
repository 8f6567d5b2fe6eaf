"""What activations do to constant channels, and which of them act on each element alone, or are finite everywhere."""

import warnings

import keras
import numpy as np
from keras import ops

# Keras' own functions that act on each element alone: a constant channel stays one, and none depends on another.
_ELEMENTWISE = {
    getattr(keras.activations, name)
    for name in (
        *("celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh"),
        *("leaky_relu", "linear", "log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_shrink"),
        *("softplus", "softsign", "sparse_plus", "sparse_sigmoid", "squareplus", "swish", "tanh", "tanh_shrink"),
        "threshold",
    )
    if hasattr(keras.activations, name)
}
_ELEMENTWISE_LAYERS = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)


def activation_function(analysis, layer, rank):
    """How a layer's own activation maps the constants of its channels; None if it may mix channels.

    `rank` is that of the layer's outputs, whose last axis is the channels'.
    """
    activation = getattr(layer, "activation", None)
    if activation is None:
        return lambda constant: constant
    if isinstance(activation, keras.layers.PReLU):
        return lambda constant: prelu(activation, constant)
    if is_elementwise(analysis, activation, rank):
        shape = (1,) * (rank - 1) + (-1,)
        return lambda constant: of_known(
            lambda values: ops.reshape(activation(ops.reshape(values, shape)), (-1,)), constant
        )
    return None


def of_known(function, constant):
    """`function` of the known constants, in float32 as the network computes it; the unknown ones stay unknown."""
    known = np.isfinite(constant)
    if not known.any():
        return constant
    with np.errstate(over="ignore"):
        values = ops.convert_to_tensor(np.where(known, constant, 0).astype("float32"))
    result = np.asarray(ops.convert_to_numpy(function(values)), "float64")
    return np.where(known & np.isfinite(result), result, np.nan)


def prelu(layer, constant):
    """How a PReLU maps the constants of the channels on its last axis; unknown where its slopes differ over space."""
    slopes = ops.convert_to_numpy(layer.alpha).astype("float64")
    slopes = np.broadcast_to(slopes, (*slopes.shape[:-1], len(constant))).reshape(-1, len(constant))
    uniform = np.where((slopes == slopes[0]).all(axis=0), slopes[0], np.nan)
    return np.where(constant >= 0, constant, uniform * constant)


def is_finite(activation):
    """Whether an activation is known to be finite wherever its input is: a function of the user's own is not."""
    known = (*_ELEMENTWISE_LAYERS, keras.layers.PReLU)
    return activation is None or type(activation) in known or activation in _ELEMENTWISE


def is_elementwise(analysis, activation, rank):
    """Whether an activation of tensors of this rank acts on each element alone, and on all in the same way.

    Of a function or layer that is not Keras' own it is found out by trying, once an analysis. A layer with weights does
    not count: they may belong to channels.
    """
    if type(activation) in _ELEMENTWISE_LAYERS or activation in _ELEMENTWISE:
        return True
    key = id(activation), rank
    if key not in analysis.elementwise:
        if isinstance(activation, keras.layers.Layer):
            activation = _weightless_copy(activation, rank)
        shape = (2, *[5] * (rank - 2), 7)
        analysis.elementwise[key] = activation is not None and seems_elementwise(activation, shape)
    return analysis.elementwise[key]


def seems_elementwise(function, shape):
    """Whether a function acts on each element of tensors of this shape alone, and on all in the same way, whatever the
    sizes are, as far as numbers show."""
    random = np.random.default_rng(0)
    x = random.choice([0.0, 1e-3, 1.0, 40.0], shape) * random.normal(size=shape)
    order, changed = random.permutation(x.size), random.random(x.shape) > 0.5

    def apply(array):
        # The user's own function may keep a state; and what it says about these inputs is not about the user's.
        with keras.StatelessScope(), warnings.catch_warnings(action="ignore"):
            return ops.convert_to_numpy(function(ops.convert_to_tensor(array.astype("float32"))))

    try:
        y = apply(x)
        others = (
            (apply(x.ravel()[order].reshape(x.shape)), y.ravel()[order].reshape(y.shape)),
            (np.where(changed, 0, apply(np.where(changed, x + 3, x))), np.where(changed, 0, y)),
            *((apply(x.take([-1], axis)), y.take([-1], axis)) for axis in range(x.ndim)),
        )
        # Rounded otherwise where processors take several elements at once.
        return all(a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True) for a, b in others)
    except Exception:  # whatever a function of the user's own raises
        return False


def _weightless_copy(activation, rank):
    """An activation layer of the same kind, which may be tried; None if it has weights, or cannot be made anew."""
    try:
        copy = type(activation).from_config(activation.get_config())
        copy(ops.zeros((2,) * rank))
    except Exception:  # whatever a layer of the user's own raises
        return None
    return None if copy.weights or activation.weights else copy
