"""Accuracy at a given share of zeros: the recipe beside dense training and other ways to sparse networks.

    python examples/benchmarks/accuracy.py --data-dir DIR                        # the main claims, hours
    python examples/benchmarks/accuracy.py --task cifar10 --method dense recipe --sparsity 0.95 --seed 0 1 2
    python examples/benchmarks/accuracy.py --show                                # table and plot of the results so far

Every method has the same network, order of the data, augmentation, epochs and seeds. One run is one line of the results
file, so a run that was killed goes on where it stopped. `tfmot` needs `tensorflow-model-optimization` and `tf_keras`.
`fine_tuning` makes the dense model sparse in a quarter of the epochs more; `channels` makes whole channels of it zero
in 0.4 of the epochs more, removes them, and trains what is left for as many epochs again. Their lines have the top-1 of
that very dense model too. `gmp`, `rigl` and `acdc` train with masks (opponents.py); their lines have their settings.
`bytes` is the LiteRT file of `export` (of `tfmot`: of TensorFlow's converter), in float32.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import accuracy_data as data

FOLDER = pathlib.Path(__file__).parent
RESULTS = FOLDER / "results"
FINE_TUNING = 0.25  # of the epochs: the last of `l1_threshold`, with frozen zeros; as many more for `fine_tuning`
CHOOSING = 0.4  # of these: `fine_tuning` chooses the zeros in them, and freezes them for the others
CHOOSING_END = 0.9  # when σ reaches the target then
CHANNELS = 0.4  # of the epochs, as many more for `channels` to choose what to remove


def sgd(task, steps, factor=1.0, kind=None):
    """SGD with momentum and a cosine rate, or another `kind` of it."""
    import keras

    rate = keras.optimizers.schedules.CosineDecay(factor * task.learning_rate, steps)
    return (kind or keras.optimizers.SGD)(rate, momentum=data.MOMENTUM, weight_decay=task.decoupled_weight_decay)


def optimizer_for(method, task, steps, model):
    """The optimizer of a method that is one `fit`; `fine_tuning` and `channels` start from trained weights."""
    import keras
    import opponents

    import keras_rda

    schedules = keras.optimizers.schedules

    def recipe(rate, penalty=1e-6, weight_decay=None):
        weight_decay = task.weight_decay if weight_decay is None else weight_decay
        return keras_rda.XRDA(schedules.CosineDecay(rate, steps), penalty, weight_decay=weight_decay)

    makers = {
        "dense": lambda: sgd(task, steps),
        "gmp": lambda: sgd(task, steps, kind=opponents.MaskedSGD),
        "rigl": lambda: sgd(task, steps, kind=functools.partial(opponents.MaskedSGD, keeps_gradients=True)),
        "acdc": lambda: sgd(task, steps, kind=opponents.MaskedSGD),
        "recipe": lambda: recipe(task.recipe.learning_rate, weight_decay=task.recipe.weight_decay),
        "fine_tuning": lambda: recipe(0.5),
        "channels": lambda: recipe(0.3, keras_rda.GroupL1(1e-6, layout=model)),
        "sda": lambda: keras_rda.SDA(1.0),
        "rda": lambda: keras_rda.RDA(1.0),
        "mrda": lambda: keras_rda.MRDA(1.0),
        "mrda_cosine": lambda: keras_rda.MRDA(schedules.CosineDecay(1.0, steps)),
        "prox_sgd": lambda: keras_rda.ProxSGD(1.0),
        "sqrt_prox_sgd": lambda: keras_rda.SqrtProxSGD(1.0, 1e-9),
        "prox_sgd_momentum": lambda: keras_rda.ProxSGD(
            schedules.CosineDecay(task.learning_rate, steps),
            momentum=data.MOMENTUM,
            exponent=0.0,
            weight_decay=task.weight_decay,
        ),
        "rmda": lambda: keras_rda.RMDA(
            schedules.PiecewiseConstantDecay([steps // 2, 3 * steps // 4], [0.1, 0.01, 0.001])
        ),
        # With Keras' initial_accumulator_value of 0.1 the first step forgets the initial weights: top-1 stays at 10 %.
        "ftrl": lambda: keras.optimizers.Ftrl(0.05, initial_accumulator_value=1e-8, l1_regularization_strength=1e-4),
    }
    return makers[method]()


def train(cell):
    """Run a cell in this process and return its line of the results."""
    data.limit_threads(cell.threads)
    import keras
    import numpy as np
    import opponents

    import keras_rda

    keras.utils.set_random_seed(cell.seed)
    task = data.TASKS[cell.task]
    batches, (x_test, y_test) = data.load(keras.utils.PyDataset, cell)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    start = time.perf_counter()

    def fit(model, optimizer, epochs, initial_epoch=0, callbacks=()):
        model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)  # XLA's convolutions are slower here
        return model.fit(
            batches, epochs=epochs, initial_epoch=initial_epoch, shuffle=False, verbose=0, callbacks=list(callbacks)
        ).history

    def top1(model):
        return data.top1(model.predict(np.asarray(x_test), batch_size=1000, verbose=0), y_test)

    also = {}  # in the line of the results
    if cell.method == "l1_threshold":
        model = task.network(keras, keras.layers, task.input_shape, keras.regularizers.L1(task.l1_in_the_loss))
        tuning = max(1, round(FINE_TUNING * cell.epochs))
        fit(model, sgd(task, len(batches) * (cell.epochs - tuning)), cell.epochs - tuning)
        threshold(model, cell.sparsity)
        keras_rda.freeze_zeros(model)
        for variable in model.trainable_variables:
            variable.regularizer = None  # what Keras computes the loss from; the layer's own attribute is not
        history = fit(model, sgd(task, len(batches) * tuning), cell.epochs, cell.epochs - tuning)
    else:
        model = task.network(keras, keras.layers, task.input_shape)
        epochs = cell.epochs
        end = {"recipe": task.recipe.end, "fine_tuning": CHOOSING_END}.get(cell.method, 0.75)
        if more := {"fine_tuning": FINE_TUNING, "channels": CHANNELS}.get(cell.method):
            if cell.dense:
                model = keras.models.load_model(cell.dense, compile=False)
                batches.start(epochs)
            else:
                fit(model, sgd(task, len(batches) * epochs), epochs)
            also["dense_top1"] = top1(model)
            epochs = tuning = max(2, round(more * epochs))
            if cell.method == "fine_tuning":
                epochs = max(1, round(CHOOSING * tuning))
        optimizer = optimizer_for(cell.method, task, len(batches) * epochs, model)
        if cell.method in opponents.OPPONENTS:
            callbacks = [opponents.OPPONENTS[cell.method](cell.sparsity)]
        else:
            callbacks = [] if cell.method in data.DENSE else [keras_rda.TargetSparsity(cell.sparsity, end=end)]
        history = fit(model, optimizer, epochs, callbacks=callbacks)
        if cell.method in opponents.OPPONENTS:
            also["settings"] = callbacks[0].settings
        if cell.method == "fine_tuning":
            keras_rda.freeze_zeros(model)
            history = fit(model, sgd(task, len(batches) * (tuning - epochs)), tuning - epochs)
    sigma = keras_rda.sparsity(model, kernels_only=True)
    if cell.method == "channels":  # σ counts what is removed now
        model = keras_rda.compress(model)
        history = fit(model, sgd(task, len(batches) * cell.epochs, 0.5), cell.epochs)
    seconds = time.perf_counter() - start
    if cell.model:
        unfinished = pathlib.Path(cell.model).with_suffix(".part.keras")
        model.save(unfinished)
        unfinished.replace(cell.model)
    train_top1, backend = history["accuracy"][-1], keras.backend.backend()
    if backend == "tensorflow":
        with tempfile.TemporaryDirectory() as folder:
            also["bytes"] = keras_rda.export(model, pathlib.Path(folder, "model.tflite")).bytes
    return data.result(cell, top1(model), sigma, seconds, train_top1, versions(), backend) | also


def versions():
    import keras

    import keras_rda

    found = {"keras": keras.version(), "keras_rda": keras_rda.__version__}
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        found["tensorflow"] = tf.__version__
    return found


def threshold(model, sparsity):
    """Zero the smallest weights of all kernels together."""
    import numpy as np

    from keras_rda.kernels import is_kernel

    kernels = [v for v in model.trainable_variables if is_kernel(v)]
    cut = np.quantile(np.concatenate([np.abs(v.numpy()).ravel() for v in kernels]), sparsity)
    for kernel in kernels:
        kernel.assign(np.where(np.abs(kernel.numpy()) <= cut, 0, kernel.numpy()))


def run(cell):
    """Run a cell in a process of its own; return its line, or raise with the end of what it printed."""
    text = json.dumps(dataclasses.asdict(cell))
    script = ["accuracy_tfmot.py", text] if cell.method == "tfmot" else ["accuracy.py", "--cell", text]
    done = subprocess.run(
        [sys.executable, FOLDER / script[0], *script[1:]],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(cell.threads)},
    )
    if done.returncode:
        raise RuntimeError(f"{cell} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def read(file):
    """The results so far; a line that was cut off by a kill is left out."""
    lines = []
    for line in filter(None, file.read_text().splitlines() if file.exists() else ()):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{file}: a line that is cut off is left out: {line[:60]}…", file=sys.stderr)
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=data.TASKS, default=["fashion_mnist", "cifar10"])
    parser.add_argument(
        "--method", nargs="+", choices=data.METHODS, default=["dense", "recipe", "tfmot", "l1_threshold"]
    )
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.95], help="wanted σ of the kernels")
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="default: of the task")
    parser.add_argument("--data-dir", help="prepared tensorflow-datasets directory; default: download to the usual one")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS / "accuracy.jsonl")
    parser.add_argument("--show", action="store_true", help="no training: table and plot of the results so far")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        print(json.dumps(train(data.Cell(**json.loads(arguments.cell)))))
        return
    if wrong := [sigma for sigma in arguments.sparsity if not 0 < sigma < 1]:
        parser.error(f"--sparsity must be above 0 and below 1; received {wrong[0]}")
    if arguments.epochs is not None and arguments.epochs < 2:
        parser.error(f"--epochs must be at least 2, one of them for fine-tuning; received {arguments.epochs}")
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    if not arguments.show:
        cells = [
            make_cell(arguments, *place)
            for place in itertools.product(arguments.sparsity, arguments.seed, arguments.task, arguments.method)
        ]
        train_all(cells, arguments)
    results = read(arguments.results)
    if not results:
        parser.error(f"{arguments.results} holds no results yet")
    import accuracy_shown as shown
    from rich.console import Console

    Console(width=120).print(shown.table(results))
    shown.plot(results, arguments.results.with_suffix(".png"))


def make_cell(arguments, sparsity, seed, task, method):
    epochs = arguments.epochs or data.TASKS[task].epochs
    target = 0.0 if method in data.DENSE else sparsity
    return data.Cell(task, method, target, seed, epochs, arguments.data_dir, threads=1)


def run_all(cells, jobs):
    """Yield the line of each cell as it ends; if any failed, raise when the others have ended."""
    failures = []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run, cell) for cell in cells]
        for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
            if error := future.exception():
                failures.append(str(error))
                continue
            line = future.result()
            yield line
            print(
                f"{number}/{len(cells)} {line['task']} {line['method']} σ {line['sigma']:.4f} top-1 {line['top1']:.4f} "
                f"seed {line['seed']}",
                flush=True,
            )
    if failures:
        sys.exit("\n\n".join(failures))


def train_all(cells, arguments):
    """Run the cells that the results do not hold yet, and append each as it ends."""
    done = {tuple(line[name] for name in data.KEY) for line in read(arguments.results)}
    if arguments.results.exists() and not arguments.results.read_bytes().endswith(b"\n"):
        with arguments.results.open("a") as file:
            file.write("\n")  # after a line that a kill has cut off
    missing = {cell.key(): cell for cell in cells if cell.key() not in done}
    with arguments.results.open("a") as file:
        for line in run_all(missing.values(), arguments.jobs):
            file.write(json.dumps(line | {"command": command()}) + "\n")
            file.flush()


def command():
    """The command line, without the places of this machine: another has its own."""
    words = " ".join(sys.argv[1:])
    words = re.sub(r"(--(?:data-dir|results|output)[ =])\S+", r"\1DIR", words)
    return f"python examples/benchmarks/{pathlib.Path(sys.argv[0]).name} {words}"


if __name__ == "__main__":
    main()
