"""What the optimizers share: which variables are penalised, how updates are counted, what is saved."""

import collections
import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_rda import _keras, kernels
from keras_rda.optimizers.state import CheckedState
from keras_rda.penalties import Penalty, is_float32
from keras_rda.types import Rate


class PenalizedOptimizer(CheckedState, keras.optimizers.Optimizer):
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

    Args:
        learning_rate: Positive float, `keras.optimizers.schedules.LearningRateSchedule`, or callable without arguments.
        penalty: A `keras_rda.Penalty`, or None for no penalty.
        **kwargs: Arguments of `keras.optimizers.Optimizer`: `weight_decay`, `clipnorm`, `clipvalue`, `global_clipnorm`,
            `use_ema`, `ema_momentum`, `loss_scale_factor`, `gradient_accumulation_steps`, `name`.

    Raises:
        RuntimeError: Keras' own optimizer no longer calls what this one overrides; the message names Keras' version.
        ValueError: an argument is out of its range; the message gives the range.
    """

    # What TargetSparsity remembers for a variable: the density 1 − σ when last measured; σ when steering began; 1 + the
    # epoch in which it began. Zero is never, or dense.
    STEERING = ("measured_density", "initial_sparsity", "begun")
    strength_in_state = True  # whether the slots, and so the weights, depend on λ of earlier steps
    starts_from_weights = True  # whether `step` uses its argument `weights` after the first step

    def __init__(self, learning_rate: Rate, penalty: Penalty | None, **kwargs: Any) -> None:
        _keras.check_optimizer()
        name = type(self).__name__
        if isinstance(learning_rate, numbers.Real):
            if isinstance(learning_rate, int) or not (is_float32(learning_rate) and np.float32(learning_rate) > 0):
                raise ValueError(
                    f"{name}: learning_rate (1/γ) must be a positive float; received {learning_rate!r}. The paper's "
                    "γ = 1 is learning_rate=1.0."
                )
            learning_rate = float(learning_rate)  # Keras takes no NumPy scalars
        weight_decay = kwargs.get("weight_decay")
        if weight_decay is not None and not (is_float32(weight_decay) and float(weight_decay) >= 0):
            raise ValueError(f"{name}: weight_decay must be a finite number ≥ 0; received {weight_decay!r}.")
        if kwargs.get("ema_overwrite_frequency") is not None:
            raise ValueError(
                f"{name}: ema_overwrite_frequency={kwargs['ema_overwrite_frequency']!r} cannot work: averaged weights "
                "have no exact zeros, and the next step does not start from the weights it would overwrite. Leave it "
                "out: use_ema=True puts the averages in place when training ends and keeps the zeros."
            )
        super().__init__(learning_rate, **kwargs)
        self._penalty = penalty
        if penalty is not None:
            self._penalty_strength = penalty.strength  # tracked: saved, and visible to JAX's stateless update
        self._excluded_ids: tuple[int, ...] = ()
        self._excluded_paths: tuple[str, ...] = ()
        self._excluded_names: tuple[str, ...] = ()
        self._saved_exclusions: dict = {}
        self._unbuilt_size = len(self.variables)

    @property
    def penalty(self):
        """The `keras_rda.Penalty`, or None. It cannot be replaced; set `penalty.strength` to change λ."""
        return self._penalty

    @property
    def learning_rate(self):
        """The learning rate 1/γ now. Setting it to a number below zero or to a NaN raises a `ValueError`."""
        return super().learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        if isinstance(learning_rate, numbers.Real) and not (is_float32(learning_rate) and learning_rate >= 0):
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
            var_list: Variables of the model.
            var_names: Whole names in paths of variables, such as `"dense_1"` or `"dense_1/kernel"`: `"dense"` does not
                exclude `"dense_1/kernel"`.

        Raises:
            ValueError: the optimizer is built already. A name that matches nothing raises when it is built.
        """
        if self.built:
            raise ValueError(
                f"exclude_from_penalty() was called on a {type(self).__name__} that is already built for "
                f"{len(self._trainable_variables)} variables. Call it before fit(), build() or the first apply()."
            )
        if not isinstance(var_names, (list, tuple, type(None))) or not all(isinstance(n, str) for n in var_names or ()):
            raise TypeError(f"var_names must be a list of strings; received {var_names!r}.")
        if not isinstance(var_list, (list, tuple, type(None))):
            raise TypeError(f"var_list must be a list of variables; received {type(var_list).__name__}.")
        if wrong := [v for v in var_list or () if not hasattr(v, "shape")]:
            raise TypeError(
                f"var_list must be a list of variables; received {wrong[0]!r} in it. Names go in var_names."
            )
        self._excluded_ids += tuple(map(id, var_list or ()))
        self._excluded_paths += tuple(map(kernels.variable_path, var_list or ()))
        self._excluded_names += tuple(var_names or ())

    def _excluded(self, variables, paths):
        """The positions of the variables that `exclude_from_penalty` named, here or before the optimizer was saved."""
        matches = [
            (name, {i for i, path in enumerate(paths) if kernels.longest_part(path, [name])})
            for name in self._excluded_names
        ]
        for key, path in zip(self._excluded_ids, self._excluded_paths, strict=True):
            matches.append((path, {i for i, variable in enumerate(variables) if id(variable) == key}))
        if self._saved_exclusions.get("variables") == len(variables):
            # Names of variables may change when a model is loaded, positions do not.
            return set(self._saved_exclusions["penalty"]).union(*(positions for _, positions in matches))
        for path, number in collections.Counter(self._saved_exclusions.get("paths", ())).items():
            same = {i for i, other in enumerate(paths) if f"/{path}".endswith(f"/{other}")}
            if len(same) > number:
                raise ValueError(
                    f"The exclusions of this {type(self).__name__} were saved before it was built: {number} variables "
                    f"of the path {path!r}, which {len(same)} have. Create the optimizer anew and call "
                    "exclude_from_penalty() with the variables."
                )
            matches.append((path, same))
        if unmatched := sorted(name for name, positions in matches if not positions):
            raise ValueError(
                f"exclude_from_penalty() was given {unmatched}, which match none of the trainable variables {paths}."
            )
        return set().union(*(positions for _, positions in matches))

    def penalties_of(self, variables):
        """The penalty of each of `variables`, or None, as the optimizer has or would have them once it is built."""
        if self.built:
            own = dict(zip(map(id, self._trainable_variables), self._penalties, strict=True))
            return [own.get(id(variable)) for variable in variables]
        excluded = self._excluded(variables, [kernels.variable_path(variable) for variable in variables])
        return self._own_penalties(variables, excluded)

    def _own_penalties(self, variables, excluded):
        """The penalty of each of `variables`, or None; `excluded` are positions."""
        return [
            self.penalty.for_variable(variable)
            if self.penalty is not None and kernels.is_kernel(variable) and i not in excluded
            else None
            for i, variable in enumerate(variables)
        ]

    def build(self, variables):
        """Create the slots for `variables`, the list of trainable `keras.Variable`s to train."""
        if self.built:
            return
        paths = [kernels.variable_path(variable) for variable in variables]
        # Before anything is built, because these raise.
        excluded = self._excluded(variables, paths)
        own_penalties = self._own_penalties(variables, excluded)
        super().build(variables)
        self._excluded_positions = sorted(excluded)
        self._penalties = own_penalties
        if self.penalty is not None and not any(self._penalties):
            warnings.warn(
                f"{type(self).__name__} has nothing to penalise: of {len(variables)} trainable variables none is a "
                "kernel (rank ≥ 2, no embedding table) that is not excluded, so no weight will become zero. "
                f"Variables: {paths}.",
                stacklevel=2,
            )
        saved = self._saved_exclusions if self._saved_exclusions.get("variables") == len(variables) else {}
        undecayed = saved.get("weight_decay", ())  # Keras does not save exclude_from_weight_decay
        self._decayed = [self._use_weight_decay(v) and i not in undecayed for i, v in enumerate(variables)]
        # One vector for all variables instead of a scalar each: a network has hundreds of variables, and updating a
        # scalar costs as much as updating a small kernel. int counts past 2²⁴, where float32 would stop.
        self._steps = self.add_variable((len(variables),), dtype="int", name="steps", aggregation="only_first_replica")
        if self.penalty is not None:
            # TargetSparsity's state, saved with the optimizer's: λ of a variable is penalty.strength times e to its
            # exponent; `steering` has a row for each of `STEERING`. Zero throughout is what state that was saved before
            # the first step is restored to.
            options = {"dtype": "float32", "aggregation": "only_first_replica"}
            self.strength_exponents = self.add_variable((len(variables),), name="strength_exponents", **options)
            self.steering = self.add_variable((len(self.STEERING), len(variables)), name="steering", **options)
        self._slots = [self.add_slots(variable, self.penalizes(i)) for i, variable in enumerate(variables)]
        for variable, slots in zip(variables, self._slots, strict=True):
            if self.starts_from_weights and _low_precision(variable.dtype):
                slots["weights"] = self.add_slot(variable, "weights")

    def add_slots(self, variable, penalized):
        """Return the slots of `variable`, a dict of name → `add_slot(variable, name)`. Its order is a file format."""
        return {}

    def add_slot(self, variable, name):
        """Create a float32 slot of zeros with the shape and layout of `variable`."""
        return self.add_variable_from_reference(variable, name)

    def add_variable_from_reference(self, reference_variable, name=None, initializer="zeros"):
        """As Keras' own, for its averages and accumulated gradients too, but in float32: sums in bfloat16 stall."""
        return self.add_variable(
            reference_variable.shape,
            initializer=initializer,
            dtype="float32",
            layout=getattr(reference_variable, "_layout", None),
            name=f"{kernels.variable_path(reference_variable).replace('/', '_')}_{name}",
        )

    def step(self, weights, gradient, rate, index, slots, prox):
        """One update of one variable, in float32, without side effects.

        Args:
            weights, gradient: Tensors of the variable's shape; the gradient is finite and includes weight decay.
            rate: Scalar, the learning rate of this step.
            index: Position of the variable in `self._steps`.
            slots: Dict of name → tensor, as created by `add_slots`.
            prox: `prox(u, step)`: the penalty's proximal map, or the identity for variables without penalty.

        Returns:
            The new weights, and the dict of the new slots.
        """
        raise NotImplementedError

    def penalizes(self, index):
        """Whether the variable at `index` of those the optimizer was built for has a penalty."""
        return self._penalties[index] is not None

    def penalized_units(self, index):
        """How many weights of the variable at `index`, or groups of them, become zero each by itself."""
        return self._penalties[index].units(self._trainable_variables[index])

    def weight(self, index):
        """The variable at `index`, a tensor."""
        return ops.convert_to_tensor(self._trainable_variables[index])

    def set_weight(self, index, value):
        """Set the variable at `index`; an optimizer whose next step starts elsewhere overwrites it."""
        variable = self._trainable_variables[index]
        variable.assign(ops.cast(value, variable.dtype))

    def penalty_magnitude(self, index, u):
        """What the penalty of the variable at `index` compares with λ·step, of the shape of `u`."""
        return ops.broadcast_to(self._penalties[index].magnitude(u), u.shape)

    def prox_point(self, index):
        """`(u, step)` with weights `prox(u, step)`, of the present state; None where the optimizer does not keep it.

        `TargetSparsity` reads from it which λ gives which σ: for good where `strength_in_state` is False.
        """
        return None

    def sparse_weights(self, index):
        """What the zeros of the variable at `index` are counted on while training: its weights, or, where these lag
        behind, what they are moving to."""
        return self.weight(index)

    def _prox(self, index):
        """`prox(u, step)` of the variable at `index`: its penalty's proximal map, or the identity."""
        if not self.penalizes(index):
            return lambda u, step: u
        factor = ops.exp(self.strength_exponents[index])
        return lambda u, step: self._penalties[index].prox(u, ops.multiply(factor, step))

    def apply(self, grads, trainable_variables=None):
        """Update the variables from their gradients; see `keras.optimizers.Optimizer.apply`."""
        if self.penalty is not None:
            self.penalty.follow_schedule(self.iterations)
        if self.gradient_accumulation_steps:
            grads = [g if g is None or _is_float32(g.dtype) else ops.cast(_dense(g), "float32") for g in grads]
        super().apply(grads, trainable_variables)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        # Keras calls this once per real update (inside gradient accumulation's condition), with the variables that have
        # a gradient: the one place where all counters can advance together.
        indices = [self._get_variable_index(variable) for variable in trainable_variables]
        # A schedule or callable may go below zero or to NaN, which would turn thresholds around or stay in the sums.
        rate = ops.cast(learning_rate, "float32")
        rate = ops.where(ops.logical_and(ops.isfinite(rate), ops.greater(rate, 0.0)), rate, 0.0)
        self._advance(indices, grads, rate)
        super()._backend_update_step(grads, trainable_variables, rate)

    def _advance(self, indices, grads, rate):
        """Count this update for the variables at `indices`; return for which it counts, booleans (variables,)."""
        received = np.zeros(len(self._slots), bool)
        received[indices] = True

        def non_finite():
            flags = [ops.convert_to_tensor(0.0)] * len(self._slots)
            for index, gradient in zip(indices, grads, strict=True):
                flags[index] = ops.cast(ops.logical_not(ops.all(ops.isfinite(_dense(gradient)))), "float32")
            return ops.stack(flags)

        # Once every variable has started, a non-finite entry only counts as zero, and the gradients need no extra pass.
        started = ops.greater(self._steps, 0)
        waiting = ops.logical_and(received, ops.logical_not(started))
        spoilt = ops.cond(ops.any(waiting), non_finite, lambda: ops.zeros(len(self._slots), "float32"))
        finite = ops.equal(self._sum_over_replicas(spoilt), 0.0)
        counts = ops.logical_and(received, ops.logical_or(started, finite))
        self._steps.assign(ops.add(self._steps, ops.cast(counts, self._steps.dtype)))
        return counts

    def _sum_over_replicas(self, value):
        # Keras' optimizers have this on TensorFlow, where each replica of tf.distribute sees its own gradient. On JAX
        # there is one gradient, of the whole batch.
        reduce = getattr(self, "_all_reduce_sum_gradients", None)
        return reduce([(value, None)])[0][0] if reduce else value

    def _float_steps(self, index):
        """t of the variable at `index`, a float32 scalar; 1 before its first step, whose result is discarded."""
        return ops.cast(ops.maximum(self._steps[index], 1), "float32")

    def _moves(self, index):
        """Whether the variable at `index` has a step to take: a scalar boolean."""
        return ops.greater(self._steps[index], 0)

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable and its slots; called by Keras."""
        if 0 in variable.shape:
            return  # backends refuse the maximum of nothing, and Keras' add on TensorFlow some empty shapes
        index = self._get_variable_index(variable)
        slots = {name: ops.convert_to_tensor(slot) for name, slot in self._slots[index].items() if name != "weights"}
        weights = self._precise_weights(index, variable)
        gradient = ops.cast(_dense(gradient), "float32")
        # Before a variable's first step counts, nothing may enter a sum: gradient and rate are zero. (Choosing between
        # old and new slots instead made MRDA's update 2.4 times slower on TensorFlow.)
        started = ops.cast(ops.greater(self._steps[index], 0), "float32")
        rate = ops.multiply(started, ops.cast(learning_rate, "float32"))
        gradient = ops.multiply(started, ops.where(ops.isfinite(gradient), gradient, 0.0))
        if self.weight_decay is not None and self._decayed[index]:
            gradient = ops.add(gradient, ops.multiply(started * self.weight_decay, weights))
        prox = self._prox(index)
        new_weights, new_slots = self.step(weights, gradient, rate, index, slots, prox)
        new_weights = ops.where(self._moves(index), new_weights, weights)
        if "weights" in self._slots[index]:
            new_slots = {**new_slots, "weights": new_weights}
        for name, value in new_slots.items():
            self.assign(self._slots[index][name], value)
        self.assign(variable, ops.cast(new_weights, variable.dtype))

    def _precise_weights(self, index, variable):
        """The variable in float32: of low precision, as its last step left it, unless it was set from outside since."""
        weights = ops.cast(variable, "float32")
        if "weights" not in self._slots[index]:
            return weights
        precise = ops.convert_to_tensor(self._slots[index]["weights"])
        return ops.where(ops.equal(ops.cast(precise, variable.dtype), variable), precise, weights)

    def _apply_weight_decay(self, variables):
        pass  # coupled instead: update_step adds it to the gradient

    def _update_model_variables_moving_average(self, trainable_variables):
        # Keras', but in float32 throughout: in bfloat16 a momentum of 0.999 is 1.
        momentum = ops.where(ops.equal(self.iterations, 0), 0.0, self.ema_momentum)
        for variable in trainable_variables:
            index = self._get_variable_index(variable)
            average = self._model_variables_moving_average[index]
            if average is None:  # of a variable that is overwritten with its gradient
                continue
            weights = self._precise_weights(index, variable)
            average.assign(ops.add(ops.multiply(momentum, average), ops.multiply(ops.subtract(1.0, momentum), weights)))

    def _overwrite_model_variables_with_average_value(self, trainable_variables):
        """At the end of training with `use_ema`: the averages where the last weights are not zero, else zero."""
        for variable in trainable_variables:
            average = self._model_variables_moving_average[self._get_variable_index(variable)]
            if average is None:
                continue
            value = ops.convert_to_tensor(average)
            if kernels.is_kernel(variable):
                value = ops.where(ops.equal(variable, 0), 0.0, value)
            variable.assign(ops.cast(value, variable.dtype))

    def get_config(self):
        config = super().get_config()
        if self.penalty is not None:
            config["penalty"] = keras.saving.serialize_keras_object(self.penalty)
        config["exclusions"] = {
            "paths": [*self._saved_exclusions.get("paths", ()), *self._excluded_paths],
            "names": list(self._excluded_names),
        }
        if self.built:
            config["exclusions"] |= {
                "variables": len(self._slots),
                "penalty": list(self._excluded_positions),
                "weight_decay": [i for i, decayed in enumerate(self._decayed) if not decayed],
            }
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        exclusions = config.pop("exclusions", {})
        if "penalty" in config:
            config["penalty"] = keras.saving.deserialize_keras_object(config["penalty"], custom_objects=custom_objects)
        optimizer = super().from_config(config, custom_objects=custom_objects)
        optimizer._excluded_names = tuple(exclusions.get("names", ()))
        optimizer._saved_exclusions = dict(exclusions)
        return optimizer


def inner_optimizer(model):
    """The optimizer of `model`, without the wrapper that mixed precision puts around it; None if it is not compiled."""
    optimizer = getattr(model, "optimizer", None)
    return getattr(optimizer, "inner_optimizer", optimizer)


def _is_float32(dtype):
    return keras.backend.standardize_dtype(dtype) == "float32"


def _low_precision(dtype):
    return keras.backend.standardize_dtype(dtype) in ("bfloat16", "float16")


def _dense(gradient):
    """The gradient as a dense tensor; TensorFlow gives embeddings' gradients as `IndexedSlices`."""
    return ops.convert_to_tensor(gradient, sparse=False)


def check_share(optimizer, name, number, example):
    """Return `number` as a float from 0 to below 1, or raise an error that names the optimizer and the argument."""
    if not (is_float32(number) and 0 <= number < 1):
        raise ValueError(
            f"{type(optimizer).__name__}: {name} must be a number from 0 to below 1, for example {example}; received "
            f"{number!r}."
        )
    return float(number)
