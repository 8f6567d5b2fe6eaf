"""Which weights are kernels, by their names: a variable does not know its layer."""

import re

import keras
import numpy as np

# Words in names of weights of rank ≥ 2 that are no kernels: biases of GRU and attention, normalisation over several
# axes, PReLU's slopes; tables, tokens and positions, as transformers of Keras, KerasHub and others name them.
_NOT_KERNELS = frozenset(
    (
        *("bias", "gamma", "beta", "scale", "alpha", "embedding", "embeddings", "embed", "pos", "position"),
        *("positions", "positional", "token", "tokens", "cls", "table", "latents"),
    )
)
# What is called a kernel and is none.
_NAMESAKES = frozenset(
    (
        *("real_kernel", "imag_kernel"),  # the Fourier transform of keras.layers.STFTSpectrogram
        # The factors of LoRA: their zeros are none of the kernel, which Keras adds their product to.
        *("lora_kernel_a", "lora_kernel_b"),
        *("kernel_scale", "kernel_zero"),  # the scales and zero points of `model.quantize`
    )
)


def variable_path(variable):
    """The path of a `keras.Variable`, or the name of a backend's own variable, which has no path."""
    return getattr(variable, "path", None) or variable.name.split(":")[0]


def longest_part(path, parts):
    """The longest of `parts` that is made of whole names in `path`, or None: "conv2d" is none of "conv2d_1/kernel"."""
    return max((part for part in parts if f"/{part.strip('/')}/" in f"/{path}/"), key=len, default=None)


def is_nameless(path):
    """Whether the variable at `path` may be one of a `keras.layers.TorchModuleWrapper`: on torch, under the name that
    Keras gives to what has none. Nothing tells then what it is, and torch's kernels lie with their outputs first."""
    # What a layer of Keras' makes by `add_weight` without a name has the layer's before that.
    return keras.backend.backend() == "torch" and re.fullmatch(r"variable(_\d+)?", path) is not None


def is_kernel(variable):
    """Whether `variable` is penalised unless excluded: rank ≥ 2, no embedding table, bias or normalisation weight.

    A variable does not know its layer, so this goes by its name: what is called a kernel is one, but for those of
    spectrograms, the factors of LoRA and the scales of quantised kernels; of the rest, what has none of the words in
    its name that tables, tokens, biases and the like have, and is not broadcast over a batch (its first dimension is
    not 1).
    """
    name = variable_path(variable).split("/")[-1]
    if len(variable.shape) < 2 or name in _NAMESAKES:
        return False
    words = name.split("_")
    return "kernel" in words or (_NOT_KERNELS.isdisjoint(words) and "embedding" not in name and variable.shape[0] != 1)


def is_finite(model):
    """Whether no weight of `model` is NaN or infinite."""
    return _not_finite(model) is None


def check_finite(model):
    """Raise a `ValueError` that names the weights if any of `model` are NaN or infinite."""
    if (variable := _not_finite(model)) is not None:
        raise ValueError(
            f"The weights '{variable.path}' are not finite (NaN or infinity): training diverged, or the file is "
            "damaged."
        )


def _not_finite(model):
    """The first variable with weights that are not finite, or None."""
    floats = (variable for variable in model.weights if "float" in variable.dtype)
    return next((v for v in floats if not np.isfinite(keras.ops.convert_to_numpy(v)).all()), None)
