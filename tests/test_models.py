"""The paper's network, and Keras' own architectures training from scratch on real CIFAR-10 images at 32×32."""

import keras
import numpy as np
import pytest
from helpers import BACKEND, PREPARED

import keras_rda

needs_cifar10 = pytest.mark.skipif(not PREPARED.is_dir(), reason=f"no prepared tensorflow-datasets at {PREPARED}")
applications = keras.applications


def test_resnet18_is_the_cifar_form():
    model = keras_rda.models.ResNet18((32, 32, 3), 10)
    assert model.output_shape == (None, 10)
    # 11,173,962 trainable parameters in the CIFAR form of ResNet18 with a head of 10 classes.
    assert sum(row.size for row in keras_rda.summary(model).rows) == 11_173_962
    assert sum(isinstance(layer, keras.layers.Conv2D) for layer in model.layers) == 20
    assert keras_rda.models.ResNet18((16, 16, 1), 7).output_shape == (None, 7)


def test_other_networks_of_the_paper():
    # Convolutions, two vectors of batch normalisation a convolution, and the head.
    for make, filters in (
        (keras_rda.models.VGG16, (64, 64, 128, 128, *(256,) * 3, *(512,) * 6)),
        (keras_rda.models.VGG19, (64, 64, 128, 128, *(256,) * 4, *(512,) * 8)),
    ):
        weights = sum(9 * a * b + 2 * b for a, b in zip((3, *filters), filters, strict=False)) + 512 * 10 + 10
        assert sum(row.size for row in keras_rda.summary(make()).rows) == weights
    narrow = keras_rda.models.ResNet18((64, 64, 3), 7, width=8, stem="imagenet")
    assert narrow.get_layer(index=1).kernel.shape == (7, 7, 3, 8)
    with pytest.raises(ValueError, match="stem must be 'cifar' or 'imagenet'; received 'vgg'"):
        keras_rda.models.ResNet18(stem="vgg")


@pytest.fixture(scope="module")
def cifar10():
    (images, labels), _ = keras_rda.datasets.load("cifar10", PREPARED)
    return (images[:256] / 255).astype("float32"), labels[:256]


@needs_cifar10
@pytest.mark.skipif(BACKEND != "tensorflow", reason="minutes of compilation on JAX; the architectures are Keras' own")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorflow-datasets and what it imports
@pytest.mark.parametrize(
    "name",
    [
        "ResNet18, narrow",
        *(
            pytest.param(name, marks=pytest.mark.every)
            for name in ("ResNet18", "MobileNet", "MobileNetV2", "ResNet50", "EfficientNetB0", "VGG16")
        ),
    ],
)
def test_architectures_train_and_get_sparse(name, cifar10):
    x, y = cifar10
    if name.startswith("ResNet18"):
        model = keras_rda.models.ResNet18((32, 32, 3), 10, width=16 if "narrow" in name else 64)
    else:
        rescale = 255 if name == "EfficientNetB0" else 1  # it has its own rescaling layer
        x = x * np.float32(rescale)
        model = getattr(applications, name)(
            weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None
        )
    # VGG16 has no normalisation layers: it needs its initial weights as centre, and small steps.
    arguments = {"center": "initial", "learning_rate": 0.02, "penalty": 1e-3} if name == "VGG16" else {"penalty": 1e-4}
    model.compile(
        keras_rda.MRDA(**arguments),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,  # compiling these networks takes a minute each; test_contract.py compiles
    )
    history = model.fit(x, y, batch_size=32, epochs=2, verbose=0, callbacks=[keras_rda.SparsityLogger()]).history
    assert history["loss"][-1] < history["loss"][0]
    assert 0 < history["kernel_sparsity"][-1] < 1
    print(name, history)
