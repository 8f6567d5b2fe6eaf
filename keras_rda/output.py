"""How results leave the package: as text for people, and as files that are whole or not there."""

import contextlib
import os
import pathlib
import re
import unicodedata

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

WIDTH = 100  # columns of text where there is no terminal that has a width
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def table(name, *columns):
    """A `rich` table without frames, so that long names have room: of rows that are named by the first column."""
    options = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "collapse_padding": True}
    return Table(Column(name, overflow="fold"), *columns, **options)


def text(*parts, width):
    """Tables and lines as plain text.

    Names come out of files: none of them is taken for markup, and what would command the terminal becomes `�`.
    """
    plain = {"color_system": None, "markup": False, "emoji": False, "highlight": False}
    console = Console(width=width, force_jupyter=False, **plain)  # in notebooks it would add an empty output
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return "\n".join(map(printable, capture.get().split("\n")))


def rounded(number):
    """A number from 1,000 on, in three digits and a unit's prefix: `"1.34 M"`."""
    power, prefix = next(
        (power, prefix) for power, prefix in ((9, "G"), (6, "M"), (3, "k")) if number >= 0.9995 * 10**power
    )
    return f"{number / 10**power:#.3g}".rstrip(".") + f" {prefix}"


def size(number):
    """Bytes for people: `"1.34 MB"`."""
    return f"{number} bytes" if number < 1000 else f"{rounded(number)}B"


def printable(line):
    """A line in which what would command the terminal is `�`."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _commands(letter) else letter for letter in line)


def one_line(error):
    """The line of an error's message that says something, without colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [printable(line.strip()) for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # TensorFlow puts the trace of a traced function first, Keras the name of the layer.
    if lines[0].startswith("in user code:"):
        return lines[-1]
    return lines[1] if lines[0].startswith("Exception encountered when calling") and len(lines) > 1 else lines[0]


def _commands(letter):
    """Control characters, halves of surrogate pairs, and what reverses the direction of text."""
    return (unicodedata.category(letter) in ("Cc", "Cs") and letter != "\t") or letter in _DIRECTIONS


@contextlib.contextmanager
def replacing(path):
    """Write a file beside `path`, and put it in place when it is whole: what was there survives a failure or a kill.

        with replacing("model.keras") as unfinished:
            model.save(unfinished)

    Yields the path to write to, which ends as `path` does. A kill may leave it behind; the next to write there, of whom
    there can be one at a time, overwrites it.
    """
    path = pathlib.Path(path)
    unfinished = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield unfinished
        move(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def move(unfinished, path):
    """Put a file that was written beside `path` in its place, once its content is on the disk."""
    with pathlib.Path(unfinished).open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, path)


class Name:
    """A name in a table: in a column too narrow for it, it is broken behind "_", "/" or ".", not within a word."""

    def __init__(self, name):
        self._name = name

    def __rich_measure__(self, console, options):
        return Measurement(1, len(self._name))

    def __rich_console__(self, console, options):
        yield Text(_broken(self._name, options.max_width))


def _broken(name, width):
    if len(name) <= width:
        return name
    end = max(map(name[:width].rfind, "_/.")) + 1 or width
    return f"{name[:end]}\n{_broken(name[end:], width)}"
