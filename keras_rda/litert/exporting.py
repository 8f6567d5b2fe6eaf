"""`export`: convert, encode, compare with Keras, and only then put the file in place."""

import dataclasses
import gzip
import pathlib
import re
import tempfile
import warnings
from typing import Literal

import keras
import numpy as np

from keras_rda import _keras, compression, metrics, output
from keras_rda.kernels import check_finite, is_kernel
from keras_rda.litert import convert, encode, feeds, flatbuffer, half, repair, signature, verification, weights, xnnpack
from keras_rda.litert.latency import benchmark
from keras_rda.litert.layer_names import keras_paths
from keras_rda.litert.report import Candidate, ExportReport
from keras_rda.types import Data, Path, Quantization

# The dense file's own rounding counts: a file with its zeros encoded may not be much worse.
_ROUNDING_FACTOR = 1.5


class ExportError(RuntimeError):
    """A file could not be made, or was wrong; nothing was left at the path."""


@dataclasses.dataclass
class _File:
    """A candidate with its content."""

    candidate: Candidate
    path: pathlib.Path | None = None  # None: it could not be made
    tensors: list = dataclasses.field(default_factory=list)


def export(
    model: keras.Model,
    path: Path,
    quantize: Quantization | None = None,
    representative_data: Data | None = None,
    machine: Literal["aarch64"] | None = None,
) -> ExportReport:
    """Write `model` as the smallest LiteRT file that is right.

    The model is converted once (twice if channels can be removed, see `compress`). Zeros are then encoded tensor by
    tensor, where that saves bytes. Each candidate, the smallest first, is compared with the Keras model in
    `ai_edge_litert`, with the default delegate and without; the first that passes is put at `path` in one atomic step.
    What is at `path` before stays until then.

    An output of a nested structure is named by its place in it: `boxes_0` and `boxes_1` in `{"boxes": [a, b]}`. In
    names of inputs, `_` replaces what a file's signature cannot have, such as spaces.

    Args:
        model: A built Sequential or Functional model in float32; only the batch size may be unknown.
        path: Where to write the file, ending in `.tflite`; its directory must exist.
        quantize: None: float32. `"float16"`: weights in float16. `"dynamic"`: weights in int8, activations in float32.
            `"int8"`: both in int8, inputs and outputs in float32. Where the runtime cannot run zeros in the
            quantisation, the file falls back to what it can (see `ExportReport.candidates` and `TensorEncoding`).
        representative_data: Typical inputs, needed for `"int8"`, which takes the ranges of activations from the first
            200 of them: arrays as for `model.predict`, or an iterable of such batches (a `tf.data.Dataset`), without
            labels. If given, files are compared with Keras on the first of them; otherwise on random inputs. (2 inputs
            for float32 files, 16 for quantised ones.)
        machine: `"aarch64"`: run the files on AArch64 too, natively on an Arm machine, elsewhere emulated
            (`python3 -m keras_rda.litert.aarch64` sets that up).

    Warns:
        UserWarning: every kernel is zero, or rounding leaves nothing of some outputs (`ExportReport.lost`).

    Returns:
        `ExportReport`: sizes, encodings, differences, latencies; `print` shows a table.

    Raises:
        ExportError: the model does not convert to LiteRT's builtin operators, or no candidate was right.
        RuntimeError: the Keras backend is not TensorFlow, or `machine` is not set up.
        ValueError, FileNotFoundError: `path` cannot be written to, the model has no symbolic inputs, an input has an
            unknown dimension besides the batch size, layers do not compute in float32, weights are not finite, or
            `representative_data` is missing or does not fit the model's inputs.
        OSError: the directory of `path` cannot be written to, or the disk is full.
    """
    path = pathlib.Path(path)
    _check_path(path)
    _check_model(model)
    if quantize not in convert.QUANTIZATIONS:
        names = ", ".join(map(repr, convert.QUANTIZATIONS))
        raise ValueError(f"quantize must be one of {names}; received {quantize!r}.")
    if quantize == "int8" and representative_data is None:
        raise ValueError(
            "quantize='int8' needs representative_data: some hundred typical inputs, by which the ranges of "
            "activations are found. quantize='dynamic' needs none."
        )
    if machine is not None:
        verification.check_machine(machine)
    model = signature.flat(model)
    samples = None if representative_data is None else feeds.given(model, representative_data)
    reference = verification.Reference(model, samples, quantized=quantize is not None)
    if not reference.finite:
        raise ExportError(f"The model '{model.name}' itself has outputs that are not finite {reference.origin}.")
    kernels = metrics.summarize([variable for variable in model.weights if is_kernel(variable)])
    sparsity = kernels.sparsity() if kernels.rows else 0.0
    if sparsity == 1.0:
        warnings.warn(
            f"Every kernel of the model '{model.name}' is zero, so the file computes a constant: the penalty was too "
            "strong. Train again with a smaller one.",
            stacklevel=2,
        )
    # In the same directory, so that the rename is atomic; hidden and removed whatever happens.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as directory:
        files = _candidates(model, quantize, samples, pathlib.Path(directory))
        dense = files["dense"]
        tolerances = _tolerances(reference, dense, quantize)
        tried = []
        for file in sorted(files.values(), key=lambda file: file.candidate.bytes):
            ratio = None
            if file.path is not None:
                checks, ratio = _check(reference, file, dense, tolerances, machine)
                file.candidate = dataclasses.replace(file.candidate, checks=tuple(checks))
            tried.append(file.candidate.result)
            if file.candidate.passed:
                break
        else:
            hint = ""
            if quantize == "int8" and any(check.error for check in dense.candidate.checks):
                hint = " What int8 cannot run, quantize='dynamic' may."
            elif quantize == "int8":
                hint = " Is representative_data typical?"
            raise ExportError(
                f"No LiteRT file of the model '{model.name}' is right, and nothing was written to {str(path)!r}: "
                f"{'; '.join(dict.fromkeys(tried))}.{hint}"
            )
        lost = [f"{n} of {of} channels of '{name}'" for name, n, of in (reference.lost(file.path) if quantize else [])]
        report = ExportReport(
            path=str(path),
            chosen=file.candidate,
            candidates=tuple(sorted((f.candidate for f in files.values()), key=lambda candidate: candidate.bytes)),
            quantize=quantize,
            bytes=file.candidate.bytes,
            gzip_bytes=_gzip_bytes(file.path),
            dense_bytes=dense.candidate.bytes,
            dense_gzip_bytes=_gzip_bytes(dense.path),
            sparsity=sparsity,
            tensors=tuple(file.tensors),
            latency=_latency(files, file),
            sparse_kernels=xnnpack.sparse_kernels(file.path),
            not_faster_here=xnnpack.here() or "",
            emulated_ratio=ratio,
            lost=tuple(lost),
        )
        output.move(file.path, path)
    if lost:
        warnings.warn(
            f"Rounded to {quantize}, {'; '.join(lost)} differ from Keras by as much as they vary: constants would be "
            "as good. Make outputs of different size separate outputs, or choose another quantisation.",
            stacklevel=2,
        )
    return report


def _candidates(model, quantize, samples, directory):
    """Every way to write the model: dict of name → `_File`, with `"dense"` among them.

    What fails on the way to one of them is its result; only without the dense file there is none to measure others by.
    """
    files, contents = {}, set()
    for prefix, source in (("", model), ("compressed, ", _compressed(model))):
        if source is None:
            continue
        try:
            dense, kept = convert.convert(source, quantize, samples), []
            graph = flatbuffer.read(dense)
            if quantize == "float16" and half.is_suspect(graph):
                kept = half.restore(graph, flatbuffer.read(convert.convert(source)))
                dense = flatbuffer.pack(graph) if kept else dense
            work, paths = weights.multiply_adds(graph), keras_paths(source, graph)
        except Exception as error:
            if prefix:
                files[f"{prefix}dense"] = _failed(f"{prefix}dense", "the converter", error)
                continue
            raise ExportError(
                f"The converter could not express the model '{model.name}' in LiteRT's builtin operators: "
                f"{_cause(error)}"
            ) from error
        # The strategies differ only where weights are quantised.
        tensors = []
        for strategy in encode.STRATEGIES if quantize else encode.STRATEGIES[:1]:
            name = prefix + ("sparse" if strategy == encode.STRATEGIES[0] else f"sparse, {strategy}")
            try:
                sparse, tensors = encode.encode(graph, strategy)
                tensors = weights.in_order(tensors, work)
                tensors = [dataclasses.replace(tensor, keras_path=paths.get(tensor.name, "")) for tensor in tensors]
                notes = repair.repair_tails(sparse)
                if quantize:
                    verification.mark(sparse, quantize)
                content = flatbuffer.pack(sparse)
            except Exception as error:
                files[name] = _failed(name, "the encoding", error)
                continue
            if content in contents or all(tensor.encoding == "dense" for tensor in tensors):
                continue
            contents.add(content)
            files[name] = _write(directory, name, content, tensors, kept + notes)
        everything_dense = [dataclasses.replace(t, encoding="dense", bytes=t.dense_bytes) for t in tensors]
        files[f"{prefix}dense"] = _write(directory, f"{prefix}dense", dense, everything_dense, kept)
    return files


def _failed(name, what, error):
    return _File(Candidate(name, 0, (verification.failed(what, error),)))


def _write(directory, name, content, tensors, notes):
    path = directory / f"{name}.tflite"
    path.write_bytes(content)
    return _File(Candidate(name, len(content), notes=tuple(notes)), path, tensors)


def _compressed(model):
    """The model without its dead channels; None if it has none, or none that can be removed."""
    if not compression.is_supported(model):
        return None
    try:
        smaller = compression.compress(model)
    except Exception as error:  # none is known; the file can be written without
        warnings.warn(f"Channels were not removed, as compress() failed: {verification.one_line(error)}", stacklevel=4)
        return None
    return smaller if smaller.count_params() < model.count_params() else None


def _tolerances(reference, dense, quantize):
    """How far from Keras' each output may be.

    A quantised file rounds; one with its zeros encoded may not be worse than the dense one in the plainest runtime.
    """
    tolerances = reference.tolerances()
    if quantize:
        steps = verification.output_steps(flatbuffer.read(dense.path))
        try:
            plain = reference.run(dense.path, delegates=False)
        except Exception:  # whatever the runtime makes of it, `_check` says so
            plain = {}
        for name, expected in reference.outputs.items():
            rounding = verification.difference(expected, plain[name]) if name in plain else np.inf
            most = verification.QUANTIZED_TOLERANCE[quantize] * verification.magnitude(expected)
            tolerances[name] += min(_ROUNDING_FACTOR * rounding, most) + steps.get(name, 0)
    return tolerances


def _check(reference, file, dense, tolerances, machine):
    """The file's checks, and on the machine the time of the dense file over its own."""
    try:
        checks, ratio = reference.check(file.path, tolerances), None
    except Exception as error:  # its result, not the export's: another candidate may do
        return [verification.failed("this machine", error)], None
    if machine is not None and all(check.passed for check in checks):
        paths = [file.path] if file is dense else [file.path, dense.path]
        (check, seconds), *others = reference.check_on(machine, paths, tolerances, repeats=5)
        checks.append(check)
        if seconds and others and others[0][1]:
            ratio = others[0][1] / seconds
    return checks, ratio


def _latency(files, written):
    """Of the dense file, the sparse one, the compressed ones and the one that is written, as far as they run."""
    made = {name: file.path for name, file in files.items() if file.path is not None}
    timed = {name: made[name] for name in ("dense", "sparse", "compressed, dense") if name in made}
    timed[written.candidate.name] = written.path
    for name in [name for name, path in timed.items() if path != written.path]:
        try:
            verification.interpreter(timed[name]).allocate_tensors()
        except (RuntimeError, ValueError):
            del timed[name]
    return tuple(benchmark(timed, seconds=0.3))


def _gzip_bytes(path):
    return len(gzip.compress(path.read_bytes(), compresslevel=6))


def _cause(error):
    """The converter's words in a line, without the trace of the graph."""
    operators = sorted(set(re.findall(r"'tf\.(\w+)' op", str(error))))
    if not operators:
        return verification.one_line(error)
    advice = ""
    if any("TensorList" in name for name in operators):
        advice = " Recurrent layers need unroll=True."
    if "BitwiseAnd" in operators:  # by which Keras tells −0 from 0
        advice = " keras.ops.argmax and argmin do: end the model before them, and apply them to its outputs."
    return f"it needs TensorFlow's own {', '.join(operators)}.{advice}"


def _check_path(path):
    if path.suffix != ".tflite":
        raise ValueError(f"path must end in '.tflite'; received {str(path)!r}.")
    if path.is_dir():
        raise ValueError(f"path must name a file; {str(path)!r} is a directory.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The directory {str(path.parent)!r} does not exist; create it first.")


def _check_model(model):
    _keras.check_model("export", model)
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"export() needs Keras' TensorFlow backend, and this process runs {keras.backend.backend()!r}. Save the "
            "model (model.save('model.keras')) and export it in a process started with KERAS_BACKEND=tensorflow."
        )
    if not getattr(model, "inputs", None):
        raise ValueError(
            f"export() needs a Sequential or Functional model that is built; received {type(model).__name__} "
            f"'{model.name}' without symbolic inputs. Wrap it: keras.Model(inputs, model(inputs)) with inputs = "
            "keras.Input(shape)."
        )
    feeds.check(model)
    if wrong := sorted({f"{layer.name} ({layer.compute_dtype})" for layer in _layers(model) if _is_low(layer)}):
        wrong[3:] = [f"{len(wrong) - 3} more"] if len(wrong) > 3 else []
        raise ValueError(
            f"export() takes float32 models; these layers compute in another precision: {', '.join(wrong)}. Build the "
            "model under keras.config.set_dtype_policy('float32'), copy the weights with "
            "set_weights(get_weights()), and export that; quantize='float16' makes the file's weights float16."
        )
    check_finite(model)


def _layers(model):
    for layer in model.layers:
        yield from _layers(layer) if isinstance(layer, keras.Model) else (layer,)


def _is_low(layer):
    return "float" in layer.compute_dtype and layer.compute_dtype != "float32"
