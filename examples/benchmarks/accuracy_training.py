"""One cell of accuracy.py, trained on TensorFlow by `fit`, on JAX by the device loop."""

import functools
import pathlib
import tempfile
import time

import accuracy_data as data
import keras
import numpy as np
import opponents

import keras_rda
from examples import device_loop
from examples.paper.training import device, versions
from keras_rda.kernels import is_kernel

FINE_TUNING = 0.25  # of the epochs: the last of `l1_threshold`, with frozen zeros; as many more for `fine_tuning`
CHOOSING = 0.4  # of these: `fine_tuning` chooses the zeros in them, and freezes them for the others
CHOOSING_END = 0.9  # when σ reaches the target then
CHANNELS = 0.4  # of the epochs, as many more for `channels` to choose what to remove
# Of the epochs: from here to there the methods of `data.MULTIPLY_ADDS` choose; dense before, after with what is left.
CHOOSING_CHANNELS = (0.3, 0.5)


def sgd(task, steps, factor=1.0, kind=None):
    """SGD with momentum and a cosine rate, or another `kind` of it."""
    rate = keras.optimizers.schedules.CosineDecay(factor * task.learning_rate, steps)
    return (kind or keras.optimizers.SGD)(rate, momentum=data.MOMENTUM, weight_decay=task.decoupled_weight_decay)


def optimizer_for(method, task, steps, model):
    """The optimizer of a method that is one `fit`; `fine_tuning` and `channels` start from trained weights."""
    schedules = keras.optimizers.schedules

    def recipe(rate, penalty=1e-6, weight_decay=None):
        weight_decay = task.weight_decay if weight_decay is None else weight_decay
        return keras_rda.XRDA(schedules.CosineDecay(rate, steps), penalty, weight_decay=weight_decay)

    def channels(**groups):
        return recipe(1.0, keras_rda.GroupL1(1e-6, layout=model, **groups))

    makers = {
        "dense": lambda: sgd(task, steps),
        "gmp": lambda: sgd(task, steps, kind=opponents.MaskedSGD),
        "rigl": lambda: sgd(task, steps, kind=functools.partial(opponents.MaskedSGD, keeps_gradients=True)),
        "acdc": lambda: sgd(task, steps, kind=opponents.MaskedSGD),
        "recipe": lambda: recipe(task.recipe.learning_rate, weight_decay=task.recipe.weight_decay),
        "fine_tuning": lambda: recipe(0.5),
        "channels": lambda: recipe(0.3, keras_rda.GroupL1(1e-6, layout=model)),
        "channels_together": lambda: channels(groups="channels"),
        "channels_by_cost": lambda: channels(groups="channels", weights="multiply_adds"),
        "channels_by_kernel": channels,
        "sda": lambda: keras_rda.SDA(1.0),
        "rda": lambda: keras_rda.RDA(1.0),
        "mrda": lambda: keras_rda.MRDA(1.0),
        "mrda_cosine": lambda: keras_rda.MRDA(schedules.CosineDecay(1.0, steps)),
        "prox_sgd": lambda: keras_rda.ProxSGD(1.0),
        "sqrt_prox_sgd": lambda: keras_rda.SqrtProxSGD(1.0, 1e-9),
        "prox_sgd_momentum": lambda: keras_rda.ProxSGD(
            schedules.CosineDecay(task.learning_rate, steps),
            momentum=data.MOMENTUM,
            exponent=0.0,
            weight_decay=task.weight_decay,
        ),
        "rmda": lambda: keras_rda.RMDA(
            schedules.PiecewiseConstantDecay([steps // 2, 3 * steps // 4], [0.1, 0.01, 0.001])
        ),
        # With Keras' initial_accumulator_value of 0.1 the first step forgets the initial weights: top-1 stays at 10 %.
        "ftrl": lambda: keras.optimizers.Ftrl(0.05, initial_accumulator_value=1e-8, l1_regularization_strength=1e-4),
    }
    return makers[method]()


def tuning_epochs(cell):
    """Epochs in which `fine_tuning` and `channels` make the dense model sparse; 0 of other methods."""
    share = {"fine_tuning": FINE_TUNING, "channels": CHANNELS}.get(cell.method)
    return max(2, round(share * cell.epochs)) if share else 0


def all_epochs(cell):
    """Epochs of all parts of a cell's training."""
    return cell.epochs + tuning_epochs(cell) + (cell.epochs if cell.method == "channels" else 0)


class ByFit:
    """Training by `fit`, of one model after the other; the epochs of a cell are drawn one after the other."""

    def __init__(self, cell):
        self.batches, (self.x_test, self.y_test) = data.load(keras.utils.PyDataset, cell)
        self.steps = len(self.batches)

    def skip(self, epochs):
        self.batches.start(epochs)

    def interval(self, rising):
        """Of TargetSparsity, where σ rises for so many batches: as it chooses itself."""

    def fit(self, model, epochs, callbacks, interval=None):
        """Train for a `range` of epochs; return the last one's top-1 of the training images."""
        options = {"initial_epoch": epochs.start, "epochs": epochs.stop, "callbacks": callbacks}
        return model.fit(self.batches, shuffle=False, verbose=0, **options).history["accuracy"][-1]


class OnDevice:
    """The same by the device loop."""

    def __init__(self, cell):
        self.dataset, self.seed = data.dataset(cell), cell.seed
        self.x_test, self.y_test = np.asarray(self.dataset.standardized(self.dataset.x_test)), self.dataset.y_test
        self.steps, self.drawn = self.dataset.steps(data.BATCH_SIZE), 0

    def skip(self, epochs):
        self.drawn += epochs

    def interval(self, rising):
        return device_loop.steps_a_call(self.steps, rising)

    def fit(self, model, epochs, callbacks, interval=None):
        earlier, self.drawn = self.drawn - epochs.start, self.drawn + len(epochs)
        logs = device_loop.fit(
            *(model, self.dataset.x_train, self.dataset.y_train, data.BATCH_SIZE, self.seed, epochs),
            *(interval or self.steps, callbacks, self.dataset.prepared, earlier),
        )
        return logs["accuracy"]


def train(cell, watching=()):
    """Run a cell in this process and return its line of the results; callbacks may watch all parts of its training."""
    keras.utils.set_random_seed(cell.seed)
    keras.config.set_dtype_policy(cell.dtype)
    task, on_jax = data.TASKS[cell.task], cell.backend == "jax"
    trainer = (OnDevice if on_jax else ByFit)(cell)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    start = time.perf_counter()

    def fit(model, optimizer, epochs, callbacks=(), interval=None):
        # XLA's convolutions are slower than TensorFlow's own.
        model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=on_jax)
        return trainer.fit(model, epochs, [*callbacks, *watching], interval)

    def top1(model):
        return data.top1(model.predict(trainer.x_test, batch_size=1000, verbose=0), trainer.y_test)

    also = {}  # in the line of the results
    model = task.network(keras, keras.layers, task.input_shape)
    if cell.method == "l1_threshold":
        regularize(model, keras.regularizers.L1(task.l1_in_the_loss))
        tuning = max(1, round(FINE_TUNING * cell.epochs))
        fit(model, sgd(task, trainer.steps * (cell.epochs - tuning)), range(cell.epochs - tuning))
        threshold(model, cell.sparsity)
        keras_rda.freeze_zeros(model)
        regularize(model, None)
        epochs = range(cell.epochs - tuning, cell.epochs)
        train_top1 = fit(model, sgd(task, trainer.steps * tuning), epochs)
    elif cell.method in data.MULTIPLY_ADDS:
        first, stop = (int(share * cell.epochs) for share in CHOOSING_CHANNELS)
        stop = max(stop, first + 1)
        if first:
            fit(model, sgd(task, trainer.steps * cell.epochs), range(first))
        steps, interval = trainer.steps * (stop - first), trainer.interval(int(0.9 * trainer.steps * (stop - first)))
        target = keras_rda.TargetSparsity(cell.sparsity, end=0.9, interval=interval, of="multiply_adds")
        fit(model, optimizer_for(cell.method, task, steps, model), range(first, stop), [target], interval)
    else:
        epochs = cell.epochs
        end = {"recipe": task.recipe.end, "fine_tuning": CHOOSING_END}.get(cell.method, 0.75)
        if tuning := tuning_epochs(cell):
            if cell.dense:
                model = keras.models.load_model(cell.dense, compile=False)
                trainer.skip(epochs)
            else:
                fit(model, sgd(task, trainer.steps * epochs), range(epochs))
            also["dense_top1"] = top1(model)
            epochs = max(1, round(CHOOSING * tuning)) if cell.method == "fine_tuning" else tuning
        optimizer = optimizer_for(cell.method, task, trainer.steps * epochs, model)
        callbacks, interval = [], trainer.interval(int(end * trainer.steps * epochs))
        if cell.method in opponents.OPPONENTS:
            callbacks = [opponents.OPPONENTS[cell.method](cell.sparsity)]
        elif cell.method not in data.DENSE:
            callbacks = [keras_rda.TargetSparsity(cell.sparsity, end=end, interval=interval)]
        if cell.method == "acdc" or not callbacks:
            interval = None  # nothing acts within an epoch
        train_top1 = fit(model, optimizer, range(epochs), callbacks, interval)
        if cell.method in opponents.OPPONENTS:
            also["settings"] = callbacks[0].settings
        if cell.method == "fine_tuning":
            keras_rda.freeze_zeros(model)
            rest = tuning - epochs
            train_top1 = fit(model, sgd(task, trainer.steps * rest), range(rest))
    sigma = keras_rda.sparsity(model, kernels_only=True)
    if cell.method == "channels" or cell.method in data.MULTIPLY_ADDS:  # σ counts what is removed now
        model, report = keras_rda.compress(model, report=True)
        also["multiply_adds"] = report.total("multiply_adds")
    if cell.method == "channels":
        train_top1 = fit(model, sgd(task, trainer.steps * cell.epochs, 0.5), range(cell.epochs))
    if cell.method in data.MULTIPLY_ADDS:
        train_top1 = fit(model, sgd(task, trainer.steps * (cell.epochs - stop)), range(stop, cell.epochs))
    seconds = time.perf_counter() - start
    if cell.model:
        unfinished = pathlib.Path(cell.model).with_suffix(".part.keras")
        model.save(unfinished)
        unfinished.replace(cell.model)
    if not on_jax:
        with tempfile.TemporaryDirectory() as folder:
            also["bytes"] = keras_rda.export(model, pathlib.Path(folder, "model.tflite")).bytes
    return data.result(cell, top1(model), sigma, seconds, train_top1, versions(), device()) | also


def regularize(model, regularizer):
    """Let the kernels have this regulariser: Keras computes the loss from their attributes, not from the layers'."""
    for variable in model.trainable_variables:
        if is_kernel(variable):
            variable.regularizer = regularizer


def threshold(model, sparsity):
    """Zero the smallest weights of all kernels together."""
    kernels = [v for v in model.trainable_variables if is_kernel(v)]
    cut = np.quantile(np.concatenate([np.abs(v.numpy()).ravel() for v in kernels]), sparsity)
    for kernel in kernels:
        kernel.assign(np.where(np.abs(kernel.numpy()) <= cut, 0, kernel.numpy()))
