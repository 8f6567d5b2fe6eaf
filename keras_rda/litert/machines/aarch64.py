"""An Arm phone's processor, on a Linux PC: AArch64 under user-mode QEMU.

XNNPACK's sparse kernels are off on x86 with AVX, so such a machine shows neither their speed nor their faults. Here the
AArch64 build of `ai_edge_litert` runs in an emulator that `aarch64_set_up` put into a folder; an Arm machine needs none
and runs files natively.

Times under emulation follow the work done and are not a phone's: compare them only with each other.
"""

import os
import pathlib
import platform
import sys
from collections.abc import Sequence

from keras_rda.litert.machines import process
from keras_rda.types import Jobs, Path

BATCH_SIZE = None
REPEATS = 5
MULTIPLE_OF = 1
VERSIONS = "versions.txt"  # the last file of a set-up: what it consists of
_EMULATOR = "qemu-aarch64-static"


def folder() -> pathlib.Path:
    """The folder of the emulation: `KERAS_RDA_AARCH64`, else `~/.cache/keras_rda/aarch64`."""
    named = os.environ.get("KERAS_RDA_AARCH64")
    return (pathlib.Path(named) if named else pathlib.Path.home() / ".cache/keras_rda/aarch64").expanduser().absolute()


def is_ready() -> bool:
    """Whether `run` works here: on an Arm machine always, elsewhere once the emulation is set up."""
    return is_arm() or is_set_up(folder())


def is_set_up(place):
    """Whether `aarch64_set_up` finished in the folder `place`."""
    return (place / VERSIONS).is_file() and (place / _EMULATOR).is_file()


def check_ready():
    """Raise a `RuntimeError` that says how to set the emulation up, unless `is_ready()`."""
    if not is_ready():
        raise RuntimeError(
            f"AArch64 emulation is not set up in {folder()}: python3 -m keras_rda.litert.aarch64 does that."
        )


def run(
    jobs: Jobs,
    repeats: int = 0,
    timeout: float = 600,
    command: Sequence[Path] | None = None,
) -> list[process.Run]:
    """Run LiteRT files on AArch64, in one process for all of them: starting one takes seconds.

    Args:
        jobs: Pairs of a `.tflite` file's path and its inputs: a dict of input name → array, or, for a file of one
            input, the array. The arrays have the batch first.
        repeats: How often to time each file, round by round over all that loaded.
        timeout: Seconds that a process may take; then the job at work counts as failed, and the others go on.
        command: The command line of another Python to use, for example `[sys.executable]` for this one. By default the
            emulated one, or, on an Arm machine, this one.

    Returns:
        A list of `Run`, one for each job. A file that is refused or that crashes the process has an `error`.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: the emulation is not set up, or its Python does not start.
    """
    if command is None:
        check_ready()
        command = [sys.executable] if is_arm() else python(folder())
    return process.run(jobs, repeats, timeout, command)


def is_arm():
    """Whether this is an Arm machine."""
    return platform.machine() in {"aarch64", "arm64"}


def python(place):
    """The command line of the emulated Python in `place`."""
    root = place / "root"
    (libraries,) = root.glob("usr/lib/aarch64-linux-gnu")
    return [
        "env",
        f"LD_LIBRARY_PATH={libraries}:{root / 'lib/aarch64-linux-gnu'}",
        f"PYTHONHOME={root / 'usr'}",
        f"PYTHONPATH={place / 'site'}",
        str(place / _EMULATOR),
        *("-cpu", "cortex-a76", "-L", str(root)),
        str(root / "usr/bin/python3"),
    ]
