"""The layout of `GroupL1(groups="channels")`: which weights read the same channel, in all kernels of a model.

A layout is a dict from the path of each kernel, or from whole names in it, to nested lists of ints that broadcast to
its shape: the number of the group that each weight belongs to, −1 where the channel it reads cannot go; or to None,
where that is so of all of them.
"""

import math

import numpy as np

from keras_rda import kernels, layer_facts
from keras_rda.compression import classes, graph
from keras_rda.penalties.shared import SharedGroups


def layout_of(model):
    """The layout of a built Keras model, and its `compression.classes.Classes`; a `ValueError` says so if no channel of
    it can go."""
    found = classes.read(model)
    if found is None:
        raise ValueError(f'GroupL1(groups="channels") must read the model as a graph; {graph.without(model)}')
    if not found.number:
        raise ValueError(
            f'GroupL1(groups="channels"): no channel of {model.name!r} can go. They are: {"; ".join(found.reasons)}.'
        )
    reads = {}
    for kernel in found.kernels:
        if not np.array_equal(reads.setdefault(kernel.path, kernel.reads), kernel.reads):
            raise ValueError(
                f'GroupL1(groups="channels"): two kernels of {model.name!r} have the path {kernel.path!r}: give their '
                "layers, or the models around them, different names."
            )
    layout = {
        path: reads[path].tolist() if path in reads and (reads[path] >= 0).any() else None
        for path in layer_facts.axes_of(model)
    }
    return layout, found


def check(path, groups):
    """`groups` of the kernel at `path` as an array; a `ValueError` says what they should be."""
    if groups is None:
        return None
    array = np.array(groups)
    if array.dtype.kind != "i" or array.min(initial=0) < -1:
        raise ValueError(
            f'GroupL1(groups="channels"): layout[{path!r}] must be None, or ints from −1 on that broadcast to the '
            f"kernel's shape; received {groups!r}."
        )
    return array


def penalties(penalty, layout, variables, costs=None):
    """The own penalty of each of `variables`, or None; `layout` has arrays in place of lists.

    `costs` are numbers for the layout's groups, to weigh them by in place of their sizes.

    A channel that another kernel of the layout reads stays, so its group has no penalty.
    """
    paths = [kernels.variable_path(variable) for variable in variables]
    ours = [kernels.longest_part(path, layout) for path in paths]
    if unknown := [path for path, part in zip(paths, ours, strict=True) if part is None]:
        raise ValueError(
            f'GroupL1(groups="channels"): layout has no kernel {unknown}; it has {list(layout)}. Pass the model that '
            "is trained."
        )
    for part, variable in zip(ours, variables, strict=True):
        _check_shape(part, layout[part], tuple(variable.shape))
    outside = {path: own for path, own in layout.items() if own is not None and path not in ours}
    stay = np.unique(np.concatenate([[-1], *(own.ravel() for own in outside.values())]))
    arrays = [np.array(-1) if own is None else np.where(np.isin(own, stay), -1, own) for own in map(layout.get, ours)]
    numbers = np.unique(np.concatenate([[-1], *(array.ravel() for array in arrays)]))
    members = [place for place, array in enumerate(arrays) if (array >= 0).any() and math.prod(variables[place].shape)]
    if not members:
        return [None] * len(variables)
    shared = SharedGroups(
        penalty,
        [variables[place] for place in members],
        [np.searchsorted(numbers, arrays[place]) - 1 for place in members],
        [path for path, own in outside.items() if (own >= 0).any()],
        None if costs is None else costs[numbers[1:]],
    )
    own = dict(zip(members, shared.penalties(), strict=True))
    return [own.get(place) for place in range(len(variables))]


def _check_shape(path, groups, shape):
    if groups is not None:
        fits = groups.ndim == len(shape) and all(a in (1, b) for a, b in zip(groups.shape, shape, strict=True))
        if not fits:
            raise ValueError(
                f'GroupL1(groups="channels"): layout[{path!r}] has the shape {groups.shape}, which does not broadcast '
                f"to the kernel's, {shape}. Pass the model that is trained."
            )
