import keras
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import keras_rda
from keras_rda import penalties
from keras_rda.proximal import soft_threshold

# XLA and the vector units flush denormals to zero, so numbers between 0 and the smallest normal one are left out.
FLOATS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
WEIGHTS = arrays("float32", array_shapes(min_dims=1, max_dims=4, max_side=4), elements=FLOATS)
THRESHOLDS = st.floats(0, 1e6, width=32, allow_subnormal=False)


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


@given(WEIGHTS, THRESHOLDS)
def test_soft_threshold_is_the_closed_form(u, k):
    shrunk = numpy(soft_threshold(u, np.float32(k)))
    assert shrunk.dtype == np.float32
    np.testing.assert_array_equal(shrunk, reference.soft(u, np.float32(k)))
    np.testing.assert_array_equal(shrunk == 0, np.abs(u) <= np.float32(k))


@given(WEIGHTS)
def test_soft_threshold_by_zero_keeps_every_bit(u):
    np.testing.assert_array_equal(numpy(soft_threshold(u, np.float32(0))), u)


def test_soft_threshold_keeps_nan():
    assert np.isnan(numpy(soft_threshold(np.array([np.nan], "float32"), np.float32(1))))[0]


@given(WEIGHTS, st.floats(0, 10), st.floats(0.015625, 8))
def test_l1_prox_minimises_its_objective(w, strength, step):
    penalty = keras_rda.L1(strength)
    v = numpy(penalty.prox(w, step)).astype("float64")

    def objective(v):
        return np.float32(strength) * step * np.abs(v) + 0.5 * (v - w.astype("float64")) ** 2

    slack = 1e-5 * (1 + np.abs(w.astype("float64")) ** 2)
    for other in (w, np.zeros_like(w), v + 0.1, v - 0.1):
        assert np.all(objective(v) <= objective(other) + slack)


def test_l1_value():
    assert float(keras_rda.L1(0.5).value(np.array([[1.0, -2.0], [0.0, 3.0]], "float32"))) == 3.0


def test_number_is_l1():
    penalty = penalties.get(1e-3)
    assert type(penalty) is keras_rda.L1
    assert float(penalty.strength) == pytest.approx(1e-3)
    assert penalties.get(penalty) is penalty


@pytest.mark.parametrize("strength", [-1.0, np.nan, np.inf])
def test_strength_out_of_range(strength):
    with pytest.raises(ValueError, match=r"L1: the strength λ must be finite and ≥ 0; received"):
        keras_rda.L1(strength)
    penalty = keras_rda.L1(0.25)
    with pytest.raises(ValueError, match="must be finite and ≥ 0"):
        penalty.strength = strength
    assert float(penalty.strength) == 0.25


@pytest.mark.parametrize("strength", ["1e-6", None, True, [1.0]])
def test_strength_of_wrong_type(strength):
    with pytest.raises(TypeError, match="must be a number ≥ 0, for example 1e-6; received"):
        keras_rda.L1(strength)


def test_base_class_names_what_is_missing():
    penalty = keras_rda.Penalty(1.0)
    with pytest.raises(NotImplementedError, match="Penalty must define value"):
        penalty.value(np.ones(2))
    with pytest.raises(NotImplementedError, match="Penalty must define prox"):
        penalty.prox(np.ones(2), 1.0)
