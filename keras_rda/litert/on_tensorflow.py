"""`export` for processes in which Keras computes with another backend: it runs in one of TensorFlow's.

The model goes there as a `.keras` file, the arguments and what comes back in pickles beside it. This module is also the
script that runs there.
"""

import contextlib
import importlib
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import warnings

import keras
import numpy as np

from keras_rda import _keras
from keras_rda.litert import feeds
from keras_rda.output import one_line

MODEL, JOB, RESULT = "model.keras", "job.pickle", "result.pickle"


def export(model, path, data, **arguments):
    """What `keras_rda.export` does in a process of TensorFlow's; `data` is `representative_data`.

    Raises:
        RuntimeError: that process ended without a result, or could not load the model.
        ValueError: a layer wraps a module of torch; inputs in `data` differ in size.
    """
    if data is not None:
        structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
        samples = feeds.given(model, data, arguments["batch_size"])
        if any(sample[name].shape != array.shape for name, array in samples[0].items() for sample in samples):
            raise ValueError(
                "representative_data has inputs of different sizes, which only TensorFlow's own process takes: give "
                f"inputs of one size, as Keras computes with {keras.backend.backend()} here."
            )
        arrays = [np.concatenate([sample[name] for sample in samples]) for name in samples[0]]
        data = keras.tree.pack_sequence_as(structure, arrays)
    return _run("export", model, {"path": os.fspath(path), "representative_data": data, **arguments})


def file_bytes(model, **arguments):
    """What `sizes.file_bytes` finds in a process of TensorFlow's; errors as for `export`."""
    return _run("file_bytes", model, arguments)


def _run(function, model, arguments):
    wrapped = [layer.name for layer in _keras.flat_layers(model) if isinstance(layer, keras.layers.TorchModuleWrapper)]
    if wrapped:
        raise ValueError(
            f"export() cannot write the layers {wrapped}: a keras.layers.TorchModuleWrapper computes with torch alone, "
            "and LiteRT files are made with TensorFlow. Build the model of Keras' layers, and copy the weights."
        )
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The object being serialized includes a `lambda`", UserWarning)
            model.save(folder / MODEL)
        # Where layers and functions of the user's own are registered.
        own = [*map(type, _keras.flat_layers(model)), *keras.saving.get_custom_objects().values()]
        modules = sorted({getattr(each, "__module__", "__main__") for each in own} - {"__main__"})
        kinds = {type(layer) for layer in _keras.flat_layers(model)}
        names = sorted({kind.__name__ for kind in kinds if not kind.__module__.startswith("keras.")})
        job = {"own": names, "modules": modules, "function": function, "arguments": arguments}
        (folder / JOB).write_bytes(pickle.dumps(job))
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": os.pathsep.join(sys.path)}
        child = subprocess.run(
            [sys.executable, "-m", __name__, folder], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        if not (folder / RESULT).exists():
            words = child.stderr.decode(errors="replace").strip().splitlines()
            raise RuntimeError(
                f"export() runs TensorFlow in a process of its own, as Keras computes with {keras.backend.backend()} "
                f"here; that process ended with status {child.returncode}: {one_line(words[-1] if words else '')}"
            )
        result, error, caught = pickle.loads((folder / RESULT).read_bytes())
    for category, message in caught:
        warnings.warn(message, category, stacklevel=4)
    if error is not None:
        raise error
    return result


def main(folder):
    from keras_rda.litert.exporting import export
    from keras_rda.litert.sizes import file_bytes

    job = pickle.loads((folder / JOB).read_bytes())
    for name in job["modules"]:
        with contextlib.suppress(Exception):  # loading the model tells what is missing
            importlib.import_module(name)
    result = error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = keras.models.load_model(folder / MODEL, compile=False, safe_mode=False)
        except Exception as failure:
            error = RuntimeError(
                f"export() could not load the model in TensorFlow's process ({one_line(failure)}). What is your own, "
                f"{', '.join(job['own']) or 'such as functions'}, must be registered "
                "(keras.saving.register_keras_serializable) in a module that can be imported, and compute with "
                "keras.ops. Or export keras_rda.compress(model), in which layers made of layers are no more."
            )
        else:
            try:
                result = {"export": export, "file_bytes": file_bytes}[job["function"]](model, **job["arguments"])
            except Exception as failure:
                error = _picklable(failure)
    ours = [(each.category, str(each.message)) for each in caught if issubclass(each.category, UserWarning)]
    unfinished = folder / f"{RESULT}.unfinished"
    unfinished.write_bytes(pickle.dumps((result, error, ours)))
    unfinished.rename(folder / RESULT)


def _picklable(error):
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # one with arguments of its own
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
