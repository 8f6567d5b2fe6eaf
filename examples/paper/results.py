"""Results as JSON lines, and the paper's tables made from them."""

import collections
import dataclasses
import fcntl
import json
import os
import re
import statistics
import warnings

from examples.paper.tables import TABLES, Run

FORMAT = 2
RUN = tuple(field.name for field in dataclasses.fields(Run) if field.name != "epochs")
SETTINGS = (
    *(*RUN, "epochs", "seed", "subset", "width", "batch_size", "dtype", "augmentation", "epsilon", "start"),
    *("backend", "constants"),
)
COMPARED = ("task", "method", "sparsity", "seed", "epochs", "dtype", "backend")  # what tells cells of accuracy.py apart
MADE = ("device", "versions", "command")
NEEDED = {
    "run": (*SETTINGS, "scaled", "top1", "top5", "sigma", "history", "seconds", *MADE),
    "step_time": ("network", "parameters", "backend", "rounds", "optimizers", "copy", *MADE),
    "accuracy": (*COMPARED, "top1", "sigma", "train_top1", "seconds", "machine", "versions", "command"),
}
NUMBERS = {
    "run": ("top1", "top5", "sigma", "seconds", "seed", "epochs"),
    "step_time": ("parameters", "rounds", "copy"),
    "accuracy": ("sparsity", "seed", "epochs", "top1", "sigma", "train_top1", "seconds"),
}
# What is called different from the paper's: points of top-1, of top-5, and σ.
DIFFERENT = {"top1": 2.0, "top5": 2.0, "sigma": 0.05}
FACTOR = {"top1": 100, "top5": 100, "sigma": 1}
PAPERS_SCALE = "the paper's scale"
LEGEND = """# The paper's tables

By `python -m examples.paper render`. *: more than two points of top-1 or of top-5, or more than 0.05 of σ, from the
paper's. “–”: the paper does not say. ±: standard deviation over seeds. σ is equation (30), of all trainable weights.
"""


def kind(line):
    """What a line is of: `"run"`, of the tables, or `"step_time"` or `"accuracy"`, of the benchmark of that name."""
    return line.get("benchmark", "run")


def read(file):
    """The lines of a results file, of any kind; a last one that a kill has cut off is left out, with a warning.

    Raises:
        ValueError: a line is not one of this version's; the file is left as it is.
    """
    try:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text of JSON lines ({error}).") from error
    texts, lines = text.splitlines(), []
    for number, line in enumerate(texts, 1):
        if not line.strip():
            continue
        try:
            line = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(texts) and not text.endswith("\n"):
                warnings.warn(f"{file}: the last line is cut off and left out; its run is done again.", stacklevel=2)
                break
            raise ValueError(
                f"{file}, line {number}, is no JSON ({error}): remove the line; its run is done again."
            ) from error
        if not isinstance(line, dict) or line.get("format") != FORMAT:
            raise ValueError(
                f"{file}, line {number}, is of another version (format {FORMAT} is expected): move the file away, or "
                "name another with --results."
            )
        if str(kind(line)) not in NEEDED:
            raise ValueError(f"{file}, line {number}, is of the benchmark {kind(line)!r}; known: step_time, accuracy.")
        if missing := [name for name in NEEDED[kind(line)] if name not in line]:
            raise ValueError(f"{file}, line {number}, lacks {missing}: remove the line; its run is done again.")
        wrong = [name for name in NUMBERS[kind(line)] if type(line[name]) not in (int, float)]
        if wrong or not isinstance(line["command"], str):
            raise ValueError(f"{file}, line {number}: {wrong or 'command'} must be numbers, and the command a text.")
        lines.append(line)
    return lines


def find(lines, settings):
    """The line of the same `training.Settings`, made with the same constants, or None."""

    def holds(values, wanted):
        return all(values.get(name) == value for name, value in wanted.items())

    same = (line for line in lines if kind(line) == "run" and holds(line, settings.flat()))
    return next((line for line in same if holds(line["constants"], settings.constants())), None)


def holds(lines, line):
    """Whether lines hold the measurement of this one: the same settings; of times of updates the same line."""
    if kind(line) == "step_time":
        return line in lines
    names = {"run": SETTINGS, "accuracy": COMPARED}[kind(line)]
    same_kind = (other for other in lines if kind(other) == kind(line))
    return any(all(other[name] == line[name] for name in names) for other in same_kind)


def append(file, line):
    """Add a line, on the disk when this returns, in the place of one that a kill has cut off."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT} | line, allow_nan=False) + "\n"
    with file.open("a+", encoding="ascii") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # another process may be writing
        content = file.read_bytes()
        if last := content.rpartition(b"\n")[2]:
            try:
                json.loads(last)
                text = "\n" + text
            except ValueError:
                stream.truncate(len(content) - len(last))
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def scales(lines):
    """The lines of runs in groups that can be compared: a dict from what they have in common, in words.

    The paper's scale comes first, and in each scale what is chosen by default where the paper says nothing.
    """
    groups = collections.defaultdict(list)
    for line in lines:
        if kind(line) != "run":
            continue
        scaled = re.sub(r" of \d+ epochs", " epochs", line["scaled"])  # which differ between the rows of Table 6
        chosen = [f"batches of {line['batch_size']}", line["dtype"], line["backend"]]
        chosen += [f"augmentation {line['augmentation']}"] if line["augmentation"] != "standard" else []
        chosen += [f"ε {line['epsilon']:g}"] if line["epsilon"] != 1e-3 else []
        chosen += [f"start {line['start']}"] if line["start"] != "gradient" else []
        caption = f"{f'scaled: {scaled}' if scaled else PAPERS_SCALE}; {', '.join(chosen)}"
        groups[bool(scaled), len(chosen), caption].append(line)
    ordered = sorted(groups.items(), key=lambda item: item[0][:2])
    return {caption: group for (_, _, caption), group in ordered}


def slug(caption):
    """A scale's caption as a part of a file's name, which does not change when another scale is run."""
    words = re.findall(r"[\w.-]+", re.sub(r"(\d+) of \d+", r"\1", caption).replace("'", "").replace("ε", "epsilon"))
    return "-".join(word for word in words if word not in {"the", "of", "scaled", "training", "first", "stage"})


def matching(lines, run):
    """The lines of a run of the paper, whatever their number of epochs: one a seed, the newest."""
    wanted = dataclasses.asdict(run)
    runs = (line for line in lines if kind(line) == "run")
    return list({line["seed"]: line for line in runs if all(line[name] == wanted[name] for name in RUN)}.values())


def markdown(name, lines, caption):
    """A table of the paper as Markdown, ours beside the paper's; what is `DIFFERENT` has a star. Then the commands."""
    title, cells = TABLES[name]
    columns = ("row", "column", "top-1", "paper", "top-5", "paper", "σ", "paper", "seeds", "seconds", "device")
    rows, commands = [columns, ["---"] * len(columns)], []
    for cell in cells:
        found = matching(lines, cell.run)
        row = [cell.row, cell.column]
        for key, digits in (("top1", 2), ("top5", 2), ("sigma", 3)):
            theirs = getattr(cell, key)
            row += [_mean(found, key, digits, theirs), "–" if theirs is None else f"{theirs:.2f}"]
        row += [" ".join(str(line["seed"]) for line in found)]
        row += [f"{statistics.mean(line['seconds'] for line in found):.0f}" if found else ""]
        row += [", ".join(sorted({line["device"] for line in found}))]
        rows.append(row)
        commands += [line["command"] + _went_on(line) for line in found]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    block = "```sh\n" + "".join(f"{command}\n" for command in commands) + "```\n" if commands else ""
    return f"## {name}: {title}\n\n{caption}\n\n{table}\n{block}"


def _went_on(line):
    """That a run went on from rounded copies of its arrays, as a comment."""
    copies = [f"{digits} binary digits after epoch {epoch}" for epoch, digits in line.get("rounded", [])]
    return f"  # its arrays had {', '.join(copies)}" if copies else ""


def step_times(lines):
    """What the benchmark of update times measured, as Markdown; empty where it was not run."""
    rows = []
    for line in lines:
        if kind(line) == "step_time":
            rows += [
                f"{line['network']}, {line['parameters'] / 1e6:.1f} M weights, {line['device']}, {line['backend']}; "
                f"median of {line['rounds']} rounds in turns; a copy moves {line['copy'] / 1e9:.0f} GB/s.\n",
                "| update | time / SGD's | ms | GB/s |\n| --- | --- | --- | --- |",
            ]
            for name, of in line["optimizers"].items():
                milliseconds, bandwidth = 1e3 * of["seconds"], of["bytes"] / of["seconds"] / 1e9
                rows.append(f"| {name} | {of['ratio']:.2f} | {milliseconds:.3f} | {bandwidth:.0f} |")
            rows.append(f"\n```sh\n{line['command']}\n```\n")
    return "\n".join(["## Time of an update\n", *rows]) if rows else ""


def _mean(found, key, digits, theirs):
    if not found:
        return "not run"
    values = [FACTOR[key] * line[key] for line in found]
    mean = statistics.mean(values)
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    star = " *" if theirs is not None and abs(mean - theirs) > DIFFERENT[key] else ""
    return f"{mean:.{digits}f}{deviation}{star}"
