"""A network of keyword-spotting size as a file for microcontrollers, dense and with nine zeros in ten.

    python -m pip install 'keras_rda[micro]'
    python examples/microcontroller.py

There are no sounds in the package: its digits, stretched to the 49×10 cepstral coefficients of a second, stand in for
them. DS-CNN is trained by the recipe and exported in int8 for TFLite Micro: without its dead channels, for a runtime of
any age, and with its zeros left out too, which needs DECODE; of the latter a C header is written. Prints and draws
flash, arena (RAM) and time of both beside the dense file, in TFLite Micro's interpreter, and prints their top-1.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"  # export needs it

import keras
import numpy as np
import plotting
from recipe import train
from rich.console import Console
from rich.table import Table

import keras_rda
from keras_rda.litert.machines import micro


def network(width):
    digits = keras.Input((8, 8, 1), name="digit")
    stretched = keras.layers.Resizing(49, 10)(digits)
    return keras.Model(digits, keras_rda.models.DSCNN((49, 10, 1), 10, width)(stretched))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--sparsity", type=float, default=0.9, help="wanted σ of the kernels")
    parser.add_argument("--width", type=int, default=64, help="filters of each layer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(__file__).parent / "output")
    arguments = parser.parse_args()
    if arguments.epochs < 2:
        parser.error(f"--epochs must be at least 2; received {arguments.epochs}")
    micro.check_ready()
    arguments.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(arguments.seed)
    (x_train, y_train), (x_test, y_test) = keras_rda.datasets.load_digits()
    mean, deviation = x_train.mean((0, 1, 2)), x_train.std((0, 1, 2))
    x_train, x_test = (((x - mean) / deviation).astype("float32") for x in (x_train, x_test))

    model = network(arguments.width)
    train(model, ((x_train, y_train), (x_test, y_test)), arguments.epochs, 32, arguments.sparsity)
    plain = keras.Model(model.inputs, model.outputs)  # the same layers, without the optimizer
    plain.save(arguments.output / "digits-ds-cnn.keras")

    table = Table("file", title=f"DS-CNN in int8, σ {keras_rda.sparsity(model, kernels_only=True):.4f}, TFLite Micro")
    for column in ("flash, bytes", "arena, bytes", "time", "top-1"):
        table.add_column(column, justify="right")
    rows = []
    for name, sparse, header in (
        ("channels removed", False, None),
        ("zeros left out", True, arguments.output / "digits_ds_cnn.h"),
    ):
        file = arguments.output / ("digits-ds-cnn.tflite" if sparse else "digits-ds-cnn-dense.tflite")
        report = keras_rda.export(model, file, "int8", x_train[:200], "micro", sparse=sparse, header=header)
        (run,) = micro.run([(file, x_test)])
        (logits,) = run.outputs.values()
        measured, top1 = report.measured, 100 * np.mean(np.argmax(logits, -1) == y_test)
        time = 1 / measured.ratio if measured.ratio else 1.0  # there was no channel to remove
        rows.append((name, report.bytes, measured.arena, time, f"{top1:.2f}"))
    rows.insert(0, ("dense", report.dense_bytes, measured.dense_arena, 1.0, ""))
    for name, flash, arena, time, top1 in rows:
        table.add_row(name, f"{flash:,}", f"{arena:,}", f"{time:.2f}", top1)
    figure = plotting.figure(1.6)
    names, *columns, _ = zip(*rows, strict=True)
    titles = ("flash, kB", "arena (RAM), kB", "time, TFLite Micro")
    panels = figure.subplots(1, 3, sharey=True)
    for panel, title, values, unit in zip(panels, titles, columns, (1000, 1000, 1), strict=True):
        values = {name: value / unit for name, value in zip(names, values, strict=True)}
        plotting.bars(panel, values, [f"{value:.3g}" for value in values.values()], title)
    plotting.save(figure, arguments.output / "digits-ds-cnn.png", f"python examples/microcontroller.py, {table.title}")
    console = Console(width=120)
    console.print(table)
    top1 = 100 * np.mean(np.argmax(model.predict(x_test, batch_size=360, verbose=0), -1) == y_test)
    console.print(f"Top-1 in Keras: {top1:.2f}. For the resolver: {', '.join(measured.resolver)}.")


if __name__ == "__main__":
    main()
