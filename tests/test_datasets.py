import numpy as np
import pytest
from helpers import BACKEND, PREPARED

from keras_rda import datasets

# Prepared data that a developer or CI may have; users need not.


def test_digits():
    (x_train, y_train), (x_test, y_test) = datasets.load_digits()
    assert x_train.shape == (1437, 8, 8, 1)
    assert x_test.shape == (360, 8, 8, 1)
    assert (y_train.shape, y_test.shape) == ((1437,), (360,))
    for images, labels in ((x_train, y_train), (x_test, y_test)):
        assert images.dtype == labels.dtype == np.uint8
        assert images.max() == 16
        assert set(np.unique(labels)) == set(range(10))
        assert np.bincount(labels).min() > len(labels) / 15


def test_digits_are_digits():
    """A nearest-neighbour classifier is right on 98 %: images and labels belong together."""
    (x_train, y_train), (x_test, y_test) = datasets.load_digits()
    train, test = x_train.reshape(-1, 64).astype("int32"), x_test.reshape(-1, 64).astype("int32")
    distances = (train**2).sum(1) - 2 * test @ train.T
    assert np.mean(y_train[distances.argmin(1)] == y_test) > 0.97


@pytest.mark.skipif(BACKEND != "tensorflow", reason="reads with TensorFlow whatever the backend: once is enough")
@pytest.mark.skipif(not PREPARED.is_dir(), reason=f"no prepared tensorflow-datasets at {PREPARED}")
@pytest.mark.parametrize(("name", "shape", "mean"), [("mnist", (28, 28, 1), 0.1307), ("cifar10", (32, 32, 3), 0.4734)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorflow-datasets and what it imports
def test_prepared_sets(name, shape, mean):
    (x_train, y_train), (x_test, y_test) = datasets.load(name, PREPARED)
    assert x_train.shape[1:] == x_test.shape[1:] == shape
    assert len(x_train) == len(y_train) >= 50_000
    assert len(x_test) == len(y_test) == 10_000
    assert x_train.dtype == np.uint8
    assert x_train.mean() / 255 == pytest.approx(mean, abs=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_missing_set_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no prepared 'mnist.*tfds build mnist --data_dir"):
        datasets.load("mnist", tmp_path)
