"""A run between two epochs: whole on this machine, and as a copy that is small enough to take to another one."""

import importlib.metadata
import io
import json
import os
import pathlib
import platform
import shutil
import threading
import zipfile

import h5py
import keras
import numpy as np

from examples.paper import transport
from examples.paper.tables import WrongSettings

COPY, COPY_PARTS, COPY_PART = "checkpoint", 4, 15 * 2**20  # name, files, bytes of a file at most
_LOCK = threading.RLock()  # a copy may be taken by another thread than the one that trains and saves
LARGE = 2**16  # entries: smaller arrays are never rounded


class Checkpoint:
    """Model, optimizer and history of a run after an epoch, in a folder named after its settings.

    `rounded` lists the epochs after which the run went on from a copy, and the binary digits its arrays had there.
    """

    def __init__(self, folder, settings):
        self.settings = settings.flat() | {"versions": versions(), "constants": settings.constants()}
        self.folder = pathlib.Path(folder) / "-".join(str(value) for value in settings.flat().values())
        self.rounded = []

    def _newest(self):
        """The folder of the newest checkpoint and what its history.json holds, or None and an empty history."""
        for name in ("last", "previous"):  # a kill may have come between two renames
            file = self.folder / name / "history.json"
            if file.exists():
                try:
                    saved = json.loads(file.read_text(encoding="utf-8"))
                except ValueError as error:
                    raise self._damaged(error) from error
                return file.parent, saved if isinstance(saved, dict) else {"history": []}
        return None, {"history": []}

    def _damaged(self, error):
        return WrongSettings(f"The checkpoint in {self.folder} is damaged ({error}): delete it to begin anew.")

    def epochs(self):
        """How many epochs of the run are done; 0 if the checkpoint is damaged."""
        try:
            with _LOCK:
                return len(self._newest()[1]["history"])
        except (WrongSettings, KeyError, TypeError):
            return 0

    def restore(self):
        """The model and its history, or None and an empty one.

        Raises:
            WrongSettings: the checkpoint is damaged, or other versions or constants made it, whose steps may differ.
        """
        newest, saved = self._newest()
        if newest is None:
            return None, []
        settings = saved.get("settings", {})
        if settings != self.settings:
            raise WrongSettings(
                f"The checkpoint in {self.folder} was made by {settings.get('versions', 'another version')} "
                f"with {settings.get('constants')}, and these are {self.settings['versions']} with "
                f"{self.settings['constants']}: delete it to begin anew."
            )
        self.rounded = saved.get("rounded", [])
        try:
            return keras.models.load_model(newest / "model.keras"), saved["history"]
        except (OSError, ValueError, KeyError) as error:
            raise self._damaged(str(error).splitlines()[0]) from error

    def save(self, model, history):
        new = self.folder / "new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        model.save(new / "model.keras")
        saved = {"settings": self.settings, "history": history, "rounded": self.rounded}
        (new / "history.json").write_text(json.dumps(saved), encoding="utf-8")
        self._put_in_place(new)

    def _put_in_place(self, new):
        last, previous = (self.folder / name for name in ("last", "previous"))
        for file in new.iterdir():  # on the disk before a name says so
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
        with _LOCK:
            shutil.rmtree(previous, ignore_errors=True)
            if last.exists():
                last.rename(previous)
            new.rename(last)

    def check_room(self, model):
        """Three checkpoints of weights and up to four slots, those there are included, before any time is spent."""
        self.folder.mkdir(parents=True, exist_ok=True)
        held = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        needed, free = 3 * 5 * 4 * model.count_params() - held, shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(
                f"Checkpoints of {model.name} need up to {needed / 1e6:.0f} MB, and {self.folder} has {free / 1e6:.0f} "
                "MB left: choose another --output."
            )

    def remove(self):
        if self.folder.exists():
            removed = self.folder.with_name(f"{self.folder.name}.removed")  # at once, whenever a kill comes
            shutil.rmtree(removed, ignore_errors=True)
            self.folder.rename(removed)
            shutil.rmtree(removed, ignore_errors=True)

    def write_copy(self, folder):
        """Copy the newest checkpoint to `folder`, into at most four files of 15 MiB; return what was done in words.

        Arrays that are too large for that keep fewer than the 23 binary digits of float32, as many as fit.
        """
        with _LOCK:
            newest, saved = self._newest()
            if newest is None:
                return "There is no checkpoint to copy."
            model, room = (newest / "model.keras").read_bytes(), COPY_PARTS * COPY_PART
            for digits in (23, 18, 16, 14, 12, 10, 9, 8, 7, 6, 5, 4):
                packed = _packed(model, digits, room)
                if packed is None:
                    continue
                if digits < 23:
                    saved["rounded"] = [*saved.get("rounded", []), [len(saved["history"]), digits]]
                content = io.BytesIO()
                with zipfile.ZipFile(content, "w") as archive:
                    archive.writestr("history.json", json.dumps(saved))
                    archive.writestr("model.keras", packed)
                transport.split(io.BytesIO(content.getvalue()), folder, COPY, COPY_PART)
                done = f"{len(saved['history'])} epochs are in {folder}/{COPY}.json and the files that it names"
                return f"{done}, with {digits} binary digits." if digits < 23 else f"{done}."
            return f"The checkpoint is too large for a copy of {room / 2**20:.0f} MiB: bring home {newest} itself."

    def is_of_same_run(self, copy):
        """Whether a `Copy` is of this run, whatever versions made it."""
        return {**copy.settings, "versions": None} == {**self.settings, "versions": None}

    def take(self, copy):
        """Go on from a `Copy` of this run, unless the checkpoint here is as far.

        Raises:
            WrongSettings: other versions made it, whose steps may differ.
        """
        if copy.settings != self.settings:
            raise WrongSettings(
                f"The copy was made by {copy.settings.get('versions')}, and here are {self.settings['versions']}."
            )
        if copy.epochs > self.epochs():
            new = self.folder / "new"
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            for name, content in copy.files.items():
                (new / name).write_bytes(content)
            self._put_in_place(new)


class Copy:
    """What `Checkpoint.write_copy` has written to a folder: `settings` of the run, its `epochs`, and the `files`.

    Raises:
        WrongSettings: it is damaged or not complete.
    """

    def __init__(self, folder):
        try:
            with zipfile.ZipFile(io.BytesIO(transport.join(folder, COPY))) as archive:
                self.files = {name: archive.read(name) for name in ("history.json", "model.keras")}
            saved = json.loads(self.files["history.json"])
            self.settings, self.epochs = saved["settings"] | {}, len(saved["history"])
        except (transport.Incomplete, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
            raise WrongSettings(f"The copy of a checkpoint in {folder} cannot be used: {error}") from error

    @staticmethod
    def is_in(folder):
        return (pathlib.Path(folder) / f"{COPY}.json").exists()


def _packed(model, digits, room):
    """The bytes of a .keras file with its arrays rounded and compressed, or None if they are more than `room`."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(model)) as source, zipfile.ZipFile(packed, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith(".h5"):
                content = _packed_arrays(content, digits, room)
                if content is None:
                    return None
            target.writestr(name, content)
    return packed.getvalue() if packed.tell() <= room else None


def _packed_arrays(content, digits, room):
    packed = io.BytesIO()
    with h5py.File(io.BytesIO(content)) as source, h5py.File(packed, "w") as target:
        datasets = []
        source.visititems(lambda name, item: datasets.append(name) if isinstance(item, h5py.Dataset) else None)
        arrays = {name: source[name][()] for name in datasets}
        # A sign, the digits, and of the exponent about four bits once packed: what cannot fit is not tried.
        bits = sum((digits + 5) * np.count_nonzero(a) for a in arrays.values() if _is_large(a))
        if bits / 8 > room:
            return None
        target.attrs.update(source.attrs)
        source.visititems(lambda name, item: _copy_item(name, item, target, arrays, digits))
    return packed.getvalue()


def _copy_item(name, item, target, arrays, digits):
    if isinstance(item, h5py.Group):
        copy = target.require_group(name)
    else:
        array = _rounded(arrays[name], digits) if _is_large(arrays[name]) else arrays[name]
        # Shuffled, the signs and exponents of a whole array stand together, and what they have in common is found.
        packing = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "chunks": array.shape}
        options = packing if array.size > 1 else {}
        copy = target.create_dataset(name, data=array, **options)
    copy.attrs.update(item.attrs)


def _is_large(array):
    return array.dtype == np.float32 and array.size >= LARGE


def _rounded(array, digits):
    """With so many binary digits behind the leading one; zeros stay zeros."""
    mantissa, exponent = np.frexp(array)  # from 0.5 to below 1
    return np.ldexp(np.rint(np.ldexp(mantissa, digits + 1)), exponent - (digits + 1)).astype(array.dtype)


def versions():
    """Of what decides the numbers."""
    names = [
        "keras",
        "keras-rda",
        "numpy",
        *{"tensorflow": ["tensorflow"], "jax": ["jax", "jaxlib"]}[keras.backend.backend()],
    ]
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}
