"""The names by which a LiteRT file is called, wherever it runs."""

from keras_rda.litert.calls import different


def of(model):
    """What a call of a file, a `ModelT`, runs, takes and gives.

    Returns:
        The number of the subgraph that runs, a dict of input name → tensor, in that graph's order, and one of its
        outputs: by the first signature; without one, by the names of the tensors.

    Raises:
        ValueError: two inputs or two outputs have one name.
    """
    signature = model.signatureDefs[0] if model.signatureDefs else None
    number = signature.subgraphIndex if signature else 0
    graph = model.subgraphs[number]
    named = {entry.tensorIndex: _text(entry.name) for entry in (signature and signature.inputs) or []}
    takes = [(named.get(index) or _text(graph.tensors[index].name), index) for index in map(int, graph.inputs)]
    if signature:
        gives = [(_text(entry.name), entry.tensorIndex) for entry in signature.outputs or []]
    else:
        gives = [(_text(graph.tensors[index].name), index) for index in map(int, graph.outputs)]
    return number, different("input", takes), different("output", gives)


def arrays(takes, inputs):
    """The arrays for a file's inputs, in their order: of a dict, or, if there is one only, of the array itself.

    Raises:
        ValueError: they are not those that the file takes.
    """
    if not isinstance(inputs, dict) and len(takes) == 1:
        inputs = dict.fromkeys(takes, inputs)
    if not isinstance(inputs, dict) or sorted(inputs) != sorted(takes):
        received = sorted(inputs) if isinstance(inputs, dict) else "one array"
        raise ValueError(f"the file takes the inputs {sorted(takes)}; received {received}")
    return {name: inputs[name] for name in takes}


def _text(name):
    return (name or b"").decode(errors="replace")
