"""Command line of the paper's experiments."""

import dataclasses
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import click

from examples.paper import results
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
    @click.option("--data-dir", help="What `prepare` wrote, or prepared tensorflow-datasets. Default: download.")
    @click.option("--epochs", type=click.IntRange(1), help="Default: the paper's.")
    @click.option("--subset", type=click.IntRange(1), help="Number of training images. Default: all.")
    @click.option("--width", type=click.IntRange(1), default=64, show_default=True, help="Filters of the first stage.")
    @click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
    @click.option(
        "--dtype",
        type=click.Choice(["float32", "mixed_bfloat16"]),
        default="float32",
        show_default=True,
        help="What layers compute in; the optimizer's sums are float32.",
    )
    @click.option("--seed", type=click.IntRange(0, 2**32 - 1), multiple=True, default=[0], show_default=True)
    @click.option(
        "--output",
        type=click.Path(path_type=pathlib.Path, file_okay=False),
        default=FOLDER.parent / "output",
        help="Where checkpoints are kept while a run is not finished.",
    )
    @results_option
    def command(row, column, data_dir, epochs, seed, output, file, **scale):
        chosen = [c for c in cells if c.row in (row or rows) and c.column in (column or columns or [""])]
        run_cells(name, chosen, seed, epochs, scale, data_dir, output, file)

    return command


for _name in TABLES:
    table_command(_name)


def run_cells(table, cells, seeds, epochs, scale, data_dir, output, file):
    from examples.paper import data, training

    for cell in cells:
        for seed in seeds:
            settings = training.Settings(cell.run, epochs or cell.run.epochs, seed, **scale)
            place = " ".join(filter(None, (table, cell.row, cell.column, f"seed {seed}")))
            scaled = settings.scaled()
            click.echo(f"{place}: {dataclasses.asdict(cell.run)}" + (f"; scaled: {scaled}" if scaled else ""))
            try:
                line = results.find(read(file), settings)  # anew: another process may write to it
                if line is None:
                    line, _, checkpoint = training.train(settings, data_dir, output, report=click.echo)
                    line["command"] = command_line(table, cell, settings)
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
            click.echo(
                f"{place}: top-1 {100 * line['top1']:.2f}, top-5 {100 * line['top5']:.2f}, σ {line['sigma']:.4f}"
            )


def command_line(table, cell, settings):
    """The command that makes this one run."""
    words = [table, "--row", cell.row] + (["--column", cell.column] if cell.column else [])
    if settings.epochs != settings.run.epochs:
        words += ["--epochs", settings.epochs]
    if settings.subset:
        words += ["--subset", settings.subset]
    for name in ("width", "batch_size", "dtype"):
        default = next(field.default for field in dataclasses.fields(settings) if field.name == name)
        if getattr(settings, name) != default:
            words += ["--" + name.replace("_", "-"), getattr(settings, name)]
    words += ["--seed", settings.seed, "--data-dir", "DIR"]
    backend = settings.flat()["backend"]
    return " ".join(map(str, [f"KERAS_BACKEND={backend} python -m examples.paper", *words]))


def read(file):
    try:
        return results.read(file)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


@main.command(help="Write a data set as plain uint8 arrays, DIR/NAME.npz, for a machine without TensorFlow.")
@click.argument("name", type=click.Choice(["mnist", "cifar10", "cifar100"]))
@click.option("--data-dir", help="Prepared tensorflow-datasets. Default: download.")
@click.option("--output", type=click.Path(path_type=pathlib.Path, file_okay=False), required=True, metavar="DIR")
def prepare(name, data_dir, output):
    from examples.paper import data

    try:
        click.echo(data.prepare(name, data_dir, output))
    except (FileNotFoundError, ImportError, OSError) as error:
        raise click.ClickException(str(error)) from error


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

    lines = read(file)
    if not lines:
        raise click.ClickException(f"{file} holds no results yet; `python -m examples.paper table4` makes some.")
    output = output or file.parent
    output.mkdir(parents=True, exist_ok=True)
    parts = [results.LEGEND]
    for number, (caption, group) in enumerate(results.scales(lines).items()):
        runs = {name: sum(bool(results.matching(group, c.run)) for c in cells) for name, (_, cells) in TABLES.items()}
        for name in filter(runs.get, TABLES):
            parts.append(results.markdown(name, group, caption))
            if runs[name] > 1:  # a single cell is no picture
                results.plot(name, group, caption, output / f"{name}-{number}.png")
                parts.append(f"![{name}]({name}-{number}.png)\n")
        if missing := [name for name in TABLES if not runs[name]]:
            parts.append(f"Not run with {caption}: {', '.join(missing)}.\n")
    text = "\n".join(parts)
    (output / "tables.md").write_text(text, encoding="utf-8")
    Console(width=180).print(Markdown(text))


if __name__ == "__main__":
    main(prog_name="python -m examples.paper")
