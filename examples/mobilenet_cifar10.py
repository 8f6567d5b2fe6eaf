"""MobileNet on CIFAR-10, dense and sparse side by side: top-1, bytes, and time here, in a browser and on Arm.

    python examples/mobilenet_cifar10.py --data-dir DIR               # eleven minutes on two cores
    python examples/mobilenet_cifar10.py --pretrain --data-dir DIR    # made saved_models/cifar10-mobilenet.keras

It starts from the dense network in `saved_models`, which 24 epochs have trained, and trains it on twice: until nine
tenths of its weights are zero, and until channels are zero that need half of the multiply-adds, which `compress` then
removes. Times are of machines that are there: `python -m keras_rda.litert.wasm` and `… aarch64` bring two.
"""

import argparse
import math
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"  # on CPUs its depthwise convolutions are many times faster than XLA's

import keras
import numpy as np
import plotting
from quickstart import litert_logits
from rich.console import Console
from rich.table import Table

import keras_rda
from keras_rda.litert.machines import aarch64, wasm

BATCH_SIZE = 128
MACHINES = {None: "speed here", "wasm": "in a browser", "aarch64": "Arm, emulated"}
PRETRAINED = pathlib.Path(__file__).parents[1] / "saved_models" / "cifar10-mobilenet.keras"


def network():
    """MobileNet, version 1, with half of its channels, on images enlarged to 64×64; 0.8 million weights."""
    layers = keras.layers
    mobilenet = keras_rda.models.MobileNetV1((64, 64, 3), alpha=0.5, classes=10)
    for layer in mobilenet.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9  # 0.99 lags behind in training as short as this
    before = [layers.Input((32, 32, 3)), layers.Rescaling(1 / 127.5, -1), layers.UpSampling2D(2)]
    return keras.Sequential([*before, *mobilenet.layers[1:]])


class Augmented(keras.utils.PyDataset):
    """Batches in random order, each image flipped or not and moved by up to four pixels."""

    def __init__(self, images, labels, seed):
        super().__init__()
        self.images, self.labels, self.random = images, labels, np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self):
        return math.ceil(len(self.images) / BATCH_SIZE)

    def __getitem__(self, index):
        rows = self.order[index * BATCH_SIZE :][:BATCH_SIZE]
        padded = np.pad(self.images[rows], ((0, 0), (4, 4), (4, 4), (0, 0)), "reflect")
        top, left = self.random.integers(0, 9, (2, len(rows), 1))
        moved = padded[np.arange(len(rows))[:, None, None], (top + range(32))[..., None], (left + range(32))[:, None]]
        return np.where(self.random.random((len(rows), 1, 1, 1)) < 0.5, moved[:, :, ::-1], moved), self.labels[rows]

    def on_epoch_end(self):
        self.order = self.random.permutation(len(self.images))


def train(model, optimizer, batches, epochs, callbacks=()):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)  # see KERAS_BACKEND above
    # Batches are drawn in random order; `fit` must not draw theirs as well.
    model.fit(batches, epochs=epochs, callbacks=callbacks, shuffle=False, verbose=2)


def pretrain(batches, epochs, file):
    """Dense training with SGD. Weights of two bytes halve the file and lose nothing that shows."""
    model = network()
    rate = keras.optimizers.schedules.CosineDecay(0.1, epochs * len(batches))
    train(model, keras.optimizers.SGD(rate, momentum=0.9, weight_decay=5e-3), batches, epochs)
    keras.config.set_dtype_policy("float16")
    halved = network()
    halved.set_weights(model.get_weights())
    halved.save(file)


def pretrained():
    model = network()
    model.set_weights(keras.saving.load_model(PRETRAINED, compile=False).get_weights())
    return model


def fine_tuned(penalty, target, batches, epochs):
    """The pretrained network trained on until `target` is met."""
    model = pretrained()
    rate = keras.optimizers.schedules.CosineDecay(0.2, epochs * len(batches))
    optimizer = keras_rda.XRDA(rate, penalty(model), weight_decay=5e-4)
    train(model, optimizer, batches, epochs, [target])
    return model


def measured(models, folder, x_test, y_test):
    """A row a model: top-1 and bytes of its file, and how many times faster than the first it is on each machine."""
    # On an Arm machine "here" is that already.
    emulated = aarch64.is_ready() and not aarch64.is_arm()
    there = [None, *(["wasm"] if wasm.is_ready() else []), *(["aarch64"] if emulated else [])]
    files = {name: folder / f"mobilenet-{name}.tflite" for name in models}
    rows = {}
    for name, model in models.items():
        # Batches of one image and channels in multiples of 8 are what browsers want.
        keras_rda.export(model, files[name], batch_size=1, machine="wasm" if "wasm" in there else None)
        top1 = 100 * float(np.mean(np.argmax(litert_logits(files[name], x_test), -1) == y_test))
        rows[name] = {"top-1, %": top1, "bytes": files[name].stat().st_size}
    for machine in there:
        dense, *others = keras_rda.litert.benchmark(files, machine=machine)
        for row, latency in zip(rows.values(), (dense, *others), strict=True):
            row[MACHINES[machine]] = dense.median / latency.median
    return rows


def draw(rows, file, command):
    """A panel a column, a bar a network."""
    columns = list(next(iter(rows.values())))
    figure = plotting.figure(1.6)
    for panel, column in zip(figure.subplots(1, len(columns), sharey=True), columns, strict=True):
        values = {name: row[column] for name, row in rows.items()}
        plotting.bars(panel, values, [text(column, value) for value in values.values()], column)
        panel.set(xticks=[], xlim=(0, 1.7 * max(values.values())))
    plotting.save(figure, file, command)


def text(column, value):
    return f"{value:,}" if column == "bytes" else f"{value:.2f}" if column == "top-1, %" else f"{value:.1f} ×"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="prepared tensorflow-datasets directory; default: download to the usual one")
    parser.add_argument("--pretrain", action="store_true", help="train the dense network from random weights")
    parser.add_argument("--epochs", type=int, help="of each training; default: 24 with --pretrain, else 5")
    parser.add_argument("--subset", type=int, help="number of training images; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, help="a folder; default: saved_models or examples/output")
    arguments = parser.parse_args()
    for name in ("epochs", "subset"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            parser.error(f"--{name} must be at least 1; received {value}")
    epochs = arguments.epochs or (24 if arguments.pretrain else 5)
    output = arguments.output or (PRETRAINED.parent if arguments.pretrain else pathlib.Path(__file__).parent / "output")
    output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(arguments.seed)
    (x, y), test = keras_rda.datasets.load("cifar10", arguments.data_dir)
    batches = Augmented(x[: arguments.subset], y[: arguments.subset], arguments.seed)
    if arguments.pretrain:
        pretrain(batches, epochs, output / PRETRAINED.name)
        return

    def channels(model):
        return keras_rda.GroupL1(1e-6, groups="channels", layout=model)

    zeros = fine_tuned(lambda model: 1e-6, keras_rda.TargetSparsity(0.9, end=0.5), batches, epochs)
    half = fine_tuned(channels, keras_rda.TargetSparsity(0.5, of="multiply_adds", end=0.5), batches, epochs)
    small = keras_rda.compress(half, multiple_of=8)
    rows = measured({"dense": pretrained(), "zeros": zeros, "channels": small}, output, *test)
    columns = list(rows["dense"])
    subset = f" --subset {arguments.subset}" if arguments.subset else ""
    options = f"--epochs {epochs}{subset} --seed {arguments.seed}"
    table = Table("network", title=f"MobileNet on CIFAR-10, {options}")
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(text(column, row[column]) for column in columns))
    Console(width=120).print(table)
    draw(rows, output / "mobilenet.png", f"python examples/mobilenet_cifar10.py {options}")


if __name__ == "__main__":
    main()
