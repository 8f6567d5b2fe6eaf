"""`compress`: analyse, cut, report."""

import dataclasses
import functools
import warnings
from typing import Literal, overload

import keras
import numpy as np

from keras_rda import _keras, checks
from keras_rda.compression import classes, graph, rules, surgery, tracing
from keras_rda.compression.analysis import Analysis
from keras_rda.compression.report import CompressionReport, make_report
from keras_rda.kernels import check_finite, is_finite
from keras_rda.output import one_line


def is_supported(model):
    """Whether `compress` can read the model as a graph."""
    return graph.as_functional(model) is not None


@overload
def compress(
    model: keras.Model, fold_batch_norm: bool = False, report: Literal[False] = False, multiple_of: int = 1
) -> keras.Model: ...


@overload
def compress(
    model: keras.Model, fold_batch_norm: bool = False, *, report: Literal[True], multiple_of: int = 1
) -> tuple[keras.Model, CompressionReport]: ...


def compress(
    model: keras.Model, fold_batch_norm: bool = False, report: bool = False, multiple_of: int = 1
) -> keras.Model | tuple[keras.Model, CompressionReport]:
    """Return an ordinary Keras model with fewer channels and the same outputs.

    Channels whose weights are zero, channels whose value is a constant that their readers' biases take over exactly,
    and channels that nobody reads are removed, together with all that is tied to them (additions, depthwise and grouped
    convolutions, concatenations, Flatten before Dense, squeeze-and-excite, heads of attention, shared layers), to a
    fixed point. It does not matter who put the zeros there. Scattered zeros stay in the smaller kernels: `export` is
    for them.

    The outputs are the same when the model predicts, up to float32 rounding. Nested models, and layers made of layers
    that can be read as graphs, come out unrolled; inputs, outputs and their names stay, and so do the names of layers.
    Channels do not cross a layer that is not known (`CompressionReport.notes`).

    Args:
        model: A built model. It is not changed. Sequential and Functional ones have a graph; a subclassed one, and
            layers made of layers, are read by what they do with symbolic tensors, if they compute the same on numbers.
        fold_batch_norm: Also multiply every BatchNormalization into the convolution or dense layer directly before it.
            For inference: what is folded cannot be trained further as batch normalisation.
        report: Also return what became of each layer.
        multiple_of: Keep numbers of channels at multiples of this: as many as are missing stay as placeholders (weights
            of zero that nobody reads), the same in all layers tied to one another. Where the next multiple is more than
            a layer had, it stays as it was. In attention, heads times the units of a head are kept at multiples. 8 is
            for browsers: convolutions with other counts can be many times slower in LiteRT.js.

    Returns:
        The smaller `keras.Model`, not compiled; with `report=True` the pair (model, `CompressionReport`).

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: `model` is not built, or subclassed and cannot be read as a graph; its weights are not finite; or
            `multiple_of` is no positive integer.
    """
    _keras.check_model("compress", model)
    functional = graph.as_functional(model)
    if functional is None:
        raise ValueError(f"compress() must read the model as a graph; {graph.without(model)}")
    if not checks.is_positive_integer(multiple_of):
        raise ValueError(f"multiple_of must be a positive integer, such as 8; received {multiple_of!r}.")
    check_finite(model)  # zero times infinity is NaN: channels of zeros could not go
    flat = rules.flatten(functional)
    if flat.calls and flat.calls[0].layer is model:
        name, why = f"{type(model).__name__} '{model.name}'", flat.calls[0].opaque
        raise ValueError(
            f"compress() must read the model as a graph, and {name} {why}. "
            "Build the same network with keras.Model(inputs, outputs) from the layers it holds."
        )
    try:
        smaller, make = _built(functional, flat, fold_batch_norm, multiple_of)
        notes: tuple[str, ...] = ()
    except Exception as error:  # names that occur twice, layers that take no symbolic tensors: whatever is within
        if not flat.traced or functional is not model:
            raise
        smaller, make = _built(functional, rules.flatten(functional, trace=False), fold_batch_norm, multiple_of)
        notes = (
            f"Layers made of layers stay whole, as the model cannot be built from what is within: {one_line(error)}",
        )
    if not report:
        return smaller
    made = make()
    return smaller, dataclasses.replace(made, notes=(*made.notes, *notes))


def _built(functional, flat, fold_batch_norm, multiple_of):
    """The smaller model, and a function that makes its report."""
    analysis = _analyse(flat, multiple_of)
    with warnings.catch_warnings():
        # Layers are made from their configuration in this process, with the user's own functions put back.
        warnings.filterwarnings("ignore", "The object being serialized includes a `lambda`", UserWarning)
        smaller, made = surgery.build(functional, flat, analysis, fold_batch_norm)
    return smaller, functools.partial(make_report, flat, analysis, made, multiple_of)


def multiply_adds(model):
    """(before, after) of what a model multiplies and adds for one sample, as `compress` would leave it.

    None where that is not known of a layer, or the model has no graph or weights that are not finite.
    """
    flat = rules.flatten(model)
    if flat is None or not is_finite(model):
        return None
    analysis = _analyse(flat, 1)
    found = classes.describe(flat, analysis, analysis.root)
    if found.unknown:
        return None
    return found.multiply_adds(np.ones(found.number, bool)), found.multiply_adds(analysis.kept[: found.number])


def _analyse(flat, multiple_of):
    refused = []
    while True:
        analysis = _solved(flat, multiple_of, refused)
        wrong = []
        for call, channels in analysis.tried:
            (kept,) = np.nonzero(analysis.is_kept(channels.ids))
            if len(kept) < len(channels) and not tracing.does_each_alone(call, call.inputs[0], channels.axis, kept):
                wrong.append(call)
        if not wrong:
            return analysis
        refused += wrong


def _solved(flat, multiple_of, refused):
    analysis = Analysis(refused=refused)
    rules.read(analysis, flat)
    names = {id(call.layer): call.name for call in flat.calls}
    groups = []
    for key, use in analysis.uses.items():
        analysis.readers.extend(use.rule.readers(use, names[key]))
        groups.extend(use.rule.equal_groups(use))
    analysis.solve(groups, multiple_of)
    return analysis
