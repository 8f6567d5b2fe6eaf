"""Networks of the paper's experiments."""

from typing import Literal

import keras

Shape = tuple[int, int, int]


def ResNet18(
    input_shape: Shape = (32, 32, 3), classes: int = 10, width: int = 64, stem: Literal["cifar", "imagenet"] = "cifar"
) -> keras.Model:
    """The ResNet18 of CIFAR experiments: a 3×3 stem without pooling, four stages of two basic blocks.

    11.2 M parameters; batch normalisation after every convolution, so it trains with MRDA's zero centre.

    Args:
        input_shape: `(height, width, channels)` of the images.
        classes: Number of classes.
        width: Filters of the first stage; each later stage has twice as many.
        stem: `"cifar"`, or `"imagenet"` for the form that ImageNet is trained with: a 7×7 stem of stride 2 and pooling.

    Returns:
        A `keras.Model` from images to logits (batch, classes), without softmax.

    Raises:
        ValueError: `stem` is neither.

    Reference: He et al., 2016; section 4 of the paper.
    """
    if stem not in ("cifar", "imagenet"):
        raise ValueError(f"ResNet18: stem must be 'cifar' or 'imagenet'; received {stem!r}.")
    layers = keras.layers

    def block(x, filters, strides):
        shortcut = x
        if strides != 1 or x.shape[-1] != filters:
            shortcut = _convolution(x, filters, 1, strides)
        x = layers.ReLU()(_convolution(x, filters, 3, strides))
        x = _convolution(x, filters, 3)
        return layers.ReLU()(layers.Add()([x, shortcut]))

    images = keras.Input(input_shape)
    if stem == "cifar":
        x = layers.ReLU()(_convolution(images, width, 3))
    else:
        x = layers.ReLU()(_convolution(images, width, 7, 2))
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    for stage in range(4):
        x = block(x, width * 2**stage, 1 if stage == 0 else 2)
        x = block(x, width * 2**stage, 1)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, _logits(x, classes), name="resnet18")


def VGG16(input_shape: Shape = (32, 32, 3), classes: int = 10, width: int = 64) -> keras.Model:
    """The VGG16 of CIFAR experiments: 13 convolutions with batch normalisation, one dense layer; 14.7 M parameters.

    Args:
        input_shape: `(height, width, channels)` of the images, at least 32 high and wide: five poolings halve them.
        classes: Number of classes.
        width: Filters of the first stage; later stages have 2, 4, 8 and 8 times as many.

    Returns:
        A `keras.Model` from images to logits (batch, classes), without softmax.

    Reference: Simonyan and Zisserman, 2015, configuration D; section 4 of the paper.
    """
    return _vgg("vgg16", (2, 2, 3, 3, 3), input_shape, classes, width)


def VGG19(input_shape: Shape = (32, 32, 3), classes: int = 10, width: int = 64) -> keras.Model:
    """The VGG19 of CIFAR experiments: 16 convolutions with batch normalisation, one dense layer; 20.0 M parameters.

    Args:
        input_shape: `(height, width, channels)` of the images, at least 32 high and wide: five poolings halve them.
        classes: Number of classes.
        width: Filters of the first stage; later stages have 2, 4, 8 and 8 times as many.

    Returns:
        A `keras.Model` from images to logits (batch, classes), without softmax.

    Reference: Simonyan and Zisserman, 2015, configuration E; section 4 of the paper.
    """
    return _vgg("vgg19", (2, 2, 4, 4, 4), input_shape, classes, width)


def _vgg(name, convolutions, input_shape, classes, width):
    layers = keras.layers
    x = images = keras.Input(input_shape)
    for count, factor in zip(convolutions, (1, 2, 4, 8, 8), strict=True):
        for _ in range(count):
            x = layers.ReLU()(_convolution(x, factor * width, 3))
        x = layers.MaxPooling2D()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, _logits(x, classes), name=name)


def _logits(x, classes):
    """In float32 whatever the policy: with the eight bits of bfloat16 logits tie."""
    return keras.layers.Dense(classes, dtype="float32")(x)


def _convolution(x, filters, size, strides=1):
    """A convolution without bias, and batch normalisation."""
    convolution = keras.layers.Conv2D(
        filters, size, strides=strides, padding="same", use_bias=False, kernel_initializer="he_normal"
    )
    return keras.layers.BatchNormalization(momentum=0.9)(convolution(x))


def DSCNN(input_shape: Shape = (49, 10, 1), classes: int = 12, width: int = 64) -> keras.Model:
    """The depthwise-separable network for spoken keywords on microcontrollers; 24 k parameters.

    Args:
        input_shape: `(frames, coefficients, 1)` of a sound: one second's 49 windows, 10 cepstral coefficients each.
        classes: Number of classes.
        width: Filters of each layer.

    Returns:
        A `keras.Model` from sounds to logits (batch, classes), without softmax.

    Reference: Zhang et al., 2017, Hello Edge: Keyword Spotting on Microcontrollers.
    """
    layers = keras.layers
    sounds = keras.Input(input_shape)
    x = layers.ReLU()(_convolution(sounds, width, (10, 4), strides=2))
    for _ in range(4):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.ReLU()(_convolution(x, width, 1))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(sounds, _logits(x, classes), name="ds_cnn")


def MobileNetV1(input_shape: Shape = (224, 224, 3), alpha: float = 1.0, classes: int = 1000) -> keras.Model:
    """MobileNet, version 1, padded so that XNNPACK's sparse kernels run it: zeros make it faster on Arm.

    They need strided convolutions with the same padding on every side, where `keras.applications` pads at the end only:
    same parameters, other weights. `litert.xnnpack.sparse_kernels` checks a file.

    Args:
        input_shape: `(height, width, channels)` of the images; the sparse kernels need 3 channels.
        alpha: Factor of the numbers of channels.
        classes: Number of classes.

    Returns:
        A `keras.Model` from images to logits (batch, classes), without softmax.

    Reference: Howard et al., 2017.
    """
    layers = keras.layers
    images = keras.Input(input_shape)
    x = layers.ReLU(6)(_normalized(layers.Conv2D(int(32 * alpha), 3, strides=2, use_bias=False), images))
    for filters, strides in (
        *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
        *((512, 1),) * 5,
        *((1024, 2), (1024, 1)),
    ):
        x = layers.ReLU(6)(_normalized(layers.DepthwiseConv2D(3, strides=strides, use_bias=False), x))
        x = layers.ReLU(6)(_normalized(layers.Conv2D(int(filters * alpha), 1, use_bias=False), x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, layers.Dense(classes)(x), name="mobilenet_v1")


def MobileNetV2(input_shape: Shape = (224, 224, 3), alpha: float = 1.0, classes: int = 1000) -> keras.Model:
    """MobileNet, version 2, padded so that XNNPACK's sparse kernels run it, as `MobileNetV1` is.

    Args:
        input_shape: `(height, width, channels)` of the images; the sparse kernels need 3 channels.
        alpha: Factor of the numbers of channels.
        classes: Number of classes.

    Returns:
        A `keras.Model` from images to logits (batch, classes), without softmax.

    Reference: Sandler et al., 2018.
    """
    layers = keras.layers

    def channels(filters):  # a multiple of 8 that is not below 90 % of what alpha asks for
        rounded = max(8, int(filters * alpha + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * filters * alpha else rounded

    images = keras.Input(input_shape)
    x = layers.ReLU(6)(_normalized(layers.Conv2D(channels(32), 3, strides=2, use_bias=False), images))
    for expansion, filters, blocks, strides in (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for block in range(blocks):
            shortcut, inputs = x, x.shape[-1]
            if expansion != 1:
                x = layers.ReLU(6)(_normalized(layers.Conv2D(expansion * inputs, 1, use_bias=False), x))
            depthwise = layers.DepthwiseConv2D(3, strides=strides if block == 0 else 1, use_bias=False)
            x = layers.ReLU(6)(_normalized(depthwise, x))
            x = _normalized(layers.Conv2D(channels(filters), 1, use_bias=False), x)
            if block > 0:
                x = layers.Add()([shortcut, x])
    x = layers.ReLU(6)(_normalized(layers.Conv2D(max(1280, channels(1280)), 1, use_bias=False), x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, layers.Dense(classes)(x), name="mobilenet_v2")


def _normalized(convolution, x):
    """A convolution with 1 pixel of zeros on every side if it is 3×3, and batch normalisation."""
    if convolution.kernel_size != (1, 1):
        x = keras.layers.ZeroPadding2D(1)(x)
    return keras.layers.BatchNormalization()(convolution(x))
