"""What a target of `TargetSparsity` counts: the bytes of the LiteRT file."""

import math
import re
import warnings

import keras
import numpy as np

from keras_rda.callbacks.counted import LARGEST_TRIM, Channels, Zeros, numbers_true
from keras_rda.checks import is_number, is_positive_integer
from keras_rda.litert import sparse_format
from keras_rda.litert.sizes import file_bytes
from keras_rda.output import one_line

UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
CHANNEL_BYTES = 40  # at most: the biases and scales of a channel
ITEM_BYTES = {None: 4, "float16": 2, "dynamic": 1, "int8": 1}


def parse(target):
    """The number of bytes of a text such as `"256 kB"`, or the whole number itself; None of a share.

    Raises:
        ValueError: it tells none.
    """
    if is_number(target) and 0 < target < 1:
        return None
    if is_positive_integer(target):
        return int(target)
    words = target.strip().lower().replace(",", "") if isinstance(target, str) else ""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmg]i?b|b)", words)
    if match and (number := math.floor(float(match[1]) * UNITS[match[2]])):
        return number
    raise ValueError(
        'TargetSparsity(of="bytes"): target must be a number of bytes such as "256 kB" or 256_000, or the share of the '
        f"dense file's bytes that is to be gone, such as 0.9; received {target!r}."
    )


class FileBytes(Zeros):
    """The bytes of the file that `export` writes.

    Steering follows the σ at which the file would have the bytes that are asked for: it moves with the weights, and
    unlike the bytes it grows with every zero. How large a file would be is estimated from the channels that are left
    and the zeros of each kernel. Some files are written on the way, to see how far off that is; and after the last
    batch a few more, to choose the last zeros by.

    Args:
        kernels: `Trained` of the kernels that become zero.
        model: The model.
        classes: Its `compression.classes.Classes`.
        quantize: As for `export`.
        target: Bytes that the file may have, an int; or the share of the dense file's that is to be gone, a float.
    """

    name = "the file's bytes"
    # A file is written when the estimate has fallen to this share of the last one's bytes, or risen as much, and when
    # it first is near what is asked.
    FALLEN = 0.8
    # The last zeros are chosen for a file of at most what is asked, and at least so much of it, with so many trials.
    LEAST, TRIALS = 0.98, 8
    # Until then somewhat more is aimed at, as not all zeros can be taken back.
    AIM = 1.03
    # From one file to the next go at least so many measurements.
    PATIENCE = 8

    def __init__(self, kernels, model, classes, quantize, target):
        super().__init__(kernels)
        self._kernels, self._item = kernels, ITEM_BYTES[quantize]
        self._model, self._quantize, self._target = model, quantize, target
        self.bytes = self._write()
        self._share = 1 - self.asked / self.dense
        self._channels = [Channels(kernels, classes, model.variables, role) for role in ("reads", "computes")]
        self._sizes = [math.prod(kernel.variable.shape) for kernel in kernels]
        places = {id(kernel.variable): place for place, kernel in enumerate(kernels)}
        channels = {id(kernel.variable): kernel for kernel in classes.kernels}
        # Of each kernel that can get smaller: its place among ours (None: it is none), its channels if it has any, and
        # its size.
        self._parts = [(place, channels.get(key), self._sizes[place]) for key, place in places.items()]
        self._parts += [(None, kernel, kernel.size) for key, kernel in channels.items() if key not in places]
        self._sparse = [_SparseBytes(kernel.variable.shape, self._item) for kernel in kernels]
        # By how much the bytes jump where weights become zero in groups.
        self._step = 0.0
        if self.in_groups:
            of_each = sum(kernel.of_each(classes.number) for kernel in classes.kernels)
            self._step = CHANNEL_BYTES + self._item * max(np.max(of_each), *(size for _, size in self._units))
        self._besides = self.dense - self._item * sum(size for _, _, size in self._parts)
        self._off, self._written, self._waited = 0.0, self.dense, 0
        self.most = 1 - self._written_with([keras.ops.zeros_like(kernel.value) for kernel in kernels]) / self.dense

    @property
    def asked(self):
        """The bytes that the file may have."""
        return self._target if isinstance(self._target, int) else round((1 - self._target) * self.dense)

    @property
    def target(self):
        """The share of the dense file's bytes that is to be gone."""
        return self._share

    def nearest(self, target):
        """The target: bytes come one by one, or channels are of different costs."""
        return target

    def beyond(self, share, target):
        """Whether the file is too small before training has begun."""
        return share < 1 and self.bytes < self.LEAST * self.asked - self._step

    def gone(self, share):
        """The share of the dense file's bytes that a file which is written now lacks."""
        try:
            written = self._write()
        except Exception as error:
            self._warn(error)
            written = self._estimate(*self._present())
        return 1 - written / self.dense

    def met(self, gone, target):
        """Whether the file has at most the bytes that are asked for, and not many less."""
        return self.LEAST * self.asked - self._step <= round((1 - gone) * self.dense) <= self.asked

    def text(self, gone):
        """The bytes of a file of which that share is gone."""
        return f"{self.asked if gone == self.target else round((1 - gone) * self.dense):,}"

    def _aim(self, times):
        """The bytes that are asked for, times so much; but of no more bytes than are steered."""
        return self.asked + (times - 1) * min(self.asked, self._item * self.weights)

    def followed(self, target, arrays):
        """The σ at which the file would have the bytes that are asked for, with the smallest of `arrays()` at zero."""
        self._look()
        entries = _Entries(self._split(arrays := arrays()), self._sizes, self._values(arrays))
        return entries.share(self._limit(entries, self._aim(self.AIM)))

    def trim(self, magnitudes, target, exactly=False):
        """As `Zeros.trim`; `exactly`: by files that are written."""
        if not exactly:
            return super().trim(magnitudes, target)
        entries = _Entries(self._split(magnitudes, all_of_them=True), self._sizes, self._values(magnitudes))
        try:
            limit = self._fitting(entries, magnitudes)
        except Exception as error:
            self._warn(error)
            return super().trim(magnitudes, entries.share(self._limit(entries, self.asked)), exactly)
        if limit is None:
            return None
        now, then = entries.share(0.0), entries.share(limit)
        share = (then - now) / (1 - then) if then < 1 else math.inf
        return (limit, share) if share <= LARGEST_TRIM else None

    def _fitting(self, entries, magnitudes):
        """Up to which magnitude weights become zero, for the largest file that fits; None if it fits, or none does."""
        low, written, high = 0.0, self._write(), None
        weights = [keras.ops.convert_to_numpy(kernel.value).copy() for kernel in self._kernels]
        if written <= self.asked:
            return None
        self._off += written - self._estimate_at(entries, low)
        for _ in range(self.TRIALS):
            limit = self._limit(entries, self._aim((1 + self.LEAST) / 2))
            if not low < limit or (high is not None and not limit < high):
                limit = entries.between(low, high)
            if limit is None:
                break
            written = self._written_with(
                [keras.ops.where(m <= limit, 0.0, w) for m, w in zip(magnitudes, weights, strict=True)]
            )
            self._off += written - self._estimate_at(entries, limit)
            low, high = (low, limit) if written <= self.asked else (limit, high)
            if self.LEAST * self.asked <= written <= self.asked:
                break
        return high

    def _write(self):
        """The bytes of a file of the weights as they are."""
        written, self.dense = file_bytes(self._model, self._quantize)  # constants of the first weights may be fewer
        return written

    def _written_with(self, weights):
        """The bytes of a file of the kernels' `weights`; the kernels are left as they are."""
        before = [keras.ops.convert_to_numpy(kernel.value).copy() for kernel in self._kernels]
        try:
            for kernel, array in zip(self._kernels, weights, strict=True):
                kernel.set(array)
            return self._write()
        finally:
            for kernel, array in zip(self._kernels, before, strict=True):
                kernel.set(array)

    def _look(self):
        """Write a file of the weights as they are, if the estimate has changed by much since the last one."""
        self._waited += 1
        estimate = self._estimate(*self._present())
        near, ratio = self._aim(self.AIM**2), estimate / self._written
        changed = not self.FALLEN < ratio < 1 / self.FALLEN or estimate <= near < self._written
        if not changed or self._waited < self.PATIENCE:
            return
        self._waited = 0
        try:
            written = self._write()
        except Exception as error:  # such as weights that are not finite, which training goes on with as well
            self._warn(error)
            written = estimate
        self._off += written - estimate
        self._written = written

    def _warn(self, error):
        warnings.warn(f"TargetSparsity could not write a file to see its size: {one_line(error)}", stacklevel=2)

    def _present(self):
        """How many weights of each kernel are not zero, and which classes of channels something reads."""
        weights = [keras.ops.abs(kernel.value) for kernel in self._kernels]
        counts = numbers_true([keras.ops.not_equal(array, 0) for array in weights])
        return counts, self._values(weights) > 0

    def _values(self, arrays):
        """Array (classes,): up to which number the entries of an array a kernel have to become zero for a channel to
        go: because nobody reads it, or because it is a constant, which its readers' biases take over."""
        return np.minimum(*(channels.values(arrays) for channels in self._channels))

    def _estimate(self, counts, alive):
        """The bytes of a file in which so many weights of each kernel are not zero, and those classes are left."""
        alive, total = np.append(alive, True), self._besides + self._off
        for place, channels, size in self._parts:
            left = size if channels is None else channels.left(alive)
            dense = self._item * left
            total += dense if place is None else min(dense, self._sparse[place](min(counts[place], left)))
        return total

    def _estimate_at(self, entries, limit):
        return self._estimate(entries.counts(limit), entries.values > limit)

    def _limit(self, entries, wanted):
        """The smallest entry up to which all others have to be zero for a file of the `wanted` bytes."""
        steps = entries.steps
        low, high = -1, len(steps) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._estimate_at(entries, steps[middle]) <= wanted else (middle, high)
        return float(steps[high])

    def _split(self, arrays, all_of_them=False):
        """The entries of each array, of all or of a sample."""
        elements, sizes = self._elements(arrays, all_of_them), self._sizes
        if len(elements) < self.weights:
            sizes = [len(self._samples[position]) for position in self._positions]
        return np.split(elements, np.cumsum(sizes)[:-1])


class _Entries:
    """Sorted entries of arrays, which become zero the smallest first.

    Args:
        arrays: Of each kernel, all of its entries or a sample.
        sizes: How many entries each kernel has.
        values: Of each class of channels, the largest entry of what reads it.
    """

    def __init__(self, arrays, sizes, values):
        self.values, self._sizes = values, np.asarray(sizes)
        self._arrays = [np.sort(array) for array in arrays]
        self.steps = np.unique(np.concatenate(self._arrays))

    def counts(self, limit):
        """Of each kernel, how many entries are above `limit`."""
        above = [1 - np.searchsorted(array, limit, side="right") / len(array) for array in self._arrays]
        return self._sizes * above

    def share(self, limit):
        """The share of all entries that are not above `limit`."""
        return float(1 - self.counts(limit).sum() / self._sizes.sum())

    def between(self, low, high):
        """An entry half way between two (`high` None: the largest), or None."""
        inner = self.steps[self.steps > low]
        inner = inner if high is None else inner[inner < high]
        return float(inner[len(inner) // 2]) if len(inner) else None


class _SparseBytes:
    """The bytes of a kernel that is stored sparse, over the number of its weights that are not zero."""

    POINTS = 64

    def __init__(self, shape, item):
        size = math.prod(shape)
        self._counts = np.unique(np.geomspace(1, size + 1, self.POINTS).astype(int) - 1)
        besides = sparse_format.DENSIFY_BYTES + sparse_format.LEVEL_BYTES * len(shape)
        self._bytes = [besides + sparse_format.expected(shape, int(count), item) for count in self._counts]

    def __call__(self, count):
        return float(np.interp(count, self._counts, self._bytes))
