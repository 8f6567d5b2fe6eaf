"""What tests build and compare: the optimizers under test, tiny models, their values, processes that are killed."""

import contextlib
import dataclasses
import inspect
import os
import pathlib
import signal
import time
import warnings
from collections.abc import Callable

import keras
import numpy as np
import pytest

import keras_rda
from keras_rda.litert import aarch64

BACKEND = keras.backend.backend()
PREPARED = pathlib.Path(
    os.environ.get("KERAS_RDA_TFDS", pathlib.Path(__file__).parents[2] / "shared" / "data" / "tfds")
)
# Of a backend whose compiler takes half a minute for the smallest network, what compiles runs with `-m every` alone.
COMPILES = BACKEND != "torch"
# For modules that read and rewrite LiteRT files, where nothing is computed with Keras: two backends show that.
without_keras = pytest.mark.skipif(BACKEND == "torch", reason="TensorFlow and JAX show that no backend matters here")
needs_emulation = pytest.mark.skipif(
    not aarch64.is_ready(), reason="AArch64 emulation is not set up: python3 -m keras_rda.litert.aarch64"
)


def compiles(test):
    """Mark a test, or a case of one, that is about compiled training."""
    return test if COMPILES else pytest.mark.every(test)


@dataclasses.dataclass(frozen=True)
class Case:
    """An optimizer under test; a call makes it.

    Args:
        make: Its class.
        arguments: With which a tiny problem ends with zeros (where the method can have zeros).
        slots: How many slots a kernel has, and a bias.
        steered: The arguments with which `TargetSparsity` steers a small network, of a function that makes a cosine
            of its first rate; None where the network cannot train.
        group_strength: λ of `GroupL1` with which a small network loses channels; None where it loses none.
        small_penalty: λ in the contract's table: so small that weights at zero leave it in a few steps, clipped
            gradients too, and that rounding to bfloat16 does not decide which weights of an average are zero.
    """

    make: type
    arguments: dict
    slots: tuple[int, int]
    steered: Callable | None = None
    group_strength: float | None = 0.01
    small_penalty: float | None = None

    def __call__(self, **kwargs):
        return self.make(**{**self.arguments, **kwargs})

    @property
    def has_penalty(self):
        return "penalty" in inspect.signature(self.make).parameters


# Every optimizer, and its variants.
OPTIMIZERS = {
    "SDA": Case(keras_rda.SDA, {"learning_rate": 0.1}, (2, 2)),
    # It starts at zero, where a network of several layers stays.
    "RDA": Case(keras_rda.RDA, {"learning_rate": 0.1, "penalty": 0.01}, (1, 2)),
    "MRDA": Case(
        keras_rda.MRDA, {"learning_rate": 0.1, "penalty": 0.01}, (1, 2), lambda cosine: {"learning_rate": cosine(1.0)}
    ),
    "MRDA-initial": Case(
        keras_rda.MRDA,
        {"learning_rate": 0.1, "penalty": 0.01, "center": "initial"},
        (2, 2),
        lambda cosine: {"learning_rate": cosine(1.0)},
        group_strength=0.3,
    ),
    "MRDA-weights": Case(
        keras_rda.MRDA,
        {"learning_rate": 0.1, "penalty": 0.01, "start": "weights"},
        (1, 2),
        lambda cosine: {"learning_rate": cosine(1.0)},
        group_strength=0.03,
    ),
    "ProxSGD": Case(
        keras_rda.ProxSGD,
        {"learning_rate": 0.1, "penalty": 0.1},
        (0, 0),
        lambda cosine: {"learning_rate": 1.0},
        group_strength=0.5,
        small_penalty=1e-3,
    ),
    "ProxSGD-momentum": Case(
        keras_rda.ProxSGD,
        {"learning_rate": 0.02, "penalty": 0.1, "momentum": 0.9, "exponent": 0.0},
        (1, 1),
        lambda cosine: {"learning_rate": cosine(0.05)},
        group_strength=0.1,
        small_penalty=1e-3,
    ),
    "SqrtProxSGD": Case(
        keras_rda.SqrtProxSGD,
        {"learning_rate": 0.1, "penalty": 1e-4},
        (0, 0),
        lambda cosine: {"learning_rate": 1.0, "penalty": 1e-9},
        group_strength=None,
    ),
    "RMDA": Case(
        keras_rda.RMDA,
        {"learning_rate": 0.1, "penalty": 0.01, "averaging": 0.9},
        (2, 2),
        lambda cosine: {"learning_rate": 0.1, "averaging": 0.1},
        group_strength=0.05 if BACKEND == "torch" else 0.03,  # other initial weights
        small_penalty=1e-3,
    ),
    "XRDA": Case(
        keras_rda.XRDA,
        {"learning_rate": 0.5, "penalty": 1e-3},
        (2, 1),
        lambda cosine: {"learning_rate": cosine(1.0)},
        group_strength=4e-3,
        small_penalty=1e-5,
    ),
    "XRDA-averaging": Case(
        keras_rda.XRDA,
        {"learning_rate": 0.5, "penalty": 1e-3, "averaging": None},
        (4, 2),
        lambda cosine: {"learning_rate": cosine(1.0), "averaging": None},
        group_strength=4e-3,
        small_penalty=1e-5,
    ),
}

KINDS = ("MRDA", "XRDA-averaging")  # a sum; all kinds of slots


def small_network(kernel_initializer="glorot_uniform"):
    """A convolution, normalisation and a dense layer on 8×8 images: kernels, bias, scale, offset; quick to trace."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(8, 3, strides=2, use_bias=False, kernel_initializer=kernel_initializer),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(10, kernel_initializer=kernel_initializer),
        ]
    )


def compiled(model, optimizer, **kwargs):
    model.compile(
        optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **kwargs,
    )
    return model


def fit(model, digits, callbacks, **kwargs):
    return model.fit(
        digits[0][:64], digits[1][:64], batch_size=32, **{"verbose": 0, "epochs": 2, **kwargs}, callbacks=callbacks
    )


def variables(*arrays, dtype="float32"):
    """Keras variables named like a layer's: `kernel` for rank ≥ 2, else `bias`."""
    return [
        keras.Variable(np.asarray(array), dtype=dtype, name="kernel" if np.ndim(array) > 1 else "bias")
        for array in arrays
    ]


def values(items):
    """The values of variables as NumPy arrays: copies, for an array that shares a variable's memory (on torch's CPU
    `np.asarray` makes one) would change with it, and “before” equal “after” whatever happened."""
    return [np.array(keras.ops.convert_to_numpy(item)) for item in items]


def state(model):
    """All bits of a model and its optimizer."""
    return values(model.variables) + values(model.optimizer.variables)


def compiled_steps(optimizer, variable, gradients):
    """Yield the variable after each update, compiled where the backend `COMPILES`."""
    for (value,) in compiled_updates(optimizer, [variable], ([gradient] for gradient in gradients)):
        yield value


def compiled_updates(optimizer, variables, gradients):
    """Yield the list of the variables after each update, compiled where the backend `COMPILES`; `gradients` are
    lists."""
    optimizer.build(variables)
    if not COMPILES:
        for gradient in gradients:
            optimizer.apply(list(map(keras.ops.convert_to_tensor, gradient)), variables)
            yield values(variables)
    elif BACKEND == "jax":
        import jax

        apply = jax.jit(optimizer.stateless_apply)
        state, trained = [v.value for v in optimizer.variables], [v.value for v in variables]
        for gradient in gradients:
            trained, state = apply(state, gradient, trained)
            yield list(map(np.asarray, trained))
        for own, value in zip([*variables, *optimizer.variables], [*trained, *state], strict=True):
            own.assign(value)
    else:
        import tensorflow as tf

        @tf.function(jit_compile=True)
        def apply(gradient):
            optimizer.apply(gradient, variables)
            return [variable.value.read_value() for variable in variables]

        for gradient in gradients:
            yield [value.numpy() for value in apply(list(map(tf.constant, gradient)))]


def in_child(function, *arguments, marker=None, kill_after=None):
    """Run a function in a forked process, killed so many seconds after `marker` is there; return its exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of fork(), but has computed nothing in this process
        child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            function(*arguments)
            status = 0
        os._exit(status)
    while kill_after is not None:
        if marker is None or marker.exists():
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
            break
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def sparsify(model, share=0.9, seed=0, alive=True):
    """Put zeros into so many of the kernels' entries; return the model."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        for variable in layer.trainable_variables:
            if len(variable.shape) > 1:
                keep = random.random(variable.shape) > share
                outputs = np.arange(variable.shape[-1])
                rows = keep.reshape(-1, len(outputs))
                if alive:  # no dead filter and no channel that nobody reads: those would be removed
                    rows[outputs % len(rows), outputs] = True
                    rows[np.arange(len(rows)), np.arange(len(rows)) % len(outputs)] = True
                variable.assign(keras.ops.convert_to_numpy(variable) * keep)
    return model


def wide_network():
    """Convolutions, a folded normalisation and a dense layer: wide enough that sparse encoding pays."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(32, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(64, 3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )
