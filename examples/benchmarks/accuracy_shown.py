"""The results of accuracy.py as a table and as a picture."""

import collections
import pathlib
import statistics
import sys

import accuracy_data as data
from rich.table import Table

sys.path.append(str(pathlib.Path(__file__).parents[1]))
import plotting

ORDER = {method: position for position, method in enumerate(data.METHODS)}


def grouped(results, *names):
    """Results in groups of those that have the named entries in common, methods in their order."""
    groups = collections.defaultdict(list)
    for line in sorted(results, key=lambda line: ORDER[line["method"]]):
        groups[tuple(line[name] for name in names)].append(line)
    return groups


def with_places(results):
    """Results with what can be compared, as text: the task, and backend and type unless they are the usual ones."""
    usual = {"backend": "tensorflow", "dtype": "float32"}
    return [
        line | {"place": ", ".join([line["task"], *(line[name] for name in usual if line[name] != usual[name])])}
        for line in results
    ]


def table(results):
    shown = Table("task", "target σ", "method", title="top-1 on the test split, mean ± standard deviation over seeds")
    for name in ("top-1, %", "σ, kernels", "epochs", "seconds", "seeds"):
        shown.add_column(name, justify="right")
    groups = grouped(with_places(results), "place", "sparsity", "epochs", "method")
    for (place, sparsity, epochs, method), lines in sorted(groups.items(), key=lambda group: group[0][:3]):
        accuracies = [100 * line["top1"] for line in lines]
        deviation = f" ± {statistics.stdev(accuracies):.2f}" if len(lines) > 1 else ""
        sigma = statistics.mean(line["sigma"] for line in lines)
        seconds = statistics.mean(line["seconds"] for line in lines)
        shown.add_row(
            *(place, f"{sparsity:g}", method, f"{statistics.mean(accuracies):.2f}{deviation}", f"{sigma:.4f}"),
            *(str(epochs), f"{seconds:.0f}", str(len(lines))),
        )
    return shown


def plot(results, file):
    """Top-1 of methods that were trained for several σ, over σ; and of all methods at each σ that another one has."""
    above, below = [], []
    for (place,), lines in sorted(grouped(with_places(results), "place").items()):
        several = {m: at for (m,), of in grouped(lines, "method").items() if len(at := grouped(of, "sparsity")) > 1}
        dense = {"dense": top1} if (top1 := [100 * line["top1"] for line in lines if line["method"] == "dense"]) else {}
        if several:
            above.append((12, curves, place, several, dense))
        targets = grouped(lines, "sparsity")
        for (sigma,), of in sorted(targets.items()):
            methods = {m: [100 * line["top1"] for line in at] for (m,), at in grouped(of, "method").items()}
            if (sigma or len(targets) == 1) and methods.keys() - several.keys():
                below.append((len(dense | methods), dots, f"{place}, σ {sigma:g}", dense | methods))
    below.sort(key=lambda drawing: -drawing[0])
    rows = [[drawing] for drawing in above] + [below[start : start + 2] for start in range(0, len(below), 2)]
    heights = [0.9 + 0.2 * max(lines for lines, *_ in row) for row in rows]
    figure = plotting.figure(sum(heights))
    parts = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, row in zip(parts, rows, strict=True):
        for panel, (_, draw, title, *what) in zip(part.subplots(1, len(row), squeeze=False)[0], row, strict=True):
            draw(panel, *what)
            panel.set_title(title, loc="left" if draw is curves else "right")  # where long names leave it room
    words = "Mean ± standard deviation over seeds, hollow: one seed; test images."
    plotting.save(figure, file, f"{words} python examples/benchmarks/accuracy.py --show")


def curves(panel, methods, dense):
    targets = sorted({sigma for at in methods.values() for (sigma,) in at})
    for method, top1 in dense.items():
        plotting.line(panel, targets, [top1] * len(targets), plotting.colour(method), plotting.name(method), "--")
    for method, at in methods.items():
        sigmas = sorted(sigma for (sigma,) in at)
        seeds = [[100 * line["top1"] for line in at[sigma,]] for sigma in sigmas]
        plotting.line(panel, sigmas, seeds, plotting.colour(method), plotting.name(method))
    panel.set_xticks(targets, [f"{sigma:g}" for sigma in targets])
    panel.set(xlabel="σ of the kernels", ylabel="top-1, %")


def dots(panel, methods):
    ranked = sorted(methods.items(), key=lambda method: statistics.mean(method[1]))
    for row, (method, top1) in enumerate(ranked):
        look = {"xerr": statistics.stdev(top1)} if len(top1) > 1 else {"markerfacecolor": "white"}
        panel.errorbar(statistics.mean(top1), row, fmt="o", capsize=3, color=plotting.colour(method), **look)
    panel.set_yticks(range(len(ranked)), [plotting.name(method) for method, _ in ranked])
    for text, (method, _) in zip(panel.get_yticklabels(), ranked, strict=True):
        text.set_color(plotting.colour(method))
    panel.set(ylim=(-0.6, len(ranked) - 0.4), xlabel="top-1, %")
    panel.margins(x=0.06)
