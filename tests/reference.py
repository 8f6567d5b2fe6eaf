"""Float64 NumPy transcriptions of the paper's equations: the source of every expected number in the tests.

Each generator takes the gradients g_1, g_2, … and yields w_2, w_3, …. `rates` are the learning rates a_1, a_2, …; with
a constant rate 1/γ the general step (`dual_averaging`) is the paper's, which `sda`, `mrda` and `centred` transcribe
literally so that the general step is checked too. `shrink(u, threshold)` is the penalty's proximal map, `soft` for ℓ1.
"""

import numpy as np


def soft(u, threshold):
    """The closed form of (20), (22) and (24), case by case."""
    return np.where(u > threshold, u - threshold, np.where(u < -threshold, u + threshold, 0.0))


def group_soft(groups):
    """The proximal map of Σ_G √|G|·‖w_G‖₂ on flat arrays of numbered weights, group by group; −1: in no group.

    Where entries of a group have different thresholds, their mean counts.
    """

    def shrink(u, threshold):
        w, threshold = u.copy(), np.broadcast_to(threshold, u.shape)
        for group in set(groups.tolist()) - {-1}:
            own = groups == group
            norm, k = np.sqrt(np.sum(u[own] ** 2)), np.sqrt(own.sum()) * threshold[own].mean()
            w[own] = u[own] * (1 - k / norm) if norm > k else 0.0
        return w

    return shrink


def group_magnitude(groups):
    """The root mean square of each group, for each of its weights; zero for those of no group."""

    def magnitude(w):
        found = np.zeros(w.shape)
        for group in set(groups.tolist()) - {-1}:
            found[groups == group] = np.sqrt(np.mean(w[groups == group] ** 2))
        return found

    return magnitude


def _float64(gradients):
    return (np.asarray(g, "float64") for g in gradients)


def sda(w_0, gradients, gamma):
    """(6): w_{t+1} = w_0 − (1/β_t) Σ g_τ with β_t = γ√t."""
    total = np.zeros_like(w_0)
    for t, g in enumerate(_float64(gradients), 1):
        total = total + g
        yield w_0 - total / (gamma * np.sqrt(t))


def sda_recursion(w_0, gradients, gamma, alpha=0.5):
    """(7): SDA as a perturbation of SGD."""
    w = w_0
    for t, g in enumerate(_float64(gradients), 1):
        keep = (1 - 1 / t) ** alpha
        w = (1 - keep) * w_0 + keep * w - g / (gamma * t**alpha)
        yield w


def mrda(gradients, gamma, strength):
    """(28), (29) with ℓ1: the closed form (22) at w_0 = 0, by the average gradient. RDA differs in w_1 alone."""
    average = 0.0
    for t, g in enumerate(_float64(gradients), 1):
        average = (t - 1) / t * average + g / t
        beta = gamma * np.sqrt(t)
        yield soft(-t / beta * average, t / beta * strength)


def centred(w_0, gradients, gamma, strength):
    """(13), (14) with ℓ1, centred on w_0."""
    average = np.zeros_like(w_0)
    for t, g in enumerate(_float64(gradients), 1):
        average = (t - 1) / t * average + g / t
        beta = gamma * np.sqrt(t)
        yield soft(w_0 - t / beta * average, t / beta * strength)


def dual_averaging(w_0, gradients, rates, strength, alpha=0.5, w_1=None, shrink=soft):
    """soft(w_0 − S_t / T_t^α, λ·A_t / T_t^α) with S_t = Σ a_τ g_τ, A_t = Σ a_τ and T_t = T_{t-1} + (a_t / the largest
    so far)²; S_0 = w_0 − w_1 where w_1 is given."""
    gradient_sum, weight_sum, time, largest = np.zeros_like(w_0) if w_1 is None else w_0 - w_1, 0.0, 0.0, 0.0
    for g, a in zip(_float64(gradients), rates, strict=True):
        gradient_sum = gradient_sum + a * g
        weight_sum += a
        largest = max(largest, a)
        time += (a / largest) ** 2
        scale = time**alpha
        yield shrink(w_0 - gradient_sum / scale, strength * weight_sum / scale)


def prox_sgd(w_1, gradients, rates, strength, momentum=0.0, exponent=0.5, shrink=soft):
    """(20) with α_t = a_t / t^exponent, and the inertial term of Ochs et al. (iPiano, Algorithm 1)."""
    w = before = w_1
    for t, (g, a) in enumerate(zip(_float64(gradients), rates, strict=True), 1):
        alpha = a / t**exponent
        w, before = shrink(w - alpha * g + momentum * (w - before), alpha * strength), w
        yield w


def sqrt_prox_sgd(w_1, gradients, rates, strength, shrink=soft):
    """(24) with α_t = a_t/√t."""
    w = w_1
    for t, (g, a) in enumerate(zip(_float64(gradients), rates, strict=True), 1):
        w = shrink(w - a / np.sqrt(t) * g, np.sqrt(t) * strength)
        yield w


def rmda(w_1, gradients, rates, strength, averaging, restarts=(), shrink=soft):
    """Algorithm 1 of RMDA with ℓ1, a new one begun at the iterate after each of `restarts` updates."""
    w = w_1
    for t, (g, rate) in enumerate(zip(_float64(gradients), rates, strict=True), 1):
        if t == 1 or t - 1 in restarts:
            start, w_0, total, weight_sum = t - 1, w, np.zeros_like(w_1), 0.0
        i = t - start
        s = rate * np.sqrt(i)
        total = total + s * g
        weight_sum += s
        minimizer = shrink(w_0 - total / np.sqrt(i), strength * weight_sum / np.sqrt(i))
        last_stage = not restarts or t > max(restarts)
        c = min(averaging * np.sqrt(i), 1.0) if last_stage else averaging
        w = (1 - c) * w + c * minimizer
        yield w


def xrda(
    w_1,
    gradients,
    rates,
    strength,
    averaging=0.0,
    reweighting=500.0,
    time_scale=9.5,
    shrink=soft,
    magnitude=np.abs,
    largest=np.max,
):
    """The update of xRDA (section 3 of arXiv 2008.09661), with ℓ1; `averaging` None is 1 − s_t / max s.

    `largest(r)` is the largest of the kernel in which each entry lies.
    """
    w = z = w_1
    r, v, threshold = np.zeros_like(w_1), np.zeros_like(w_1), np.zeros_like(w_1)
    for t, (g, s) in enumerate(zip(_float64(gradients), rates, strict=True)):
        q = np.exp(-s / time_scale)
        r = q * r + (1 - q) * magnitude(w)
        b = reweighting / (1 + (reweighting - 1) * r / largest(r))
        a = 1 - s / max(rates[: t + 1]) if averaging is None else averaging
        threshold = a * threshold + s * b
        v = q * v + (1 - q) * g
        z = a * z + (1 - a) * w - s * v
        w = shrink(z, strength * threshold)
        yield w
