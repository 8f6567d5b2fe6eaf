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
        path, shape: Of the variable.
        reads, computes: Int arrays that broadcast to its shape; −1: a channel that cannot go.
        positions: How often each weight is multiplied for one sample; None where a shape is not known.
    """

    path: str
    shape: tuple[int, ...]
    reads: np.ndarray
    computes: np.ndarray
    positions: int | None

    def left(self, alive):
        """How many of its weights are left with the classes that are `alive`: booleans, of which the last is True."""
        left = alive[self.reads] & alive[self.computes]
        return int(left.sum()) * (math.prod(self.shape) // left.size)

    def of_each(self, number):
        """Float array (number,): how many of its weights each class takes along when it goes."""
        reads, computes = np.broadcast_arrays(self.reads, self.computes)
        counts = np.bincount(1 + reads.ravel(), minlength=number + 1)
        counts += np.bincount(1 + computes[computes != reads], minlength=number + 1)
        return counts[1:] * (math.prod(self.shape) / reads.size)


@dataclasses.dataclass(frozen=True)
class Classes:
    """The channels of a model that can go, in classes of those that go together.

    Attributes:
        kernels: A `KernelChannels` for every kernel of a layer that shrinks.
        number: How many classes there are that kernels read; they are numbered from 0.
        reasons: Why other channels cannot go, each reason once.
        heads: Pairs (class, multiply-adds) of attention's heads: what each takes along beside its kernels' weights.
        other_multiply_adds: Of all layers that do not shrink; None where it is not known.
    """

    kernels: tuple[KernelChannels, ...]
    number: int
    reasons: tuple[str, ...]
    heads: tuple[tuple[int, int], ...]
    other_multiply_adds: int | None

    @property
    def knows_multiply_adds(self):
        """Whether they are known of every layer."""
        return self.other_multiply_adds is not None and all(kernel.positions is not None for kernel in self.kernels)

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
    """The `Classes` of a functional `model` (see `graph.functional`), whatever its weights are.

    A class goes where no weight that reads it is left: in a residual network, the rows of all convolutions behind the
    sum.
    """
    flat, analysis = rules.flatten(model), Analysis(any_weights=True)
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
    kernels, heads, others = [], [], 0
    for key, own in calls.items():
        layer, use = own[0].layer, analysis.uses.get(key)
        found = [] if use is None else use.rule.kernels(use)
        if found:
            times = costs.positions(layer, own)
            kernels += [
                KernelChannels(kernel.path, tuple(kernel.shape), numbers[reads], numbers[computes], times)
                for kernel, reads, computes in found
            ]
            if isinstance(layer, keras.layers.MultiHeadAttention):
                cost = costs.attention(layer, own)
                heads += [(number, cost) for number in numbers[use.inputs.ids].tolist()]
        elif isinstance(layer, keras.layers.Layer):
            cost = costs.multiply_adds(layer, own)
            others = None if None in (others, cost) else others + cost
    if any(cost is None for _, cost in heads):
        others = None
    return Classes(tuple(kernels), int(numbers.max()) + 1, reasons, tuple(heads), others)
