"""How results leave the package: as text for people, and as files that are whole or not there."""

import os
import pathlib
import unicodedata

from rich import box
from rich.console import Console
from rich.table import Column, Table

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
    console = Console(width=width, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return "\n".join(map(printable, capture.get().split("\n")))


def printable(line):
    """A line in which what would command the terminal is `�`."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _commands(letter) else letter for letter in line)


def _commands(letter):
    """Control characters, halves of surrogate pairs, and what reverses the direction of text."""
    return (unicodedata.category(letter) in ("Cc", "Cs") and letter != "\t") or letter in _DIRECTIONS


def move(unfinished, path):
    """Put a file that was written beside `path` in its place, once its content is on the disk."""
    with pathlib.Path(unfinished).open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, path)
