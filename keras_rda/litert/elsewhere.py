"""How a file does on the machine that was asked for, beside the dense one: whether right, how fast, in which memory."""

import dataclasses

import numpy as np

from keras_rda.litert import decode, header, verification
from keras_rda.litert.machines import MACHINES, process


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured on another machine.

    Attributes:
        machine: Its name, the argument of `export`.
        ratio: Time of the dense file : time of this one, the median of rounds in turns; None where this is the dense
            one, or only one of them runs. Of `"aarch64"`, emulated unless this is an Arm machine, it follows the work
            done; of `"micro"`, the plain kernels' on this processor.
        arena, dense_arena: Bytes of working memory (RAM) of this file and of the dense one, of `"micro"`; else None.
        is_decoded: Whether constants are decoded at each invocation.
        baseline: What the file is measured by: `"dense"`, or `"source"` of `shrink`.
        resolver: Of `"micro"`, the functions of `MicroMutableOpResolver` that add the file's operators.
    """

    machine: str
    ratio: float | None = None
    arena: int | None = None
    dense_arena: int | None = None
    is_decoded: bool = False
    resolver: tuple[str, ...] = ()
    baseline: str = "dense"

    @property
    def lines(self):
        """In words: pairs (what, how much)."""
        ratio = None if self.ratio is None else f"{self.ratio:.2f}"
        if self.machine == "aarch64":
            return [(f"aarch64, {self.baseline} : this", f"{ratio} (emulated: follows the work done)")] if ratio else []
        if self.machine == "wasm":
            return [("in the browser", f"{self._verdict} (measured here, WebAssembly)")] if ratio else []
        lines = [("arena (RAM), bytes", f"{self.arena:,}")]
        if self.dense_arena is not None:
            lines[0] = ("arena (RAM), bytes", f"{self.arena:,} (dense {self.dense_arena:,})")
        how = "decoded at each invocation" if self.is_decoded else "nothing is decoded"
        if ratio:
            lines.append(("TFLite Micro, dense : this", f"{ratio} in time (plain kernels, measured here); {how}"))
        return [*lines, ("resolver", ", ".join(self.resolver))]

    @property
    def _verdict(self):
        if self.ratio >= 1.05:
            return f"{self.ratio:.1f} times faster"
        compared = "as fast as" if self.ratio > 0.95 else f"{1 / self.ratio:.1f} times slower than"
        return f"{compared} {self.baseline}"


def measure(machine, reference, file, dense, tolerances):
    """Run a candidate (`candidates.File`) on a machine, and the dense files beside it.

    In TFLite Micro, decoded constants are the dense ones: there its outputs have to be those of the same network with
    its weights dense, to the last bit.

    Returns:
        A `Check` and `Measured`.
    """
    compared = (file, file.twin, dense) if machine == "micro" else (file, dense)
    paths = list(dict.fromkeys(each.path for each in compared))
    results = verification.check_on(machine, reference, paths, tolerances, MACHINES[machine].REPEATS)
    found = dict(zip(paths, results, strict=True))
    (check, run), (_, other) = found[file.path], found[dense.path]
    if machine != "micro":
        return check, Measured(machine, process.ratio(run, other))
    _, twin = found[file.twin.path]
    if check.passed and twin.outputs and not _are_equal(run.outputs, twin.outputs):
        check = verification.failed(machine, "differs from the same network with its weights dense")
    return check, Measured(
        machine,
        process.ratio(run, other),
        run.arena,
        other.arena,
        decode.is_decoded(file.model),
        tuple(header.resolver_calls(file.model)),
    )


def _are_equal(outputs, others):
    return all(np.array_equal(array, others[name]) for name, array in outputs.items())
