"""The pieces of steering, without a model."""

import math
import types

import numpy as np
import pytest
import reference

import keras_rda
from keras_rda.callbacks import counted, steering


def test_schedule_rises_between_its_ends():
    schedule = steering.Schedule(begin=0.2, end=0.6)
    # Halfway, 1 − (1 − ½)³ = 7/8 of the way from 0.1 to 0.9.
    wanted = {0.0: 0.1, 0.2: 0.1, 0.4: 0.1 + 0.8 * 7 / 8, 0.6: 0.9, 1.0: 0.9}
    for progress, sigma in wanted.items():
        assert schedule.sparsity(progress, 0.1, 0.9) == pytest.approx(sigma)


def test_feedback_rests_at_its_aim():
    assert steering.feedback(0.7, None, 0.7, gain=1) == 1.0
    assert steering.feedback(0.7, 0.7, 0.7, gain=1) == 1.0


@pytest.mark.parametrize(("sigma", "aim", "change"), [(0.0, 0.99, 1.0), (1.0, 0.5, -1.0)])
def test_feedback_is_bounded(sigma, aim, change):
    assert steering.feedback(sigma, None, aim, gain=1) == pytest.approx(math.exp(change))


def test_feedback_looks_ahead():
    """σ went from 0.4 to 0.5, in log-odds from −d to 0, and heads for d, which is 0.6."""
    d = math.log(0.601 / 0.401)
    assert steering.feedback(0.5, 0.4, 0.6, gain=0.3) == pytest.approx(1.0)
    assert steering.feedback(0.5, 0.4, 0.5, gain=0.3) == pytest.approx(math.exp(-0.3 * d))
    assert steering.feedback(0.5, None, 0.6, gain=0.3) == pytest.approx(math.exp(0.3 * d))  # at rest: upwards


@pytest.mark.parametrize(("updates", "gain"), [(1, 0.3), (8, 0.305), (22, 0.632), (94, 0.986)])
def test_gain_grows_with_the_interval(updates, gain):
    assert steering.Measurement(0.5, 0.1, updates).gain == pytest.approx(gain, abs=1e-3)


def test_margin():
    assert steering.with_margin(0.9) == pytest.approx(1 - 1.1 * 0.1)  # 10 % more nonzero weights
    assert steering.with_margin(0.01) == pytest.approx(0.01 / 1.1)  # 1 − 1.1·0.99 is below zero


def test_trim_takes_the_smallest():
    magnitudes = np.array([3.0, 0, 1, 0, 4, 0, 2, 0, 5, 0])  # half are zero
    # At 0.6, one is missing to six zeros, and four are kept; at 0.7, two and three, more than half.
    assert counted.trim_limit(magnitudes, 0.6) == (1.0, 1 / 4)
    assert counted.trim_limit(magnitudes, 0.7) is None
    assert counted.trim_limit(magnitudes, 0.5) is None


def test_trim_leaves_equal_ones_that_overshoot():
    """One is missing, and the smallest are a group of two or of three: one or two too many."""
    zeros, larger = [0.0] * 5, [2.0, 2.5, 3.0]
    assert counted.trim_limit(np.array([*zeros, 1.0, 1.0, *larger]), 0.6) is None
    assert counted.trim_limit(np.array([*zeros, 1.0, 1.5, *larger]), 0.6) == (1.0, 1 / 4)


def test_quantile_of_critical_strengths_gives_the_wanted_sigma():
    """A weight is soft(u, λ·step): zero from λ = |u| / step on."""
    random = np.random.default_rng(0)
    kernels = [types.SimpleNamespace(position=i) for i in range(2)]
    points = [(random.normal(size=(20, 25)).astype("float32"), np.float32(step)) for step in (2.0, 7.0)]
    optimizer = types.SimpleNamespace(
        present_prox_point=lambda kernel: points[kernel.position],
        magnitudes=lambda kernels, arrays: list(map(np.abs, arrays)),
    )
    strengths = steering.Steered("both", kernels, 0.9, None).critical_strengths(optimizer)
    strength = np.quantile(strengths, 0.9)
    zeros = sum(np.count_nonzero(reference.soft(u, strength * step) == 0) for u, step in points)
    assert zeros == 900


def test_groups_by_the_longest_name():
    kernels = [
        types.SimpleNamespace(
            position=i, penalty=keras_rda.L1(1.0), variable=types.SimpleNamespace(path=path, shape=(2, 3))
        )
        for i, path in enumerate(("a/dense/kernel", "b/dense/kernel", "conv/kernel"))
    ]
    first, second = steering.groups(kernels, {"dense": 0.5, "b/dense": 0.8}, per_layer=False)
    assert [(first.name, first.target), (second.name, second.target)] == [
        ("a/dense/kernel", 0.5),
        ("b/dense/kernel", 0.8),
    ]
    assert [len(steering.groups(kernels, 0.9, per_layer)) for per_layer in (False, True)] == [1, 3]
