"""Command line of the paper's experiments."""

import dataclasses
import math
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import click

from examples.paper import commands, results
from examples.paper.tables import TABLES

FOLDER = pathlib.Path(__file__).parent
RESULTS = FOLDER / "results" / "runs.jsonl"
results_option = click.option(
    "--results",
    "file",
    type=click.Path(path_type=pathlib.Path, dir_okay=False),
    default=RESULTS,
    help="JSON lines; a run that they hold is not done again.",
)
comparisons_option = click.option(
    "--comparisons",
    type=click.Path(path_type=pathlib.Path, dir_okay=False),
    default=FOLDER.parent / "benchmarks" / "results" / "accuracy.jsonl",
    help="The same of accuracy.py.",
)
data_option = click.option(
    "--data-dir", help="What `prepare` wrote, or prepared tensorflow-datasets. Default: download."
)


def checkpoints_option(name):
    return click.option(
        name,
        "checkpoints",
        type=click.Path(path_type=pathlib.Path, file_okay=False),
        default=FOLDER.parent / "output",
        help="Where checkpoints are kept while a run is not finished.",
    )


@click.group(help="The experiments of the paper's section 4. KERAS_BACKEND chooses between tensorflow and jax.")
def main():
    pass


def table_command(name):
    title, cells = TABLES[name]
    rows = list(dict.fromkeys(cell.row for cell in cells))
    columns = [column for column in dict.fromkeys(cell.column for cell in cells) if column]

    @main.command(
        name, help=f"{title}. Rows: {', '.join(rows)}." + (f" Columns: {', '.join(columns)}." if columns else "")
    )
    @click.option("--row", type=click.Choice(rows), multiple=True, help="Default: all.")
    @click.option(
        "--column", type=click.Choice(columns or [""]), multiple=True, hidden=not columns, help="Default: all."
    )
    @data_option
    @commands.with_options
    @click.option("--seed", type=commands.SEED, multiple=True, default=[0], show_default=True)
    @checkpoints_option("--output")
    @results_option
    def command(row, column, data_dir, seed, checkpoints, file, **options):
        chosen = [c for c in cells if c.row in (row or rows) and c.column in (column or columns or [""])]
        run_cells(name, chosen, seed, options, data_dir, checkpoints, file)

    return command


for _name in TABLES:
    table_command(_name)


def run_cells(table, cells, seeds, options, data_dir, checkpoints, file):
    from examples.paper import data, training

    for cell in cells:
        for seed in seeds:
            try:
                settings = commands.settings(cell, seed, **options)
                place = commands.place(table, cell, settings)
                scaled = settings.scaled()
                click.echo(f"{place}: {dataclasses.asdict(cell.run)}" + (f"; scaled: {scaled}" if scaled else ""))
                line = results.find(read(file), settings)  # anew: another process may write to it
                if line is None:
                    line, _, checkpoint = training.train(settings, data_dir, checkpoints, report=click.echo)
                    line["command"] = commands.command_line(table, cell, settings)
                    results.append(file, line)
                    checkpoint.remove()
            except (data.WrongSettings, FileNotFoundError, ImportError, OSError) as error:
                raise click.ClickException(str(error)) from error
            except Exception as error:
                kind = f"{type(error).__name__} {error}".upper().replace("_", "")  # as JAX or TensorFlow spell it
                if isinstance(error, MemoryError) or "RESOURCEEXHAUSTED" in kind:
                    raise click.ClickException(
                        f"Memory is too small: lower --batch-size, --width or --subset.\n{error}"
                    ) from error
                raise
            click.echo(commands.summary(place, line))


@main.command(help="Run what waits in a list, in order, until it is done or the time is over; a later call goes on.")
@click.option("--minutes", type=click.FloatRange(0), required=True, help="From the start of this command.")
@data_option
@click.option(
    "--output",
    type=click.Path(path_type=pathlib.Path, file_okay=False),
    required=True,
    help="What to take home: runs.jsonl for `merge`, and a copy of the checkpoint with the most epochs, which another "
    "machine's queue goes on from.",
)
@click.option("--list", "listed", type=click.Path(exists=True, dir_okay=False), help="TOML. Default: queue.toml here.")
@checkpoints_option("--checkpoints")
@results_option
@comparisons_option
def queue(minutes, data_dir, output, listed, checkpoints, file, comparisons):
    start = time.monotonic()  # before what takes seconds to import
    # JAX compiles a network once, whatever λ and however often its run is put back.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(checkpoints.absolute() / "compiled"))

    try:
        from examples.paper import queue_list, run_queue
    except (ImportError, ValueError) as error:
        raise click.ClickException(
            f"Keras' backend cannot be imported ({error}): set KERAS_BACKEND to tensorflow or to jax."
        ) from error
    if not math.isfinite(minutes):
        raise click.BadParameter(f"must be a number of minutes; received {minutes}.", param_hint="--minutes")
    try:
        runs = queue_list.read_list(listed or queue_list.QUEUE)
        done = read(file) + read(output / "runs.jsonl") + read_comparisons(comparisons)
        waiting = [run for run in runs if not run.is_done(done)]
        numbers = f"{len(runs)} runs are listed, {len(runs) - len(waiting)} are done, {len(waiting)} wait"
        click.echo(f"{numbers}, on {run_queue.training.keras.backend.backend()}:")
        for run in waiting:
            click.echo(f"  {run}")
        if not minutes:
            return
        run_queue.remove_checkpoints([run for run in runs if run not in waiting], checkpoints)
        failed = run_queue.Queue(waiting, minutes, data_dir, checkpoints, output, start, report=click.echo).run()
    except (queue_list.BadList, run_queue.NotReady, OSError) as error:
        raise click.ClickException(str(error)) from error
    if failed:
        raise click.ClickException(f"These runs failed: {'; '.join(map(str, failed))}")


def read(file):
    try:
        return results.read(file)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def read_comparisons(file):
    """The lines that accuracy.py wrote, as those of a queue."""
    from examples.paper.comparison import accuracy_data

    return [{"benchmark": "accuracy"} | line for line in accuracy_data.read(file)]


@main.command(help="Write a data set as plain uint8 arrays, DIR/NAME.npz, for a machine without TensorFlow.")
@click.argument("name", type=click.Choice(["mnist", "fashion_mnist", "cifar10", "cifar100"]))
@click.option("--data-dir", help="Prepared tensorflow-datasets. Default: download.")
@click.option("--output", type=click.Path(path_type=pathlib.Path, file_okay=False), required=True, metavar="DIR")
def prepare(name, data_dir, output):
    from examples.paper import data

    try:
        click.echo(data.prepare(name, data_dir, output))
    except (FileNotFoundError, ImportError, OSError) as error:
        raise click.ClickException(str(error)) from error


@main.command(
    help="Take the lines of FILE, runs.jsonl of another machine's queue, into the results of their kind; then `render`."
)
@click.argument("source", metavar="FILE", type=click.Path(path_type=pathlib.Path, exists=True, dir_okay=False))
@results_option
@comparisons_option
@click.pass_context
def merge(context, source, file, comparisons):
    ours = read(file) + read_comparisons(comparisons)
    for line in read(source):
        words = line["command"]
        if results.holds(ours, line):
            click.echo(f"there already: {words}")
            continue
        try:
            results.append(comparisons if results.kind(line) == "accuracy" else file, line)
        except OSError as error:
            raise click.ClickException(str(error)) from error
        ours.append(line)
        click.echo(f"new: {words}")
    context.invoke(render, file=file)


@main.command(help="The tables, tables.md, and plots of the results so far, a set for every scale.")
@results_option
@click.option(
    "--output",
    type=click.Path(path_type=pathlib.Path, file_okay=False),
    help="Folder for them. Default: beside the results.",
)
def render(file, output):
    from rich.console import Console
    from rich.markdown import Markdown

    from examples.paper import plots  # Matplotlib, which running needs not

    lines = read(file)
    if not lines:
        raise click.ClickException(f"{file} holds no results yet; `python -m examples.paper table4` makes some.")
    output = output or file.parent
    output.mkdir(parents=True, exist_ok=True)
    parts = [results.LEGEND]
    if plots.growth_of_sigma(lines, output / "sigma.png"):
        parts.append("## σ of RDA over the epochs\n\n![σ of RDA over the epochs](sigma.png)\n")
    for caption, group in results.scales(lines).items():
        runs = {name: sum(bool(results.matching(group, c.run)) for c in cells) for name, (_, cells) in TABLES.items()}
        for name in filter(runs.get, TABLES):
            parts.append(results.markdown(name, group, caption))
            if plots.is_worth_a_picture(name, runs[name]):
                picture = f"{name}-{results.slug(caption)}.png"
                plots.table(name, group, caption, output / picture)
                parts.append(f"![{name}]({picture})\n")
        if missing := [name for name in TABLES if not runs[name]]:
            parts.append(f"Not run with {caption}: {', '.join(missing)}.\n")
    text = "\n".join([*parts, *filter(None, [results.step_times(lines)])])
    (output / "tables.md").write_text(text, encoding="utf-8")
    Console(width=180).print(Markdown(text))


if __name__ == "__main__":
    main(prog_name="python -m examples.paper")
