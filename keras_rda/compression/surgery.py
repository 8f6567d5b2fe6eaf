"""Build the smaller model: the same calls, layers with fewer channels, sliced weights."""

import collections

import keras
import numpy as np

from keras_rda.compression import tracing
from keras_rda.compression.graph import functional
from keras_rda.compression.per_channel import normalization
from keras_rda.compression.rule import Cut


def build(model, flat, analysis, fold_batch_norm):
    """Return (new model, {id of a layer: its new layer}).

    What had to be shared is added to `analysis.notes`.
    """
    folds = _foldable(flat, analysis) if fold_batch_norm else {}
    folded = {id(call.layer) for calls in folds.values() for call in calls}
    made, values, tensors = {}, {}, {}
    for symbolic, tensor in zip(model.inputs, flat.inputs, strict=True):
        tensors[tensor] = keras.Input(
            batch_shape=symbolic.shape,
            dtype=symbolic.dtype,
            sparse=symbolic.sparse,
            name=symbolic.name,
            optional=tensor.optional,
        )
    inputs = [tensors[tensor] for tensor in flat.inputs]
    for call in flat.calls:
        key = id(call.layer)
        if key in folded:
            tensors[call.outputs[0]] = tensors[call.inputs[0]]
            continue
        if key not in made:
            made[key], values[key] = _remake(call, analysis, folds.get(key, ()))
        args, kwargs = call.fill(tensors.__getitem__)
        outputs = made[key](*args, **kwargs)
        _build_activation(call.layer, made[key], keras.tree.flatten(outputs)[0].shape)
        tensors.update(zip(call.outputs, keras.tree.flatten(outputs), strict=True))
    for key, arrays in values.items():
        if arrays:
            made[key].set_weights(arrays)
        if hasattr(made[key], "finalize_state"):  # preprocessing layers compute from their weights
            made[key].finalize_state()
    original = functional(model)
    taken = {layer.name for layer in made.values()} | {tensor.name for tensor in model.inputs}
    outputs = _named([tensors[tensor] for tensor in flat.outputs], original.output_names, taken)
    smaller = keras.Model(
        keras.tree.pack_sequence_as(original.input, inputs),
        keras.tree.pack_sequence_as(original.output, outputs),
        name=model.name,
    )
    return smaller, made


def _build_activation(layer, new, shape):
    """Create the weights of an activation that is a layer, which Keras does when data first pass through it."""
    activation = getattr(layer, "activation", None)
    if isinstance(activation, keras.layers.Layer) and activation.built and not new.activation.built:
        built = activation.get_build_config()["input_shape"]
        new.activation.build((*built[:-1], shape[-1]))


def _named(outputs, names, taken):
    """The outputs under the names that they had; only those of nested models lost theirs, to the layer inside.

    `taken` are the names of the new model's layers and inputs: an output may be an input that is passed through.
    """
    return [
        tensor if name in taken or names.count(name) > 1 else keras.layers.Identity(name=name)(tensor)
        for tensor, name in zip(outputs, names, strict=True)
    ]


def _remake(call, analysis, folds):
    """The layer with its channels cut, not yet built, and its weights (None: nothing to set)."""
    layer = call.layer
    use = analysis.uses.get(id(layer))
    if use is None or id(layer) in analysis.walled:
        return _copy(call, analysis)
    config, owner = {**layer.get_config(), "name": call.name}, use.rule.owner
    # Initialisers are replaced by a quick one that fits any shape (the weights are set below); what is the user's own
    # code may have no configuration. The layer gets the originals once it is made.
    initializers = [key for key in config if key.endswith("_initializer") and hasattr(owner(layer, key), key)]
    kept = [
        key
        for key in config
        if key.endswith(("activation", "_regularizer", "_constraint")) and hasattr(owner(layer, key), key)
    ]
    config.update(dict.fromkeys(initializers, "zeros") | dict.fromkeys(kept))
    cut = Cut(
        keep_inputs=analysis.is_kept(use.inputs.ids),
        need_inputs=analysis.is_needed(use.inputs.ids),
        keep_outputs=analysis.is_kept(use.outputs.ids),
        need_outputs=analysis.is_needed(use.outputs.ids),
    )
    config = use.rule.config(config, use, cut)
    cut.use_bias = use.rule.has_bias(config)
    arrays = use.rule.weights(use, cut)
    for fold in folds:
        scale, offset = (value[cut.keep_outputs] for value in normalization(fold.layer))
        arrays = use.rule.scaled(use, arrays, scale)
        bias = arrays.pop() * scale if cut.use_bias else 0
        arrays.append(np.where(cut.need_outputs[cut.keep_outputs], bias + offset, 0))
        config, cut.use_bias = use.rule.with_bias(config), True
    new = type(layer).from_config(config)
    for key in (*initializers, *kept):
        value = getattr(owner(layer, key), key)
        if isinstance(value, keras.layers.Layer):  # an activation, which is not shared
            arrays += [array[..., cut.keep_outputs] if array.shape[-1] > 1 else array for array in value.get_weights()]
            value = type(value).from_config(value.get_config())
        setattr(owner(new, key), key, value)
    return new, arrays


def _copy(call, analysis):
    """A layer that is not cut: made anew from its configuration or, where that does not give the same layer, shared."""
    layer = call.layer
    try:
        new = type(layer).from_config({**layer.get_config(), "name": call.name})
        if not isinstance(layer, keras.layers.Layer):
            return new, None
        # Some layers keep data beside their weights, as a vocabulary, and others' configuration may not tell all. What
        # `quantize` made of a layer may have its weights in another order than a new one.
        unusual = hasattr(layer, "save_assets") or getattr(layer, "quantization_mode", None)
        if not unusual and (tracing.is_of_keras(layer) or _is_equal(call, new)):
            return new, layer.get_weights()
    except Exception:  # whatever a layer of the user's own raises when it is made or called
        pass
    if isinstance(layer, keras.layers.Layer):
        analysis.notes.append(
            f"{type(layer).__name__} '{call.name}': used by both models; its configuration does not make it anew."
        )
        alone = call.inputs == list(call.args) and len(call.args) == 1 and call.kwargs.keys() <= {"training"}
        if call.name != layer.name and alone:  # another layer has its name
            return keras.Sequential([layer], name=call.name), None
    return layer, None


def _is_equal(call, new):
    """Whether `new`, given the weights, computes what the call's layer does."""
    random = np.random.default_rng(0)

    def draw(tensor):
        shape = [2 if size is None else size for size in tensor.shape]
        values = random.normal(size=shape) if "float" in tensor.dtype else np.zeros(shape)
        return keras.ops.convert_to_tensor(values.astype(tensor.dtype))

    args, kwargs = call.fill(draw)
    new(*args, **kwargs)
    new.set_weights(call.layer.get_weights())
    with keras.StatelessScope():  # a state that the user's layer keeps stays as it is
        both = [keras.tree.flatten(layer(*args, **kwargs)) for layer in (call.layer, new)]
    arrays = ([keras.ops.convert_to_numpy(output) for output in outputs] for outputs in both)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*arrays, strict=True))


def _foldable(flat, analysis):
    """{id of a layer: the calls of BatchNormalization after it, each of which alone reads what is before it}."""
    readers = collections.Counter(flat.outputs)
    uses = collections.Counter(id(call.layer) for call in flat.calls)
    producers = {}  # tensor → call; behind a normalisation that is folded, the call that it is folded into
    for call in flat.calls:
        readers.update(call.inputs)
        producers.update(dict.fromkeys(call.outputs, call))
    folds = {}
    for call in flat.calls:
        layer = call.layer
        if type(layer) is not keras.layers.BatchNormalization or id(layer) not in analysis.uses or uses[id(layer)] > 1:
            continue
        producer = producers.get(call.inputs[0])
        before = producer and analysis.uses.get(id(producer.layer))
        if (
            before is not None
            and before.rule.is_scalable(producer.layer)
            and uses[id(producer.layer)] == readers[call.inputs[0]] == 1
            and not {id(layer), id(producer.layer)} & analysis.walled.keys()
            and producer.layer.activation is keras.activations.linear
            and producer.layer.dtype_policy == layer.dtype_policy
        ):
            folds.setdefault(id(producer.layer), []).append(call)
            producers[call.outputs[0]] = producer
    return folds
