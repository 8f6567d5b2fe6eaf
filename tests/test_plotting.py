"""Pictures of training, of real training; what they hold is read back from the axes."""

import sys

import keras
import numpy as np
import pytest
from helpers import compiled, fit, small_network
from matplotlib import pyplot

import keras_rda


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


def lines(panel):
    """The lines of a panel as (epochs, values), in the order in which they are drawn."""
    return [tuple(list(map(float, of)) for of in line.get_data()) for line in panel.lines]


def trained(digits, optimizer=None, callbacks=None, epochs=2, **kwargs):
    callbacks = [keras_rda.SparsityLogger()] if callbacks is None else callbacks
    model = compiled(small_network(), optimizer or keras_rda.MRDA(0.1, 0.01), metrics=["accuracy"])
    return fit(model, digits, callbacks, epochs=epochs, **kwargs)


def test_draws_metric_sparsity_and_strength(digits, tmp_path):
    history = trained(digits, validation_data=(digits[0][:64], digits[1][:64]), epochs=3)
    entries = history.history
    axes = keras_rda.plot_history(history)
    assert [panel.get_title(loc="left") for panel in axes] == ["accuracy (dashed: training)", "σ of the kernels", "λ"]
    epochs = [1.0, 2.0, 3.0]
    assert lines(axes[0]) == [(epochs, entries["accuracy"]), (epochs, entries["val_accuracy"])]
    assert [line.get_linestyle() for line in axes[0].lines] == ["--", "-"]
    assert lines(axes[1]) == [(epochs, entries["kernel_sparsity"])]
    assert lines(axes[2]) == [(epochs, entries["penalty_strength"])] == [(epochs, [pytest.approx(0.01)] * 3)]
    assert axes[2].get_yscale() == "log"
    assert [text.get_text() for text in axes[1].texts] == [f"{entries['kernel_sparsity'][-1]:.4g}"]
    axes[0].figure.savefig(tmp_path / "training.png")
    assert (tmp_path / "training.png").stat().st_size > 5_000


def test_target_sparsity_alone_is_enough(digits):
    """It writes what it steers; with targets of single kernels λ is the mean of theirs."""
    rate = keras.optimizers.schedules.CosineDecay(1.0, 60)
    target = keras_rda.TargetSparsity(0.5, per_layer=True)
    history = trained(digits, optimizer := keras_rda.XRDA(rate), [target], epochs=30)
    assert history.history["kernel_sparsity"][-1] == pytest.approx(0.5, abs=0.01)
    exponents = keras.ops.convert_to_numpy(optimizer.strength_exponents)
    penalised = [own.position for own in optimizer.trained if own.penalty is not None]
    own = float(optimizer.penalty.strength.numpy()) * np.exp(exponents[penalised])
    assert len(set(own)) == 2
    assert history.history["penalty_strength"][-1] == pytest.approx(np.sqrt(own[0] * own[1]), rel=1e-4)
    assert len(keras_rda.plot_history(history.history)) == 3


def test_several_histories(digits):
    """A colour each; those without an entry have no line there; epochs go on where the last fit ended."""
    model = compiled(small_network(), keras_rda.MRDA(0.1, 0.01), metrics=["accuracy"])
    first = fit(model, digits, [keras_rda.SparsityLogger()], epochs=2)
    second = fit(model, digits, [keras_rda.SparsityLogger()], epochs=3, initial_epoch=2)
    dense = trained(digits, keras.optimizers.SGD(0.1), [])
    axes = keras_rda.plot_history({"dense": dense, "sparse": first, "more": second.history | {"loss": [0.5]}})
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["dense", "sparse", "more"]
    assert len({line.get_color() for line in axes[0].lines}) == 3
    assert [len(panel.lines) for panel in axes] == [3, 2, 2]
    assert lines(keras_rda.plot_history({"first": first, "second": second})[1])[1][0] == [3.0]
    with pytest.raises(ValueError, match=r"the history 'dense' has no metric 'top'; it has accuracy, loss\."):
        keras_rda.plot_history({"dense": dense, "sparse": first}, metric="top")


def test_what_is_missing_is_left_out(digits):
    """No metric: the loss. No penalty: no λ. Validated every other epoch: at those epochs. λ = 0: no logarithm."""
    model = compiled(small_network(), keras_rda.SDA(0.1))
    validation = {"validation_data": (digits[0][:64], digits[1][:64]), "validation_freq": 2}
    axes = keras_rda.plot_history(fit(model, digits, [keras_rda.SparsityLogger()], epochs=4, **validation))
    assert [panel.get_title(loc="left") for panel in axes] == ["loss (dashed: training)", "σ of the kernels"]
    assert [epochs for epochs, _ in lines(axes[0])] == [[1.0, 2.0, 3.0, 4.0], [2.0, 4.0]]
    axes = keras_rda.plot_history({"accuracy": [0.5, 0.75], "sparsity": [0.0, 0.0], "penalty_strength": [0.0, 0.0]})
    assert axes[1].get_title(loc="left") == "σ of all weights"
    assert axes[2].get_yscale() == "linear"


@pytest.mark.parametrize(
    ("first", "epochs", "every"), [(0, 5, 2), (0, 7, 3), (0, 10, 5), (2, 6, 2), (0, 9, 4), (0, 3, 1), (1, 2, 1)]
)
def test_validation_stands_at_its_epochs(digits, first, epochs, every):
    """Those that `fit` validates, where the number of values tells the frequency."""
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.extend([epoch + 1] if "val_loss" in logs else [])

    model = compiled(small_network(), keras_rda.MRDA(0.1, 0.01))
    few = digits[0][:16], digits[1][:16]
    callbacks = [keras_rda.SparsityLogger(), Watch()]
    options = {"validation_data": few, "validation_freq": every, "initial_epoch": first}
    history = fit(model, few, callbacks, epochs=epochs, **options)
    assert lines(keras_rda.plot_history(history)[0])[1][0] == seen


def test_entries_that_are_not_drawn_do_not_matter():
    """Some metrics have a number a class; an entry may be empty, an array, or of epochs that no frequency gives."""
    history = {"f1_score": [np.ones(3), np.ones(3)], "accuracy": np.array([0.5, 0.9]), "sparsity": [0.5, 0.6]}
    axes = keras_rda.plot_history(history | {"val_accuracy": [], "penalty_strength": [1.0, 1.0]})
    assert lines(axes[0]) == [([1.0, 2.0], [0.5, 0.9])]
    axes = keras_rda.plot_history({"loss": [1.0] * 5, "val_loss": [1.0] * 4, "sparsity": [0.5] * 5})
    assert len(axes[0].lines) == 1
    axes = keras_rda.plot_history({"loss": [1.0], "sparsity": [0.9996]})
    assert [line.get_marker() for line in axes[0].lines] == ["o"]
    assert [text.get_text() for text in axes[1].texts] == ["0.9996"]


def test_errors(digits):
    for wrong in (small_network(), None, {"sparse": {"loss": [1.0]}, "loss": [1.0]}):
        received = r"(Sequential|NoneType|a dict in which 'loss' is list)\."
        with pytest.raises(TypeError, match=rf"takes what model\.fit returned, .*; received {received}"):
            keras_rda.plot_history(wrong)
    with pytest.raises(TypeError, match=r"metric must be the name of an entry of the history; received \['loss'\]"):
        keras_rda.plot_history({"loss": [1.0], "sparsity": [0.5]}, metric=["loss"])
    for wrong in ({"loss": [1.0], "accuracy": 0.5}, {"loss": ["1.0"]}):
        with pytest.raises(TypeError, match="must be a list of numbers, one an epoch; received"):
            keras_rda.plot_history(wrong)
    for none in (keras.callbacks.History(), {}, {"loss": []}, trained(digits, epochs=0)):
        with pytest.raises(ValueError, match=r"the history has no epochs\. Train first"):
            keras_rda.plot_history(none)
    with pytest.raises(ValueError, match=r"σ is in no history; they have accuracy, loss\. Train with callbacks="):
        keras_rda.plot_history(trained(digits, callbacks=[]))


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    found = keras_rda.Sensitivity((0.5,), 1.0, ())
    for name, draw in (
        ("plot_history", lambda: keras_rda.plot_history({"loss": [1.0], "sparsity": [0.5]})),
        ("Sensitivity.plot", found.plot),
    ):
        with pytest.raises(ImportError, match=f"{name} draws with matplotlib, .*: python3 -m pip install matplotlib"):
            draw()
