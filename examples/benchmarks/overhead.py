"""What keras_rda costs beside Keras' own: a `fit` epoch, the import, and compress and export over the size of a model.

    python examples/benchmarks/overhead.py
    python examples/benchmarks/overhead.py --check     # exit status 1 if a ratio is beyond what noise explains

Everything that is compared takes turns; ratios are medians over the rounds. An epoch trains the ResNet-20 of
accuracy.py on random images, compiled by XLA as Keras does by default, and without; beside them, where it is
installed, the network that TensorFlow Model Optimization has wrapped.
"""

import argparse
import contextlib
import importlib.util
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"  # export needs it

import accuracy_data as data
import keras
import numpy as np
from accuracy_networks import residual
from rich.console import Console
from rich.table import Table

import keras_rda

OPTIMIZERS = {
    "SGD, momentum": lambda: keras.optimizers.SGD(0.01, momentum=data.MOMENTUM),
    "MRDA": keras_rda.MRDA,
    "XRDA": keras_rda.XRDA,
}
IMPORTS = {"keras": "import keras", "keras and keras_rda": "import keras, keras_rda"}
WIDTHS = (0.25, 0.5, 1.0, 2.0)  # alpha of MobileNetV1: 0.5 to 16 million parameters
# The goals, and the margin that noise does not cross.
GOALS = {"epoch": 1.03, "epoch, no XLA": 1.03, "import": 1.05, "slope": 1.1}
LIMITS = {"epoch": 1.15, "epoch, no XLA": 1.25, "import": 1.2, "slope": 1.25}


def in_turns(functions, rounds):
    """Dict of name → median over the rounds of its time / the first one's in the same round."""
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    first = next(iter(seconds.values()))
    return {name: statistics.median(map(np.divide, values, first)) for name, values in seconds.items()}


def epochs(steps, rounds, jit_compile):
    """Ratios of a `fit` epoch; without XLA also of TensorFlow Model Optimization, which runs without."""
    batches = data.random_batches(steps)

    def epoch(optimizer):
        model = residual(keras, keras.layers, batches.element_spec[0].shape[1:])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer(), loss, jit_compile=jit_compile)
        return lambda: model.fit(batches, shuffle=False, verbose=0)

    functions = {name: epoch(optimizer) for name, optimizer in OPTIMIZERS.items()}
    with contextlib.ExitStack() as stack:
        if not jit_compile and importlib.util.find_spec("tensorflow_model_optimization"):
            script = pathlib.Path(__file__).with_name("overhead_tfmot.py")
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            child = stack.enter_context(subprocess.Popen([sys.executable, script, str(steps)], text=True, **pipes))
            stack.callback(child.stdin.close)

            def tfmot():
                print("train", file=child.stdin, flush=True)
                if child.stdout.readline() != "trained\n":
                    raise RuntimeError(f"{script.name} has failed; run it by hand to see why")

            functions["TFMOT, SGD"] = tfmot
        for function in functions.values():
            function()  # tracing and compilation
        return in_turns(functions, rounds)


def imports(rounds):
    def start(code):
        return lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    return in_turns({name: start(code) for name, code in IMPORTS.items()}, rounds)


def slopes(rounds):
    """Slope of log seconds over log parameters, of compress and of export, with half of the filters dead."""
    models = []
    for alpha in WIDTHS:
        model = keras_rda.models.MobileNetV1((96, 96, 3), alpha)
        for layer in model.layers:
            if type(layer) is keras.layers.Conv2D:
                layer.kernel.assign(layer.kernel * (np.arange(layer.filters) % 2))
        models.append(model)
    seconds = {"compress": np.empty((rounds, len(models))), "export": np.empty((rounds, len(models)))}
    with tempfile.TemporaryDirectory() as folder:
        keras_rda.export(models[0], pathlib.Path(folder) / "warm-up.tflite")
        for row in range(rounds):
            for column, model in enumerate(models):
                start = time.perf_counter()
                keras_rda.compress(model)
                middle = time.perf_counter()
                keras_rda.export(model, pathlib.Path(folder) / "model.tflite")
                seconds["compress"][row, column] = middle - start
                seconds["export"][row, column] = time.perf_counter() - middle
    sizes = np.log([model.count_params() for model in models])
    return {name: np.polyfit(sizes, np.log(np.median(times, axis=0)), 1)[0] for name, times in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="batches of an epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="fail on ratios beyond what noise explains")
    arguments = parser.parse_args()
    if arguments.steps < 1 or arguments.rounds < 1:
        parser.error(f"--steps and --rounds must be at least 1; received {arguments.steps} and {arguments.rounds}")
    found = [
        *(("epoch", name, ratio) for name, ratio in epochs(arguments.steps, arguments.rounds, "auto").items()),
        *(("epoch, no XLA", name, ratio) for name, ratio in epochs(arguments.steps, arguments.rounds, False).items()),
        *(("import", name, ratio) for name, ratio in imports(arguments.rounds).items()),
        *(("slope", name, slope) for name, slope in slopes(arguments.rounds).items()),
    ]
    table = Table(
        "what", "of", title=f"ratios to the first of each kind; medians of {arguments.rounds} rounds in turns"
    )
    for name in ("ratio or slope", "goal", "limit"):
        table.add_column(name, justify="right")
    for kind, name, value in found:
        table.add_row(kind, name, f"{value:.3f}", f"{GOALS[kind]}", f"{LIMITS[kind]}")
    Console(width=100).print(table)
    wrong = [
        f"{kind} of {name}" for kind, name, value in found if value > LIMITS[kind] and not name.startswith("TFMOT")
    ]
    if arguments.check and wrong:
        sys.exit(f"Slower than the limit: {', '.join(wrong)}.")


if __name__ == "__main__":
    main()
