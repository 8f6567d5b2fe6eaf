"""What a `ModelT` says of its quantisation and its batch size."""

import numpy as np

from keras_rda.litert import convert
from keras_rda.litert.calls import entries
from keras_rda.litert.graph import add_buffer, graphs, schema

_METADATA = b"keras_rda.quantize"


def mark(model, quantize):
    """Write into a `ModelT` how it is quantised: its zeros' neighbours may be stored in float32 all the same."""
    buffer = add_buffer(model, np.frombuffer(quantize.encode(), np.uint8))
    entry = schema().MetadataT(name=_METADATA, buffer=buffer)
    model.metadata = [*(model.metadata or []), entry]


def quantization(model):
    """How a `ModelT` is quantised: one of `convert.QUANTIZATIONS`; None for float32."""
    for entry in model.metadata or []:
        if entry.name == _METADATA:
            data = model.buffers[entry.buffer].data
            quantize = "" if data is None else data.tobytes().decode(errors="replace")
            if quantize not in convert.QUANTIZATIONS:
                raise ValueError(f"The file says that it is quantised as {quantize[:20]!r}: it is corrupt.")
            return quantize
    subgraphs = graphs(model)
    stored = {
        graph.type(index)
        for graph in subgraphs
        for index in range(len(graph.tensors))
        if graph.is_stored(index) and len(graph.shape(index)) > 1
    }
    if "INT8" not in stored:
        return "float16" if "FLOAT16" in stored else None
    computed = (graph.type(index) for graph in subgraphs for index in graph.producers if graph.constant(index) is None)
    return "int8" if "INT8" in computed else "dynamic"


def output_steps(model):
    """Of a `ModelT`: dict of output name → the step of its int8 values, for outputs that are dequantised at the end."""
    entry, steps = entries(model)[0], {}
    graph = entry.graph
    for name, index in entry.outputs.items():
        producer = graph.producers.get(index)
        if producer is None or graph.kind(producer) != "DEQUANTIZE":
            continue
        quantization = graph.tensors[producer.inputs[0]].quantization
        if quantization is not None and quantization.scale is not None:
            steps[name] = float(max(quantization.scale))
    return steps


def batch_size(model):
    """The only batch size that a `ModelT` takes; None: any."""
    entry = entries(model)[0]
    sizes = [shape[0] for shape in map(entry.shape, entry.inputs) if shape]
    return sizes[0] if sizes and sizes[0] > 0 else None
