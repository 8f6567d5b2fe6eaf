import keras
import numpy as np
import pytest
from helpers import BACKEND, compiled, small_network, values

import keras_rda
from keras_rda.kernels import is_kernel


def sparse_network():
    model = small_network()
    for variable in model.trainable_variables:
        if is_kernel(variable):
            value = values([variable])[0]
            variable.assign(np.where(np.abs(value) < np.median(np.abs(value)), 0, value))
    return model


def fine_tune(model, digits, **kwargs):
    model.fit(digits[0][:64], digits[1][:64], batch_size=32, epochs=2, verbose=0, **kwargs)


@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop", "lion"])
def test_zeros_stay_and_the_rest_trains(name, digits):
    model = compiled(sparse_network(), name)
    keras_rda.freeze_zeros(model)
    before = values(model.trainable_variables)
    fine_tune(model, digits)
    for variable, old, new in zip(model.trainable_variables, before, values(model.trainable_variables), strict=True):
        if is_kernel(variable):
            assert np.all(new[old == 0] == 0)
            assert np.mean(old == 0) > 0.4
        assert np.any(new != old)


def test_without_it_zeros_come_back(digits):
    model = compiled(sparse_network(), "adam")
    before = keras_rda.sparsity(model, kernels_only=True)
    fine_tune(model, digits)
    assert keras_rda.sparsity(model, kernels_only=True) < before / 2


def test_biases_are_free(digits):
    model = compiled(sparse_network(), "sgd")
    keras_rda.freeze_zeros(model)
    fine_tune(model, digits)
    bias = values([model.layers[-1].bias])[0]
    assert np.any(bias != 0)


def test_takes_hold_after_a_first_fit(digits):
    model = compiled(sparse_network(), "sgd")
    fine_tune(model, digits)
    kernel = model.layers[0].kernel
    kernel.assign(np.where(np.abs(values([kernel])[0]) < 0.1, 0, 1.0))
    keras_rda.freeze_zeros(model)
    before = values([kernel])[0]
    fine_tune(model, digits)
    assert np.all(values([kernel])[0][before == 0] == 0)
    assert np.any(before == 0)


def test_keeps_an_earlier_constraint(digits):
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, kernel_constraint="non_neg")]
    )
    kernel = model.layers[-1].kernel
    kernel.assign(np.where(np.arange(640).reshape(64, 10) % 2, 0.01, 0.0))
    keras_rda.freeze_zeros(model)
    keras_rda.freeze_zeros(model)  # again: no chain of patterns
    fine_tune(compiled(model, keras.optimizers.SGD(1.0)), digits)
    after = values([kernel])[0]
    assert np.all(after >= 0)
    assert np.all(after.ravel()[::2] == 0)
    assert np.any(after.ravel()[1::2] > 0)


def test_second_call_freezes_the_zeros_of_that_moment(digits):
    model = compiled(sparse_network(), "sgd")
    keras_rda.freeze_zeros(model)
    kernel = model.layers[0].kernel
    kernel.assign(np.ones(kernel.shape))
    keras_rda.freeze_zeros(model)
    fine_tune(model, digits)
    assert np.all(values([kernel])[0] != 0)


def test_averaging_optimizers_are_refused(digits):
    model = compiled(sparse_network(), keras.optimizers.Adam(use_ema=True))
    with pytest.raises(ValueError, match="use_ema=True, and averages have no exact zeros"):
        keras_rda.freeze_zeros(model)


def test_model_without_kernels():
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    with pytest.raises(ValueError, match="no trainable kernels in the model"):
        keras_rda.freeze_zeros(model)


@pytest.mark.skipif(BACKEND == "torch", reason="torch traces no step: it takes the constraints in at once")
def test_zeros_that_a_traced_step_brings_back_are_noticed(digits):
    model, optimizer = sparse_network(), keras.optimizers.SGD(0.1)
    x, y = digits[0][:32], digits[1][:32]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer.build(model.trainable_variables)
    step = own_step(model, optimizer, loss)
    weights = values(model.trainable_variables)
    for _ in range(2):  # JAX traces the second call anew
        step(x, y)
    for variable, value in zip(model.trainable_variables, weights, strict=True):
        variable.assign(value)
    keras_rda.freeze_zeros(model)
    step(x, y)
    for measure in (keras_rda.sparsity, keras_rda.summary):
        with pytest.warns(UserWarning, match=r"have come back: .*kernel.*make the function anew after freeze_zeros"):
            measure(model)
    # Made anew it holds; what was set on purpose is frozen by another call.
    keras_rda.freeze_zeros(model)
    frozen = keras_rda.sparsity(model, kernels_only=True)
    own_step(model, optimizer, loss)(x, y)
    assert keras_rda.sparsity(model, kernels_only=True) == frozen


def own_step(model, optimizer, loss):
    if BACKEND == "jax":
        import jax

        def compute(trained, other, x, y):
            outputs, other = model.stateless_call(trained, other, x, training=True)
            return loss(y, outputs), other

        @jax.jit
        def update(trained, other, slots, x, y):
            gradients, other = jax.grad(compute, has_aux=True)(trained, other, x, y)
            return *optimizer.stateless_apply(slots, gradients, trained), other

        def step(x, y):
            groups = model.trainable_variables, model.non_trainable_variables, optimizer.variables
            trained, slots, other = update(*([v.value for v in group] for group in groups), x, y)
            for group, values in zip(groups, (trained, other, slots), strict=True):
                for variable, value in zip(group, values, strict=True):
                    variable.assign(value)

        return step

    import tensorflow as tf

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        optimizer.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)

    return step
