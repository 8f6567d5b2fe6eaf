"""Loss over σ, kernel by kernel."""

import keras
import numpy as np
import pytest
from helpers import compiled, small_network, values

import keras_rda


def trained(digits):
    keras.utils.set_random_seed(0)
    model = compiled(small_network(), keras.optimizers.Adam(0.01))
    x, y = digits[0][:128], digits[1][:128]
    model.fit(x, y, epochs=3, verbose=0)
    return model, x, y


def test_losses_are_those_with_the_smallest_weights_at_zero(digits, tmp_path):
    model, x, y = trained(digits)
    before = values(model.weights)
    found = keras_rda.sensitivity(model, x, y, (0.5, 0.99))
    for a, b in zip(before, values(model.weights), strict=True):
        np.testing.assert_array_equal(a, b)
    assert found.loss == pytest.approx(model.evaluate(x, y, verbose=0))
    convolution, dense = found.rows
    kernel = model.layers[-1].kernel
    weights = values([kernel])[0].copy()
    weights[np.abs(weights) <= np.quantile(np.abs(weights), 0.5)] = 0
    kernel.assign(weights)
    assert dense.losses[0] == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-4)
    assert dense.losses[1] > max(dense.losses[0], found.loss)
    assert convolution.losses[1] > found.loss
    lines = str(found).splitlines()
    assert lines[0] == f"Loss {found.loss:.4g}; with zeros in one kernel:"
    assert [line.split()[0] for line in lines if "kernel " in line and "/" in line] == [row.path for row in found.rows]
    axes = found.plot()
    assert [len(line.get_xdata()) for line in axes.lines] == [2, 2, 2]
    axes.figure.savefig(tmp_path / "plot.png")


def test_weights_come_back_after_a_failure(digits):
    model, x, y = trained(digits)
    before = values(model.weights)

    calls = []

    def evaluate(*args, **kwargs):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return {"loss": 0.0}

    model.evaluate = evaluate
    with pytest.raises(KeyboardInterrupt):
        keras_rda.sensitivity(model, x, y)
    for a, b in zip(before, values(model.weights), strict=True):
        np.testing.assert_array_equal(a, b)


def test_arguments(digits):
    model, x, y = trained(digits)
    for sparsities in ((), (0.0,), (0.5, 1.1), ("0.5",)):
        with pytest.raises(ValueError, match="sparsities must be numbers above 0 and at most 1; received"):
            keras_rda.sensitivity(model, x, y, sparsities)
    with pytest.raises(ValueError, match=r"call model\.compile"):
        keras_rda.sensitivity(small_network(), x, y)
    with pytest.raises(TypeError, match=r"takes a keras\.Model"):
        keras_rda.sensitivity("model.keras", x, y)
    alone = keras.Sequential([keras.Input((3,)), keras.layers.Activation("relu")])
    alone.compile(loss="mse")
    with pytest.raises(ValueError, match="has no trainable kernels"):
        keras_rda.sensitivity(alone, x, y)
