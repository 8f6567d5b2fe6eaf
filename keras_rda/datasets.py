"""Images and labels as NumPy arrays: the embedded digits, and the sets of `tensorflow-datasets`."""

from importlib import resources

import numpy as np

from keras_rda.types import Path

Splits = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

_DIGITS_TEST_SIZE = 360


def load_digits() -> Splits:
    """The embedded handwritten digits: 1,797 real 8×8 images (UCI Optical Recognition of Handwritten Digits).

    Returns:
        `(x_train, y_train), (x_test, y_test)` like `keras.datasets`: 1,437 and 360 images (n, 8, 8, 1) of uint8 between
        0 and 16, and labels (n,) of uint8 between 0 and 9.
    """
    with resources.files("keras_rda").joinpath("data/digits.npz").open("rb") as file, np.load(file) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    train, test = slice(None, -_DIGITS_TEST_SIZE), slice(-_DIGITS_TEST_SIZE, None)
    return (images[train], labels[train]), (images[test], labels[test])


def load(name: str, data_dir: Path | None = None) -> Splits:
    """An image classification set of `tensorflow-datasets` with the splits `train` and `test`.

    Args:
        name: For example `"mnist"`, `"fashion_mnist"` or `"cifar10"`.
        data_dir: Directory with prepared data sets; nothing is downloaded then. None uses the default directory of
            `tensorflow-datasets` and downloads what is missing.

    Returns:
        `(x_train, y_train), (x_test, y_test)`: images (n, height, width, channels) of uint8, labels (n,) of int64.

    Raises:
        ImportError: `tensorflow-datasets` is not installed.
        FileNotFoundError: `data_dir` does not hold the data set.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"Loading {name!r} needs tensorflow-datasets: pip install 'keras_rda[examples]'. "
            "keras_rda.datasets.load_digits() needs nothing."
        ) from error
    builder = tfds.builder(name, data_dir=data_dir)
    if data_dir is None:
        builder.download_and_prepare()
    elif not builder.is_prepared():
        raise FileNotFoundError(
            f"{str(data_dir)!r} holds no prepared {builder.info.full_name!r} (looked in {str(builder.data_dir)!r}). "
            "Leave data_dir out to download it, or prepare it on a machine with a network: "
            f"tfds build {name} --data_dir DIR."
        )
    splits = tfds.as_numpy(builder.as_dataset(split=["train", "test"], batch_size=-1, as_supervised=True))
    return tuple(splits[0]), tuple(splits[1])
