"""Places where LiteRT files run.

`here` is this machine, in this process, and always there. The others have a name, the argument `machine` of `export`
and `verify`, and in their module the same functions:

`is_ready()`            whether files can run there now
`check_ready()`         a `RuntimeError` that says how to set the place up, if they cannot
`run(jobs, repeats=0)`  run pairs of a file's path and its inputs, in a process apart from this; a list of `process.Run`

What is needed for that is brought by a command, `python3 -m keras_rda.litert.NAME`.
"""

from keras_rda.litert.machines import aarch64

MACHINES = {"aarch64": aarch64}


def check_machine(name):
    """Raise a `ValueError` for a machine that is not known, a `RuntimeError` for one that is not set up."""
    if name not in MACHINES:
        raise ValueError(f"machine must be one of {', '.join(map(repr, MACHINES))}; received {name!r}.")
    MACHINES[name].check_ready()
