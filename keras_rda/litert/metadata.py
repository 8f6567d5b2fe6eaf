"""What a `ModelT` says of its quantisation."""

import numpy as np

from keras_rda.litert import convert, flatbuffer
from keras_rda.litert.graph import graphs

_METADATA = b"keras_rda.quantize"


def mark(model, quantize):
    """Write into a `ModelT` how it is quantised: its zeros' neighbours may be stored in float32 all the same."""
    schema = flatbuffer.schema()
    data = np.frombuffer(quantize.encode(), np.uint8)
    model.buffers.append(schema.BufferT(data=data))
    entry = schema.MetadataT(name=_METADATA, buffer=len(model.buffers) - 1)
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
