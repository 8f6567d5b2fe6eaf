"""Run LiteRT files as an Arm phone would, on a Linux PC: AArch64 under user-mode QEMU.

XNNPACK's sparse kernels are off on x86 with AVX, so such a machine shows neither their speed nor their faults. Here the
AArch64 build of `ai_edge_litert` runs in an emulator, from the ordinary package registries, in a folder of its own: no
root, nothing installed into the system.

    python3 -m keras_rda.litert.aarch64 [FOLDER]

sets it up (some 100 MB to download). FOLDER is the environment variable `KERAS_RDA_AARCH64`, else
`~/.cache/keras_rda/aarch64`. It needs Debian's `apt-get` and `dpkg`, and `pip`; on Ubuntu, whose arm64 packages have a
mirror of their own, a line with `[arch=arm64]` for it in the sources list.

Times under emulation follow the work done and are not a phone's: compare them only with each other.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile

import numpy as np

from keras_rda.litert import flatbuffer

_RUNNER = pathlib.Path(__file__).with_name("runner.py")
_VERSIONS = "versions.txt"  # the last file of a set-up: what it consists of
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


@dataclasses.dataclass(frozen=True)
class Run:
    """What became of one job.

    Attributes:
        outputs: Output name → array, of LiteRT's default delegate; None after an error.
        error: One line: why the file was refused, or how its process ended; None if it ran.
        seconds: Median time of one invocation; None if no times were asked for, or after an error.
    """

    outputs: dict | None
    error: str | None
    seconds: float | None


def folder():
    """The folder of the emulation: `KERAS_RDA_AARCH64`, else `~/.cache/keras_rda/aarch64`."""
    named = os.environ.get("KERAS_RDA_AARCH64")
    return (pathlib.Path(named) if named else pathlib.Path.home() / ".cache/keras_rda/aarch64").expanduser().absolute()


def is_ready():
    """Whether `run` works here: on an Arm machine always, elsewhere once the emulation is set up."""
    return _is_arm() or (folder() / _VERSIONS).is_file()


def run(jobs, repeats=0, timeout=600, command=None):
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
        if not is_ready():
            raise RuntimeError(
                f"AArch64 emulation is not set up in {folder()}: python3 -m keras_rda.litert.aarch64 does that."
            )
        command = [sys.executable] if _is_arm() else _python(folder())
    jobs = [(pathlib.Path(path).absolute(), inputs) for path, inputs in jobs]
    for path, _ in jobs:
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {str(path)!r}.")
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        entries = []
        for number, (path, inputs) in enumerate(jobs):
            names = list(inputs) if isinstance(inputs, dict) else None
            np.savez(directory / f"{number}.in.npz", *([inputs] if names is None else inputs.values()))
            entries.append({"id": number, "path": str(path), "inputs": names})
        crashes = {}
        while entries:
            (directory / "jobs.json").write_text(json.dumps({"repeats": repeats, "jobs": entries}))
            end = _run_process(directory, timeout, command)
            if end is None:
                break
            # The job at work ended the process. Those before it have their results, and run again only to be timed.
            crashes[int((directory / "current").read_text())] = end
            entries = [
                entry
                for entry in entries
                if entry["id"] not in crashes and (repeats or not (directory / f"{entry['id']}.json").exists())
            ]
        times = directory / "times.json"
        seconds = json.loads(times.read_text()) if times.exists() else {}
        return [
            Run(None, crashes[number], None) if number in crashes else _result(directory, number, seconds)
            for number in range(len(jobs))
        ]


def _result(directory, number, seconds):
    result = json.loads((directory / f"{number}.json").read_text())
    if result["error"]:
        return Run(None, result["error"], None)
    with np.load(directory / f"{number}.out.npz") as arrays:
        outputs = dict(zip(result["outputs"], arrays.values(), strict=True))
    return Run(outputs, None, seconds.get(str(number)))


def _run_process(directory, timeout, command):
    """Run the jobs of `directory` in a new process; return None, or a line on how it ended before they were done."""
    (directory / "current").unlink(missing_ok=True)
    try:
        process = subprocess.run(
            [*command, str(_RUNNER), str(directory)], timeout=timeout, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        end, said = f"not done when the process was stopped after {timeout:g} s", ""
    except OSError as error:
        end, said = "it cannot be started", str(error)
    else:
        if process.returncode == 0:
            return None
        end, said = f"the process ended with code {process.returncode}", process.stderr
        if process.returncode < 0:
            end = f"the process crashed: {signal.Signals(-process.returncode).name}"
    if not (directory / "current").exists():
        raise RuntimeError(f"The Python that runs LiteRT files did not start: {end}. {_last_line(said)}")
    return end


def set_up(folder=None, log=print):
    """Prepare the emulation, without root and without a change to the system; return at once if it is there.

    It is built beside the folder and put in place once a small LiteRT file has run in it.

    Args:
        folder: Where; by default what `aarch64.folder()` says. For another, set `KERAS_RDA_AARCH64` when running.
        log: Called with a line at each step.

    Raises:
        RuntimeError: `apt-get` or `dpkg` is missing, a download failed, the folder cannot be written to, or what was
            set up does not run.
    """
    place = pathlib.Path(folder).expanduser().absolute() if folder else _default_folder()
    if _is_arm():
        return log("This is an Arm machine: its own Python runs the files.")
    if (place / _VERSIONS).is_file():
        return log(f"{place} is ready: {(place / _VERSIONS).read_text()}")
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
    return log(f"{place} is ready: {(place / _VERSIONS).read_text()}")


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
    shutil.copy(work / "qemu/usr/bin/qemu-aarch64-static", new)  # of a link, the file
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
    small.write_bytes(_small_file())
    (result,) = run([(small, np.float32([[-1, 2]]))], command=_python(new))
    if result.error or result.outputs["y"].tolist() != [[0, 2]]:
        raise RuntimeError(f"The emulated LiteRT does not run a small file: {result.error or result.outputs}.")
    litert = next(site.glob("ai_edge_litert-*.dist-info")).name.removesuffix(".dist-info")
    (new / _VERSIONS).write_text(f"{litert.replace('-', ' ')}, Python {version}")


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
        raise RuntimeError(f"{tool} failed: {_last_line(process.stderr) or process.returncode}")


def _last_line(text):
    return (text.strip().splitlines() or [""])[-1]


def _is_arm():
    return platform.machine() in {"aarch64", "arm64"}


def _python(place):
    """The command line of the emulated Python in `place`."""
    root = place / "root"
    (libraries,) = root.glob("usr/lib/aarch64-linux-gnu")
    return [
        "env",
        f"LD_LIBRARY_PATH={libraries}:{root / 'lib/aarch64-linux-gnu'}",
        f"PYTHONHOME={root / 'usr'}",
        f"PYTHONPATH={place / 'site'}",
        str(place / "qemu-aarch64-static"),
        *("-cpu", "cortex-a76", "-L", str(root)),
        str(root / "usr/bin/python3"),
    ]


def _small_file():
    """A LiteRT file that computes y = ReLU(x) of two numbers."""
    schema = flatbuffer.schema()

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


_default_folder = folder  # where a parameter has its name


def main():
    parser = argparse.ArgumentParser(description="Set up AArch64 emulation for LiteRT files.")
    parser.add_argument("folder", nargs="?", help="default: KERAS_RDA_AARCH64, else ~/.cache/keras_rda/aarch64")
    try:
        set_up(parser.parse_args().folder)
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
