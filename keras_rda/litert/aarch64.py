"""Run LiteRT files as an Arm phone would, on a Linux PC: AArch64 under user-mode QEMU.

    python3 -m keras_rda.litert.aarch64 [FOLDER]

sets it up (some 100 MB to download). FOLDER is the environment variable `KERAS_RDA_AARCH64`, else
`~/.cache/keras_rda/aarch64`. It needs Debian's `apt-get` and `dpkg`, and `pip`; on Ubuntu, whose arm64 packages have a
mirror of their own, a line with `[arch=arm64]` for it in the sources list.

Times under emulation follow the work done and are not a phone's: compare them only with each other.
"""

from keras_rda.litert.machines.aarch64 import folder, is_ready, run
from keras_rda.litert.machines.aarch64_set_up import main, set_up
from keras_rda.litert.machines.process import Run

__all__ = ["Run", "folder", "is_ready", "run", "set_up"]

if __name__ == "__main__":
    main()
