"""Scattered zeros beside whole channels: top-1, σ, bytes and milliseconds of the files that both end in.

    python examples/benchmarks/structured.py --data-dir DIR
    python examples/benchmarks/structured.py --task cifar10 --method channels_together --data-dir DIR
    python examples/benchmarks/structured.py --task digits --seed 0      # to try it

Trains a network dense, with the recipe (scattered zeros), and by `channels` (`GroupL1`: whole input channels; see
accuracy.py, also for the other methods); then `compress`, `export`, and the latency of the files in turns. Trained
models are kept in `--output`, so a run that was killed goes on.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"  # export needs it

import accuracy
import accuracy_data as data
import accuracy_training
import keras
import numpy as np
from rich.console import Console
from rich.table import Column, Table

import keras_rda

# Wanted σ of the kernels; of the last ones, the share of multiply-adds that is to go.
ROUTES = {"dense": 0.0, "recipe": 0.95, "channels": 0.65} | dict.fromkeys(sorted(data.MULTIPLY_ADDS), 0.667)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=data.TASKS, default="cifar10_plain")
    methods = [method for method in ROUTES if method != "dense"]
    parser.add_argument("--method", nargs="+", choices=methods, default=["recipe", "channels"], help="beside dense")
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="default: of the task")
    parser.add_argument("--data-dir", help="prepared tensorflow-datasets directory; default: download to the usual one")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, of one thread each")
    parser.add_argument("--results", type=pathlib.Path, default=accuracy.RESULTS / "structured.jsonl")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(__file__).parents[1] / "output")
    arguments = parser.parse_args()
    for folder in (arguments.output, arguments.results.parent):
        folder.mkdir(parents=True, exist_ok=True)

    cells = []
    for seed in arguments.seed:
        dense = None
        for method in ("dense", *(method for method in methods if method in arguments.method)):
            places = {"data_dir": arguments.data_dir, "threads": 1}
            cell = data.make_cell(arguments.task, method, ROUTES[method], seed, arguments.epochs, **places)
            model = str(arguments.output / ("-".join(map(str, cell.key())) + ".keras"))
            cells.append(dataclasses.replace(cell, model=model, dense=dense))
            dense = dense or model
    for first in (True, False):  # dense training is where `channels` starts
        missing = [c for c in cells if (c.method == "dense") == first and not pathlib.Path(c.model).exists()]
        for _ in accuracy.run_all(missing, arguments.jobs):
            pass  # it prints

    _, (x_test, y_test) = data.load(keras.utils.PyDataset, cells[0])
    lines = [exported(cell, x_test, y_test) for cell in cells]
    files = {cell: pathlib.Path(cell.model).with_suffix(".tflite") for cell in cells}
    for line, latency in zip(lines, keras_rda.litert.benchmark(files, seconds=2), strict=True):
        line |= {
            "milliseconds": 1000 * latency.median,
            "versions": accuracy_training.versions(),
            "machine": data.MACHINE,
        }
        line["command"] = accuracy.command()
    keep(arguments.results, lines)
    Console(width=120).print(table(lines))


def keep(file, lines):
    """Write lines in place of those of the same cells; all others stay."""
    new = {tuple(line[name] for name in data.KEY) for line in lines}
    others = [line for line in data.read(file) if tuple(line[name] for name in data.KEY) not in new]
    unfinished = file.with_suffix(".part")
    unfinished.write_text("".join(json.dumps(line) + "\n" for line in [*others, *lines]))
    unfinished.replace(file)


def exported(cell, x_test, y_test):
    """Export a trained model, for the dense one as Keras does; return its line of the results."""
    model = keras.models.load_model(cell.model, compile=False)
    file = pathlib.Path(cell.model).with_suffix(".tflite")
    sigma = keras_rda.sparsity(model, kernels_only=True)
    if cell.method == "dense":
        model.export(str(file), format="litert", verbose=False)
    else:
        model = keras_rda.compress(model)
        keras_rda.export(model, file)
    logits = [keras_rda.litert.predict(file, batch)["output_0"] for batch in np.array_split(np.asarray(x_test), 20)]
    return {name: getattr(cell, name) for name in data.KEY} | {
        "top1": data.top1(np.concatenate(logits), y_test),
        "sigma": float(sigma),
        "parameters": model.count_params(),
        "multiply_adds": keras_rda.compress(model, report=True)[1].total("multiply_adds")[1],
        "bytes": file.stat().st_size,
    }


def table(lines):
    """A row a route: means over the seeds, and the standard deviation of what each seed's file has against dense."""
    shown = Table(
        Column("route", no_wrap=True),
        title=f"{lines[0]['task']}, {lines[0]['epochs']} epochs; top-1 of the LiteRT files",
    )
    figures = ("parameters", "multiply-adds / dense", "bytes", "ms", "time / dense", "seeds")
    for name in ("top-1, %", "lost, points", "σ, kernels", *figures):
        shown.add_column(name, justify="right")
    dense = {line["seed"]: line for line in lines if line["method"] == "dense"}

    def mean(values, format):
        values = list(values)
        deviation = f" ± {statistics.stdev(values):{format}}" if len(values) > 1 else ""
        return f"{statistics.mean(values):{format}}{deviation}"

    for method in dict.fromkeys(line["method"] for line in lines):
        rows = [line for line in lines if line["method"] == method]
        shown.add_row(
            method,
            mean((100 * row["top1"] for row in rows), ".2f"),
            mean((100 * (dense[row["seed"]]["top1"] - row["top1"]) for row in rows), ".2f"),
            f"{statistics.mean(row['sigma'] for row in rows):.4f}",
            f"{statistics.mean(row['parameters'] for row in rows):,.0f}",
            mean((row["multiply_adds"] / dense[row["seed"]]["multiply_adds"] for row in rows), ".3f"),
            f"{statistics.mean(row['bytes'] for row in rows):,.0f}",
            f"{statistics.mean(row['milliseconds'] for row in rows):.3f}",
            mean((row["milliseconds"] / dense[row["seed"]]["milliseconds"] for row in rows), ".3f"),
            str(len(rows)),
        )
    return shown


if __name__ == "__main__":
    main()
