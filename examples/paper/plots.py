"""Pictures of the paper's tables, ours beside the paper's, and of how σ grows in its RDA."""

import itertools

from matplotlib.lines import Line2D

from examples import plotting
from examples.paper.results import FACTOR, kind, matching
from examples.paper.tables import TABLES

MEASURES = {"top1": "top-1, %", "sigma": "σ"}
OVER = {
    "table1": "λ",
    "table2": "γ",
    "table3": "γ",
}  # what columns are, where they are numbers
COMMAND = "python -m examples.paper render"


def is_worth_a_picture(name, runs):
    """Whether so many runs of a table are: a single one is not, nor are two among all of the paper's lines."""
    return runs >= (3 if name in OVER else 2)


def table(name, lines, caption, file):
    """Top-1 and σ over a table's columns, ours and the paper's; over epochs where columns are no numbers."""
    title, cells = TABLES[name]
    figure = plotting.figure(3.4)
    panels = dict(zip(MEASURES, figure.subplots(1, 2), strict=True))
    draw = over_columns if name in OVER else over_epochs
    draw(panels, {cell: matching(lines, cell.run) for cell in cells}, colours(cells))
    for key, panel in panels.items():
        panel.set(ylabel=MEASURES[key], xlabel=OVER.get(name, "epoch"))
    figure.suptitle(f"{title}\n{caption}", fontsize=9, x=0.01, ha="left")
    if name in OVER:
        styles = {"here": {"linestyle": "-", "marker": "o"}, "the paper": {"linestyle": "--"}}
        lines = [Line2D([], [], color=plotting.GREY, markersize=4, label=text, **of) for text, of in styles.items()]
        figure.legend(handles=lines, loc="upper right", ncols=2, frameon=False, borderaxespad=0)
    plotting.save(figure, file, COMMAND)


def colours(cells):
    """The colour of each cell: its row's in a table of one method, else its method's, a shade of it for each row."""
    chosen, methods = {}, dict.fromkeys(cell.run.method for cell in cells)
    if len(methods) == 1:
        of = dict(zip(dict.fromkeys(cell.row for cell in cells), plotting.RUNS, strict=False))
        return {cell: of[cell.row] for cell in cells}
    for method in methods:
        rows = list(dict.fromkeys(cell.row for cell in cells if cell.run.method == method))
        for cell in cells:
            if cell.run.method == method:
                chosen[cell] = plotting.colour(method, 0.6 * rows.index(cell.row) / len(rows))
    return chosen


def over_columns(panels, found, colours):
    columns = sorted({cell.column for cell in found}, key=float)
    for row in dict.fromkeys(cell.row for cell in found):
        cells = sorted((cell for cell in found if cell.row == row), key=lambda cell: float(cell.column))
        text = plotting.name(row) if row == cells[0].run.method else f"λ = {row}"
        for key, panel in panels.items():
            theirs = {columns.index(cell.column): [getattr(cell, key)] for cell in cells}
            theirs = {place: values for place, values in theirs.items() if values != [None]}
            ours = {columns.index(cell.column): [FACTOR[key] * line[key] for line in found[cell]] for cell in cells}
            ours = {place: values for place, values in ours.items() if values}
            plotting.line(panel, [*theirs], theirs.values(), colours[cells[0]], "" if ours else f"{text}, paper", "--")
            if ours:
                plotting.line(panel, [*ours], ours.values(), colours[cells[0]], text)
            panel.set_xticks(range(len(columns)), columns)


def over_epochs(panels, found, colours):
    for cell, lines in found.items():
        text = plotting.name(cell.row if cell.row.startswith(cell.run.method) else cell.run.method)
        if cell.column:
            text = f"{cell.row}, {text}"
        for key, panel in panels.items():
            seeds = [[FACTOR[key] * epoch[key] for epoch in line["history"]] for line in lines]
            if seeds:
                epochs = list(zip(*seeds, strict=True))
                plotting.line(panel, range(1, 1 + len(epochs)), epochs, colours[cell], text)
            panel.xaxis.get_major_locator().set_params(integer=True)


def growth_of_sigma(lines, file):
    """σ and the loss over the epochs of the paper's RDA, of its width and with all images; False without such runs."""
    cells = [cell for cell in TABLES["table1"][1] if cell.run.method == "rda"]
    whole = {"subset": None, "width": 64, "seed": 0, "gamma": 1.0} | {"dataset": "cifar10", "architecture": "resnet18"}
    runs = [line for line in lines if kind(line) == "run" and line["method"] == "rda"]
    runs = [line for line in runs if all(line[name] == value for name, value in whole.items())]
    if not runs:
        return False
    figure = plotting.figure(5)
    above, below = figure.subplots(2, 1, sharex=True)
    for cell in cells:
        if cell.run.penalty in {line["penalty"] for line in runs}:
            text = f"the paper, λ = {cell.column}"
            plotting.line(above, (1, cell.run.epochs), [[cell.sigma]] * 2, plotting.GREY, text, "--")
    runs.sort(key=lambda line: -line["sigma"])
    for line, colour in zip(runs, itertools.cycle(plotting.RUNS), strict=False):
        words = [f"λ = {line['penalty']:.0e}", "not augmented" if line["augmentation"] == "none" else "augmented"]
        words += ["started at the weights"] if line["start"] == "weights" else []
        for panel, key in ((above, "sigma"), (below, "loss")):
            values = [[epoch[key]] for epoch in line["history"]]
            plotting.line(panel, range(1, 1 + len(values)), values, colour, ", ".join(words))
    above.set(ylabel="σ", ylim=(0, 1.02), title="RDA (MRDA here) at the paper's scale")
    below.set(ylabel="training loss", yscale="log", xlabel="epoch")
    plotting.save(figure, file, COMMAND)
    return True
