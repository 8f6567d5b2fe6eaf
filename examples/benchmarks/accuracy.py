"""Accuracy at a given share of zeros: the recipe beside dense training and other ways to sparse networks.

    python examples/benchmarks/accuracy.py --data-dir DIR                        # the main claims, hours
    python examples/benchmarks/accuracy.py --task cifar10 --method dense recipe --sparsity 0.95 --seed 0 1 2
    KERAS_BACKEND=jax python examples/benchmarks/accuracy.py --data-dir DIR      # all of a machine for one run
    python examples/benchmarks/accuracy.py --show                                # table and plot of the results so far

On one backend every method has the same network, order of the data, augmentation, epochs and seeds. One run is one line
of the results file, so a run that was killed goes on where it stopped. `tfmot` needs `tf_keras` and
`tensorflow-model-optimization`.
`fine_tuning` makes the dense model sparse in a quarter of the epochs more; `channels` makes whole channels of it zero
in 0.4 of the epochs more, removes them, and trains what is left for as many epochs again. Their lines have the top-1 of
that very dense model too. `channels_together`, `channels_by_cost` and `channels_by_kernel` take a share of the
multiply-adds for σ, and remove channels after half of the epochs: `GroupL1` over all that reads a channel, weighed by
size or by multiply-adds, or kernel by kernel, chooses them from three tenths on. `gmp`, `rigl` and `acdc` train with
masks (opponents.py); their lines have their settings.
`bytes` is the LiteRT file of `export` (of `tfmot`: of TensorFlow's converter), in float32; there is none on JAX, whose
runs need no TensorFlow if the data are arrays that `python -m examples.paper prepare` wrote.
"""

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import accuracy_data as data
import keras

FOLDER = pathlib.Path(__file__).parent
RESULTS = FOLDER / "results"
ON_JAX = keras.backend.backend() == "jax"


def run(cell):
    """Run a cell in a process of its own; return its line, or raise with the end of what it printed."""
    text = json.dumps(dataclasses.asdict(cell))
    script = ["accuracy_tfmot.py", text] if cell.method == "tfmot" else ["accuracy.py", "--cell", text]
    done = subprocess.run(
        [sys.executable, FOLDER / script[0], *script[1:]],
        capture_output=True,
        text=True,
        env=os.environ | ({"OMP_NUM_THREADS": str(cell.threads)} if cell.threads else {}),
    )
    if done.returncode:
        raise RuntimeError(f"{cell} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=data.TASKS, default=["fashion_mnist", "cifar10"])
    default = ["dense", "recipe", *([] if ON_JAX else ["tfmot"]), "l1_threshold"]
    parser.add_argument("--method", nargs="+", choices=data.METHODS, default=default)
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.95], help="wanted σ of the kernels")
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="default: of the task")
    parser.add_argument("--dtype", choices=data.DTYPES, default="float32", help="what layers compute in")
    parser.add_argument(
        "--data-dir", help="arrays of `examples.paper prepare`, or prepared tensorflow-datasets; default: download"
    )
    parser.add_argument(
        "--jobs", type=int, help="runs at a time; default: 2, of one thread each; on JAX 1, of all threads"
    )
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS / "accuracy.jsonl")
    parser.add_argument("--show", action="store_true", help="no training: table and plot of the results so far")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        cell = data.Cell(**json.loads(arguments.cell))
        if cell.backend == "tensorflow":
            data.limit_threads(cell.threads)
        from accuracy_training import train

        print(json.dumps(train(cell)))
        return
    if wrong := [sigma for sigma in arguments.sparsity if not 0 < sigma < 1]:
        parser.error(f"--sparsity must be above 0 and below 1; received {wrong[0]}")
    if arguments.epochs is not None and arguments.epochs < 2:
        parser.error(f"--epochs must be at least 2, one of them for fine-tuning; received {arguments.epochs}")
    if ON_JAX and "tfmot" in arguments.method:
        parser.error("--method tfmot trains in Keras 2: run it with KERAS_BACKEND=tensorflow, or leave it out")
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    if not arguments.show:
        shared = {"data_dir": arguments.data_dir, "threads": None if ON_JAX else 1, "dtype": arguments.dtype}
        shared["backend"] = keras.backend.backend()
        cells = [
            data.make_cell(task, method, sparsity, seed, arguments.epochs, **shared)
            for sparsity, seed, task, method in itertools.product(
                arguments.sparsity, arguments.seed, arguments.task, arguments.method
            )
        ]
        train_all(cells, arguments)
    results = data.read(arguments.results)
    if not results:
        parser.error(f"{arguments.results} holds no results yet")
    import accuracy_shown as shown
    from rich.console import Console

    Console(width=120).print(shown.table(results))
    shown.plot(results, arguments.results.with_suffix(".png"))


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
    done = {tuple(line[name] for name in data.KEY) for line in data.read(arguments.results)}
    if arguments.results.exists() and not arguments.results.read_bytes().endswith(b"\n"):
        with arguments.results.open("a") as file:
            file.write("\n")  # after a line that a kill has cut off
    missing = {cell.key(): cell for cell in cells if cell.key() not in done}
    with arguments.results.open("a") as file:
        for line in run_all(missing.values(), arguments.jobs or (1 if ON_JAX else 2)):
            file.write(json.dumps(line | {"command": command()}) + "\n")
            file.flush()


def command():
    """The command line, without the places of this machine: another has its own."""
    words = " ".join(sys.argv[1:])
    words = re.sub(r"(--(?:data-dir|results|output)[ =])\S+", r"\1DIR", words)
    backend = "KERAS_BACKEND=jax " if ON_JAX else ""
    return f"{backend}python examples/benchmarks/{pathlib.Path(sys.argv[0]).name} {words}"


if __name__ == "__main__":
    main()
