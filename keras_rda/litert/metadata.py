"""What a `ModelT` says of its quantisation and its batch size."""

import numpy as np

from keras_rda.litert import convert, flatbuffer

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


def batch_size(model):
    """The only batch size that a `ModelT` takes; None: any."""
    graph = model.subgraphs[0]
    for tensor in (graph.tensors[index] for index in graph.inputs):
        shape = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
        if shape is not None and len(shape):
            return int(shape[0]) if shape[0] > 0 else None
    return None
