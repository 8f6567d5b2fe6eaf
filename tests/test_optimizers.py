"""Arguments, exclusions and warnings of the optimizers: what is refused, and how the message helps."""

import ast
import inspect
import math
import pathlib
import re

import keras
import numpy as np
import pytest
from helpers import BACKEND, OPTIMIZERS, compiled, small_network, values, variables
from hypothesis import given
from hypothesis import strategies as st

import keras_rda
from keras_rda import _keras

PENALISED = [name for name, case in OPTIMIZERS.items() if case.has_penalty]
ANYTHING = st.one_of(
    st.floats(),
    st.floats(0, 1),
    st.integers(),
    st.sampled_from([True, False, None, "zero", "initial", "", "0.5", b"1", [], [3, 7], {}, object(), 1j, 10**400]),
    st.sampled_from([np.float32(0.5), np.int64(3), np.array(0.5), np.array([0.5]), np.nan, np.inf, keras_rda.L1(0.1)]),
    st.sampled_from([np.float16(0.5), np.float16("inf"), np.float64("nan")]),
)


@given(st.data())
def test_any_arguments_are_refused_by_name_or_make_an_optimizer(data):
    """An error of the two kinds that says which argument; or an optimizer that moves to finite weights, and that its
    configuration makes again."""
    kind = data.draw(st.sampled_from([case.make for case in OPTIMIZERS.values()]))
    names = [name for name in inspect.signature(kind).parameters if name != "kwargs"]
    arguments = data.draw(st.dictionaries(st.sampled_from([*names, "weight_decay"]), ANYTHING, max_size=3))
    optimizer, message = None, ""
    try:
        optimizer = kind(**arguments)
    except (TypeError, ValueError) as error:
        message = str(error)
    if optimizer is None:
        words = {"penalty": "λ|[Pp]enalty"}
        assert any(re.search(words.get(name, name), message) for name in arguments), message
        return
    config = optimizer.get_config()
    (kernel,) = variables(np.zeros((2, 2)))
    for _ in range(2):
        optimizer.apply([np.full((2, 2), -1.0, "float32")], [kernel])
    if all(abs(value) < 1e6 for value in arguments.values() if isinstance(value, float)):  # else float32 ends
        assert np.isfinite(values([kernel])).all()
    assert kind.from_config(config).get_config() == config


@pytest.mark.parametrize("rate", [-1.0, 0.0, -1, 1, True, math.nan, math.inf])
def test_rate_must_be_positive(make_optimizer, rate):
    with pytest.raises(ValueError, match=r"learning_rate \(1/γ\) must be a positive float; received"):
        make_optimizer(learning_rate=rate)


@pytest.mark.parametrize("rate", [-1.0, math.nan, math.inf])
def test_rate_set_later_must_not_be_negative(make_optimizer, rate):
    optimizer = make_optimizer(learning_rate=0.5)
    with pytest.raises(ValueError, match="learning_rate must be set to a finite number ≥ 0; received"):
        optimizer.learning_rate = rate
    assert float(optimizer.learning_rate) == 0.5
    assert float(make_optimizer(learning_rate=np.float32(0.5)).learning_rate) == 0.5


@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_rate_of_a_callable_below_zero_counts_as_zero(make_optimizer, bad):
    rates = iter([0.1, bad, 0.1])
    optimizer = make_optimizer(learning_rate=lambda: rate)
    reference = make_optimizer(learning_rate=lambda: max(rate, 0.0) if rate == rate else 0.0)
    weights, others = variables(np.zeros((2, 2)), np.ones(3)), variables(np.zeros((2, 2)), np.ones(3))
    gradients = [np.full((2, 2), -1.0, "float32"), np.ones(3, "float32")]
    for rate in rates:  # noqa: B007 (the callables read it)
        optimizer.apply(gradients, weights)
        reference.apply(gradients, others)
    for ours, theirs in zip(values(weights), values(others), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert np.all(np.isfinite(ours))


def test_penalty_cannot_be_replaced():
    with pytest.raises(AttributeError, match="penalty"):
        keras_rda.MRDA().penalty = 1e-3


@pytest.mark.parametrize("name", PENALISED)
@pytest.mark.parametrize("penalty", [-1e-6, math.nan, math.inf])
def test_penalty_must_be_finite_and_non_negative(name, penalty):
    with pytest.raises(ValueError, match="λ must be finite and ≥ 0; received"):
        OPTIMIZERS[name](penalty=penalty)


@pytest.mark.parametrize("name", PENALISED)
@pytest.mark.parametrize("penalty", ["l1", [1e-6], None, True])
def test_penalty_must_be_a_number_or_a_penalty(name, penalty):
    with pytest.raises(TypeError, match="received"):
        OPTIMIZERS[name](penalty=penalty)


def test_unknown_centre():
    with pytest.raises(ValueError, match='center must be "zero" or "initial"; received \'mean\''):
        keras_rda.MRDA(center="mean")


def test_unknown_start():
    with pytest.raises(ValueError, match='start must be "gradient" or "weights"; received \'zero\''):
        keras_rda.MRDA(start="zero")


@pytest.mark.parametrize("exponent", [0, 1, -0.5, math.nan, "half", True])
def test_exponent_range(exponent):
    with pytest.raises(ValueError, match=r"exponent .* must be a number between 0 and 1"):
        keras_rda.MRDA(exponent=exponent)


@pytest.mark.parametrize("argument", ["momentum", "exponent"])
@pytest.mark.parametrize("value", [-0.1, 1, math.nan, "half", True])
def test_prox_sgd_shares(argument, value):
    with pytest.raises(ValueError, match=rf"ProxSGD: {argument} .*must be a number from 0 to below 1"):
        keras_rda.ProxSGD(**{argument: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"averaging": 0}, r"averaging \(c\) must be a number above 0 and at most 1"),
        ({"averaging": "c"}, r"averaging \(c\) must be a number above 0 and at most 1"),
        ({"restarts": (5, 5)}, r"restarts must be increasing whole numbers of updates.* received \(5, 5\)"),
        ({"restarts": (0.5,)}, "restarts must be increasing whole numbers of updates"),
        ({"restarts": (0,)}, "restarts must be increasing whole numbers of updates"),
    ],
)
def test_rmda_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_rda.RMDA(**arguments)


def test_rmda_restarts_where_a_piecewise_constant_rate_drops():
    """Keras uses the second rate from the update after the boundary's on: iterations count from 0."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([3, 6], [1.0, 0.1, 0.01])
    assert [float(schedule(t)) for t in (3, 4, 6, 7)] == pytest.approx([1.0, 0.1, 0.1, 0.01])
    optimizer = keras_rda.RMDA(schedule)
    assert optimizer.restarts == (4, 7)
    assert keras_rda.RMDA.from_config(optimizer.get_config()).restarts == (4, 7)
    (kernel,) = variables(np.ones((2, 2)))
    for _ in range(5):
        before = values([kernel])[0]
        optimizer.apply([np.ones((2, 2), "float32")], [kernel])
    slots = optimizer.trained[0].slots
    np.testing.assert_array_equal(values([slots["center"]])[0], before)  # the fifth update began a stage
    np.testing.assert_allclose(values([slots["gradient_sum"]])[0], 0.1, rtol=1e-6)


def test_rmda_restarts_with_the_rate_under_accumulation():
    """Keras' schedules count batches: the rate falls with the batch 6, which is in the third update of two."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([5, 6, 11], [1.0, 0.5, 0.25, 0.125])
    rates = [float(schedule(2 * update + 1)) for update in range(8)]
    drops = tuple(t for t in range(1, 8) if rates[t] != rates[t - 1])
    assert keras_rda.RMDA(schedule, gradient_accumulation_steps=2).restarts == drops == (3, 6)


def test_restart_waits_for_the_variable_s_own_update():
    """A variable without gradient in the update after its restart keeps its sums."""
    kernel, other = variables(np.ones((2, 2)), np.ones((2, 2)))
    optimizer = keras_rda.RMDA(1.0, 0.0, restarts=(1,))
    gradient = np.ones((2, 2), "float32")
    optimizer.apply([gradient, gradient], [kernel, other])
    optimizer.apply([gradient, gradient])
    weight_sum = values([optimizer._weight_sum])[0]
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([None, gradient])
    assert values([optimizer._weight_sum])[0][0, 0] == weight_sum[0, 0] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"averaging": 1.5}, r"averaging \(a\) must be a number from 0 to 1"),
        ({"averaging": "half"}, r"averaging \(a\) must be a number from 0 to 1"),
        ({"reweighting": 0.5}, r"reweighting \(M\) must be a finite number ≥ 1"),
        ({"reweighting": math.inf}, r"reweighting \(M\) must be a finite number ≥ 1"),
        ({"time_scale": 0}, r"time_scale \(τ\) must be a finite number above 0"),
        ({"time_scale": True}, r"time_scale \(τ\) must be a finite number above 0"),
    ],
)
def test_xrda_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_rda.XRDA(**arguments)


def test_xrda_refuses_a_penalty_without_magnitude():
    class Ridge(keras_rda.Penalty):
        def value(self, w):
            return self.strength * keras.ops.sum(keras.ops.square(w))

        def prox(self, w, step):
            return w / (1.0 + 2.0 * self.strength * step)

    with pytest.raises(TypeError, match=r"magnitude\(w\), which Ridge does not define.* choose L1, .*MRDA, RMDA"):
        keras_rda.XRDA(penalty=Ridge(1.0))


def test_xrda_kernel_of_zeros_moves_on():
    """max(r) = 0 must not divide."""
    (kernel,) = variables(np.zeros((2, 2)))
    keras_rda.XRDA(1.0, 1e-6).apply([np.full((2, 2), -1.0, "float32")], [kernel])
    assert np.all(values([kernel])[0] > 0)


@pytest.mark.parametrize("name", [name for name in PENALISED if OPTIMIZERS[name].group_strength])
@pytest.mark.parametrize("groups", ["inputs", "outputs"])
def test_group_penalty_zeroes_whole_channels(name, groups, digits):
    x, y = digits[0][:256], digits[1][:256]
    optimizer = OPTIMIZERS[name](penalty=keras_rda.GroupL1(OPTIMIZERS[name].group_strength, groups))
    model = compiled(small_network("zeros" if name == "RDA" else "glorot_uniform"), optimizer)
    model.fit(x, y, batch_size=32, epochs=6, verbose=0)
    kernel = values([model.layers[-1].kernel])[0]
    zeros = np.all(kernel == 0, axis=1 if groups == "inputs" else 0)
    assert np.any(zeros) or groups == "outputs"  # ten classes, all needed
    entries = np.any(kernel == 0, axis=1 if groups == "inputs" else 0)
    np.testing.assert_array_equal(entries, zeros)  # never a single entry
    # The first convolution reads one channel: a single group, so no penalty.
    assert optimizer.penalizes(0) == (groups == "outputs")


@pytest.mark.parametrize("weight_decay", [-0.1, math.nan, "0.1"])
def test_weight_decay_range(make_optimizer, weight_decay):
    with pytest.raises(ValueError, match="weight_decay must be a finite number ≥ 0"):
        make_optimizer(weight_decay=weight_decay)


def test_unknown_argument(make_optimizer):
    with pytest.raises(ValueError, match="nesterov"):
        make_optimizer(nesterov=True)


def test_what_is_penalised():
    """Kernels are; biases, normalisation weights and embedding tables are not, whatever their rank."""
    layers = keras.layers
    tokens = keras.Input((4,), dtype="int32")
    x = layers.Embedding(5, 6)(tokens)
    x = layers.MultiHeadAttention(2, 3)(x, x)  # its biases have rank 2
    x = layers.LayerNormalization(axis=(1, 2))(x)  # its weights have rank 2
    x = layers.GRU(3)(x)
    model = keras.Model(tokens, layers.Dense(2)(x))
    optimizer = keras_rda.MRDA()
    optimizer.build(model.trainable_variables)
    penalised = {v.path for i, v in enumerate(model.trainable_variables) if optimizer.penalizes(i)}
    names = {path.split("/")[-1] for path in penalised}
    assert names == {"kernel", "recurrent_kernel"}
    assert len(penalised) == 4 + 2 + 1
    assert {v.path for v in model.trainable_variables if len(v.shape) > 1} - penalised != set()


@pytest.mark.parametrize("by", ["object", "name"])
def test_excluded_variables_take_the_sda_step(by):
    model = small_network()
    optimizer, sda = keras_rda.MRDA(0.1, 10.0), keras_rda.SDA(0.1)
    head = model.layers[-1].kernel
    if by == "object":
        optimizer.exclude_from_penalty(var_list=[head])
    else:
        optimizer.exclude_from_penalty(var_names=["dense"])
    weights = model.trainable_variables
    before = values(weights)
    gradients = [np.full(v.shape, 0.1, "float32") for v in weights]
    optimizer.apply(gradients, weights)
    after = values(weights)
    for variable, value in zip(weights, before, strict=True):
        variable.assign(value)
    sda.apply(gradients, weights)
    for variable, ours, theirs in zip(weights, after, values(weights), strict=True):
        if len(variable.shape) > 1 and variable is not head:
            assert not np.any(ours)
        else:
            np.testing.assert_array_equal(ours, theirs)


def towers():
    """Two nested models, each with a layer `proj`, whose variables have the same paths; and one of a longer name."""
    layers, made = keras.layers, []
    for name in ("first", "second"):
        x = keras.Input((4,))
        made.append(keras.Model(x, layers.Dense(4, name="proj")(x), name=name))
    x = keras.Input((4,))
    return keras.Model(x, layers.Dense(4, name="proj_1")(made[1](made[0](x)))), *made


def penalised(optimizer, model):
    optimizer.build(model.trainable_variables)
    return [optimizer.penalizes(i) for i, v in enumerate(model.trainable_variables) if len(v.shape) > 1]


@pytest.mark.parametrize("chosen", [[0], [1], [0, 1]])
def test_exclusion_of_variables_that_share_a_path(chosen):
    model, *both = towers()
    kernels = [tower.layers[1].kernel for tower in both]
    assert kernels[0].path == kernels[1].path
    optimizer = keras_rda.MRDA()
    optimizer.exclude_from_penalty(var_list=[kernels[i] for i in chosen])
    assert penalised(optimizer, model) == [0 not in chosen, 1 not in chosen, True]
    # Saved before it was built, a path is all that is known.
    other = keras_rda.MRDA()
    other.exclude_from_penalty(var_list=[kernels[i] for i in chosen])
    again = keras_rda.MRDA.from_config(other.get_config())
    if len(chosen) == 2:
        assert penalised(again, model) == [False, False, True]
    else:
        with pytest.raises(ValueError, match=r"1 variables of the path .*proj/kernel', which 2 have\. Create"):
            again.build(model.trainable_variables)


def test_exclusion_goes_by_whole_names():
    optimizer = keras_rda.MRDA()
    optimizer.exclude_from_penalty(var_names=["proj"])
    assert penalised(optimizer, towers()[0]) == [False, False, True]


@pytest.mark.skipif(BACKEND != "torch", reason="wraps modules of torch")
def test_weights_of_torch_modules_are_penalised_as_told(tmp_path):
    """Their variables have no names: a table of embeddings looks like a kernel."""
    from torch import nn

    def model():
        table, dense = (
            keras.layers.TorchModuleWrapper(module, output_shape=shape)
            for module, shape in ((nn.Embedding(5, 4), (None, 4)), (nn.Linear(4, 3), (None, 3)))
        )
        x = keras.Input((), dtype="int32")
        return keras.Model(x, dense(table(x))), table

    def trained(var_list):
        wrapped, table = model()
        optimizer = keras_rda.MRDA(0.1, 10.0)
        if var_list is not None:
            optimizer.exclude_from_penalty(var_list=table.trainable_variables if var_list else [])
        wrapped.compile(optimizer, "mse")
        wrapped.fit(np.arange(5), np.ones((5, 3)), verbose=0)
        return wrapped

    with pytest.raises(ValueError, match=r"MRDA cannot tell .*'variable\w*': \(5, 4\).*exclude_from_penalty\(var_list"):
        trained(None)
    wrapped = trained(["table"])
    assert [np.any(array) for array in values(wrapped.trainable_variables)] == [True, False, True]
    wrapped.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", safe_mode=False)
    assert [again.optimizer.penalizes(position) for position in range(3)] == [False, True, False]
    assert [np.any(array) for array in values(trained([]).trainable_variables)] == [False, False, True]
    with pytest.raises(TypeError, match=r"such as layer\.trainable_variables; received Parameter in it"):
        keras_rda.MRDA().exclude_from_penalty(var_list=list(nn.Linear(4, 3).parameters()))


def test_weights_that_a_layer_gives_no_name_are_kernels():
    """As in Keras' guide on layers; on torch only those of torch's modules are refused."""

    class Linear(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(shape[-1], 3), initializer="ones")

        def call(self, inputs):
            return inputs @ self.w

    model = keras.Sequential([keras.Input((4,)), Linear()])
    optimizer = keras_rda.MRDA()
    optimizer.build(model.trainable_variables)
    assert optimizer.penalizes(0)


@pytest.mark.skipif(BACKEND != "torch", reason="wraps modules of torch")
@pytest.mark.parametrize("with_layout", [True, False])
def test_groups_of_torch_modules_are_refused_or_told(with_layout):
    """Torch's kernels lie with their outputs first: Keras' axes would number the columns of a 3×3."""
    from torch import nn

    convolution = keras.layers.TorchModuleWrapper(nn.Conv2d(2, 4, 3), output_shape=(None, 4, 4, 4))
    x = keras.Input((2, 6, 6))
    model = keras.Model(x, convolution(x))
    kernel = convolution.trainable_variables[0]
    with pytest.raises(ValueError, match=rf"knows no input channels in '{kernel.path}' of shape \(4, 2, 3, 3\)"):
        keras_rda.MRDA(penalty=keras_rda.GroupL1(1e-3, layout=model if with_layout else None)).build([kernel])
    optimizer = keras_rda.MRDA(penalty=keras_rda.GroupL1(1e-3, layout={kernel.path: 1}))
    optimizer.build([kernel])
    assert optimizer.trained[0].penalty.units(kernel) == 2


def test_exclusion_after_build():
    optimizer = keras_rda.MRDA()
    optimizer.build(variables(np.ones((2, 2))))
    with pytest.raises(ValueError, match=r"already built for 1 variables\. Call it before"):
        optimizer.exclude_from_penalty(var_names=["kernel"])


def test_exclusion_that_matches_nothing():
    optimizer = keras_rda.MRDA()
    optimizer.exclude_from_penalty(var_names=["hed"])
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"given \['hed'\], which match none of the trainable variables \['kernel'\]"
        ):
            optimizer.build(variables(np.ones((2, 2))))


@pytest.mark.parametrize(
    "bad", [{"var_names": "head"}, {"var_names": [1]}, {"var_names": 7}, {"var_list": "head"}, {"var_list": ["head"]}]
)
def test_exclusion_of_wrong_type(bad):
    with pytest.raises(TypeError, match=r"must (be a list of|list variables)"):
        keras_rda.MRDA().exclude_from_penalty(**bad)


@pytest.mark.parametrize("name", PENALISED)
def test_nothing_to_penalise(name):
    with pytest.warns(UserWarning, match="has nothing to penalise: of 1 trainable variables"):
        OPTIMIZERS[name]().build(variables(np.ones(3)))


def test_rda_says_when_it_does_not_start_at_the_minimiser(digits):
    x, y = digits[0][:32], digits[1][:32]
    with pytest.warns(UserWarning, match=r"RDA starts at the minimiser .*'sequential/conv2d/kernel'"):
        compiled(small_network(), keras_rda.RDA()).fit(x, y, verbose=0)
    compiled(small_network("zeros"), keras_rda.RDA()).fit(x, y, verbose=0)  # warnings are errors


def test_strength_changes_while_training():
    (kernel,) = variables(np.ones((2, 2)))
    gradient = [np.full((2, 2), -1.0, "float32")]
    optimizer = keras_rda.MRDA(1.0, keras_rda.L1(0.0))
    optimizer.apply(gradient, [kernel])
    np.testing.assert_array_equal(values([kernel])[0], 1.0)
    optimizer.penalty.strength = 0.25
    optimizer.apply(gradient)  # soft(2/√2, 0.25·2/√2)
    np.testing.assert_allclose(values([kernel])[0], 1.5 / np.sqrt(2), rtol=1e-6)


def test_strength_follows_a_schedule():
    (kernel,) = variables(np.ones((2, 2)))
    gradient = [np.full((2, 2), -1.0, "float32")]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.0, 0.25])
    optimizer = keras_rda.MRDA(1.0, schedule)
    optimizer.apply(gradient, [kernel])
    np.testing.assert_array_equal(values([kernel])[0], 1.0)
    optimizer.apply(gradient)
    np.testing.assert_allclose(values([kernel])[0], 1.5 / np.sqrt(2), rtol=1e-6)
    with pytest.raises(TypeError, match="follows the schedule PiecewiseConstantDecay"):
        optimizer.penalty.strength = 1.0


def test_schedule_of_the_strength_below_zero_counts_as_zero():
    (kernel,) = variables(np.zeros((2, 2)))
    optimizer = keras_rda.MRDA(1.0, keras.optimizers.schedules.PolynomialDecay(0.5, 2, -0.5))
    for _ in range(4):
        optimizer.apply([np.zeros((2, 2), "float32")], [kernel])
    assert float(optimizer.penalty.strength) == 0.0
    np.testing.assert_array_equal(values([kernel])[0], 0.0)


def test_warm_up_from_zero_does_not_wipe_the_network():
    """With A_1 = 0 the formula puts every kernel on its centre, zero, from which a deep network never returns."""
    (kernel,) = variables(np.ones((2, 2)))
    warm_up = keras.optimizers.schedules.PolynomialDecay(0.0, 2, 1.0)
    optimizer = keras_rda.MRDA(warm_up, 0.0)
    gradient = [np.full((2, 2), -1.0, "float32")]
    optimizer.apply(gradient, [kernel])
    np.testing.assert_array_equal(values([kernel])[0], 1.0)
    optimizer.apply(gradient)  # rate ½; the step at rate zero took no time, so T_2 = 1 and w = ½·1 / √1
    np.testing.assert_allclose(values([kernel])[0], 0.5, rtol=1e-6)


def test_own_penalty(digits):
    @keras.saving.register_keras_serializable("tests")
    class SquaredL2(keras_rda.Penalty):
        """λ/2·‖w‖²: its proximal map is w / (1 + λ·step)."""

        def value(self, w):
            return 0.5 * self.strength * keras.ops.sum(keras.ops.square(w))

        def prox(self, w, step):
            return w / (1.0 + self.strength * step)

    (kernel,) = variables(np.zeros((2, 2)))
    optimizer = keras_rda.MRDA(1.0, SquaredL2(3.0))
    optimizer.apply([np.full((2, 2), -1.0, "float32")], [kernel])
    np.testing.assert_allclose(values([kernel])[0], 0.25)
    again = keras_rda.MRDA.from_config(optimizer.get_config())
    assert type(again.penalty) is SquaredL2
    assert float(again.penalty.strength) == 3.0


def test_spectrograms_tokens_and_positions_are_not_penalised():
    """By the names that Keras, KerasHub and users' transformers give them."""
    layers = keras.layers

    class Tokens(layers.Layer):
        def build(self, shape):
            names = ("pos_embed", "cls_token", "position_embeddings", "relative_position_bias_table", "latents", "cls")
            for name in names:
                self.add_weight(shape=(3, shape[-1]), name=name)
            self.add_weight(shape=(1, 1, shape[-1]), name="start")  # broadcast over the batch
            self.add_weight(shape=(shape[-1], shape[-1]), name="mixing")
            self.add_weight(shape=(1, shape[-1]), name="position_kernel")

        def call(self, x):
            return x

    sound = keras.Input((400, 1))
    x = layers.STFTSpectrogram(frame_length=32, frame_step=16, fft_length=32)(sound)
    model = keras.Model(sound, layers.Dense(2)(Tokens()(layers.Conv1D(4, 1)(x))))
    assert {v.name for v in model.trainable_variables if v.name.endswith("_kernel")} >= {"real_kernel", "imag_kernel"}
    optimizer = keras_rda.MRDA()
    optimizer.build(model.trainable_variables)
    names = {v.name for i, v in enumerate(model.trainable_variables) if optimizer.penalizes(i)}
    assert names == {"kernel", "mixing", "position_kernel"}


HOOKS = {
    "_backend_update_step": lambda base: {"apply": lambda self, *args: None},
    "_apply_weight_decay": lambda base: {"_decay": base._apply_weight_decay, "apply": decay_and_apply},
    "_overwrite_model_variables_with_average_value": lambda base: {
        "finalize_variable_values": lambda self, *args: None
    },
    "_update_model_variables_moving_average": lambda base: {"apply": update_only},
}


def decay_and_apply(self, grads, variables):
    self._decay(variables)
    update_only(self, grads, variables)
    self._update_model_variables_moving_average(variables)


def update_only(self, grads, variables):
    self._backend_update_step(grads, variables, self.learning_rate)


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_that_keras_does_not_call_any_more(name, monkeypatch):
    base = keras.optimizers.Optimizer
    changed = type("Optimizer", (base,), HOOKS[name](base))
    _keras.check_optimizer.cache_clear()
    monkeypatch.setattr(keras.optimizers, "Optimizer", changed)
    with pytest.raises(RuntimeError, match=rf"does not go with Keras {keras.__version__}: its optimizers "):
        keras_rda.MRDA()
    monkeypatch.undo()
    keras_rda.MRDA()


def test_hooks_that_keras_does_not_have_any_more(monkeypatch):
    monkeypatch.setattr(_keras, "OPTIMIZER_METHODS", ("_get_variable_position",))
    _keras.check_optimizer.cache_clear()
    with pytest.raises(RuntimeError, match=r"its optimizers have no _get_variable_position\(\)"):
        keras_rda.XRDA()
    monkeypatch.undo()
    keras_rda.XRDA()


def test_every_hook_is_checked():
    """Private methods of Keras' optimizer that this package's override."""
    overridden = set()
    for kind in {case.make for case in OPTIMIZERS.values()}:
        ours = [owner for owner in kind.__mro__ if owner.__module__.startswith("keras_rda.")]
        overridden |= {
            name for owner in ours for name in vars(owner) if name.startswith("_") and not name.endswith("__")
        }
    theirs = {name for name in overridden if callable(getattr(keras.optimizers.Optimizer, name, None))}
    assert theirs <= set(_keras.OPTIMIZER_HOOKS)


def test_private_names_of_keras_are_in_one_file():
    used, own = {}, {"_exit"}  # of `os`
    for path in pathlib.Path(keras_rda.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())) if path.name != "_keras.py" else ():
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                own.add(node.name)
            elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
                own.add(node.id if isinstance(node, ast.Name) else node.attr)
            elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
                used.setdefault(node.attr, path.name)
    assert {name: path for name, path in used.items() if name not in own} == {}
