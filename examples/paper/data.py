"""The paper's data sets: arrays for the small ones, a stream for ImageNet; standard augmentation."""

import dataclasses
import functools
import pathlib
import zipfile

import numpy as np
from keras import ops

import keras_rda
from examples.paper.tables import WrongSettings

TRAINING_IMAGES = {
    **{"digits": 1_437, "mnist": 60_000, "fashion_mnist": 60_000},
    **{"cifar10": 50_000, "cifar100": 50_000, "imagenet": 1_281_167},
}
BORDER = 4  # of zeros around an image, out of which crops are taken


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A data set in memory: uint8 images (n, height, width, channels), integer labels (n,)."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    augmented: bool

    @property
    def input_shape(self):
        return self.x_train.shape[1:]

    def steps(self, batch_size):
        return len(self.x_train) // batch_size

    @functools.cached_property
    def _statistics(self):
        return self.x_train.mean((0, 1, 2), "float64"), self.x_train.std((0, 1, 2), "float64")

    def standardized(self, images):
        mean, deviation = self._statistics
        centred = ops.subtract(ops.cast(images, "float32"), mean.astype("float32"))
        return ops.divide(centred, deviation.astype("float32"))

    def prepared(self, key, images):
        """Images of a batch for JAX, standardised, and cropped and flipped as its `key` draws where that is wanted."""
        import jax

        if self.augmented:
            crop, flip = jax.random.split(key)
            offsets = jax.random.randint(crop, (2, len(images)), 0, 2 * BORDER + 1)
            images = crop_and_flip(images, *offsets, jax.random.randint(flip, (len(images),), 0, 2))
        return self.standardized(images)

    def test_batches(self, batch_size):
        for start in range(0, len(self.x_test), batch_size):
            yield self.standardized(self.x_test[start : start + batch_size]), self.y_test[start : start + batch_size]

    def stream(self, batch_size, seed, epochs):
        """The batches of a `range` of epochs for TensorFlow; order, crops and flips depend on seed and epoch alone."""
        import tensorflow as tf

        random = tf.random.experimental
        images, labels = tf.constant(self.x_train), tf.constant(self.y_train)

        def epoch(number):
            order = random.stateless_shuffle(tf.range(len(self.x_train)), seed=tf.stack([seed, number]))

            def batch(position, rows):
                x = tf.gather(images, rows)
                if self.augmented:
                    draw = functools.partial(tf.random.stateless_uniform, dtype=tf.int32, minval=0)
                    key = tf.stack([number, position + seed * 2**32])
                    offsets = draw([2, batch_size], key, maxval=2 * BORDER + 1)
                    x = crop_and_flip(x, *tf.unstack(offsets), draw([batch_size], key + 2**48, maxval=2))
                return self.standardized(x), tf.gather(labels, rows)

            rows = tf.data.Dataset.from_tensor_slices(order).batch(batch_size, drop_remainder=True)
            return rows.enumerate().map(batch, num_parallel_calls=tf.data.AUTOTUNE)

        numbers = tf.data.Dataset.range(epochs.start, epochs.stop)
        return numbers.flat_map(epoch).prefetch(tf.data.AUTOTUNE)


@dataclasses.dataclass(frozen=True)
class ImageNet:
    """ImageNet (ILSVRC2012), read and decoded while training; TensorFlow only."""

    data_dir: str | None
    subset: int | None
    augmented: bool
    input_shape = (224, 224, 3)
    classes = 1000
    MEAN, DEVIATION = (123.68, 116.28, 103.53), (58.40, 57.12, 57.38)  # of the training images, the usual ones

    @functools.cached_property
    def _builder(self):
        import tensorflow_datasets as tfds

        builder = tfds.builder("imagenet2012", data_dir=self.data_dir)
        if not builder.is_prepared():
            raise FileNotFoundError(
                "ImageNet is not prepared. It cannot be downloaded freely: get ILSVRC2012_img_train.tar and "
                "ILSVRC2012_img_val.tar, then `tfds build imagenet2012 --manual_dir FOLDER --data_dir DIR`, and pass "
                "--data-dir DIR."
            )
        return builder

    @property
    def size(self):
        """Number of training images."""
        return self._builder.info.splits["train"].num_examples

    def steps(self, batch_size):
        return (self.subset or self.size) // batch_size

    def _read(self, split, **options):
        import tensorflow_datasets as tfds

        return self._builder.as_dataset(split=split, decoders={"image": tfds.decode.SkipDecoding()}, **options)

    def _standardized(self, image):
        return (ops.cast(image, "float32") - np.float32(self.MEAN)) / np.float32(self.DEVIATION)

    def stream(self, batch_size, seed, epochs):
        """The batches of a `range` of epochs, in an order that a resumed run draws anew; augmented by crops of random
        size and place and by flips.
        """
        import tensorflow as tf
        import tensorflow_datasets as tfds

        def augmented(number, record):
            key = tf.stack([seed, number])
            start, size, _ = tf.image.stateless_sample_distorted_bounding_box(
                tf.image.extract_jpeg_shape(record["image"]),
                tf.zeros([1, 0, 4]),
                key,
                min_object_covered=0.0,
                aspect_ratio_range=(3 / 4, 4 / 3),
                area_range=(0.08, 1.0),
                use_image_if_no_bounding_boxes=True,
            )
            window = tf.concat([start[:2], size[:2]], 0)
            image = tf.image.resize(tf.image.decode_and_crop_jpeg(record["image"], window, 3), self.input_shape[:2])
            return self._standardized(tf.image.stateless_random_flip_left_right(image, key)), record["label"]

        order = tfds.ReadConfig(shuffle_seed=seed + epochs.start)
        split = f"train[:{self.subset}]" if self.subset else "train"
        records = self._read(split, shuffle_files=True, read_config=order).shuffle(10_000, seed=seed + epochs.start)
        if self.augmented:
            examples = records.repeat().enumerate().map(augmented, num_parallel_calls=tf.data.AUTOTUNE)
        else:
            examples = records.repeat().map(self._central, num_parallel_calls=tf.data.AUTOTUNE)
        return examples.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)

    def _central(self, record):
        """The middle of an image whose shorter side is made 256 long."""
        import tensorflow as tf

        image = tf.image.decode_jpeg(record["image"], 3)
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        size = tf.cast(tf.round(size * 256 / tf.reduce_min(size)), tf.int32)
        image = tf.image.resize_with_crop_or_pad(tf.image.resize(image, size), *self.input_shape[:2])
        return self._standardized(image), record["label"]

    def test_batches(self, batch_size):
        import tensorflow as tf

        examples = self._read("validation").map(self._central, num_parallel_calls=tf.data.AUTOTUNE)
        return examples.batch(batch_size).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def load(name, data_dir=None, subset=None, augmentation="standard"):
    """A data set by its name; `data_dir` holds what `prepare` wrote, or prepared `tensorflow-datasets`.

    Augmentation is `"standard"` (flips and crops out of a border of 4 for CIFAR, crops of random size and flips for
    ImageNet, none for MNIST) or `"none"`.

    Raises:
        FileNotFoundError, ImportError: it is not there, or cannot be read; the message names the command that helps.
        WrongSettings: it has fewer training images than `subset`, or what `prepare` wrote is damaged.
    """
    if name == "imagenet":
        dataset = ImageNet(data_dir, subset, augmentation == "standard")
        _check_subset(subset, dataset.size)
        return dataset
    file = pathlib.Path(data_dir or ".") / f"{name}.npz"
    if data_dir is not None and file.exists():
        with file.open("rb") as stream:  # np.load leaves what it cannot read open
            try:
                arrays = dict(np.load(stream))
                x_train, y_train, x_test, y_test = (arrays[part] for part in ("x_train", "y_train", "x_test", "y_test"))
            except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile) as error:
                raise WrongSettings(
                    f"{file} is damaged ({error}): write it again, `python -m examples.paper prepare {name} --output "
                    "DIR`."
                ) from error
    else:
        try:
            (x_train, y_train), (x_test, y_test) = keras_rda.datasets.load(name, data_dir)
        except (ImportError, FileNotFoundError) as error:
            raise type(error)(
                f"{error}\nOr write {name}.npz on a machine with tensorflow-datasets, `python -m examples.paper prepare"
                f" {name} --output DIR`, and pass --data-dir DIR here, where TensorFlow is not needed then."
            ) from error
    classes = int(max(y_train.max(), y_test.max())) + 1
    _check_subset(subset, len(x_train))
    x_train, y_train = x_train[:subset], y_train[:subset]
    augmented = augmentation == "standard" and name.startswith("cifar")
    return Arrays(x_train, y_train.astype("int32"), x_test, y_test.astype("int32"), classes, augmented)


def _check_subset(subset, size):
    if subset and subset > size:
        raise WrongSettings(f"There are {size} training images: a subset of {subset} is none.")


def prepare(name, data_dir, folder):
    """Write a data set as plain arrays, `folder/name.npz`; return the file."""
    (x_train, y_train), (x_test, y_test) = keras_rda.datasets.load(name, data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{name}.part.npz"
    np.savez(unfinished, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return unfinished.replace(folder / f"{name}.npz")


def crop_and_flip(images, rows, columns, flips):
    """Crops at `rows` and `columns` (batch,) of the bordered images, mirrored where `flips` (batch,) is not 0."""
    height, width = images.shape[1:3]
    padded = ops.pad(images, ((0, 0), (BORDER, BORDER), (BORDER, BORDER), (0, 0)))
    places = ops.arange(width, dtype="int32")
    places = ops.where(flips[:, None] > 0, width - 1 - places, places) + columns[:, None]
    lines = ops.arange(height, dtype="int32") + rows[:, None]
    cropped = ops.take_along_axis(padded, lines[:, :, None, None], axis=1)
    return ops.take_along_axis(cropped, places[:, None, :, None], axis=2)
