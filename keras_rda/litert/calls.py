"""The ways to call any LiteRT file, and inputs for them: random ones as its operators read them, or the user's."""

import dataclasses

import numpy as np

from keras_rda.litert.graph import Graph

# Types of inputs that can be drawn.
_DRAWN = {
    *("BOOL", "COMPLEX64", "FLOAT16", "FLOAT32", "FLOAT64"),
    *("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
}
_SAMPLES = 4  # of data
SIZES = (32, 64, 224, 8, 1)  # of dimensions that are unknown, in the order in which they are tried


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """One way to call a file.

    Attributes:
        key: The key of a signature; None: its first subgraph, which no signature names.
        subgraph: The number of the subgraph that it runs; `graph`: its `Graph`.
        inputs, outputs: Dicts of name → tensor.
    """

    key: str | None
    subgraph: int
    graph: Graph
    inputs: dict
    outputs: dict

    def __str__(self):
        return "its first subgraph" if self.key is None else f"the signature '{self.key}'"

    def shape(self, name):
        """An input's shape, with -1 for what is unknown."""
        index = self.inputs[name]
        signature = self.graph.tensors[index].shapeSignature
        return self.graph.shape(index) if signature is None or not len(signature) else tuple(map(int, signature))

    def sizes(self):
        """Pairs of a batch and a size of other unknown dimensions with which it may run, the likeliest first."""
        shapes = [self.shape(name) for name in self.inputs]
        sizes = SIZES if any(-1 in shape[1:] for shape in shapes) else (1,)
        # A state has the batch for which it was made: LiteRT writes beyond it.
        is_free = any(shape[:1] == (-1,) for shape in shapes) and not self.keeps_state
        return [(batch, size) for batch in ((1, 2) if is_free else (1,)) for size in sizes]

    @property
    def keeps_state(self):
        """Whether a call may depend on those before."""
        kinds = {self.graph.kind(operator) for operator in self.graph.operators}
        return "VAR_HANDLE" in kinds or any(tensor.isVariable for tensor in self.graph.tensors)

    def random(self, batch, size, seed):
        """A dict of input name → random array.

        Indices of tables that the file reads rows of, integers of 8 bits from their whole range, other integers 0 or 1,
        in images up to 255, and other numbers between −1 and 1.

        Args:
            batch, size: Of the first dimension and of others, where they are unknown.
            seed: Of the generator.

        Raises:
            ValueError: an input's type cannot be drawn.
        """
        generator, rows, inputs = np.random.default_rng(seed), _rows(self.graph), {}
        for name, index in self.inputs.items():
            kind = self.graph.type(index)
            if kind not in _DRAWN:
                raise ValueError(f"The input '{name}' of {self} takes {kind}, for which no inputs can be drawn.")
            known = (batch, *[size] * 8)
            shape = tuple(known[place] if length < 0 else length for place, length in enumerate(self.shape(name)))
            inputs[name] = _draw(generator, shape, np.dtype(kind.lower()), rows)
        return inputs

    def given(self, data):
        """The first samples of data: a list of dicts of input name → array; None if they are not for this entry.

        Args:
            data: An array with the samples first, or a dict of input name → such an array.
        """
        if not isinstance(data, dict):
            data = dict.fromkeys(self.inputs, data) if len(self.inputs) == 1 else {}
        if sorted(data) != sorted(self.inputs):
            return None
        batches = {}
        for name, array in data.items():
            shape = self.shape(name)
            array, size = np.asarray(array, np.dtype(self.graph.type(self.inputs[name]).lower())), abs((*shape, 1)[0])
            if array.ndim != len(shape) or any(
                a not in (-1, b) for a, b in zip(shape[1:], array.shape[1:], strict=True)
            ):
                return None
            starts = range(0, min(len(array) - size + 1, _SAMPLES * size), size) if shape else [None]
            batches[name] = [array[start : start + size] if shape else array for start in starts]
        return [dict(zip(batches, arrays, strict=True)) for arrays in zip(*batches.values(), strict=False)]


def entries(model):
    """Every `Entry` of a `ModelT`: its signatures, then its first subgraph if none of them names it.

    Raises:
        ValueError: two inputs or two outputs of a signature have one name.
    """
    found = []
    for signature in model.signatureDefs or []:
        number = signature.subgraphIndex
        inputs, outputs = (
            different(what, [(place.name.decode(errors="replace"), place.tensorIndex) for place in places or []])
            for what, places in (("input", signature.inputs), ("output", signature.outputs))
        )
        key = (signature.signatureKey or b"").decode(errors="replace")
        found.append(Entry(key, number, Graph(model, model.subgraphs[number]), inputs, outputs))
    if all(entry.subgraph for entry in found):
        graph = Graph(model)
        inputs, outputs = (_named(graph, indices) for indices in (graph.subgraph.inputs, graph.subgraph.outputs))
        found.append(Entry(None, 0, graph, inputs, outputs))
    return found


def different(what, pairs):
    """Pairs of a name and a tensor as a dict.

    Raises:
        ValueError: two have one name. Who fills inputs by name would fill one of them: runtimes compute with whatever
            is in the memory of the other.
    """
    names = [name for name, _ in pairs]
    if again := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            f"The file has several {what}s named '{min(again)}', so that they cannot be told apart: rename them where "
            f"the file is made, every {what} needs a name of its own."
        )
    return dict(pairs)


def _named(graph, indices):
    """Name → tensor; by their places where names are missing or not different."""
    names = [graph.name(index) for index in indices]
    if not all(names) or len(set(names)) < len(names):
        names = [f"tensor_{place}" for place in range(len(names))]
    return dict(zip(names, map(int, indices), strict=True))


def _draw(generator, shape, dtype, rows):
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        if dtype.itemsize == 1 and rows is None:
            limits = np.iinfo(dtype)
            return generator.integers(limits.min, limits.max + 1, shape).astype(dtype)
        is_image = len(shape) == 4 and shape[-1] in (1, 3, 4)
        return generator.integers(0, rows or (256 if is_image else 2), shape).astype(dtype)
    values = generator.uniform(-1, 1, shape)
    if dtype.kind == "c":
        values = values + 1j * generator.uniform(-1, 1, shape)
    return values.astype(dtype)


def _rows(graph):
    """How many rows every table has whose rows a graph picks by computed indices; None if it picks none."""
    rows = []
    for operator in graph.operators:
        kind = graph.kind(operator)
        if kind not in {"GATHER", "GATHER_ND", "EMBEDDING_LOOKUP"} or len(operator.inputs) < 2:
            continue
        table, indices = operator.inputs[:2] if kind.startswith("GATHER") else operator.inputs[1::-1]
        axis, shape = operator.builtinOptions.axis if kind == "GATHER" else 0, graph.shape(table)
        if not graph.is_stored(indices) and axis < len(shape):
            rows.append(shape[axis])
    return min(rows, default=None) or None
