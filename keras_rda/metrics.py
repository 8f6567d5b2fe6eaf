"""How sparse a model is: σ of eq. (30), as one number and variable by variable."""

import dataclasses
import itertools
import warnings

import keras
import numpy as np

from keras_rda import _keras, compression, output
from keras_rda.kernels import is_kernel
from keras_rda.optimizers.base import PenalizedOptimizer, inner_optimizer


@dataclasses.dataclass(frozen=True)
class VariableSparsity:
    """The zeros of one variable: `size` entries, `zeros` of them exactly zero, `bytes` in memory (dense).

    `kernel` tells whether it is penalised by default, `penalised` whether it is by the optimizer that the model is
    compiled with (None: it is not compiled with one that has a penalty).
    """

    path: str
    shape: tuple[int, ...]
    size: int
    zeros: int
    bytes: int
    kernel: bool
    penalised: bool | None = None

    @property
    def sparsity(self) -> float:
        """σ = zeros / size."""
        return self.zeros / self.size if self.size else 0.0


@dataclasses.dataclass(frozen=True)
class SparsitySummary:
    """The trainable variables of a model with their zeros: `rows` for programs, `print(summary)` for people.

    `multiply_adds` are those of the model for one sample, and those that `compress` would leave of them; None where
    they are not known.
    """

    rows: tuple[VariableSparsity, ...]
    multiply_adds: tuple[int, int] | None = None

    def sparsity(self, kernels_only: bool = False) -> float:
        """σ over all rows (eq. 30), or over the kernels."""
        rows = [row for row in self.rows if row.kernel or not kernels_only]
        size = sum(row.size for row in rows)
        if not size:
            kind = "kernels (trainable weights of rank ≥ 2, no embedding tables)" if kernels_only else "weights"
            raise ValueError(
                f"σ is not defined: the model has no trainable {kind}. Build the model first; frozen layers "
                "(trainable=False) do not count."
            )
        return sum(row.zeros for row in rows) / size

    def __str__(self):
        table = output.table("variable")
        compiled = any(row.penalised is not None for row in self.rows)
        for name in ("shape", "penalised" if compiled else "kernel"):
            table.add_column(name, no_wrap=True)
        for name in ("zeros", "σ", "bytes"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows:
            shape = "×".join(map(str, row.shape)) or "scalar"
            chosen = "yes" if (row.penalised if compiled else row.kernel) else "no"
            table.add_row(
                output.Name(row.path), shape, chosen, f"{row.zeros:,}", f"{row.sparsity:.4f}", f"{row.bytes:,}"
            )
        table.add_section()
        kernels = [row for row in self.rows if row.kernel]
        for name, rows in (("all", self.rows), ("kernels", kernels)):
            if rows or name == "all":
                zeros, total = sum(row.zeros for row in rows), sum(row.bytes for row in rows)
                sigma = self.sparsity(kernels_only=name == "kernels")
                table.add_row(name, "", "", f"{zeros:,}", f"{sigma:.4f}", f"{total:,}")
        lines = []
        if self.multiply_adds is not None and self.multiply_adds[0]:
            before, after = self.multiply_adds
            lines = [f"compress() would leave {after:,} of {before:,} multiply-adds ({after / before:.2f})."]
        return output.text(table, *lines, width=output.WIDTH)


def summary(model: keras.Model) -> SparsitySummary:
    """Count the zeros of every trainable variable, and say which are penalised.

    Args:
        model: A built Keras model.

    Returns:
        A `SparsitySummary`; `print` shows a table, whose last rows are σ over all of them and over the kernels, and
        what `compress` would leave of the multiply-adds, if it can read the model.

    Raises:
        ValueError: the optimizer that the model is compiled with cannot be built for it, such as for an exclusion that
            matches nothing.
    """
    _keras.check_model("summary", model)
    rows, optimizer = summarize(_counted(model)).rows, inner_optimizer(model)
    if isinstance(optimizer, PenalizedOptimizer) and optimizer.penalty is not None:
        pairs = itertools.zip_longest(rows, optimizer.penalties_of(model.trainable_variables))
        rows = tuple(dataclasses.replace(row, penalised=own is not None) for row, own in pairs)
    return SparsitySummary(rows, compression.multiply_adds(model) if rows else None)


def _counted(model):
    """The trainable variables of a model, and after them what `quantize("int8")` made of some: zeros stay zeros there,
    but it does not train any more. Frozen layers count neither before nor after."""
    quantized = [
        layer
        for layer in _keras.flat_layers(model)
        if layer.trainable and getattr(layer, "quantization_mode", None) == "int8"
    ]
    arrays = (variable for layer in quantized for variable in _keras.own_variables(layer))
    return [*model.trainable_variables, *(variable for variable in arrays if variable.dtype == "int8")]


def summarize(variables):
    """Return the zeros of `variables` as a `SparsitySummary`, and warn of frozen ones that are gone."""
    rows, revived = [], {}
    for variable in variables:
        array = keras.ops.convert_to_numpy(variable)
        if hasattr(getattr(variable, "constraint", None), "revived") and (number := variable.constraint.revived(array)):
            revived[variable.path] = number
        zeros = array.size - int(np.count_nonzero(array))
        rows.append(VariableSparsity(variable.path, array.shape, array.size, zeros, array.nbytes, is_kernel(variable)))
    if revived:
        warnings.warn(
            f"Zeros that freeze_zeros() froze have come back: {revived}. A train step that was traced before it "
            "(tf.function, jax.jit) does not see the constraints: make the function anew after freeze_zeros(). (If the "
            "weights were set on purpose, call freeze_zeros() again.)",
            stacklevel=2,
        )
    return SparsitySummary(tuple(rows))


def sparsity(model: keras.Model, kernels_only: bool = False) -> float:
    """σ, the share of exactly zero weights: zeros / all of them (eq. 30).

    Args:
        model: A built Keras model. What `model.quantize("int8")` quantised counts too.
        kernels_only: False counts all trainable weights, as the paper does; True only the ones that the optimizers
            penalise by default (rank ≥ 2, no embedding tables, biases or normalisation weights).

    Returns:
        Float between 0 and 1.

    Raises:
        ValueError: the model has no such weights.
    """
    _keras.check_model("sparsity", model)
    return summarize(_counted(model)).sparsity(kernels_only)
