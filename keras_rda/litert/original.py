"""A LiteRT file as the measure of a smaller one: what it computes, here and on other machines."""

import copy
import dataclasses
import math
import pathlib
import sys
import tempfile

import numpy as np

from keras_rda.litert import flatbuffer, verification, xnnpack
from keras_rda.litert.calls import entries
from keras_rda.litert.graph import schema
from keras_rda.litert.machines import MACHINES, here, process
from keras_rda.output import one_line

_NAME = "the source"
_TIMEOUT = 600  # seconds


class Original:
    """A file, inputs for each way to call it, and what it makes of them.

    Each signature is called on random inputs, twice in a row in case it keeps a state, with a batch of 1 and, where its
    size is free, of 2; and on the data. Where XNNPACK's sparse kernels exist and get the file wrong, or do not load it,
    what it computes without delegates is the measure with them too.

    Args:
        path: The file, which was checked.
        model: Its `ModelT`.
        data: An array, or a dict of input name → array, with the samples first; an iterable of such, of which the first
            is used; or None.

    Attributes:
        outputs: Runtime of `here` → dict of (entry, call, output name) → array, where the file runs.
        notes: Lines on where it does not.

    Raises:
        ValueError: the file does not run here, its inputs cannot be drawn, its outputs change from run to run, or the
            data do not fit it.
    """

    def __init__(self, path, model, data=None):
        self._path, self._model, self._plan, self.notes = path, model, [], []
        self._runtimes, fits = dict(here.RUNTIMES), data is None
        if xnnpack.here() is None and any(xnnpack.analyze(model, graph)[0].faults for graph in model.subgraphs):
            self._runtimes = dict.fromkeys(here.RUNTIMES, False)
            self.notes.append("Compared with the source without delegates: the sparse kernels here get it wrong.")
        if data is not None and not isinstance(data, dict) and not hasattr(data, "shape"):
            data = next(iter(data))
        for entry in entries(model):
            batches, size = self._sizes(entry)
            for batch in batches:
                calls = [entry.random(batch, size, seed) for seed in (0, 1)]
                why = {runtime: self._why_not(entry, calls, runtime) for runtime in self._runtimes}
                if batch == 1:
                    self._leave_out(entry, why)
                if batch == 1 or not any(why.values()):
                    self._plan.append((entry, calls))
            if data is not None and (calls := entry.given(data)):
                fits = True
                self._plan.append((entry, calls))
        if not fits:
            wanted = "; ".join(
                f"{entry}: { {name: entry.shape(name) for name in entry.inputs} }" for entry, _ in self._plan
            )
            raise ValueError(
                f"The data fit no way to call the file, with the samples first (-1: any number): {wanted}."
            )
        self.outputs = {runtime: self._run(path, delegates) for runtime, delegates in self._runtimes.items()}
        for runtime, outputs in self.outputs.items():
            if not self._compare(outputs, self._run(path, self._runtimes[runtime]), runtime, 0).passed:
                raise ValueError(
                    f"The file's outputs change from run to run ({runtime}): a smaller one cannot be compared."
                )

    def check(self, path):
        """Run another file on the same inputs; return a `Check` for each runtime.

        It has to give the same bits, except where XNNPACK's sparse kernels, which sum in another order, exist here.
        """
        checks = []
        for runtime, outputs in self.outputs.items():
            relative = verification.RELATIVE if here.RUNTIMES[runtime] and not xnnpack.here() else 0
            try:
                received = self._run(path, here.RUNTIMES[runtime])
            except (RuntimeError, ValueError) as error:
                checks.append(verification.failed(runtime, error))
            else:
                checks.append(self._compare(outputs, received, runtime, relative))
        return checks

    def check_on(self, machine, model):
        """Run another file, a `ModelT`, on another machine; return a `Check`, and the time of the source over its own.

        It has to give what the source does here up to float32 rounding, or what the source does there: integers round
        differently on different machines. Of calls in a row the first is made, of an entry that is the only signature
        of a copy: machines take that.
        """
        here_outputs = next(iter(self.outputs.values()))
        with tempfile.TemporaryDirectory() as folder:
            jobs = []
            for number, (entry, calls) in enumerate(self._plan):
                for name, content in (("source", self._model), ("other", model)):
                    path = pathlib.Path(folder, f"{number}-{name}.tflite")
                    path.write_bytes(_with_one_signature(content, entry))
                    jobs.append((path, calls[0]))
            runs = MACHINES[machine].run(jobs, MACHINES[machine].REPEATS)
        checks = []
        for number, (source, other) in enumerate(zip(runs[::2], runs[1::2], strict=True)):
            if source.error and other.error:
                raise ValueError(
                    f"The source itself does not run on the machine '{machine}', so that a smaller file cannot be "
                    f"compared with it there: {source.error}. Shrink it without a machine."
                )
            if other.error:
                checks.append(verification.failed(machine, other.error))
                continue
            expected = {name: array for (own, call, name), array in here_outputs.items() if (own, call) == (number, 0)}
            check = self._compare(expected, other.outputs, machine, verification.RELATIVE)
            if not check.passed and not source.error:
                there = self._compare(source.outputs, other.outputs, machine, 0)
                check = there if there.passed else check
            checks.append(check)
        failed = [check for check in checks if not check.passed]
        return failed[0] if failed else verification.worst(checks), process.ratio(runs[1], runs[0])

    def _sizes(self, entry):
        """Batches, 1 among them, and a size of other unknown dimensions with which an entry runs.

        They are tried in a process apart: with a wrong one LiteRT may crash.
        """
        sizes = entry.sizes()
        if len(sizes) == 1:
            return [1], sizes[0][1]
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "source.tflite")
            path.write_bytes(_with_one_signature(self._model, entry))
            runs = process.run([(path, entry.random(*pair, 0)) for pair in sizes], 0, _TIMEOUT, [sys.executable])
        good = [pair for pair, run in zip(sizes, runs, strict=True) if not run.error]
        size = next((size for batch, size in good if batch == 1), sizes[0][1])
        return [1, *(batch for batch, other in good if batch > 1 and other == size)], size

    def _leave_out(self, entry, why):
        """Note runtimes in which an entry does not run: there is nothing to compare with."""
        if all(why.values()):
            reasons = "; ".join(dict.fromkeys(why.values()))
            raise ValueError(
                f"The source does not run here ({entry}), so that a smaller file cannot be compared with it: {reasons}."
            )
        for runtime, reason in why.items():
            if reason:
                self.notes.append(f"Not compared, {runtime}: the source does not run there ({reason}).")
                del self._runtimes[runtime]

    def _why_not(self, entry, calls, runtime):
        try:
            _outputs(self._path, entry, calls, self._runtimes[runtime])
        except (RuntimeError, ValueError) as error:
            return one_line(error)
        return ""

    def _run(self, path, delegates):
        return {
            (number, call, name): array
            for number, (entry, calls) in enumerate(self._plan)
            for call, outputs in enumerate(_outputs(path, entry, calls, delegates))
            for name, array in outputs.items()
        }

    def _compare(self, expected, received, runtime, relative):
        tolerances = {}
        for name, array in expected.items():
            finite = array[np.isfinite(array)] if array.dtype.kind in "fc" else array
            tolerances[name] = 0.0 if array.dtype.kind not in "fc" else relative * verification.magnitude(finite)
        pairs = {name: _without_equals(array, received.get(name)) for name, array in expected.items()}
        received = {name: pair[1] for name, pair in pairs.items()} | {
            n: a for n, a in received.items() if n not in pairs
        }
        check = verification.compare({name: pair[0] for name, pair in pairs.items()}, received, tolerances, runtime)
        return dataclasses.replace(check, reference=_NAME)


def _without_equals(expected, received):
    """Two arrays with zeros where they are equal, NaN and infinity included."""
    if received is None or np.shape(received) != expected.shape or received.dtype != expected.dtype:
        return expected, np.full((*expected.shape, 1), math.nan)  # another shape
    same = (expected == received) | ((expected != expected) & (received != received))
    if expected.dtype.kind == "O":  # strings
        return np.zeros(expected.shape, bool), ~same
    if expected.dtype.kind == "c":
        expected, received = expected.view(expected.real.dtype), received.view(received.real.dtype)
        same = (expected == received) | ((expected != expected) & (received != received))
    return tuple(np.where(same, np.zeros((), array.dtype), array) for array in (expected, received))


def _outputs(path, entry, calls, delegates):
    """What a file makes of several calls in a row: a list of dicts of output name → array."""
    runs = here.interpreter(path, delegates)
    if entry.key is not None:
        runner = runs.get_signature_runner(entry.key)
        return [runner(**inputs) for inputs in calls]
    results = []
    for inputs in calls:
        for name, array in inputs.items():
            runs.resize_tensor_input(entry.inputs[name], array.shape)
        runs.allocate_tensors()
        for name, array in inputs.items():
            runs.set_tensor(entry.inputs[name], array)
        runs.invoke()
        results.append({name: runs.get_tensor(index) for name, index in entry.outputs.items()})
    return results


def _with_one_signature(model, entry):
    """The content of a copy of a `ModelT` that has an entry as its only signature."""
    code = schema()
    model = copy.copy(model)
    model.signatureDefs = [
        code.SignatureDefT(
            *(
                [code.TensorMapT(name.encode(), index) for name, index in part.items()]
                for part in (entry.inputs, entry.outputs)
            ),
            signatureKey=(entry.key or "serving_default").encode(),
            subgraphIndex=entry.subgraph,
        )
    ]
    return flatbuffer.pack(model)
