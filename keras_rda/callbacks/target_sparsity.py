"""Ending training at a wanted σ."""

import math
import warnings
from collections.abc import Mapping
from typing import Literal

import keras
import numpy as np

from keras_rda import _keras, compression
from keras_rda.callbacks import file_size, steering
from keras_rda.callbacks.counted import TOLERANCE, MultiplyAdds
from keras_rda.callbacks.logs import entries, penalty_strengths
from keras_rda.checks import check_number, is_number, is_positive_integer
from keras_rda.compression import classes, graph
from keras_rda.litert import convert, exporting
from keras_rda.metrics import summarize
from keras_rda.optimizers.base import PenalizedOptimizer, inner_optimizer
from keras_rda.penalties import L1
from keras_rda.types import Quantization


class _Judge(keras.callbacks.Callback):
    """Has a `TargetSparsity` judge the end of training when all other callbacks have had theirs."""

    def __init__(self, judged):
        super().__init__()
        self.judged = judged

    def on_train_end(self, logs=None):
        self.judged._judge()


class TargetSparsity(keras.callbacks.Callback):
    """Steers λ so that training ends at a wanted σ, on every optimizer of this package that has a penalty.

    Add it to the callbacks of `fit`, and λ is found while the network trains:

    - σ should be `σ_0 + (target − σ_0)·(1 − (1 − u)³)`, with σ_0 as it is when training begins and u going from 0 to 1
      between the shares `begin` and `end` of training, and stay at the target from there. Until `begin`, the warm-up,
      λ stays as given.
    - Every `interval` updates λ is set anew: for dual averaging (`MRDA`, `RDA`, `RMDA`), whose weights follow from its
      sums at any λ, to a quantile that gives the wanted σ; else by a feedback, times a factor that grows with the
      distance, in log-odds, between where σ is heading and where it should be.
    - From `end` on the smallest weights that are missing to the target become zero at every measurement, so that the
      others learn to do without them; and where `XRDA` has too many zeros, λ falls to where those with the largest
      velocities come back. What is missing after the last batch becomes zero then.
    - `XRDA` with averages, which remember what a zero would be once its rate has fallen, has both: the quantile bounds
      the feedback and replaces it from `end` on.

    σ here is over the kernels that are steered; `keras_rda.sparsity(model, kernels_only=True)` also counts kernels that
    have no penalty. λ is `optimizer.penalty.strength`, for single kernels times `exp(optimizer.strength_exponents)`.
    These and what the steering remembers are saved with the optimizer's state, so a resumed run steers on; after `fit`
    has ended, the next one begins anew, at its `initial_epoch`.

    Training that ends more than half a point away from a target (or more than the weights of the largest group), or
    gets there only by zeroing many weights after the last batch, gives a warning, as does a rate that falls to zero too
    early, and a callback that may choose the weights of an earlier, denser epoch (`EarlyStopping`, `ModelCheckpoint`,
    `SwapEMAWeights`).

    After each epoch σ of all kernels and λ stand in the logs, as `kernel_sparsity` and `penalty_strength`: in the
    progress bar, in `History`, in what `plot_history` draws.

    Args:
        target: σ over the penalised kernels at the end, or another share that `of` names, a number above 0 and below
            1; or a dict from whole names in kernels' paths to targets that each such kernel gets by itself,
            `{"conv2d_3": 0.98, "dense": 0.5}`; of several that fit the longest counts. Other kernels keep λ as given.
        per_layer: True steers every penalised kernel to `target` by itself. False, the default, lets one λ decide
            where the zeros are.
        begin: Share of training at which σ starts to rise, from 0 to below `end`. Defaults to 0.
        end: Share of training at which σ should have reached the target, at most 1. Defaults to 0.75.
        interval: Updates from one measurement to the next, a positive whole number; each reads all penalised kernels.
            Defaults to None: 8, but more in long training, so that σ is measured 500 times at most, and fewer where
            it would not be measured sixty times while it rises.
        of: What `target` is a share of: `"zeros"`, of the kernels' weights; or `"multiply_adds"`, of those that the
            model needs for one sample: with 0.3, `compress` leaves 0.7 of them. For a penalty by which whole channels
            go: `GroupL1(…, groups="channels", layout=model)`, or `groups="inputs"`. Or `"bytes"`, of the LiteRT file
            that `export` writes: with 0.9 it has a tenth of the dense one's. Then `target` can be the bytes that the
            file may have too, a whole number or a text such as `"256 kB"` (1,000 bytes; `"256 KiB"`: 1,024 each), and
            training ends with a file that has them or up to 2 % fewer. Some twenty files are written while training,
            each in a second for a small network; on JAX and torch TensorFlow has to start for each.
        quantize: With `of="bytes"`, the quantisation of the file, as for `export`.

    Raises:
        TypeError: an argument is of a wrong type; when training begins, the optimizer has no λ to steer, its penalty no
            `magnitude` to steer by, or single kernels a penalty of which λ is only a part (`L1L2`).
        ValueError: an argument is out of its range; when training begins, a target that cannot be met: below the
            present σ, of kernels too small for it, of names that match nothing, or with too few batches to steer.

    Examples:
        >>> rate = keras.optimizers.schedules.CosineDecay(1.0, 20 * math.ceil(len(x) / 32))
        >>> model.compile(keras_rda.XRDA(rate), loss="mse")
        >>> history = model.fit(x, y, epochs=20, callbacks=[keras_rda.TargetSparsity(0.9)], verbose=0)
        >>> round(keras_rda.sparsity(model, kernels_only=True), 2)
        0.9
    """

    FEWEST_MEASUREMENTS = 30
    NOTABLE_TRIM = 0.25  # zeros that come after the last batch, relative to the weights that are kept

    def __init__(
        self,
        target: float | str | Mapping[str, float],
        per_layer: bool = False,
        begin: float = 0.0,
        end: float = 0.75,
        interval: int | None = None,
        of: Literal["zeros", "multiply_adds", "bytes"] = "zeros",
        quantize: Quantization | None = None,
    ) -> None:
        super().__init__()
        if of not in (choices := ("zeros", "multiply_adds", "bytes")):
            raise ValueError(f"TargetSparsity: of must be one of {choices}; received {of!r}.")
        if quantize not in convert.QUANTIZATIONS or (quantize is not None and of != "bytes"):
            raise ValueError(
                'TargetSparsity: quantize goes with of="bytes", and is None, "float16", "dynamic" or "int8"; received '
                f"quantize={quantize!r} with of={of!r}."
            )
        targets, self._asked = [target], None
        if isinstance(target, Mapping) and target:
            targets = [value if isinstance(name, str) else None for name, value in target.items()]
        if of == "bytes" and not isinstance(target, Mapping):
            self._asked = file_size.parse(target)
            targets = targets if self._asked is None else []
        for value in targets:
            if not is_number(value):
                raise TypeError(
                    "TargetSparsity: target must be σ, a number above 0 and below 1 such as 0.95, or a dict from parts "
                    f"of kernels' paths to such numbers; received {target!r}."
                )
            check_number(
                self,
                "a target σ",
                value,
                "above 0 and below 1, for example 0.95",
                lambda sigma: 0 < sigma < 1,
                "At 1 every kernel would be zero and the network constant.",
            )
        if isinstance(target, Mapping) and per_layer:
            raise ValueError("TargetSparsity: per_layer=True goes with one target for all kernels, not with a dict.")
        if not (is_number(begin) and is_number(end) and 0 <= begin < end <= 1):
            raise ValueError(
                "TargetSparsity: begin and end are shares of training with 0 ≤ begin < end ≤ 1; received "
                f"begin={begin!r}, end={end!r}."
            )
        if interval is not None and not is_positive_integer(interval):
            raise ValueError(
                f"TargetSparsity: interval must be a positive whole number of updates; received {interval!r}."
            )
        if of != "zeros" and (per_layer or isinstance(target, Mapping)):
            raise ValueError(
                f"TargetSparsity(of={of!r}) goes with one target for the whole model: a number, without per_layer."
            )
        self.target, self.per_layer, self.begin, self.end, self.interval = target, per_layer, begin, end, interval
        self.of, self.quantize = of, quantize
        self._schedule = steering.Schedule(begin, end)

    def on_train_begin(self, logs=None):
        optimizer = self._optimizer()
        if not _keras.has_all_variables(self.model):
            raise ValueError(
                f"TargetSparsity must know the kernels of the model {self.model.name!r} before it trains, and it is "
                "not built: add an Input, or call model.build(input_shape)."
            )
        if self.params["steps"] is None:
            raise ValueError(
                "TargetSparsity must know how long training is: the data has no length, so pass steps_per_epoch."
            )
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        self._groups = self._make_groups(optimizer)
        self._first_epoch = None
        # The end is judged on the weights that fit leaves, after the last callback that may change them.
        callers = _keras.callback_list(self)
        self._others = [] if callers is None else list(callers.callbacks)
        self._is_judged_last = callers is not None
        if callers is not None and not any(getattr(other, "judged", None) is self for other in callers.callbacks):
            callers.callbacks.append(_Judge(self))

    def on_epoch_begin(self, epoch, logs=None):
        begins = self._first_epoch is None  # not in on_train_begin, when Backup may have restored nothing yet
        if begins:
            self._first_epoch = self._begun_epoch(self._optimizer(), epoch)
        self._first_batch = self._position = (epoch - self._first_epoch) * self.params["steps"]
        if begins:
            self._plan(self._optimizer())
            for advice in self._advice_on_others():
                warnings.warn(f"TargetSparsity: {advice}", stacklevel=2)

    def _advice_on_others(self, kinds=(keras.callbacks.Callback,)):
        """What to do about callbacks that choose among epochs, in some of which σ has not reached the target."""
        last = self.params["epochs"] - 1
        reached = min(last, self._first_epoch + math.ceil(self.end * (last + 1 - self._first_epoch)))
        denser = (
            f"an epoch before σ has reached its target, in epoch {reached + 1} of {last + 1}: denser ones look better"
        )
        for other in self._others:
            if not isinstance(other, kinds):
                continue
            if isinstance(other, keras.callbacks.EarlyStopping):
                if other.restore_best_weights and other.start_from_epoch < reached:
                    yield (
                        f"EarlyStopping(restore_best_weights=True) may bring back the weights of {denser}. Let it "
                        f"begin there: EarlyStopping(…, start_from_epoch={reached})."
                    )
            elif isinstance(other, keras.callbacks.ModelCheckpoint) and other.save_best_only:
                yield f"ModelCheckpoint(save_best_only=True) may keep {denser}. Save the model after fit() instead."
            elif isinstance(other, keras.callbacks.SwapEMAWeights) and other.swap_on_epoch:
                yield (
                    "SwapEMAWeights(swap_on_epoch=True) leaves averages, which are not zero. Leave it out: with "
                    "use_ema=True the optimizer puts averages in place when training ends, and keeps the zeros."
                )

    def _begun_epoch(self, optimizer, epoch):
        """The epoch in which steering begins, or, if a run that did not end has begun it, in which that did."""
        begun = {group.begun(optimizer) for group in self._groups}
        if len(begun) == 1 and None not in begun and min(begun) <= epoch:
            return begun.pop()
        optimizer.strength_exponents.assign(np.zeros(optimizer.strength_exponents.shape))
        for group in self._groups:
            group.begin(optimizer, epoch)
        return epoch

    def _plan(self, optimizer):
        """How many batches there are to steer, and how often."""
        self._batches = self.params["steps"] * (self.params["epochs"] - self._first_epoch)
        batches_an_update = optimizer.gradient_accumulation_steps or 1
        rising = self._batches * (self.end - self.begin)
        interval = self.interval or self._schedule.interval(self._batches / batches_an_update)
        # Keras calls back once in `steps_per_execution` batches.
        self._interval = max(interval * batches_an_update, self.model.steps_per_execution)
        self._updates = self._interval / batches_an_update
        if rising < self.FEWEST_MEASUREMENTS * self._interval:
            raise ValueError(
                f"TargetSparsity(begin={self.begin}, end={self.end}, interval={self.interval}) measures σ every "
                f"{self._interval} of {self._batches} batches ({batches_an_update} to an update, "
                f"{self.model.steps_per_execution} to an execution): fewer than {self.FEWEST_MEASUREMENTS} times "
                "between begin and end. Train longer, or choose a smaller interval or steps_per_execution."
            )
        self._check_rate(optimizer)

    def _check_rate(self, optimizer):
        """Warn of a schedule that leaves nothing to train with while weights still become zero."""
        schedule, now = _keras.learning_rate_schedule(optimizer), _keras.batches_seen(optimizer)
        if schedule is None:
            return
        left = self._batches - self._position
        rates = [float(schedule(now + batch)) for batch in range(0, left, max(1, left // 20))]
        at_end = float(schedule(now + max(0, int(self.end * self._batches) - self._position)))
        if at_end <= 1e-4 * max([float(schedule(0)), *rates]):
            warnings.warn(
                f"TargetSparsity: the learning rate's schedule has fallen to {at_end:g} when σ should reach its "
                f"target, after {self.end:g} of training: the network cannot learn to do without the last weights. Let "
                "it last as many batches as training (Keras' schedules count batches, under accumulation too), and "
                "compile anew before training again.",
                stacklevel=2,
            )

    def on_train_batch_end(self, batch, logs=None):
        before, self._position = self._position, self._first_batch + batch + 1
        if self._position == self._batches:
            optimizer = self._optimizer()  # raises if the model was compiled with another since
            for group in self._groups:
                group.trimmed = group.trim(optimizer)
        elif before // self._interval != self._position // self._interval:
            shares = self._position / self._batches, self._interval / self._batches
            if sum(shares) > self.begin:  # the last measurement before steering is the first that it needs
                optimizer = self._optimizer()
                for group in self._groups:
                    group.steer(optimizer, self._schedule, steering.Measurement(*shares, self._updates))

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs |= entries(summarize(self.model.trainable_variables), penalty_strengths(self.model))

    def on_train_end(self, logs=None):
        if not self._is_judged_last:
            self._judge()

    def _judge(self):
        """Say so if training has not ended at the target."""
        optimizer = self._optimizer()
        if self._first_epoch is None and all(group.begun(optimizer) is None for group in self._groups):
            return  # no epoch to train
        usual = f"Train longer, or let σ reach the target earlier: end is {self.end}."
        if self._first_epoch is not None and self._position < self._batches:
            usual = f"Training stopped after {self._position} of {self._batches} batches."
        if self._first_epoch is not None:
            # The weights may be as these callbacks left them.
            changers = keras.callbacks.EarlyStopping, keras.callbacks.SwapEMAWeights
            advice = " ".join(self._advice_on_others(changers))
            stopped = usual if self._position < self._batches else ""
            usual = f"{stopped} {advice}".strip() if advice else usual
        for group in self._groups:
            advice, counted, target = usual, group.counted, group.target
            share = group.measure(lambda kernels: [kernel.value for kernel in kernels])
            optimizer.steering_memory.forget(group.positions)
            share, steered = counted.gone(share), share
            if self.of == "multiply_adds":
                before, after = compression.multiply_adds(self.model)
                share = 1 - after / before
                if counted.met(steered, target):
                    advice = (
                        "compress() also removes channels that only dead ones read. Choose a penalty by which whole "
                        'channels go, such as GroupL1(…, groups="channels", layout=model).'
                    )
            if not counted.met(share, target):
                strength = group.strength(optimizer)
                if strength >= 0.99 * group.LARGEST:  # a float32 exponent may miss it
                    advice = (
                        "No λ makes more weights zero: are the learning rate and the gradients above zero, and finite?"
                    )
                elif share > target and advice == usual:
                    advice = f"More went than asked for, and zeros are not all brought back. {usual}"
                warnings.warn(
                    f"TargetSparsity: {group.name} ended at {counted.name} = {counted.text(share)}, not at "
                    f"{counted.text(target)}; λ is {strength:g}. {advice}",
                    stacklevel=2,
                )
            elif group.trimmed > self.NOTABLE_TRIM:
                warnings.warn(
                    f"TargetSparsity: {group.name} reached {counted.name} = {counted.text(target)} only after the last "
                    f"batch, when zeroing {100 * group.trimmed:.0f} % more weights than it keeps may have cost "
                    f"accuracy. {advice}",
                    stacklevel=2,
                )

    def _optimizer(self):
        # By way of self.model each time: on JAX that is what brings the state of a running epoch here.
        optimizer = inner_optimizer(self.model)
        if not isinstance(optimizer, PenalizedOptimizer) or optimizer.penalty is None:
            raise TypeError(
                "TargetSparsity steers the λ of the one optimizer of a model, but this is compiled with "
                f"{type(optimizer).__name__}, which has none of its own. Choose one of keras_rda that takes a penalty, "
                "such as XRDA or MRDA."
            )
        if optimizer.penalty.scheduled:
            raise TypeError(
                "TargetSparsity cannot steer a penalty whose strength follows a schedule: create it with a number."
            )
        if not optimizer.penalty.has_magnitude:
            raise TypeError(
                f"TargetSparsity reads from the penalty's magnitude(w) which λ gives which σ, and "
                f"{type(optimizer.penalty).__name__} does not define it. Define it, or choose one that does, such as "
                "L1 or GroupL1."
            )
        single = self.per_layer or isinstance(self.target, Mapping)
        if single and any(own.penalty is not None and own.penalty.shared for own in getattr(optimizer, "trained", ())):
            raise TypeError(
                "TargetSparsity cannot steer single kernels whose groups of weights lie in several of them: give one "
                'target for the whole model, or choose GroupL1 with groups="inputs".'
            )
        if not optimizer.penalty.proportional and single:
            raise TypeError(
                "TargetSparsity steers single kernels by scaling all of their penalty, but λ is only a part of "
                f"{type(optimizer.penalty).__name__}: give one target for the whole model, or choose L1 or GroupL1."
            )
        return optimizer

    def _counted(self, penalized):
        """What is counted, where it is not zeros."""
        if self.of == "zeros":
            return None
        if self.of == "bytes":
            return self._file_bytes(penalized)
        penalty = inner_optimizer(self.model).penalty
        if isinstance(penalty, L1) or getattr(penalty, "groups", None) == "outputs":
            raise ValueError(
                'TargetSparsity(of="multiply_adds") counts channels that nobody reads, and few go by '
                f"{type(penalty).__name__}{' of filters' if not isinstance(penalty, L1) else ''}. Choose "
                'GroupL1(λ, groups="channels", layout=model), or groups="inputs".'
            )
        found = classes.read(self.model)
        if found is None:
            raise ValueError(
                f'TargetSparsity(of="multiply_adds") must read the model as a graph; {graph.without(self.model)}'
            )
        if found.unknown:
            raise ValueError(
                'TargetSparsity(of="multiply_adds"): they are not known of the layers '
                f"{', '.join(found.unknown)}: give the model's inputs a size, and take Keras' own layers."
            )
        if not found.number:
            raise ValueError(
                f'TargetSparsity(of="multiply_adds"): no channel of {self.model.name!r} can go. They are: '
                f"{'; '.join(found.reasons)}."
            )
        return MultiplyAdds(penalized, found, self.model.variables)

    def _make_groups(self, optimizer):
        # Of the optimizer's variables, which may have been frozen since it was built.
        trained = set(map(id, self.model.trainable_variables))
        penalized = [own for own in optimizer.trained if own.penalty is not None and id(own.variable) in trained]
        if not penalized:
            raise ValueError("TargetSparsity has nothing to steer: the optimizer penalises no variable of the model.")
        counted = self._counted(penalized)
        target = counted.target if self.of == "bytes" else self.target
        groups = steering.groups(penalized, target, self.per_layer, counted)
        for group in groups:
            counted, target = group.counted, group.target
            if target > counted.most:
                raise ValueError(
                    f"TargetSparsity: {group.name} cannot end at {counted.name} = {counted.text(target)}: it can get "
                    f"to {counted.text(counted.most)}, when all has gone that can. Choose a target before that."
                )
            nearest = counted.nearest(target)
            if abs(nearest - target) > TOLERANCE:
                choice = f"the nearest σ is {nearest:.4f}. Choose that" if 0 < nearest < 1 else "no σ can be chosen"
                raise ValueError(
                    f"TargetSparsity: {group.name} cannot end at σ = {target}: it has {counted.units} weights or "
                    f"groups that become zero together, so {choice}, or fewer targets of their own, or a larger "
                    "network."
                )
            now = group.measure(optimizer.sparse_weights)
            # Resumed steering may be beyond for a moment.
            if group.begun(optimizer) is None and counted.beyond(now, target):
                raise ValueError(
                    f"TargetSparsity: {group.name} is beyond the target {counted.text(target)} before it trains, with "
                    f"{counted.name} = {counted.text(counted.gone(now))}, and steering does not bring weights back. "
                    "Choose a target beyond that, or train from dense weights."
                )
        return groups

    def _file_bytes(self, penalized):
        """The bytes of the file, counted."""
        try:
            model = exporting.checked(self.model)
            found = classes.read(model)
            if found is None:
                raise ValueError(graph.without(model))
            return file_size.FileBytes(penalized, model, found, self.quantize, self._asked or self.target)
        except (ValueError, RuntimeError) as error:
            raise type(error)(f'TargetSparsity(of="bytes") writes files to see their size. {error}') from error
