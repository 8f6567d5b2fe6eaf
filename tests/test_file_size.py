"""Training to the bytes of a file."""

import math
import warnings

import keras
import numpy as np
import pytest
from helpers import BACKEND, compiled, values
from test_target_sparsity import residual_network

import keras_rda
from keras_rda.callbacks import file_size
from keras_rda.litert import sparse_format

on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="each file takes seconds in a process of its own")


def network():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.Conv2D(64, 3, use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )


def train(model, digits, target, optimizer=keras_rda.XRDA, penalty=1e-6, epochs=10):
    x, y = digits[0][:1024], digits[1][:1024]
    rate = keras.optimizers.schedules.CosineDecay(1.0, epochs * 64)
    compiled(model, optimizer(rate, penalty))
    model.fit(x, y, batch_size=16, epochs=epochs, verbose=0, callbacks=[target])


@pytest.mark.parametrize(
    ("target", "quantize", "kind", "optimizer"),
    [
        pytest.param("9.5 kB", "int8", "weights", keras_rda.XRDA, marks=on_tensorflow),
        pytest.param(0.8, None, "weights", keras_rda.MRDA, marks=on_tensorflow),
        pytest.param(
            30_000,
            None,
            "channels",
            keras_rda.XRDA,
            marks=() if BACKEND == "tensorflow" else pytest.mark.every,
        ),
        *(
            pytest.param(0.6, quantize, "weights", keras_rda.XRDA, marks=pytest.mark.every)
            for quantize in ("float16", "dynamic")
        ),
        pytest.param(0.5, "int8", "outputs", keras_rda.XRDA, marks=pytest.mark.every),
        pytest.param("40 kB", "int8", "residual", keras_rda.XRDA, marks=pytest.mark.every),
    ],
)
def test_ends_with_a_file_that_fits(target, quantize, kind, optimizer, digits, tmp_path):
    """Warnings are errors: a file that does not fit, or is much smaller, gives one."""
    keras.utils.set_random_seed(0)
    model = residual_network(48, 2) if kind == "residual" else network()
    by_weights = kind in ("weights", "residual")
    penalty = 1e-6 if by_weights else keras_rda.GroupL1(1e-6, groups=kind, layout=model)
    train(model, digits, keras_rda.TargetSparsity(target, of="bytes", quantize=quantize), optimizer, penalty)
    report = keras_rda.export(
        model, tmp_path / "model.tflite", quantize, digits[0][:64] if quantize == "int8" else None
    )
    named = {"9.5 kB": 9500, "40 kB": 40_000, 30_000: 30_000}
    asked = named.get(target) or (1 - target) * report.dense_bytes
    # A channel of the second convolution is 64·9 weights that read it, and 9 that compute it.
    jump = 0 if by_weights else file_size.CHANNEL_BYTES + 4 * (64 + 1) * 9
    assert 0.98 * asked - jump <= report.bytes <= asked + 1
    assert model.evaluate(*digits, verbose=0, return_dict=True)["loss"] < 1.0


@pytest.mark.parametrize("shape", [(3, 3, 32, 64), (1, 1, 128, 32), (256, 10), (5, 16, 8)])
@pytest.mark.parametrize("itemsize", [1, 4])
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.98])
def test_expected_bytes_of_zeros_anywhere(shape, itemsize, sparsity):
    array = np.ones(math.prod(shape), f"int{8 * itemsize}")
    array[np.random.default_rng(0).permutation(array.size)[: round(sparsity * array.size)]] = 0
    found = sparse_format.expected(shape, int(np.count_nonzero(array)), itemsize)
    assert found == pytest.approx(sparse_format.smallest(array.reshape(shape))[0], rel=0.02)


@pytest.mark.parametrize(
    ("text", "number"),
    [("256 kB", 256_000), ("256KiB", 262_144), (" 1.5 mb", 1_500_000), ("20 B", 20), (300, 300), ("9,000 B", 9000)],
)
def test_sizes_in_words(text, number):
    assert file_size.parse(text) == number


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": "256 k", "of": "bytes"}, 'target must be a number of bytes such as "256 kB" .* received .256 k.'),
        ({"target": "0 kB", "of": "bytes"}, "received '0 kB'"),
        ({"target": "12", "of": "bytes"}, "received '12'"),
        ({"target": "256 kB"}, None),
        ({"target": 0, "of": "bytes"}, "target must be a number of bytes such as .* received 0"),
        ({"target": 256000.0, "of": "bytes"}, r"received 256000\.0"),
        ({"target": True, "of": "bytes"}, "received True"),
        ({"target": 0.5, "quantize": "int8"}, 'quantize goes with of="bytes"'),
        ({"target": 0.5, "of": "bytes", "quantize": "int4"}, "received quantize='int4'"),
        ({"target": 0.5, "of": "byte"}, "of must be one of .*; received 'byte'"),
        ({"target": 0.5, "of": "bytes", "per_layer": True}, "goes with one target for the whole model"),
        ({"target": {"conv2d": 0.5}, "of": "bytes"}, "goes with one target for the whole model"),
    ],
)
def test_arguments(arguments, words):
    with pytest.raises(ValueError if words else TypeError, match=words):
        keras_rda.TargetSparsity(**arguments)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        pytest.param(
            "1 kB", r"cannot end at the file's bytes = 1,000: it can get to [1-9],\d{3}, when", marks=on_tensorflow
        ),
        ("1 MB", r"beyond the target 1,000,000 before it trains, with the file's bytes = 8\d,\d{3},"),
    ],
)
def test_sizes_that_cannot_be_met(target, words, digits):
    model = network()
    before = values(model.variables)
    with pytest.raises(ValueError, match=words):
        train(model, digits, keras_rda.TargetSparsity(target, of="bytes"))
    for array, now in zip(before, values(model.variables), strict=True):
        np.testing.assert_array_equal(array, now)


def test_models_that_cannot_be_exported(digits):
    keras.config.set_dtype_policy("mixed_float16")
    with pytest.raises(ValueError, match=r'of="bytes"\) writes files to see their size\. export\(\) takes float32'):
        train(network(), digits, keras_rda.TargetSparsity(0.5, of="bytes"))


@on_tensorflow
@pytest.mark.parametrize(("first", "last"), [(3, 5), (4, 1000)])
def test_a_file_that_cannot_be_written_does_not_end_training(first, last, monkeypatch, digits):
    """Such as of a disk that is full, for a while or to the end."""
    written, calls = file_size.file_bytes, []

    def write(*arguments):
        calls.append(None)
        if first <= len(calls) <= last:
            raise OSError("No space left on device")
        return written(*arguments)

    monkeypatch.setattr(file_size, "file_bytes", write)
    model = network()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, digits, keras_rda.TargetSparsity(0.5, of="bytes"))
    messages = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
    failed = "TargetSparsity could not write a file to see its size: No space left on device"
    assert messages.count(failed) == sum(first <= number <= last for number in range(1, 1 + len(calls)))
    assert set(messages) == {failed}
    memory = model.optimizer.steering_memory
    assert not any(memory.recall(position, "begun") for position in range(len(model.trainable_variables)))
    smallest, dense = written(model)
    assert smallest / dense == pytest.approx(0.5, abs=0.03)


@on_tensorflow
def test_what_fits_already_is_trained_on(digits):
    keras.utils.set_random_seed(0)
    model = network()
    train(model, digits, keras_rda.TargetSparsity("50 kB", of="bytes"), epochs=6)
    train(model, digits, keras_rda.TargetSparsity("50 kB", of="bytes"), epochs=6)
    assert 0.98 * 50_000 <= file_size.file_bytes(model)[0] <= 50_000


@on_tensorflow
def test_where_most_bytes_are_not_steered(digits):
    """The margin that is aimed at is one on the bytes that can go."""
    keras.utils.set_random_seed(0)
    layers, random = keras.layers, np.random.default_rng(0)
    model = keras.Sequential(
        [
            keras.Input((12,), dtype="int32"),
            layers.Embedding(500, 16),
            layers.GlobalAveragePooling1D(),
            layers.Dense(64, "relu"),
            layers.Dense(10),
        ]
    )
    tokens = random.integers(0, 500, (1024, 12)).astype("int32")
    optimizer = keras_rda.XRDA(keras.optimizers.schedules.CosineDecay(0.3, 20 * 64), 1e-6)
    optimizer.exclude_from_penalty(var_names=["embeddings"])
    compiled(model, optimizer)
    model.fit(
        *(tokens, tokens[:, 0] % 10),
        batch_size=16,
        epochs=20,
        verbose=0,
        callbacks=[keras_rda.TargetSparsity(0.1, of="bytes")],
    )
    smallest, dense = file_size.file_bytes(model)
    assert 0.98 * 0.9 * dense <= smallest <= 0.9 * dense + 1


@on_tensorflow
def test_bytes_are_compared_as_whole_numbers(digits):
    model = network()
    compiled(model, keras_rda.XRDA(0.1, 1e-6))
    target = keras_rda.TargetSparsity("50 kB", of="bytes", interval=1)
    target.set_model(model)
    target.set_params({"steps": 100, "epochs": 1})
    target.on_train_begin()
    (group,) = target._groups
    for dense in range(80_000, 80_500):
        group.counted.dense = dense
        assert group.counted.met(1 - 50_000 / dense, group.target)
        assert not group.counted.met(1 - 50_001 / dense, group.target)
