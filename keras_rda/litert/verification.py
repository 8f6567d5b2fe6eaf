"""Compare the outputs of LiteRT files with Keras'."""

import dataclasses
import math

import keras
import numpy as np

from keras_rda import _keras
from keras_rda.litert import decode, feeds, metadata, signature
from keras_rda.litert.calls import entries
from keras_rda.litert.machines import MACHINES, check_machine, here
from keras_rda.litert.reference import Reference
from keras_rda.output import one_line
from keras_rda.types import Data, Machine, Path

# Both sides compute in float32 and sum in different orders: over the depth of a network that moves outputs by some 1e-6
# of their size. A wrong file is off by far more (the defects seen start at 1e-2).
RELATIVE = 1e-4
# What quantised files may differ by, relative to the largest magnitude of an output: more is no rounding any more.
_QUANTIZED = {"float16": 0.1, "dynamic": 0.25, "int8": 0.25}
# A file with its zeros encoded may not be much worse than the dense one.
_ROUNDING_FACTOR = 1.5


@dataclasses.dataclass(frozen=True)
class Check:
    """How a file did in one runtime.

    Attributes:
        runtime: `"default delegate"`, `"no delegates"` (both on this machine), or the machine's name.
        largest: Largest absolute difference from Keras' outputs, of the output that comes closest to its tolerance, or
            goes furthest over it; None if the file did not run. Of an output of integers: the share that differs.
        tolerance: The largest that is accepted for that output.
        error: Why the file did not run; `""` if it did.
        integers: Whether that output is one of integers.
        reference: What it was compared with: Keras, or the file that it was made from (`shrink`).
    """

    runtime: str
    largest: float | None
    tolerance: float | None
    error: str = ""
    integers: bool = False
    reference: str = "Keras"

    @property
    def passed(self) -> bool:
        """Whether it ran, and `largest` is within the tolerance."""
        if self.error or self.largest is None or self.tolerance is None:
            return False
        return bool(self.largest <= self.tolerance)  # written so that a NaN fails

    def __str__(self):
        if self.error:
            return f"{self.runtime}: {self.error}"
        if self.integers:
            return (
                f"{self.runtime}: differs from {self.reference} in {self.largest:.1%} (accepted: {self.tolerance:.1%})"
            )
        return f"{self.runtime}: differs from {self.reference} by {self.largest:.2g} (accepted: {self.tolerance:.2g})"


def verify(model: keras.Model, path: Path, data: Data | None = None, machine: Machine | None = None) -> list[Check]:
    """Compare a LiteRT file with the Keras model it came from.

    One of float32 is accepted up to float32 rounding; one of float16 up to 10 % of each output's largest magnitude, one
    of int8 up to 25 % and a step of the output, and if the outputs vary as Keras' do. A model that keeps a state (LSTM
    with `stateful=True`) is called several times, from the state that it has; a file begins at the one that the model
    had when it was exported.

    Args:
        model: The Keras model.
        path: The file.
        data: Typical inputs, as `representative_data` of `export`, of which the first are used. By default random ones,
            as the first layers know them (`Normalization`, `Rescaling`, `Embedding`), else between −1 and 1: give data
            for models that expect others.
        machine: Run the file there too: `"aarch64"`, `"wasm"` or `"micro"` (see `export`). A file whose constants
            TFLite Micro decodes runs in `"micro"` only.

    Returns:
        List of `Check`: with the default delegate, without delegates, on the machine.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is no LiteRT file or one for `"micro"` only, or the
            inputs are not usable.
        RuntimeError: the machine is not set up.
    """
    _keras.check_model("verify", model)
    if machine is not None:
        check_machine(machine)
    feeds.check(model)
    model = signature.flat(model)
    content = here.read(path)
    model = _as_large(model, content)
    is_decoded = decode.is_decoded(content)
    if machine != "micro":
        here.check_runs(path, content)
    quantize, batch_size = metadata.quantization(content), metadata.batch_size(content)
    samples = None if data is None else feeds.given(model, data, batch_size)
    reference = Reference(model, samples, quantize is not None, batch_size)
    if not reference.finite:
        raise ValueError(f"The model '{model.name}' has outputs that are not finite {reference.origin}.")
    accepted = tolerances(reference.outputs, quantize, content)
    checks = [] if is_decoded else check(reference, path, accepted)
    for other in reference.others:
        checks += [] if is_decoded else resized(other, path, tolerances(other.outputs, quantize, content))
    received = None
    if machine is not None:
        ((there, run),) = check_on(machine, reference, [path], accepted)
        checks.append(there)
        received = run.outputs if is_decoded else None
    if quantize is not None and checks[0].passed:
        gone = [name for name, number, channels in lost(reference, path, received) if number == channels]
        if gone:
            what = f"'{gone[0]}' differs from Keras by as much as it varies: its values say nothing"
            checks[0] = dataclasses.replace(checks[0], error=what)
    return checks


def _as_large(model, content):
    """The model on inputs of the sizes that a file, a `ModelT`, takes only."""
    entry = entries(content)[0]
    if not feeds.is_open(model) or sorted(entry.inputs) != sorted(tensor.name for tensor in model.inputs):
        return model
    shapes = {name: [None if size < 0 else size for size in entry.shape(name)[1:]] for name in entry.inputs}
    return signature.sized(model, shapes)


def tolerances(expected, quantize=None, content=None, received=None):
    """How far from Keras' outputs a file's may be.

    Args:
        expected: Keras' outputs: dict of output name → array.
        quantize: How the file is quantised. None: it may differ by what the order of float32 sums changes, and integers
            have to be the same. Otherwise it rounds besides, by a share of an output's largest magnitude and by a step.
        content: Of a quantised file, the `ModelT`, which tells the step of its outputs.
        received: What the dense file of that quantisation makes of the inputs, where it ran: what it rounds is what
            other files may, too.

    Returns:
        Dict of output name → largest difference.
    """
    steps = metadata.output_steps(content) if quantize else {}
    result = {}
    for name, output in expected.items():
        result[name] = 0.0 if is_integer(output) else RELATIVE * magnitude(output)
        if quantize:
            rounding = difference(output, received[name]) if received and name in received else math.inf
            most = _QUANTIZED[quantize] * magnitude(output)
            result[name] += min(_ROUNDING_FACTOR * rounding, most) + steps.get(name, 0)
    return result


def check(reference, path, accepted):
    """Run a file that was checked, or that this package wrote, on this machine; return a `Check` for each runtime."""
    checks = []
    for runtime, delegates in here.RUNTIMES.items():
        try:
            received = reference.run(path, delegates)
        except RuntimeError as error:
            checks.append(failed(runtime, error))
        else:
            checks.append(compare(reference.outputs, received, accepted, runtime))
    return checks


def resized(reference, path, accepted):
    """`check` with inputs of another size, which the runtimes in the result's names tell."""
    return [
        dataclasses.replace(found, runtime=f"{found.runtime}, inputs of {reference.shapes}")
        for found in check(reference, path, accepted)
    ]


def check_on(machine, reference, paths, accepted, repeats=0):
    """Run files on another machine, in one go; on few inputs where it may be emulated.

    Returns:
        A `Check` and a `process.Run` for each file.
    """
    inputs, outputs = reference.few() if machine == "aarch64" else (reference.inputs, reference.first_outputs())
    return [
        (failed(machine, run.error) if run.error else compare(outputs, run.outputs, accepted, machine), run)
        for run in MACHINES[machine].run([(path, inputs) for path in paths], repeats)
    ]


def lost(reference, path, received=None):
    """Outputs that a file rounds away: triples (name, number of such channels, number of channels).

    Of a channel (the last axis of an output) that differs from Keras' by as much as it varies, a constant would be
    as good. `received`: what a file that does not run here makes of the inputs elsewhere.
    """
    found = []
    expected = reference.outputs if received is None else reference.first_outputs()
    for name, output in (reference.run(path) if received is None else received).items():
        if is_integer(expected[name]):
            continue
        ours = np.asarray(expected[name], "float64")
        channels = ours.shape[-1] if ours.ndim > 1 else 1
        ours, theirs = ours.reshape(-1, channels), np.asarray(output, "float64").reshape(-1, channels)
        variance = ours.var(axis=0)
        is_lost = (variance > 0) & (((theirs - ours) ** 2).mean(axis=0) >= variance)
        if is_lost.any() and len(ours) >= 8:  # the variance of fewer says little
            found.append((name, int(is_lost.sum()), channels))
    return found


def failed(runtime, error):
    """The `Check` of a file that did not come so far as to be compared."""
    return Check(runtime, None, None, one_line(error))


def compare(expected, received, tolerances, runtime=""):
    """Compare two dicts of name → array, each output with its own tolerance; return the `Check` of the worst."""
    if {name: np.shape(array) for name, array in expected.items()} != {
        name: np.shape(array) for name, array in received.items()
    }:
        return Check(runtime, None, None, f"outputs of other names or shapes: {', '.join(map(str, received))}")
    checks = []
    for name, array in expected.items():
        largest = difference(array, received[name])
        checks.append(Check(runtime, largest, float(tolerances[name]), integers=is_integer(array)))
    return max(checks, key=_closeness)


def _closeness(check):
    """How close a difference is to its tolerance; a NaN is furthest."""
    if check.largest == 0:
        return 0.0
    ratio = check.largest / check.tolerance if check.tolerance else math.inf
    return math.inf if math.isnan(ratio) else ratio


def worst(checks):
    """The check that is closest to its tolerance, or furthest over it."""
    return max(checks, key=_closeness)


def is_integer(array):
    """Whether an output is one of integers or booleans, such as classes: how far these are apart says nothing."""
    return np.asarray(array).dtype.kind in "iub"


def difference(expected, received):
    """Largest absolute difference between two arrays; of integers, the share that differs."""
    if is_integer(expected):
        return float(np.mean(np.asarray(expected) != np.asarray(received))) if np.size(expected) else 0.0
    return float(np.max(np.abs(np.asarray(received, "float64") - np.asarray(expected, "float64")), initial=0))


def magnitude(array):
    """Largest absolute value, 0 for an empty array; 1 for integers, whose differences are shares."""
    return 1.0 if is_integer(array) else float(np.max(np.abs(np.asarray(array, "float64")), initial=0))
