"""Train the same network with SGD and with MRDA, export both to LiteRT, and read the files back.

    python examples/quickstart.py
    python examples/quickstart.py --dataset fashion_mnist --data-dir DIR

By default on the handwritten digits that come with the package. It prints a table (top-1 in Keras and in the LiteRT
interpreter on the whole test split, σ over all trainable weights, file sizes, largest difference between the two) and
saves the files and a plot of accuracy, σ and λ over the epochs.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"  # export needs it

import keras
import numpy as np
import plotting
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import keras_rda

BATCH_SIZE = {"digits": 32, "mnist": 128, "fashion_mnist": 128, "cifar10": 128}
EPOCHS = {"digits": 40, "mnist": 5, "fashion_mnist": 5, "cifar10": 5}
PENALTY = {"digits": 2.5e-3, "mnist": 2e-3, "fashion_mnist": 3e-3, "cifar10": 2e-3}


def network(input_shape, classes):
    """Three convolutions with batch normalisation: MRDA's zero centre needs normalisation layers."""
    layers = keras.layers

    def block(filters, strides):
        return [
            layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
        ]

    return keras.Sequential(
        [
            layers.Input(input_shape),
            *block(32, 1 if input_shape[0] <= 8 else 2),  # larger images: a quarter of the work
            *block(64, 2),
            *block(128, 1),
            layers.GlobalAveragePooling2D(),
            layers.Dense(classes),
        ]
    )


def load(dataset, data_dir):
    """Training and test images and labels, `((x, y), (x, y))`, of the embedded digits or of `tensorflow-datasets`."""
    return keras_rda.datasets.load_digits() if dataset == "digits" else keras_rda.datasets.load(dataset, data_dir)


def litert_logits(file, x):
    return np.concatenate([keras_rda.litert.predict(file, x[i : i + 360])["output_0"] for i in range(0, len(x), 360)])


class ProgressBar(keras.callbacks.Callback):
    """One bar for all epochs of one method, with the latest accuracy and σ."""

    def __init__(self, progress, method, epochs):
        super().__init__()
        self.progress = progress
        self.task = progress.add_task(method, total=epochs, status="")

    def on_epoch_end(self, epoch, logs=None):
        status = f"top-1 {logs['val_accuracy']:.4f}  σ {logs['sparsity']:.4f}"
        self.progress.update(self.task, completed=epoch + 1, status=status)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=EPOCHS, default="digits")
    parser.add_argument("--data-dir", help="prepared tensorflow-datasets directory; default: download to the usual one")
    parser.add_argument("--epochs", type=int, help=f"default: {EPOCHS}")
    parser.add_argument("--penalty", type=float, help=f"λ of MRDA; default: {PENALTY}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(__file__).parent / "output")
    arguments = parser.parse_args()
    if arguments.epochs is None:
        arguments.epochs = EPOCHS[arguments.dataset]
    if arguments.penalty is None:
        arguments.penalty = PENALTY[arguments.dataset]
    if arguments.epochs < 1:
        parser.error(f"--epochs must be at least 1; received {arguments.epochs}")
    return arguments


def main():
    arguments = parse_arguments()
    (x_train, y_train), (x_test, y_test) = load(arguments.dataset, arguments.data_dir)
    scale = np.float32(1 / x_train.max())
    x_train, x_test = x_train * scale, x_test * scale
    arguments.output.mkdir(parents=True, exist_ok=True)

    batch_size = BATCH_SIZE[arguments.dataset]
    steps = arguments.epochs * -(-len(x_train) // batch_size)
    methods = {
        "SGD": keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, steps), momentum=0.9),
        "MRDA": keras_rda.MRDA(keras.optimizers.schedules.CosineDecay(1.0, steps), arguments.penalty),
    }
    table = Table(
        title=f"{arguments.dataset}, {arguments.epochs} epochs, seed {arguments.seed}, λ {arguments.penalty:g}"
    )
    table.add_column("method")
    for column in ("top-1", "top-1 LiteRT", "σ", "bytes dense", "bytes sparse", "sparse/dense", "largest difference"):
        table.add_column(column, justify="right")
    histories = {}

    with Progress(
        TextColumn("{task.description:>5}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[status]}"),
    ) as progress:
        for method, optimizer in methods.items():
            keras.utils.set_random_seed(arguments.seed)
            model = network(x_train.shape[1:], int(y_train.max()) + 1)
            model.compile(
                optimizer,
                loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=["accuracy"],
                jit_compile=True,
            )
            histories[method] = model.fit(
                x_train,
                y_train,
                batch_size=batch_size,
                epochs=arguments.epochs,
                validation_data=(x_test, y_test),
                validation_batch_size=360,
                callbacks=[keras_rda.SparsityLogger(), ProgressBar(progress, method, arguments.epochs)],
                verbose=0,
            )

            file = arguments.output / f"{arguments.dataset}-{method.lower()}.tflite"
            report = keras_rda.export(model, file)
            expected = model.predict(x_test, batch_size=360, verbose=0)
            received = litert_logits(file, x_test)
            table.add_row(
                method,
                *(f"{100 * np.mean(np.argmax(logits, -1) == y_test):.2f}" for logits in (expected, received)),
                f"{keras_rda.sparsity(model):.4f}",
                f"{report.dense_bytes:,}",
                f"{report.bytes:,}",
                f"{report.bytes / report.dense_bytes:.3f}",
                f"{np.max(np.abs(received - expected)):.2g}",
            )

    options = [f"--{name} {getattr(arguments, name):g}" for name in ("epochs", "penalty", "seed")]
    command = f"python examples/quickstart.py --dataset {arguments.dataset} {' '.join(options)}"
    figure = keras_rda.plot_history(histories)[0].figure
    plotting.save(figure, arguments.output / f"{arguments.dataset}.png", command)
    console = Console(width=120) if not os.isatty(1) else Console()
    console.print(table)
    console.print(f"Files and plot: {os.path.relpath(arguments.output)}/")


if __name__ == "__main__":
    main()
