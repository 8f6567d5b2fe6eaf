"""Which weights read, and which compute, the channels that stay or go together: by a model's structure alone."""

import dataclasses

import numpy as np

from keras_rda.compression import graph, rules
from keras_rda.compression.analysis import Analysis


@dataclasses.dataclass(frozen=True)
class KernelChannels:
    """A kernel, and the class of channels that each of its weights reads and computes.

    Attributes:
        path: Of the variable.
        reads, computes: Int arrays that broadcast to its shape; −1: a channel that cannot go.
    """

    path: str
    reads: np.ndarray
    computes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Classes:
    """The channels of a model that can go, in classes of those that go together.

    Attributes:
        kernels: A `KernelChannels` for every kernel of a layer that shrinks.
        number: How many classes there are that kernels read; they are numbered from 0.
        reasons: Why other channels cannot go, each reason once.
    """

    kernels: tuple[KernelChannels, ...]
    number: int
    reasons: tuple[str, ...]


def read(model):
    """The `Classes` of a functional `model` (see `graph.functional`), whatever its weights are.

    A class goes where no weight that reads it is left: in a residual network, the rows of all convolutions behind the
    sum.
    """
    flat, analysis = graph.read(model), Analysis(any_weights=True)
    rules.read(analysis, flat)
    root, stay = analysis.classes()
    kernels = [kernel for use in analysis.uses.values() for kernel in use.rule.kernels(use)]
    read = {number for _, reads, _ in kernels for number in root[reads[reads >= 0]].tolist()}
    # One entry more, for the id −1.
    numbers = np.full(len(root) + 1, -1)
    free = sorted(read - stay.keys())
    numbers[free] = np.arange(len(free))
    numbers[:-1] = numbers[root]
    return Classes(
        tuple(KernelChannels(kernel.path, numbers[reads], numbers[computes]) for kernel, reads, computes in kernels),
        len(free),
        tuple(dict.fromkeys(stay.values())),
    )
