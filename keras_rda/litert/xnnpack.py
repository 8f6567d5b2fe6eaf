"""Whether XNNPACK runs the zeros of a LiteRT file with its sparse kernels, and whether it does so rightly.

XNNPACK, LiteRT's default delegate, has kernels for 1×1 convolutions with unstructured zeros. It uses them only where a
whole cluster of operators can work in their layout (see `clusters`), and gets some clusters wrong: these faults are
reported here, and mended by `repair.repair_tails`.
"""

import dataclasses
import math
import pathlib
import platform

import numpy as np

from keras_rda.litert import flatbuffer
from keras_rda.litert.clusters import Clusters
from keras_rda.litert.delegation import Role
from keras_rda.litert.graph import Graph
from keras_rda.litert.layer_names import shortened
from keras_rda.types import Path

# What a weight costs in kernels for blocks of output channels, which have no SIMD in WebAssembly, beside one of a dense
# convolution: LiteRT.js 2.5.3, MobileNetV1 with zeros in blocks of 4.
_PLAIN = 8


@dataclasses.dataclass(frozen=True)
class SparseKernels:
    """What XNNPACK's sparse kernels make of a file, where they exist (see `here`).

    Attributes:
        eligible: Whether some convolutions run sparse, and rightly.
        reasons: If not, why, operator by operator.
        operators: Names of the 1×1 convolutions that run sparse.
        zeros: Share of zeros in the weights that XNNPACK counts: of those convolutions and the dense layers behind
            them; if there are none, of all 1×1 convolutions and dense layers. More than 2/3 are needed.
        faults: Those of `reasons` for which the file is wrong or does not load where the kernels exist.
        blocks: Of each of the `operators`, how many output channels its sparse kernel computes together: 1, 2 or 4.
        browser: Which of them are slower than dense in WebAssembly, and why; `""` if none is.
        is_slower_in_browser: Whether they are slower all together, estimated from that.
    """

    eligible: bool
    reasons: tuple[str, ...]
    operators: tuple[str, ...]
    zeros: float
    faults: tuple[str, ...] = ()
    blocks: tuple[int, ...] = ()
    browser: str = ""
    is_slower_in_browser: bool = False


def sparse_kernels(path: Path) -> SparseKernels:
    """Say whether a LiteRT file runs faster for its zeros on Arm and in browsers; return `SparseKernels`.

    Args:
        path: The `.tflite` file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no LiteRT file.
    """
    return analyze(flatbuffer.read(path))[0]


def here() -> str | None:
    """Say in a line why this machine has no sparse kernels; None if it has."""
    machine = platform.machine().lower()
    if machine in {"aarch64", "arm64", "armv7l", "armv8l"}:
        return None
    if machine not in {"x86_64", "amd64", "i686"}:
        return f"XNNPACK is not known to have sparse kernels for processors of the kind {machine!r}."
    if "avx" in _cpu_flags():
        return "XNNPACK has no sparse kernels for x86 processors with AVX: zeros make files smaller here, not faster."
    return None


def _cpu_flags():
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    # Where it cannot be read: all x86 processors that run current systems have AVX.
    return set(cpuinfo.read_text().split()) if cpuinfo.is_file() else {"avx"}


def analyze(model, subgraph=None):
    """Analyse a subgraph of a `ModelT`, by default the first; return its `SparseKernels` and `Clusters`."""
    try:
        clusters = Clusters(Graph(model, subgraph))
        nodes, delegation = clusters.nodes, clusters.delegation
        runs = [node for node in nodes if node.engaged and node.kind == "CONV_2D"]
        masks = [delegation.nonzero(node) for node in runs]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"The LiteRT file's operators are damaged: {error!r}.") from error
    counted = [node for node in nodes if delegation.counts(node) and (node.engaged or not runs)]
    zeros, elements = np.sum([delegation.zeros(node) for node in counted], axis=0) if counted else (0, 0)
    share = float(zeros / elements) if elements else 0.0
    faults = tuple(f"{node}: {fault}" for node, fault in clusters.faults.items())
    reasons = faults or (() if runs else tuple(_reasons(clusters, share)))
    blocks = tuple(map(_block, masks))
    names = tuple(node.name for node in runs)
    if faults or not runs:
        return SparseKernels(False, reasons, names, share, faults, blocks), clusters
    positions = np.array([math.prod(delegation.shape(node.output)[1:3]) for node in runs])
    dense = positions * [mask.size for mask in masks]
    browser = positions * [mask.sum() * (_PLAIN if b > 1 else 1) for mask, b in zip(masks, blocks, strict=True)]
    slow = [f"'{shortened(runs[index].name)}'" for index in np.flatnonzero(browser > dense)]
    text = _slower(slow, len(runs)) if slow else ""
    return SparseKernels(True, (), names, share, (), blocks, text, bool(browser.sum() > dense.sum())), clusters


def _block(mask):
    """How many output channels XNNPACK's kernel for a bool array (outputs, inputs) of non-zeros computes together.

    As in its `src/operators/convolution-nchw.c`: 4 or 2 where blocks that are not empty are filled to nine tenths.
    """
    for size in (4, 2):
        filled = mask[: len(mask) // size * size].reshape(-1, size, mask.shape[1])
        if filled.sum() * 10 >= filled.any(axis=1).sum() * size * 9:
            return size
    return 1


def _slower(names, convolutions):
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"{len(names)} of {convolutions} sparse convolutions are slower than dense in browsers: {listed}. Their zeros "
        "are few, or come in blocks of output channels, for which WebAssembly has no fast kernels; for 30 % of zeros, "
        "scattered, it has."
    )


def _reasons(clusters, share):
    nodes, delegation, graph = clusters.nodes, clusters.delegation, clusters.graph
    if not any(map(delegation.is_hint, range(len(graph.tensors)))):
        yield "No weight is stored sparse in floating point: zeros are not looked for."
    if not any(node.kind == "CONV_2D" and node.role & Role.INSIDE for node in nodes):
        yield "There is no 1×1 convolution with stride 1 in floating point."
    cluster = [n for n in nodes if n.role & (Role.ENTRY | Role.INSIDE | Role.END) and n.kind != "FULLY_CONNECTED"]
    beside = {consumer for node in cluster for consumer in clusters.consumers.get(node.output, ())}
    beside |= {delegation.producers.get(index) for node in cluster for index in node.inputs}
    for node in dict.fromkeys(delegation.producers.values()):
        if node.why and (node.role or node in beside):
            yield f"{node}: {node.why}"
        elif node in cluster and not node.role & Role.ENTRY and set(node.inputs) & set(graph.subgraph.inputs):
            yield f"{node}: reads the network's input, which only a 3×3 convolution with stride 2 on 3 channels can"
    if not any(node.kind in {"MEAN", "SUM", "DEPTH_TO_SPACE"} and node.role for node in nodes):
        yield "There is no mean or sum over height and width, nor DEPTH_TO_SPACE, at the end."
    if share * 3 <= 2:
        yield f"Zeros: {share:.3f} of the weights of 1×1 convolutions and dense layers, must be more than 2/3."
