import keras
import numpy as np
import pytest
from helpers import small_network
from test_compress import kill_share, transformer

import keras_rda


@pytest.fixture
def model():
    """Kernels of 12 and 8 weights, biases of 4 and 2: 26 in all; known zeros."""
    layers = keras.layers
    model = keras.Sequential([layers.Input((3,)), layers.Dense(4), layers.BatchNormalization(), layers.Dense(2)])
    first, second = model.layers[0], model.layers[2]
    first.kernel.assign(np.array([[0, 0, 0, 1]] * 3))  # 9 zeros
    first.bias.assign(np.ones(4))
    second.kernel.assign(np.array([[0, 1]] * 4))  # 4 zeros
    second.bias.assign(np.zeros(2))  # 2 zeros; beta of the normalisation has 4
    return model


def test_sparsity_counts_all_trainable_weights(model):
    assert keras_rda.sparsity(model) == (9 + 4 + 2 + 4) / (12 + 4 + 8 + 2 + 8)


def test_sparsity_of_kernels(model):
    assert keras_rda.sparsity(model, kernels_only=True) == 13 / 20


def test_negative_zero_is_zero(model):
    model.layers[0].kernel.assign(np.full((3, 4), -0.0))
    assert keras_rda.sparsity(model, kernels_only=True) == 16 / 20


def test_frozen_layers_do_not_count(model):
    model.layers[0].trainable = False
    assert keras_rda.sparsity(model, kernels_only=True) == 4 / 8


def test_summary(model):
    summary = keras_rda.summary(model)
    row = summary.rows[0]
    assert (row.path, row.shape, row.size, row.zeros, row.bytes) == ("sequential/dense/kernel", (3, 4), 12, 9, 48)
    assert row.sparsity == 0.75
    text = str(summary)
    for part in ("sequential/dense/kernel", "3×4", "0.7500", "48", "all", "0.5588", "136", "kernels", "0.6500", "80"):
        assert part in text


def test_summary_fits_a_terminal_and_breaks_no_word():
    layers = [
        keras.layers.Conv2D(96, 3, name=f"mobile_net_backbone_stage_{number}_squeeze_and_excite_depthwise_conv")
        for number in range(3)
    ]
    text = str(keras_rda.summary(keras.Sequential([keras.Input((9, 9, 512)), *layers])))
    assert max(map(len, text.splitlines())) <= 100
    cells = [line.split("  ")[0].strip() for line in text.splitlines()[2:-4]]
    paths = [f"{layer.name}/{name}" for layer in layers for name in ("kernel", "bias")]
    assert [path.split("/", 1)[1] for path in "".join(cells).split("sequential")[1:]] == paths
    assert all(cell.endswith(("_", "/", "kernel", "bias")) for cell in cells)


def test_summary_counts_bytes_of_the_dtype():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, dtype="bfloat16")])
    assert keras_rda.summary(model).rows[0].bytes == 24


def test_model_without_weights():
    model = keras.Sequential([keras.Input((3,)), keras.layers.ReLU()])
    with pytest.raises(ValueError, match="no trainable weights"):
        keras_rda.sparsity(model)
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    with pytest.raises(ValueError, match="no trainable kernels"):
        keras_rda.sparsity(model, kernels_only=True)


def test_summary_says_what_is_penalised(model):
    assert [row.penalised for row in keras_rda.summary(model).rows] == [None] * 6
    text = str(keras_rda.summary(model))  # by default: kernels are
    assert "penalised" not in text
    assert text.splitlines()[0].split()[:3] == ["variable", "shape", "kernel"]
    assert text.count(" yes ") == 2
    optimizer = keras_rda.MRDA()
    optimizer.exclude_from_penalty(var_names=[model.layers[0].name])
    model.compile(optimizer, "mse")
    expected = [False, False, False, False, True, False]  # two dense layers around a normalisation
    assert [row.penalised for row in keras_rda.summary(model).rows] == expected
    optimizer.build(model.trainable_variables)
    assert [row.penalised for row in keras_rda.summary(model).rows] == expected
    assert str(keras_rda.summary(model)).count(" yes ") == 1
    model.compile("sgd", "mse")
    assert [row.penalised for row in keras_rda.summary(model).rows] == [None] * 6


@pytest.mark.parametrize("network", ["chain", "transformer"])
def test_summary_says_what_compress_would_leave(network):
    model = kill_share(transformer() if network == "transformer" else small_network())
    found = keras_rda.summary(model)
    before, after = keras_rda.compress(model, report=True)[1].total("multiply_adds")
    assert found.multiply_adds == (before, after)
    assert after < before
    assert f"compress() would leave {after:,} of {before:,} multiply-adds ({after / before:.2f})." in str(found)


def test_summary_of_what_compress_cannot_read():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Own()
    model.dense.build((None, 3))  # and not the model: its inputs are not known
    assert keras_rda.summary(model).multiply_adds is None
    assert "compress()" not in str(keras_rda.summary(model))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_summary_of_a_model_that_diverged():
    model = small_network()
    model.layers[0].kernel.assign(np.full(model.layers[0].kernel.shape, np.inf))
    assert keras_rda.summary(model).multiply_adds is None
