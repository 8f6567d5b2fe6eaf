"""How λ is steered: the σ that is wanted, a feedback, a quantile, and the last weights."""

import dataclasses
import math
from collections.abc import Mapping

import keras
import numpy as np

from keras_rda import kernels

# The feedback: log λ moves by GAIN times the distance in log-odds of σ, LOOK_AHEAD intervals from now if σ goes on as
# it does, and by at most LARGEST_CHANGE.
GAIN = 0.3
LOOK_AHEAD = 2
LARGEST_CHANGE = 0.5
# It cannot bring weights back, so it aims at MARGIN times the nonzero weights wanted, and what is missing to the target
# after the last batch becomes zero then: at most LARGEST_TRIM times the nonzero weights wanted.
MARGIN = 1.1
LARGEST_TRIM = 0.5
# Updates from one measurement of σ to the next: INTERVAL, but more where there would be more than MOST_MEASUREMENTS,
# and fewer where there would not be ENOUGH_MEASUREMENTS while σ rises.
INTERVAL, ENOUGH_MEASUREMENTS, MOST_MEASUREMENTS = 8, 60, 1500


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


def log_odds(share):
    """log(σ / (1 − σ)), bounded where no or all weights are zero."""
    return math.log((share + 1e-3) / (1 - share + 1e-3))


def with_margin(target):
    """The σ that feedback aims at in place of `target`: with more nonzero weights, and below σ of few zeros too."""
    return max(1 - MARGIN * (1 - target), target / MARGIN)


def feedback(sigma, before, aim):
    """What λ is to be multiplied by, for σ to get from `sigma` to `aim`; it was `before` at the last measurement (None:
    there was none)."""
    now = log_odds(sigma)
    heading = now if before is None else now + LOOK_AHEAD * (now - log_odds(before))
    return math.exp(min(max(GAIN * (log_odds(aim) - heading), -LARGEST_CHANGE), LARGEST_CHANGE))


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
    ordered = np.sort(magnitudes)
    wanted = round(target * len(ordered))
    missing, kept = wanted - np.count_nonzero(ordered == 0), len(ordered) - wanted
    if not 0 < missing <= LARGEST_TRIM * kept:
        return None
    limit = ordered[wanted - 1]
    if np.count_nonzero(ordered <= limit) - wanted >= missing:
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

    SMALLEST, LARGEST = 1e-12, 1e6  # λ: float32 and what a step can use
    # Quantiles of more weights are taken of this many, drawn once: it gives σ = 0.95 to 0.0004, and a GPU, whose step
    # takes a few milliseconds, does not wait for the host to sort millions.
    SAMPLE = 2**18

    def __init__(self, name, kernels, target, whole_model=False):
        self.name, self.kernels, self.target, self.whole_model = name, kernels, target, whole_model
        self.positions = [kernel.position for kernel in kernels]
        self.trimmed = 0.0  # weights or groups that `trim` has zeroed, relative to those it has kept
        self._samples = {}

    @property
    def units(self):
        """How many weights or groups become zero each by itself."""
        return sum(kernel.units for kernel in self.kernels)

    @property
    def nearest(self):
        """The σ nearest to the target that some, but not all, of them at zero give."""
        return min(max(round(self.target * self.units), 1), self.units - 1) / self.units

    def measure(self, weights_of):
        """σ of `weights_of(kernel)`."""
        weights = [weights_of(kernel) for kernel in self.kernels]
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

    def steer(self, optimizer, schedule, progress, interval):
        """Set λ at this progress in training, for as long as `interval`, a share of training."""
        recall = optimizer.steering_memory.recall
        initial = recall(self.positions[0], "initial_sparsity")
        # One interval ahead, which is how long the new λ has to serve.
        wanted, limit = schedule.sparsity(progress + interval, initial, self.target), math.inf
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
        aim = schedule.sparsity(progress + LOOK_AHEAD * interval, min(initial, aim), aim)
        factor = feedback(sigma, 1 - density if density else None, aim)
        self.set_strength(optimizer, min(max(self.strength(optimizer), self.SMALLEST) * factor, limit))

    def critical_strengths(self, optimizer):
        """The λ from which on a weight is zero, an array of all weights or a sample; None where that depends on the
        steps to come."""
        points = [(kernel, optimizer.present_prox_point(kernel)) for kernel in self.kernels]
        if any(point is None for _, point in points):
            return None
        if not _together([keras.ops.any(step > 0) for _, (_, step) in points]).all():
            return None  # before its first step a kernel has no threshold
        size, arrays = sum(math.prod(u.shape) for _, (u, _) in points), []
        for kernel, (u, step) in points:
            strengths = keras.ops.reshape(kernel.magnitude(u) / step, (-1,))
            if size > self.SAMPLE:
                places = self._sample(kernel.position, strengths.shape[0], self.SAMPLE / size)
                strengths = keras.ops.take(strengths, places)
            arrays.append(strengths)
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

    def trim(self):
        """Zero the smallest weights or groups that are missing to the target; see `trim_limit`."""
        sizes = [keras.ops.convert_to_numpy(kernel.magnitude(kernel.value)) for kernel in self.kernels]
        found = trim_limit(np.concatenate([size.ravel() for size in sizes]), self.target)
        if found is None:
            return
        limit, self.trimmed = found
        for kernel, size in zip(self.kernels, sizes, strict=True):
            kernel.set(keras.ops.where(size <= limit, 0.0, kernel.value))


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
