"""One run, on TensorFlow by `model.fit`, on JAX by a compiled loop over data that stay on the device."""

import dataclasses
import math
import os
import platform
import time

import keras
import numpy as np

import keras_rda
from examples import device_loop
from examples.paper import data
from examples.paper.checkpoint import Checkpoint, versions
from examples.paper.tables import Run

MOMENTUM, SGD_RATE = 0.9, 0.1
CHECKPOINT_SECONDS = 30  # from one checkpoint to the next: on a GPU an epoch takes little longer than writing one


@dataclasses.dataclass(frozen=True)
class Settings:
    """A run with what the paper does not fix.

    Among it are the number of training images, `subset`; the filters of the first stage, `width`; `epsilon` of the
    batch normalisations; and the `start` of MRDA.
    """

    run: Run
    epochs: int
    seed: int = 0
    subset: int | None = None
    width: int = 64
    batch_size: int = 128
    dtype: str = "float32"
    augmentation: str = "standard"
    epsilon: float = 1e-3
    start: str = "gradient"

    def __post_init__(self):
        if self.start != "gradient" and self.run.method != "rda":
            raise data.WrongSettings(
                f"start must be gradient where the method is not rda; received {self.start} for {self.run.method}."
            )
        if not 0 < self.epsilon < 1:
            raise data.WrongSettings(f"epsilon must be a number above 0 and below 1; received {self.epsilon}.")

    def flat(self):
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "run"}
        return dataclasses.asdict(self.run) | own | {"backend": keras.backend.backend()}

    def constants(self):
        """What else decides the numbers of this run, by name."""
        return {
            "sgd": {"momentum": MOMENTUM, "sgd_rate": SGD_RATE},
            "recipe": {"recipe_measurements": device_loop.MEASUREMENTS},
        }.get(self.run.method, {})

    def scaled(self):
        """What is not as in the paper, in words; empty for a full run."""
        parts = [f"{self.epochs} of {self.run.epochs} epochs"] if self.epochs != self.run.epochs else []
        parts += [f"{self.subset} training images"] if self.subset else []
        parts += [f"first stage of {self.width} of 64 filters"] if self.width != 64 else []
        return ", ".join(parts)


def make_optimizer(settings, steps):
    run = settings.run
    rate = 1 / run.gamma if run.gamma else None
    if run.method == "rda":  # with random first weights and centre zero: the paper's Algorithm 2
        return keras_rda.MRDA(rate, run.penalty, start=settings.start, weight_decay=run.weight_decay)
    if run.method == "prox-sgd":
        return keras_rda.ProxSGD(rate, run.penalty, weight_decay=run.weight_decay)
    if run.method == "sqrt-prox-sgd":
        return keras_rda.SqrtProxSGD(rate, run.penalty, weight_decay=run.weight_decay)
    if run.method == "recipe":
        cosine = keras.optimizers.schedules.CosineDecay(1.0, steps * settings.epochs)
        # With averages, though they were found to earn nothing later: so the results so far can be had again.
        return keras_rda.XRDA(cosine, averaging=None, weight_decay=run.weight_decay)
    # Keras' SGD decays the weights themselves, without momentum's factor.
    decay = None if run.weight_decay is None else run.weight_decay / (1 - MOMENTUM)
    return keras.optimizers.SGD(SGD_RATE, momentum=MOMENTUM, weight_decay=decay)


def make_model(settings, dataset):
    make = {
        "resnet18": keras_rda.models.ResNet18,
        "vgg16": keras_rda.models.VGG16,
        "vgg19": keras_rda.models.VGG19,
    }[settings.run.architecture]
    stem = {"stem": "imagenet"} if settings.run.dataset == "imagenet" else {}
    model = make(dataset.input_shape, dataset.classes, width=settings.width, **stem)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.epsilon = settings.epsilon
    return model


class Paused(Exception):
    """A run stopped before its end; its checkpoint goes on."""


def train(settings, data_dir, folder, report=print, clock=None):
    """Train, or go on from the checkpoint in `folder`; return the line of the results, the model and the checkpoint.

    A `clock` can stop a run: `clock.is_over()` is asked after each batch, or as many as are compiled into one call, and
    `clock.pauses(epochs_left)` after each epoch, which is saved then.

    Raises:
        Paused: the clock has stopped the run.
        FileNotFoundError, ImportError: as for `data.load`.
        data.WrongSettings: the settings do not go together; the message says which to change.
        OSError: `folder` has too little room for the checkpoints.
    """
    if keras.backend.backend() not in ("tensorflow", "jax"):
        raise data.WrongSettings(
            f"The backend is {keras.backend.backend()}: set KERAS_BACKEND to tensorflow or to jax."
        )
    if settings.run.dataset == "imagenet":
        if keras.backend.backend() != "tensorflow":
            raise data.WrongSettings("ImageNet is streamed by TensorFlow: run this row with KERAS_BACKEND=tensorflow.")
        if settings.width < 16 and os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "0":
            # Seen with TensorFlow 2.21: the gradient of a 1×1 convolution of stride 2 from 8 channels at 56×56.
            raise data.WrongSettings(
                f"TensorFlow's oneDNN kernels overwrite memory for so few channels ({settings.width}) of so large "
                "images: take --width 16 or more, or set TF_ENABLE_ONEDNN_OPTS=0."
            )
    keras.utils.set_random_seed(settings.seed)
    keras.config.set_dtype_policy(settings.dtype)
    dataset = data.load(settings.run.dataset, data_dir, settings.subset, settings.augmentation)
    steps = dataset.steps(settings.batch_size)
    if not steps:
        raise data.WrongSettings(
            f"The training images are fewer than a batch of {settings.batch_size}: take a larger subset."
        )
    checkpoint = Checkpoint(folder, settings)
    model, history = checkpoint.restore()
    if model is None:
        model = make_model(settings, dataset)
        model.compile(
            make_optimizer(settings, steps),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=keras.backend.backend() == "jax",
        )
    if len(history) < settings.epochs:
        checkpoint.check_room(model)
    callbacks = [Recorder(dataset, settings, checkpoint, history, report, clock)]
    interval = steps
    if settings.run.method == "recipe":
        rising = steps * settings.epochs * 3 // 4  # batches until TargetSparsity's default end
        interval = device_loop.steps_a_call(steps, rising)
        rows = keras_rda.summary(model).rows
        weights = sum(row.size for row in rows) / sum(row.size for row in rows if row.kernel)
        # The paper's σ (30) is over all trainable weights, TargetSparsity's over the kernels.
        target = settings.run.sparsity * weights
        if rising < keras_rda.TargetSparsity.FEWEST_MEASUREMENTS or target >= 1:
            raise data.WrongSettings(
                "The recipe needs 40 batches in all and a network whose kernels can hold "
                f"{settings.run.sparsity:.0%} of its weights as zeros; here are {steps * settings.epochs} batches, and "
                f"σ of the kernels would be {target:.3f}: take more --epochs, a larger --subset, a smaller "
                "--batch-size, or a larger --width."
            )
        callbacks.insert(0, keras_rda.TargetSparsity(target, interval=interval))
    epochs = range(len(history), settings.epochs)
    if not epochs:
        report("trained already")
    elif keras.backend.backend() == "tensorflow":
        stream = dataset.stream(settings.batch_size, settings.seed, epochs)
        model.fit(
            stream,
            steps_per_epoch=steps,
            initial_epoch=epochs.start,
            epochs=epochs.stop,
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
        )
    else:
        arrays = dataset.x_train, dataset.y_train
        device_loop.fit(
            model, *arrays, settings.batch_size, settings.seed, epochs, interval, callbacks, dataset.prepared
        )
    measured = {name: history[-1][name] for name in ("top1", "top5", "sigma")} | {"history": history}
    environment = {
        "seconds": round(sum(epoch["seconds"] for epoch in history), 1),  # of training, without evaluation
        "device": device(),
        "versions": versions(),
        "constants": settings.constants(),
    }
    if checkpoint.rounded:
        environment["rounded"] = checkpoint.rounded
    return settings.flat() | {"scaled": settings.scaled()} | measured | environment, model, checkpoint


class Recorder(keras.callbacks.Callback):
    """After each epoch: top-1, top-5, σ and seconds into `history`, and a checkpoint unless the last is recent."""

    def __init__(self, dataset, settings, checkpoint, history, report, clock):
        super().__init__()
        self.dataset, self.settings, self.checkpoint = dataset, settings, checkpoint
        self.history, self.report, self.clock = history, report, clock
        self.saved = -math.inf

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if self.clock is not None and batch + 1 < self.params["steps"] and self.clock.is_over():
            raise Paused

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.perf_counter() - self.start
        top1, top5 = top(self.model, self.dataset)
        loss = float(logs["loss"]) if math.isfinite(logs["loss"]) else None  # JSON has no NaN
        line = {"loss": loss, "top1": top1, "top5": top5, "sigma": keras_rda.sparsity(self.model)}
        self.history.append(line | {"seconds": round(seconds, 2)})
        left = self.settings.epochs - len(self.history)
        paused = left > 0 and self.clock is not None and self.clock.pauses(left)
        if paused or not left or time.perf_counter() >= self.saved + CHECKPOINT_SECONDS:
            self.checkpoint.save(self.model, self.history)
            self.saved = time.perf_counter()
        self.report(
            f"epoch {epoch + 1}/{self.settings.epochs}: loss {logs['loss']:.4f}, top-1 {100 * top1:.2f}, "
            f"top-5 {100 * top5:.2f}, σ {line['sigma']:.4f}, {seconds:.1f} s"
        )
        if paused:
            raise Paused


def top(model, dataset, batch_size=500):
    """Shares of test images whose label is the largest logit, and among the five largest; not finite is wrong."""
    hits = []
    for images, labels in dataset.test_batches(batch_size):
        logits, labels = np.asarray(model.predict_on_batch(images), "float32"), np.asarray(labels)
        own = np.take_along_axis(logits, labels[:, None], axis=1)
        earlier = np.arange(logits.shape[1]) < labels[:, None]
        rank = np.sum((logits > own) | ((logits == own) & earlier), axis=1)
        rank[~np.all(np.isfinite(logits), axis=1)] = logits.shape[1]
        hits.append(np.stack([rank < 1, rank < 5]))
    return tuple(map(float, np.mean(np.concatenate(hits, axis=1), axis=1)))


def device():
    """The kind of machine, without its name."""
    if keras.backend.backend() == "jax":
        import jax

        kind = jax.devices()[0].device_kind
    else:
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        kind = tf.config.experimental.get_device_details(gpus[0])["device_name"] if gpus else "cpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} × {platform.machine()}" if kind == "cpu" else kind
