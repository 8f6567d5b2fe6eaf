"""Every way to write a model as a LiteRT file: with and without its dead channels, dense and sparse."""

import dataclasses
import functools
import pathlib
import re
import warnings

from keras_rda import compression
from keras_rda.litert import convert, decode, encode, feeds, flatbuffer, half, metadata, repair, weights, xnnpack
from keras_rda.litert.graph import graphs
from keras_rda.litert.layer_names import keras_paths, shortened
from keras_rda.litert.machines import MACHINES, micro
from keras_rda.litert.report import Candidate
from keras_rda.litert.verification import failed
from keras_rda.output import one_line


class ExportError(RuntimeError):
    """A file could not be made, or was wrong; nothing was left at the path."""


@dataclasses.dataclass
class File:
    """A candidate with its content, which is parsed once.

    Attributes:
        candidate: What the report says of it.
        path: Where it is; None if it could not be made.
        model: Its `ModelT`.
        tensors: How each weight tensor is stored.
        sparse_kernels: The `SparseKernels` of a sparse file.
        twin: The `File` of the same network with its weights dense; itself if it is that.
    """

    candidate: Candidate
    path: pathlib.Path | None = None
    model: object = None
    tensors: list = dataclasses.field(default_factory=list)
    sparse_kernels: xnnpack.SparseKernels | None = None
    twin: "File | None" = None


def make(model, quantize, samples, directory, batch_size=None, machine=None, sparse=True):
    """Every way to write the model: dict of name → `File`, with `"dense"` among them.

    What fails on the way to one of them is its result; only without the dense file there is none to measure others by.

    Args:
        model, quantize, machine, sparse: As for `export`.
        samples: What `feeds.given` makes of `representative_data`.
        directory: Where to write the files.
        batch_size: The only one that they take; None: any.
    """
    files, multiple_of = {}, MACHINES[machine].MULTIPLE_OF if machine else 1
    for prefix, source in (("", model), ("compressed, ", _compressed(model, multiple_of))):
        if source is None:
            continue
        try:
            dense, graph, notes = _converted(source, quantize, samples, batch_size)
        except Exception as error:
            if prefix:
                files[f"{prefix}dense"] = _failed(f"{prefix}dense", "the converter", error)
                continue
            sizes = " With fixed sizes it may do: export(…, input_shapes=…)." if feeds.is_open(model) else ""
            raise ExportError(
                f"The converter could not express the model '{model.name}' in LiteRT's builtin operators: "
                f"{_cause(error)}{sizes}"
            ) from error
        if machine == "micro" and (missing := micro.missing(graph)):
            raise ExportError(
                f"TFLite Micro lacks operators of the model '{model.name}': {_named(graph, missing)}. Build it without "
                "the layers that they come from; the firmware may do their work."
            )
        if prefix and multiple_of > 1:
            notes.append(f"Numbers of channels stay at multiples of {multiple_of} (compress): others are slow there.")
        work, paths = weights.multiply_adds(graph), keras_paths(source, graph)

        def described(tensors, work=work, paths=paths):
            tensors = weights.in_order(tensors, work)
            return [dataclasses.replace(tensor, keras_path=paths.get(tensor.name, "")) for tensor in tensors]

        written, tensors, own = set(), described(weights.stored(graph)), {}
        for name, encoded in _encodings(quantize, machine, sparse).items():
            name = prefix + name
            try:
                smaller, tensors = encoded(graph)
                tensors = described(tensors)
                if all(tensor.encoding == "dense" for tensor in tensors):
                    continue
                kernels, repairs = (None, []) if machine == "micro" else repair.mend(smaller, machine)
                if quantize:
                    metadata.mark(smaller, quantize)
                content = flatbuffer.pack(smaller)
            except Exception as error:
                files[name] = _failed(name, "the encoding", error)
                continue
            if content not in written:
                written.add(content)
                own[name] = write(directory, name, content, notes + repairs, smaller, tensors, kernels)
        everything_dense = [dataclasses.replace(t, encoding="dense", bytes=t.dense_bytes) for t in tensors]
        if machine == "micro":
            graph = decode.lean(graph)
            dense = flatbuffer.pack(graph)
        twin = write(directory, f"{prefix}dense", dense, notes, graph, everything_dense)
        own[f"{prefix}dense"] = twin
        for file in own.values():
            file.twin = twin
        files |= own
    return files


def _encodings(quantize, machine, sparse):
    """The ways to encode zeros: name → function of a dense `ModelT`, which returns a new one and `TensorEncoding`s."""
    if not sparse:
        return {}
    if machine == "micro":
        return {"sparse": decode.encode}
    # The strategies differ only where weights are quantised.
    return {
        "sparse" if number == 0 else f"sparse, {strategy}": functools.partial(encode.encode, strategy=strategy)
        for number, strategy in enumerate(encode.STRATEGIES if quantize else encode.STRATEGIES[:1])
    }


def _converted(model, quantize, samples, batch_size):
    """A dense file: its content, its `ModelT`, and notes on what stays in float32."""
    content = convert.convert(model, quantize, samples, batch_size)
    graph, notes = flatbuffer.read(content), []
    if quantize == "float16" and half.is_suspect(graph):
        notes = half.restore(graph, flatbuffer.read(convert.convert(model, batch_size=batch_size)))
        content = flatbuffer.pack(graph) if notes else content
    return content, graph, notes


def _failed(name, what, error):
    return File(Candidate(name, 0, (failed(what, error),)))


def write(directory, name, content, notes, model, tensors, kernels=None):
    """Write a candidate's content into a folder; return its `File`."""
    path = directory / f"{name}.tflite"
    path.write_bytes(content)
    return File(Candidate(name, len(content), notes=tuple(notes)), path, model, tensors, kernels)


def _compressed(model, multiple_of):
    """The model without its dead channels; None if it has none, or none that can be removed."""
    if not compression.is_supported(model):
        return None
    try:
        smaller = compression.compress(model, multiple_of=multiple_of)
    except Exception as error:  # none is known; the file can be written without
        warnings.warn(f"Channels were not removed, as compress() failed: {one_line(error)}", stacklevel=4)
        return None
    return smaller if smaller.count_params() < model.count_params() else None


def _named(model, kinds):
    """Kinds of operators, each with the name of the first in a `ModelT`."""
    named = {}
    for graph in graphs(model):
        for operator in graph.operators:
            named.setdefault(micro.name(model, operator), shortened(graph.name(operator.outputs[0])))
    return ", ".join(f"{kind} '{named[kind]}'" for kind in kinds)


def _cause(error):
    """The converter's words in a line, without the trace of the graph."""
    operators = sorted(set(re.findall(r"'tf\.(\w+)' op", str(error))))
    if not operators:
        return one_line(error)
    advice = ""
    if any("TensorList" in name for name in operators):
        advice = " Recurrent layers need unroll=True."
    if "BitwiseAnd" in operators:  # by which Keras tells −0 from 0
        advice = " keras.ops.argmax and argmin do: end the model before them, and apply them to its outputs."
    return f"it needs TensorFlow's own {', '.join(operators)}.{advice}"
