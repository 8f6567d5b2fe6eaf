"""What the recipe is compared with: three ways to sparse networks by masks, each as in its paper.

The masks are variables of `MaskedSGD`, as its momentum is, so they hold within compiled loops of many steps too, on
TensorFlow and JAX. A callback for each method changes them; between its calls any number of steps may pass.
"""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from keras_rda.kernels import is_kernel

END = 0.75  # share of training after which masks stay, as of the recipe
INTERVAL = 100  # batches from one change of masks to the next: RigL's, and of Zhu & Gupta's 100 to 1000 the least …
FEWEST_CHANGES = 25  # … but fewer where training is so short that there would be fewer changes than these


@dataclasses.dataclass(frozen=True)
class Masked:
    """A kernel, with its `position` among the trained variables and its slots; `gradient` is None unless kept."""

    position: int
    kernel: keras.Variable
    momentum: keras.Variable
    mask: keras.Variable
    gradient: keras.Variable | None


class MaskedSGD(keras.optimizers.SGD):
    """SGD with momentum that keeps weights and momentum of kernels at zero wherever their masks, at first ones, are.

    Args:
        *args, **kwargs: Those of `keras.optimizers.SGD`; `momentum` must be above 0.
        keeps_gradients: Whether each kernel's last gradient is kept, which has the derivatives by its zeros too.
    """

    def __init__(self, *args, keeps_gradients=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.keeps_gradients = keeps_gradients

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        add = self.add_variable_from_reference
        self.masked = [
            Masked(
                position,
                variable,
                momentum,
                add(variable, "mask", initializer="ones"),
                add(variable, "gradient") if self.keeps_gradients else None,
            )
            for position, (variable, momentum) in enumerate(zip(variables, self.momentums, strict=True))
            if is_kernel(variable)
        ]

    def apply(self, grads, trainable_variables=None):
        super().apply(grads, trainable_variables)
        self.apply_masks()
        if self.keeps_gradients:
            for own in self.masked:
                own.gradient.assign(grads[own.position])

    def apply_masks(self):
        """Set to zero what the masks do not keep."""
        for own in self.masked:
            own.kernel.assign(own.kernel * own.mask)
            own.momentum.assign(own.momentum * own.mask)

    def prune(self, sparsity):
        """Keep the largest magnitudes of all kernels together, so that a share `sparsity` of the weights is zero."""
        magnitudes = ops.concatenate([ops.reshape(ops.abs(own.kernel), (-1,)) for own in self.masked])
        kept = largest(magnitudes, len(magnitudes) - round(sparsity * len(magnitudes)))
        ends = np.cumsum([math.prod(own.kernel.shape) for own in self.masked])
        for own, part in zip(self.masked, ops.split(kept, ends[:-1].tolist()), strict=True):
            own.mask.assign(ops.reshape(part, own.kernel.shape))
        self.apply_masks()

    def release(self):
        """Let all weights move again, from no momentum."""
        for own in self.masked:
            own.mask.assign(ops.ones(own.mask.shape))
        for momentum in self.momentums:
            momentum.assign(ops.zeros(momentum.shape))


def largest(scores, number):
    """A mask in the shape of `scores` that is one at so many of the largest, and zero elsewhere."""
    # By ranks: JAX would compile `top_k` anew for each number, and a limit would keep too many of equal scores.
    ranks = ops.argsort(ops.argsort(-ops.reshape(scores, (-1,))))
    return ops.reshape(ops.cast(ranks < number, scores.dtype), scores.shape)


class Opponent(keras.callbacks.Callback):
    """A method to end training with a share `sparsity` of zeros in all kernels, by the masks of `MaskedSGD`.

    `settings`, a dict for the results, is there once training has begun. Subclasses go to the optimizer by
    `self.model` each time: on JAX that is what brings the state of a running epoch here.

    Raises:
        ValueError: `sparsity` is not above 0 and below 1; when training begins, it is too short for the method.
    """

    def __init__(self, sparsity):
        super().__init__()
        if not 0 < sparsity < 1:
            raise ValueError(
                f"{type(self).__name__}: sparsity is the wanted share of zeros, above 0 and below 1; received "
                f"{sparsity!r}. For 95 % write 0.95."
            )
        self.sparsity = sparsity

    def on_train_begin(self, logs=None):
        self.model.optimizer.build(self.model.trainable_variables)


class StepwiseOpponent(Opponent):
    """A method that changes the masks every `interval` batches, the last time at batch `end`."""

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        changing = int(END * self.params["steps"] * self.params["epochs"])
        self.interval = min(INTERVAL, changing // FEWEST_CHANGES)
        if not self.interval:
            raise ValueError(
                f"{type(self).__name__} changes masks {FEWEST_CHANGES} times or more in the first {END:.0%} of "
                f"training, which takes {math.ceil(FEWEST_CHANGES / END)} batches; received {self.params['epochs']} "
                f"epochs of {self.params['steps']}. Train for more epochs, or with smaller batches."
            )
        self.end = changing // self.interval * self.interval
        self.settings = {"interval": self.interval, "end": self.end}

    def on_epoch_begin(self, epoch, logs=None):
        self.first = self.position = epoch * self.params["steps"]

    def on_train_batch_end(self, batch, logs=None):
        before, self.position = self.position, self.first + batch + 1
        due = min(self.position // self.interval * self.interval, self.end)
        if before < due:  # of several that have passed, the last
            self.change_masks(due)


class GradualPruning(StepwiseOpponent):
    """Gradual magnitude pruning (Zhu & Gupta 2017, “To prune, or not to prune”), with one threshold for all kernels.

    Equation (1) with s_i = 0 and t_0 = 0: σ grows as σ_f·(1 − (1 − t/(n·Δt))³). Pruned weights stay zero.
    """

    def wanted(self, batch):
        """σ that the equation gives after so many batches."""
        return self.sparsity * (1 - (1 - batch / self.end) ** 3)

    def change_masks(self, batch):
        self.model.optimizer.prune(self.wanted(batch))


class RigL(StepwiseOpponent):
    """RigL (Evci et al. 2020, “Rigging the lottery”, Algorithm 1), for `MaskedSGD(keeps_gradients=True)`.

    Each kernel starts from random places and keeps their number: every ΔT batches, a share α/2·(1 + cos(π·t/T_end)) of
    its weights, the smallest, makes room for those zeros that have the largest gradients. As in the paper's code, what
    is dropped and grown at once goes on as it was. Unlike there, the batch that gives the gradients also moves the
    weights, so that all methods take the same number of steps.
    """

    DROPPED = 0.3  # α

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        shapes = [own.kernel.shape for own in self.model.optimizer.masked]
        densities = erdos_renyi_kernel(shapes, self.sparsity)
        self.numbers = [round(d * math.prod(shape)) for d, shape in zip(densities, shapes, strict=True)]
        self.settings |= {"dropped": self.DROPPED, "densities": "ERK"}

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        if epoch == 0:
            optimizer = self.model.optimizer
            for own, number in zip(optimizer.masked, self.numbers, strict=True):
                own.mask.assign(largest(keras.random.uniform(own.mask.shape), number))
            optimizer.apply_masks()

    def change_masks(self, batch):
        dropped = self.DROPPED / 2 * (1 + math.cos(math.pi * batch / self.end))
        optimizer = self.model.optimizer
        for own, number in zip(optimizer.masked, self.numbers, strict=True):
            moved = int(dropped * number)
            kept = largest(ops.where(own.mask > 0, ops.abs(own.kernel), -1.0), number - moved)
            grown = largest(ops.where(kept > 0, -1.0, ops.abs(own.gradient)), moved)
            own.mask.assign(kept + grown)  # what grows was masked, so it starts at zero
        optimizer.apply_masks()


def erdos_renyi_kernel(shapes, sparsity):
    """The densities of kernels of these shapes after RigL's section 3, “Erdős-Rényi-Kernel”.

    They are proportional to (n_in + n_out + k_h + k_w) / (n_in·n_out·k_h·k_w), but at most 1, and such that a share
    `sparsity` of all weights is zero.
    """
    sums, sizes = np.array([(sum(shape), math.prod(shape)) for shape in shapes]).T
    dense = np.zeros(len(shapes), bool)
    while True:
        scale = ((1 - sparsity) * sizes.sum() - sizes[dense].sum()) / sums[~dense].sum()
        densities = np.where(dense, 1.0, scale * sums / sizes)
        if np.all(densities <= 1):
            return densities
        dense |= densities > 1  # what they cannot hold goes to the others


class AlternatingCompression(Opponent):
    """AC/DC (Peste et al. 2021, “AC/DC: Alternating Compressed/DeCompressed Training”, Algorithm 1).

    After a warm-up, phases with only the largest magnitudes of all kernels take turns with dense ones. In shares of
    the epochs their lengths are those of the paper's ResNet50 of 100 epochs (`s95_ep100.yaml` in its repository): 10 %
    warm-up, 5 % a phase, the last sparse phase 15 %, and the dense one before it so long that these add up. As in its
    script, momentum is cleared whenever a dense phase begins.
    """

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        epochs = self.params["epochs"]
        self.warm_up, self.phase = (max(1, round(share * epochs)) for share in (0.1, 0.05))
        self.last = epochs - math.ceil(0.15 * epochs)
        if self.last < self.warm_up:
            raise ValueError(
                f"{type(self).__name__} needs an epoch of dense training and one of sparse, so at least 2; received "
                f"{epochs} epochs. Train for more."
            )
        self.settings = {"warm_up": self.warm_up, "phase": self.phase, "last_phase": epochs - self.last}

    def is_sparse(self, epoch):
        """Whether an epoch is of a sparse phase: the last one, or one with a whole dense phase between both."""
        phase = (epoch - self.warm_up) // self.phase
        followed = self.warm_up + (phase + 2) * self.phase <= self.last
        return epoch >= self.last or (epoch >= self.warm_up and phase % 2 == 0 and followed)

    def on_epoch_begin(self, epoch, logs=None):
        if self.is_sparse(epoch) and not self.is_sparse(epoch - 1):
            self.model.optimizer.prune(self.sparsity)
        elif self.is_sparse(epoch - 1) and not self.is_sparse(epoch):
            self.model.optimizer.release()


OPPONENTS = {"gmp": GradualPruning, "rigl": RigL, "acdc": AlternatingCompression}
