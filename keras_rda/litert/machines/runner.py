"""Stand-alone script: run LiteRT files in a process of its own, so that a crash loses one job only.

`process.run` starts it, with an emulated Python too: only the standard library, NumPy and `ai_edge_litert`, nothing of
`keras_rda`.

    python runner.py FOLDER

FOLDER holds `jobs.json`, `{"repeats": n, "jobs": [{"id": 3, "path": "/file.tflite", "inputs": ["x"]}, …]}`, and of
every job `3.in.npz`: the inputs in the order of their names.
Written as they come: `current`, the job at work; `3.out.npz` and `3.json`, `{"error": null, "outputs": ["y"], "arena":
null}`; and at the end `times.json`, id → the seconds of each round.
"""

import json
import pathlib
import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter


class LiteRT:
    """A file in LiteRT's interpreter."""

    arena = None

    def __init__(self, path):
        self._interpreter = Interpreter(model_path=path)
        self.invoke = self._interpreter.invoke

    def run(self, names, arrays):
        """Run one batch; return the outputs, name → array."""
        runner = self._interpreter.get_signature_runner()
        details = runner.get_input_details()
        return runner(
            **{name: np.asarray(array, details[name]["dtype"]) for name, array in zip(names, arrays, strict=True)}
        )


def main(folder, runtime):
    plan = json.loads((folder / "jobs.json").read_text())
    loaded = {}
    for job in plan["jobs"]:
        name, result = job["id"], {"error": None}
        (folder / "current").write_text(str(name))
        try:
            file = runtime(job["path"])
            with np.load(folder / f"{name}.in.npz") as arrays:
                outputs = file.run(job["inputs"], list(arrays.values()))
            np.savez(folder / f"{name}.out.npz", *outputs.values())
            result |= {"outputs": list(outputs), "arena": file.arena}
            loaded[name] = file
        except Exception as error:  # whatever it is, it is this job's result
            result["error"] = " ".join(f"{type(error).__name__}: {error}".split())
        (folder / f"{name}.json").write_text(json.dumps(result))

    # Round by round over all files: what else the machine does meanwhile falls on all of them alike. Not through the
    # signature's runner, which prepares the file anew each time.
    seconds = {name: [] for name in loaded}
    for _ in range(plan["repeats"]):
        for name, file in loaded.items():
            (folder / "current").write_text(str(name))
            start = time.perf_counter()
            file.invoke()
            seconds[name].append(time.perf_counter() - start)
    (folder / "times.json").write_text(json.dumps(seconds if plan["repeats"] else {}))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), LiteRT)
