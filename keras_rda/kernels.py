"""What a kernel is, and which of its axes number the input channels and the output filters."""

import keras
import numpy as np

from keras_rda import _keras

# Words in names of weights of rank ≥ 2 that are no kernels: biases of GRU and attention, normalisation over several
# axes, PReLU's slopes; tables, tokens and positions, as transformers of Keras, KerasHub and others name them.
_NOT_KERNELS = frozenset(
    (
        *(
            "bias",
            "gamma",
            "beta",
            "scale",
            "alpha",
            "embedding",
            "embeddings",
            "embed",
            "pos",
            "position",
            "positions",
        ),
        *("positional", "token", "tokens", "cls", "table", "latents"),
    )
)
# Of keras.layers.STFTSpectrogram, whose Fourier transform they are.
_TRANSFORMS = frozenset({"real_kernel", "imag_kernel"})


def variable_path(variable):
    """The path of a `keras.Variable`, or the name of a backend's own variable, which has no path."""
    return getattr(variable, "path", None) or variable.name.split(":")[0]


def longest_part(path, parts):
    """The longest of `parts` that is made of whole names in `path`, or None: "conv2d" is none of "conv2d_1/kernel"."""
    return max((part for part in parts if f"/{part.strip('/')}/" in f"/{path}/"), key=len, default=None)


def is_kernel(variable):
    """Whether `variable` is penalised unless excluded: rank ≥ 2, no embedding table, bias or normalisation weight.

    A variable does not know its layer, so this goes by its name: what is called a kernel is one, but for those of
    spectrograms; of the rest, what has none of the words in its name that tables, tokens, biases and the like have, and
    is not broadcast over a batch (its first dimension is not 1).
    """
    name = variable_path(variable).split("/")[-1]
    if len(variable.shape) < 2 or name in _TRANSFORMS:
        return False
    words = name.split("_")
    return "kernel" in words or (_NOT_KERNELS.isdisjoint(words) and "embedding" not in name and variable.shape[0] != 1)


def check_finite(model):
    """Raise a `ValueError` that names the weights if any of `model` are NaN or infinite."""
    for variable in model.weights:
        if "float" in variable.dtype and not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
            raise ValueError(
                f"The weights '{variable.path}' are not finite (NaN or infinity): training diverged, or the file is "
                "damaged."
            )


def guess_axes(path, shape):
    """The axes of a kernel's input channels and of its output filters, by its name and rank.

    Args:
        path: Path of the variable, such as `"conv2d_1/kernel"`.
        shape: Its shape: Dense (inputs, outputs), convolution (…, inputs, outputs).

    Returns:
        `{"inputs": axes, "outputs": axes}`, tuples of non-negative ints; or None where name and rank do not tell: a
        kernel of rank 3 may belong to Conv1D, EinsumDense or attention.
    """
    rank = len(shape)
    if rank == 3 and "conv1d" not in path and "pointwise_kernel" not in path and "depthwise_kernel" not in path:
        return None
    # A convolution with a single filter has no filter to spare, so (…, channels, 1) is read as depthwise.
    if rank > 2 and ("depthwise" in path or shape[-1] == 1):
        return {"inputs": (rank - 2,), "outputs": (rank - 2, rank - 1)}
    if "transpose" in path:
        return {"inputs": (rank - 1,), "outputs": (rank - 2,)}
    return {"inputs": (rank - 2,), "outputs": (rank - 1,)}


def axes_of(model):
    """The axes of every kernel in the layers of a built model, by path: `{path: {"inputs": axes, "outputs": axes}}`.

    `axes` is None where there are no such channels to tell apart: the inputs of a convolution with several groups.
    """
    found = {}
    for layer in _keras.flat_layers(model):
        for variable in _keras.own_trainable_variables(layer):
            if is_kernel(variable):
                axes = _axes_in(layer, variable) or guess_axes(variable.path, variable.shape)
                axes = axes or {"inputs": None, "outputs": None}
                if found.setdefault(variable.path, axes) != axes:
                    raise ValueError(
                        f"Two kernels of the model {model.name!r} have the path {variable.path!r} and are laid out "
                        "differently: give their layers, or the models around them, different names."
                    )
    return found


def _axes_in(layer, variable):
    layers, rank, name = keras.layers, len(variable.shape), variable.name
    if isinstance(layer, layers.EinsumDense):
        return _einsum_axes(layer.equation)
    if isinstance(layer, (layers.DepthwiseConv1D, layers.DepthwiseConv2D)) or name == "depthwise_kernel":
        return {"inputs": (rank - 2,), "outputs": (rank - 2, rank - 1)}
    if isinstance(layer, layers.Dense) or name == "pointwise_kernel":
        return {"inputs": (rank - 2,), "outputs": (rank - 1,)}
    if isinstance(layer, (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)):
        return {"inputs": (rank - 1,), "outputs": (rank - 2,)}
    if isinstance(layer, (layers.Conv1D, layers.Conv2D, layers.Conv3D)):
        return {"inputs": (rank - 2,) if layer.groups == 1 else None, "outputs": (rank - 1,)}
    return None


def _einsum_axes(equation):
    operands, output = equation.replace(" ", "").split("->")
    kernel = operands.split(",")[1].replace(".", "")
    contracted = tuple(axis for axis, letter in enumerate(kernel) if letter not in output)
    kept = tuple(axis for axis, letter in enumerate(kernel) if letter in output)
    return {"inputs": contracted or None, "outputs": kept or None}
