"""Results as JSON lines, and the paper's tables and plots made from them."""

import collections
import dataclasses
import json
import statistics

from examples.paper.tables import TABLES, Run

FORMAT = 1
RUN = tuple(field.name for field in dataclasses.fields(Run) if field.name != "epochs")
DIFFERENT = 2.0  # points of top-1 from the paper's


def read(file):
    """The lines of a results file.

    Raises:
        ValueError: a line is not one of this version's; the file is left as it is.
    """
    lines = []
    for number, text in enumerate(file.read_text().splitlines() if file.exists() else (), 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{file}, line {number}, is no JSON ({error}): remove the line; its run is done again."
            ) from error
        if not isinstance(line, dict) or line.get("format") != FORMAT:
            raise ValueError(
                f"{file}, line {number}, is of another version (format {FORMAT} is expected): move the file away, or "
                "name another with --results."
            )
        lines.append(line)
    return lines


def find(lines, settings):
    """The line of the same settings, or None."""
    wanted = settings.flat()
    return next((line for line in lines if all(line[name] == value for name, value in wanted.items())), None)


def append(file, line):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.write(json.dumps({"format": FORMAT} | line, ensure_ascii=False) + "\n")


def scales(lines):
    """The lines in groups that can be compared: a dict from what they have in common, in words."""
    groups = collections.defaultdict(list)
    for line in lines:
        scale = f"scaled down: {line['scaled']}" if line["scaled"] else "the paper's scale"
        groups[f"{scale}, batches of {line['batch_size']}, {line['dtype']}"].append(line)
    return groups


def matching(lines, run):
    """The lines of a run of the paper, whatever their number of epochs: one a seed."""
    wanted = dataclasses.asdict(run)
    return [line for line in lines if all(line[name] == wanted[name] for name in RUN)]


def table(name, lines, caption):
    """A table of the paper, ours beside the paper's; a top-1 more than two points from the paper's is marked."""
    from rich.table import Table

    title, cells = TABLES[name]
    shown = Table(title=f"{name}: {title}\n{caption}")
    for column in ("row", "column", "top-1", "paper", "top-5", "paper", "σ", "paper", "seeds", "device", "command"):
        shown.add_column(column, overflow="fold")
    for cell in cells:
        found = matching(lines, cell.run)

        def mean(key, factor, digits, found=found):
            return f"{factor * statistics.mean(line[key] for line in found):.{digits}f}" if found else "not run"

        def paper(value, digits):
            return "–" if value is None else f"{value:.{digits}f}"

        top1 = mean("top1", 100, 2)
        if found and cell.top1 is not None and abs(float(top1) - cell.top1) > DIFFERENT:
            top1 += " *"
        shown.add_row(
            *(cell.row, cell.column, top1, paper(cell.top1, 2), mean("top5", 100, 2), paper(cell.top5, 2)),
            *(mean("sigma", 1, 3), paper(cell.sigma, 2), " ".join(str(line["seed"]) for line in found)),
            *(", ".join(sorted({line["device"] for line in found})), "\n".join(line["command"] for line in found)),
        )
    return shown


def plot(name, lines, caption, file):
    """Top-1 and σ of a table's rows over its columns, ours and the paper's; over epochs where it has no columns."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    title, cells = TABLES[name]
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    rows = list(dict.fromkeys(cell.row for cell in cells))
    for color, row in enumerate(rows):
        places = [cell for cell in cells if cell.row == row]
        if name in ("table1", "table2", "table3"):
            for panel, key, factor in zip(panels, ("top1", "sigma"), (100, 1), strict=True):
                ours = [
                    (cell.column, statistics.mean(factor * line[key] for line in found))
                    for cell in places
                    if (found := matching(lines, cell.run))
                ]
                theirs = [(cell.column, getattr(cell, key)) for cell in places if getattr(cell, key) is not None]
                panel.plot(*zip(*theirs, strict=True), "--", color=f"C{color}", label=f"{row}, paper")
                if ours:
                    panel.plot(*zip(*ours, strict=True), "o-", color=f"C{color}", label=f"{row}, ours")
                panel.set_xlabel("λ" if name == "table1" else "γ")
        else:
            for cell in places:
                for line in matching(lines, cell.run)[:1]:
                    label, style = f"{row} {cell.column}", "--" if cell.column == "sgd" else "-"
                    for panel, key, factor in zip(panels, ("top1", "sigma"), (100, 1), strict=True):
                        values = [factor * epoch[key] for epoch in line["history"]]
                        panel.plot(range(1, len(values) + 1), values, style, color=f"C{color}", label=label)
                        panel.set_xlabel("epoch")
    for panel, label in zip(panels, ("top-1, %", "σ"), strict=True):
        panel.set_ylabel(label)
        panel.legend(fontsize="small")
    figure.suptitle(f"{name}: {title} ({caption}). python -m examples.paper render", fontsize="small")
    figure.savefig(file, dpi=110)
    plt.close(figure)
