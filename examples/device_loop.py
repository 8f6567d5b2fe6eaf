"""What `model.fit` does, on JAX with all data on the device, and several steps in one compiled call."""

import functools

import keras
import numpy as np
from keras import ops

MEASUREMENTS = 6  # an epoch, of callbacks that act within epochs


def steps_a_call(steps, rising):
    """Steps in one call where a callback acts within epochs of so many `steps`, in the first `rising` of all."""
    return max(1, min(steps // MEASUREMENTS, rising // 60))


def fit(model, images, labels, batch_size, seed, epochs, interval, callbacks, prepare, earlier=0):
    """Train a compiled model; return the last epoch's logs, its mean loss and its share of right answers.

    Order and augmentation depend on seed and epoch alone. What does not fill a batch is left out; every epoch draws
    anew what that is.

    Args:
        images, labels: Arrays of all training examples.
        epochs: A `range`, as the callbacks count.
        interval: Steps in one call. Callbacks act between calls.
        prepare: Function of a key and a batch of images that augments and standardises them.
        earlier: Epochs that other calls have drawn before these.
    """
    import jax
    import jax.numpy as jnp

    optimizer, size, steps = model.optimizer, len(images), len(images) // batch_size
    optimizer.build(model.trainable_variables)
    images, labels = jax.device_put(images), jax.device_put(labels)
    variables = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)

    def loss(trained, other, x, y):
        logits, other, penalties = model.stateless_call(trained, other, x, training=True, return_losses=True)
        right = jnp.mean(jnp.argmax(logits, -1) == y)
        return sum(penalties, model.loss(y, ops.cast(logits, "float32"))), (other, right)

    def step(images, labels, state, batch):
        trained, other, slots = state
        rows, key = batch
        x = prepare(key, images[rows])
        (value, (other, right)), gradients = jax.value_and_grad(loss, has_aux=True)(trained, other, x, labels[rows])
        trained, slots = optimizer.stateless_apply(slots, gradients, trained)
        return (trained, other, slots), (value, right)

    @jax.jit
    def some_steps(state, rows, keys, images, labels):
        # The data as arguments: as constants of the compiled function they would be copied into it.
        state, measured = jax.lax.scan(functools.partial(step, images, labels), state, (rows, keys))
        return state, jax.tree.map(jnp.mean, measured)

    callbacks = keras.callbacks.CallbackList(callbacks, model=model, epochs=epochs.stop, steps=steps)
    callbacks.on_train_begin()
    for epoch in epochs:
        callbacks.on_epoch_begin(epoch)
        order, keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), earlier + epoch))
        order = jax.random.permutation(order, size)[: steps * batch_size].reshape(steps, batch_size)
        keys, measured = jax.random.split(keys, steps), []
        for start in range(0, steps, interval):
            part = slice(start, start + interval)
            state = tuple([v.value for v in group] for group in variables)
            state, means = some_steps(state, order[part], keys[part], images, labels)
            for group, new in zip(variables, state, strict=True):
                for variable, array in zip(group, new, strict=True):
                    variable.assign(array)
            measured.append([mean * len(order[part]) / steps for mean in means])
            callbacks.on_train_batch_end(min(start + interval, steps) - 1)
        value, right = (float(np.sum(parts)) for parts in zip(*measured, strict=True))
        logs = {"loss": value, "accuracy": right}
        callbacks.on_epoch_end(epoch, logs)
    callbacks.on_train_end()
    return logs
