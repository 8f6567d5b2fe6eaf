"""Takes these experiments to a machine with Python, JAX and NumPy, but no Keras, no TensorFlow and no network.

    python -m examples.paper.transport pack --data-dir DIR --python 3.12     # here; examples/output/bundle
    python3 bundle/transport.py unpack bundle --to RUN                       # there

`pack` writes a folder of files that are small enough to be carried one by one, in any order, with this script beside
them, which needs nothing but the standard library. `unpack` checks that everything arrived, installs what is missing
into RUN, tries it, and prints the command that starts the queue.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile

BUNDLE = "bundle"
DATASETS = ("cifar10", "mnist")
THERE = {"jax", "jaxlib", "ml-dtypes", "numpy", "opt-einsum", "scipy"}  # what a machine with JAX has


class Incomplete(ValueError):
    """Files of a split file are missing or damaged; the message names them."""


def split(stream, folder, name, size, more=None):
    """Write what a stream holds into files of at most `size` bytes, and `name`.json with their names and checksums.

    `more`, a dict, goes into `name`.json too.

    An earlier one of that name stays whole until this is; then it is removed.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / f"{name}.json"
    earlier = set()
    with contextlib.suppress(Incomplete):  # there is none, or a damaged one, which this replaces
        earlier = {part["file"] for part in _index(index)["parts"]}
    whole, parts = hashlib.sha256(), []
    while content := stream.read(size):
        checksum = hashlib.sha256(content).hexdigest()
        # Its checksum in the name, so that no part of an earlier file is overwritten.
        file = folder / f"{name}-{len(parts)}-{checksum[:8]}"
        file.write_bytes(content)
        whole.update(content)
        parts.append({"file": file.name, "bytes": len(content), "sha256": checksum})
    unfinished = folder / f"{name}.part.json"
    index_of_parts = {"sha256": whole.hexdigest(), "parts": parts, **(more or {})}
    unfinished.write_text(json.dumps(index_of_parts, indent=1), encoding="utf-8")
    unfinished.replace(index)
    for file in earlier - {part["file"] for part in parts}:
        (folder / file).unlink(missing_ok=True)
    return index


def _index(file):
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        for part in index["parts"]:
            if pathlib.PurePath(part["file"]).name != part["file"]:
                raise ValueError(f"{part['file']!r} is not the name of a file beside it")
        return index
    except FileNotFoundError as error:
        raise Incomplete(f"{file} is missing.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Incomplete(f"{file} is damaged: {error}.") from error


def join(folder, name):
    """The bytes that `split` was given.

    Raises:
        Incomplete: files are missing or damaged.
    """
    folder = pathlib.Path(folder)
    index, contents, wrong = _index(folder / f"{name}.json"), [], []
    for part in index["parts"]:
        file = folder / part["file"]
        content = file.read_bytes() if file.is_file() else None
        if content is None:
            wrong.append(f"{file.name} is missing")
        elif hashlib.sha256(content).hexdigest() != part["sha256"]:
            wrong.append(f"{file.name} is damaged ({len(content)} of {part['bytes']} bytes)")
        contents.append(content)
    if wrong:
        raise Incomplete(f"Of {len(index['parts'])} files {', '.join(wrong)}: bring them again.")
    content = b"".join(contents)
    if hashlib.sha256(content).hexdigest() != index["sha256"]:
        raise Incomplete(f"{name}.json does not belong to the files that it names: bring all of them again.")
    return content


def pack(data_dir, output, python, part_size, datasets=DATASETS, going_on=None):
    """Write the bundle: wheels, the experiments, the data as plain arrays, and what an earlier queue brought home.

    Args:
        data_dir: Prepared `tensorflow-datasets`, or the folder of `python -m examples.paper prepare`.
        output: Folder for the parts and this script.
        python: Version of the other machine's Python, "3.12".
        part_size: Bytes of one part.
        datasets: Names of the data sets.
        going_on: The `--output` of an earlier queue, or None.
    """
    from examples.paper import data

    root = pathlib.Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        _download_wheels(root, folder / "wheels", python)
        for name in datasets:
            prepared = pathlib.Path(data_dir or ".") / f"{name}.npz"
            if prepared.exists():
                (folder / "data").mkdir(exist_ok=True)
                shutil.copy(prepared, folder / "data")
            else:
                data.prepare(name, data_dir, folder / "data")
        code = folder / "code" / "examples"
        for place in ("paper", "benchmarks"):
            for file in sorted((root / "examples" / place).rglob("*")):
                if file.suffix in (".py", ".toml", ".jsonl"):
                    copy = code / file.relative_to(root / "examples")
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, copy)
        shutil.copy(root / "examples" / "device_loop.py", code)
        if going_on is not None:
            shutil.copytree(going_on, folder / "output")
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz", compresslevel=6) as archive:
            for place in sorted(folder.iterdir()):
                archive.add(place, place.name)
    content.seek(0)
    index = split(content, output, BUNDLE, part_size, {"for": python})
    shutil.copy(__file__, index.with_name("transport.py"))
    return index


def _download_wheels(root, folder, python):
    """This package, and what Keras and it need beyond what a machine with JAX has, for Linux on this processor."""
    from importlib import metadata

    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, root], check=True)
    tags = [f"manylinux_2_{minor}_{platform.machine()}" for minor in (28, 27, 17)] + [
        f"manylinux2014_{platform.machine()}"
    ]
    target = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    needed = [f"keras=={metadata.version('keras')}", "click", "flatbuffers"]
    subprocess.run(
        [*pip, "download", "--dest", folder, *target, *(f"--platform={tag}" for tag in tags), *needed], check=True
    )
    for wheel in folder.iterdir():
        if wheel.name.split("-")[0].replace("_", "-").lower() in THERE:
            wheel.unlink()


def unpack(folder, to):
    """Check the parts, extract them to a new folder, install the wheels there, try them; return the queue's command.

    Raises:
        Incomplete: parts are missing or damaged.
        FileExistsError: `to` exists already.
        subprocess.CalledProcessError: installing, or importing what was installed, failed.
    """
    to = pathlib.Path(to).absolute()
    if to.exists():
        raise FileExistsError(f"{to} exists already: name another folder, or remove it.")
    content = join(folder, BUNDLE)
    here, packed = (
        ".".join(platform.python_version_tuple()[:2]),
        _index(pathlib.Path(folder) / f"{BUNDLE}.json").get("for"),
    )
    if packed not in (None, here):
        raise Incomplete(f"The bundle is for Python {packed}, and this is {here}: pack it with --python {here}.")
    if not hasattr(tarfile, "data_filter"):
        raise Incomplete(f"Python {platform.python_version()} is too old: take 3.11.4 or newer.")
    unfinished = to.with_name(f"{to.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(unfinished, filter="data")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-index", "--no-deps"]
    wheels = sorted((unfinished / "wheels").glob("*.whl"))
    subprocess.run([*pip, "--no-compile", "--target", unfinished / "site", *wheels], check=True)
    unfinished.rename(to)
    settings = {"KERAS_BACKEND": "jax", "PYTHONPATH": str(to / "site")}
    subprocess.run(
        [sys.executable, "-c", CHECK, str(to / "data")], check=True, cwd=to / "code", env={**os.environ, **settings}
    )
    words = " ".join(f"{name}={value}" for name, value in settings.items())
    return (
        f"cd {to}/code && {words} {sys.executable} -m examples.paper queue --minutes MINUTES --data-dir {to}/data "
        f"--output {to}/output"
    )


CHECK = """
import pathlib, sys
import jax, keras, numpy
from examples.paper import comparison, data, run_queue
print(f"Python {sys.version.split()[0]}, Keras {keras.__version__}, JAX {jax.__version__} on {jax.devices()[0]}")
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.npz")):
    arrays = data.load(file.stem, file.parent)
    print(file.name, *(f"{a.shape} {a.dtype}" for a in (arrays.x_train, arrays.y_train, arrays.x_test, arrays.y_test)))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="write the bundle")
    packing.add_argument("--data-dir", help="prepared tensorflow-datasets, or what `prepare` wrote; default: download")
    known = ("cifar10", "cifar100", "fashion_mnist", "mnist")
    packing.add_argument("--dataset", nargs="+", default=DATASETS, choices=known, help=f"default: {' '.join(DATASETS)}")
    packing.add_argument("--output", default=pathlib.Path("examples", "output", BUNDLE), help="default: %(default)s")
    packing.add_argument("--python", default=".".join(platform.python_version_tuple()[:2]), help="the other machine's")
    packing.add_argument("--part-mib", type=int, default=48, help="largest part; default: %(default)s")
    packing.add_argument("--going-on", metavar="DIR", help="the --output of an earlier queue, whose checkpoint goes on")
    unpacking = commands.add_parser("unpack", help="check, install, try")
    unpacking.add_argument("folder", help="where all parts are")
    unpacking.add_argument("--to", required=True, help="new folder")
    arguments = parser.parse_args()
    try:
        if arguments.command == "unpack":
            print(unpack(arguments.folder, arguments.to))
            return
        if arguments.part_mib < 1:
            parser.error(f"--part-mib must be at least 1; received {arguments.part_mib}")
        size = arguments.part_mib * 2**20
        index = pack(
            arguments.data_dir, arguments.output, arguments.python, size, arguments.dataset, arguments.going_on
        )
        for part in _index(index)["parts"]:
            print(f"{index.parent / part['file']}: {part['bytes']:,} bytes")
        print(f"Bring these, {index.name} and transport.py there; then: python3 transport.py unpack FOLDER --to RUN")
    except (Incomplete, FileExistsError, FileNotFoundError, ImportError) as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError as error:
        sys.exit(f"This command failed: {' '.join(map(str, error.cmd))}")


if __name__ == "__main__":
    main()
