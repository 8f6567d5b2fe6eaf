"""`export`: convert, encode, compare with Keras, and only then put the file in place."""

import contextlib
import dataclasses
import gzip
import pathlib
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence

import keras

from keras_rda import _keras, metrics, output
from keras_rda.kernels import check_finite, is_kernel
from keras_rda.litert import (
    candidates,
    convert,
    decode,
    elsewhere,
    feeds,
    on_tensorflow,
    signature,
    verification,
    xnnpack,
)
from keras_rda.litert.candidates import ExportError
from keras_rda.litert.header import check_name, header_text
from keras_rda.litert.latency import in_turns
from keras_rda.litert.machines import MACHINES, check_machine, here
from keras_rda.litert.reference import Reference
from keras_rda.litert.report import ExportReport
from keras_rda.types import Data, Machine, Path, Quantization


def export(
    model: keras.Model,
    path: Path,
    quantize: Quantization | None = None,
    representative_data: Data | None = None,
    machine: Machine | None = None,
    batch_size: int | None = None,
    sparse: bool = True,
    header: Path | None = None,
    input_shapes: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
) -> ExportReport:
    """Write `model` as the smallest LiteRT file that is right.

    The model is converted once (twice if channels can be removed, see `compress`). Zeros are then encoded tensor by
    tensor, where that saves bytes. Each candidate, the smallest first, is compared with the Keras model in
    `ai_edge_litert`, with the default delegate and without; the first that passes is put at `path` in one atomic step.
    What is at `path` before stays until then.

    Where Keras computes with JAX or torch, this happens in a process of TensorFlow's, which takes some ten seconds to
    begin.

    An output of a nested structure is named by its place in it: `boxes_0` and `boxes_1` in `{"boxes": [a, b]}`. In
    names of inputs, `_` replaces what a file's signature cannot have, such as spaces.

    Args:
        model: A built Sequential or Functional model in float32.
        path: Where to write the file, ending in `.tflite`; its directory must exist.
        quantize: None: float32. `"float16"`: weights in float16. `"dynamic"`: weights in int8, activations in float32.
            `"int8"`: both in int8, inputs and outputs in float32. Where the runtime cannot run zeros in the
            quantisation, the file falls back to what it can (see `ExportReport.candidates` and `TensorEncoding`).
        representative_data: Typical inputs, needed for `"int8"`, which takes the ranges of activations from the first
            200 of them: arrays as for `model.predict`, or an iterable of such batches (a `tf.data.Dataset`), without
            labels. If given, files are compared with Keras on the first of them; otherwise on random inputs. (2 inputs
            for float32 files, 16 for quantised ones.)
        machine: Run the files there too, and say how much faster they are. `"aarch64"`: natively on an Arm machine,
            elsewhere emulated (`python3 -m keras_rda.litert.aarch64` sets that up). `"wasm"`: in WebAssembly, as in a
            browser (`keras_rda[wasm]`, `python3 -m keras_rda.litert.wasm`); numbers of channels are then kept at
            multiples of 8 (`compress(model, multiple_of=8)`), as others are slow there. `"micro"`: a file for TFLite
            Micro, which decodes zeros with an operator of its own and is compared in TFLite Micro
            (`keras_rda[micro]`), with Keras and, bit for bit, with the dense file.
        batch_size: The only batch size that the file takes; the converter fixes all shapes by it. None: any, or 1 with
            `machine="wasm"` and `"micro"`, which need a fixed one.
        sparse: False: all weights dense, for what lacks DENSIFY, such as GPU and NPU delegates, or TFLite Micro from
            before the second half of 2025. Dead channels are removed all the same.
        header: With `machine="micro"`, where to write the file as a C array too, ending in `.h`. The array has this
            file's name.
        input_shapes: Sizes for inputs that have others than the batch's unknown, such as the length of a text: a shape
            without the batch size, for all such inputs, or a dict from names of inputs to shapes. The file takes these
            sizes only. None: it takes any, and is compared with Keras at three; not every model can be written so, nor
            for `machine="wasm"` and `"micro"`.

    Warns:
        UserWarning: every kernel is zero, or rounding leaves nothing of some outputs (`ExportReport.lost`).

    Returns:
        `ExportReport`: sizes, encodings, differences, latencies; `print` shows a table.

    Raises:
        ExportError: the model does not convert to LiteRT's builtin operators, TFLite Micro lacks some of them, or no
            candidate was right.
        RuntimeError: `machine` is not set up; or, on JAX and torch, the model could not be loaded on TensorFlow.
        ValueError, FileNotFoundError: `path` cannot be written to, the model has no symbolic inputs, `input_shapes` do
            not fit them or are missing with a `machine` that needs them, layers do not compute in float32, weights are
            not finite, `representative_data` is missing or does not fit the model's inputs, or arguments do
            not go together.
        OSError: the directory of `path` cannot be written to, or the disk is full.
    """
    path = pathlib.Path(path)
    check_path(path)
    if machine is not None:
        check_machine(machine)
    if sparse not in (True, False):
        raise ValueError(f"sparse must be True or False; received {sparse!r}.")
    model = checked(model, input_shapes, machine)
    if quantize not in convert.QUANTIZATIONS:
        names = ", ".join(map(repr, convert.QUANTIZATIONS))
        raise ValueError(f"quantize must be one of {names}; received {quantize!r}.")
    if quantize == "int8" and representative_data is None:
        raise ValueError(
            "quantize='int8' needs representative_data: some hundred typical inputs, by which the ranges of "
            "activations are found. quantize='dynamic' needs none."
        )
    if machine == "micro" and quantize not in (None, "int8"):
        raise ValueError(f"machine='micro' takes quantize=None or 'int8'; received {quantize!r}, which it cannot run.")
    if header is not None:
        _check_header(header, machine)
    if keras.backend.backend() != "tensorflow":
        arguments = {"quantize": quantize, "machine": machine, "batch_size": batch_size, "sparse": sparse}
        return on_tensorflow.export(model, path, representative_data, **arguments, header=header)
    model = signature.flat(model)
    batch_size = _batch_size(model, machine, batch_size)
    samples = None if representative_data is None else feeds.given(model, representative_data, batch_size)
    reference = Reference(model, samples, quantize is not None, batch_size)
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
        files = candidates.make(model, quantize, samples, pathlib.Path(directory), batch_size, machine, sparse)
        dense = files["dense"]
        file, measured = _choose(model, path, files, reference, quantize, machine)
        # What TFLite Micro decodes runs there only, and is its twin to the last bit.
        runs_here = file.twin if decode.is_decoded(file.model) else file
        lost = verification.lost(reference, runs_here.path) if quantize else []
        lost = [f"{number} of {channels} channels of '{name}'" for name, number, channels in lost]
        report = ExportReport(
            path=str(path),
            chosen=file.candidate,
            candidates=tuple(sorted((f.candidate for f in files.values()), key=lambda candidate: candidate.bytes)),
            quantize=quantize,
            bytes=file.candidate.bytes,
            gzip_bytes=gzip_bytes(file.path),
            dense_bytes=dense.candidate.bytes,
            dense_gzip_bytes=gzip_bytes(dense.path),
            sparsity=sparsity,
            tensors=tuple(file.tensors),
            latency=() if machine == "micro" else _latency(files, file),
            sparse_kernels=file.sparse_kernels or xnnpack.analyze(runs_here.model)[0],
            not_faster_here=xnnpack.here() or "",
            measured=measured,
            lost=tuple(lost),
        )
        with contextlib.nullcontext() if header is None else output.replacing(header) as unfinished:
            if unfinished is not None:
                unfinished.write_text(header_text(file.path.read_bytes(), _array_name(header), measured.arena))
            # When all is written, so that what fails leaves both as they were; before the header, so that a header is
            # never of a file that is not there.
            output.move(file.path, path)
    if lost:
        warnings.warn(
            f"Rounded to {quantize}, {'; '.join(lost)} differ from Keras by as much as they vary: constants would be "
            "as good. Make outputs of different size separate outputs, or choose another quantisation.",
            stacklevel=2,
        )
    return report


def _choose(model, path, files, reference, quantize, machine):
    """The smallest file that is right, and what was `Measured` of it on the machine."""
    dense = files["dense"]
    plain = _plain(reference, dense) if quantize else None
    tolerances = verification.tolerances(reference.outputs, quantize, dense.model, plain)
    others = [
        (
            other,
            verification.tolerances(other.outputs, quantize, dense.model, _plain(other, dense) if quantize else None),
        )
        for other in reference.others
    ]
    tried = []
    for file in sorted(files.values(), key=lambda file: file.candidate.bytes):
        measured = None
        if file.path is not None:
            checks, measured = check(reference, file, dense, tolerances, machine)
            for other, accepted in others:
                if all(check.passed for check in checks):
                    checks += verification.resized(other, file.path, accepted)
            file.candidate = dataclasses.replace(file.candidate, checks=tuple(checks))
        if file.candidate.passed:
            return file, measured
        tried.append(file.candidate.result)
    hint = ""
    if quantize == "int8" and any(check.error for check in dense.candidate.checks):
        hint = " What int8 cannot run, quantize='dynamic' may."
    elif quantize == "int8":
        hint = " Is representative_data typical?"
    elif reference.others:
        hint = " With fixed sizes it may be: input_shapes."
    elif machine is not None and MACHINES[machine].BATCH_SIZE:
        hint = " Such files take fixed batches: does a layer compute across the samples of a batch?"
    raise ExportError(
        f"No LiteRT file of the model '{model.name}' is right, and nothing was written to {str(path)!r}: "
        f"{'; '.join(dict.fromkeys(tried))}.{hint}"
    )


def _plain(reference, dense):
    """What the dense file makes of the inputs in the plainest runtime; None if it does not run."""
    try:
        return reference.run(dense.path, delegates=False)
    except Exception:  # whatever the runtime makes of it, `check` says so
        return None


def check(reference, file, dense, tolerances, machine):
    """A candidate's checks, and what was `Measured` of it on the machine.

    Tests wrap this function to see every file that was found right (`tests/conftest.py`).
    """
    checks, measured = [], None
    if not decode.is_decoded(file.model):
        try:
            checks = verification.check(reference, file.path, tolerances)
        except Exception as error:  # its result, not the export's: another candidate may do
            return [verification.failed("this machine", error)], None
    if machine is not None and all(check.passed for check in checks):
        there, measured = elsewhere.measure(machine, reference, file, dense, tolerances)
        checks.append(there)
    return checks, measured


def _latency(files, chosen):
    """Of the dense file, the sparse one, the compressed ones and the one that is chosen, as far as they run."""
    timed = {name: files[name] for name in ("dense", "sparse", "compressed, dense") if name in files}
    timed[chosen.candidate.name] = chosen
    invocations = {}
    for name, file in timed.items():
        if file.path is None:
            continue
        try:
            invocations[name] = here.invocation(file.path)
        except (RuntimeError, ValueError):
            if file is chosen:
                raise
    return tuple(in_turns(invocations, seconds=0.3))


def _batch_size(model, machine, batch_size):
    """The batch size that files are written for; None: any."""
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size must be None or an integer of at least 1; received {batch_size!r}.")
    own = model.inputs[0].shape[0]
    if own is not None and batch_size not in (None, own):
        raise ValueError(f"The model '{model.name}' takes batches of {own}; received batch_size={batch_size}.")
    if batch_size is None and machine is not None and MACHINES[machine].BATCH_SIZE:
        return own or MACHINES[machine].BATCH_SIZE
    return batch_size


def _check_header(path, machine):
    if machine != "micro":
        raise ValueError(f"header is for microcontrollers: it needs machine='micro'; received machine={machine!r}.")
    check_path(pathlib.Path(path), ".h", "header")
    check_name(_array_name(path))


def _array_name(path):
    """An identifier of C after a header's file name."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", pathlib.Path(path).stem)
    return name if name[:1].isalpha() else f"model_{name}"


def gzip_bytes(path):
    """The size of a file compressed by gzip."""
    return len(gzip.compress(path.read_bytes(), compresslevel=6))


def check_path(path, ending=".tflite", argument="path"):
    """Raise unless a file with this ending can be written to `path`, an argument of this name."""
    if path.suffix != ending:
        raise ValueError(f"{argument} must end in {ending!r}; received {str(path)!r}.")
    if path.is_dir():
        raise ValueError(f"{argument} must name a file; {str(path)!r} is a directory.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The directory {str(path.parent)!r} does not exist; create it first.")


def checked(model, input_shapes=None, machine=None):
    """The model on inputs of these shapes, if it can be exported, for a machine."""
    _keras.check_model("export", model)
    if not getattr(model, "inputs", None):
        raise ValueError(
            f"export() needs a Sequential or Functional model that is built; received {type(model).__name__} "
            f"'{model.name}' without symbolic inputs. Export what keras_rda.compress(model) makes of it, or wrap it: "
            "keras.Model(inputs, model(inputs)) with inputs = keras.Input(shape)."
        )
    model = signature.sized(model, input_shapes)
    feeds.check(model, machine if machine and MACHINES[machine].BATCH_SIZE else None)
    if wrong := sorted({f"{layer.name} ({layer.compute_dtype})" for layer in _layers(model) if _is_low(layer)}):
        wrong[3:] = [f"{len(wrong) - 3} more"] if len(wrong) > 3 else []
        raise ValueError(
            f"export() takes float32 models; these layers compute in another precision: {', '.join(wrong)}. Build the "
            "model under keras.config.set_dtype_policy('float32'), copy the weights with "
            "set_weights(get_weights()), and export that; quantize='float16' makes the file's weights float16."
        )
    if quantized := [layer.name for layer in _layers(model) if getattr(layer, "quantization_mode", None)]:
        raise ValueError(
            f"export() takes float32 models, and the layers {quantized} were quantised by model.quantize(): export the "
            "model from before that. With quantize='int8' or 'dynamic' the file is quantised."
        )
    check_finite(model)
    return model


def _layers(model):
    for layer in model.layers:
        yield from _layers(layer) if isinstance(layer, keras.Model) else (layer,)


def _is_low(layer):
    return "float" in layer.compute_dtype and layer.compute_dtype != "float32"
