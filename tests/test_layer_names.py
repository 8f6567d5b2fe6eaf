"""Weights of LiteRT files under the names that Keras gives them."""

import keras
import numpy as np
import pytest
from helpers import BACKEND, wide_network

import keras_rda
from keras_rda.litert import convert, flatbuffer, layer_names, weights

layers = keras.layers
pytestmark = [
    pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras exports LiteRT on TensorFlow"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of TensorFlow's converter
]


def recurrent():
    return keras.Sequential(
        [
            layers.Input((5, 3)),
            layers.Bidirectional(layers.LSTM(4, unroll=True, return_sequences=True)),
            layers.GRU(5, unroll=True),
            layers.Dense(2),
        ]
    )


def several_inputs():
    left, right = keras.Input((4,), name="left"), keras.Input((6,), name="a_right")
    tokens = keras.Input((3,), dtype="int32", name="tokens")
    embedded = layers.Flatten()(layers.Embedding(50, 4)(tokens))
    joined = layers.Concatenate()([left, right])
    return keras.Model(
        [left, right, tokens], [layers.Dense(3)(joined), layers.Dense(2)(embedded), layers.Dense(2)(left)]
    )


def attention():
    inputs = keras.Input((6, 8))
    x = layers.MultiHeadAttention(2, 4)(inputs, inputs)
    x = layers.Dense(8)(layers.Dense(16, activation="gelu")(x))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def nested():
    inner = keras.Sequential(
        [
            layers.Input((8, 8, 4)),
            layers.SeparableConv2D(8, 3, depth_multiplier=2),
            layers.BatchNormalization(),
            layers.Conv2DTranspose(6, 3),
        ],
        name="inner",
    )
    inputs = keras.Input((8, 8, 4))
    return keras.Model(inputs, layers.Conv1D(5, 3)(layers.Reshape((-1, 6))(inner(inputs))))


def mobilenet():
    return keras.applications.MobileNet(weights=None, input_shape=(32, 32, 3), classes=10, alpha=0.25)


MODELS = {
    "convolutions": (wide_network, (None, "float16", "dynamic", "int8")),
    "MobileNet": (mobilenet, (None, "int8")),
    "MobileNetV1": (lambda: keras_rda.models.MobileNetV1((32, 32, 3), 0.25, 10), ("float16",)),
    "ResNet18": (lambda: keras_rda.models.ResNet18(width=16), (None,)),
    "recurrent": (recurrent, (None, "dynamic")),
    "several inputs": (several_inputs, (None, "float16")),
    "attention": (attention, (None, "dynamic")),
    "nested": (nested, (None, "float16")),
}


def distinct(model):
    """Give every kernel another number of zeros, and every normalisation other factors of either sign."""
    random = np.random.default_rng(0)
    for number, variable in enumerate(model.weights):
        values = random.uniform(0.5, 1, variable.shape) * random.choice([-1, 1], variable.shape)
        if len(variable.shape) > 1:
            values.flat[random.choice(values.size, min(number, values.size // 2), replace=False)] = 0
        if "float" in variable.dtype:
            variable.assign(np.abs(values) if "variance" in variable.path else values)
    return model


@pytest.mark.parametrize(("name", "quantize"), [(name, q) for name, (_, kinds) in MODELS.items() for q in kinds])
def test_every_weight_has_the_name_of_its_layer(name, quantize):
    """Folded, rounded and moved, a kernel keeps the number of its zeros, by which the test knows it."""
    model = distinct(MODELS[name][0]())
    samples = [
        {x.name: np.random.default_rng(0).uniform(-1, 1, (1, *x.shape[1:])).astype(x.dtype) for x in model.inputs}
    ]
    content = flatbuffer.read(convert.convert(model, quantize, samples))
    paths = layer_names.keras_paths(model, content)
    arrays = {variable.path: keras.ops.convert_to_numpy(variable) for variable in model.weights}
    rows = weights.stored(content)
    kernels = {path for path, array in arrays.items() if array.ndim > 1 and not path.endswith("bias")}
    assert {paths[row.name] for row in rows} >= kernels
    for row in rows:
        array = arrays[paths[row.name]]
        assert array.size == np.prod(row.shape)
        assert round(row.zeros * array.size) == np.count_nonzero(array == 0), row.name


def test_equal_weights_are_told_apart_by_their_order():
    inputs = keras.Input((4,))
    x = layers.Dense(4, kernel_initializer="ones", activation="relu", name="first")(inputs)
    model = keras.Model(inputs, layers.Dense(4, kernel_initializer="ones", name="second")(x))
    model.get_layer("second").kernel.assign(2 * np.ones((4, 4)))  # a buffer of its own
    paths = layer_names.keras_paths(model, flatbuffer.read(convert.convert(model)))
    assert sorted(paths.values()) == ["first/kernel", "second/kernel"]


def test_constants_that_are_no_weights_have_no_such_name():
    inputs = keras.Input((4,))
    x = layers.Dense(4)(inputs) @ keras.ops.convert_to_tensor(np.arange(16, dtype="float32").reshape(4, 4))
    paths = layer_names.keras_paths(model := keras.Model(inputs, x), flatbuffer.read(convert.convert(model)))
    assert list(paths.values()) == ["dense/kernel"]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("sequential_1/conv2d_1_2/convolution", "conv2d_1_2"),
        (
            "m_1/re_lu_1/Relu6;m_1/bn_1/batchnorm/mul_1;m_1/depthwise_conv2d_1/depthwise;;m_1/pad_1/Pad",
            "depthwise_conv2d_1",
        ),
        ("functional_1/multi_head_attention_1/key_1/MatMul", "multi_head_attention_1/key_1"),
        ("functional_1/dense_1/Tensordot/MatMul1", "dense_1"),
        ("functional_1/embedding_1/GatherV2/ReadVariableOp", "embedding_1"),
        ("arith.constant3", "arith.constant3"),
        ("", ""),
        (";;", ";;"),
        ("/", "/"),
    ],
)
def test_names_are_shortened(name, short):
    assert layer_names.shortened(name) == short
