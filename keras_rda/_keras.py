"""What this package relies on in Keras beyond its public names, and checks that it is there and does what it did.

A hook that Keras renames would no longer be called, and training would silently do something else.
"""

import functools
import os
import sys
import threading

import keras

# Overridden by `PenalizedOptimizer`, and called by Keras.
OPTIMIZER_HOOKS = (
    "_apply_weight_decay",
    "_backend_update_step",
    "_overwrite_model_variables_with_average_value",
    "_update_model_variables_moving_average",
    "add_variable_from_reference",
    "update_step",
)
# Called by `PenalizedOptimizer`.
OPTIMIZER_METHODS = ("_get_variable_index", "_use_weight_decay")


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


@functools.cache
def check_optimizer():
    """Check, once a process, that Keras' optimizer calls the hooks, and has no other weight decay.

    Raises:
        RuntimeError: it does not; the message names Keras' version.
    """
    failures = []
    # In a thread of its own, since scopes of tf.distribute and traces belong to the thread that opened them.
    thread = threading.Thread(target=lambda: failures.extend(_failures()))
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
