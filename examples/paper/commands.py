"""What a run is called, the options that it takes, and the command that makes it."""

import click

from examples.paper.tables import WrongSettings

# Of the tables' commands and of the entries of a queue, beside the seed: type, default, help.
OPTIONS = {
    "epochs": (click.IntRange(1), None, "Default: the paper's."),
    "subset": (click.IntRange(1), None, "Number of training images. Default: all."),
    "width": (click.IntRange(1), 64, "Filters of the first stage."),
    "batch_size": (click.IntRange(1), 128, None),
    "dtype": (
        click.Choice(["float32", "mixed_bfloat16"]),
        "float32",
        "What layers compute in; the optimizer's sums are float32.",
    ),
    "augmentation": (
        click.Choice(["standard", "none"]),
        "standard",
        "Crops and flips as usual for the data set, or images as they are.",
    ),
    "epsilon": (click.FLOAT, 1e-3, "ε of the batch normalisations, above 0 and below 1."),
    "start": (click.Choice(["gradient", "weights"]), "gradient", "Of RDA's sums: MRDA's argument `start`."),
}
SEED = click.IntRange(0, 2**32 - 1)


def settings(cell, seed, **options):
    """The `training.Settings` of a cell with some of `OPTIONS`.

    Raises:
        WrongSettings: an option is unknown or out of its range.
    """
    from examples.paper import training

    if unknown := sorted({*options} - {*OPTIONS}):
        known = ["table", "row", "column", "seed", "purpose", *OPTIONS]
        raise WrongSettings(f"{unknown} are none of {known}.")
    chosen = {name: default for name, (_, default, _) in OPTIONS.items()} | options
    seed = converted("seed", SEED, seed)
    for name, value in options.items():
        if value is not None:
            chosen[name] = converted(name, OPTIONS[name][0], value)
    return training.Settings(cell.run, chosen.pop("epochs") or cell.run.epochs, seed, **chosen)


def converted(name, kind, value):
    """An option's value as its click type makes it.

    Raises:
        WrongSettings: it is none of that type; the message says which are.
    """
    try:
        return kind.convert(str(value), None, None)
    except click.BadParameter as error:
        if isinstance(kind, click.IntRange):
            limits = f"a whole number from {kind.min}" + (f" to {kind.max}" if kind.max else "")
        elif isinstance(kind, click.FloatRange):
            limits = f"a number above {kind.min} and below {kind.max}"
        else:
            limits = f"one of {', '.join(kind.choices)}" if isinstance(kind, click.Choice) else "a number"
        raise WrongSettings(f"{name} must be {limits}; received {value!r}.") from error


def place(table, cell, settings):
    """Where in the tables a run is, in words, and what of it is not the default."""
    words = [table, cell.row, cell.column, f"seed {settings.seed}"]
    return " ".join(filter(None, words)) + "".join(f", {name} {value}" for name, value in chosen(settings).items())


def chosen(settings):
    """Those of `OPTIONS` that are not the default, by name."""
    values = {name: getattr(settings, name) for name in OPTIONS}
    defaults = {name: default for name, (_, default, _) in OPTIONS.items()} | {"epochs": settings.run.epochs}
    return {name: value for name, value in values.items() if value != defaults[name]}


def command_line(table, cell, settings):
    """The command that makes this one run."""
    words = [table, "--row", cell.row] + (["--column", cell.column] if cell.column else [])
    for name, value in chosen(settings).items():
        words += [f"--{name.replace('_', '-')}", value]
    words += ["--seed", settings.seed, "--data-dir", "DIR"]
    backend = settings.flat()["backend"]
    return " ".join(map(str, [f"KERAS_BACKEND={backend} python -m examples.paper", *words]))


def summary(run, line):
    """What came out of a run, in words."""
    return f"{run}: top-1 {100 * line['top1']:.2f}, top-5 {100 * line['top5']:.2f}, σ {line['sigma']:.4f}"


def with_options(command):
    """Decorate a click command with `OPTIONS`."""
    for name, (kind, default, text) in reversed(OPTIONS.items()):
        words = {"show_default": True, "default": default} if default is not None else {}
        command = click.option(f"--{name.replace('_', '-')}", type=kind, help=text, **words)(command)
    return command
