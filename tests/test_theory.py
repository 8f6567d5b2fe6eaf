"""The paper's theory, measured: ℓ1 logistic regression (even or odd digit) with one real sample a step.

With ‖x‖ = 1 every stochastic gradient of log(1 + exp(−y·xᵀw)) has norm at most 1, so G = 1; h(w) = ½‖w‖².
`pytest tests/test_theory.py -rP` prints the measured numbers.
"""

import functools
import itertools

import keras
import numpy as np
import pytest
import reference
from helpers import BACKEND, compiled_steps

import keras_rda

pytestmark = [
    pytest.mark.xdist_group("theory"),  # the tests share trajectories: one worker for all of them
    pytest.mark.skipif(BACKEND != "tensorflow", reason="the same iterates on JAX, as test_equations.py shows on both"),
]

STRENGTH, GAMMA, STEPS, SEEDS = 0.01, 0.07, 6400, 3
METHODS = {"RDA": keras_rda.RDA, "MRDA": keras_rda.MRDA, "ProxSGD": keras_rda.ProxSGD}


@functools.cache
def problem():
    (images, labels), _ = keras_rda.datasets.load_digits()
    x = images.reshape(-1, 64).astype("float64")
    return x / np.linalg.norm(x, axis=1, keepdims=True), np.where(labels % 2 == 0, 1.0, -1.0)


def loss(w, x, y):
    return np.logaddexp(0, -y * (x @ w))


def gradient(w, x, y):
    return -y * x / (1 + np.exp(y * (x @ w)))


def penalty(w):
    return STRENGTH * np.abs(w).sum(axis=0)


def objective(w):
    """φ(w), or φ of every column of w."""
    x, y = problem()
    return np.mean(np.logaddexp(0, -y[:, None] * (x @ w.reshape(64, -1))), axis=0) + penalty(w.reshape(64, -1))


@functools.cache
def optimum():
    """The minimiser of φ by accelerated proximal gradient descent (FISTA) in float64."""
    x, y = problem()
    lipschitz = 0.25 * np.linalg.norm(x, 2) ** 2 / len(x)
    w, v, s = np.zeros(64), np.zeros(64), 1.0
    for _ in range(20_000):
        g = np.mean(-(y / (1 + np.exp(y * (x @ v))))[:, None] * x, axis=0)
        next_w = reference.soft(v - g / lipschitz, STRENGTH / lipschitz)
        next_s = (1 + np.sqrt(1 + 4 * s * s)) / 2
        v = next_w + (s - 1) / next_s * (next_w - w)
        w, s = next_w, next_s
    return w


@functools.cache
def runs(method):
    """For each seed w_1 … w_STEPS as rows, and the index of each step's sample.

    Every entry of a kernel moves by itself, so a column for each seed trains all of them at once.
    """
    x, y = problem()
    randoms = [np.random.default_rng(seed) for seed in range(SEEDS)]
    orders = [random.integers(0, len(x), STEPS) for random in randoms]
    first = np.transpose([np.zeros(64) if method == "RDA" else random.normal(size=64) for random in randoms])
    iterates = [first]

    def gradients():
        for samples in zip(*orders, strict=True):
            columns = [gradient(w, x[i], y[i]) for w, i in zip(iterates[-1].T, samples, strict=True)]
            yield np.transpose(columns).astype("float32")

    variable = keras.Variable(first, dtype="float32", name="kernel")
    steps = itertools.islice(gradients(), STEPS - 1)
    for w in compiled_steps(METHODS[method](1 / GAMMA, STRENGTH), variable, steps):
        iterates.append(w.astype("float64"))
    return list(zip(np.moveaxis(iterates, 2, 0), orders, strict=True))


@pytest.mark.parametrize("method", ["RDA", "MRDA"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_regret_stays_under_the_bound_of_lemma_7_4(method, seed):
    iterates, order = runs(method)[seed]
    x, y = problem()
    x, y = x[order], y[order]
    t = np.arange(1, STEPS + 1)
    beta = GAMMA * np.sqrt(t)
    squared_radius = 0.5 * optimum() @ optimum()  # D² ≥ h(w)
    sum_inverse_beta = np.cumsum(1 / np.concatenate([beta[:1], beta[:-1]]))  # τ = 0 … t−1 with β_0 = β_1
    bound = penalty(iterates[0]) + beta * squared_radius + 0.5 * sum_inverse_beta
    ours = np.logaddexp(0, -y * np.sum(x * iterates, axis=1)) + penalty(iterates.T)
    for name, w in {"w*": optimum(), "0": 0 * optimum(), "-w*": -optimum()}.items():  # all in F_D
        share = np.cumsum(ours - loss(w, x, y) - penalty(w)) / bound
        print(f"{method}, seed {seed}: largest regret / bound against {name}: {share.max():.3f}")
        assert np.all(share <= 1)


@pytest.mark.parametrize("method", ["RDA", "MRDA"])
def test_gap_of_the_average_falls_like_one_over_root_t(method):
    """Theorem 3.1: E φ(mean of w_τ) − φ* = O(t^−½): the slope on a log-log scale, fitted to the mean of the seeds."""
    t = np.unique(np.logspace(2, np.log10(STEPS), 20).astype(int))
    gaps = []
    for iterates, _ in runs(method):
        averages = np.cumsum(iterates, axis=0)[t - 1] / t[:, None]
        gaps.append(objective(averages.T) - objective(optimum()))
    slope = np.polyfit(np.log(t), np.log(np.mean(gaps, axis=0)), 1)[0]
    print(f"{method}: fitted slope {slope:.3f}")
    assert np.min(gaps) > 0
    assert -1.0 < slope <= -0.45


def test_dual_averaging_holds_more_zeros_than_prox_sgd_at_equal_objective():
    """Section 3.3: the threshold of Prox-SGD falls with t, that of RDA does not."""
    zeros, gaps = {}, {}
    for method in METHODS:
        last = np.concatenate([iterates[-500:] for iterates, _ in runs(method)])
        zeros[method] = np.mean(last == 0)
        gaps[method] = float(np.mean(objective(last.T)) - objective(optimum())[0])
        print(f"{method}: φ − φ* {gaps[method]:.4f}, zeros {zeros[method]:.3f} (optimum {np.mean(optimum() == 0):.3f})")
    for method in ("RDA", "MRDA"):
        assert gaps[method] <= gaps["ProxSGD"]
        assert zeros[method] > zeros["ProxSGD"] + 0.3


def test_of_a_normalized_network_lambda_over_root_gamma_decides():
    """With c·γ, √c·λ and first weights divided by √c, all weights are what they were, divided by √c.

    Their gradients are √c times as large, because the outputs do not depend on the scale of the weights. So σ is a
    function of λ/√γ, and at equal λ it falls as γ grows. (At c = 4 all factors are powers of two: equal to the bit.)
    """
    (x, y), _ = keras_rda.datasets.load_digits()

    def normalized(filters):
        # Dead channels have no variance.
        normalization = keras.layers.BatchNormalization(center=False, scale=False, epsilon=1e-30)
        return [keras.layers.Dense(filters, use_bias=False), normalization]

    def trained(gamma, strength, factor):
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Input((64,)), *normalized(32), keras.layers.ReLU(), *normalized(10)]
        model = keras.Sequential(layers)
        model.set_weights([factor * w if w.ndim == 2 else w for w in model.get_weights()])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras_rda.MRDA(1 / gamma, strength), loss)
        model.fit(x.reshape(-1, 64), y, 64, epochs=4, shuffle=False, verbose=0)
        return keras_rda.sparsity(model), [variable.numpy() for variable in model.trainable_variables]

    (sigma, weights), (same, halved) = trained(1.0, 2e-3, 1.0), trained(4.0, 4e-3, 0.5)
    for w, half in zip(weights, halved, strict=True):
        np.testing.assert_array_equal(half, w / 2)
    assert sigma == same
    assert trained(4.0, 2e-3, 0.5)[0] < sigma - 0.05
