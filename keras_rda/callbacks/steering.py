"""How λ is steered: the σ that is wanted, a feedback, a quantile, and the last weights."""

import dataclasses
import functools
import math
from collections.abc import Mapping

import keras

from keras_rda import kernels
from keras_rda.callbacks.counted import Zeros, together

# The feedback: log λ moves by a gain times the distance, in log-odds, of the σ one interval from now (if it goes on as
# it does), and by at most LARGEST_CHANGE. σ follows λ within some RESPONSE updates: after longer intervals all of the
# distance counts, after shorter ones a part, but at least LEAST_GAIN.
RESPONSE, LEAST_GAIN = 22, 0.3
LARGEST_CHANGE = 1.0
# It hardly brings weights back, so it aims at MARGIN times the nonzero weights wanted; the smallest become zero when σ
# has risen.
MARGIN = 1.1
# Groups may be of nearly one magnitude, and then go all at once. So λ is at most what makes this share of those that
# should be left go within an interval, without gradients that keep them; and falls to that by a factor of up to e⁴.
AT_ONCE, LARGEST_FALL = 0.1, 4.0
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


class Steered:
    """The kernels that share a λ and a target.

    Args:
        name: What messages call them.
        kernels: Their `Trained`, of the optimizer that the methods are given.
        target: The share that is to be gone at the end, called σ here whatever is counted.
        counted: What is counted, as `counted.Zeros`.
        whole_model: Whether these are all kernels, so that λ is the penalty's own strength.
    """

    SMALLEST, LARGEST = 1e-12, 1e6  # λ: float32 and what a step can use

    def __init__(self, name, kernels, target, counted, whole_model=False):
        self.name, self.kernels, self.target, self.whole_model = name, kernels, target, whole_model
        self.counted = counted
        self.positions = [kernel.position for kernel in kernels]
        self.trimmed = 0.0  # what `trim` has returned after the last batch

    def measure(self, weights_of):
        """σ of `weights_of(kernels)`."""
        return self.counted.share(weights_of(self.kernels))

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
        if progress <= schedule.begin:
            self._remember(optimizer, self.measure(optimizer.sparse_weights))
            return
        magnitudes = functools.cache(lambda: self._magnitudes(optimizer))  # no weight changes before the trim
        strengths, limit = self.critical_strengths(optimizer), math.inf
        target = self.counted.followed(self.target, lambda: strengths or magnitudes())
        initial, ahead = recall(self.positions[0], "initial_sparsity"), progress + measurement.interval
        if strengths is not None:
            wanted = schedule.sparsity(ahead, initial, target)
            limit = self.counted.limit(strengths, wanted)
            if not optimizer.strength_in_state or progress >= schedule.end:
                self._remember(optimizer, wanted)
                self.set_strength(optimizer, limit)
                return
        density, sigma = recall(self.positions[0], "measured_density"), self.measure(optimizer.sparse_weights)
        self._remember(optimizer, sigma)
        aim = with_margin(target)
        aim = schedule.sparsity(ahead, min(initial, aim), aim)
        limit = min(limit, self._limit_of_groups(optimizer, magnitudes, aim, measurement.updates))
        factor = feedback(sigma, 1 - density if density else None, aim, measurement.gain)
        if progress >= schedule.end and sigma > target:
            limit = min(limit, self.return_limit(optimizer, target))
        self.set_strength(optimizer, min(max(self.strength(optimizer), self.SMALLEST) * factor, limit))
        if progress >= schedule.end:
            self._trim(magnitudes(), target)

    def _remember(self, optimizer, sigma):
        optimizer.steering_memory.remember(self.positions, measured_density=1 - sigma)

    def _magnitudes(self, optimizer):
        return optimizer.magnitudes(self.kernels, [kernel.value for kernel in self.kernels])

    def critical_strengths(self, optimizer):
        """The λ from which on each weight is zero, an array a kernel; None where that depends on the steps to come."""
        points = [(kernel, optimizer.present_prox_point(kernel)) for kernel in self.kernels]
        if any(point is None for _, point in points):
            return None
        if not together([keras.ops.any(step > 0) for _, (_, step) in points]).all():
            return None  # before its first step a kernel has no threshold
        magnitudes = optimizer.magnitudes(self.kernels, [u for _, (u, _) in points])
        return [
            keras.ops.minimum(magnitude / step, self.LARGEST)
            for magnitude, (_, (_, step)) in zip(magnitudes, points, strict=True)
        ]

    def _limit_of_groups(self, optimizer, magnitudes, aim, updates):
        """The λ from which on too many groups may go at once; infinite where weights go each by itself."""
        if not self.counted.in_groups or (step := optimizer.prox_step()) is None:
            return math.inf
        level = self.counted.limit(magnitudes(), aim + AT_ONCE * (1 - aim))
        return max(level / max(step * updates, 1e-12), self.strength(optimizer) * math.exp(-LARGEST_FALL))

    def return_limit(self, optimizer, target):
        """The λ at which zeros beyond the target share come back with the next step; infinite where nothing tells."""
        strengths = optimizer.return_strengths(self.kernels)
        if strengths is None:
            return math.inf
        zeros = [keras.ops.equal(kernel.value, 0) for kernel in self.kernels]
        strengths = [keras.ops.where(*pair, self.LARGEST) for pair in zip(zeros, strengths, strict=True)]
        return self.counted.limit(strengths, target)

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

    def trim(self, optimizer):
        """Zero the smallest weights or groups that are missing to the target at the end.

        Returns:
            How many these were relative to those that are kept.
        """
        return self._trim(self._magnitudes(optimizer), self.target, exactly=True)

    def _trim(self, magnitudes, target, exactly=False):
        found = self.counted.trim(magnitudes, target, exactly)
        if found is None:
            return 0.0
        limit, share = found
        for kernel, magnitude in zip(self.kernels, magnitudes, strict=True):
            kernel.set(keras.ops.where(magnitude <= limit, 0.0, kernel.value))
        return share


def groups(penalized, target, per_layer, counted=None):
    """The `Steered` of the kernels of a model, a list of `Trained`; see `TargetSparsity` for `target` and `per_layer`.

    `counted` is what is counted of the whole model, by default zeros.
    """
    if not (per_layer or isinstance(target, Mapping)):
        return [Steered("the model", penalized, target, counted or Zeros(penalized), whole_model=True)]
    if not isinstance(target, Mapping):
        return [Steered(kernel.variable.path, [kernel], target, Zeros([kernel])) for kernel in penalized]
    parts = [kernels.longest_part(kernel.variable.path, target) for kernel in penalized]
    if unused := [part for part in target if part not in parts]:
        raise ValueError(
            f"TargetSparsity: {unused} are whole names in the path of no penalised kernel, or longer ones fit as well; "
            f"the kernels are {[kernel.variable.path for kernel in penalized]}."
        )
    return [
        Steered(kernel.variable.path, [kernel], target[part], Zeros([kernel]))
        for kernel, part in zip(penalized, parts, strict=True)
        if part is not None
    ]
