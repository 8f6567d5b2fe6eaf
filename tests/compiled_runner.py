"""Stand-alone script: run LiteRT files in `CompiledModel`, LiteRT's newer entry point; see `runner`, which it is like.

    python compiled_runner.py FOLDER
"""

import pathlib
import sys

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel

from keras_rda.litert.machines import runner


class Compiled:
    """A file in `CompiledModel`, on the processor."""

    arena = None

    def __init__(self, path):
        self._model = CompiledModel.from_file(path)
        ((self._key, self._names),) = self._model.get_signature_list().items()

    def run(self, names, arrays):
        """Run one batch; return the outputs, name → array."""
        arrays = dict(zip(names or self._names["inputs"], arrays, strict=True))
        details = self._model.get_input_tensor_details(self._key)
        for place, name in enumerate(self._names["inputs"]):
            if list(details[name]["shape"]) != list(arrays[name].shape):
                self._model.resize_input_tensor(place, arrays[name].shape)
        inputs, outputs = self._model.create_input_buffers(0), self._model.create_output_buffers(0)
        for name, buffer in zip(self._names["inputs"], inputs, strict=True):
            buffer.write(np.ascontiguousarray(arrays[name], details[name]["dtype"]))
        self._model.run_by_index(0, inputs, outputs)
        found, results = self._model.get_output_tensor_details(self._key), {}
        for name, buffer in zip(self._names["outputs"], outputs, strict=True):
            shape, dtype = found[name]["shape"], np.dtype(found[name]["dtype"])
            results[name] = buffer.read(int(np.prod(shape)), dtype).reshape(shape)
        return results


if __name__ == "__main__":
    runner.main(pathlib.Path(sys.argv[1]), Compiled)
