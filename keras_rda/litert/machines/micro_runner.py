"""Stand-alone script: run LiteRT files in TFLite Micro's interpreter, otherwise as `runner` does.

    python micro_runner.py ARENA FOLDER

ARENA is the size of the arena in bytes; 0: whatever a file needs. The names of inputs and outputs are their places in
the file, as text: TFLite Micro has no others.
"""

import os
import pathlib
import re
import sys
import tempfile

import numpy as np
import runner  # beside this script
from tflite_micro import runtime

_ARENAS = (2**20, 2**24, 2**28)  # tried in turn; memory that is not used costs nothing


class Micro:
    """A file in TFLite Micro's interpreter, and how many bytes of an arena it takes."""

    def __init__(self, path, arena):
        try:
            self._interpreter = _load(path, [arena] if arena else _ARENAS)
        except RuntimeError:
            if arena and (needed := Micro(path, 0).arena) > arena:
                raise ValueError(f"an arena of {arena} bytes is too small: the file takes {needed}") from None
            raise
        _, said = _listen(self._interpreter.print_allocations)
        self.arena = int(re.search(r"allocation total (\d+) bytes", said)[1])
        self.invoke = self._interpreter.invoke

    def run(self, names, arrays):
        """Run as many samples as the arrays have, one batch of the file's size after the other."""
        interpreter = self._interpreter
        details = [interpreter.get_input_details(int(name)) for name in names]
        size = int(details[0]["shape"][0]) if len(details[0]["shape"]) else 1
        if len({len(array) for array in arrays}) > 1 or len(arrays[0]) % size:
            lengths = ", ".join(str(len(array)) for array in arrays)
            raise ValueError(f"the file takes batches of {size}; received {lengths} samples")
        outputs = []
        for start in range(0, len(arrays[0]), size):
            interpreter.reset()  # a state is one sample's
            for name, detail, array in zip(names, details, arrays, strict=True):
                interpreter.set_input(np.asarray(array[start : start + size], detail["dtype"]), int(name))
            _listen(self.invoke)
            outputs.append([np.array(output) for output in _outputs(interpreter)])
        return {str(place): np.concatenate(parts) for place, parts in enumerate(zip(*outputs, strict=True))}


def _outputs(interpreter):
    place = 0
    while True:
        try:
            output = interpreter.get_output(place)
        except IndexError:
            return
        yield output
        place += 1


def _load(path, arenas):
    for arena in arenas:
        try:
            return _listen(lambda size=arena: runtime.Interpreter.from_file(path, arena_size=size))[0]
        except RuntimeError as failed:
            error = failed
    raise error


def _listen(function):
    """What a function returns, and what TFLite Micro says meanwhile on the standard error, which is all it explains."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            result = function()
        except RuntimeError as error:
            file.seek(0)
            raise RuntimeError(file.read().decode(errors="replace").strip() or error) from error
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        file.seek(0)
        return result, file.read().decode(errors="replace")


if __name__ == "__main__":
    runner.main(pathlib.Path(sys.argv[2]), lambda path: Micro(path, int(sys.argv[1])))
