"""The group lasso on groups of weights that lie in several kernels."""

import math

import numpy as np
from keras import ops


class SharedGroups:
    """ψ = λ·Σ_G √c_G·‖w_G‖₂ over groups of weights that lie in several variables; c_G is |G|, or what a group costs.

    Args:
        penalty: The `Penalty` that has λ.
        variables: The kernels.
        groups: For each, an int array that broadcasts to its shape: the number of each weight's group, −1: of none.
        outside: Paths of kernels that keep other groups of the same layout from going.
        costs: Float array (groups,), c_G relative to one another; None: the numbers of weights.
    """

    def __init__(self, penalty, variables, groups, outside=(), costs=None):
        self._penalty, self.variables, self.outside = penalty, variables, outside
        self.number = 1 + max((int(array.max(initial=-1)) for array in groups), default=-1)
        self._shapes = [array.shape for array in groups]
        # The weights of no group are one more, which has no cost.
        self._groups = [np.where(array < 0, self.number, array).reshape(-1).astype("int32") for array in groups]
        # How many weights share an entry of these arrays.
        self._repeats = [
            math.prod(variable.shape) // array.size for variable, array in zip(variables, groups, strict=True)
        ]
        self._sizes = self._count(range(len(variables)))
        costs = self.sizes if costs is None else costs * (self.sizes.sum() / costs.sum())  # so that λ acts as strongly
        self._roots = np.sqrt(np.append(costs, 0.0)).astype("float32")

    def penalties(self):
        """The `SharedPenalty` of each variable."""
        return [SharedPenalty(self, position) for position in range(len(self.variables))]

    def beyond(self, member):
        """What is beyond any threshold where a member's weights are in no group: an array that broadcasts to it."""
        none = self._groups[member] == self.number
        return np.where(none, 1e30, 0.0).astype("float32").reshape(self._shapes[member])

    @property
    def sizes(self):
        """Float array (groups,): the number of weights of each group."""
        return self._sizes[:-1]

    def _count(self, members):
        counts = np.zeros(self.number + 1)
        for member in members:
            counts += self._repeats[member] * np.bincount(self._groups[member], minlength=self.number + 1)
        return counts

    def _sums(self, columns):
        """(groups + 1, columns) sums over the entries of `columns`, lists of pairs (member, array of its entries)."""
        members = [member for member, _ in columns[0]]
        entries = [ops.concatenate([ops.reshape(array, (-1,)) for _, array in column]) for column in columns]
        numbers = np.concatenate([self._groups[member] for member in members])
        return ops.segment_sum(ops.stack(entries, axis=-1), numbers, num_segments=self.number + 1)

    def _spread(self, vector, members):
        """A number for each group as arrays that broadcast to the members' shapes."""
        taken = ops.take(vector, np.concatenate([self._groups[member] for member in members]), axis=0)
        ends = np.cumsum([len(self._groups[member]) for member in members])[:-1].tolist()
        parts = ops.split(taken, ends) if ends else [taken]
        return [ops.reshape(part, self._shapes[member]) for part, member in zip(parts, members, strict=True)]

    def _squares(self, arrays):
        """Pairs (member, Σ w² of each entry), for all members: those without an array are as they are."""
        found = []
        for member, variable in enumerate(self.variables):
            w = arrays.get(member)
            w = ops.stop_gradient(ops.cast(variable, "float32")) if w is None else w
            shape = self._shapes[member]
            within = tuple(axis for axis in range(len(w.shape)) if shape[axis] == 1 and w.shape[axis] != 1)
            found.append((member, ops.sum(ops.square(w), axis=within, keepdims=True)))
        return found

    def magnitudes(self, arrays):
        """What the penalty compares with its threshold.

        Args:
            arrays: Dict from members to tensors of their shapes; other members count as their variables are.

        Returns:
            Dict from the same members to tensors that broadcast to their shapes: ‖w_G‖₂ / √c_G, which for c_G = |G|
            is the root mean square of the group; zero for weights of no group.
        """
        norms = ops.sqrt(self._sums([self._squares(arrays)])[:, 0])
        found = ops.multiply(norms, np.divide(1.0, self._roots, out=np.zeros_like(self._roots), where=self._roots > 0))
        return dict(zip(arrays, self._spread(found, list(arrays)), strict=True))

    def prox(self, points):
        """`argmin_v step·ψ(v) + ½‖v − u‖²`.

        Args:
            points: Dict from members to pairs (u, step), `step` a scalar or constant within each group's part; of
                parts that differ the mean counts. Other members count as their variables are, and are not stepped.

        Returns:
            Dict from the same members to tensors of their shapes.
        """
        members = list(points)
        squares = self._squares({member: u for member, (u, _) in points.items()})
        counts = self._count(members)
        counts[counts == 0] = 1.0
        steps = []
        for member in range(len(self.variables)):
            share = (self._repeats[member] / counts[self._groups[member]]).reshape(self._shapes[member])
            step = self._first(member, points[member][1]) if member in points else 0.0
            steps.append((member, ops.multiply(share.astype("float32"), step)))
        sums = self._sums([squares, steps])
        norm = ops.sqrt(sums[:, 0])
        threshold = ops.multiply(self._penalty.strength, ops.multiply(self._roots, sums[:, 1]))
        shrunk = 1.0 - threshold / ops.where(norm > 0.0, norm, 1.0)
        shrunk = ops.where(ops.logical_or(norm > threshold, threshold == 0.0), shrunk, 0.0)
        factors = self._spread(shrunk, members)
        return {
            member: ops.where(factor > 0.0, u * factor, u - u)  # not 0: a NaN stays a NaN
            for (member, (u, _)), factor in zip(points.items(), factors, strict=True)
        }

    def _first(self, member, step):
        """Of a step that is constant within the groups, an entry of each."""
        if not len(getattr(step, "shape", ())):
            return step
        shape = self._shapes[member]
        return step[tuple(slice(0, 1) if size == 1 else slice(None) for size in shape)]


class SharedPenalty:
    """The penalty of one variable some of whose groups lie in others too: it is known for all of them together.

    Attributes:
        shared: The `SharedGroups`.
        member: The variable's place in them.
    """

    def __init__(self, shared, member):
        self.shared, self.member = shared, member


def magnitudes(penalties, arrays):
    """What each of `penalties` compares with λ·step in its array, tensors of the arrays' shapes; for weights of no
    group a number above any threshold."""
    shared, ours = _shared(penalties, arrays)
    found = shared.magnitudes(ours) if shared else {}
    found = [
        ops.add(found[penalty.member], shared.beyond(penalty.member)) if penalty.shared else penalty.magnitude(array)
        for penalty, array in zip(penalties, arrays, strict=True)
    ]
    return [ops.broadcast_to(magnitude, array.shape) for magnitude, array in zip(found, arrays, strict=True)]


def proximal_points(penalties, points):
    """`prox(u, step)` by each of `penalties`, for pairs (u, step)."""
    shared, ours = _shared(penalties, points)
    found = shared.prox(ours) if shared else {}
    return [
        found[penalty.member] if penalty.shared else penalty.prox(*point)
        for penalty, point in zip(penalties, points, strict=True)
    ]


def unit_sizes(penalties, variables):
    """Pairs (number, size): how many weights, or groups of so many weights, become zero each by itself."""
    shared, _ = _shared(penalties, variables)
    pairs = zip(penalties, variables, strict=True)
    numbers = [(own.units(variable), math.prod(variable.shape)) for own, variable in pairs if not own.shared]
    sizes = shared.sizes if shared else []
    return [(number, size / number) for number, size in numbers if number] + [(1, size) for size in sizes]


def most(penalties, variables):
    """The largest σ that the variables can have: the share of their weights that are in a group."""
    shared, _ = _shared(penalties, variables)
    sizes = [math.prod(variable.shape) for variable in variables]
    single = sum(size for size, penalty in zip(sizes, penalties, strict=True) if not penalty.shared)
    return (single + (shared.sizes.sum() if shared else 0)) / sum(sizes)


def _shared(penalties, values):
    """The `SharedGroups` among `penalties`, of which an optimizer has one at most, and {member: its value}."""
    shared = next((penalty.shared for penalty in penalties if penalty.shared), None)
    pairs = zip(penalties, values, strict=True)
    return shared, {penalty.member: value for penalty, value in pairs if penalty.shared}
