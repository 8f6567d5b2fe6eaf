"""What the optimizers share: which variables are penalised, how updates are counted, what an update is."""

import functools
import numbers
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_rda import _keras, kernels
from keras_rda.checks import check_number, is_float32
from keras_rda.optimizers import together
from keras_rda.optimizers.exclusions import Exclusions
from keras_rda.optimizers.state import CheckedState
from keras_rda.optimizers.steering_memory import SteeringMemory
from keras_rda.optimizers.trained import Prox, Trained
from keras_rda.penalties import Penalty, shared
from keras_rda.types import Rate, Tensor


class Now(NamedTuple):
    """The scalars of a variable's update: `t` counts its updates from 1, in float32."""

    t: Any


class Finished(NamedTuple):
    """The finished step of a variable: its weights in float32, and the list of its slots."""

    weights: Any
    slots: Any


class PenalizedOptimizer(CheckedState, _keras.Optimizer):
    """Base class of the optimizers that produce exact zeros.

    A subclass defines one function without side effects, `step`, and, if it keeps state, `add_slots`. This class does
    the rest, the same way for all of them:

    - **Penalised variables** are the trainable ones of rank ≥ 2 that are not embedding tables, biases or normalisation
      weights; `exclude_from_penalty` takes more out. The others take the same step with no penalty.
    - **t** counts the updates of each variable: not micro-batches under gradient accumulation, and not the updates in
      which the variable got no gradient; then it does not move.
    - **Non-finite gradients**: a NaN or infinite entry counts as zero, so it cannot poison a sum. A variable takes its
      first step with its first gradient that is finite throughout.
    - **Precision**: steps are computed, and slots kept, in float32 whatever the dtype of a variable. Where steps start
      from the weights, variables of less precision have a slot `weights` with all their digits: small steps would be
      rounded away.
    - **`weight_decay` ρ** enters as `g + ρ·w`. Keras' decoupled form edits `w` before the step, which a step that
      overwrites `w` would undo silently.
    - **`use_ema`**: at the end of training the averages replace the weights where the last weights are not zero, so the
      zeros stay. `ema_overwrite_frequency` is refused, and `keras.callbacks.SwapEMAWeights` needs float32 variables.
    - **Saving**: state that does not fit raises. Keras would warn and skip it, and a step from lost sums would rewrite
      the model.

    A subclass that keeps numbers of its own, such as a sum of the rates, creates a vector of them in `add_vectors`,
    brings it up to date in `advance`, and hands a variable's entries to `step` by `now`. One whose weights follow from
    its slots gives `prox_point`, by which `TargetSparsity` finds λ at once.

    Args:
        learning_rate: Positive float, `keras.optimizers.schedules.LearningRateSchedule`, or callable without arguments.
        penalty: A `keras_rda.Penalty`, or None for no penalty.
        **kwargs: Arguments of `keras.optimizers.Optimizer`: `weight_decay`, `clipnorm`, `clipvalue`, `global_clipnorm`,
            `use_ema`, `ema_momentum`, `loss_scale_factor`, `gradient_accumulation_steps`, `name`.

    Raises:
        RuntimeError: Keras' own optimizer no longer calls what this one overrides; the message names Keras' version.
        ValueError: an argument is out of its range; the message gives the range.
    """

    # The defaults are right for every subclass; the opposite saves memory and training steps.
    starts_from_weights = True  # whether `step` uses its argument `weights` after the first step
    strength_in_state = True  # whether `prox_point` depends on λ of earlier steps

    def __init__(self, learning_rate: Rate, penalty: Penalty | None, **kwargs: Any) -> None:
        if isinstance(learning_rate, numbers.Real):  # Keras takes no NumPy scalars
            learning_rate = check_number(
                self,
                "learning_rate (1/γ)",
                learning_rate,
                "a positive float",
                lambda rate: not isinstance(rate, int) and bool(np.float32(rate) > 0),
                "The paper's γ = 1 is learning_rate=1.0.",
            )
        if (weight_decay := kwargs.get("weight_decay")) is not None:
            check_number(self, "weight_decay", weight_decay, "a finite number ≥ 0", lambda decay: decay >= 0)
        if kwargs.get("ema_overwrite_frequency") is not None:
            raise ValueError(
                f"{type(self).__name__}: ema_overwrite_frequency={kwargs['ema_overwrite_frequency']!r} cannot work: "
                "averaged weights have no exact zeros, and the next step does not start from the weights it would "
                "overwrite. Leave it out: use_ema=True puts the averages in place when training ends and keeps the "
                "zeros."
            )
        super().__init__(learning_rate, **kwargs)
        self._penalty = penalty
        if penalty is not None:
            self._penalty_strength = penalty.strength  # tracked: saved, and visible to JAX's stateless update
        self._exclusions = Exclusions(type(self).__name__)
        self._unbuilt_size = len(self.variables)

    @property
    def penalty(self) -> Penalty | None:
        """The `keras_rda.Penalty`, or None. It cannot be replaced; set `penalty.strength` to change λ."""
        return self._penalty

    @property
    def learning_rate(self) -> Tensor:
        """The learning rate 1/γ now. Setting it to a number below zero or to a NaN raises a `ValueError`."""
        return self.present_learning_rate()

    @learning_rate.setter
    def learning_rate(self, learning_rate: Rate) -> None:
        if isinstance(learning_rate, numbers.Real) and not (is_float32(learning_rate) and float(learning_rate) >= 0):
            raise ValueError(
                f"{type(self).__name__}: learning_rate must be set to a finite number ≥ 0; received {learning_rate!r}."
            )
        keras.optimizers.Optimizer.learning_rate.fset(self, learning_rate)

    def exclude_from_penalty(
        self, var_list: Sequence[keras.Variable] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Let variables take the step without penalty, before the optimizer is built (`fit` builds it).

        A second call excludes more.

        Args:
            var_list: Variables of the model. On torch those without a name, as a `keras.layers.TorchModuleWrapper` has
                them, are penalised if they are not in it, an empty list if need be; without one they are refused.
            var_names: Whole names in paths of variables, such as `"dense_1"` or `"dense_1/kernel"`: `"dense"` does not
                exclude `"dense_1/kernel"`.

        Raises:
            TypeError: an argument is no list, or holds something else.
            ValueError: the optimizer is built already. A name that matches nothing raises when it is built.
        """
        if self.built:
            raise ValueError(
                f"exclude_from_penalty() was called on a {type(self).__name__} that is already built for "
                f"{len(self.trained)} variables. Call it before fit(), build() or the first apply()."
            )
        self._exclusions.add(var_list, var_names)

    def penalties_of(self, variables: Sequence[keras.Variable]) -> list[Penalty | None]:
        """The penalty of each of `variables`, or None, as the optimizer has or would have them once it is built."""
        if self.built:
            own = {id(trained.variable): trained.penalty for trained in self.trained}
            return [own.get(id(variable)) for variable in variables]
        return self._own_penalties(variables, self._exclusions.from_penalty(variables))

    def _own_penalties(self, variables, excluded):
        if self.penalty is None:
            return [None] * len(variables)
        places = [i for i, variable in enumerate(variables) if kernels.is_kernel(variable) and i not in excluded]
        own = dict(zip(places, self.penalty.for_variables([variables[i] for i in places]), strict=True))
        return [own.get(i) for i in range(len(variables))]

    def penalizes(self, position: int) -> bool:
        """Whether the variable at `position` of those the optimizer was built for has a penalty."""
        return self.trained[position].penalty is not None

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the slots for `variables`, the list of trainable `keras.Variable`s to train."""
        if self.built:
            return
        # Before anything is built, because these raise.
        excluded = self._exclusions.from_penalty(variables)
        penalties = self._own_penalties(variables, excluded)
        self._exclusions.check_names([v for v, penalty in zip(variables, penalties, strict=True) if penalty])
        super().build(variables)
        if self.penalty is not None and not any(penalties):
            paths = [kernels.variable_path(variable) for variable in variables]
            warnings.warn(
                f"{type(self).__name__} has nothing to penalise: of {len(variables)} trainable variables none is a "
                "kernel (rank ≥ 2, no embedding table or factor of LoRA), not excluded, with weights that the penalty "
                f"is for. None will become zero. Variables: {paths}.",
                stacklevel=2,
            )
        undecayed = self._exclusions.from_weight_decay(variables)
        decays = [self.uses_weight_decay(v) and i not in undecayed for i, v in enumerate(variables)]
        self._exclusions.settle(len(variables), excluded, [i for i, decayed in enumerate(decays) if not decayed])
        # One vector for all variables instead of a scalar each: a network has hundreds of variables, and updating a
        # scalar costs as much as updating a small kernel. int counts past 2²⁴, where float32 would stop.
        self._steps = self.add_variable((len(variables),), dtype="int", name="steps", aggregation="only_first_replica")
        if self.penalty is not None:
            self.steering_memory = SteeringMemory(self, len(variables))
            self.strength_exponents = self.steering_memory.strength_exponents
        self.trained = [
            Trained(position, variable, penalty, decayed, self.add_slots(variable, penalty is not None))
            for position, (variable, penalty, decayed) in enumerate(zip(variables, penalties, decays, strict=True))
        ]
        self._shared = next((penalty.shared for penalty in penalties if penalty and penalty.shared), None)
        excluded_paths = {kernels.variable_path(variables[i]) for i in excluded}
        if self._shared and (outside := [path for path in self._shared.outside if path not in excluded_paths]):
            warnings.warn(
                f"{type(self).__name__}: the channels that {outside} read will not go, because this optimizer does not "
                "train these kernels: they are frozen, or another's.",
                stacklevel=2,
            )
        for trained in self.trained:
            low_precision = keras.backend.standardize_dtype(trained.variable.dtype) in ("bfloat16", "float16")
            if self.starts_from_weights and low_precision:
                trained.slots["weights"] = self.add_slot(trained.variable, "weights")
        self.add_vectors(len(variables))

    def add_slots(self, variable: keras.Variable, penalized: bool) -> dict[str, keras.Variable]:
        """Return the slots of `variable`, a dict of name → `add_slot(variable, name)`. Its order is a file format."""
        return {}

    def add_slot(self, variable: keras.Variable, name: str) -> keras.Variable:
        """Create a float32 slot of zeros with the shape and layout of `variable`."""
        return self.add_variable_from_reference(variable, name)

    def add_vectors(self, variables: int) -> None:
        """Create the optimizer's own state, such as an `add_vector` with an entry for each of so many variables."""

    def add_vector(self, shape: tuple[int, ...], name: str) -> keras.Variable:
        """Create float32 zeros that are the same for all replicas."""
        return self.add_variable(shape, dtype="float32", name=name, aggregation="only_first_replica")

    def add_variable_from_reference(
        self, reference_variable: keras.Variable, name: str | None = None, initializer: str = "zeros"
    ) -> keras.Variable:
        """As Keras' own, for its averages and accumulated gradients too, but in float32: sums in bfloat16 stall."""
        return self.add_variable(
            reference_variable.shape,
            initializer=initializer,
            dtype="float32",
            layout=_keras.sharding(reference_variable),
            name=f"{kernels.variable_path(reference_variable).replace('/', '_')}_{name}",
        )

    def step(
        self, weights: Tensor, gradient: Tensor, rate: Tensor, now: Any, slots: dict[str, Tensor], prox: Prox
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One update of one variable, in float32, without side effects.

        Args:
            weights: Tensor of the variable's shape.
            gradient: Another; it is finite and includes weight decay.
            rate: Scalar, the learning rate of this step.
            now: The scalars of this step: what `now` returns.
            slots: Dict of name → tensor, as created by `add_slots`.
            prox: `prox(u, step)`: the penalty's proximal map, or the identity for variables without penalty.

        Returns:
            The new weights, and the dict of the new slots.
        """
        raise NotImplementedError

    def advance(self, counts: Tensor, rate: Tensor) -> None:
        """Bring the optimizer's own state up to date before a step.

        Args:
            counts: Booleans (variables,): which variables take it.
            rate: Scalar, its learning rate.
        """

    def now(self, position: int) -> Any:
        """The scalars of the present step of the variable at `position`; where there is none yet, of a first one."""
        return Now(ops.cast(ops.maximum(self._steps[position], 1), "float32"))

    def has_started(self, position: int) -> Tensor:
        """Whether the variable at `position` has a step to take: a scalar boolean."""
        return self._steps[position] > 0

    def prox_point(self, now: Any, slots: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """`(u, step)` with which `step` ends at `prox(u, step)`; None where the slots do not tell.

        `TargetSparsity` reads from it which λ gives which σ: for good where `strength_in_state` is False.
        """
        return None

    def present_prox_point(self, trained: Trained) -> tuple[Tensor, Tensor] | None:
        """`prox_point` of a `Trained` variable as its state is; before its first step no `step` is above zero."""
        return self.prox_point(self.now(trained.position), trained.state)

    def prox_step(self) -> Tensor | None:
        """By how much an update with λ = 1 and without gradients lowers what the penalty compares with λ, at least;
        None where an update does not tell."""
        return None

    def return_strengths(self, kernels: Sequence[Trained]) -> list[Tensor] | None:
        """The λ below which each zero of `kernels`, a list of `Trained`, comes back with the next step, if its gradient
        is as before: tensors of their shapes. None where the slots do not tell."""
        return None

    def prox(self, trained: Trained) -> Prox:
        """`prox(u, step)` of a `Trained` variable: its penalty's proximal map, or the identity."""
        if trained.penalty is None:
            return Prox(None)
        return Prox(trained.penalty, ops.exp(self.strength_exponents[trained.position]))

    def magnitudes(self, kernels: Sequence[Trained], arrays: Sequence[Tensor]) -> list[Tensor]:
        """What the penalties of `kernels`, a list of `Trained`, compare with λ·step in arrays of their shapes."""
        return shared.magnitudes([kernel.penalty for kernel in kernels], arrays)

    def proximal_points(self, kernels: Sequence[Trained], points: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """`prox(u, step)` of `kernels`, a list of `Trained`, for a list of such points."""
        steps = [(u, self.prox(kernel).factor * step) for kernel, (u, step) in zip(kernels, points, strict=True)]
        return shared.proximal_points([kernel.penalty for kernel in kernels], steps)

    def sparse_weights(self, kernels: Sequence[Trained]) -> list[Tensor]:
        """What the zeros of `kernels`, a list of `Trained`, are counted on while training: their weights, or, where
        these lag behind, what they are moving to."""
        return [kernel.value for kernel in kernels]

    def apply(self, grads: Sequence[Tensor], trainable_variables: Sequence[keras.Variable] | None = None) -> None:
        """Update the variables from their gradients; see `keras.optimizers.Optimizer.apply`."""
        if self.penalty is not None:
            self.penalty.follow_schedule(self.iterations)
        if self.gradient_accumulation_steps:
            grads = [
                g if g is None or keras.backend.standardize_dtype(g.dtype) == "float32" else _dense_float32(g)
                for g in grads
            ]
        super().apply(grads, trainable_variables)

    def begin_update(self, positions: Sequence[int], gradients: Sequence[Tensor], learning_rate: Tensor) -> Tensor:
        """Count this update for the variables at `positions`, and return its rate."""
        # A schedule or callable may go below zero or to NaN, which would turn thresholds around or stay in the sums.
        rate = ops.cast(learning_rate, "float32")
        rate = ops.where(ops.logical_and(ops.isfinite(rate), rate > 0.0), rate, 0.0)
        received = ops.convert_to_tensor([position in positions for position in range(len(self.trained))], "bool")

        def non_finite():
            flags = [ops.convert_to_tensor(0.0)] * len(self.trained)
            for position, gradient in zip(positions, gradients, strict=True):
                flags[position] = ops.cast(ops.logical_not(ops.all(ops.isfinite(_dense(gradient)))), "float32")
            return ops.stack(flags)

        # Once every variable has started, a non-finite entry only counts as zero, and the gradients need no extra pass.
        steps = ops.convert_to_tensor(self._steps)
        waiting = ops.logical_and(received, steps == 0)
        spoilt = _keras.cond(ops.any(waiting), non_finite, lambda: ops.zeros(len(self.trained), "float32"))
        finite = self.sum_over_replicas(spoilt) == 0.0
        counts = ops.logical_and(received, ops.logical_or(steps > 0, finite))
        self._steps.assign(steps + ops.cast(counts, steps.dtype))
        self.advance(counts, rate)
        return rate

    @property
    def finishes_together(self):
        return self._shared is not None

    def finish_together(self, positions: Sequence[int], gradients: Sequence[Tensor], rate: Tensor) -> list[Any]:
        """What `update` is to be given in place of gradients: the finished steps of those variables whose penalty is
        known for all of them together."""
        steps: dict[Any, Any] = {}
        places: dict[Any, int] = {}
        for place, (position, gradient) in enumerate(zip(positions, gradients, strict=True)):
            penalty = self.trained[position].penalty
            if penalty is not None and penalty.shared is not None:
                steps[penalty.member] = (
                    functools.partial(self._finish, self.trained[position], gradient, rate),
                    self.prox(self.trained[position]),
                )
                places[penalty.member] = place
        updates = list(gradients)
        for member, finished in together.finish(steps, self._shared).items():
            updates[places[member]] = finished
        return updates

    def update(self, position: int, gradient: Any, learning_rate: Tensor) -> None:
        """Take the step of one variable."""
        trained = self.trained[position]
        if 0 in trained.variable.shape:
            return  # backends refuse the maximum of nothing, and Keras' add on TensorFlow some empty shapes
        finished = gradient
        if not isinstance(gradient, Finished):
            finished = self._finish(trained, gradient, learning_rate, self.prox(trained))
        for slot, value in zip(trained.slots.values(), finished.slots, strict=True):
            self.assign(slot, value)
        self.assign(trained.variable, ops.cast(finished.weights, trained.variable.dtype))

    def _finish(self, trained, gradient, learning_rate, prox):
        """The step of a `Trained` variable, without side effects."""
        weights, gradient = trained.precise, _dense_float32(gradient)
        gradient = ops.where(ops.isfinite(gradient), gradient, 0.0)
        if self.weight_decay is not None and trained.decays:
            gradient = gradient + self.weight_decay * weights
        # The gate: before a variable has started nothing may enter a sum, so gradient and rate are zero, and its
        # weights stay. (Choosing between old and new slots instead made MRDA's update 2.4 times slower on TensorFlow.)
        started = self.has_started(trained.position)
        factor = ops.cast(started, "float32")
        new_weights, slots = self.step(
            weights,
            factor * gradient,
            factor * ops.cast(learning_rate, "float32"),
            self.now(trained.position),
            trained.state,
            prox,
        )
        new_weights = ops.where(started, new_weights, weights)
        if "weights" in trained.slots:
            slots = {**slots, "weights": new_weights}
        return Finished(new_weights, [slots[name] for name in trained.slots])

    def move_average(self, position: int, average: keras.Variable) -> None:
        """Keras' moving average, but in float32 throughout: in bfloat16 a momentum of 0.999 is 1."""
        momentum = ops.where(self.iterations == 0, 0.0, self.ema_momentum)
        average.assign(momentum * ops.convert_to_tensor(average) + (1.0 - momentum) * self.trained[position].precise)

    def end_with_average(self, position: int, average: keras.Variable) -> None:
        """At the end of training with `use_ema`: the average where the last weights are not zero, else zero."""
        trained, value = self.trained[position], ops.convert_to_tensor(average)
        if kernels.is_kernel(trained.variable):
            value = ops.where(trained.value == 0, 0.0, value)
        trained.set(value)


def inner_optimizer(model):
    """The optimizer of `model`, without the wrapper that mixed precision puts around it; None if it is not compiled."""
    optimizer = getattr(model, "optimizer", None)
    return getattr(optimizer, "inner_optimizer", optimizer)


def _dense(gradient):
    """The gradient as a dense tensor; TensorFlow gives embeddings' gradients as `IndexedSlices`."""
    return ops.convert_to_tensor(gradient, sparse=False)


def _dense_float32(gradient):
    return ops.cast(_dense(gradient), "float32")
