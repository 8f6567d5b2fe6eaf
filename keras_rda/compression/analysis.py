"""Which channels of a model have to stay: constants forwards, needs backwards, ties between both.

Every tensor with a channel axis has one *id* a channel. Ids that must live or die together are tied (the two inputs of
an addition); what is tied is one *class*. The forward pass (`rules`) gives every layer's outputs their ids, notes which
channels are a known constant at every position, and registers the layers that mix channels as `Reader`s. Then a class
is **needed** if it is fixed (an output of the model, the input of a layer whose channels cannot be cut) or if a Reader
has a non-zero weight from it to a needed output and its value is not a constant that the Reader's bias can take over.

The least set that satisfies this is found by one worklist in which every weight is looked at once, so the cost grows
with the number of parameters; it is the fixed point of removing one dead or unread channel after the other.
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass
class Channels:
    """The channels of one tensor.

    Attributes:
        axis: The channel axis, counted from the batch (0).
        ids: Int array (channels,).
        constant: Float array (channels,): the value of the channel where it is the same at every position and for every
            input, NaN elsewhere.
    """

    axis: int
    ids: np.ndarray
    constant: np.ndarray

    def __len__(self):
        return len(self.ids)

    def unknown(self):
        """The same channels, no value known."""
        return Channels(self.axis, self.ids, np.full(len(self.ids), np.nan))


@dataclasses.dataclass
class Reader:
    """A layer, or one group of it, that mixes channels by its weights.

    Attributes:
        name: Of the layer.
        inputs, outputs: Ids (in,), (out,).
        weights: Bool (in, out): whether any weight from one to the other is not zero.
        absorbed: Bool (in,): whether the channel's value is a constant that the bias takes over exactly.
        constant: Bool (in,): whether it is a constant at all; one that is not absorbed meets zero padding.
    """

    name: str
    inputs: np.ndarray
    outputs: np.ndarray
    weights: np.ndarray
    absorbed: np.ndarray
    constant: np.ndarray


class Analysis:
    """Ids, ties, readers and fixed channels of one model; `solve` then says which classes are needed and kept.

    Args:
        any_weights: Read only what the model's structure says, whatever its weights are, and so which of them are zero.
        refused: Calls of layers of the user's own that do not do the same to each channel alone.
    """

    def __init__(self, any_weights=False, refused=()):
        self.any_weights, self.refused = any_weights, refused
        self.channels = {}  # Tensor → Channels
        self.uses = {}  # id of a layer that is cut → its `rule.Use`
        self.opaque = set()  # tensors of which nothing is cut, along any axis
        self.walled = {}  # id of a layer of which a call is a wall → why
        self.elementwise = {}  # (id of an activation, rank) → whether it acts on each element alone, where it was tried
        self.tried = []  # (call of a layer of the user's own that seems to do the same to each channel alone, Channels)
        self.notes = []
        self.unknown_operations = set()  # names of classes
        self.readers = []
        self._count = 0
        self._ties = []
        self._follows = []
        self._fragile = []
        self._fixed = []

    def fresh(self, number):
        """`number` new ids."""
        self._count += number
        return np.arange(self._count - number, self._count)

    def tie(self, first, second):
        """Channels `first[i]` and `second[i]` stay or go together."""
        self._ties.append((first, second))

    def follow(self, first, second):
        """Channels `first[i]` and `second[i]` are kept or cut together, but one may be needed without the other."""
        self._follows.append((first, second))

    def split(self, ids, dead):
        """Ids of their own for the `dead` channels, whose inputs are not read, but which are cut only with them."""
        if self.any_weights:
            return ids
        own = np.where(dead, -1, ids)
        own[dead] = self.fresh(int(dead.sum()))
        self.follow(ids[dead], own[dead])
        return own

    def fragile(self, ids):
        """These channels go through a function that is not finite for some values: no place for placeholders."""
        self._fragile.append(ids)

    def broadcast(self, source, target, name):
        """The one channel of `source` is read wherever one of `target` is needed, by the layer `name`."""
        if self.any_weights:
            return self.fix(source, f"'{name}' reads it for all channels")
        never = np.zeros(1, bool)
        self.readers.append(Reader(name, source, target, np.ones((1, len(target)), bool), never, never))

    def fix(self, ids, reason):
        """These channels stay."""
        self._fixed.append((ids, reason))

    def classes(self):
        """The class of every id, numbered by its smallest member; and {class that stays: why}."""
        root = _components(self._count, self._ties)
        stay = {}
        for ids, reason in self._fixed:
            stay.update((number, reason) for number in root[ids].tolist() if number not in stay)
        return root, stay

    def solve(self, equal_groups=(), multiple_of=1):
        """Find the needed and the kept classes.

        A kept class that is not needed is a placeholder: nobody reads it, but a tensor cannot have zero channels, a
        grouped convolution has groups of equal size, and counts may have to be multiples of a number.

        Args:
            equal_groups: Pairs (inputs, outputs) of id arrays (groups, channels of a group) of grouped convolutions.
            multiple_of: Every tensor keeps as many channels as are a multiple of this, or all that it has.
        """
        self.root = _components(self._count, self._ties)
        self.needed = np.zeros(self._count, bool)
        self.reason = {}
        for ids, reason in self._fixed:
            self._need(ids, reason)
        self._done = [np.zeros(len(reader.outputs), bool) for reader in self.readers]
        fragile = np.zeros(self._count, bool)
        for ids in self._fragile:
            fragile[self.root[ids]] = True
        while True:
            self._propagate()
            self.kept = self.needed.copy()
            while (
                self._keep_some()
                or self._equalise(equal_groups, multiple_of)
                or self._keep_followers()
                or self._fill(multiple_of)
            ):
                pass
            # A placeholder computes with zero weights, and would come out of a square root or a quotient as NaN.
            if not self._need(np.flatnonzero(self.kept & ~self.needed & fragile), "its value must stay finite"):
                break

    def _propagate(self):
        """Against the direction of the data: what a needed output is computed from is needed."""
        changed = True
        while changed:
            changed = False
            for reader, seen in zip(reversed(self.readers), reversed(self._done), strict=True):
                new = self.needed[self.root[reader.outputs]] & ~seen
                if new.any():
                    seen |= new
                    read = reader.weights[:, new].any(axis=1) & ~reader.absorbed
                    stuck = f"a constant that '{reader.name}' cannot take over, because of its zero padding"
                    changed |= self._need(reader.inputs[read & ~reader.constant], f"read by '{reader.name}'")
                    changed |= self._need(reader.inputs[read & reader.constant], stuck)

    def is_needed(self, ids):
        return self.needed[self.root[ids]]

    def is_kept(self, ids):
        return self.kept[self.root[ids]]

    def reasons(self, ids):
        """Why these channels stay, each reason once."""
        found = (self.reason.get(root, "a tensor needs a channel") for root in dict.fromkeys(self.root[ids].tolist()))
        return list(dict.fromkeys(found))

    def _need(self, ids, reason):
        roots = np.unique(self.root[ids])
        new = roots[~self.needed[roots]]
        self.needed[new] = True
        self.reason.update(dict.fromkeys(new.tolist(), reason))
        return len(new) > 0

    def _keep_some(self):
        """Keep one channel of every tensor (and one attention head) that would have none."""
        changed = False
        for channels in (*self.channels.values(), *(use.inputs for use in self.uses.values())):
            if len(channels) and not self.is_kept(channels.ids).any():
                self.kept[self.root[channels.ids[0]]] = changed = True
        return changed

    def _fill(self, multiple_of):
        """Keep channels until every tensor has a multiple, or all that it had; one placeholder is like another."""
        changed = False
        uses = [(use.outputs.ids, use.rule.width(use)) for use in self.uses.values()]
        width_of = np.ones(self._count, int)
        for ids, width in uses:
            width_of[self.root[ids]] = np.maximum(width_of[self.root[ids]], width)
        tensors = [channels.ids for channels in self.channels.values() if len(channels)]
        for ids, width in (*((ids, int(width_of[self.root[ids]].max())) for ids in tensors), *uses):
            number = multiple_of // math.gcd(multiple_of, width)
            kept = self.is_kept(ids)
            added = self.root[ids[~kept]][: -int(kept.sum()) % number]
            self.kept[added] = True
            self.reason.update(dict.fromkeys(added.tolist(), f"their number must be a multiple of {number}"))
            changed |= len(added) > 0
        return changed

    def _keep_followers(self):
        changed = False
        for sides in self._follows:
            kept = np.any([self.is_kept(ids) for ids in sides], axis=0)
            for ids in sides:
                if not self.is_kept(ids[kept]).all():
                    self.kept[self.root[ids[kept]]] = changed = True
        return changed

    def _equalise(self, equal_groups, multiple_of):
        """Keep channels until every group of a grouped convolution that stays has as many as the others.

        And so many that the groups together have a multiple, if they can.
        """
        changed = False
        for sides in equal_groups:
            stays = np.any([self.is_kept(ids).any(axis=1) for ids in sides], axis=0)
            for ids in sides:
                kept = self.is_kept(ids)
                step = multiple_of // math.gcd(multiple_of, int(stays.sum()))
                most = min(-(-max(1, kept.sum(axis=1).max()) // step) * step, kept.shape[1])
                for group in np.flatnonzero(stays & (kept.sum(axis=1) < most)):
                    missing = most - kept[group].sum()
                    self.kept[self.root[ids[group][~kept[group]][:missing]]] = changed = True
        return changed


def _components(count, ties):
    """Label 0 … count − 1 by connected component: the smallest member (union by path halving)."""
    parent = list(range(count))

    def find(item):
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for first, second in ties:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            a, b = find(a), find(b)
            parent[max(a, b)] = min(a, b)
    return np.array([find(item) for item in range(count)], int)
