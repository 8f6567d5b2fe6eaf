"""The contract's table: optimizers × {eager, compiled} × precisions × features, each trained with `fit`.

A cell passes if training ends where eager float32 training with the same feature ends, up to the precision, and if the
feature does what it is for. `--contract FILE` writes the table; `-m "every or not every"` fills it.
"""

import functools
import itertools

import keras
import numpy as np
import pytest
from helpers import BACKEND, COMPILES, OPTIMIZERS, values

# Largest difference from eager float32 training, relative to the largest weight of a variable.
PRECISIONS = {"float32": 1e-4, "mixed_float16": 0.01, "mixed_bfloat16": 0.05, "bfloat16": 0.05}
STEPS, WORDS = 4, 6
MAKERS = {
    name: functools.partial(case, penalty=case.small_penalty) if case.small_penalty else case
    for name, case in OPTIMIZERS.items()
}


class Unused(keras.layers.Layer):
    """Passes its input on; its kernel gets no gradient."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(2, 2), name="kernel", initializer="ones")

    def call(self, x):
        return x


def network():
    """An embedding of words, of which the last never comes up, and a dense layer that starts at zero as RDA needs."""
    words = np.random.default_rng(0).uniform(-1, 1, (WORDS, 8))  # the same numbers in every precision
    return [
        keras.layers.Embedding(
            WORDS, 8, embeddings_initializer=lambda shape, dtype: keras.ops.cast(words, dtype), name="words"
        ),
        keras.layers.Flatten(),
        keras.layers.Dense(3, kernel_initializer="zeros", name="dense"),
    ]


def fit(make_optimizer, feature, precision, compiled):
    """Train; return the model and its weights before and after, in float32."""
    keras.config.set_dtype_policy(precision)
    layers = network()
    settings = {
        "accumulation": {"gradient_accumulation_steps": 2},
        "clipping": {"global_clipnorm": 0.4},
        "EMA": {"use_ema": True, "ema_momentum": 0.5},
        "schedule": {"learning_rate": keras.optimizers.schedules.PiecewiseConstantDecay([1], [1.0, 0.5])},
    }
    ours = optimizer = make_optimizer(**{"learning_rate": 1.0, **settings.get(feature, {})})
    if feature == "loss scaling":
        optimizer = keras.optimizers.LossScaleOptimizer(ours, initial_scale=16.0, dynamic_growth_steps=2)
    if feature == "MultiOptimizer":
        groups = keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.0), {".*kernel": ours})
        optimizer = keras.optimizers.MultiOptimizer(groups)
    if feature == "frozen layer":
        layers[0].trainable = False
    if feature == "missing gradient":
        layers.insert(0, Unused())
    model = keras.Sequential([keras.Input((3,)), *layers])
    random = np.random.default_rng(0)
    x, y = random.integers(0, WORDS - 1, (8 * STEPS, 3)), random.integers(0, 3, 8 * STEPS)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=compiled, run_eagerly=not compiled)
    before = [v.astype("float32") for v in values(model.variables)]
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    return model, ours, before, [v.astype("float32") for v in values(model.variables)]


@functools.cache
def eager_float32(name, feature):
    return fit(MAKERS[name], feature, "float32", compiled=False)[3]


def promise(name, feature, precision, model, ours, before, after):
    """What the feature itself is for."""
    names = ["/".join(v.path.split("/")[-2:]) for v in model.variables]
    moved = {name: bool(np.any(b != a)) for name, b, a in zip(names, before, after, strict=True)}
    assert moved["dense/kernel"]
    assert moved["words/embeddings"] == (feature not in ("frozen layer", "MultiOptimizer"))
    assert moved["dense/bias"] == (feature != "MultiOptimizer")
    words = names.index("words/embeddings")
    np.testing.assert_array_equal(before[words][-1], after[words][-1])  # its last row got no gradient
    assert int(keras.ops.convert_to_numpy(ours.iterations)) == STEPS // (1 + (feature == "accumulation"))
    if feature in ("accumulation", "clipping", "EMA", "schedule") and precision == "float32":
        plain = eager_float32(name, PLAIN)
        assert max(np.max(np.abs(a - b)) for a, b in zip(after, plain, strict=True)) > 1e-3
    if feature == "missing gradient":
        assert not moved["unused/kernel"]
    if feature == "loss scaling":
        assert float(keras.ops.convert_to_numpy(model.optimizer.dynamic_scale)) == 16 * 2 ** (STEPS // 2)


PLAIN = "plain, embedding gradient"
FEATURES = (
    *(PLAIN, "accumulation", "clipping", "EMA", "loss scaling", "MultiOptimizer", "schedule", "frozen layer"),
    "missing gradient",
)


OFTEN = ("mixed_float16", "bfloat16")
CELLS = [
    pytest.param(
        *cell, marks=() if cell[0] == "MRDA" and cell[2] in OFTEN and cell[3] == COMPILES else pytest.mark.every
    )
    for cell in itertools.product(OPTIMIZERS, FEATURES, PRECISIONS, (True, False))
]


@pytest.mark.parametrize(("name", "feature", "precision", "compiled"), CELLS)
@pytest.mark.filterwarnings("ignore:Gradients do not exist", "ignore:RDA starts at the minimiser")  # the unused kernel
def test_cell(name, feature, precision, compiled, record_property):
    record_property("cell", [name, feature, precision, "compiled" if compiled else "eager"])
    if feature == "missing gradient" and BACKEND == "jax":
        pytest.skip("fit on JAX hands zeros to the optimizer; test_contract.py passes None")
    if feature == "MultiOptimizer" and not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("this Keras has no MultiOptimizer yet")
    model, ours, before, after = fit(MAKERS[name], feature, precision, compiled)
    promise(name, feature, precision, model, ours, before, after)
    for ours, theirs in zip(after, eager_float32(name, feature), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=PRECISIONS[precision] * np.abs(theirs).max(initial=1e-3), rtol=0)
