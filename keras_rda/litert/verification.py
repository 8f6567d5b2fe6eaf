"""Run LiteRT files, and compare their outputs with Keras'."""

import dataclasses
import math
import pathlib
import re
from typing import Literal

import keras
import numpy as np

from keras_rda import _keras, output
from keras_rda.litert import feeds, flatbuffer, signature
from keras_rda.types import Data, Path

# Both sides compute in float32 and sum in different orders: over the depth of a network that moves outputs by some 1e-6
# of their size. A wrong file is off by far more (the defects seen start at 1e-2).
RELATIVE_TOLERANCE = 1e-4
# Of a quantised file, relative to the largest magnitude of an output: beyond it, it is no rounding any more.
QUANTIZED_TOLERANCE = {"float16": 0.1, "dynamic": 0.25, "int8": 0.25}
MACHINES = ("aarch64",)
_BATCH = 2
_CALLS = 3  # of a model that keeps a state from one to the next
_QUANTIZED_BATCH = 16  # rounding differs from input to input


@dataclasses.dataclass(frozen=True)
class Check:
    """How a file did in one runtime.

    Attributes:
        runtime: `"default delegate"`, `"no delegates"` (both on this machine) or `"aarch64"`.
        largest: Largest absolute difference from Keras' outputs, of the output that comes closest to its tolerance, or
            goes furthest over it; None if the file did not run. Of an output of integers: the share that differs.
        tolerance: The largest that is accepted for that output.
        error: Why the file did not run; `""` if it did.
        integers: Whether that output is one of integers.
    """

    runtime: str
    largest: float | None
    tolerance: float | None
    error: str = ""
    integers: bool = False

    @property
    def passed(self):
        # Written so that a NaN fails.
        return bool(not self.error and self.largest <= self.tolerance)

    def __str__(self):
        if self.error:
            return f"{self.runtime}: {self.error}"
        if self.integers:
            return f"{self.runtime}: differs from Keras in {self.largest:.1%} (accepted: {self.tolerance:.1%})"
        return f"{self.runtime}: differs from Keras by {self.largest:.2g} (accepted: {self.tolerance:.2g})"


def predict(path: Path, inputs: np.ndarray | dict[str, np.ndarray], delegates: bool = True) -> dict[str, np.ndarray]:
    """Run the LiteRT file at `path` on one batch.

    Args:
        path: The file.
        inputs: An array with the batch first, or, for a file of several inputs, a dict of input name → array; Keras
            names a file's inputs like the model's.
        delegates: Whether to use the default delegate (XNNPACK), as applications do.

    Returns:
        Dict of output name → array. Keras names a file's outputs `output_0`, `output_1`, … unless the model returns a
        dict.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a LiteRT file, or the inputs' names or shapes are not those of the file.
        RuntimeError: the runtime refuses the file.
    """
    return _predict(path, inputs, delegates, calls=1)


def _predict(path, inputs, delegates, calls):
    """`predict`, so many times in a row; the outputs of the calls one after the other."""
    runs = interpreter(path, delegates)
    signatures = list(runs.get_signature_list())
    if not signatures:
        raise ValueError(
            f"The file {str(path)!r} has no signature, which Keras and TensorFlow 2 write into every file."
        )
    runner = runs.get_signature_runner(signatures[0])
    details = runner.get_input_details()
    given = inputs if isinstance(inputs, dict) else dict.fromkeys(details, inputs)
    if sorted(given) != sorted(details) or (given is not inputs and len(details) > 1):
        names = sorted(inputs) if isinstance(inputs, dict) else "one array"
        raise ValueError(f"The file {str(path)!r} takes a dict of the inputs {sorted(details)}; received {names}.")
    arrays = {name: np.asarray(given[name], detail["dtype"]) for name, detail in details.items()}
    for name, array in arrays.items():
        shape = tuple(int(size) for size in details[name]["shape_signature"])
        if len(shape) != array.ndim or any(a not in (-1, b) for a, b in zip(shape, array.shape, strict=True)):
            raise ValueError(
                f"The input '{name}' of {str(path)!r} has the shape {shape} (-1: any); received {array.shape}."
            )
    return _in_a_row([runner(**arrays) for _ in range(calls)])


def _in_a_row(results):
    """Dicts of output name → array of several calls, as one; the arrays of a single call as they are."""
    if len(results) == 1:
        return results[0]
    return {name: np.concatenate([result[name] for result in results]) for name in results[0]}


def interpreter(path, delegates=True):
    """`ai_edge_litert`'s interpreter of a file; errors as for `predict`."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    flatbuffer.read(path)  # the interpreter trusts what it reads
    resolver = OpResolverType.AUTO if delegates else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    return Interpreter(model_path=str(path), experimental_op_resolver_type=resolver)


class Reference:
    """Inputs, and Keras' outputs for them.

    Args:
        model: A Sequential or Functional model (see `feeds.check`).
        samples: A list of dicts of input name → array (1, …), or a whole batch where its size is fixed; by default,
            random ones.
        quantized: Whether for quantised files, which are compared on more inputs.

    The variables of the model stay as they are, also those in which it keeps a state; such a model is called several
    times.

    Attributes:
        inputs: Array, or dict of input name → array if there are several.
        outputs: Dict of output name → array; of several calls, one after the other.
    """

    def __init__(self, model, samples=None, quantized=False):
        size = _QUANTIZED_BATCH if quantized else _BATCH
        names = [tensor.name for tensor in model.inputs]
        self.origin = (
            "for representative_data" if samples else "for random inputs; give representative_data, which is typical"
        )
        if samples:
            count = 1 if model.inputs[0].shape[0] else size  # a fixed batch is one sample
            inputs = {name: np.concatenate([sample[name] for sample in samples[:count]]) for name in names}
        else:
            inputs = feeds.random(model, size)
        structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
        given = keras.tree.map_structure(lambda tensor: inputs[tensor.name], structure)

        def call():
            outputs = model(given, training=False)
            if not isinstance(outputs, dict):
                outputs = {f"output_{i}": output for i, output in enumerate(keras.tree.flatten(outputs))}
            return {name: keras.ops.convert_to_numpy(output) for name, output in outputs.items()}

        with keras.StatelessScope() as scope:  # what the model assigns to its variables stays in here
            results = [call()]
            self._calls = _CALLS if scope.state_mapping else 1
            results += [call() for _ in range(1, self._calls)]
        self.outputs = _in_a_row(results)
        # A model that was cloned or loaded may have renamed its only input.
        self.inputs = inputs if len(inputs) > 1 else inputs[names[0]]
        self._few = slice(None) if model.inputs[0].shape[0] else slice(_BATCH)

    @property
    def finite(self):
        return all(np.isfinite(output).all() for output in self.outputs.values())

    def tolerances(self):
        """What float32 rounding may change: dict of output name → largest difference; integers have to be the same."""
        return {
            name: 0.0 if is_integer(output) else RELATIVE_TOLERANCE * magnitude(output)
            for name, output in self.outputs.items()
        }

    def first_outputs(self):
        """Keras' outputs in the first call."""
        return {name: output[: len(output) // self._calls] for name, output in self.outputs.items()}

    def run(self, path, delegates=True):
        """What the file at `path` makes of the inputs; errors as for `predict`."""
        return _predict(path, self.inputs, delegates, self._calls)

    def check(self, path, tolerances):
        """Run the file on this machine with the default delegate and without; return the `Check`s."""
        checks = []
        for runtime, delegates in (("default delegate", True), ("no delegates", False)):
            try:
                received = self.run(path, delegates)
            except RuntimeError as error:
                checks.append(failed(runtime, error))
            else:
                checks.append(compare(self.outputs, received, tolerances, runtime))
        return checks

    def check_on(self, machine, paths, tolerances, repeats=0):
        """Run files on another machine, in one go, on few inputs: it may be emulated.

        Returns:
            A `Check` and the seconds of one invocation for each file.
        """
        from keras_rda.litert import aarch64  # not at the top: `python -m` runs that module by itself

        check_machine(machine)
        several = isinstance(self.inputs, dict)
        inputs = {k: v[self._few] for k, v in self.inputs.items()} if several else self.inputs[self._few]
        outputs = {name: output[self._few] for name, output in self.first_outputs().items()}
        results = []
        for run in aarch64.run([(path, inputs) for path in paths], repeats):
            failed = Check(machine, None, None, run.error or "")
            results.append((failed if run.error else compare(outputs, run.outputs, tolerances, machine), run.seconds))
        return results

    def lost(self, path):
        """Outputs that a file rounds away: triples (name, number of such channels, number of channels).

        Of a channel (the last axis of an output) that differs from Keras' by as much as it varies, a constant would be
        as good.
        """
        found = []
        for name, received in self.run(path).items():
            if is_integer(self.outputs[name]):
                continue
            ours = np.asarray(self.outputs[name], "float64")
            channels = ours.shape[-1] if ours.ndim > 1 else 1
            ours, theirs = ours.reshape(-1, channels), np.asarray(received, "float64").reshape(-1, channels)
            variance = ours.var(axis=0)
            lost = (variance > 0) & (((theirs - ours) ** 2).mean(axis=0) >= variance)
            if lost.any() and len(ours) >= 8:  # the variance of fewer says little
                found.append((name, int(lost.sum()), channels))
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


def verify(
    model: keras.Model, path: Path, data: Data | None = None, machine: Literal["aarch64"] | None = None
) -> list[Check]:
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
        machine: `"aarch64"` runs the file on AArch64 too: on an Arm machine natively, elsewhere emulated.

    Returns:
        List of `Check`: with the default delegate, without delegates, on the machine.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is no LiteRT file, or the inputs are not usable.
        RuntimeError: the emulation is not set up.
    """
    _keras.check_model("verify", model)
    if machine is not None:
        check_machine(machine)
    feeds.check(model)
    model = signature.flat(model)
    content = flatbuffer.read(path)
    quantize = quantization(content)
    reference = Reference(model, None if data is None else feeds.given(model, data), quantized=quantize is not None)
    if not reference.finite:
        raise ValueError(f"The model '{model.name}' has outputs that are not finite {reference.origin}.")
    tolerances = reference.tolerances()
    if quantize is not None:
        steps = output_steps(content)
        for name, output in reference.outputs.items():
            tolerances[name] += QUANTIZED_TOLERANCE[quantize] * magnitude(output) + steps.get(name, 0)
    checks = reference.check(path, tolerances)
    if quantize is not None and checks[0].passed:
        gone = [name for name, number, channels in reference.lost(path) if number == channels]
        if gone:
            what = f"'{gone[0]}' differs from Keras by as much as it varies: its values say nothing"
            checks[0] = dataclasses.replace(checks[0], error=what)
    if machine is not None:
        checks.append(reference.check_on(machine, [path], tolerances)[0][0])
    return checks


_METADATA = b"keras_rda.quantize"


def mark(model, quantize):
    """Write into a `ModelT` how it is quantised: its zeros' neighbours may be stored in float32 all the same."""
    schema = flatbuffer.schema()
    data = np.frombuffer(quantize.encode(), np.uint8)
    model.buffers.append(schema.BufferT(data=data))
    entry = schema.MetadataT(name=_METADATA, buffer=len(model.buffers) - 1)
    model.metadata = [*(model.metadata or []), entry]


def quantization(model):
    """How a `ModelT` is quantised: a key of `QUANTIZED_TOLERANCE`, or None for float32."""
    for entry in model.metadata or []:
        if entry.name == _METADATA:
            data = model.buffers[entry.buffer].data
            quantize = "" if data is None else data.tobytes().decode(errors="replace")
            if quantize not in QUANTIZED_TOLERANCE:
                raise ValueError(f"The file says that it is quantised as {quantize[:20]!r}: it is corrupt.")
            return quantize
    types = flatbuffer.schema().TensorType
    found = {
        tensor.type
        for graph in model.subgraphs
        for tensor in graph.tensors
        if model.buffers[tensor.buffer].data is not None and len(tensor.shape) > 1
    }
    return "int8" if types.INT8 in found else "float16" if types.FLOAT16 in found else None


def output_steps(model):
    """Of a `ModelT`: dict of output name → the step of its int8 values, for outputs that are dequantised at the end."""
    graph = model.subgraphs[0]
    sources = {}
    for operator in graph.operators:
        if flatbuffer.operator_name(model, operator) == "DEQUANTIZE":
            sources[operator.outputs[0]] = graph.tensors[operator.inputs[0]]
    steps = {}
    for place in (model.signatureDefs[0].outputs if model.signatureDefs else None) or []:
        source = sources.get(place.tensorIndex)
        if source is not None and source.quantization is not None and source.quantization.scale is not None:
            steps[place.name.decode(errors="replace")] = float(max(source.quantization.scale))
    return steps


def one_line(error):
    """The line of an error's message that says something, without colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [output.printable(line.strip()) for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # TensorFlow puts the trace of a traced function first, Keras the name of the layer.
    if lines[0].startswith("in user code:"):
        return lines[-1]
    return lines[1] if lines[0].startswith("Exception encountered when calling") and len(lines) > 1 else lines[0]


def check_machine(machine):
    """Raise a `ValueError` for a machine that is not known, a `RuntimeError` for one that is not set up."""
    from keras_rda.litert import aarch64

    if machine not in MACHINES:
        raise ValueError(f"machine must be one of {', '.join(map(repr, MACHINES))}; received {machine!r}.")
    if not aarch64.is_ready():
        raise RuntimeError("AArch64 emulation is not set up: python3 -m keras_rda.litert.aarch64 does that.")
