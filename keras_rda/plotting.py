"""Pictures, by matplotlib, which is imported when something is drawn."""

import importlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_rda.checks import is_number
from keras_rda.types import History

# Of Okabe and Ito (https://jfly.uni-koeln.de/color/), which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# What this package's callbacks add to a history.
SPARSITIES, STRENGTH = ("kernel_sparsity", "sparsity"), "penalty_strength"
TITLES = {"kernel_sparsity": "σ of the kernels", "sparsity": "σ of all weights", STRENGTH: "λ"}


def subplots(wanted_by, columns=1, size=(8, 5)):
    """New axes side by side, of one range of x, as an array; a function of the name `wanted_by` draws into them.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{wanted_by} draws with matplotlib, which is not installed: python3 -m pip install matplotlib does that."
        ) from error
    # Not within `rc_context`, which would undo what a notebook's backend sets when it makes its first figure.
    axes = pyplot.subplots(1, columns, sharex=True, squeeze=False, figsize=size, layout="constrained")[1][0]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#E6E6E6")
        panel.set_axisbelow(True)
    return axes


def plot_history(history: History | Mapping[str, History], metric: str | None = None) -> Any:
    """Draw what `model.fit` returned: a metric, σ and λ over the epochs, side by side.

    σ and λ are in a history when `SparsityLogger` or `TargetSparsity` was among the callbacks of `fit`. λ is left out
    where the optimizer has none. Solid lines are of the validation data, where there are any, dashed ones of training.
    A history does not say which epochs were validated: they are taken for the multiples of a `validation_freq` of which
    there are as many, and left out where there is none. So are metrics with several numbers an epoch.

    Args:
        history: A `keras.callbacks.History`, or its dict of lists, a number an epoch; or several of these by the names
            that the legend gives them, `{"dense": …, "sparse": …}`.
        metric: Which to draw, by its name in the history. Defaults to None: the first that the model was compiled
            with, and the loss where there is none.

    Returns:
        The `matplotlib.axes.Axes`, two or three, in an array. `axes[0].figure.savefig("training.png")` keeps them.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: it is not a history, nor a dict of some; or the metric is no name.
        ValueError: a history without epochs, without the metric, or none with σ.

    Examples:
        >>> history = model.fit(x, y, epochs=3, callbacks=[keras_rda.SparsityLogger()], verbose=0)
        >>> axes = keras_rda.plot_history(history)
        >>> [panel.get_title(loc="left") for panel in axes]
        ['loss', 'σ of the kernels', 'λ']
    """
    if not isinstance(metric, str | None):
        raise TypeError(f"plot_history: metric must be the name of an entry of the history; received {metric!r}.")
    runs = {name: _entries(name, of) for name, of in _by_name(history).items()}
    known = list(dict.fromkeys(name for _, of in runs.values() for name in of))
    metric = metric or next(filter(_is_metric, known), "loss")
    for name, (_, of) in runs.items():
        if metric not in of:
            raise ValueError(
                f"plot_history: the history{name and f' {name!r}'} has no metric {metric!r}; it has {', '.join(of)}. "
                'Name one of these, or compile the model with metrics=["accuracy"].'
            )
    sigma = next((name for name in SPARSITIES if name in known), None)
    if sigma is None:
        raise ValueError(
            f"plot_history: σ is in no history; they have {', '.join(known)}. Train with "
            "callbacks=[keras_rda.SparsityLogger()] or TargetSparsity, which write 'kernel_sparsity'."
        )
    has_strength = STRENGTH in known
    axes = subplots("plot_history", 2 + has_strength, size=(10, 2.8))
    for panel, name in zip(axes, (metric, sigma, STRENGTH), strict=False):
        _draw(panel, name, runs)
        validated = " (dashed: training)" if f"val_{name}" in known else ""
        panel.set_title(TITLES.get(name, name) + validated, loc="left", fontsize="medium")
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
    axes[1].set_ylim(-0.02, 1.02)
    if has_strength and any(strength > 0 for _, of in runs.values() for strength in of.get(STRENGTH, ())):
        axes[2].set_yscale("log", nonpositive="mask")
    if len(runs) > 1:
        axes[0].legend(fontsize="small")
    return axes


def _by_name(history):
    """Histories by their names; one alone has none."""
    received = type(history).__name__
    if isinstance(history, Mapping):
        others = [name for name, of in history.items() if not isinstance(of, (keras.callbacks.History, Mapping))]
        if not others and history:
            return history
        if len(others) == len(history):
            return {"": history}
        received = f"a dict in which {others[0]!r} is {type(history[others[0]]).__name__}"
    if not isinstance(history, keras.callbacks.History):
        raise TypeError(
            "plot_history takes what model.fit returned, its dict of lists, or a dict from names to several of them; "
            f"received {received}."
        )
    return {"": history}


def _entries(name, history):
    """The epochs of one history, counted from 1, and its lists of numbers; what has several an epoch is left out."""
    given = history.history if isinstance(history, keras.callbacks.History) else history
    entries = {}
    for key, values in given.items():
        if isinstance(values, (Sequence, np.ndarray)) and len(values) and all(map(is_number, values)):
            entries[key] = list(values)
        elif not isinstance(values, (Sequence, np.ndarray)) or any(np.ndim(value) == 0 for value in values):
            raise TypeError(
                f"plot_history: an entry of a history must be a list of numbers, one an epoch; received {values!r} for "
                f"{key!r}."
            )
    if not entries:
        raise ValueError(f"plot_history: the history{name and f' {name!r}'} has no epochs. Train first: model.fit(…).")
    first = history.epoch[0] if isinstance(history, keras.callbacks.History) else 0
    return range(first + 1, first + 1 + max(map(len, entries.values()))), entries


def _validated(epochs, number):
    """So many epochs that `fit` validated: the multiples of a frequency, rather one that the last epoch is of."""
    multiples = {every: [epoch for epoch in epochs if epoch % every == 0] for every in range(1, epochs.stop)}
    fitting = [found for found in multiples.values() if len(found) == number]
    return next((found for found in fitting if found[-1] == epochs[-1]), fitting[0] if fitting else None)


def _is_metric(name):
    """Whether an entry is a metric of the training data, rather than what callbacks and Keras add."""
    return not (name.startswith("val_") or name.endswith("loss") or name in (*SPARSITIES, STRENGTH, "learning_rate"))


def _draw(panel, name, runs):
    """Lines of the entry `name` and of its validation, a colour a run."""
    for (run, (epochs, entries)), colour in zip(runs.items(), itertools.cycle(COLOURS)):
        trained, validated = entries.get(name), entries.get(f"val_{name}")
        for values, style in ((trained, "-" if validated is None else "--"), (validated, "-")):
            if values is None or (x := _validated(epochs, len(values))) is None:
                continue
            label = run if style == "-" else None
            look = {"color": colour, "linewidth": 1 if style == "--" else 1.8, "marker": "o" if len(x) == 1 else None}
            panel.plot(x, values, style, label=label, **look)
            if len(runs) == 1 and style == "-":
                text = f"{values[-1]:.4g}"
                panel.annotate(text, (x[-1], values[-1]), (4, 0), textcoords="offset points", va="center", color=colour)
