"""Time of one compiled update of a ResNet50's 25.6 M parameters, relative to SGD with momentum.

    python examples/benchmarks/step_time.py
    KERAS_BACKEND=jax python examples/benchmarks/step_time.py
    python examples/benchmarks/step_time.py --check     # exit status 1 if a ratio is beyond what noise explains

All optimizers update the same variables from the same gradients, one update each in turn, so that noise on the machine
meets them alike; a ratio is the median over the rounds of time / SGD's time in the same round. The memory bandwidth is
measured in the same rounds, by a copy. Bytes moved is what an update has to read and write at least.
"""

import argparse
import math
import os
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import keras_rda

# Arrays of the parameters' size that one update reads and writes: gradient, slots, weights; and the largest ratio that
# `--check` lets pass, some 1.5 times the usual one.
OPTIMIZERS = {
    "SGD, momentum": (lambda: keras.optimizers.SGD(0.01, momentum=0.9), 5, math.inf),
    "MRDA": (lambda: keras_rda.MRDA(), 5, 1.7),
    "MRDA, center initial": (lambda: keras_rda.MRDA(center="initial"), 7, 2.0),
    "SDA": (lambda: keras_rda.SDA(), 7, 2.0),
    "ProxSGD": (lambda: keras_rda.ProxSGD(), 3, 1.1),
    "SqrtProxSGD": (lambda: keras_rda.SqrtProxSGD(), 3, 1.1),
    "ProxSGD, momentum": (lambda: keras_rda.ProxSGD(momentum=0.9), 5, 4.5),
    "RMDA": (lambda: keras_rda.RMDA(), 7, 2.1),
    "XRDA": (lambda: keras_rda.XRDA(), 11, 3.8),
    "XRDA, averaging 0": (lambda: keras_rda.XRDA(averaging=0), 7, 2.6),
    "Adam": (lambda: keras.optimizers.Adam(), 7, math.inf),
    "Ftrl": (lambda: keras.optimizers.Ftrl(l1_regularization_strength=1e-6), 7, math.inf),
}


def compiled_update(optimizer, variables, gradients):
    """Return a function without arguments that runs one compiled update and waits for it."""
    optimizer.build(variables)
    if keras.backend.backend() == "jax":
        import jax

        apply = jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2))
        # Copies, because the update consumes its inputs and the optimizers share the variables.
        state = [[jax.numpy.array(v.value) for v in group] for group in (optimizer.variables, variables)]

        def update():
            state[1], state[0] = apply(state[0], gradients, state[1])
            jax.block_until_ready(state)

        return update

    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # it takes the optimizers for one function that is traced again and again
    apply = tf.function(lambda *gradients: optimizer.apply(list(gradients), variables), jit_compile=True)
    return lambda: apply(*gradients)


def measure(model, rounds):
    """Return `rounds` interleaved times of one update in seconds, by optimizer and of a copy, and the slots' bytes."""
    variables = model.trainable_variables
    random = np.random.default_rng(0)
    gradients = [
        keras.ops.convert_to_tensor(1e-3 * random.standard_normal(v.shape, dtype="float32")) for v in variables
    ]
    updates, slots = {}, {}
    for name, (make, *_) in OPTIMIZERS.items():
        optimizer = make()
        updates[name] = compiled_update(optimizer, variables, gradients)
        slots[name] = sum(4 * int(np.prod(v.shape)) for v in optimizer.variables)
        for _ in range(3):
            updates[name]()
    source = np.ones(model.count_params(), "float32")
    target = np.empty_like(source)
    updates["copy"] = lambda: np.copyto(target, source)

    seconds = {name: [] for name in updates}
    for _ in range(rounds):
        for name, update in updates.items():
            start = time.perf_counter()
            update()
            seconds[name].append(time.perf_counter() - start)
    return seconds, slots


def report(model, seconds, slots):
    """The measurements as a table, the bandwidth in bytes per second, and the names of ratios beyond their limits."""
    size = sum(4 * int(np.prod(variable.shape)) for variable in model.trainable_variables)
    table = Table(title=f"{model.name}, {size / 4e6:.1f} M trainable parameters, {keras.backend.backend()}, XLA")
    table.add_column("optimizer")
    for column in ("time / SGD's", "ms", "slots, MB", "bytes moved, MB", "GB/s"):
        table.add_column(column, justify="right")
    slow = []
    for name, (_, arrays, limit) in OPTIMIZERS.items():
        ratio = statistics.median(map(np.divide, seconds[name], seconds["SGD, momentum"]))
        slow += [name] if ratio > limit else []
        median = statistics.median(seconds[name])
        table.add_row(
            name,
            f"{ratio:.2f}",
            f"{1e3 * median:.1f}",
            f"{slots[name] / 1e6:.1f}",
            f"{arrays * size / 1e6:.0f}",
            f"{arrays * size / median / 1e9:.1f}",
        )
    return table, 2 * 4 * model.count_params() / statistics.median(seconds["copy"]), slow


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--check", action="store_true", help="fail on ratios beyond what noise explains")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1; received {arguments.rounds}")
    model = keras.applications.ResNet50(weights=None)
    table, bandwidth, slow = report(model, *measure(model, arguments.rounds))
    console = Console(width=100)
    console.print(table)
    console.print(f"Memory bandwidth of a copy: {bandwidth / 1e9:.1f} GB/s. {arguments.rounds} interleaved rounds.")
    if arguments.check and slow:
        sys.exit(f"Slower than the limit: {', '.join(slow)}.")


if __name__ == "__main__":
    main()
