"""Cells of `examples/benchmarks/accuracy.py` as runs of the queue."""

import dataclasses
import pathlib
import sys
import time

import keras

from examples.paper import data, results, training

sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks"))  # its modules find each other there
import accuracy_data
import accuracy_training


class Watch(keras.callbacks.Callback):
    """Reports epochs, and stops training where the queue's clock says so, but not in its last call."""

    def __init__(self, clock, epochs):
        super().__init__()
        self.clock, self.epochs, self.seen = clock, epochs, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 < self.params["steps"] and self.clock.is_over():
            raise training.Paused

    def on_epoch_end(self, epoch, logs=None):
        self.seen += 1
        words = f"loss {logs['loss']:.4f}, top-1 of the training images {100 * logs['accuracy']:.2f}"
        self.clock.report(f"epoch {self.seen}/{self.epochs}: {words}, {time.perf_counter() - self.start:.1f} s")
        if self.seen < self.epochs and self.clock.pauses(self.epochs - self.seen):
            raise training.Paused


class Comparison:
    """A cell of accuracy.py, which has no checkpoint: it is begun only where it can end."""

    def __init__(self, cell, purpose):
        self.cell, self.purpose = cell, purpose

    def __str__(self):
        own = self.cell
        words = [own.task, own.method, *([f"σ {own.sparsity:g}"] if own.sparsity else []), f"seed {own.seed}"]
        usual = {"epochs": accuracy_data.TASKS[own.task].epochs, "dtype": "float32"}
        chosen = (f", {name} {getattr(own, name)}" for name in usual if getattr(own, name) != usual[name])
        return " ".join(words) + "".join(chosen)

    def key(self):
        return self.cell

    def is_done(self, lines):
        return results.holds(lines, {"benchmark": "accuracy"} | dataclasses.asdict(self.cell))

    def network(self):
        """What the time of an epoch depends on, but for the method."""
        return self.cell.task, self.cell.dtype

    def images(self):
        """Training images of an epoch."""
        return data.TRAINING_IMAGES[accuracy_data.TASKS[self.cell.task].dataset]

    def epochs(self):
        return accuracy_training.all_epochs(self.cell)

    def measure(self, data_dir, clock):
        """Train as long as the queue, a `clock` as for `training.train`, lets it; return the line of the results.

        Raises:
            training.Paused: the clock has stopped it.
        """
        line = accuracy_training.train(dataclasses.replace(self.cell, data_dir=data_dir), [Watch(clock, self.epochs())])
        words = [f"KERAS_BACKEND={self.cell.backend} python examples/benchmarks/accuracy.py"]
        names = ("task", "method", "sparsity", "seed", "epochs", "dtype")
        words += [f"--{name} {getattr(self.cell, name)}" for name in names if name != "sparsity" or self.cell.sparsity]
        return {"benchmark": "accuracy"} | line | {"command": " ".join([*words, "--data-dir DIR"])}
