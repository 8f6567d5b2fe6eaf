"""Nothing of a training run is lost: configuration, state, and the bits after an interruption."""

import copy
import os
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from helpers import BACKEND, COMPILES, compiled, small_network, state, values, variables

import keras_rda


def assert_same_bits(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_config_round_trip(make_optimizer):
    optimizer = make_optimizer(weight_decay=0.01, clipnorm=1.0, name="mine")
    optimizer.exclude_from_penalty(var_names=["head"])
    config = optimizer.get_config()
    again = type(optimizer).from_config(config)
    assert again.get_config() == config
    assert keras.optimizers.deserialize(keras.optimizers.serialize(optimizer)).get_config() == config


def test_config_keeps_schedules_and_changed_strength():
    schedule = keras.optimizers.schedules.PolynomialDecay(1e-3, 100, 0.0)
    optimizer = keras_rda.MRDA(schedule, keras_rda.L1(schedule), exponent=0.4)
    again = keras_rda.MRDA.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    assert again.exponent == 0.4
    changed = keras_rda.MRDA(penalty=1e-3)
    changed.penalty.strength = 5e-3
    assert float(keras_rda.MRDA.from_config(changed.get_config()).penalty.strength) == pytest.approx(5e-3)


def test_copied_optimizer_goes_on_from_the_same_state(make_optimizer):
    optimizer = make_optimizer(learning_rate=keras.optimizers.schedules.CosineDecay(0.1, 12), use_ema=True)
    kernel, bias = variables(np.zeros((2, 3)), np.ones(3))
    optimizer.exclude_from_penalty(var_list=[bias])
    random = np.random.default_rng(0)

    def step(of):
        random_gradients = [random.normal(size=variable.shape).astype("float32") for variable in (kernel, bias)]
        of.apply(list(map(keras.ops.convert_to_tensor, random_gradients)), [kernel, bias])

    fresh = copy.deepcopy(optimizer)
    assert not fresh.built
    for _ in range(3):
        step(optimizer)
    copied, start = copy.deepcopy(optimizer), values([kernel, bias])
    assert_same_bits(values(copied.variables), values(optimizer.variables))
    assert copied.get_config() == optimizer.get_config()
    before, ends = values(optimizer.variables), []
    for either in (copied, optimizer):
        random = np.random.default_rng(1)
        for variable, value in zip((kernel, bias), start, strict=True):
            variable.assign(value)
        step(either)
        ends.append(values([kernel, bias, *either.variables]))
        if either is copied:
            assert_same_bits(values(optimizer.variables), before)
    assert_same_bits(*ends)
    assert any(np.any(a != b) for a, b in zip(start, ends[0], strict=False))


def test_exclusions_survive_loading(tmp_path, digits):
    model = small_network()
    optimizer = keras_rda.MRDA(0.1, 0.01)
    optimizer.exclude_from_penalty(var_list=[model.layers[-1].kernel])
    optimizer.exclude_from_penalty(var_names=["bias"])
    x, y = digits[0][:32], digits[1][:32]
    compiled(model, optimizer).fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.fit(x, y, verbose=0)
    for either in (optimizer, loaded.optimizer):
        indices = range(len(model.trainable_variables))
        assert [i for i in indices if either.penalizes(i)] == [0]


def test_saved_exclusions_take_more_and_fit_other_models():
    kernels = variables(np.ones((2, 2)), np.ones((3, 3)), np.ones((4, 4)))
    for name, kernel in zip("abc", kernels, strict=True):
        kernel._path = f"model/{name}/kernel"
    optimizer = keras_rda.MRDA()
    optimizer.exclude_from_penalty(var_list=[kernels[0]])
    unbuilt = optimizer.get_config()
    optimizer.build(kernels)
    for config in (unbuilt, optimizer.get_config()):
        again = keras_rda.MRDA.from_config(config)
        again.exclude_from_penalty(var_list=[kernels[1]])
        again.build(kernels)
        assert [again.penalizes(i) for i in range(3)] == [False, False, True]
        fewer = keras_rda.MRDA.from_config(config)
        fewer.build(kernels[:2])
        assert [fewer.penalizes(i) for i in range(2)] == [False, True]
        with pytest.raises(ValueError, match=r"given \['model/a/kernel'\], which match none"):
            keras_rda.MRDA.from_config(config).build(kernels[1:])


def test_exclusions_from_weight_decay_survive_loading(tmp_path, digits):
    """Keras does not save them, and resumed training would differ."""
    optimizer = keras_rda.MRDA(0.1, 0.01, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model = compiled(small_network(), optimizer)
    model.fit(digits[0][:32], digits[1][:32], verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    decays = [trained.decays for trained in optimizer.trained]
    assert [trained.decays for trained in loaded.optimizer.trained] == decays
    assert sum(decays) == 2


def test_resumed_training_has_the_same_bits(make_optimizer_of_each_kind, tmp_path, digits):
    x, y = digits[0][:96], digits[1][:96]

    def fit(model, epochs):
        model.fit(x, y, batch_size=32, epochs=epochs, shuffle=False, verbose=0)

    def fresh():
        keras.utils.set_random_seed(5)
        optimizer = make_optimizer_of_each_kind(
            learning_rate=keras.optimizers.schedules.CosineDecay(0.1, 12),
        )
        initializer = "zeros" if isinstance(optimizer, keras_rda.RDA) else "glorot_uniform"
        return compiled(small_network(initializer), optimizer, jit_compile=BACKEND == "jax")

    undisturbed = fresh()
    fit(undisturbed, 2)
    fit(undisturbed, 2)
    interrupted = fresh()
    fit(interrupted, 2)
    interrupted.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    assert_same_bits(state(resumed), state(interrupted))
    fit(resumed, 2)
    assert_same_bits(state(resumed), state(undisturbed))


def test_model_saved_before_training_keeps_its_weights_as_centre(tmp_path, digits):
    """Keras builds the optimizer of a loaded model before it loads the weights."""
    x, y = digits[0][:32], digits[1][:32]
    model = compiled(small_network(), keras_rda.MRDA(1e-6, 0.0, center="initial"))
    before = values(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.fit(x, y, verbose=0)
    for ours, theirs in zip(values(loaded.trainable_variables), before, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_model_saved_before_training_trains_as_if_it_had_not_been(tmp_path, digits):
    model = compiled(small_network(), keras_rda.XRDA(0.5, 1e-3), jit_compile=BACKEND == "jax")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for either in (model, loaded):
        either.fit(digits[0][:96], digits[1][:96], batch_size=32, shuffle=False, verbose=0)
    assert keras_rda.sparsity(model) > 0
    assert_same_bits(state(loaded), state(model))


def test_initial_weights_are_the_centre_in_fit(digits):
    """The optimizer is built inside the traced train step on TensorFlow, where a value assigned in build() is lost."""
    x, y = digits[0][:32], digits[1][:32]
    optimizer = keras_rda.SDA(1e-6)
    model = small_network()
    before = values(model.trainable_variables)
    compiled(model, optimizer, jit_compile=COMPILES).fit(x, y, batch_size=8, epochs=2, verbose=0)
    for trained, weights in zip(optimizer.trained, before, strict=True):
        np.testing.assert_array_equal(values([trained.slots["center"]])[0], weights)


def test_keras_file_loads_in_a_fresh_process(tmp_path, digits):
    model = compiled(small_network(), keras_rda.MRDA(0.1, keras_rda.L1(0.01)))
    model.fit(digits[0][:32], digits[1][:32], verbose=0)
    model.save(tmp_path / "model.keras")
    script = """
        import sys, keras, keras_rda
        model = keras.models.load_model(sys.argv[1])
        print(type(model.optimizer).__name__, type(model.optimizer.penalty).__name__, int(model.optimizer.iterations))
    """
    output = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path / "model.keras"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert output.split() == ["MRDA", "L1", "1"]


def test_state_of_another_class_with_as_many_variables_raises():
    """RDA and MRDA keep the same arrays."""
    saved, loading = keras_rda.RDA(), keras_rda.MRDA()
    for optimizer in (saved, loading):
        optimizer.build(variables(np.zeros((2, 2))))
    assert [v.shape for v in saved.variables] == [v.shape for v in loading.variables]
    store = {}
    saved.save_own_variables(store)
    with pytest.raises(ValueError, match=r"does not fit MRDA .* state of other variables"):
        loading.load_own_variables(store)
    with pytest.raises(ValueError, match=r"set_weights\(\) takes 9 arrays, .* received 3"):
        loading.set_weights(values(saved.variables)[:3])


@pytest.mark.parametrize(
    ("saved", "loading"),
    [
        (lambda: keras_rda.MRDA(), lambda: keras_rda.MRDA(center="initial")),
        (lambda: keras_rda.MRDA(), lambda: keras_rda.ProxSGD()),
        (lambda: keras.optimizers.SGD(0.1, momentum=0.9), lambda: keras_rda.MRDA()),
    ],
    ids=["other centre", "other class", "SGD's"],
)
def test_state_of_another_optimizer_raises(saved, loading, tmp_path, digits):
    x, y = digits[0][:32], digits[1][:32]
    model = compiled(small_network(), saved())
    model.fit(x, y, verbose=0)
    model.save_weights(tmp_path / "model.weights.h5")
    other = compiled(small_network(), loading())
    other.fit(x, y, verbose=0)
    with pytest.raises(
        ValueError, match=r"sums that were lost\. Compile the model with the optimizer .* that was saved"
    ):
        other.load_weights(tmp_path / "model.weights.h5")
    unbuilt = compiled(small_network(), loading())
    with pytest.raises(ValueError, match=r"optimizer\.build\(model\.trainable_variables\)"):
        unbuilt.load_weights(tmp_path / "model.weights.h5")


def test_state_of_another_shape_raises():
    optimizer, other = keras_rda.MRDA(), keras_rda.MRDA()
    optimizer.build(variables(np.ones((2, 3))))
    other.build(variables(np.ones((3, 3))))
    store = {}
    optimizer.save_own_variables(store)
    with pytest.raises(ValueError, match=r"has shape \(2, 3\) where .* has \(3, 3\)"):
        other.load_own_variables(store)


TRAINING = """
    import os, signal, sys
    import keras, numpy as np
    import keras_rda

    sys.path.insert(0, sys.argv[1])
    from helpers import COMPILES, compiled, small_network, state

    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations) == int(sys.argv[4]):
                os.kill(os.getpid(), signal.SIGKILL)

    keras.utils.set_random_seed(6)
    (x, y), _ = keras_rda.datasets.load_digits()
    x, y = (x[:128] / 16).astype("float32"), y[:128]
    optimizer = keras_rda.MRDA(keras.optimizers.schedules.CosineDecay(0.5, 16), 1e-3)
    model = compiled(small_network(), optimizer, jit_compile=COMPILES)
    backup = keras.callbacks.BackupAndRestore(sys.argv[2], delete_checkpoint=False)
    model.fit(x, y, batch_size=32, epochs=4, shuffle=False, verbose=0, callbacks=[backup, Kill()])
    np.savez(sys.argv[3], *state(model))
"""


def test_killed_and_resumed_run_ends_with_the_same_bits(tmp_path):
    def train(name, kill_at):
        arguments = [os.path.dirname(__file__), tmp_path / name, tmp_path / f"{name}.npz", str(kill_at)]
        return subprocess.run([sys.executable, "-c", textwrap.dedent(TRAINING), *arguments], check=False).returncode

    assert train("undisturbed", -1) == 0
    assert train("killed", 10) == -signal.SIGKILL  # in the third epoch of four
    assert not (tmp_path / "killed.npz").exists()
    assert train("killed", -1) == 0
    with np.load(tmp_path / "undisturbed.npz") as ours, np.load(tmp_path / "killed.npz") as theirs:
        assert_same_bits(list(ours.values()), list(theirs.values()))
        assert ours["arr_0"].size > 0
