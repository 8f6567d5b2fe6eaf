"""`shrink`: encode the zeros of any LiteRT file, compare with that file, and only then put the smaller one in place."""

import dataclasses
import pathlib
import tempfile

import numpy as np

from keras_rda import output
from keras_rda.litert import appended, candidates, encode, flatbuffer, metadata, repair, routes, weights, xnnpack
from keras_rda.litert.candidates import ExportError
from keras_rda.litert.elsewhere import Measured
from keras_rda.litert.exporting import check_path, gzip_bytes
from keras_rda.litert.graph import operator_number, schema
from keras_rda.litert.latency import in_turns
from keras_rda.litert.machines import check_machine, here
from keras_rda.litert.original import Original
from keras_rda.litert.report import ExportReport
from keras_rda.types import Data, Machine, Path


def shrink(source: Path, target: Path, machine: Machine | None = None, data: Data | None = None) -> ExportReport:
    """Write a LiteRT file, whoever made it, as a smaller one that computes the same.

    Zeros are encoded tensor by tensor, where that saves bytes; what is stored sparse already is encoded anew; what
    XNNPACK's sparse kernels get wrong is mended. The result is compared with the source itself: each signature, with a
    batch of 1 and, where its size is free, of 2, on random inputs and on `data`, with the default delegate and without.
    The outputs have to be the same bit for bit; where sparse kernels sum in another order, up to float32 rounding.
    Metadata and associated files stay as they are, and tensors keep their numbers.

    Args:
        source: The file.
        target: Where to write the smaller one, ending in `.tflite`; its directory must exist. What is there before
            stays until then.
        machine: `"aarch64"` or `"wasm"`: run both files there too, on the same inputs, and time them on the first; see
            `export`.
        data: Typical inputs: an array, or a dict of input name → array, with the samples first; or an iterable of such,
            of which the first is used.

    Returns:
        `ExportReport`, in which the source takes the place of the dense file and of Keras.

    Raises:
        ExportError: no smaller file computes the same.
        FileNotFoundError, ValueError: there is no such file, it is no LiteRT file or damaged, it cannot be made
            smaller, it does not run here, its weights lie outside the FlatBuffer (models of more than 2 GB), or
            `target` or `data` are not usable.
        RuntimeError: `machine` is not set up.
        OSError: the directory of `target` cannot be written to, or the disk is full.
    """
    source, target = pathlib.Path(source), pathlib.Path(target)
    check_path(target)
    if machine == "micro":
        raise ValueError("shrink() encodes zeros for DENSIFY, which TFLite Micro lacks: export(…, machine='micro').")
    if machine is not None:
        check_machine(machine)
    model, content = here.read(source), source.read_bytes()
    if target.exists() and target.samefile(source):
        raise ValueError(f"The source {str(source)!r} is the target: name another file.")
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as directory:
        files = [candidates.write(pathlib.Path(directory), *smaller) for smaller in make(model, content, machine)]
        if not files:
            raise ValueError(
                f"{str(source)!r} cannot be made smaller and nothing was written: its zeros are too few, or take the "
                "fewest bytes already. Use it as it is."
            )
        original = Original(source, model, data)
        file, ratio = _choose(source, target, files, original, machine)
        tensors = [tensor for tensor in file.tensors if tensor.dense_bytes]
        entries = [int(np.prod(tensor.shape)) for tensor in tensors]
        report = ExportReport(
            path=str(target),
            chosen=file.candidate,
            candidates=tuple(file.candidate for file in files),
            quantize=metadata.quantization(model),
            bytes=file.candidate.bytes,
            gzip_bytes=gzip_bytes(file.path),
            dense_bytes=len(content),
            dense_gzip_bytes=gzip_bytes(source),
            sparsity=float(np.average([tensor.zeros for tensor in tensors], weights=entries)) if tensors else 0.0,
            tensors=tuple(file.tensors),
            latency=_latency(source, file.path),
            sparse_kernels=file.sparse_kernels,
            not_faster_here=xnnpack.here() or "",
            measured=machine and Measured(machine, ratio, baseline="source"),
            source=str(source),
        )
        output.move(file.path, target)
    return report


def make(model, content, machine=None):
    """Every way to write a file that was checked, a `ModelT` and its content, smaller or mended, the smallest first.

    Returns:
        A list of tuples, the arguments of `candidates.write` after the first.
    """
    body, archive = appended.split(content, model)
    if model.buffers[0].data is not None and len(model.buffers[0].data):
        raise ValueError("The file's first buffer, which has to be empty, holds data: it cannot be rewritten.")
    made, dequantizes = {}, schema().BuiltinOperator.DEQUANTIZE in map(operator_number, model.operatorCodes)
    for strategy in routes.UNCHANGED[: 1 + dequantizes]:  # they differ in what is dequantised only
        try:
            sparse, tensors = encode.encode(model, strategy)
            kernels, notes = repair.mend(sparse, machine)
            work = weights.multiply_adds(model)
        except (AttributeError, IndexError, KeyError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"The LiteRT file's operators are damaged: {error!r}.") from error
        smaller = appended.join(flatbuffer.pack(sparse), archive, len(body))
        if len(smaller) < len(content) or notes:
            name = strategy.replace("same arithmetic", "sparse")
            made.setdefault(smaller, (name, smaller, notes, sparse, weights.in_order(tensors, work), kernels))
    return sorted(made.values(), key=lambda arguments: len(arguments[1]))


def gain(model, content):
    """The bytes of what `shrink` would try first of a file that was checked, see `make`; None if there is nothing."""
    return next((len(smaller) for _, smaller, *_ in make(model, content)), None)


def _choose(source, target, files, original, machine):
    """The first of the files that is right, and on the machine the time of the source over its own."""
    tried = []
    for file in files:
        checks, ratio = original.check(file.path), None
        if machine is not None and all(check.passed for check in checks):
            check, ratio = original.check_on(machine, file.model)
            checks.append(check)
        notes = (*file.candidate.notes, *original.notes)
        file.candidate = dataclasses.replace(file.candidate, checks=tuple(checks), notes=notes)
        if file.candidate.passed:
            return file, ratio
        tried.append(file.candidate.result)
    raise ExportError(
        f"No smaller file computes what {str(source)!r} does, and nothing was written to {str(target)!r}: "
        f"{'; '.join(dict.fromkeys(tried))}."
    )


def _latency(source, smaller):
    """Of the source and the smaller file; nothing if they do not run with a batch of one."""
    try:
        invocations = {"source": here.invocation(source), "smaller": here.invocation(smaller)}
    except (RuntimeError, ValueError):
        return ()
    return tuple(in_turns(invocations, seconds=0.3))
