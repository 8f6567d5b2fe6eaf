"""Stand-alone script: run LiteRT files in `CompiledModel`, LiteRT's newer entry point, otherwise as `runner` does.

    python compiled_runner.py RUNNER FOLDER

RUNNER is the folder of `runner.py`.
"""

import pathlib
import sys

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel


class Compiled:
    """A file in `CompiledModel`, on the processor."""

    arena = None

    def __init__(self, path):
        self._model = CompiledModel.from_file(path)
        ((self._key, self._names),) = self._model.get_signature_list().items()

    def run(self, names, arrays):
        """Run the first batch of the arrays; return the outputs, name → array.

        Inputs are not resized, and it runs once: in ai-edge-litert 2.3 dense files too, if their batch size is free, do
        not load, compute garbage or crash when they are resized, and may fail when they run again.
        """
        inputs, outputs = self._model.create_input_buffers(0), self._model.create_output_buffers(0)
        details = self._model.get_input_tensor_details(self._key)
        arrays = dict(zip(names, arrays, strict=True))
        for name, buffer in zip(self._names["inputs"], inputs, strict=True):
            shape, dtype = details[name]["shape"], details[name]["dtype"]
            buffer.write(np.ascontiguousarray(arrays[name][: shape[0]], dtype))
        self._model.run_by_index(0, inputs, outputs)
        details, results = self._model.get_output_tensor_details(self._key), {}
        for name, buffer in zip(self._names["outputs"], outputs, strict=True):
            shape, dtype = details[name]["shape"], np.dtype(details[name]["dtype"])
            results[name] = buffer.read(int(np.prod(shape)), dtype).reshape(shape)
        return results


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    import runner

    runner.main(pathlib.Path(sys.argv[2]), Compiled)
