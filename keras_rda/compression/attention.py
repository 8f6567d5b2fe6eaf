"""The rules of multi-head attention, and of products of two tensors, such as those of heads where it is written out."""

import inspect
import itertools
import math
import string

import numpy as np

from keras_rda import layer_facts
from keras_rda.compression.analysis import Channels
from keras_rda.compression.graph import Tensor
from keras_rda.compression.passing import is_shared
from keras_rda.compression.rule import Rule, Use
from keras_rda.compression.walls import mixing, opaque, zero_stays


class Heads(Rule):
    """Multi-head attention: its inputs and outputs stay whole; heads that add nothing to the output go."""

    def __call__(self, analysis, call):
        layer = call.layer
        mixing(analysis, call)
        del analysis.walled[id(layer)]  # inside, heads can go all the same
        if len(layer.weights) != (8 if layer.use_bias else 4):  # LoRA
            return
        heads = analysis.fresh(layer.num_heads)
        channels = Channels(1, heads, np.full(len(heads), np.nan))
        use = analysis.uses.setdefault(id(layer), Use(layer, self, channels, channels))
        # A mask, or scores that are asked for, may have an axis of heads.
        plain = len(call.outputs) == 1 and all(len(tensor.shape) == 3 for tensor in call.inputs)
        alive = self._used(layer) & (not analysis.any_weights) if plain else slice(None)
        analysis.fix(use.inputs.ids[alive], f"a head of '{call.name}' with weights")

    def _used(self, layer):
        value, bias, output = self._parts(layer)
        reads = (value != 0).any(axis=(0, 2)) | (bias != 0).any(axis=1)
        return reads & (output != 0).any(axis=(1, 2))

    def _parts(self, layer):
        """Value kernel (in, heads, size), value bias (heads, size), output kernel (heads, size, out)."""
        arrays = layer.get_weights()
        value, output = (arrays[4], arrays[6]) if layer.use_bias else (arrays[2], arrays[3])
        bias = arrays[5] if layer.use_bias else np.zeros(value.shape[1:])
        return value, bias, output.reshape(*output.shape[:2], -1)

    def kernels(self, use):
        heads, none = use.inputs.ids, np.array(-1)
        *projections, output = [weight for weight in use.layer.weights if weight.name == "kernel"]
        read = heads.reshape(-1, *[1] * (len(output.shape) - 1))
        return [*((kernel, none, heads.reshape(1, -1, 1)) for kernel in projections), (output, read, none)]

    def width(self, use):
        return math.gcd(use.layer.key_dim, use.layer.value_dim)

    def config(self, config, use, cut):
        return {**config, layer_facts.of(use.layer).size: int(cut.keep_inputs.sum())}

    def weights(self, use, cut):
        *projections, output = np.array_split(np.arange(len(use.layer.weights)), 4)
        arrays = use.layer.get_weights()
        for index in np.concatenate(projections):  # kernels (in, heads, size), biases (heads, size)
            arrays[index] = arrays[index].compress(cut.keep_inputs, axis=arrays[index].ndim - 2)
        arrays[output[0]] = arrays[output[0]].compress(cut.keep_inputs, axis=0)  # (heads, size, out)
        return arrays


def einsum(analysis, call):
    """A sum of products of two tensors, such as "bqhd,bkhd->bhqk"."""
    before, arrow, after = call.layer.subscripts.replace(" ", "").partition("->")
    before = before.split(",")
    if not arrow or "." in "".join(before) or len(before) != 2:
        return mixing(analysis, call)
    _sum_of_products(analysis, call, before, after)


def matmul(analysis, call):
    """A product of matrices, or of stacks of them: "xij,xjk->xik"."""
    ranks = [len(getattr(operand, "shape", ())) for operand in call.args]
    if min(ranks) < 2:
        return mixing(analysis, call)
    first, second, stacked = (string.ascii_uppercase[2:rank][::-1] for rank in (*ranks, max(ranks)))
    _sum_of_products(analysis, call, [first + "ij", second + "jk"], stacked + "ik")


def _sum_of_products(analysis, call, before, after):
    """Two operands whose axes are the letters `before`, summed over those that are not in `after`."""
    operands = call.args
    own = {
        position: letters[analysis.channels[operand].axis]
        for position, (operand, letters) in enumerate(zip(operands, before, strict=True))
        if isinstance(operand, Tensor) and operand not in analysis.opaque and len(analysis.channels[operand])
    }
    if not own or any(len(set(letters)) < len(letters) for letters in before):
        return mixing(analysis, call)
    letter, *others = set(own.values())
    if not others and len(call.inputs) == 2 and all(letter in letters for letters in before):
        if letter in after:
            axes = [letters.index(letter) for letters in before]
            return _product(analysis, call, operands, axes, after.index(letter), factors=(0, 1))
        if len(own) == 2:
            return _contraction(analysis, call)
    for position, letter in reversed(own.items()):
        if letter in after and letter not in before[1 - position]:
            return _factor(analysis, call, operands[position], operands[1 - position], after.index(letter))
    mixing(analysis, call)


def _contraction(analysis, call):
    """The sum goes over the channels of both operands: those that are zero in one of them add nothing."""
    first, second = (analysis.channels[tensor] for tensor in call.inputs)
    if len(first) != len(second):  # of one, which is broadcast
        return mixing(analysis, call)
    analysis.tie(first.ids, second.ids)
    analysis.fragile(first.ids)  # placeholders that are not zero would count
    zero = (first.constant == 0) | (second.constant == 0)
    analysis.fix(first.ids[~zero], f"'{call.name}' sums over it")
    (out,) = call.outputs
    analysis.channels[out] = opaque(analysis, out, f"'{call.name}' mixes channels")


def _factor(analysis, call, tensor, other, axis):
    """The channels of one operand, each times the same of the `other` one, which is read whole."""
    if isinstance(other, Tensor):
        analysis.fix(analysis.channels[other].ids, f"'{call.name}' mixes channels")
    channels = analysis.channels[tensor]
    analysis.channels[call.outputs[0]] = Channels(axis, channels.ids, zero_stays(channels.constant))


def dot_product_attention(analysis, call):
    """`keras.ops.dot_product_attention`: queries, keys and values (batch, positions, heads, units), and a bias and a
    mask that are the same for all heads."""
    given = inspect.signature(call.layer.call).bind(*call.args, **call.kwargs).arguments
    tensors = [given.pop(name) for name in ("query", "key", "value")]
    shared = (given.get(name) for name in ("bias", "mask"))  # (batch, heads, queries, keys)
    if not all(isinstance(tensor, Tensor) for tensor in tensors) or not all(is_shared(array, 1, 4) for array in shared):
        return mixing(analysis, call)
    _product(analysis, call, tensors, axes=[2, 2, 2], axis=2, factors=(2,))


def _product(analysis, call, tensors, axes, axis, factors):
    """The channels that all `tensors` have on their `axes`, in the call's output on `axis`.

    Args:
        factors: Positions of the tensors that are a factor of every term of the output.
    """
    known = [tensor not in analysis.opaque for tensor in tensors]
    sizes = {tensor.shape[place] for tensor, place in zip(tensors, axes, strict=True)}
    alike = all(
        analysis.channels[tensor].axis == place
        for tensor, place in itertools.compress(zip(tensors, axes, strict=True), known)
    )
    if not any(known) or not alike or len(sizes) != 1 or None in sizes:
        return mixing(analysis, call)
    sides = [
        analysis.channels[tensor] if is_known else opaque(analysis, tensor, f"'{call.name}' reads it too", place)
        for tensor, place, is_known in zip(tensors, axes, known, strict=True)
    ]
    for side in sides[1:]:
        analysis.tie(sides[0].ids, side.ids)
    zero = np.any([sides[position].constant == 0 for position in factors], axis=0)
    analysis.channels[call.outputs[0]] = Channels(axis, sides[0].ids, np.where(zero, 0, np.nan))
