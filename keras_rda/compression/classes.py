"""Which weights read, and which compute, the channels that stay or go together: by a model's structure alone."""

import collections
import dataclasses
import math

import keras
import numpy as np

from keras_rda.compression import costs, graph, rules
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
            found[number] += cost
        return found


def read(model):
    """The `Classes` of a functional `model` (see `graph.functional`), whatever its weights are.

    A class goes where no weight that reads it is left: in a residual network, the rows of all convolutions behind the
    sum.
    """
    flat, analysis = graph.read(model), Analysis(any_weights=True)
    rules.read(analysis, flat)
    root, stay = analysis.classes()
    uses = list(analysis.uses.values())
    kernels = [(use.layer, kernel) for use in uses for kernel in use.rule.kernels(use)]
    read = {number for _, (_, reads, _) in kernels for number in root[reads[reads >= 0]].tolist()}
    # One entry more, for the id −1.
    numbers = np.full(len(root) + 1, -1)
    free = sorted(read - stay.keys())
    numbers[free] = np.arange(len(free))
    numbers[:-1] = numbers[root]
    shapes, calls = costs.shapes(flat), collections.defaultdict(list)
    for call in flat.calls:
        calls[id(call.layer)].append(call)
    heads, others = [], 0
    for own in calls.values():
        layer = own[0].layer
        if isinstance(layer, keras.layers.MultiHeadAttention) and id(layer) in analysis.uses:
            cost = costs.attention(layer, own, shapes)
            heads += [(int(number), cost) for number in numbers[analysis.uses[id(layer)].inputs.ids]]
        elif isinstance(layer, keras.layers.Layer) and not any(layer is shrinking for shrinking, _ in kernels):
            cost = costs.multiply_adds(layer, own, shapes)
            others = None if None in (others, cost) else others + cost
    return Classes(
        tuple(
            KernelChannels(
                kernel.path,
                tuple(kernel.shape),
                numbers[reads],
                numbers[computes],
                costs.positions(layer, calls[id(layer)], shapes),
            )
            for layer, (kernel, reads, computes) in kernels
        ),
        len(free),
        tuple(dict.fromkeys(stay.values())),
        tuple(heads),
        None if any(cost is None for _, cost in heads) else others,
    )
