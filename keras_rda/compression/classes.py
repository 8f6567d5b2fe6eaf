"""Which weights read, and which compute, the channels that stay or go together: by a model's structure alone."""

import collections
import dataclasses
import math

import keras
import numpy as np

from keras_rda.compression import costs, rules
from keras_rda.compression.analysis import Analysis


@dataclasses.dataclass(frozen=True)
class KernelChannels:
    """A kernel, and the class of channels that each of its weights reads and computes.

    Attributes:
        variable: The kernel.
        reads, computes: Int arrays that broadcast to its shape; −1: a channel that cannot go.
        positions: How often each weight is multiplied for one sample; None where a shape is not known.
    """

    variable: keras.Variable
    reads: np.ndarray
    computes: np.ndarray
    positions: int | None

    @property
    def path(self):
        """Of the variable."""
        return self.variable.path

    @property
    def size(self):
        """How many weights it has."""
        return math.prod(self.variable.shape)

    def left(self, alive):
        """How many of its weights are left with the classes that are `alive`: booleans, of which the last is True."""
        reads, computes = alive[self.reads], alive[self.computes]
        ranks = reads.ndim, computes.ndim
        if 0 in ranks or all(1 in sizes for sizes in zip(reads.shape, computes.shape, strict=True)):
            # Along different axes: no array of the kernel's size.
            return int(reads.sum()) * int(computes.sum()) * (self.size // (reads.size * computes.size))
        left = reads & computes
        return int(left.sum()) * (self.size // left.size)

    def of_each(self, number):
        """Float array (number,): how many of its weights each class takes along when it goes."""
        reads, computes = np.broadcast_arrays(self.reads, self.computes)
        counts = np.bincount(1 + reads.ravel(), minlength=number + 1)
        counts += np.bincount(1 + computes[computes != reads], minlength=number + 1)
        return counts[1:] * (self.size / reads.size)


@dataclasses.dataclass(frozen=True)
class Classes:
    """The channels of a model that can go, in classes of those that go together.

    Attributes:
        kernels: A `KernelChannels` for every kernel of a layer that shrinks.
        number: How many classes there are that kernels read; they are numbered from 0.
        reasons: Why other channels cannot go, each reason once.
        heads: Pairs (class, multiply-adds) of attention's heads: what each takes along beside its kernels' weights.
        other_multiply_adds: Of all layers that do not shrink, as far as they are known.
        unknown: Names of the layers of which they are not known.
    """

    kernels: tuple[KernelChannels, ...]
    number: int
    reasons: tuple[str, ...]
    heads: tuple[tuple[int, int], ...]
    other_multiply_adds: int
    unknown: tuple[str, ...]

    def multiply_adds(self, alive):
        """For one sample, after `compress`, where of the classes those are left that are `alive` (number,)."""
        alive = np.append(alive, True)
        total = sum(kernel.positions * kernel.left(alive) for kernel in self.kernels)
        return self.other_multiply_adds + total + sum(cost for number, cost in self.heads if alive[number])

    def multiply_adds_of_each(self):
        """Float array (number,): how many go with each class where all others are left."""
        found = sum(kernel.positions * kernel.of_each(self.number) for kernel in self.kernels)
        for number, cost in self.heads:
            if number >= 0:
                found[number] += cost
        return found


def read(model):
    """The `Classes` of a model, whatever its weights are; None if it has no graph (`graph.as_functional`).

    A class goes where no weight that reads it is left: in a residual network, the rows of all convolutions behind the
    sum.
    """
    flat, analysis = rules.flatten(model), Analysis(any_weights=True)
    if flat is None:
        return None
    rules.read(analysis, flat)
    root, stay = analysis.classes()
    kernels = [kernel for use in analysis.uses.values() for kernel in use.rule.kernels(use)]
    read = {number for _, reads, _ in kernels for number in root[reads[reads >= 0]].tolist()}
    free = sorted(read - stay.keys())
    numbers = np.full(len(root), -1)
    numbers[free] = np.arange(len(free))
    return describe(flat, analysis, numbers[root], tuple(dict.fromkeys(stay.values())))


def describe(flat, analysis, numbers, reasons=()):
    """The `Classes` of a `FlatModel` that `analysis` has read.

    Args:
        numbers: Int array (ids,): the class of every id, −1: of none.
        reasons: Why channels are of no class.
    """
    numbers = np.append(numbers, -1)  # that of the id −1
    calls = collections.defaultdict(list)
    for call in flat.calls:
        calls[id(call.layer)].append(call)
    kernels, heads, others, unknown = [], [], 0, []
    for key, own in calls.items():
        layer, use = own[0].layer, analysis.uses.get(key)
        found = [] if use is None else use.rule.kernels(use)
        cost = costs.multiply_adds(layer, own) if isinstance(layer, keras.layers.Layer) else 0
        if cost is None:
            unknown.append(own[0].name)
        elif not found:
            others += cost
        if found:
            times = costs.positions(layer, own)
            kernels += [
                KernelChannels(kernel, numbers[reads], numbers[computes], times) for kernel, reads, computes in found
            ]
            if isinstance(layer, keras.layers.MultiHeadAttention):
                heads += [(number, costs.attention(layer, own)) for number in numbers[use.inputs.ids].tolist()]
    return Classes(tuple(kernels), int(numbers.max()) + 1, reasons, tuple(heads), others, tuple(unknown))
