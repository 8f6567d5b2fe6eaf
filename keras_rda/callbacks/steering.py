"""How λ is steered: the σ that is wanted, a feedback, a quantile, and the last weights."""

import dataclasses
import math
from collections.abc import Mapping

import keras
import numpy as np

from keras_rda import kernels
from keras_rda.penalties import shared

# The feedback: log λ moves by a gain times the distance, in log-odds, of the σ one interval from now (if it goes on as
# it does), and by at most LARGEST_CHANGE. σ follows λ within some RESPONSE updates: after longer intervals all of the
# distance counts, after shorter ones a part, but at least LEAST_GAIN.
RESPONSE, LEAST_GAIN = 22, 0.3
LARGEST_CHANGE = 1.0
# It hardly brings weights back, so it aims at MARGIN times the nonzero weights wanted. When σ has risen, the smallest
# of them, which are missing to the target, become zero: at most LARGEST_TRIM times the nonzero weights wanted.
MARGIN = 1.1
LARGEST_TRIM = 0.5
# Updates from one measurement of σ to the next: INTERVAL, but more where there would be more than MOST_MEASUREMENTS,
# and fewer where there would not be ENOUGH_MEASUREMENTS while σ rises.
INTERVAL, ENOUGH_MEASUREMENTS, MOST_MEASUREMENTS = 8, 60, 500


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The σ that is wanted while training goes from 0 to 1: it rises between `begin` and `end`, at first fast."""

    begin: float
    end: float

    def sparsity(self, progress, initial, target):
        """σ at `progress`, from `initial` to `target`."""
        u = min(max((progress - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return initial + (target - initial) * (1 - (1 - u) ** 3)

    def interval(self, updates):
        """From one measurement to the next, in a training of so many updates."""
        interval = max(INTERVAL, math.ceil(updates * (1 - self.begin) / MOST_MEASUREMENTS))
        return max(1, min(interval, int(updates * (self.end - self.begin) / ENOUGH_MEASUREMENTS)))


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A moment at which σ is measured, of training that goes from 0 to 1.

    Attributes:
        progress: When.
        interval: Until the next.
        updates: In that interval.
    """

    progress: float
    interval: float
    updates: float

    @property
    def gain(self):
        """Of the feedback."""
        return max(LEAST_GAIN, 1 - math.exp(-self.updates / RESPONSE))


def log_odds(share):
    """log(σ / (1 − σ)), bounded where no or all weights are zero."""
    return math.log((share + 1e-3) / (1 - share + 1e-3))


def with_margin(target):
    """The σ that feedback aims at in place of `target`: with more nonzero weights, and below σ of few zeros too."""
    return max(1 - MARGIN * (1 - target), target / MARGIN)


def feedback(sigma, before, aim, gain):
    """What λ is to be multiplied by, for σ to get from `sigma` to `aim`; it was `before` at the last measurement (None:
    there was none)."""
    now = log_odds(sigma)
    heading = now if before is None else 2 * now - log_odds(before)
    return math.exp(min(max(gain * (log_odds(aim) - heading), -LARGEST_CHANGE), LARGEST_CHANGE))


def _together(scalars):
    """Scalar tensors as one array: a device is waited for once, not once each."""
    return keras.ops.convert_to_numpy(keras.ops.stack(scalars))


def trim_limit(magnitudes, target):
    """Up to which magnitude weights or groups become zero, for the zeros that are missing to the target.

    Args:
        magnitudes: Array of all of them, in any order.
        target: σ.

    Returns:
        The limit, and how many it zeroes relative to those it keeps; None where none are missing, or too many, or where
        equal ones would overshoot the target by more than is missing.
    """
    wanted = round(target * len(magnitudes))
    missing, kept = wanted - np.count_nonzero(magnitudes == 0), len(magnitudes) - wanted
    if not 0 < missing <= LARGEST_TRIM * kept:
        return None
    limit = np.partition(magnitudes, wanted - 1)[wanted - 1]
    if np.count_nonzero(magnitudes <= limit) - wanted >= missing:
        return None
    return limit, missing / kept


class Steered:
    """The kernels that share a λ and a target.

    Args:
        name: What messages call them.
        kernels: Their `Trained`, of the optimizer that the methods are given.
        target: σ that they are to end at.
        whole_model: Whether these are all kernels, so that λ is the penalty's own strength.
    """

    TOLERANCE = 0.005
    SMALLEST, LARGEST = 1e-12, 1e6  # λ: float32 and what a step can use
    # Quantiles of more weights are taken of this many, drawn once: it gives σ = 0.95 to 0.0004, and a GPU, whose step
    # takes a few milliseconds, does not wait for the host to sort millions.
    SAMPLE = 2**18

    def __init__(self, name, kernels, target, whole_model=False):
        self.name, self.kernels, self.target, self.whole_model = name, kernels, target, whole_model
        self.positions = [kernel.position for kernel in kernels]
        self.trimmed = 0.0  # what `trim` has returned after the last batch
        self._samples = {}

    @property
    def unit_sizes(self):
        """Pairs (number, size): how many weights, or groups of so many, become zero each by itself."""
        return shared.unit_sizes(*self._penalties_and_variables)

    @property
    def units(self):
        """How many these are."""
        return sum(number for number, _ in self.unit_sizes)

    @property
    def weights(self):
        """How many weights they have."""
        return sum(math.prod(kernel.variable.shape) for kernel in self.kernels)

    @property
    def nearest(self):
        """The σ nearest to the target that some, but not all, of them at zero give; where they are of different sizes,
        nearly any."""
        sizes = {size for _, size in self.unit_sizes}
        if len(sizes) > 1:
            return self.target
        number = round(self.target * self.weights / max(sizes))
        return min(max(number, 1), self.units - 1) * max(sizes) / self.weights

    @property
    def tolerance(self):
        """How far σ may end from the target: TOLERANCE, or as far as the largest group makes it jump."""
        return max(self.TOLERANCE, max(size for _, size in self.unit_sizes) / self.weights)

    @property
    def most(self):
        """The largest σ that they can have."""
        return shared.most(*self._penalties_and_variables)

    @property
    def _penalties_and_variables(self):
        return [kernel.penalty for kernel in self.kernels], [kernel.variable for kernel in self.kernels]

    def measure(self, weights_of):
        """σ of `weights_of(kernels)`."""
        weights = weights_of(self.kernels)
        zeros = _together([keras.ops.count_nonzero(keras.ops.equal(array, 0)) for array in weights])
        return zeros.sum(dtype="int64") / sum(math.prod(array.shape) for array in weights)

    def begin(self, optimizer, epoch):
        """Steer from the present σ and this epoch on."""
        sigma = self.measure(optimizer.sparse_weights)
        # At σ = 1, where RDA begins, the first step forgets it.
        initial = sigma if sigma < 1 else 0.0
        optimizer.steering_memory.remember(self.positions, initial_sparsity=initial, begun=epoch + 1)

    def begun(self, optimizer):
        """The epoch in which steering that has not ended began; None if there is none."""
        begun = round(optimizer.steering_memory.recall(self.positions[0], "begun"))
        return begun - 1 if begun else None

    def steer(self, optimizer, schedule, measurement):
        """Set λ for the time until the next measurement."""
        recall, progress = optimizer.steering_memory.recall, measurement.progress
        initial, ahead = recall(self.positions[0], "initial_sparsity"), progress + measurement.interval
        wanted, limit = schedule.sparsity(ahead, initial, self.target), math.inf
        if progress > schedule.begin and (strengths := self.critical_strengths(optimizer)) is not None:
            limit = float(np.quantile(strengths, wanted))
            if not optimizer.strength_in_state or progress >= schedule.end:
                optimizer.steering_memory.remember(self.positions, measured_density=1 - wanted)
                self.set_strength(optimizer, limit)
                return
        density, sigma = recall(self.positions[0], "measured_density"), self.measure(optimizer.sparse_weights)
        optimizer.steering_memory.remember(self.positions, measured_density=1 - sigma)
        if progress <= schedule.begin:
            return
        aim = with_margin(self.target)
        aim = schedule.sparsity(ahead, min(initial, aim), aim)
        factor = feedback(sigma, 1 - density if density else None, aim, measurement.gain)
        if progress >= schedule.end and sigma > self.target:
            limit = min(limit, self.return_limit(optimizer))
        self.set_strength(optimizer, min(max(self.strength(optimizer), self.SMALLEST) * factor, limit))
        if progress >= schedule.end:
            self.trim(optimizer)

    def critical_strengths(self, optimizer):
        """The λ from which on a weight is zero, an array of all weights or a sample; None where that depends on the
        steps to come."""
        points = [(kernel, optimizer.present_prox_point(kernel)) for kernel in self.kernels]
        if any(point is None for _, point in points):
            return None
        if not _together([keras.ops.any(step > 0) for _, (_, step) in points]).all():
            return None  # before its first step a kernel has no threshold
        magnitudes = optimizer.magnitudes(self.kernels, [u for _, (u, _) in points])
        return self._elements([m / step for m, (_, (_, step)) in zip(magnitudes, points, strict=True)])

    def return_limit(self, optimizer):
        """The λ at which the zeros beyond the target come back with the next step; infinite where nothing tells."""
        strengths = optimizer.return_strengths(self.kernels)
        if strengths is None:
            return math.inf
        zeros = [keras.ops.equal(kernel.value, 0) for kernel in self.kernels]
        strengths = [keras.ops.where(*pair, self.LARGEST) for pair in zip(zeros, strengths, strict=True)]
        return float(np.quantile(self._elements(strengths), self.target))

    def _elements(self, arrays, all_of_them=False):
        """Those of an array a kernel, one NumPy array of all of them or of a sample."""
        size, arrays = sum(math.prod(array.shape) for array in arrays), [keras.ops.ravel(array) for array in arrays]
        if size > self.SAMPLE and not all_of_them:
            share = self.SAMPLE / size
            arrays = [
                keras.ops.take(array, self._sample(position, array.shape[0], share))
                for position, array in zip(self.positions, arrays, strict=True)
            ]
        return keras.ops.convert_to_numpy(keras.ops.concatenate(arrays))

    def _sample(self, position, size, share):
        if position not in self._samples:
            places = np.random.default_rng(position).integers(size, size=max(1, round(share * size)), dtype="int32")
            self._samples[position] = places
        return self._samples[position]

    def strength(self, optimizer):
        """λ of these kernels now."""
        exponent = float(keras.ops.convert_to_numpy(optimizer.strength_exponents)[self.positions[0]])
        return float(optimizer.penalty.strength.numpy()) * math.exp(exponent)  # the exponent of a whole model is zero

    def set_strength(self, optimizer, strength):
        """Set λ of these kernels."""
        strength = min(max(strength, self.SMALLEST), self.LARGEST)
        if self.whole_model:
            optimizer.penalty.strength = strength
            return
        if float(optimizer.penalty.strength.numpy()) == 0:
            optimizer.penalty.strength = self.SMALLEST
        exponent = math.log(strength / float(optimizer.penalty.strength.numpy()))
        optimizer.steering_memory.set_exponents(self.positions, exponent)

    def trim(self, optimizer, exactly=False):
        """Zero the smallest weights or groups that are missing to the target; see `trim_limit`.

        Returns:
            How many these were relative to those that are kept; in a large network, unless `exactly`, by a sample.
        """
        magnitudes = optimizer.magnitudes(self.kernels, [kernel.value for kernel in self.kernels])
        found = trim_limit(self._elements(magnitudes, all_of_them=exactly), self.target)
        if found is None:
            return 0.0
        limit, share = found
        for kernel, magnitude in zip(self.kernels, magnitudes, strict=True):
            kernel.set(keras.ops.where(magnitude <= limit, 0.0, kernel.value))
        return share


def groups(penalized, target, per_layer):
    """The `Steered` of the kernels of a model, a list of `Trained`; see `TargetSparsity` for the other arguments."""
    if not (per_layer or isinstance(target, Mapping)):
        return [Steered("the model", penalized, target, whole_model=True)]
    if not isinstance(target, Mapping):
        return [Steered(kernel.variable.path, [kernel], target) for kernel in penalized]
    parts = [kernels.longest_part(kernel.variable.path, target) for kernel in penalized]
    if unused := [part for part in target if part not in parts]:
        raise ValueError(
            f"TargetSparsity: {unused} are whole names in the path of no penalised kernel, or longer ones fit as well; "
            f"the kernels are {[kernel.variable.path for kernel in penalized]}."
        )
    return [
        Steered(kernel.variable.path, [kernel], target[part])
        for kernel, part in zip(penalized, parts, strict=True)
        if part is not None
    ]
