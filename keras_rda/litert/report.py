"""What an export did: for people a table or a page, for programs a dict."""

import dataclasses
import functools
import pathlib
from typing import Any

from rich.table import Table

from keras_rda import output
from keras_rda.litert.elsewhere import Measured
from keras_rda.litert.latency import Latency
from keras_rda.litert.layer_names import label
from keras_rda.litert.machines import here
from keras_rda.litert.verification import Check, worst
from keras_rda.litert.weights import TensorEncoding
from keras_rda.litert.xnnpack import SparseKernels
from keras_rda.types import Path

# What the parts of candidates' names mean.
_WORDS = {"compressed": "dead channels removed", "sparse": "zeros stored sparsely", "dense": "zeros stored in full"}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to write the file.

    Attributes:
        name: Such as `"sparse"`, `"dense"` or `"compressed, sparse"` (channels removed first).
        bytes: Its size; 0 if it could not be made.
        checks: How it did in each runtime; empty if a smaller one had passed before.
        notes: What was changed besides.
    """

    name: str
    bytes: int
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it was right in each of them."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def words(self) -> str:
        """What was done, such as `"dead channels removed, zeros stored sparsely"`."""
        return ", ".join(_WORDS.get(part, part) for part in self.name.split(", "))

    @property
    def result(self) -> str:
        """In words: what failed, that it passed, or that it was not tried."""
        failed = [str(check) for check in self.checks if not check.passed]
        return "; ".join(failed) or ("passed" if self.checks else "not tried: a smaller one passed")


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """The file that `export` or `shrink` put in place.

    Attributes:
        path: Where it is.
        chosen: The `Candidate` that it is.
        candidates: All of them, the smallest first.
        quantize: The quantisation that was asked for; of `shrink`: that the source has.
        bytes: The file's size.
        gzip_bytes: Its size compressed by gzip.
        dense_bytes: The size of the same model, in the same quantisation, all weights dense; of `shrink`: the source's.
        dense_gzip_bytes: That size compressed by gzip.
        sparsity: σ over the model's kernels, trainable or not; 0 if it has none. Of `shrink`: over the file's weights.
        tensors: How each weight tensor is stored.
        latency: Of the dense file (of `shrink`: the source), the sparse one and, where channels were removed, the
            compressed one, on this machine, in turns; empty for a microcontroller's.
        sparse_kernels: Whether the zeros run faster where XNNPACK has sparse kernels, and why not.
        not_faster_here: Why they do not run faster on this machine; `""` if they may.
        measured: What was `Measured` on the machine that was asked for; None without one.
        lost: Outputs of a quantised file that differ from Keras by as much as they vary.
        source: Of `shrink`: the file that it was made from, and compared with; None of `export`.
    """

    path: str
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    quantize: str | None
    bytes: int
    gzip_bytes: int
    dense_bytes: int
    dense_gzip_bytes: int
    sparsity: float
    tensors: tuple[TensorEncoding, ...]
    latency: tuple[Latency, ...]
    sparse_kernels: SparseKernels
    not_faster_here: str
    measured: Measured | None = None
    lost: tuple[str, ...] = ()
    source: str | None = None

    @property
    def baseline(self) -> str:
        """What the file is measured by: `"dense"` or `"source"`."""
        return "dense" if self.source is None else "source"

    @property
    def floor_bytes(self) -> int:
        """Information-theoretic floor of its weights: values and entropy of their positions."""
        return sum(tensor.floor_bytes for tensor in self.tensors)

    @property
    def weight_bytes(self) -> int:
        """What the weight tensors take in the file."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def is_for_microcontrollers(self) -> bool:
        """Whether it is for TFLite Micro."""
        return self.measured is not None and self.measured.machine == "micro"

    @property
    def runs_here(self) -> bool:
        """Whether it was run on this machine: what TFLite Micro decodes does not run elsewhere."""
        return any(check.runtime in here.RUNTIMES for check in self.chosen.checks)

    @property
    def headline(self) -> str:
        """In a few words: whether it is right, and how much smaller than with dense weights, or than the source."""
        right = "Not verified" if not self.chosen.passed else "Right but for rounding" if self.lost else "Right"
        times = self.dense_bytes / self.bytes
        if self.source is not None:
            return f"{right}, {1 - 1 / times:.1%} smaller" if times > 1 else f"{right}, mended"
        return f"{right}, {times:.1f} times smaller" if times >= 1.05 else f"{right}, as large as dense"

    @functools.cached_property
    def _worst(self):
        return worst(self.chosen.checks)

    @property
    def max_difference(self) -> float:
        """Largest absolute difference from Keras or the source, of the output closest to what is accepted."""
        return self._worst.largest

    @property
    def tolerance(self) -> float:
        """The largest difference that would have been accepted there."""
        return self._worst.tolerance

    @property
    def multiply_adds(self) -> int:
        """Multiplications of a weight for one sample."""
        return sum(tensor.multiply_adds for tensor in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts, lists, strings and numbers."""
        result = dataclasses.asdict(self)
        for name in ("floor_bytes", "weight_bytes", "max_difference", "tolerance", "multiply_adds"):
            result[name] = getattr(self, name)
        for candidate, plain in zip(self.candidates, result["candidates"], strict=True):
            plain["result"] = candidate.result
        result["chosen"] = self.chosen.name
        return result

    def to_html(self, path: Path) -> None:
        """Write the report as one page that needs no other file: a picture of the bytes, bars layer by layer.

        Raises:
            FileNotFoundError: the directory of `path` does not exist.
        """
        from keras_rda.litert import page  # and Jinja, which nothing else needs

        with output.replacing(path) as unfinished:
            unfinished.write_text(page.render(self), encoding="utf-8")

    def __str__(self):
        return output.text(self._summary(), tensor_table(self.tensors), width=output.WIDTH)

    def _summary(self):
        table = Table("LiteRT file", pathlib.Path(self.path).name)
        table.add_row("result", self.headline)
        if self.source is not None:
            table.add_row("made from", self.source)
        table.add_row("written", f"{self.chosen.words}, {self.quantize or 'float32'}")
        table.add_row(
            "bytes (flash)" if self.is_for_microcontrollers else "bytes",
            f"{self.bytes:,} ({self.baseline} {self.dense_bytes:,}; ratio {self.bytes / self.dense_bytes:.3f})",
        )
        table.add_row("bytes, gzip", f"{self.gzip_bytes:,} ({self.baseline} {self.dense_gzip_bytes:,})")
        if self.floor_bytes:
            over = self.weight_bytes / self.floor_bytes
            table.add_row(
                "weights", f"{self.weight_bytes:,} bytes; {over:.3f} × the least (information-theoretic floor)"
            )
            table.add_row(
                "everything else", f"{self.bytes - self.weight_bytes:,} bytes: the network's graph, biases, scales"
            )
        table.add_row("σ of the kernels" if self.source is None else "σ of the weights", f"{self.sparsity:.4f}")
        for check in self.chosen.checks:
            table.add_row("verified", str(check))
        if self.runs_here:
            table.add_row("default delegate", "XNNPACK, as applications run the file")
        for line in self.lost:
            table.add_row("lost in rounding", f"{line} differ from Keras by as much as they vary")
        for candidate in self.candidates:
            if candidate.checks and candidate != self.chosen:
                table.add_row("failed", f"{candidate.name}, {candidate.bytes:,} bytes: {candidate.result}")
        larger = [f"{candidate.name} ({candidate.bytes:,})" for candidate in self.candidates if not candidate.checks]
        if larger:
            table.add_row("not tried: larger", ", ".join(larger))
        for note in self.chosen.notes:
            table.add_row("note", note)
        for latency in self.latency:
            spread = f"{latency.lower * 1e3:.3g} to {latency.upper * 1e3:.3g}"
            table.add_row(f"latency, {latency.name}", f"{latency.median * 1e3:.3g} ms (quartiles {spread})")
        for name, text in self.speed():
            table.add_row(name, text)
        return table

    def speed(self, everything: bool = False) -> list[tuple[str, str]]:
        """What runs faster where: pairs (where, what), in words; with `everything`, all reasons."""
        lines = self.measured.lines if self.measured else []
        if self.is_for_microcontrollers:
            return lines
        this = self.not_faster_here or "XNNPACK's sparse kernels exist here"
        reasons = self.sparse_kernels.reasons
        if self.sparse_kernels.eligible:
            elsewhere = f"yes, {len(self.sparse_kernels.operators)} convolutions run sparse"
        elif everything or len(reasons) == 1:
            elsewhere = f"no: {'; '.join(reason.rstrip('.') for reason in reasons)}"
        else:
            elsewhere = f"no: {reasons[0]} (and {len(reasons) - 1} more: report.sparse_kernels.reasons)"
        if self.sparse_kernels.browser:
            lines = [*lines, ("zeros slower, browser", self.sparse_kernels.browser)]
        return [("zeros faster, this machine", this), ("zeros faster, Arm", elsewhere), *lines]


def tensor_table(tensors, counted="operators included"):
    """A `rich` table of how each tensor is stored; `counted` says of the bytes whether they count added operators."""
    # Names of the file's own number layers otherwise than Keras does.
    table = output.table("weight" if any(tensor.keras_path for tensor in tensors) else "tensor", "shape", "type")
    for name in ("σ", "bytes", "dense"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("stored")
    for tensor in tensors:
        if not tensor.dense_bytes:
            continue  # it shares the bytes of another
        numbers = (f"{value:,}" for value in (tensor.bytes, tensor.dense_bytes))
        stored = tensor.encoding.removeprefix("sparse, ") + (f": {tensor.reason}" if tensor.reason else "")
        shape = "×".join(map(str, tensor.shape))
        table.add_row(output.Name(label(tensor)), shape, tensor.dtype, f"{tensor.zeros:.4f}", *numbers, stored)
    table.add_section()
    totals = (f"{sum(getattr(t, name) for t in tensors):,}" for name in ("bytes", "dense_bytes"))
    table.add_row("all", "", "", "", *totals, counted)
    return table
