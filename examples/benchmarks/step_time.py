"""Time of one compiled update of a ResNet50's 25.6 M parameters, relative to SGD with momentum.

    python examples/benchmarks/step_time.py
    KERAS_BACKEND=jax python examples/benchmarks/step_time.py
    KERAS_BACKEND=torch python examples/benchmarks/step_time.py --eager    # as torch trains by default
    KERAS_BACKEND=jax python examples/benchmarks/step_time.py --network resnet18 --optimizer MRDA XRDA Adam
    python examples/benchmarks/step_time.py --check     # exit status 1 if a ratio is beyond what noise explains

All optimizers update the same variables from the same gradients, one update each in turn, so that noise on the machine
meets them alike; a ratio is the median over the rounds of time / SGD's time in the same round. The memory bandwidth is
measured in the same rounds, by a copy. Bytes moved is what an update has to read and write at least. On a GPU (JAX),
where a call takes longer than an update, a hundred updates are one call, as in a training loop that is compiled.
"""

import argparse
import math
import os
import statistics
import sys
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import keras_rda

NETWORKS = {
    "resnet50": lambda: keras.applications.ResNet50(weights=None),  # 25.6 M parameters
    "resnet18": keras_rda.models.ResNet18,  # 11.2 M, as in the paper
}
BASELINE = "SGD, momentum"
LARGE = 2**28  # float32 numbers: more than an accelerator's cache holds
OURS = [name for name in keras_rda.optimizers.__all__ if name != "PenalizedOptimizer"]


def _by_default(name):
    return lambda model: getattr(keras_rda, name)()


# Functions of the model whose variables they update.
OPTIMIZERS = {
    BASELINE: lambda model: keras.optimizers.SGD(0.01, momentum=0.9),
    **{name: _by_default(name) for name in OURS},
    "MRDA, center initial": lambda model: keras_rda.MRDA(center="initial"),
    "ProxSGD, momentum": lambda model: keras_rda.ProxSGD(momentum=0.9),
    "XRDA, averaging": lambda model: keras_rda.XRDA(averaging=None),
    "MRDA, groups": lambda model: keras_rda.MRDA(penalty=keras_rda.GroupL1(1e-6, "inputs", model)),
    "MRDA, channels": lambda model: keras_rda.MRDA(penalty=keras_rda.GroupL1(1e-6, "channels", model)),
    "XRDA, groups": lambda model: keras_rda.XRDA(penalty=keras_rda.GroupL1(1e-6, "inputs", model)),
    "XRDA, channels": lambda model: keras_rda.XRDA(penalty=keras_rda.GroupL1(1e-6, "channels", model)),
    "Adam": lambda model: keras.optimizers.Adam(),
    "Ftrl": lambda model: keras.optimizers.Ftrl(l1_regularization_strength=1e-6),
}
# The largest ratio that `--check` lets pass, some 1.5 times the usual one.
LIMITS = {
    **{"MRDA": 1.7, "MRDA, center initial": 2.0, "SDA": 2.0, "RMDA": 2.1, "XRDA": 2.6, "XRDA, averaging": 3.8},
    **{"ProxSGD": 1.1, "SqrtProxSGD": 1.1, "ProxSGD, momentum": 4.5},
}


def on_accelerator():
    if keras.backend.backend() != "jax":
        return False
    import jax

    return jax.devices()[0].platform != "cpu"


def compiled_update(optimizer, variables, gradients, repeats, eager=False):
    """Return a function without arguments that runs `repeats` updates in one compiled call and waits for them.

    On JAX it returns the slots and the weights, which stay its own. On torch the updates are compiled one by one, or,
    if they are to be `eager`, not at all.
    """
    optimizer.build(variables)
    if keras.backend.backend() == "torch":
        import torch

        apply = optimizer.apply if eager else torch.compile(optimizer.apply)

        def update():
            with torch.no_grad():
                for _ in range(repeats):
                    apply(gradients, variables)
            if torch.cuda.is_available():
                torch.cuda.synchronize()

        return update

    if keras.backend.backend() == "jax":
        import jax

        def updates(slots, gradients, trained):
            def update(_, state):
                trained, slots = optimizer.stateless_apply(state[0], gradients, state[1])
                return slots, trained

            return jax.lax.fori_loop(0, repeats, update, (slots, trained))

        apply = jax.jit(updates, donate_argnums=(0, 2))
        # Copies, because the update consumes its inputs and the optimizers share the variables.
        state = [[jax.numpy.array(v.value) for v in group] for group in (optimizer.variables, variables)]

        def update():
            state[:] = apply(state[0], gradients, state[1])
            return jax.block_until_ready(state)

        return update

    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # it takes the optimizers for one function that is traced again and again
    apply = tf.function(lambda *gradients: optimizer.apply(list(gradients), variables), jit_compile=True)

    def update():
        for _ in range(repeats):
            apply(*gradients)

    return update


def compiled_copy(size, repeats):
    """Return a function without arguments that copies where updates run, `repeats` times, and the bytes it moves.

    Of as many float32 numbers as the updates have, on an accelerator of more than its cache holds.
    """
    if not on_accelerator():
        source = np.ones(size, "float32")
        target = np.empty_like(source)

        def copy():
            for _ in range(repeats):
                np.copyto(target, source)

        return copy, 2 * 4 * size * repeats

    import jax

    array = [jax.numpy.ones(LARGE, "float32")]
    # Not a copy that the compiler could leave out.
    add = jax.jit(lambda x: jax.lax.fori_loop(0, repeats, lambda _, x: x + 1, x), donate_argnums=0)

    def copy():
        array[0] = jax.block_until_ready(add(array[0]))

    return copy, 2 * 4 * LARGE * repeats


def measure(model, rounds, optimizers=tuple(OPTIMIZERS), repeats=None, eager=False):
    """Return what `rounds` interleaved times of one update came to: a dict of plain numbers.

    Args:
        model: Its trainable variables are updated.
        rounds: Times measured of each optimizer, in turns.
        optimizers: Names of `OPTIMIZERS`; the baseline is always measured.
        repeats: Updates in one call. Default: 1, on accelerators 100.
        eager: Whether updates are not compiled, on torch.
    """
    repeats = repeats or (100 if on_accelerator() else 1)
    variables = model.trainable_variables
    random = np.random.default_rng(0)
    gradients = [
        keras.ops.convert_to_tensor(1e-3 * random.standard_normal(v.shape, dtype="float32")) for v in variables
    ]
    updates, slots = {}, {}
    for name in dict.fromkeys((BASELINE, *optimizers)):
        optimizer = OPTIMIZERS[name](model)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "RDA starts at")  # zero, where no network can
            updates[name] = compiled_update(optimizer, variables, gradients, repeats, eager)
        slots[name] = sum(4 * int(np.prod(v.shape)) for v in optimizer.variables)
        for _ in range(3):
            updates[name]()
    updates["copy"], moved = compiled_copy(model.count_params(), repeats)
    updates["copy"]()

    seconds = {name: [] for name in updates}
    for _ in range(rounds):
        for name, update in updates.items():
            start = time.perf_counter()
            update()
            seconds[name].append((time.perf_counter() - start) / repeats)
    size = sum(4 * int(np.prod(variable.shape)) for variable in variables)
    return {
        "network": model.name,
        "parameters": size // 4,
        "backend": f"{keras.backend.backend()}, eager" if eager else keras.backend.backend(),
        "rounds": rounds,
        "optimizers": {
            name: {
                "ratio": statistics.median(map(np.divide, seconds[name], seconds[BASELINE])),
                "seconds": statistics.median(seconds[name]),
                "slots": slots[name],
                "bytes": 3 * size + 2 * slots[name],  # gradients and weights, and slots, which are read and written
            }
            for name in slots
        },
        "copy": moved / repeats / statistics.median(seconds["copy"]),
    }


def report(measured):
    """What was measured as a table, and the names of ratios beyond their limits."""
    compiler = {"tensorflow": ", XLA", "jax": ", XLA", "torch": ", torch.compile"}.get(measured["backend"], "")
    title = (
        f"{measured['network']}, {measured['parameters'] / 1e6:.1f} M trainable parameters, "
        f"{measured['backend']}{compiler}"
    )
    table = Table(title=title)
    table.add_column("optimizer")
    for column in ("time / SGD's", "ms", "slots, MB", "bytes moved, MB", "GB/s"):
        table.add_column(column, justify="right")
    for name, of in measured["optimizers"].items():
        table.add_row(
            name,
            f"{of['ratio']:.2f}",
            f"{1e3 * of['seconds']:.1f}" if of["seconds"] > 0.01 else f"{1e3 * of['seconds']:.3f}",
            f"{of['slots'] / 1e6:.1f}",
            f"{of['bytes'] / 1e6:.0f}",
            f"{of['bytes'] / of['seconds'] / 1e9:.1f}",
        )
    return table, [name for name, of in measured["optimizers"].items() if of["ratio"] > LIMITS.get(name, math.inf)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, default="resnet50")
    parser.add_argument("--optimizer", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS), help="default: all")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--eager", action="store_true", help="do not compile, on torch")
    parser.add_argument("--check", action="store_true", help="fail on ratios beyond what noise explains")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1; received {arguments.rounds}")
    if arguments.eager and keras.backend.backend() != "torch":
        parser.error(f"--eager is for KERAS_BACKEND=torch; the backend is {keras.backend.backend()}")
    measured = measure(NETWORKS[arguments.network](), arguments.rounds, arguments.optimizer, eager=arguments.eager)
    table, slow = report(measured)
    console = Console(width=100)
    console.print(table)
    console.print(
        f"Memory bandwidth of a copy: {measured['copy'] / 1e9:.1f} GB/s. {arguments.rounds} interleaved rounds."
    )
    if arguments.check and slow:
        sys.exit(f"Slower than the limit: {', '.join(slow)}.")


if __name__ == "__main__":
    main()
