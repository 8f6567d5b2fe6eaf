"""What each layer loses by zeros: for those who choose targets layer by layer."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_rda import _keras, output, plotting
from keras_rda.checks import is_number
from keras_rda.kernels import check_finite, is_kernel


@dataclasses.dataclass(frozen=True)
class KernelSensitivity:
    """One kernel: the loss of the model when the kernel alone has each of the sparsities.

    Attributes:
        path: Of the variable.
        losses: One for each of `Sensitivity.sparsities`.
    """

    path: str
    losses: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` found; `print` shows a table, `plot` draws it.

    Attributes:
        sparsities: The σ that were tried.
        loss: The model's as it is.
        rows: A `KernelSensitivity` for every kernel, in the model's order.
    """

    sparsities: tuple[float, ...]
    loss: float
    rows: tuple[KernelSensitivity, ...]

    def __str__(self):
        table = output.table("kernel")
        for sparsity in self.sparsities:
            table.add_column(f"σ {sparsity:g}", justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(output.Name(row.path), *(f"{loss:.4g}" for loss in row.losses))
        return output.text(f"Loss {self.loss:.4g}; with zeros in one kernel:", table, width=output.WIDTH)

    def plot(self, axes: Any = None) -> Any:
        """Draw the losses over σ, a line a kernel, with matplotlib.

        Args:
            axes: `matplotlib.axes.Axes` to draw into; None: new ones.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        if axes is None:
            (axes,) = plotting.subplots("Sensitivity.plot")
        for row in self.rows:
            axes.plot(self.sparsities, row.losses, marker="o", label=row.path)
        axes.axhline(self.loss, color="0.5", linestyle="--", label="as it is")
        axes.set(xlabel="σ of the kernel", ylabel="loss")
        axes.legend(fontsize="small")
        return axes


def sensitivity(
    model: keras.Model, x: Any, y: Any = None, sparsities: Sequence[float] = (0.5, 0.8, 0.9, 0.95, 0.98)
) -> Sensitivity:
    """Evaluate the model with the smallest weights of one kernel at zero, for each kernel and several σ.

    Kernels that bear few zeros want a target of their own, `TargetSparsity({"conv2d_3": 0.98, "dense": 0.5})`, or none:
    `optimizer.exclude_from_penalty`. What is found is of zeros without training that follows: take it for an order.

    Args:
        model: A built and compiled Keras model. Its weights are put back.
        x: Samples as for `model.evaluate`; some hundred tell.
        y: Their targets, where `x` has none.
        sparsities: σ, numbers above 0 and at most 1.

    Returns:
        A `Sensitivity`.

    Raises:
        ValueError: the model is not compiled, has no kernels, or weights that are not finite; or a sparsity is out of
            its range.
    """
    _keras.check_model("sensitivity", model)
    if not sparsities or not all(is_number(sparsity) and 0 < sparsity <= 1 for sparsity in sparsities):
        raise ValueError(f"sensitivity: sparsities must be numbers above 0 and at most 1; received {sparsities!r}.")
    if not model.compiled:
        raise ValueError("sensitivity evaluates the loss that a model is compiled with: call model.compile() first.")
    kernels = [variable for variable in model.trainable_variables if is_kernel(variable)]
    if not kernels:
        raise ValueError(f"sensitivity: the model {model.name!r} has no trainable kernels. Build it first.")
    check_finite(model)

    def loss():
        return float(model.evaluate(x, y, verbose=0, return_dict=True)["loss"])

    rows, whole = [], loss()
    for variable in kernels:
        before, losses = keras.ops.convert_to_numpy(variable).copy(), []
        order = np.argsort(np.abs(before), axis=None, kind="stable")
        try:
            for sparsity in sparsities:
                weights = before.copy()
                weights.ravel()[order[: round(sparsity * before.size)]] = 0
                variable.assign(weights)
                losses.append(loss())
        finally:
            variable.assign(before)
        rows.append(KernelSensitivity(variable.path, tuple(losses)))
    return Sensitivity(tuple(sparsities), whole, tuple(rows))
