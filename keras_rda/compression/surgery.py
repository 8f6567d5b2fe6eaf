"""Build the smaller model: the same calls, layers with fewer channels, sliced weights."""

import collections
import dataclasses

import keras
import numpy as np

from keras_rda.compression import rules
from keras_rda.compression.graph import functional


@dataclasses.dataclass
class Cut:
    """What becomes of the channels of one layer; all bool arrays.

    A channel that is kept but not needed is a placeholder: its weights are zero, and nobody reads it. A channel that is
    not needed but has a known constant adds it to the biases of its readers.
    """

    keep_inputs: np.ndarray
    need_inputs: np.ndarray
    keep_outputs: np.ndarray
    need_outputs: np.ndarray
    use_bias: bool = False


def build(model, graph, analysis, fold_batch_norm):
    """Return (the new model, {id of a layer: its new layer}); what had to be shared is added to `analysis.notes`."""
    folds = _foldable(graph, analysis) if fold_batch_norm else {}
    folded = {id(call.layer) for call in folds.values()}
    made, values, tensors = {}, {}, {}
    for symbolic, tensor in zip(model.inputs, graph.inputs, strict=True):
        tensors[tensor] = keras.Input(
            batch_shape=symbolic.shape, dtype=symbolic.dtype, sparse=symbolic.sparse, name=symbolic.name
        )
    inputs = [tensors[tensor] for tensor in graph.inputs]
    for call in graph.calls:
        key = id(call.layer)
        if key in folded:
            tensors[call.outputs[0]] = tensors[call.inputs[0]]
            continue
        if key not in made:
            made[key], values[key] = _remake(call, analysis, folds.get(key))
        args, kwargs = call.fill(tensors.__getitem__)
        outputs = made[key](*args, **kwargs)
        tensors.update(zip(call.outputs, keras.tree.flatten(outputs), strict=True))
    for key, arrays in values.items():
        if arrays:
            made[key].set_weights(arrays)
        if hasattr(made[key], "finalize_state"):  # preprocessing layers compute from their weights
            made[key].finalize_state()
    outputs = [tensors[tensor] for tensor in graph.outputs]
    original = functional(model)
    smaller = keras.Model(
        keras.tree.pack_sequence_as(original.input, inputs),
        keras.tree.pack_sequence_as(original.output, outputs),
        name=model.name,
    )
    return smaller, made


def _remake(call, analysis, fold):
    """The layer with its channels cut, not yet built, and its weights (None: nothing to set)."""
    layer = call.layer
    if not isinstance(layer, keras.layers.Layer):
        return type(layer).from_config(layer.get_config()), None
    use = analysis.uses.get(id(layer))
    if use is None:
        return _copy(call, analysis)
    config = {**layer.get_config(), "name": call.name}
    initializers = [key for key in config if key.endswith("_initializer") and hasattr(layer, key)]
    config.update(dict.fromkeys(initializers, "zeros"))  # quick, and fit for any shape; the weights are set below
    cut = Cut(
        keep_inputs=analysis.is_kept(use.inputs.ids),
        need_inputs=analysis.is_needed(use.inputs.ids),
        keep_outputs=analysis.is_kept(use.outputs.ids),
        need_outputs=analysis.is_needed(use.outputs.ids),
    )
    config = use.rule.config(config, use, cut)
    cut.use_bias = bool(config.get("use_bias"))
    arrays = use.rule.weights(use, cut)
    if fold is not None:
        scale, offset = (value[cut.keep_outputs] for value in rules.normalization(fold.layer))
        arrays = use.rule.scaled(arrays, scale)
        bias = arrays.pop() * scale if cut.use_bias else 0
        arrays.append(np.where(cut.need_outputs[cut.keep_outputs], bias + offset, 0))
        config["use_bias"] = True
    new = type(layer).from_config(config)
    for key in initializers:
        setattr(new, key, getattr(layer, key))
    return new, arrays


def _copy(call, analysis):
    """A layer that is not cut: made anew from its configuration or, where it has none that works, shared."""
    layer = call.layer
    if not hasattr(layer, "save_assets"):
        try:
            return type(layer).from_config({**layer.get_config(), "name": call.name}), layer.get_weights()
        except (NotImplementedError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
    else:
        reason = "it keeps data beside its weights"
    analysis.notes.append(
        f"{type(layer).__name__} '{call.name}': used by both models, not copied; its configuration does not make it "
        f"anew ({reason})."
    )
    return layer, None


def _foldable(graph, analysis):
    """{id of a layer: the call of the BatchNormalization that directly follows it and nothing else reads from it}."""
    readers, calls = collections.Counter(graph.outputs), collections.Counter()
    producers = {}
    for call in graph.calls:
        readers.update(call.inputs)
        calls[id(call.layer)] += 1
        producers.update(dict.fromkeys(call.outputs, call))
    folds = {}
    for call in graph.calls:
        use = analysis.uses.get(id(call.layer))
        if use is None or type(call.layer) is not keras.layers.BatchNormalization or calls[id(call.layer)] > 1:
            continue
        (tensor,) = call.inputs
        producer = producers.get(tensor)
        before = producer and analysis.uses.get(id(producer.layer))
        if (
            before is not None
            and isinstance(before.rule, rules.Linear | rules.Depthwise)
            and calls[id(producer.layer)] == readers[tensor] == 1
            and producer.layer.activation is keras.activations.linear
        ):
            folds[id(producer.layer)] = call
    return folds
