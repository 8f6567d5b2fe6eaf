"""Killed at random moments, out of room, without rights: nothing is lost, no half file replaces a whole one."""

import os
import resource
import signal
import sys
import time

import click
import keras
import numpy as np
import pytest
from helpers import BACKEND, COMPILES, compiled, small_network, state

import keras_rda
from keras_rda import cli

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, so that each needs no imports")
kills = pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.every)])
EPOCHS = 40


class Marker(keras.callbacks.Callback):
    """Touches a file when the first epoch of this process is over: compiling takes longer than all that follows."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        if not self.path.exists():
            self.path.touch()


def train(backup, marker, output):
    keras.utils.set_random_seed(6)
    (x, y), _ = keras_rda.datasets.load_digits()
    x, y = (x[:128] / 16).astype("float32"), y[:128]
    optimizer = keras_rda.XRDA(keras.optimizers.schedules.CosineDecay(0.5, 4 * EPOCHS), 1e-4)
    model = compiled(small_network(), optimizer, jit_compile=COMPILES)
    callbacks = [keras_rda.TargetSparsity(0.8, interval=4), keras_rda.Backup(backup, delete_checkpoint=False)]
    callbacks.append(Marker(marker))
    model.fit(x, y, batch_size=32, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks)
    marker.touch()  # of a run that had no epoch left
    unfinished = output.with_name("unfinished.npz")
    np.savez(unfinished, *state(model))
    unfinished.replace(output)
    backup.unlink()


def bits(file):
    with np.load(file) as arrays:
        return [array.tobytes() for array in arrays.values()]


@kills
def test_killed_training_ends_with_the_same_bits(run, tmp_path, kills):
    files = backup, marker, output = [tmp_path / name for name in ("run.npz", "marker", "end.npz")]
    assert run(train, *files) == 0
    undisturbed = bits(output)
    seconds = output.stat().st_mtime - marker.stat().st_mtime
    random, epochs, killed, ends = np.random.default_rng(0), [], 0, 0
    while killed < kills or not ends:
        output.unlink(missing_ok=True)
        marker.unlink(missing_ok=True)
        kill_after = random.uniform(0, seconds) if killed < kills else None
        assert killed + ends < 3 * kills + 10, "the kills come too late"
        status = run(train, *files, marker=marker, kill_after=kill_after)
        assert status in (0, -signal.SIGKILL)
        if status:
            killed += 1
        else:
            assert output.exists()
            assert not backup.exists()
            ends += 1
        if output.exists():
            assert bits(output) == undisturbed
        else:
            with np.load(backup) as file:
                epochs.append(int(file["epoch"]))
    print(f"{killed} kills, {ends} ends; the backups that were left were of the epochs {epochs}")


def model_file(path):
    """A trained network's file, with half of the filters dead."""
    model = small_network()
    kernel = model.layers[0].kernel
    kernel.assign(kernel * (np.arange(8) % 2))
    model.save(path)
    return path


def command_line(arguments):
    cli.main(arguments, standalone_mode=False)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="export needs TensorFlow")
@kills
@pytest.mark.parametrize("command", ["compress", "export"])
def test_killed_command_leaves_the_old_file_or_the_new_one(run, tmp_path, command, kills):
    source = model_file(tmp_path / "source.keras")
    target = tmp_path / {"compress": "target.keras", "export": "target.tflite"}[command]
    arguments = [command, str(source), str(target)]
    assert run(command_line, arguments) == 0
    new, old, original = check(target), b"what was there before", source.read_bytes()
    random, found, killed, seconds = np.random.default_rng(0), {"old": 0, "new": 0}, 0, np.inf
    for _ in range(3 * kills + 10):
        if killed == kills:
            break
        target.write_bytes(old)
        # Half of the kills come when the command is nearly done, as far as the undisturbed ones in between tell.
        share = random.choice([random.uniform(), random.normal(0.9, 0.05)])
        start = time.monotonic()
        status = run(command_line, arguments, kill_after=None if np.isinf(seconds) else share * seconds)
        assert status in (0, -signal.SIGKILL)
        if status:
            killed += 1
            found["old" if target.read_bytes() == old else "new"] += 1
        else:
            seconds = min(seconds, time.monotonic() - start)
        if not status or target.read_bytes() != old:
            assert check(target) == new
        assert source.read_bytes() == original
    assert killed == kills
    print(f"{command}: {killed} kills, which left the files {found}")


def without_room(function, *arguments):
    """Call a function that may write no file past 4 kB, as on a disk that is full; `arguments[-1]` takes the error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        function(*arguments[:-1])
    except Exception as error:
        arguments[-1].write_text(f"{type(error).__name__}: {error}"[:1000])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="export needs TensorFlow")
@pytest.mark.parametrize("command", ["compress", "export"])
def test_command_without_room_keeps_the_old_file(run, tmp_path, command):
    source = model_file(tmp_path / "source.keras")
    target, error = tmp_path / {"compress": "target.keras", "export": "target.tflite"}[command], tmp_path / "error.txt"
    target.write_bytes(b"what was there before")
    assert run(without_room, command_line, [command, str(source), str(target)], error) == 0
    assert "ClickException" in error.read_text()
    assert target.read_bytes() == b"what was there before"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, target.name, error.name])


@pytest.mark.skipif(
    BACKEND != "tensorflow" or sys.platform != "linux", reason="TensorFlow exports; /proc takes no files"
)
@pytest.mark.parametrize("target", ["compress /proc/target.keras", "export /proc/target.tflite"])
def test_command_without_rights_says_where(tmp_path, target):
    command, target = target.split()
    with pytest.raises(click.ClickException, match=r"'/proc/\.target"):
        command_line([command, str(model_file(tmp_path / "source.keras")), target])


def test_backup_without_room_keeps_the_one_before(run, tmp_path):
    files = backup, marker, _ = [tmp_path / name for name in ("run.npz", "marker", "end.npz")]
    assert run(train, *files, marker=marker, kill_after=0.0) == -signal.SIGKILL
    before = backup.read_bytes()
    error = tmp_path / "error.txt"
    assert run(without_room, train, *files, error) == 0
    assert error.read_text().startswith("OSError: [Errno 27] File too large")
    assert backup.read_bytes() == before
    assert run(train, *files) == 0


def check(path):
    """What the file computes, and its bytes where these do not depend on the time."""
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32")
    if path.suffix == ".keras":
        return keras.models.load_model(path).predict(x, verbose=0).tobytes()
    return keras_rda.litert.predict(path, x)["output_0"].tobytes(), path.read_bytes()
