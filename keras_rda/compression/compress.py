"""`compress`: analyse, cut, report."""

import keras

from keras_rda.compression import graph, rules, surgery
from keras_rda.compression.analysis import Analysis
from keras_rda.compression.report import make_report


def is_supported(model):
    """Whether `compress` can read the model's graph."""
    return graph.functional(model) is not None


def compress(model, fold_batch_norm=False, report=False):
    """Return an ordinary Keras model with fewer channels and the same outputs.

    Channels whose weights are zero, channels whose value is a constant that their readers' biases take over exactly,
    and channels that nobody reads are removed, together with all that is tied to them (additions, depthwise and grouped
    convolutions, concatenations, Flatten before Dense, squeeze-and-excite, shared layers), to a fixed point. It does
    not matter who put the zeros there. Scattered zeros stay in the smaller kernels: `export` is for them.

    The outputs are the same when the model predicts, up to float32 rounding. Nested models come out unrolled; inputs,
    outputs and names of layers stay. Channels do not cross a layer that is not known (`CompressionReport.notes`).

    Args:
        model: A built Sequential or Functional model. It is not changed.
        fold_batch_norm: Also multiply every BatchNormalization into the convolution or dense layer directly before it.
            For inference: what is folded cannot be trained further as batch normalisation.
        report: Also return what became of each layer.

    Returns:
        The smaller `keras.Model`, not compiled; with `report=True` the pair (model, `CompressionReport`).

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: `model` has no graph: it is subclassed, or not built.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"compress() takes a keras.Model; received {type(model).__name__}.")
    if not is_supported(model):
        raise ValueError(
            f"compress() needs the graph of a Sequential or Functional model that is built; received "
            f"{type(model).__name__} '{model.name}', whose layers are called in Python. Build the same network with "
            "keras.Model(inputs, outputs) from the layers that it holds, and compress that."
        )
    flat = graph.read(model)
    analysis = Analysis()
    for tensor in flat.inputs:
        analysis.channels[tensor] = rules.opaque(analysis, tensor, "an input of the model")
    for call in flat.calls:
        rules.forward(analysis, call)
    for tensor in flat.outputs:
        analysis.fix(analysis.channels[tensor].ids, "an output of the model")
    names = {id(call.layer): call.name for call in flat.calls}
    groups = []
    for key, use in analysis.uses.items():
        analysis.readers.extend(use.rule.readers(use, names[key]))
        groups.extend(use.rule.equal_groups(use))
    analysis.solve(groups)
    smaller, made = surgery.build(model, flat, analysis, fold_batch_norm)
    return (smaller, make_report(flat, analysis, made)) if report else smaller
