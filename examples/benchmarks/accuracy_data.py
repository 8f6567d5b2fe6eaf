"""Tasks, batches and results that accuracy.py and accuracy_tfmot.py share; the Keras in use is an argument."""

import dataclasses
import json
import os
import pathlib
import platform
import sys
from collections.abc import Callable

import numpy as np
from accuracy_networks import convolutions, mobilenet_v1, mobilenet_v2, residual, resnet18, squeeze_and_excite, wide

import keras_rda.datasets

sys.path.append(str(pathlib.Path(__file__).parents[2]))  # where scripts find `examples`
from examples.paper import data
from examples.paper.results import COMPARED as KEY

METHODS = (
    *("dense", "recipe", "tfmot", "gmp", "rigl", "acdc", "l1_threshold", "fine_tuning", "channels"),
    *("channels_together", "channels_by_cost", "channels_by_kernel"),
    *("sda", "rda", "mrda", "mrda_cosine", "prox_sgd", "sqrt_prox_sgd", "prox_sgd_momentum", "rmda", "ftrl"),
)
DTYPES = ("float32", "mixed_bfloat16")
DENSE = {"dense", "sda", "ftrl"}  # no target: σ is what it is
MULTIPLY_ADDS = {"channels_together", "channels_by_cost", "channels_by_kernel"}  # the target is a share of these
MACHINE = f"{os.cpu_count()} × {platform.machine()}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run: `sparsity` is the wanted σ of the kernels, or share of multiply-adds, 0 for dense training.

    `threads` are TensorFlow's, None for all. `model` is a file to save to; `dense` one of the same cell's dense
    training, which is then not done again.
    """

    task: str
    method: str
    sparsity: float
    seed: int
    epochs: int
    data_dir: str | None
    threads: int | None
    model: str | None = None
    dense: str | None = None
    dtype: str = "float32"  # what layers compute in
    backend: str = "tensorflow"

    def key(self):
        return tuple(getattr(self, name) for name in KEY)


MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the recipe does best with on seed 0: rate, decay (None: the task's), and when σ reaches its target."""

    learning_rate: float = 1.0
    weight_decay: float | None = None
    end: float = 0.75


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set with a network and a budget."""

    dataset: str
    input_shape: tuple[int, int, int]
    network: Callable
    epochs: int
    augmented: bool
    learning_rate: float = 0.1  # of SGD with momentum, falling to zero by a cosine
    weight_decay: float = 5e-4  # as a part of the gradient; what dense training does best with
    l1_in_the_loss: float = 1e-4  # of `l1_threshold`; what does best on seed 0
    recipe: Recipe = Recipe()

    @property
    def decoupled_weight_decay(self):
        """The same for Keras' SGD, which takes it out of the weights times the rate, without momentum's factor."""
        return self.weight_decay / (1 - MOMENTUM)


TASKS = {
    "digits": Task("digits", (8, 8, 1), convolutions, 60, augmented=False),  # embedded: to try the command
    "fashion_mnist": Task(
        *("fashion_mnist", (28, 28, 1), convolutions, 20, False), weight_decay=1e-3, recipe=Recipe(2.0, 5e-4)
    ),
    "fashion_mnist_residual": Task("fashion_mnist", (28, 28, 1), residual, 10, augmented=False, weight_decay=1e-3),
    "cifar10": Task("cifar10", (32, 32, 3), residual, 10, True, recipe=Recipe(2.0, 1e-3, 0.9)),
    "cifar10_resnet18": Task("cifar10", (32, 32, 3), resnet18, 120, augmented=True),
    "cifar10_mobilenet_v1": Task("cifar10", (32, 32, 3), mobilenet_v1, 60, augmented=True),
    "cifar10_mobilenet_v2": Task("cifar10", (32, 32, 3), mobilenet_v2, 10, augmented=True),
    "cifar10_squeeze_and_excite": Task("cifar10", (32, 32, 3), squeeze_and_excite, 10, augmented=True),
    "cifar10_plain": Task("cifar10", (32, 32, 3), wide, 10, augmented=True),
}
BATCH_SIZE = 128


def make_cell(task, method, sparsity, seed, epochs=None, **others):
    """A cell with the epochs of its task, unless told otherwise, and σ 0 where the method has no target."""
    return Cell(task, method, 0.0 if method in DENSE else sparsity, seed, epochs or TASKS[task].epochs, **others)


def dataset(cell):
    """The images and labels of a cell, for JAX with their augmentation."""
    task = TASKS[cell.task]
    if task.dataset == "digits":
        (x_train, y_train), (x_test, y_test) = keras_rda.datasets.load_digits()
        return data.Arrays(x_train, y_train.astype("int32"), x_test, y_test.astype("int32"), 10, task.augmented)
    return data.load(task.dataset, cell.data_dir, augmentation="standard" if task.augmented else "none")


def load(sequence, cell):
    """The training batches as a `sequence` (the base class of the Keras in use), and the test images and labels."""
    arrays = dataset(cell)
    x_train, y_train, x_test, y_test = arrays.x_train, arrays.y_train, arrays.x_test, arrays.y_test
    mean, deviation = x_train.mean((0, 1, 2)), x_train.std((0, 1, 2))

    def standardised(images):
        return ((images - mean) / deviation).astype("float32")

    class Batches(sequence):
        """Batches in an order, and with crops and flips, that depend on the seed and the epoch alone."""

        def __init__(self):
            super().__init__()
            self.start(0)

        def __len__(self):
            return -(-len(x_train) // BATCH_SIZE)

        def __getitem__(self, index):
            rows = self.order[index * BATCH_SIZE : (index + 1) * BATCH_SIZE]
            images = x_train[rows]
            if TASKS[cell.task].augmented:
                images = augmented(images, np.random.default_rng((cell.seed, self.epoch, index)))
            return standardised(images), y_train[rows]

        def on_epoch_end(self):
            self.start(self.epoch + 1)

        def start(self, epoch):
            self.epoch = epoch
            self.order = np.random.default_rng((cell.seed, self.epoch)).permutation(len(x_train))

    return Batches(), (standardised(x_test), y_test)


def augmented(images, random):
    """Random flips, and crops out of a border of 4 pixels."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    rows, columns = random.integers(0, 9, (2, len(images)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    cropped = np.moveaxis(windows[np.arange(len(images)), rows, columns], 1, -1)
    flip = random.random(len(images)) < 0.5
    return np.where(flip[:, None, None, None], cropped[:, :, ::-1], cropped)


def random_batches(number):
    """Batches of images and labels in the shapes of CIFAR-10, where only time counts."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    images = random.normal(size=(number, BATCH_SIZE, 32, 32, 3)).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices((images, random.integers(0, 10, (number, BATCH_SIZE))))
    options = tf.data.Options()
    # Its thread sleeps for 2.6 s, 5.1 s, …, and when `fit` ends just as it falls asleep, `fit` waits for it (TF 2.21).
    options.autotune.enabled = False
    return batches.with_options(options)


def top1(logits, labels):
    return float(np.mean(np.argmax(logits, -1) == labels))


def limit_threads(threads):
    """Let TensorFlow compute with that many threads; before it has computed anything."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def result(cell, top1, sparsity, seconds, train_top1, versions, machine=MACHINE):
    """A line of the results."""
    places = ("data_dir", "model", "dense")  # of this machine
    cell = {name: value for name, value in dataclasses.asdict(cell).items() if name not in places}
    measured = {"top1": top1, "sigma": float(sparsity), "train_top1": float(train_top1), "seconds": round(seconds, 1)}
    return cell | measured | {"versions": versions, "machine": machine}


def read(file):
    """The results so far; a line that was cut off by a kill is left out."""
    lines = []
    for line in filter(None, file.read_text().splitlines() if file.exists() else ()):
        try:
            lines.append({"dtype": "float32", "backend": "tensorflow"} | json.loads(line))  # before there was a choice
        except json.JSONDecodeError:
            print(f"{file}: a line that is cut off is left out: {line[:60]}…", file=sys.stderr)
    return lines
