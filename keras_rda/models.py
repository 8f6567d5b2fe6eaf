"""Networks of the paper's experiments."""

import keras


def ResNet18(input_shape=(32, 32, 3), classes=10):
    """The ResNet18 of CIFAR experiments: a 3×3 stem without pooling, four stages of two basic blocks.

    11.2 M parameters; batch normalisation after every convolution, so it trains with MRDA's zero centre.

    Args:
        input_shape: `(height, width, channels)` of the images.
        classes: Number of classes.

    Returns:
        A `keras.Model` from images to logits (batch, classes), without softmax.

    Reference: He et al., 2016; section 4 of the paper.
    """
    layers = keras.layers

    def convolution(x, filters, size, strides=1):
        x = layers.Conv2D(
            filters, size, strides=strides, padding="same", use_bias=False, kernel_initializer="he_normal"
        )(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    def block(x, filters, strides):
        shortcut = x
        if strides != 1 or x.shape[-1] != filters:
            shortcut = convolution(x, filters, 1, strides)
        x = layers.ReLU()(convolution(x, filters, 3, strides))
        x = convolution(x, filters, 3)
        return layers.ReLU()(layers.Add()([x, shortcut]))

    images = keras.Input(input_shape)
    x = layers.ReLU()(convolution(images, 64, 3))
    for stage, filters in enumerate((64, 128, 256, 512)):
        x = block(x, filters, 1 if stage == 0 else 2)
        x = block(x, filters, 1)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, layers.Dense(classes)(x), name="resnet18")
