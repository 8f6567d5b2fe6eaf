"""What this package relies on in Keras beyond its public names, and checks that it is there and does what it did.

A hook that Keras renames would no longer be called, and training would silently do something else.
"""

import contextlib
import functools
import os
import sys
import threading
import warnings

import keras

# Overridden by this package's optimizers, and called by Keras.
OPTIMIZER_HOOKS = (
    "_apply_weight_decay",
    "_backend_update_step",
    "_overwrite_model_variables_with_average_value",
    "_update_model_variables_moving_average",
    "add_variable_from_reference",
    "update_step",
)
# Called by this package's optimizers.
OPTIMIZER_METHODS = ("_get_current_learning_rate", "_get_variable_index", "_use_weight_decay")


def incompatible(what):
    """The error that something of Keras is not as it was; `what` completes the sentence."""
    return RuntimeError(
        f"keras_rda does not go with Keras {keras.__version__}: {what}. Install a newer keras_rda, or a Keras that it "
        "was tested with (see “Supported” in its README)."
    )


def check_model(function, model):
    """Raise a `TypeError` that says what to do if the argument of a function of that name is no Keras model."""
    if isinstance(model, keras.Model):
        return
    hint = ""
    if isinstance(model, (str, os.PathLike)):
        hint = " Load it first: keras.models.load_model(path)."
    elif any(kind.__module__.startswith("tf_keras") for kind in type(model).__mro__):
        hint = " It is one of Keras 2: save it as .h5, and load that with keras.models.load_model(path)."
    raise TypeError(f"{function}() takes a keras.Model; received {type(model).__name__}.{hint}")


def _private(owner, name, what=None):
    """What `owner`, an object of Keras, has under a private name; `what` is the owner in the error's words."""
    if not hasattr(owner, name):
        raise incompatible(f"{what or 'a ' + type(owner).__name__} has no {name}")
    return getattr(owner, name)


def functional(model):
    """The model that holds `model`'s graph; None if it has none: a subclassed model, or one that overrides `call`."""
    if isinstance(model, keras.Sequential):
        model = _private(model, "_functional", "a Sequential model")
    if type(model).__name__ == "Functional":
        _private(model, "_nodes_by_depth", "a functional model")
    if not hasattr(model, "_nodes_by_depth") or not type(model).call.__module__.startswith("keras."):
        return None
    return model


def levels(model):
    """The nodes of a `functional` model's graph in the order in which they can be computed, as lists of those that do
    not depend on one another."""
    by_depth = _private(model, "_nodes_by_depth", "a functional model")
    return [by_depth[depth] for depth in sorted(by_depth, reverse=True)]


def operation_of(tensor):
    """The operation that computes a symbolic tensor."""
    return _private(tensor, "_keras_history").operation


def flat_layers(layer):
    """A layer or model and all layers within: the sublayers of attention have no public list."""
    return list(_private(layer, "_flatten_layers")())


def has_all_variables(model):
    """Whether a model has its variables: it is built, or all layers within are, as those of a `Distiller` are before
    Keras builds it itself."""
    within = [layer for layer in flat_layers(model) if layer is not model]
    return model.built or (bool(within) and all(layer.built for layer in within))


def own_trainable_variables(layer):
    """The trainable variables of a layer without those of its sublayers."""
    return list(_private(layer, "_trainable_variables"))


def own_variables(layer):
    """All variables of a layer without those of its sublayers, and without the states of random numbers."""
    found = [*own_trainable_variables(layer), *_private(layer, "_non_trainable_variables")]
    return [variable for variable in found if not _is_seed(variable)]


def sublayers(layer):
    """The layers that a layer is made of."""
    return list(_private(layer, "_layers"))


def as_base(layer, base):
    """All that a layer has, as an object of `base`, a class that the layer's is derived from."""
    plain = object.__new__(base)  # without Keras' own __new__, which remembers arguments
    vars(plain).update(vars(layer))
    return plain


def added_layers(attention):
    """The names of what a layer of a class derived from `MultiHeadAttention` keeps layers under that this does not."""
    usual = keras.layers.MultiHeadAttention(1, 1, dropout=0.5)
    usual.build((1, 1, 1), (1, 1, 1))

    def held(layer):
        names = {**vars(layer), **vars(layer).get("_modules", {})}  # where torch has them
        return {name for name, value in names.items() if isinstance(value, keras.layers.Layer)}

    return held(attention) - held(usual)


def is_random(layer):
    """Whether a layer or one within draws random numbers in training, as its states of them tell."""
    return any(_is_seed(variable) for variable in layer.variables)


def draws(layer):
    """Whether a layer, and none within, draws random numbers, as its states of them tell."""
    within = {id(variable) for each in sublayers(layer) for variable in each.variables}
    return any(_is_seed(variable) and id(variable) not in within for variable in layer.variables)


def _is_seed(variable):
    return "seed_generator" in variable.path


@contextlib.contextmanager
def shapes_by_call(layer):
    """Let the layers within `layer` that override `call`, but not what tells the shape of its result, tell it by
    `call`: what they inherit may not know the arguments that they take. So does EinsumDense, whose configuration may
    have None where the size of the input is known."""
    changed = []
    for each in flat_layers(layer):
        order = type(each).__mro__
        defines = {
            name: next(place for place, kind in enumerate(order) if name in vars(kind))
            for name in ("call", "compute_output_shape", "compute_output_spec")
        }
        overrides = defines.pop("call") < min(defines.values())
        if each is not layer and (overrides or isinstance(each, keras.layers.EinsumDense)):
            by_call = functools.partial(keras.Operation.compute_output_spec, each)
            object.__setattr__(each, "compute_output_spec", by_call)
            changed.append(each)
    try:
        yield
    finally:
        for each in changed:
            object.__delattr__(each, "compute_output_spec")


@contextlib.contextmanager
def read_by_symbols(layer):
    """Let a layer be called with symbolic tensors inside where Keras stands in the way, and be then as it was."""
    with (
        nodes_restored(layer),
        names_told_apart(layer),
        shapes_by_call(layer),
        calls_without_nodes(layer),
        one_direction_after_the_other(layer),
    ):
        yield


@contextlib.contextmanager
def one_direction_after_the_other(layer):
    """Let a Bidirectional call its two layers: newer versions of Keras may compute what they do by another function."""
    names = [name for name in dir(layer) if name.startswith("_can_attempt_fused_")]
    names = names if isinstance(layer, keras.layers.Bidirectional) else []
    try:
        for name in names:
            object.__setattr__(layer, name, lambda *_: False)
        yield
    finally:
        for name in names:
            vars(layer).pop(name)


@contextlib.contextmanager
def calls_without_nodes(layer):
    """Let the layers within `layer` that are not Keras' own be called with symbolic tensors where Keras makes no node
    of such a call: because they return None beside tensors, or fail to tell the shape of what they return. What they
    are made of is called in their place."""
    module = sys.modules[keras.layers.Layer.__module__]
    node = _private(module, "Node", "the module of its layers")
    within = [each for each in flat_layers(layer) if each is not layer]
    own = [each for each in within if not type(each).__module__.startswith("keras.")]
    inlined = set()

    def make_node(operation, *args, **kwargs):
        if id(operation) not in inlined:
            return node(operation, *args, **kwargs)
        inlined.discard(id(operation))

    def symbolic_call(each, *args, **kwargs):
        with contextlib.suppress(Exception):
            outputs = type(each).symbolic_call(each, *args, **kwargs)
            if all(leaf is not None for leaf in keras.tree.flatten(outputs)):
                return outputs
        outputs = each.call(*args, **kwargs)
        inlined.add(id(each))
        return outputs

    try:
        module.Node = make_node
        for each in own:
            object.__setattr__(each, "symbolic_call", functools.partial(symbolic_call, each))
        yield
    finally:
        module.Node = node
        for each in own:
            vars(each).pop("symbolic_call", None)


@contextlib.contextmanager
def names_told_apart(layer):
    """Let layers within `layer` have one name: a model takes each once."""
    changed, taken = [], set()
    try:
        for number, each in enumerate(flat_layers(layer)):
            if each.name in taken:
                changed.append((each, each.name))
                each.name = f"{each.name}_{number}"
            taken.add(each.name)
        yield
    finally:
        for each, name in changed:
            with contextlib.suppress(AttributeError):  # a name that cannot be set was not changed
                each.name = name


@contextlib.contextmanager
def nodes_restored(layer):
    """Let a layer, and the layers within, forget in the end that they were called with symbolic tensors inside."""
    names = ("_inbound_nodes", "_outbound_nodes")
    before = [(each, {name: list(_private(each, name)) for name in names}) for each in flat_layers(layer)]
    try:
        yield
    finally:
        for each, nodes in before:
            for name in names:
                setattr(each, name, nodes[name])


def untold(model):
    """A layer in a functional model's graph which itself tells another number of outputs than it has there; None if
    there is none."""
    for nodes in levels(model):
        for node in nodes:
            if node.is_input:
                continue
            with contextlib.suppress(Exception):  # a layer that tells nothing is asked again when a model is built
                told = node.operation.compute_output_spec(*node.arguments.args, **node.arguments.kwargs)
                if len(keras.tree.flatten(told)) != len(node.outputs):
                    return node.operation
    return None


def arguments_of_nodes(model):
    """All that the calls of a functional model's graph are given, structures flattened."""
    for nodes in levels(model):
        for node in nodes:
            if not node.is_input:
                yield from keras.tree.flatten((node.arguments.args, node.arguments.kwargs))


def free_reshapes(model, batch_size):
    """Let `keras.ops.reshape` in a functional model's graph find out the size of the batch, which is `batch_size` in
    the graph: shapes that were made with `keras.ops.shape` have it there, and None would not compute."""
    for nodes in levels(model):
        for node in nodes:
            if getattr(node.operation, "newshape", None) is None:
                continue
            shapes = [tuple(tensor.shape) for tensor in (*node.input_tensors, *node.outputs)]
            if all(shape and shape[0] == batch_size and None not in shape[1:] for shape in shapes):
                shape = (-1, *shapes[-1][1:])
                node.operation.newshape = _private(node.operation, "_auto_config").config["newshape"] = shape


def has_mask(tensor):
    """Whether a symbolic tensor carries a mask, which Keras hands on beside the graph."""
    return getattr(tensor, "_keras_mask", None) is not None


def begin_fit_at(model, epoch):
    """Have the `fit` that is about to begin start with `epoch`; None takes that back. `Backup` checks that it did."""
    model._initial_epoch = epoch


def sharding(variable):
    """How a variable is laid out over devices, as `add_variable` takes it; None where it is not."""
    return _private(variable, "_layout") if keras.backend.backend() == "jax" else None


def learning_rate_schedule(optimizer):
    """The schedule that an optimizer's learning rate follows; None where there is none."""
    rate = _private(optimizer, "_learning_rate")
    return rate if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else None


def batches_seen(optimizer):
    """The batches that an optimizer was applied to: under gradient accumulation, more than its `iterations`."""
    return int(keras.ops.convert_to_numpy(_private(optimizer, "_iterations")))


def callback_list(callback):
    """The `keras.callbacks.CallbackList` that calls a callback's method now; None if something else does.

    Keras does not tell callbacks of one another. The list is found among the callers.
    """
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList) and callback in caller.callbacks:
            return caller
        frame = frame.f_back
    return None


def cond(predicate, true, false):
    """`keras.ops.cond`. On torch that is a branch of Python's, at which `torch.compile` ends one graph and begins the
    next, for each function that called it; so what is compiled there takes torch's own."""
    if keras.backend.backend() == "torch":
        import torch

        if torch.compiler.is_compiling():
            return torch.cond(predicate, true, false, ())
    return keras.ops.cond(predicate, true, false)


class Optimizer(keras.optimizers.Optimizer):
    """Keras' optimizer, with what a subclass overrides under public names; positions are those of the variables that
    it was built for."""

    finishes_together = False  # whether `finish_together` does something

    def __init__(self, *args, **kwargs):
        check_optimizer()
        super().__init__(*args, **kwargs)

    def begin_update(self, positions, gradients, learning_rate):
        """Return the rate of the update that is about to be made to the variables at `positions`."""
        return learning_rate

    def update(self, position, gradient, learning_rate):
        """Update the variable at `position`."""
        raise NotImplementedError

    def finish_together(self, positions, gradients, rate):
        """What `update` is to be given in place of gradients, which are those of the whole batch."""
        return gradients

    def move_average(self, position, average):
        """Bring `average`, the variable that holds the average of the weights at `position`, up to date."""
        raise NotImplementedError

    def end_with_average(self, position, average):
        """At the end of training, have the weights at `position` take the average's place."""
        raise NotImplementedError

    def present_learning_rate(self):
        """What Keras' `learning_rate` gives: `torch.compile` does not trace a property of the class above."""
        return self._get_current_learning_rate()

    def uses_weight_decay(self, variable):
        """Whether `exclude_from_weight_decay` has left `variable` in."""
        return self._use_weight_decay(variable)

    def sum_over_replicas(self, value):
        """The sum of a value over the replicas of tf.distribute, each of which sees its own gradient. On JAX there is
        one gradient, of the whole batch."""
        if keras.backend.backend() != "tensorflow":
            return value
        return _private(self, "_all_reduce_sum_gradients")([(value, None)])[0][0]

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        # Keras calls this once per real update (inside gradient accumulation's condition), with the variables that have
        # a gradient: the one place where all counters can advance together.
        positions = list(map(self._get_variable_index, trainable_variables))
        rate = self.begin_update(positions, grads, learning_rate)
        if not self.finishes_together:
            super()._backend_update_step(grads, trainable_variables, rate)
        elif keras.backend.backend() == "tensorflow":
            self._update_after_finishing(positions, grads, trainable_variables, rate)
        else:
            for position, update in zip(positions, self.finish_together(positions, grads, rate), strict=True):
                self.update(position, update, rate)

    def _update_after_finishing(self, positions, grads, trainable_variables, rate):
        """As TensorFlow's `_backend_update_step`, but with what `finish_together` makes of the summed gradients."""
        import tensorflow as tf

        variables = [getattr(variable, "value", variable) for variable in trainable_variables]
        pairs = _private(self, "_all_reduce_sum_gradients")(list(zip(grads, variables, strict=True)))
        updates = self.finish_together(positions, [gradient for gradient, _ in pairs], rate)
        tf.__internal__.distribute.interim.maybe_merge_call(
            _private(self, "_distributed_tf_update_step"),
            _private(self, "_distribution_strategy"),
            list(zip(updates, variables, strict=True)),
            rate,
        )

    def update_step(self, gradient, variable, learning_rate):
        self.update(self._get_variable_index(variable), gradient, learning_rate)

    def _apply_weight_decay(self, variables):
        pass  # coupled instead: it is part of the gradient

    def _averages(self, trainable_variables):
        averages = _private(self, "_model_variables_moving_average")
        for position in map(self._get_variable_index, trainable_variables):
            average = averages[position]
            if average is not None:  # as it is of a variable that is overwritten with its gradient
                yield position, average

    def _update_model_variables_moving_average(self, trainable_variables):
        for position, average in self._averages(trainable_variables):
            self.move_average(position, average)

    def _overwrite_model_variables_with_average_value(self, trainable_variables):
        for position, average in self._averages(trainable_variables):
            self.end_with_average(position, average)


@functools.cache
def check_optimizer():
    """Check, once a process, that Keras' optimizer calls the hooks, and has no other weight decay.

    Raises:
        RuntimeError: it does not; the message names Keras' version.
    """
    failures = []
    # In a thread of its own, since scopes of tf.distribute and traces belong to the thread that opened them.
    thread = threading.Thread(target=lambda: failures.extend(_failures()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # under `python -W error`, one of a backend's is no failure of Keras
        thread.start()
        thread.join()
    if failures:
        raise incompatible(failures[0])


def _failures():
    called, base = set(), keras.optimizers.Optimizer

    def hook(name):
        def recorded(self, *args, **kwargs):
            called.add(name)
            if name in ("_backend_update_step", "add_variable_from_reference"):
                return getattr(base, name)(self, *args, **kwargs)

        return recorded

    try:
        for name in (*OPTIMIZER_HOOKS, *OPTIMIZER_METHODS):
            if not hasattr(base, name):
                yield f"its optimizers have no {name}()"
        probe = type("Probe", (base,), {name: hook(name) for name in OPTIMIZER_HOOKS})
        optimizer = probe(1.0, weight_decay=0.5, use_ema=True)
        variable = keras.Variable([1.0], dtype="float32", name="probe")
        optimizer.build([variable])
        optimizer.apply([keras.ops.zeros((1,))], [variable])
        optimizer.finalize_variable_values([variable])
        for name in OPTIMIZER_HOOKS:
            if name not in called:
                yield f"its optimizers do not call {name}() any more"
        if float(keras.ops.convert_to_numpy(variable)[0]) != 1:
            yield "its optimizers change variables besides update_step()"
    except Exception as error:
        yield f"its optimizers failed ({type(error).__name__}: {error})"
