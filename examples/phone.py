"""From MRDA to a file for a phone, on the embedded digits: float32, float16, dynamic, int8, each compared with Keras.

    python examples/phone.py

Prints bytes, top-1 and the largest difference from Keras for each file, and draws the first two; where AArch64
is set up (`python3 -m keras_rda.litert.aarch64`), the files were run there too, natively on an Arm machine or emulated.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"  # export needs it

import keras
import numpy as np
import plotting
from quickstart import PENALTY, litert_logits, network
from rich.console import Console
from rich.table import Table

import keras_rda
from keras_rda.litert import aarch64


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(__file__).parent / "output")
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error(f"--epochs must be at least 1; received {arguments.epochs}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(arguments.seed)
    (x_train, y_train), (x_test, y_test) = keras_rda.datasets.load_digits()
    x_train, x_test = (x.astype("float32") / 16 for x in (x_train, x_test))

    model = network(x_train.shape[1:], 10)
    rate = keras.optimizers.schedules.CosineDecay(1.0, arguments.epochs * -(-len(x_train) // 32))
    model.compile(keras_rda.MRDA(rate, PENALTY["digits"]), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x_train, y_train, batch_size=32, epochs=arguments.epochs, verbose=0)
    small = keras_rda.compress(model)

    machine = "aarch64" if aarch64.is_ready() else None
    table = Table("quantize", title=f"MRDA, σ {keras_rda.sparsity(model):.4f}, {arguments.epochs} epochs")
    for column in ("bytes", "of dense float32", "top-1 LiteRT", "largest difference"):
        table.add_column(column, justify="right")
    table.add_column("run on")
    expected, dense = model.predict(x_test, batch_size=360, verbose=0), 4 * model.count_params()
    sizes, texts = {"dense float32": dense / 1000}, [f"{dense / 1000:.0f} kB"]
    for quantize in (None, "float16", "dynamic", "int8"):
        file = arguments.output / f"digits-{quantize or 'float32'}.tflite"
        # The ranges of int8 activations are those of these images.
        report = keras_rda.export(small, file, quantize, representative_data=x_train[:200], machine=machine)
        logits = litert_logits(file, x_test)
        top1, size = 100 * np.mean(np.argmax(logits, -1) == y_test), report.bytes / 1000
        sizes[quantize or "float32"], texts = size, [*texts, f"{size:.0f} kB, top-1 {top1:.2f} %"]
        table.add_row(
            str(quantize),
            f"{report.bytes:,}",
            f"1/{dense / report.bytes:.1f}",
            f"{top1:.2f}",
            f"{np.max(np.abs(logits - expected)):.2g}",
            "this machine" + (" and AArch64" if machine else ""),
        )
    figure = plotting.figure(2)
    plotting.bars(figure.subplots(), sizes, texts, "kB of the LiteRT file")
    plotting.save(
        figure, arguments.output / "digits-phone.png", f"python examples/phone.py --epochs {arguments.epochs}"
    )
    console = Console(width=120)
    console.print(table)
    console.print(f"Top-1 in Keras: {100 * np.mean(np.argmax(expected, -1) == y_test):.2f}. “Dense”: 4 bytes a weight.")


if __name__ == "__main__":
    main()
