"""What `compress` did, layer by layer."""

import collections
import dataclasses
import math
from typing import Any

import keras
import numpy as np
from rich.table import Table

from keras_rda import output
from keras_rda.compression import costs

layers = keras.layers


@dataclasses.dataclass(frozen=True)
class LayerCompression:
    """One layer before → after.

    Attributes:
        name, kind: The layer's name and class.
        channels: (before, after) number of its outputs; None for layers without weights of their own.
        parameters: (before, after) number of weights.
        multiply_adds: (before, after) multiplications of a weight for one sample; None where the shape is unknown.
        bytes: (before, after) size of the weights, dense.
        zeros_kept: Number of output channels with only zero weights that stayed.
        reasons: Why those stayed.
        placeholders: Number of output channels that stayed without use, with weights of zero: one where all could go,
            what groups lack to be equal, and what counts lack to be multiples.
    """

    name: str
    kind: str
    channels: tuple[int, int] | None
    parameters: tuple[int, int]
    multiply_adds: tuple[int | None, int | None]
    bytes: tuple[int, int]
    zeros_kept: int
    reasons: tuple[str, ...]
    placeholders: int = 0


@dataclasses.dataclass(frozen=True)
class CompressionReport:
    """What `compress` did; `print` shows a table.

    Attributes:
        rows: A `LayerCompression` for every layer with weights.
        notes: What a reader should know.
    """

    rows: tuple[LayerCompression, ...]
    notes: tuple[str, ...]

    def total(self, name: str) -> tuple[int | None, ...]:
        """(before, after) of `"parameters"`, `"multiply_adds"` or `"bytes"`; None if it is unknown of a layer."""
        pairs = [getattr(row, name) for row in self.rows]
        return tuple(
            None if any(pair[side] is None for pair in pairs) else sum(pair[side] for pair in pairs) for side in (0, 1)
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts, lists, strings and numbers."""
        totals = {name: list(self.total(name)) for name in ("parameters", "multiply_adds", "bytes")}
        rows = [dataclasses.asdict(row) for row in self.rows]
        return {"layers": rows, "total": totals, "notes": list(self.notes)}

    def __str__(self):
        table = Table("layer")
        for name in ("channels", "parameters", "multiply-adds"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(output.Name(row.name), *map(_change, (row.channels, row.parameters, row.multiply_adds)))
        table.add_section()
        table.add_row("all", "", *(_change(self.total(name)) for name in ("parameters", "multiply_adds")))
        lines = [
            f"Channels without weights that stay in '{row.name}', {row.zeros_kept}: {'; '.join(row.reasons)}"
            for row in self.rows
            if row.zeros_kept
        ]
        parts = [table] if self._changed or lines else []
        return output.text(self._headline, *parts, *lines, *self.notes, width=output.WIDTH)

    @property
    def _changed(self):
        return any(before != after for before, after in (self.total("bytes"), self._channels))

    @property
    def _channels(self):
        pairs = [row.channels for row in self.rows if row.channels]
        return tuple(sum(pair[side] for pair in pairs) for side in (0, 1))

    @property
    def _headline(self):
        if self._changed:
            before, after = self._channels
            sizes = " → ".join(map(output.size, self.total("bytes")))
            return f"{before - after:,} of {before:,} channels removed, weights (dense) {sizes}"
        if any(row.zeros_kept or row.placeholders for row in self.rows):
            return "Nothing could be removed."
        return "Nothing to remove: no dead or unread channels."


def _change(pair):
    if pair is None:
        return ""
    before, after = map(_number, pair)
    return before if before == after else f"{before} → {after}"


def _number(value):
    """Five digits at the most: 12,345 or 1.23 M."""
    if value is None:
        return "?"
    return f"{value:,}" if value < 100_000 else output.rounded(value)


def make_report(flat, analysis, made, multiple_of=1):
    """Compare every layer with weights with its successor.

    `made`: {id of a layer: new layer}.
    """
    rows, seen = [], set()
    calls = collections.defaultdict(list)
    for call in flat.calls:
        calls[id(call.layer)].append(call)
    for call in flat.calls:
        key, layer = id(call.layer), call.layer
        if key in seen or not isinstance(layer, layers.Layer) or not layer.weights:
            continue
        seen.add(key)
        use = analysis.uses.get(key)
        pair = [item for item in (layer, made.get(key)) if item]  # a folded layer has no successor
        dead = _dead_and_kept(use, analysis)
        rows.append(
            LayerCompression(
                name=call.name,
                kind=type(layer).__name__,
                channels=_channels(use, analysis),
                parameters=_pair(sum(math.prod(weight.shape) for weight in item.weights) for item in pair),
                multiply_adds=_pair(costs.multiply_adds(item, calls[key]) for item in pair),
                bytes=_pair(sum(_bytes(weight) for weight in item.weights) for item in pair),
                zeros_kept=len(dead),
                reasons=tuple(analysis.reasons(dead)),
                placeholders=_placeholders(use, analysis),
            )
        )
    notes, placeholders = list(analysis.notes), sum(row.placeholders for row in rows)
    if analysis.unknown_operations:
        names = ", ".join(sorted(analysis.unknown_operations))
        notes.append(f"Operations that are not known, so no channel is cut on either side of them: {names}.")
    if multiple_of > 1 and placeholders:
        notes.append(
            f"Numbers of channels are multiples of {multiple_of}, or as before. Placeholders, weights of zero that "
            f"nobody reads: {placeholders:,}."
        )
    return CompressionReport(tuple(rows), tuple(notes))


def _pair(values):
    before, *after = values
    return before, after[0] if after else 0


def _channels(use, analysis):
    return None if use is None else (len(use.outputs), int(analysis.is_kept(use.outputs.ids).sum()))


def _placeholders(use, analysis):
    if use is None:
        return 0
    return int((analysis.is_kept(use.outputs.ids) & ~analysis.is_needed(use.outputs.ids)).sum())


def _dead_and_kept(use, analysis):
    """Ids of outputs whose weights are all zero and that stayed."""
    if use is None:
        return np.array([], int)
    ids = use.outputs.ids[~use.rule.alive(use)]
    return ids[analysis.is_kept(ids)]


def _bytes(weight):
    return keras.ops.convert_to_numpy(weight).nbytes
