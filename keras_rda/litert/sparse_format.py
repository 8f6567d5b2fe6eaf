"""LiteRT's format for tensors with zeros: the smallest form of an array, its levels, and how many bytes they take.

A tensor is stored dimension by dimension, in any order. A level is either dense, and then has an entry for each index,
or compressed, and then lists the indices below which something is not zero, and where each list ends. The runtime reads
both kinds in any order and combination.

(A dimension could be split so that its indices fit one byte. But the runtime reads `block_map` only with dense inner
blocks, and divides by zero on a compressed one.)
"""

import itertools
import math

import numpy as np

from keras_rda.litert.graph import schema

# Upper bounds, in bytes, of FlatBuffers' tables and alignment: of a level, and what a compressed one takes beside that.
LEVEL_BYTES = 24
COMPRESSED_BYTES = 72
LARGEST = 2**31  # bytes of a dense constant: more than any FlatBuffer holds
# Likewise: a sparse tensor with its DENSIFY, without its levels.
DENSIFY_BYTES = 200


def smallest(array):
    """The cheapest form of `array`: bytes of values and compressed levels, order of dimensions, which are compressed.

    At least one is, unless the array has a single entry.
    """
    wide = [axis for axis, size in enumerate(array.shape) if size > 1]
    units = [axis for axis, size in enumerate(array.shape) if size == 1]
    if not wide:
        return array.nbytes, tuple(units), tuple(False for _ in units)
    size, order, compressed = _cheapest(array.shape, wide, array.itemsize, _prefixes(array, wide))
    return size, (*units, *order), (*(False for _ in units), *compressed)


def expected(shape, nonzero, itemsize):
    """The bytes of `smallest` for an array in which `nonzero` entries are anywhere."""
    wide, total = [axis for axis, size in enumerate(shape) if size > 1], math.prod(shape)
    if not wide:
        return total * itemsize
    counts = {}
    for length in range(1, len(wide) + 1):
        for axes in itertools.combinations(wide, length):
            number = math.prod(shape[axis] for axis in axes)
            counts[frozenset(axes)] = round(number * (1 - (1 - nonzero / total) ** (total / number)))
    return _cheapest(shape, wide, itemsize, counts)[0]


def _cheapest(shape, wide, itemsize, counts):
    """Bytes, order of the axes `wide`, and which of them are compressed, where `counts` is as of `_prefixes`."""
    best = math.inf, None, None
    for order in itertools.permutations(wide):
        for compressed in itertools.product((False, True), repeat=len(order)):
            size, entries = sum(compressed) * COMPRESSED_BYTES, 1
            for level, axis in enumerate(order):
                if compressed[level]:
                    below = counts[frozenset(order[: level + 1])]
                    size += (entries + 1) * _width(below) + below * _width(shape[axis] - 1)
                    entries = below
                else:
                    entries *= shape[axis]
            size += entries * itemsize
            if any(compressed) and size < best[0]:
                best = size, order, compressed
    return best


def _prefixes(array, axes):
    """For each set of `axes`, the number of their indices below which `array` is not zero everywhere."""
    masks = {frozenset(axes): (array != 0).reshape([array.shape[axis] for axis in axes])}
    for length in range(len(axes) - 1, 0, -1):
        for subset in itertools.combinations(axes, length):
            superset = min((s for s in masks if len(s) == length + 1 and s > set(subset)), key=lambda s: masks[s].size)
            (extra,) = superset - set(subset)
            masks[frozenset(subset)] = masks[superset].any(axis=sorted(superset).index(extra))
    return {subset: int(np.count_nonzero(mask)) for subset, mask in masks.items()}


def compress(array, order, compressed):
    """The values of `array` that are stored, in one dimension, and where they belong: `SparsityParametersT`."""
    code = schema()
    array = np.ascontiguousarray(array.transpose(order))
    present = array != 0
    entries = np.zeros(1, np.int64)  # flat indices, over the levels so far, of what is stored
    levels = []
    for level, size in enumerate(array.shape):
        if not compressed[level]:
            entries = (entries[:, None] * size + np.arange(size)).ravel()
            levels.append(code.DimensionMetadataT(format=code.DimensionType.DENSE, denseSize=size))
            continue
        below = present.reshape(math.prod(array.shape[:level]), size, -1).any(-1)[entries]
        parents, indices = np.nonzero(below)
        segments = np.concatenate([[0], np.cumsum(np.count_nonzero(below, axis=1))])
        entries = entries[parents] * size + indices
        levels.append(code.DimensionMetadataT(code.DimensionType.SPARSE_CSR, 0, *_vector(segments), *_vector(indices)))
    sparsity = code.SparsityParametersT(np.asarray(order, np.int32), None, levels)
    # An empty buffer means elsewhere that a tensor is computed: an all-zero one keeps a value, which is not read.
    return array.ravel()[entries] if len(entries) else array.ravel()[:1], sparsity


def expand(values, sparsity, shape):
    """The array of a shape of which `values` are stored as `sparsity` (`SparsityParametersT`) says, blocks included."""
    code = schema()
    order, blocked = list(sparsity.traversalOrder), [] if sparsity.blockMap is None else list(sparsity.blockMap)
    places, sizes = np.zeros((0, 1), np.int64), []  # a row for each level so far, a column for each entry
    for level in sparsity.dimMetadata:
        count = places.shape[1]
        if level.format == code.DimensionType.DENSE:
            parents, own = np.divmod(np.arange(count * level.denseSize), level.denseSize)
        else:
            parents = np.repeat(np.arange(count), np.diff(level.arraySegments.values.astype(np.int64)))
            own = level.arrayIndices.values.astype(np.int64)
        places = np.vstack([places[:, parents], own])
        sizes.append(level.denseSize)
    axes = [places[order.index(axis)] for axis in range(len(shape))]
    for block, axis in enumerate(blocked):
        inner = order.index(len(shape) + block)
        axes[axis] = axes[axis] * sizes[inner] + places[inner]
    array = np.zeros(shape, values.dtype)
    array[tuple(axes)] = values[: places.shape[1]]  # one without entries has a value all the same
    return array


def _vector(values):
    """Union type and vector of the smallest unsigned integers that hold `values`."""
    code = schema()
    kinds = {1: ("Uint8Vector", np.uint8), 2: ("Uint16Vector", np.uint16), 4: ("Int32Vector", np.int32)}
    name, dtype = kinds[_width(int(values.max(initial=0)))]
    return getattr(code.SparseIndexVector, name), getattr(code, f"{name}T")(values.astype(dtype))


def _width(largest):
    return 1 if largest < 2**8 else 2 if largest < 2**16 else 4


def describe(sparsity):
    """Bytes of all segments and indices, and a description by the last level's, such as `"sparse, 1-byte indices"`."""
    vectors = [
        vector.values
        for level in sparsity.dimMetadata
        for vector in (level.arraySegments, level.arrayIndices)
        if vector is not None and vector.values is not None
    ]
    size, width = sum(vector.nbytes for vector in vectors), vectors[-1].itemsize if vectors else 0
    return size, f"sparse, {width}-byte indices"


def floor_bytes(size, nonzero, itemsize):
    """The fewest bytes in which `nonzero` of `size` entries, anywhere, can be stored: n·H(σ)/8 bytes for positions."""
    shares = (nonzero / size, 1 - nonzero / size)
    entropy = -sum(share * math.log2(share) for share in shares if share > 0)
    return nonzero * itemsize + math.ceil(size * entropy / 8)
