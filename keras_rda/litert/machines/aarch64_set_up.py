"""Set up AArch64 emulation: from the ordinary package registries, in a folder of its own, without root."""

import argparse
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable

import numpy as np

from keras_rda.litert import flatbuffer, graph
from keras_rda.litert.machines import aarch64
from keras_rda.litert.machines.process import telling_line
from keras_rda.types import Path

# LiteRT's processor detection reads these and crashes on those of an x86 host. A Cortex-A76: with fp16 arithmetic and
# dot products, as phones since 2018.
_SYSTEM_FILES = {
    "proc/cpuinfo": """processor\t: 0
BogoMIPS\t: 100.00
Features\t: fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimdrdm asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0b
CPU revision\t: 1
""",
    "sys/devices/system/cpu/possible": "0\n",
    "sys/devices/system/cpu/present": "0\n",
}


def set_up(folder: Path | None = None, log: Callable[[str], None] = print) -> None:
    """Prepare the emulation, without root and without a change to the system; return at once if it is there.

    It is built beside the folder and put in place once a small LiteRT file has run in it.

    Args:
        folder: Where; by default what `aarch64.folder()` says. For another, set `KERAS_RDA_AARCH64` when running.
        log: Called with a line at each step.

    Raises:
        RuntimeError: `apt-get` or `dpkg` is missing, a download failed, the folder cannot be written to, or what was
            set up does not run.
    """
    place = pathlib.Path(folder).expanduser().absolute() if folder else aarch64.folder()
    if aarch64.is_arm():
        return log("This is an Arm machine: its own Python runs the files.")
    if aarch64.is_set_up(place):
        return log(f"{place} is ready: {(place / aarch64.VERSIONS).read_text()}")
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"The set-up needs Debian or Ubuntu, or a container of theirs: there is no {tool} here.")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise RuntimeError(f"{place} exists and holds something else: delete it or name another folder.")
        with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as work:
            _build(pathlib.Path(work), log)
            os.replace(pathlib.Path(work, "new"), place)
    except OSError as error:
        raise RuntimeError(f"Cannot set up the folder {place}: {error}.") from error
    return log(f"{place} is ready: {(place / aarch64.VERSIONS).read_text()}")


def _build(work, log):
    new = work / "new"
    root, site = new / "root", new / "site"
    root.mkdir(parents=True)
    log("Downloading an AArch64 Python and the emulator …")
    apt = _Apt(work / "apt")
    for package in apt.download("python3", "libstdc++6", architecture="arm64"):
        _call("dpkg", "-x", package, root)
    for package in apt.download("qemu-user-static"):
        _call("dpkg", "-x", package, work / "qemu")
    shutil.copy(work / "qemu/usr/bin/qemu-aarch64-static", new)  # the file that the link names
    for name, text in _SYSTEM_FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)

    version = (root / "usr/bin/python3").readlink().name.removeprefix("python")
    log(f"Downloading LiteRT for Python {version} on AArch64 …")
    for wheel in _wheels(work / "wheels", version):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)

    log("Running a small file …")
    small = work / "small.tflite"
    small.write_bytes(small_file())
    (result,) = aarch64.run([(small, np.float32([[-1, 2]]))], command=aarch64.python(new))
    if result.error or result.outputs["y"].tolist() != [[0, 2]]:
        raise RuntimeError(f"The emulated LiteRT does not run a small file: {result.error or result.outputs}.")
    litert = next(site.glob("ai_edge_litert-*.dist-info")).name.removesuffix(".dist-info")
    (new / aarch64.VERSIONS).write_text(f"{litert.replace('-', ' ')}, Python {version}")


class _Apt:
    """`apt-get` with the system's sources and keys but lists, archives and a state of its own; it installs nothing."""

    def __init__(self, directory):
        self._directory = directory
        (directory / "lists/partial").mkdir(parents=True)
        (directory / "status").touch()
        self._call("update", "APT::Architectures::=arm64")

    def download(self, *packages, architecture=None):
        """Paths of the packages and of all they need, of this machine's or another architecture."""
        archives = self._directory / (architecture or "host")
        (archives / "partial").mkdir(parents=True)
        options = [f"Dir::Cache::archives={archives}"]
        if architecture:
            options += [f"APT::Architecture={architecture}", f"APT::Architectures={architecture}"]
        self._call("install", *options, packages=packages)
        return sorted(archives.glob("*.deb"))

    def _call(self, verb, *options, packages=()):
        options = [
            f"Dir::State={self._directory}",
            f"Dir::State::status={self._directory / 'status'}",
            f"Dir::Cache={self._directory}",
            "Dir::Log=/dev/null",
            "APT::Sandbox::User=root",  # root's own files cannot be read by the user that apt would change to
            "APT::Install-Recommends=false",
            "Acquire::Languages=none",
            *options,
        ]
        command = ["apt-get", "-y", "-qq", *(part for option in options for part in ("-o", option)), verb]
        _call(*command, *(["--download-only", *packages] if packages else []))


def _wheels(directory, version):
    """Paths of LiteRT's wheels and of those it needs, of the version that is installed here where there is one."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--only-binary=:all:"]
    command += ["--python-version", version, "--platform", "manylinux2014_aarch64", "-d", directory]
    for glibc in range(17, 37):
        command += ["--platform", f"manylinux_2_{glibc}_aarch64"]
    try:
        _call(*command, f"ai-edge-litert=={importlib.metadata.version('ai-edge-litert')}")
    except RuntimeError:
        _call(*command, "ai-edge-litert")
    return sorted(directory.glob("*.whl"))


def _call(*command):
    command = [str(part) for part in command]
    process = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    if process.returncode:
        tool = "pip" if "pip" in command else command[0]
        raise RuntimeError(f"{tool} failed: {telling_line(process.stderr) or process.returncode}")


def small_file():
    """A LiteRT file that computes y = ReLU(x) of two numbers."""
    schema = graph.schema()

    def tensor(name):
        return schema.TensorT(name=name, shape=[1, 2], type=schema.TensorType.FLOAT32, buffer=0)

    def named(name, index):
        return schema.TensorMapT(name=name, tensorIndex=index)

    relu = schema.BuiltinOperator.RELU
    model = schema.ModelT(
        version=3,
        operatorCodes=[schema.OperatorCodeT(builtinCode=relu, deprecatedBuiltinCode=relu, version=1)],
        subgraphs=[
            schema.SubGraphT(
                tensors=[tensor("x"), tensor("y")],
                inputs=[0],
                outputs=[1],
                operators=[schema.OperatorT(opcodeIndex=0, inputs=[0], outputs=[1])],
            )
        ],
        buffers=[schema.BufferT()],
        signatureDefs=[schema.SignatureDefT(inputs=[named("x", 0)], outputs=[named("y", 1)], signatureKey="run")],
    )
    return flatbuffer.pack(model)


def main():
    """The command `python3 -m keras_rda.litert.aarch64`."""
    parser = argparse.ArgumentParser(description="Set up AArch64 emulation for LiteRT files.")
    parser.add_argument("folder", nargs="?", help="default: KERAS_RDA_AARCH64, else ~/.cache/keras_rda/aarch64")
    try:
        set_up(parser.parse_args().folder)
    except RuntimeError as error:
        sys.exit(str(error))
