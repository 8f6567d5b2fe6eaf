"""A wanted share of zeros without tuning λ: from scratch, and from a dense model that is trained already.

    python examples/recipe.py
    python examples/recipe.py --dataset fashion_mnist --data-dir DIR

Prints three rows: dense training; the recipe from scratch in as many epochs; the dense model made sparse by fine-tuning
in a quarter as many, of which the first two fifths choose the zeros and the others train what is left. Each model is
compressed, saved and exported; top-1 is that of its LiteRT file. A plot shows accuracy, σ and λ over the epochs.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"  # export needs it

import keras
import numpy as np
import plotting
from quickstart import BATCH_SIZE, litert_logits, load, network
from rich.console import Console
from rich.table import Table

import keras_rda

EPOCHS = {"digits": 60, "mnist": 10, "fashion_mnist": 20, "cifar10": 20}
WEIGHT_DECAY = 5e-4


def cosine(rate, steps):
    return keras.optimizers.schedules.CosineDecay(rate, steps)


def train(model, data, epochs, batch_size, sparsity=None, learning_rate=1.0, end=0.75, first=0):
    """Train densely, or, if `sparsity` is given, by the recipe, and return the history; `first` epochs came before.

    `data` are images and labels to train with, and the same to test with.
    """
    train, test = data
    steps = epochs * -(-len(train[0]) // batch_size)
    if sparsity is None:
        # Keras' SGD decays the weights themselves, so momentum does not multiply it.
        optimizer = keras.optimizers.SGD(cosine(0.1, steps), momentum=0.9, weight_decay=WEIGHT_DECAY / 0.1)
        callbacks = [keras_rda.SparsityLogger()]
    else:
        optimizer = keras_rda.XRDA(cosine(learning_rate, steps), weight_decay=WEIGHT_DECAY)
        callbacks = [keras_rda.TargetSparsity(sparsity, end=end)]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model.fit(
        *train,
        batch_size,
        first + epochs,
        0,
        callbacks,
        validation_data=test,
        validation_batch_size=360,
        initial_epoch=first,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=EPOCHS, default="digits")
    parser.add_argument("--data-dir", help="prepared tensorflow-datasets directory; default: download to the usual one")
    parser.add_argument("--sparsity", type=float, default=0.95, help="wanted σ of the kernels from scratch")
    parser.add_argument("--fine-tuned-sparsity", type=float, default=0.9, help="wanted σ of the fine-tuned model")
    parser.add_argument("--epochs", type=int, help=f"default: {EPOCHS}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(__file__).parent / "output")
    arguments = parser.parse_args()
    epochs, batch_size = arguments.epochs or EPOCHS[arguments.dataset], BATCH_SIZE[arguments.dataset]
    if epochs < 8:
        parser.error(f"--epochs must be at least 8, to have two in a quarter of them; received {epochs}")
    (x_train, y_train), (x_test, y_test) = load(arguments.dataset, arguments.data_dir)
    mean, deviation = x_train.mean((0, 1, 2)), x_train.std((0, 1, 2))
    x_train, x_test = (((x - mean) / deviation).astype("float32") for x in (x_train, x_test))
    data = (x_train, y_train), (x_test, y_test)
    arguments.output.mkdir(parents=True, exist_ok=True)

    table = Table("model", title=f"{arguments.dataset}, seed {arguments.seed}")
    for column in ("epochs", "top-1 LiteRT", "σ, kernels", "bytes"):
        table.add_column(column, justify="right")

    def show(name, model, epochs):
        file = arguments.output / f"{arguments.dataset}-{name}.tflite"
        small = keras_rda.compress(model)
        small.save(file.with_suffix(".keras"))
        report = keras_rda.export(small, file)
        sigma = keras_rda.sparsity(model, kernels_only=True)
        top1 = np.mean(np.argmax(litert_logits(file, x_test), -1) == y_test)
        table.add_row(name, epochs, f"{100 * top1:.2f}", f"{sigma:.4f}", f"{report.bytes:,}")

    keras.utils.set_random_seed(arguments.seed)
    dense = network(x_train.shape[1:], int(y_train.max()) + 1)
    initial_weights = dense.get_weights()
    histories = {"dense": train(dense, data, epochs, batch_size)}
    show("dense", dense, str(epochs))

    sparse = keras.models.clone_model(dense)
    sparse.set_weights(initial_weights)
    histories["sparse"] = train(sparse, data, epochs, batch_size, arguments.sparsity)
    show("sparse", sparse, str(epochs))

    fine_tuned = keras.models.clone_model(dense)
    fine_tuned.set_weights(dense.get_weights())
    more = epochs // 4
    choosing = max(1, round(0.4 * more))
    histories["fine-tuned: zeros chosen"] = train(
        fine_tuned, data, choosing, batch_size, arguments.fine_tuned_sparsity, learning_rate=0.5, end=0.9, first=epochs
    )
    keras_rda.freeze_zeros(fine_tuned)
    histories["fine-tuned: zeros frozen"] = train(
        fine_tuned, data, more - choosing, batch_size, first=epochs + choosing
    )
    show("fine-tuned", fine_tuned, f"{epochs} + {more}")

    Console(width=120).print(table)
    figure = keras_rda.plot_history(histories)[0].figure
    options = f"--dataset {arguments.dataset} --epochs {epochs} --seed {arguments.seed}"
    plotting.save(figure, arguments.output / f"{arguments.dataset}-recipe.png", f"python examples/recipe.py {options}")


if __name__ == "__main__":
    main()
