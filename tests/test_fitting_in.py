"""What docs/fitting_in.md says of other parts of Keras, by the code that stands there."""

import pathlib
import warnings

import keras
import numpy as np
import pages
import pytest

import keras_rda
from keras_rda.kernels import is_kernel

CODE = pages.code("fitting_in.md")
UNQUANTIZED = "Layer .* does not have a `quantize` method"  # Keras warns of what has nothing to quantise


@pytest.fixture(scope="module")
def begun():
    """What the page begins with."""
    keras.utils.set_random_seed(0)
    names = {}
    exec(CODE[""], names)
    return names


@pytest.fixture
def run(begun, tmp_path, monkeypatch):
    """Run a section of the page in an empty folder; return its names."""
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)

    def section(heading):
        names = dict(begun)
        exec(CODE[heading], names)
        return names

    return section


def sigma(model):
    return keras_rda.sparsity(model, kernels_only=True)


def accuracy(model, names):
    return float(np.mean(model.predict(names["x_test"], verbose=0).argmax(-1) == names["y_test"]))


def dense_kernels(model):
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    return [np.array(keras.ops.convert_to_numpy(layer.kernel)) for layer in layers]


def int8_kernels(model):
    variables = [variable for variable in model.variables if variable.dtype == "int8"]
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def test_every_section_with_code_is_run():
    assert list(CODE) == ["", "Callbacks", "A search over σ", "Distillation", "model.quantize", "LoRA"]


def test_the_page_begins_with_a_sparse_network(begun):
    assert sigma(begun["model"]) == pytest.approx(0.9, abs=0.005)
    assert accuracy(begun["model"], begun) > 0.95


def test_callbacks(run):
    names = run("Callbacks")
    files = sorted(pathlib.Path().glob("*.keras"))
    assert len(files) == names["epochs"]
    for file in files:
        assert f"{sigma(keras.models.load_model(file)):.2f}" == file.stem.split("-")[-1]
    assert files[-1].name == "epoch-8-sparsity-0.90.keras"
    for name in ("scheduled", "averaged"):
        assert sigma(names[name]) == pytest.approx(0.9, abs=0.005)
        assert accuracy(names[name], names) > 0.95
    assert float(names["scheduled"].optimizer.learning_rate) == pytest.approx(0.5 * (1 + np.cos(np.pi * 7 / 8)))


def test_weights_are_finite_when_training_terminates_on_nan(begun):
    """A NaN among the targets makes the loss one, and every gradient."""
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(4)])
    model.compile(keras_rda.XRDA(0.1), loss="mse")
    targets = np.zeros((96, 4), "float32")
    targets[40] = np.nan
    stop = keras.callbacks.TerminateOnNaN()
    history = model.fit(
        begun["x"][:96] / 16, targets, batch_size=32, epochs=3, shuffle=False, verbose=0, callbacks=[stop]
    )
    assert len(history.epoch) == 1
    assert int(model.optimizer.iterations) == 2
    assert all(np.isfinite(keras.ops.convert_to_numpy(variable)).all() for variable in model.variables)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # KerasTuner 1.4 uses old names of `threading`
def test_search(run):
    pytest.importorskip("keras_tuner")
    names = run("A search over σ")
    assert names["best"].score == names["best"].hyperparameters.get("σ") > 0.5
    assert sigma(names["sparsest"]) == pytest.approx(names["best"].score, abs=0.005)
    assert accuracy(names["sparsest"], names) > 0.95


def test_distillation(run):
    names = run("Distillation")
    student = names["student"]
    assert sigma(student) == pytest.approx(0.9, abs=0.005)
    assert accuracy(student, names) > 0.95
    assert names["distiller"].history.history["distillation_loss"][-1] >= 0
    assert keras_rda.compress(student).count_params() <= student.count_params()


@pytest.fixture
def quantized(run):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", UNQUANTIZED, UserWarning)
        yield run("model.quantize")


def test_zeros_survive_quantisation(quantized):
    before, after = dense_kernels(quantized["model"]), int8_kernels(quantized["quantized"])
    assert all(kernel.dtype == "int8" for kernel in after)
    assert [np.count_nonzero(kernel[own == 0]) for own, kernel in zip(before, after, strict=True)] == [0, 0]
    assert sigma(quantized["model"]) <= sigma(quantized["quantized"]) < sigma(quantized["model"]) + 0.05
    assert accuracy(quantized["quantized"], quantized) > 0.95
    told = {row.path: row.penalised for row in keras_rda.summary(quantized["quantized"]).rows}
    assert len(told) == 7  # all that `model` trains: three kernels, two biases, scale and offset


def test_frozen_layers_count_neither_before_nor_after_quantisation():
    """Else their int8 weights, most of them not zero, would lower σ."""
    layers = keras.layers
    model = keras.Sequential([keras.Input((8,)), layers.Dense(16, trainable=False), layers.Dense(16, use_bias=False)])
    model.layers[1].kernel.assign(np.eye(16))
    before = sigma(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", UNQUANTIZED, UserWarning)
        model.quantize("int8")
    assert sigma(model) == before == 1 - 1 / 16


def test_what_is_quantised_is_not_exported(quantized, tmp_path):
    with pytest.raises(
        ValueError, match=r"\['dense\w*', 'dense\w*'\] were quantised by model\.quantize\(\): .* before"
    ):
        keras_rda.export(quantized["quantized"], tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_what_is_quantised_stays_whole_in_compress(begun, mode):
    """Also where a layer made anew has its weights in another order; and a scale is no kernel."""
    model = keras.models.clone_model(begun["model"])
    model.set_weights(begun["model"].get_weights())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", UNQUANTIZED, UserWarning)
        model.quantize(mode)
    assert {variable.path.split("/")[-1] for variable in model.variables if is_kernel(variable)} == {"kernel"}
    smaller = keras_rda.compress(model)
    x = begun["x_test"][:8]
    np.testing.assert_array_equal(smaller.predict(x, verbose=0), model.predict(x, verbose=0))


def test_state_of_what_was_quantised_since_names_the_way_out(quantized):
    quantized["quantized"].compile(keras_rda.XRDA(), quantized["loss"])
    quantized["quantized"].optimizer.build(quantized["model"].trainable_variables)
    quantized["quantized"].save("quantized.keras")
    with pytest.raises(
        ValueError, match=r"load_model\(path, compile=False\).* quantised or given LoRA\? Compile it anew"
    ):
        keras.models.load_model("quantized.keras")
    assert sigma(keras.models.load_model("quantized.keras", compile=False)) == sigma(quantized["quantized"])


def test_lora(run):
    """The kernels with LoRA are dense, and so is the merged network, which computes the same."""
    names = run("LoRA")
    model, adapted, merged = (names[name] for name in ("model", "adapted", "merged"))
    sparse, dense = (np.mean([np.mean(kernel == 0) for kernel in dense_kernels(each)]) for each in (model, merged))
    assert sparse > 0.6
    assert dense < sparse / 2  # units that were dead have no gradient, and stay
    for ours, theirs in zip(dense_kernels(merged), dense_kernels(adapted), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    factors = [variable for variable in adapted.trainable_variables if "lora" in variable.path]
    assert len(factors) == 4
    assert not any(map(is_kernel, factors))
    with pytest.raises(ValueError, match=r"\['dense\w*', 'dense\w*'\] have LoRA"):
        keras_rda.freeze_zeros(adapted)
    assert accuracy(adapted, names) > 0.95


def test_factors_of_lora_are_not_penalised(begun):
    """The convolution is; where nothing else is, that is said."""
    model = keras.models.clone_model(begun["model"])
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense):
            layer.enable_lora(2)
    model.compile(keras_rda.XRDA(0.5, 1.0), begun["loss"])
    model.fit(begun["x"][:64], begun["y"][:64], verbose=0)
    penalised = [row.path.split("/")[-1] for row in keras_rda.summary(model).rows if row.penalised]
    assert penalised == ["kernel"]
    factors = [variable for variable in model.trainable_variables if "lora_kernel_a" in variable.path]
    assert all(np.all(keras.ops.convert_to_numpy(factor) != 0) for factor in factors)
    model.layers[1].trainable = False
    with pytest.warns(UserWarning, match="nothing to penalise: .* or factor of LoRA"):
        keras_rda.XRDA().build(model.trainable_variables)
