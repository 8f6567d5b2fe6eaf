"""`keras-rda`: inspect, compress, export, shrink, verify and benchmark models from the command line."""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import zipfile

import click
import keras
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import keras_rda
from keras_rda import isolation, metrics, output
from keras_rda.litert import convert, decode, flatbuffer, report, shrinking
from keras_rda.litert.machines import MACHINES

_file = click.Path(exists=True, dir_okay=False, path_type=pathlib.Path)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
_machine_option = click.option("--machine", type=click.Choice(MACHINES), help="Run the file there too.")
_data_option = click.option(
    "--representative-data",
    type=_file,
    help="Typical inputs as .npy, or as .npz with an array for each input's name.",
)
_new_file = click.Path(dir_okay=False, path_type=pathlib.Path)


class _Commands(click.Group):
    """Every error that a user can cause ends in one line and exit status 1."""

    def invoke(self, context):
        try:
            return super().invoke(context)
        except click.exceptions.Exit:  # --help ends so: a RuntimeError, but none of ours
            raise
        except (OSError, ValueError, TypeError, RuntimeError, MemoryError) as error:
            raise click.ClickException(output.one_line(error)) from error


def run():
    """The installed command: `main`, on Linux in a process of its own.

    TensorFlow, HDF5 and LiteRT trust what they read: a file that was damaged, by chance or on purpose, can end the
    process. Here that is an error like others.
    """
    isolation.run(main)


@click.group(cls=_Commands)
@click.version_option(keras_rda.__version__)
def main():
    """Smaller and faster LiteRT (TFLite) files from Keras models with zeros."""


@main.command(short_help="Show the zeros (σ) and bytes of every weight.")
@click.argument("file", type=_file)
@_json_option
def inspect(file, as_json):
    """Show the zeros (σ) and bytes of every weight of a .keras or .tflite FILE, and what `shrink` would make of it."""
    if file.suffix == ".tflite":
        model, content = flatbuffer.read(file), file.read_bytes()
        tensors = decode.stored(model)
        try:
            smaller, why_not = shrinking.gain(model, content), ""
        except ValueError as error:
            smaller, why_not = None, output.one_line(error)
        data = {
            "bytes": len(content),
            "bytes_of_shrink": smaller,
            "why_not": why_not,
            "tensors": [dataclasses.asdict(tensor) for tensor in tensors],
        }
        _show(report.tensor_table(tensors, "operators left out"), data, as_json)
        if not as_json:
            would = f"shrink would write {smaller:,}" if smaller else "shrink would not make it smaller"
            print(f"{len(content):,} bytes; {f'shrink would refuse it: {why_not}' if why_not else would}")
    else:
        summary = metrics.summarize(_load(file).weights)
        _show(summary, [{**dataclasses.asdict(row), "sparsity": row.sparsity} for row in summary.rows], as_json)


@main.command(short_help="Remove dead channels; the outputs stay the same.")
@click.argument("source", metavar="IN", type=_file)
@click.argument("target", metavar="OUT", type=_new_file)
@click.option("--fold-batch-norm", is_flag=True, help="Multiply batch normalisation into the layers before it.")
@click.option(
    "--multiple-of",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Keep numbers of channels at multiples of this; 8 for browsers.",
)
@_json_option
def compress(source, target, fold_batch_norm, multiple_of, as_json):
    """Remove dead channels from IN (.keras) and save the smaller model, with the same outputs, as OUT (.keras)."""
    if target.suffix != ".keras":
        raise click.BadParameter(f"must end in '.keras'; received '{target}'.", param_hint="OUT")
    _check_folder(target)
    with _working(f"Compressing {source.name}"):
        smaller, result = keras_rda.compress(_load(source), fold_batch_norm, report=True, multiple_of=multiple_of)
        with output.replacing(target) as unfinished:
            smaller.save(unfinished)
    _show(result, result.to_dict(), as_json)


@main.command(short_help="Write the smallest LiteRT file that was verified.")
@click.argument("source", metavar="IN", type=_file)
@click.argument("target", metavar="OUT.tflite", type=_new_file)
@click.option("--quantize", type=click.Choice(convert.QUANTIZATIONS[1:]), help="Weights (int8: all) in fewer bits.")
@_data_option
@_machine_option
@click.option("--batch-size", type=click.IntRange(1), help="The only one that the file takes (wasm, micro: 1).")
@click.option("--dense", is_flag=True, help="Remove channels, but encode no zeros: for what lacks DENSIFY.")
@click.option(
    "--input-shape",
    "input_shapes",
    multiple=True,
    metavar="[NAME=]SIZES",
    help="Sizes for inputs that leave some open, without the batch's: 128, or tokens=128, or 224,224,3.",
)
@click.option("--header", type=_new_file, help="With --machine micro: also write the file as a C array (.h).")
@click.option("--html", type=_new_file, help="Also write the report as a page.")
@_json_option
def export(
    source, target, quantize, representative_data, machine, batch_size, dense, input_shapes, header, html, as_json
):
    """Write IN (.keras) as the smallest LiteRT file that was verified; --machine micro: one for TFLite Micro."""
    if html is not None:
        _check_folder(html)
    data = None if representative_data is None else _arrays(representative_data)
    with _working(f"Exporting {source.name}"):
        shapes = _shapes(input_shapes)
        result = keras_rda.export(_load(source), target, quantize, data, machine, batch_size, not dense, header, shapes)
    if html is not None:
        result.to_html(html)
    _show(result, result.to_dict(), as_json)


@main.command(short_help="Write a .tflite, whoever made it, smaller.")
@click.argument("source", metavar="IN.tflite", type=_file)
@click.argument("target", metavar="OUT.tflite", type=_new_file)
@_data_option
@click.option(
    "--machine", type=click.Choice([name for name in MACHINES if name != "micro"]), help="Run both files there too."
)
@click.option("--html", type=_new_file, help="Also write the report as a page.")
@_json_option
def shrink(source, target, representative_data, machine, html, as_json):
    """Write IN.tflite, whoever made it, smaller: the same outputs, its zeros encoded."""
    if html is not None:
        _check_folder(html)
    data = None if representative_data is None else _arrays(representative_data)
    with _working(f"Shrinking {source.name}"):
        result = keras_rda.litert.shrink(source, target, machine, data)
    if html is not None:
        result.to_html(html)
    _show(result, result.to_dict(), as_json)


@main.command(name="verify", short_help="Compare a LiteRT file's outputs with its model's.")
@click.argument("model", metavar="MODEL", type=_file)
@click.argument("file", type=_file)
@_data_option
@_machine_option
@_json_option
def verify_command(model, file, representative_data, machine, as_json):
    """Compare the outputs of the LiteRT FILE with those of MODEL (.keras); exit status 1 if they differ."""
    with _working(f"Verifying {file.name}"):
        data = None if representative_data is None else _arrays(representative_data)
        checks = keras_rda.litert.verify(_load(model), file, data, machine)
    table = Table("runtime", "difference from Keras", "accepted", "result")
    for check in checks:
        numbers = [check.error, ""] if check.error else [f"{check.largest:.3g}", f"{check.tolerance:.3g}"]
        table.add_row(check.runtime, *numbers, "passed" if check.passed else "failed")
    _show(table, [{**dataclasses.asdict(check), "passed": check.passed} for check in checks], as_json)
    if not all(check.passed for check in checks):
        raise click.ClickException(output.printable(f"{file} does not compute what {model} does."))


@main.command(short_help="Time LiteRT files in turns.")
@click.argument("files", nargs=-1, required=True, type=_file)
@click.option(
    "--seconds", default=2.0, show_default=True, type=click.FloatRange(min=0, min_open=True), help="For each file."
)
@click.option("--machine", type=click.Choice(MACHINES), help="Run them there instead of here.")
@_json_option
def benchmark(files, seconds, machine, as_json):
    """Time LiteRT FILES in turns: median and quartiles of one invocation."""
    with _working("Measuring") as progress:
        latencies = keras_rda.litert.benchmark({str(file): file for file in files}, seconds, progress, machine)
    table = output.table("file")
    for name in ("median, ms", "quartiles, ms", "relative", "rounds"):
        table.add_column(name, justify="right")
    for latency in latencies:
        quartiles = f"{latency.lower * 1e3:.3g} to {latency.upper * 1e3:.3g}"
        relative = f"{latency.median / latencies[0].median:.2f}"
        table.add_row(latency.name, f"{latency.median * 1e3:.3g}", quartiles, relative, str(latency.rounds))
    _show(table, [dataclasses.asdict(latency) for latency in latencies], as_json)


def _load(path):
    """A model from a `.keras` file; nothing in the file is executed."""
    if path.suffix != ".keras":
        raise ValueError(f"A model must be a '.keras' file (model.save('model.keras')); received '{path}'.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"'{path}' is no '.keras' file, or is cut off: it is not a whole zip archive.")
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    # Whatever Keras raises on a file that is corrupt, or on layers that are not registered.
    except Exception as error:
        if "safe_mode" in str(error):
            reason = "it carries Python code (a Lambda layer), which this command does not run"
        else:
            reason = output.one_line(error)
        advice = "If you trust it, or it has layers of your own, import those and call keras_rda from Python."
        raise ValueError(f"'{path}' cannot be loaded: {reason.rstrip('.')}. {advice}") from error


def _arrays(path):
    with path.open("rb") as file:  # np.load leaves a file that it cannot read open
        try:
            data = np.load(file, allow_pickle=False)
            return data if isinstance(data, np.ndarray) else dict(data)
        except Exception as error:  # NumPy, zipfile, zlib and tokenize raise their own
            message = f"'{path}' is no '.npy' or '.npz' file of numbers (numpy.save, numpy.savez), or is damaged."
            raise ValueError(message) from error


def _shapes(options):
    """`input_shapes` of `export` from options such as `128` or `tokens=128`; None if there are none."""
    shapes = {}
    for option in options:
        name, _, sizes = option.rpartition("=")
        try:
            shapes[name] = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            raise click.BadParameter(
                f"takes sizes such as 128 or tokens=128 or 224,224,3; received {option!r}.", param_hint="--input-shape"
            ) from None
    if "" in shapes and len(shapes) > 1:
        raise click.BadParameter("takes one shape, or names for all of them.", param_hint="--input-shape")
    return shapes.get("", shapes or None)


def _check_folder(path):
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The directory '{path.parent}' does not exist; create it first.")


@contextlib.contextmanager
def _working(description):
    """A bar on the terminal; yields a function that takes the share that is done.

    Meanwhile the log of TensorFlow's C++ code, which is not meant for users, goes nowhere.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w") as terminal, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        console = Console(file=terminal)
        try:
            with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
                task = progress.add_task(output.printable(description), total=None)
                yield lambda share: progress.update(task, total=1, completed=share)
        finally:
            os.dup2(terminal.fileno(), 2)


def _show(text, data, as_json):
    if as_json:
        # JSON has no NaN.
        print(json.dumps(json.loads(json.dumps(data), parse_constant=lambda _: None), indent=2))
    elif isinstance(text, Table):
        print(output.text(text, width=None if sys.stdout.isatty() else output.WIDTH), end="")
    else:
        print(text)
