"""Places where LiteRT files run.

`here` is this machine, in this process, and always there. The others have a name, the argument `machine` of `export`,
`verify` and `benchmark`, and in their module the same:

`is_ready()`            whether files can run there now
`check_ready()`         a `RuntimeError` that says how to set the place up, if they cannot
`run(jobs, repeats=0)`  run pairs of a file's path and its inputs, in a process apart from this; a list of `process.Run`
`BATCH_SIZE`            the batch size that `export` gives its files by default; None: they take any
`REPEATS`               how often `export` times its files there
`MULTIPLE_OF`           of what number channel counts should be multiples, of models that `export` removes channels from

What is needed for that an extra brings, `keras_rda[NAME]`, or a command, `python3 -m keras_rda.litert.NAME`, or both.
"""

from keras_rda.litert.machines import aarch64, micro, wasm

MACHINES = {"aarch64": aarch64, "wasm": wasm, "micro": micro}


def check_machine(name):
    """Raise a `ValueError` for a machine that is not known, a `RuntimeError` for one that is not set up."""
    if not isinstance(name, str) or name not in MACHINES:
        raise ValueError(f"machine must be one of {', '.join(map(repr, MACHINES))}; received {name!r}.")
    MACHINES[name].check_ready()
