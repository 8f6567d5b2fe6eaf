"""What an export did."""

import dataclasses

from rich.console import Console
from rich.table import Table


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """The file that `export` put in place.

    Attributes:
        path: Where it is.
        bytes: Its size.
        dense_bytes: The size of the same model without sparse encoding.
        sparsity: σ over the model's kernels, trainable or not; 0 if it has none.
        max_difference: Largest absolute difference from Keras' outputs, over all outputs and inputs tried.
        tolerance: The largest difference that would have been accepted.
    """

    path: str
    bytes: int
    dense_bytes: int
    sparsity: float
    max_difference: float
    tolerance: float

    def __str__(self):
        table = Table("LiteRT file", self.path)
        table.add_row("bytes, sparse", f"{self.bytes:,}")
        table.add_row("bytes, dense", f"{self.dense_bytes:,}")
        table.add_row("sparse / dense", f"{self.bytes / self.dense_bytes:.3f}")
        table.add_row("σ of the kernels", f"{self.sparsity:.4f}")
        table.add_row("largest difference from Keras", f"{self.max_difference:.2g} (accepted: {self.tolerance:.2g})")
        console = Console(width=120)
        with console.capture() as capture:
            console.print(table)
        return capture.get()
