import re
import warnings

import keras
import numpy as np
import pytest
from helpers import BACKEND, OPTIMIZERS, compiled, fit, small_network, state, values

import keras_rda
from keras_rda.callbacks.counted import Zeros
from keras_rda.callbacks.steering import Schedule, Steered, with_margin

STEERED = {name: case for name, case in OPTIMIZERS.items() if case.steered is not None}
TARGETS = {0.8: "MRDA", 0.9: "RMDA", 0.95: "XRDA", 0.98: "ProxSGD-momentum"}  # and which of them is steered by default


def residual_network(filters=24, blocks=1):
    layers = keras.layers

    def convolution(x, filters, strides=1):
        x = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    inputs = keras.Input((8, 8, 1))
    x = layers.ReLU()(convolution(inputs, filters, 2))
    for _ in range(blocks):
        inner = layers.ReLU()(convolution(x, filters))
        x = layers.ReLU()(layers.Add()([x, convolution(inner, filters)]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


NETWORKS = {"convolutions": small_network, "residual": residual_network}


def train(model, optimizer, digits, target, **options):
    x, y = digits
    history = compiled(model, optimizer, **options).fit(
        x[:1024], y[:1024], batch_size=16, epochs=20, verbose=0, callbacks=[target, keras_rda.SparsityLogger()]
    )
    return history.history["kernel_sparsity"]


def cells():
    """All of them with `-m every`, a diagonal by default."""
    for name in STEERED:
        for target, usual in TARGETS.items():
            for network in NETWORKS:
                if network == "convolutions" and target == 0.98:
                    continue  # 16 of 792 weights: no network
                if network == "convolutions" and target == 0.95 and name in ("ProxSGD", "SqrtProxSGD"):
                    continue  # 40 of 792: one noisy gradient brings weights back, or all go; a warning says so
                # The smaller network where it will do.
                diagonal = name == usual and (network == "residual") == (target > 0.9)
                yield pytest.param(name, target, network, marks=() if diagonal else pytest.mark.every)


@pytest.mark.parametrize(("name", "target", "network"), list(cells()))
def test_ends_at_the_target(name, target, network, digits):
    """Warnings are errors, so training that ends elsewhere fails twice."""

    def cosine(rate):
        # The larger network reaches 0.98 with momentum's usual rate, at which the smaller one dies.
        factor = 2 if (name, network) == ("ProxSGD-momentum", "residual") else 1
        return keras.optimizers.schedules.CosineDecay(factor * rate, 64 * 20)

    optimizer = STEERED[name](**{"penalty": 1e-5, **STEERED[name].steered(cosine)})
    sigma = train(NETWORKS[network](), optimizer, digits, keras_rda.TargetSparsity(target))
    assert abs(sigma[-1] - target) <= 0.005
    assert sigma[3] < target  # no jump


several_steps = pytest.mark.skipif(BACKEND == "torch", reason="Keras refuses steps_per_execution on torch")


@pytest.mark.parametrize("variant", [pytest.param("steps_per_execution", marks=several_steps), "mixed_float16"])
def test_ends_at_the_target_whatever_surrounds_it(variant, digits):
    if variant == "mixed_float16":
        keras.config.set_dtype_policy(variant)
    rate = keras.optimizers.schedules.CosineDecay(1.0, 64 * 20)
    # 7 does not divide the 64 batches of an epoch.
    options = {"steps_per_execution": 7} if variant == "steps_per_execution" else {}
    optimizer = keras_rda.XRDA(rate, 1e-5)
    sigma = train(small_network(), optimizer, digits, keras_rda.TargetSparsity(0.9), **options)
    assert abs(sigma[-1] - 0.9) <= 0.005


def test_warm_up_leaves_lambda_alone(digits):
    optimizer = keras_rda.XRDA(1e-12, 1e-9)  # a rate at which no λ that is reached makes zeros

    class Strengths(keras.callbacks.Callback):
        seen = ()

        def on_epoch_end(self, epoch, logs=None):
            self.seen += (float(self.model.optimizer.penalty.strength),)

    strengths = Strengths()
    x, y = digits
    target = keras_rda.TargetSparsity(0.9, begin=0.5, end=1.0, interval=2)
    with pytest.warns(UserWarning, match=r"the model ended at σ = 0\.\d+, not at 0\.9; λ is .*Train longer"):
        compiled(small_network(), optimizer).fit(
            x[:512], y[:512], batch_size=16, epochs=4, verbose=0, callbacks=[target, strengths]
        )
    assert strengths.seen[0] == strengths.seen[1] == pytest.approx(1e-9)
    assert strengths.seen[1] < strengths.seen[2] < strengths.seen[3]


@pytest.mark.parametrize("mode", ["every layer", "named"])
def test_targets_of_single_kernels(mode, digits):
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(64, name="first")])
    model.add(keras.layers.BatchNormalization(momentum=0.9))
    model.add(keras.layers.ReLU())
    model.add(keras.layers.Dense(10, name="second"))
    targets = {"first": 0.9, "second": 0.9 if mode == "every layer" else 0.5}
    callback = (
        keras_rda.TargetSparsity(0.9, per_layer=True, interval=4)
        if mode == "every layer"
        else keras_rda.TargetSparsity(targets, interval=4)
    )
    optimizer = keras_rda.XRDA(keras.optimizers.schedules.CosineDecay(1.0, 64 * 20), 1e-5)
    train(model, optimizer, digits, callback)
    rows = {row.path: row.sparsity for row in keras_rda.summary(model).rows if row.kernel}
    for name, target in targets.items():
        (sigma,) = [sigma for path, sigma in rows.items() if name in path]
        assert abs(sigma - target) <= 0.005
    assert float(optimizer.penalty.strength) == pytest.approx(1e-5)


def test_steering_resumes_with_the_same_bits(tmp_path, digits):
    """λ and what the steering remembers are in the saved state, and the epoch tells where training is."""
    x, y = digits[0][:256], digits[1][:256]

    def fit(model, initial_epoch, epochs, stop=None):
        callbacks = [keras_rda.TargetSparsity(0.8, interval=2)]
        if stop is not None:

            class Stop(keras.callbacks.Callback):
                def on_epoch_end(self, epoch, logs=None):
                    if epoch + 1 == stop:
                        raise KeyboardInterrupt

            callbacks.append(Stop())
        try:
            model.fit(
                x,
                y,
                batch_size=16,
                initial_epoch=initial_epoch,
                epochs=epochs,
                shuffle=False,
                verbose=0,
                callbacks=callbacks,
            )
        except KeyboardInterrupt:
            assert stop is not None

    def fresh():
        keras.utils.set_random_seed(8)
        return compiled(small_network(), keras_rda.XRDA(0.5, 1e-5), jit_compile=BACKEND == "jax")

    undisturbed = fresh()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TargetSparsity: the model ended")
        fit(undisturbed, 0, 6)
    interrupted = fresh()
    fit(interrupted, 0, 6, stop=3)
    interrupted.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TargetSparsity: the model ended")
        fit(resumed, 3, 6)
    assert float(resumed.optimizer.penalty.strength) == float(undisturbed.optimizer.penalty.strength) != 1e-5
    for ours, theirs in zip(state(resumed), state(undisturbed), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": "0.9"}, TypeError, r"target must be σ, a number above 0 and below 1"),
        ({"target": True}, TypeError, r"target must be σ"),
        ({"target": {}}, TypeError, r"target must be σ"),
        ({"target": {1: 0.9}}, TypeError, r"a dict from parts of kernels' paths to such numbers; received \{1: 0\.9\}"),
        ({"target": 95}, ValueError, r"must be above 0 and below 1, for example 0\.95; received 95"),
        ({"target": {"conv": 1.0}}, ValueError, r"must be above 0 and below 1"),
        ({"target": {"conv": 0.9}, "per_layer": True}, ValueError, "per_layer=True goes with one target"),
        ({"target": 0.9, "begin": 0.5, "end": 0.5}, ValueError, r"0 ≤ begin < end ≤ 1; received begin=0\.5, end=0\.5"),
        ({"target": 0.9, "begin": "0"}, ValueError, r"0 ≤ begin < end ≤ 1; received begin='0'"),
        ({"target": 0.9, "interval": 0}, ValueError, "interval must be a positive whole number"),
    ],
)
def test_target_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        keras_rda.TargetSparsity(**arguments)


class OwnPenalty(keras_rda.Penalty):
    """ℓ1 without `magnitude`."""

    def prox(self, w, step):
        return keras_rda.L1.prox(self, w, step)


@pytest.mark.parametrize(
    ("optimizer", "target", "error", "message"),
    [
        (lambda: "adam", 0.9, TypeError, r"compiled with Adam, which has none of its own\. Choose"),
        (lambda: keras_rda.SDA(), 0.9, TypeError, "compiled with SDA, which has none of its own"),
        (
            lambda: keras_rda.MRDA(penalty=keras.optimizers.schedules.CosineDecay(1e-3, 10)),
            0.9,
            TypeError,
            "follows a schedule",
        ),
        (lambda: keras_rda.MRDA(penalty=OwnPenalty(1e-5)), 0.9, TypeError, "OwnPenalty does not define it"),
        pytest.param(
            lambda: keras.optimizers.MultiOptimizer(
                keras.optimizers.OptimizerMap(keras.optimizers.SGD(), {".*kernel": keras_rda.MRDA()})
            ),
            0.9,
            TypeError,
            "steers the λ of the one optimizer of a model, but this is compiled with MultiOptimizer",
            marks=pytest.mark.skipif(
                not hasattr(keras.optimizers, "MultiOptimizer"), reason="this Keras has no MultiOptimizer yet"
            ),
        ),
        (
            lambda: keras_rda.MRDA(penalty=keras_rda.L1L2(1e-3, 1e-2)),
            {"conv2d": 0.9},
            TypeError,
            "λ is only a part of L1L2: give one target for the whole model",
        ),
        (
            lambda: keras_rda.MRDA(),
            {"conv2d": 0.9, "conv": 0.9},
            ValueError,
            r"\['conv'\] are whole names in the path of no",
        ),
        (
            lambda: keras_rda.MRDA(),
            {"conv2d": 0.9, "kernel": 0.8, "conv2d/kernel": 0.8},
            ValueError,
            r"\['conv2d'\] are",
        ),
        (
            lambda: keras_rda.MRDA(penalty=keras_rda.GroupL1(1e-3, "outputs")),
            {"conv2d": 0.9},
            ValueError,
            r"cannot end at σ = 0\.9: it has 8 weights or groups .* nearest σ is 0\.8750",
        ),
    ],
)
def test_targets_that_cannot_be_met(optimizer, target, error, message, digits):
    with pytest.raises(error, match=message):
        fit(compiled(small_network(), optimizer()), digits, [keras_rda.TargetSparsity(target, interval=1)], epochs=30)


def test_target_below_the_present_sparsity(digits):
    model = small_network()
    for layer in (model.layers[0], model.layers[-1]):
        layer.kernel.assign(np.arange(np.prod(layer.kernel.shape)).reshape(layer.kernel.shape) % 10 == 0)
    with pytest.raises(ValueError, match=r"the model is beyond the target 0\.5 before it trains, with σ = 0\.\d+"):
        fit(compiled(model, keras_rda.XRDA()), digits, [keras_rda.TargetSparsity(0.5, interval=1)], epochs=30)


@pytest.mark.parametrize(
    ("epochs", "accumulation", "execution", "every"),
    [(19, None, 1, 1), (40, 4, 1, 4), pytest.param(40, None, 3, 3, marks=several_steps)],
)
def test_target_with_too_few_batches(epochs, accumulation, execution, every, digits):
    model = compiled(
        small_network(), keras_rda.XRDA(gradient_accumulation_steps=accumulation), steps_per_execution=execution
    )
    with pytest.raises(ValueError, match=rf"measures σ every {every} of {2 * epochs} batches .* fewer than 30 times"):
        fit(model, digits, [keras_rda.TargetSparsity(0.9)], epochs=epochs)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras on JAX builds the model first")
def test_target_needs_a_built_model(digits):
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)], name="later")
    with pytest.raises(ValueError, match=r"'later' before it trains, and it is not built: add an Input"):
        fit(compiled(model, keras_rda.XRDA()), digits, [keras_rda.TargetSparsity(0.9)], epochs=40)


def test_rate_that_ends_too_early_is_reported(digits):
    rate = keras.optimizers.schedules.CosineDecay(1.0, 60)
    with pytest.warns(
        UserWarning, match=r"schedule has fallen to 0 when σ should reach its target, after 0\.75 of train"
    ):
        fit(compiled(small_network(), keras_rda.XRDA(rate)), digits, [keras_rda.TargetSparsity(0.9)], epochs=40)


def dense_network():
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten()]
    for name in ("first", "second"):
        layers += [
            keras.layers.Dense(64, name=name),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
        ]
    return keras.Sequential([*layers, keras.layers.Dense(10, name="third")])


def test_default_interval_suits_short_training(digits):
    """With eight batches from one measurement to the next, as in long training, it was 0.80 to 0.87 (three seeds)."""
    x, y = digits
    model = compiled(dense_network(), keras_rda.XRDA(keras.optimizers.schedules.CosineDecay(1.0, 230)), metrics=["acc"])
    history = model.fit(x, y, batch_size=64, epochs=10, verbose=0, callbacks=[keras_rda.TargetSparsity(0.95)]).history
    assert history["acc"][-1] > 0.93


@pytest.mark.parametrize(
    ("updates", "begin", "end", "interval"),
    [
        (60, 0.0, 0.75, 1),
        (640, 0.0, 0.75, 8),
        (10_000, 0.0, 0.75, 20),
        (100_000, 0.0, 0.75, 200),
        (100_000, 0.5, 0.75, 100),
        (100_000, 0.0, 0.01, 16),  # sixty times while σ rises
    ],
)
def test_default_interval(updates, begin, end, interval):
    target = keras_rda.TargetSparsity(0.9, begin=begin, end=end)
    target.set_model(compiled(small_network(), keras_rda.MRDA()))
    target.set_params({"steps": updates // 10, "epochs": 10})
    target.on_train_begin()
    target.on_epoch_begin(0)
    assert target._interval == interval


@pytest.mark.parametrize("optimizer", [keras_rda.MRDA, keras_rda.XRDA])
def test_measurements_begin_with_steering(optimizer, digits, monkeypatch):
    measure, measured = Steered.measure, []
    monkeypatch.setattr(Steered, "measure", lambda *args: measured.append(1) or measure(*args))
    critical, asked = Steered.critical_strengths, []
    monkeypatch.setattr(Steered, "critical_strengths", lambda *args: asked.append(1) or critical(*args))
    x, y = digits[0][:512], digits[1][:512]
    target = keras_rda.TargetSparsity(0.5, begin=0.5, end=1.0, interval=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled(dense_network(), optimizer()).fit(x, y, batch_size=16, epochs=4, verbose=0, callbacks=[target])
    # Of 63 measurements in 128 batches 31 come after the middle. Two more of σ are made when training begins, one at
    # its end, and one or two around the middle.
    assert len(asked) == 31
    assert len(measured) <= 31 + 5


class Sigmas(keras.callbacks.Callback):
    """σ of the kernels after each batch."""

    def on_train_begin(self, logs=None):
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(keras_rda.sparsity(self.model, kernels_only=True))


def steer(model, digits, target, end=0.75, interval=2, **kwargs):
    """Steer in epochs of 32 batches; return σ after each batch."""
    target, sigmas = keras_rda.TargetSparsity(target, end=end, interval=interval), Sigmas()
    model.fit(digits[0][:512], digits[1][:512], batch_size=16, verbose=0, callbacks=[target, sigmas], **kwargs)
    return sigmas.seen


SHORT = "ignore:TargetSparsity. .* ended at σ"  # of runs too short to end within half a point


@pytest.mark.filterwarnings(SHORT)
def test_steering_begins_at_the_present_sparsity_and_epoch(digits):
    """A second stage goes on from the zeros of the first, whatever its initial epoch."""
    model = compiled(dense_network(), keras_rda.MRDA(center="initial"))
    steer(model, digits, 0.8, epochs=6)
    model = compiled(model, keras_rda.MRDA(center="initial"))
    sigma = steer(model, digits, 0.9, initial_epoch=20, epochs=26)
    assert min(sigma[2:]) > 0.75
    assert sigma[4] < 0.86
    assert sigma[-1] == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("penalty", [1e-6, keras_rda.GroupL1(1e-6)])
def test_zeros_beyond_the_target_come_back(digits, penalty):
    """By their gradients, where no average remembers them: without that, so short a training ends at 0.55."""
    model = compiled(dense_network(), keras_rda.XRDA(0.5, penalty))
    group = 64 / 8832  # of the weights
    assert steer(model, digits, 0.5, epochs=4)[-1] == pytest.approx(0.5, abs=0.005 if penalty == 1e-6 else group)


@pytest.mark.filterwarnings(SHORT)
@pytest.mark.parametrize("optimizer", [keras_rda.MRDA, lambda: keras_rda.XRDA(averaging=None)], ids=["MRDA", "XRDA"])
def test_quantiles_of_a_sample(optimizer, digits, monkeypatch):
    """A network of more weights than quantiles are taken of."""
    monkeypatch.setattr(Zeros, "SAMPLE", 2000)
    model = compiled(dense_network(), optimizer())
    assert steer(model, digits, 0.8, epochs=6)[-1] == pytest.approx(0.8, abs=0.03)
    kernels = [trained for trained in model.optimizer.trained if trained.penalty is not None]
    steered = Steered("the model", kernels, 0.8, Zeros(kernels))
    strengths = steered.critical_strengths(model.optimizer)
    limit = steered.counted.limit(strengths, 0.8)
    assert limit == steered.counted.limit(strengths, 0.8)
    assert abs(len(steered.counted._elements(strengths)) - 2000) < 10
    monkeypatch.undo()
    whole = np.concatenate([np.ravel(array) for array in values(strengths)])
    assert len(whole) == steered.counted.weights > 4000
    assert np.mean(whole <= limit) == pytest.approx(0.8, abs=0.03)


def test_warnings_of_single_kernels_are_their_own():
    target = keras_rda.TargetSparsity({"first": 0.9, "second": 0.9})
    target.set_model(compiled(dense_network(), keras_rda.MRDA(penalty=1e-5)))
    target.set_params({"steps": 100, "epochs": 1})
    target.on_train_begin()
    target.on_epoch_begin(0)
    for group, strength in zip(target._groups, (1e6, 1e-3), strict=True):
        group.set_strength(target.model.optimizer, strength)
    target._position = target._batches
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        target.on_train_end()
    first, second = (str(warning.message) for warning in caught if "ended at σ" in str(warning.message))
    assert "No λ makes more weights zero" in first
    assert "Train longer" in second


def test_no_epoch_left_to_steer(digits):
    model = compiled(dense_network(), keras_rda.MRDA())
    before = state(model)
    assert steer(model, digits, 0.8, initial_epoch=4, epochs=4) == []
    for ours, theirs in zip(state(model), before, strict=False):  # the optimizer's are new
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.filterwarnings(SHORT)
def test_steering_of_single_kernels_does_not_outlast_it(digits):
    model = compiled(dense_network(), keras_rda.MRDA())
    steer(model, digits, {"second": 0.8}, epochs=4)
    exponents = model.optimizer.strength_exponents
    assert np.ptp(keras.ops.convert_to_numpy(exponents)) > 0
    sigma = steer(model, digits, 0.9, epochs=4)
    assert sigma[-1] == pytest.approx(0.9, abs=0.02)
    assert not np.any(keras.ops.convert_to_numpy(exponents))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras on JAX refuses an optimizer built with other variables")
def test_steering_after_a_layer_was_frozen(digits):
    """Positions are those of the optimizer, which was built with all layers."""
    model = compiled(dense_network(), keras_rda.XRDA(0.5))
    steer(model, digits, 0.5, epochs=4)
    model.get_layer("first").trainable = False
    model.compile(model.optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    first = values([model.get_layer("first").kernel])[0]
    steer(model, digits, {"second": 0.9}, epochs=4)
    np.testing.assert_array_equal(values([model.get_layer("first").kernel])[0], first)
    assert np.mean(values([model.get_layer("second").kernel])[0] == 0) == pytest.approx(0.9, abs=0.005)


def test_steering_under_gradient_accumulation(digits):
    optimizer = keras_rda.ProxSGD(0.02, 1e-5, momentum=0.9, exponent=0.0, gradient_accumulation_steps=4)
    sigma = steer(compiled(dense_network(), optimizer), digits, 0.9, epochs=24)
    assert sigma[-1] == pytest.approx(0.9, abs=0.005)
    assert max(sigma) < 0.97


def test_few_measurements_follow_the_schedule(digits):
    """60 in 640 updates, which each time move λ by all that is missing."""
    schedule = Schedule(0.0, 0.75)
    optimizer = keras_rda.ProxSGD(keras.optimizers.schedules.CosineDecay(0.1, 640), 1e-6, momentum=0.9, exponent=0.0)
    sigma = steer(compiled(dense_network(), optimizer), digits, 0.9, interval=8, epochs=20)[:480]
    wanted = [schedule.sparsity((batch + 1) / 640, 0.0, with_margin(0.9)) for batch in range(480)]
    assert np.mean(np.abs(np.subtract(sigma, wanted))) < 0.1


def test_large_trim_is_reported(digits):
    """The rate is nearly zero and the zeros are frozen, so those that are missing come after the last batch."""
    model = dense_network()
    for name in ("first", "second", "third"):
        kernel = model.get_layer(name).kernel
        (weights,) = values([kernel])
        kernel.assign(np.where(np.abs(weights) < np.quantile(np.abs(weights), 0.87), 0, weights))
    keras_rda.freeze_zeros(model)
    with pytest.warns(UserWarning, match=r"reached σ = 0\.9 only after the last batch, when zeroing 30 % more weights"):
        steer(compiled(model, keras_rda.ProxSGD(1e-9, 1e-9)), digits, 0.9, end=1.0, epochs=3)


@pytest.mark.parametrize("sample", [Zeros.SAMPLE, 1000])
def test_without_a_quantile_the_target_is_met_from_the_end_of_the_rise_on(digits, monkeypatch, sample):
    """What is missing becomes zero at every measurement: in large networks, up to the last batch, by a sample."""
    monkeypatch.setattr(Zeros, "SAMPLE", sample)
    model = compiled(dense_network(), keras_rda.XRDA(keras.optimizers.schedules.CosineDecay(1.0, 640)))
    sigma = np.array(steer(model, digits, 0.9, epochs=20))
    assert sigma[481:-1:2].min() > (0.899 if sample > 1000 else 0.88)  # after every second batch it is measured
    assert sigma[-1] == pytest.approx(0.9, abs=1e-3)


def test_target_needs_the_length_of_training(digits):
    def batches():
        while True:
            yield digits[0][:32], digits[1][:32]

    with pytest.raises(ValueError, match="so pass steps_per_epoch"):
        compiled(small_network(), keras_rda.XRDA()).fit(
            batches(), shuffle=False, callbacks=[keras_rda.TargetSparsity(0.9)], verbose=0
        )


def restoring(digits, callbacks, epochs=20):
    """Training that is best by the loss at its start; σ at the end."""
    x, y = digits[0][:512], digits[1][:512]
    model = compiled(small_network(), keras_rda.XRDA(keras.optimizers.schedules.CosineDecay(1.0, 16 * epochs), 1e-5))
    model.fit(x, y, batch_size=32, epochs=epochs, verbose=0, callbacks=callbacks)
    return keras_rda.sparsity(model, kernels_only=True)


@pytest.mark.parametrize("first", ["target", "stopping"])
def test_weights_of_an_earlier_epoch_are_no_end_at_the_target(first, digits):
    """Whatever the order of the callbacks, the end is judged on what `fit` leaves, and the mend is named twice."""
    stopping = keras.callbacks.EarlyStopping("loss", mode="max", patience=30, restore_best_weights=True)
    callbacks = [keras_rda.TargetSparsity(0.9), stopping]
    advice = r"Let it begin there: EarlyStopping\(…, start_from_epoch=15\)\.$"
    with pytest.warns(UserWarning, match="TargetSparsity") as caught:
        sigma = restoring(digits, callbacks if first == "target" else callbacks[::-1])
    begin, end = [str(w.message) for w in caught if "TargetSparsity" in str(w.message)]
    assert begin.startswith("TargetSparsity: EarlyStopping(restore_best_weights=True) may bring back the weights of an")
    assert end.startswith(f"TargetSparsity: the model ended at σ = {round(sigma, 4)}, not at 0.9; ")
    assert sigma < 0.5
    for text in (begin, end):
        assert re.search(advice, text)


def test_the_mends_that_are_named_are_mends(digits, tmp_path):
    """Warnings are errors."""
    stopping = keras.callbacks.EarlyStopping("loss", mode="max", restore_best_weights=True, start_from_epoch=15)
    target = keras_rda.TargetSparsity(0.9)
    for _ in range(2):  # the callback object again
        assert abs(restoring(digits, [target, stopping]) - 0.9) < 0.005


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda folder: keras.callbacks.ModelCheckpoint(folder / "best.keras", "loss", save_best_only=True),
            r"ModelCheckpoint\(save_best_only=True\) may keep an epoch before .* Save the model after fit\(\) instead",
        ),
        (
            lambda folder: keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
            r"SwapEMAWeights\(swap_on_epoch=True\) leaves averages, which are not zero",
        ),
    ],
)
def test_what_chooses_or_averages_weights_is_named(make, message, digits, tmp_path):
    model = compiled(small_network(), keras_rda.XRDA(1.0, 1e-5, use_ema=True))
    x, y = digits[0][:512], digits[1][:512]
    with pytest.warns(UserWarning, match=message):
        model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[keras_rda.TargetSparsity(0.5), make(tmp_path)])


def test_callbacks_of_a_loop_of_ones_own(digits):
    """Where nobody is asked, the callback judges when it is told that training has ended."""
    model = compiled(small_network(), keras_rda.XRDA(1.0, 1e-5))
    target = keras_rda.TargetSparsity(0.9, interval=1)
    target.set_params({"steps": 64, "epochs": 1})
    target.set_model(model)
    target.on_train_begin()
    target.on_epoch_begin(0)
    target.on_train_batch_end(0)
    with pytest.warns(UserWarning, match=r"Training stopped after 1 of 64 batches\."):
        target.on_train_end()


def test_the_end_is_not_blamed_on_what_did_not_cause_it(digits, tmp_path):
    """ModelCheckpoint leaves the weights as they are."""

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 2

    keeper = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", "loss", save_best_only=True)
    with pytest.warns(UserWarning, match="TargetSparsity") as caught:
        restoring(digits, [keras_rda.TargetSparsity(0.9), keeper, Stop()])
    begin, end = [str(w.message) for w in caught if "TargetSparsity" in str(w.message)]
    assert "ModelCheckpoint" in begin
    assert end.endswith("Training stopped after 48 of 320 batches.")
