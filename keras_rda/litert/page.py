"""An export's report as an HTML page that needs no other file."""

import dataclasses
import itertools

import jinja2

from keras_rda.litert.layer_names import label

# Width : height of the picture of the bytes on a wide screen.
_ASPECT = 2
_KINDS = {
    "CONV_2D": "convolutions",
    "CONV_3D": "convolutions",
    "CONV_3D_TRANSPOSE": "convolutions",
    "TRANSPOSE_CONV": "convolutions",
    "DEPTHWISE_CONV_2D": "depthwise convolutions",
    "FULLY_CONNECTED": "dense layers",
    "BATCH_MATMUL": "dense layers",
}
_OTHER, _REST = "other weights", "graph, biases, scales"


@dataclasses.dataclass(frozen=True)
class Tile:
    """A rectangle of the picture, as large as its share of the file; `left`, `top`, `width`, `height` in percent."""

    name: str
    kind: str
    bytes: int
    left: float
    top: float
    width: float
    height: float


def render(report):
    """The page of an `ExportReport`, as text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_rda.litert", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=size, count="{:,}".format, label=label)
    pieces = [(label(tensor), _KINDS.get(tensor.operator, _OTHER), tensor.bytes) for tensor in report.tensors]
    pieces.append((_REST, _REST, max(report.bytes - report.weight_bytes, 0)))
    return environment.get_template("report.html").render(
        report=report, tiles=tiles(pieces), kinds=list(dict.fromkeys([*_KINDS.values(), _OTHER, _REST]))
    )


def size(number):
    """Bytes for people: `"1.34 MB"`."""
    for unit, name in ((1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:#.3g}".rstrip(".") + f" {name}"
    return f"{number} bytes"


def tiles(pieces):
    """Lay out `(name, kind, bytes)` as a treemap: a list of `Tile`, the largest first."""
    pieces = sorted((piece for piece in pieces if piece[2]), key=lambda piece: -piece[2])
    return list(_split(pieces, 0.0, 0.0, 100.0, 100.0)) if pieces else []


def _split(pieces, left, top, width, height):
    """Cut the rectangle across its longer side, into halves as equal as the order of the pieces allows, and so on."""
    if len(pieces) == 1:
        yield Tile(*pieces[0], left, top, width, height)
        return
    sums = list(itertools.accumulate(piece[2] for piece in pieces))
    cut = min(range(1, len(pieces)), key=lambda number: abs(2 * sums[number - 1] - sums[-1]))
    share = sums[cut - 1] / sums[-1]
    if width * _ASPECT >= height:
        yield from _split(pieces[:cut], left, top, width * share, height)
        yield from _split(pieces[cut:], left + width * share, top, width * (1 - share), height)
    else:
        yield from _split(pieces[:cut], left, top, width, height * share)
        yield from _split(pieces[cut:], left, top + height * share, width, height * (1 - share))
