"""A training loop of one's own around MRDA, on TensorFlow, JAX or torch, on the embedded digits.

    KERAS_BACKEND=tensorflow python examples/custom_loop.py
    KERAS_BACKEND=jax python examples/custom_loop.py
    KERAS_BACKEND=torch python examples/custom_loop.py

What `fit` does for you, in two functions: an optimizer of this package is applied as any Keras optimizer is. Ends with
a plot of accuracy and σ.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import plotting

import keras_rda

BATCH_SIZE = 32


def network():
    layers = keras.layers
    model = [layers.Input((8, 8, 1))]
    for filters in (32, 64):
        model += [
            layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
        ]
    return keras.Sequential([*model, layers.GlobalAveragePooling2D(), layers.Dense(10)])


loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def tensorflow_step(model, optimizer):
    import tensorflow as tf

    @tf.function(jit_compile=True)
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_function(y, model(x, training=True))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    return step


def jax_step(model, optimizer):
    import jax

    def loss(trained, other, x, y):
        logits, other = model.stateless_call(trained, other, x, training=True)
        return loss_function(y, logits), other

    @jax.jit
    def pure(trained, other, slots, x, y):
        (value, other), gradients = jax.value_and_grad(loss, has_aux=True)(trained, other, x, y)
        trained, slots = optimizer.stateless_apply(slots, gradients, trained)
        return value, (trained, other, slots)

    groups = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)

    def step(x, y):
        value, states = pure(*([v.value for v in group] for group in groups), x, y)
        for group, state in zip(groups, states, strict=True):
            for variable, array in zip(group, state, strict=True):
                variable.assign(array)
        return value

    return step


def torch_step(model, optimizer):
    import torch

    def step(x, y):
        loss = loss_function(y, model(x, training=True))
        trained = [variable.value for variable in model.trainable_variables]
        with torch.no_grad():
            optimizer.apply(torch.autograd.grad(loss, trained), model.trainable_variables)
        return loss.detach()

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--penalty", type=float, default=2e-3, help="λ")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(__file__).parent / "output")
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error(f"--epochs must be at least 1; received {arguments.epochs}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(arguments.seed)
    (x_train, y_train), (x_test, y_test) = keras_rda.datasets.load_digits()
    x_train, x_test = (x.astype("float32") / 16 for x in (x_train, x_test))
    steps = len(x_train) // BATCH_SIZE

    model = network()
    rate = keras.optimizers.schedules.CosineDecay(1.0, arguments.epochs * steps)
    optimizer = keras_rda.MRDA(rate, penalty=arguments.penalty)
    optimizer.build(model.trainable_variables)  # before the first step is traced
    steps_of = {"tensorflow": tensorflow_step, "jax": jax_step, "torch": torch_step}
    step = steps_of[keras.backend.backend()](model, optimizer)

    history = {"top-1": [], "sparsity": []}
    for epoch in range(arguments.epochs):
        order = np.random.default_rng((arguments.seed, epoch)).permutation(len(x_train))
        losses = []
        for number in range(steps):
            rows = order[number * BATCH_SIZE : (number + 1) * BATCH_SIZE]
            losses.append(float(step(x_train[rows], y_train[rows])))
        top1 = np.mean(np.argmax(model.predict(x_test, verbose=0), -1) == y_test)
        sigma = keras_rda.sparsity(model)
        for values, value in zip(history.values(), (top1, sigma), strict=True):
            values.append(value)
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}, top-1 {100 * top1:.2f} %, σ {sigma:.4f}")
    figure = keras_rda.plot_history(history)[0].figure
    command = f"python examples/custom_loop.py --epochs {arguments.epochs} --penalty {arguments.penalty:g}"
    plotting.save(figure, arguments.output / "custom-loop.png", command)


if __name__ == "__main__":
    main()
