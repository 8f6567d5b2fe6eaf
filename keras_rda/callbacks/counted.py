"""What a target of `TargetSparsity` counts: zeros, or the multiply-adds that go with whole channels.

The bytes of a file are a third, `file_size`.

All are asked the same: which share of it is gone with the zeros of the kernels as they are, and up to which number the
entries of arrays, such as magnitudes, would have to become zero for a share to go.
"""

import math

import keras
import numpy as np

from keras_rda.penalties import shared

TOLERANCE = 0.005
# When the share has risen, the smallest weights, which are missing to the target, become zero: at most LARGEST_TRIM
# times those that the target keeps.
LARGEST_TRIM = 0.5


def together(scalars):
    """Scalar tensors as one array: a device is waited for once, not once each."""
    return keras.ops.convert_to_numpy(keras.ops.stack(scalars))


def numbers_true(arrays):
    """How many entries of each boolean tensor are true, one array. (`keras.ops.count_nonzero` warns on torch.)"""
    return together([keras.ops.sum(keras.ops.cast(array, "int32")) for array in arrays])


class Counted:
    """What all of them are asked in one way."""

    def followed(self, target, arrays):
        """The share, as `share` counts it, that steering follows; the smallest entries of `arrays()` become zero."""
        return target

    def beyond(self, share, target):
        """Whether a share that `share` has measured is beyond the target before training has begun."""
        return target + self.tolerance < share < 1  # at 1, where RDA begins, the first step forgets it

    def gone(self, share):
        """The share of what a target is of, where `share` has measured this one."""
        return share

    def met(self, gone, target):
        """Whether training has met the target with what is `gone`."""
        return abs(gone - target) <= self.tolerance

    def text(self, gone):
        """What is gone in messages, behind `name`."""
        return str(round(float(gone), 4))


class Zeros(Counted):
    """σ of kernels.

    Args:
        kernels: Their `Trained`.
    """

    name = "σ"
    # Quantiles of more weights are taken of this many, drawn once: it gives σ = 0.95 to 0.0004, and a GPU, whose step
    # takes a few milliseconds, does not wait for the host to sort millions.
    SAMPLE = 2**18

    def __init__(self, kernels):
        penalties, variables = [kernel.penalty for kernel in kernels], [kernel.variable for kernel in kernels]
        self.weights = sum(math.prod(variable.shape) for variable in variables)
        # Pairs (number, size): how many weights, or groups of so many, become zero each by itself.
        self._units = shared.unit_sizes(penalties, variables)
        self.most = shared.most(penalties, variables)
        self._positions = [kernel.position for kernel in kernels]
        self._samples = {}

    @property
    def in_groups(self):
        """Whether weights become zero together."""
        return max(size for _, size in self._units) > 1

    @property
    def units(self):
        """How many weights or groups become zero each by itself."""
        return sum(number for number, _ in self._units)

    @property
    def tolerance(self):
        """How far from the target σ may end: TOLERANCE, or as far as the largest group makes it jump."""
        return max(TOLERANCE, max(size for _, size in self._units) / self.weights)

    def nearest(self, target):
        """The σ nearest to the target that some, but not all, of them at zero give; where they are of different sizes,
        nearly any."""
        sizes = {size for _, size in self._units}
        if len(sizes) > 1:
            return target
        number = round(target * self.weights / max(sizes))
        return min(max(number, 1), self.units - 1) * max(sizes) / self.weights

    def share(self, weights):
        """σ of `weights`, an array a kernel."""
        zeros = numbers_true([keras.ops.equal(array, 0) for array in weights])
        return zeros.sum(dtype="int64") / self.weights

    def limit(self, arrays, share):
        """The quantile of the entries of `arrays`, one a kernel."""
        return float(np.quantile(self._elements(arrays), share))

    def trim(self, magnitudes, target, exactly=False):
        """Up to which magnitude weights or groups become zero, for the zeros that are missing to the target.

        Args:
            magnitudes: An array a kernel.
            target: σ.
            exactly: Whether of all of them, and not of a sample where there are many.

        Returns:
            The limit, and how many it zeroes relative to those it keeps; None where none are missing, or too many, or
            where equal ones would overshoot the target by more than is missing.
        """
        return trim_limit(self._elements(magnitudes, all_of_them=exactly), target)

    def _elements(self, arrays, all_of_them=False):
        """Those of an array a kernel, one NumPy array of all of them or of a sample."""
        arrays = [keras.ops.ravel(array) for array in arrays]
        if self.weights > self.SAMPLE and not all_of_them:
            share = self.SAMPLE / self.weights
            arrays = [
                keras.ops.take(array, self._sample(position, array.shape[0], share))
                for position, array in zip(self._positions, arrays, strict=True)
            ]
        return keras.ops.convert_to_numpy(keras.ops.concatenate(arrays))

    def _sample(self, position, size, share):
        if position not in self._samples:
            places = np.random.default_rng(position).integers(size, size=max(1, round(share * size)), dtype="int32")
            self._samples[position] = places
        return self._samples[position]


def trim_limit(magnitudes, target):
    """`Zeros.trim` of one array of all magnitudes, in any order."""
    wanted = round(target * len(magnitudes))
    missing, kept = wanted - np.count_nonzero(magnitudes == 0), len(magnitudes) - wanted
    if not 0 < missing <= LARGEST_TRIM * kept:
        return None
    limit = np.partition(magnitudes, wanted - 1)[wanted - 1]
    if np.count_nonzero(magnitudes <= limit) - wanted >= missing:
        return None
    return limit, missing / kept


class Channels:
    """The channels that go with the zeros of kernels.

    Args:
        kernels: `Trained` of the kernels that become zero.
        classes: The model's `compression.classes.Classes`.
        variables: The model's variables.
        role: Which kernels a channel goes with: those that are its `"reads"`, or its `"computes"`.
    """

    def __init__(self, kernels, classes, variables, role="reads"):
        self._number, ours = classes.number, [id(kernel.variable) for kernel in kernels]
        found = {id(kernel.variable): getattr(kernel, role) for kernel in classes.kernels}
        found = {key: numbers for key, numbers in found.items() if (numbers >= 0).any()}
        self._members = [(place, found[key]) for place, key in enumerate(ours) if key in found]
        self._others = [
            (variable, found[id(variable)]) for variable in variables if id(variable) in found.keys() - set(ours)
        ]

    def values(self, arrays):
        """Array (classes,): the largest entry of what reads or computes a class, of an array a kernel; infinite where a
        kernel that is not steered does and is not zero there, or none does."""
        if not self._members and not self._others:
            return np.full(self._number, np.inf, "float32")
        parts = [(keras.ops.cast(arrays[place], "float32"), reads) for place, reads in self._members]
        parts += [
            (keras.ops.where(keras.ops.equal(variable, 0), 0.0, np.inf), numbers) for variable, numbers in self._others
        ]
        entries = [
            keras.ops.ravel(keras.ops.max(array, axis=[axis for axis, size in enumerate(numbers.shape) if size == 1]))
            for array, numbers in parts
        ]
        numbers = np.concatenate([numbers.ravel() for _, numbers in parts])
        numbers = np.where(numbers < 0, self._number, numbers).astype("int32")
        values = keras.ops.segment_max(keras.ops.concatenate(entries), numbers, num_segments=self._number + 1)
        return np.where(np.isin(np.arange(self._number), numbers), keras.ops.convert_to_numpy(values)[:-1], np.inf)


class MultiplyAdds(Counted):
    """The share of a model's multiply-adds that is gone after `compress`: a channel goes when all that reads it is
    zero.

    Args:
        kernels: `Trained` of the kernels that become zero.
        classes: The model's `compression.classes.Classes`.
        variables: The model's variables.
    """

    name = "the share of multiply-adds that is gone"
    in_groups = True

    def __init__(self, kernels, classes, variables):
        self._classes = classes
        self._values = Channels(kernels, classes, variables).values
        self._whole = classes.multiply_adds(np.ones(classes.number, bool))
        stays = self._values([np.zeros(kernel.variable.shape, "float32") for kernel in kernels]) > 0
        self.most = self._gone(stays)
        self.units = int((~stays).sum())
        self.tolerance = max(TOLERANCE, classes.multiply_adds_of_each().max() / self._whole)

    def nearest(self, target):
        """Channels are of different costs, so that nearly any share can be met."""
        return target

    def share(self, weights):
        """The share with `weights`, an array a kernel."""
        return self._gone(self._values([keras.ops.abs(array) for array in weights]) > 0)

    def limit(self, arrays, share):
        """Up to which number channels have to go; a channel goes with the largest entry of what reads it."""
        return self._limit(self._values(arrays), share)

    def _limit(self, values, share):
        steps = np.unique(values)
        low, high = -1, len(steps) - 1  # with nothing gone; with all
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._gone(values > steps[middle]) >= share else (middle, high)
        before = self._gone(values > steps[low]) if low >= 0 else 0.0
        nearer = low if share - before < self._gone(values > steps[high]) - share else high
        if nearer < 0:
            return 0.0
        # Half way to the next, where rounding decides nothing.
        above = steps[nearer + 1] if nearer + 1 < len(steps) else steps[nearer]
        return float(steps[nearer] + min(above - steps[nearer], steps[nearer]) / 2)

    def trim(self, magnitudes, target, exactly=False):
        """As `Zeros.trim`, of channels; always of all of them."""
        values = self._values(magnitudes)
        limit = self._limit(values, target)
        now, then = self._gone(values > 0), self._gone(values > limit)
        if not (now < then and then - now <= LARGEST_TRIM * (1 - target)):
            return None
        return limit, (then - now) / (1 - then)

    def _gone(self, alive):
        return 1 - self._classes.multiply_adds(alive) / self._whole
