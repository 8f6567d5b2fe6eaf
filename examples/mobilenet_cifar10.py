"""A Keras application from end to end: train MobileNet with MRDA on CIFAR-10, compress, export, time.

    python examples/mobilenet_cifar10.py --data-dir DIR
    python examples/mobilenet_cifar10.py --subset 5000     # to try it

The dense file of the same network is timed in turns with the small one.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"  # export needs it

import keras
import numpy as np
from quickstart import litert_logits

import keras_rda

BATCH_SIZE = 128


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="prepared tensorflow-datasets directory; default: download to the usual one")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--subset", type=int, help="number of training images; default: all")
    parser.add_argument("--alpha", type=float, default=1.0, help="MobileNet's factor of the numbers of channels")
    parser.add_argument("--penalty", type=float, default=1e-4, help="λ of MRDA")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(__file__).parent / "output")
    arguments = parser.parse_args()
    for name in ("epochs", "subset"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            parser.error(f"--{name} must be at least 1; received {value}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(arguments.seed)
    (x_train, y_train), (x_test, y_test) = keras_rda.datasets.load("cifar10", arguments.data_dir)
    x_train, y_train = x_train[: arguments.subset], y_train[: arguments.subset]
    x_train, x_test = (x.astype("float32") / 127.5 - 1 for x in (x_train, x_test))

    model = keras.applications.MobileNet(
        weights=None, input_shape=(32, 32, 3), alpha=arguments.alpha, classes=10, classifier_activation=None
    )
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # with Keras' 0.99 the averages lag hundreds of steps behind weights that begin anew
    rate = keras.optimizers.schedules.CosineDecay(1.0, arguments.epochs * -(-len(x_train) // BATCH_SIZE))
    model.compile(
        keras_rda.MRDA(rate, arguments.penalty),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        x_train,
        y_train,
        batch_size=BATCH_SIZE,
        epochs=arguments.epochs,
        validation_data=(x_test, y_test),
        callbacks=[keras_rda.SparsityLogger()],
        verbose=2,
    )

    dense_file, file = arguments.output / "mobilenet-dense.tflite", arguments.output / "mobilenet.tflite"
    model.export(str(dense_file), format="litert", verbose=False)
    small, report = keras_rda.compress(model, report=True)
    print(report)
    print(keras_rda.export(small, file))
    top1 = np.mean(np.argmax(litert_logits(file, x_test), -1) == y_test)
    print(f"top-1 of the file: {100 * top1:.2f} %, σ {keras_rda.sparsity(model):.4f}")
    dense, sparse = keras_rda.litert.benchmark({"dense": dense_file, "compressed": file})
    print(f"bytes: {file.stat().st_size:,} of {dense_file.stat().st_size:,}")
    print(f"latency: {1e3 * sparse.median:.2f} ms, dense {1e3 * dense.median:.2f} ms")


if __name__ == "__main__":
    main()
