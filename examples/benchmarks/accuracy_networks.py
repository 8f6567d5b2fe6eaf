"""The networks of accuracy.py's tasks; the Keras in use is an argument, because accuracy_tfmot.py needs Keras 2."""

import keras_rda.models


def convolutions(keras, layers, input_shape):
    """Four strided 3×3 convolutions with batch normalisation; 221k weights."""
    return _plain(keras, layers, input_shape, ((24, 2), (48, 2), (96, 2), (192, 2)))


def wide(keras, layers, input_shape):
    """Five 3×3 convolutions without shortcuts, so that every channel but the classes can be removed; 1.1 M weights."""
    return _plain(keras, layers, input_shape, ((64, 2), (128, 2), (128, 1), (256, 2), (256, 1)))


def _plain(keras, layers, input_shape, convolutions):
    model = [layers.Input(input_shape)]
    for filters, strides in convolutions:
        model += [
            layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False, kernel_initializer="he_normal"),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
        ]
    model += [layers.GlobalAveragePooling2D(), layers.Dense(10, dtype="float32")]  # logits: those of bfloat16 tie
    return keras.Sequential(model)


def residual(keras, layers, input_shape):
    """ResNet-20 (He et al., 2016, section 4.2) behind a stem of stride 2: a quarter of its work; 272k weights."""
    return _residual(keras, layers, input_shape, lambda x, filters: x)


def squeeze_and_excite(keras, layers, input_shape):
    """The same with squeeze-and-excite (Hu et al., 2018) of a quarter of the channels in each block; 283k weights."""

    def excited(x, filters):
        scale = layers.GlobalAveragePooling2D(keepdims=True)(x)
        scale = layers.Conv2D(filters // 4, 1, activation="relu", kernel_initializer="he_normal")(scale)
        return layers.Multiply()([x, layers.Conv2D(filters, 1, activation="sigmoid")(scale)])

    return _residual(keras, layers, input_shape, excited)


def mobilenet_v2(keras, layers, input_shape):
    """Keras' own, of Keras 3 only; 2.3 M weights."""
    inputs = layers.Input(input_shape)
    features = keras.applications.MobileNetV2(input_tensor=inputs, weights=None, include_top=False, pooling="avg")
    _follow_quickly(layers, features)
    return keras.Model(inputs, layers.Dense(10, dtype="float32")(features.output))


def mobilenet_v1(keras, layers, input_shape):
    """MobileNet, version 1, on images enlarged twice, of Keras 3 only; 3.2 M weights."""
    height, width, channels = input_shape
    model = keras_rda.models.MobileNetV1((2 * height, 2 * width, channels), classes=10)
    _follow_quickly(layers, model)
    # In place of its own logits some in float32: those of bfloat16 tie.
    classifier = layers.Dense(10, dtype="float32")
    return keras.Sequential([layers.Input(input_shape), layers.UpSampling2D(2), *model.layers[1:-1], classifier])


def _follow_quickly(layers, model):
    """Let normalisation follow the batches as in the other networks: 0.999 or 0.99 needs more than 10 epochs."""
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9


def _residual(keras, layers, input_shape, excited):
    def convolution(x, filters, size, strides):
        x = layers.Conv2D(
            filters, size, strides=strides, padding="same", use_bias=False, kernel_initializer="he_normal"
        )(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    images = layers.Input(input_shape)
    x = layers.ReLU()(convolution(images, 16, 3, 2))
    for stage, filters in enumerate((16, 32, 64)):
        for block in range(3):
            strides = 2 if stage and not block else 1
            shortcut = convolution(x, filters, 1, strides) if strides == 2 else x
            x = layers.ReLU()(convolution(x, filters, 3, strides))
            x = layers.ReLU()(layers.Add()([shortcut, excited(convolution(x, filters, 3, 1), filters)]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, layers.Dense(10, dtype="float32")(x))


def resnet18(keras, layers, input_shape):
    """The paper's ResNet18, of Keras 3 only; 11.2 M weights."""
    return keras_rda.models.ResNet18(input_shape)
