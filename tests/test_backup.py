import keras
import numpy as np
import pytest
from helpers import BACKEND, compiled, fit, small_network, state

import keras_rda


class Stop(keras.callbacks.Callback):
    """Ends a run as a kill would: without `on_train_end`."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("policy", ["float32", "bfloat16", "mixed_float16"])
def test_backup_goes_on_with_the_same_bits(digits, tmp_path, policy):
    keras.config.set_dtype_policy(policy)

    def train(*callbacks):
        keras.utils.set_random_seed(3)
        model = compiled(small_network(), keras_rda.XRDA(0.1, 1e-3), jit_compile=BACKEND == "jax")
        history = fit(model, digits, [keras_rda.Backup(tmp_path / "new/run.npz"), *callbacks], epochs=4, shuffle=False)
        return model, history

    undisturbed, _ = train()
    with pytest.raises(KeyboardInterrupt):
        train(Stop())
    resumed, history = train()
    assert history.epoch == [2, 3]
    for a, b in zip(state(resumed), state(undisturbed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not list(tmp_path.glob("new/*"))
    assert fit(resumed, digits, [], epochs=1).epoch == [0]


class Shuffled(keras.utils.PyDataset):
    """Batches whose order depends on the epoch's number alone."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y
        self.start(0)

    def start(self, epoch):
        self.order = np.random.default_rng((7, epoch)).permutation(len(self.x))

    def __len__(self):
        return len(self.x) // 32

    def __getitem__(self, batch):
        rows = self.order[32 * batch : 32 * (batch + 1)]
        return self.x[rows], self.y[rows]


def test_backup_with_an_order_that_depends_on_the_epoch(digits, tmp_path):
    def train(path, *callbacks):
        keras.utils.set_random_seed(3)
        model = compiled(small_network(), keras_rda.MRDA(penalty=1e-3))
        batches = Shuffled(*digits)
        start = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: batches.start(epoch))
        backup = keras_rda.Backup(path, delete_checkpoint=False)
        history = model.fit(batches, epochs=4, shuffle=False, verbose=0, callbacks=[backup, start, *callbacks])
        return model, history.epoch

    undisturbed, epochs = train(tmp_path / "undisturbed.npz")
    assert epochs == [0, 1, 2, 3]
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run.npz", Stop())
    for expected in ([2, 3], []):  # killed in the third epoch; then after the last, before the model was saved
        resumed, epochs = train(tmp_path / "run.npz")
        assert epochs == expected
        for a, b in zip(state(resumed), state(undisturbed), strict=True):
            np.testing.assert_array_equal(a, b)
    assert {file.name for file in tmp_path.iterdir()} == {"run.npz", "undisturbed.npz"}


def test_backup_of_a_resumed_run_that_is_interrupted_leaves_the_next_fit_its_epochs(digits, tmp_path):
    def train(*callbacks, **options):
        return fit(model, digits, [*callbacks], epochs=4, shuffle=False, **options)

    model = compiled(small_network(), keras_rda.MRDA())
    for _ in range(2):  # the second goes on from the first
        with pytest.raises(KeyboardInterrupt):
            train(keras_rda.Backup(tmp_path / "run.npz"), Stop())
    assert train().epoch == [0, 1, 2, 3]


def test_backup_errors(digits, tmp_path):
    with pytest.raises(ValueError, match=r"path must end with \.npz; received 'run\.h5'"):
        keras_rda.Backup("run.h5")
    unbuilt = compiled(keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)]), keras_rda.MRDA())
    unbuilt.built = False
    backup = keras_rda.Backup(tmp_path / "run.npz")
    backup.set_model(unbuilt)
    with pytest.raises(ValueError, match=r"Backup needs a model whose weights exist before fit\(\)"):
        backup.on_train_begin()
    with pytest.raises(KeyboardInterrupt):
        fit(compiled(small_network(), keras_rda.MRDA()), digits, [backup, Stop()], epochs=4)
    before = (tmp_path / "run.npz").read_bytes()
    with pytest.raises(ValueError, match=r"of another run: \d+ variables and MRDA, where this has \d+ and SDA"):
        fit(compiled(small_network(), keras_rda.SDA()), digits, [backup])
    with np.load(tmp_path / "run.npz") as archive:
        arrays = dict(archive)
    last = max((name for name in arrays if name.startswith("arr_")), key=lambda name: int(name[4:]))
    spoilt = [b"", b"PK", before[: len(before) // 2]]
    for change in ({last: arrays[last][:-1]}, {"epoch": -1}):
        np.savez(tmp_path / "spoilt.npz", **arrays | change)
        spoilt.append((tmp_path / "spoilt.npz").read_bytes())
    for content in spoilt:
        (tmp_path / "run.npz").write_bytes(content)
        model = compiled(small_network(), keras_rda.MRDA())
        weights = model.get_weights()
        with pytest.raises(ValueError, match=r"run\.npz is no backup: .*Delete it\s+to train from the start"):
            fit(model, digits, [backup])
        for a, b in zip(model.get_weights(), weights, strict=True):  # not half of a backup
            np.testing.assert_array_equal(a, b)


def test_fit_that_does_not_begin_where_a_backup_ends(digits, tmp_path):
    model = compiled(small_network(), keras_rda.MRDA())
    backup = keras_rda.Backup(tmp_path / "backup.npz", delete_checkpoint=False)
    model.fit(digits[0][:32], digits[1][:32], epochs=2, verbose=0, callbacks=[backup])
    backup.on_train_begin()
    with pytest.raises(RuntimeError, match=rf"Keras {keras.__version__}: fit began at epoch 0 and not at 2"):
        backup.on_epoch_begin(0)
