"""What holds for all places where LiteRT files run."""

import re
import sys
import types

import numpy as np
import pytest
from helpers import without_keras

from keras_rda.litert import elsewhere, flatbuffer
from keras_rda.litert import graph as litert_graph
from keras_rda.litert.machines import aarch64, here, micro, process, wasm
from keras_rda.litert.verification import Check

pytestmark = without_keras
schema = litert_graph.schema()
X = np.float32([[1, 2]])


def run_aarch64(jobs):
    return aarch64.run(jobs, command=[sys.executable])


MACHINES = [
    run_aarch64,
    pytest.param(micro.run, marks=pytest.mark.skipif(not micro.is_ready(), reason="no keras_rda[micro]")),
    pytest.param(wasm.run, marks=pytest.mark.skipif(not wasm.is_ready(), reason="LiteRT.js is not set up")),
]


def difference(path, inputs, outputs=("y", "z"), is_signed=True):
    """Write a file of y = z = inputs[0] − inputs[1], whose inputs and outputs have these names."""

    def named(names, first):
        return [schema.TensorMapT(name=name, tensorIndex=first + place) for place, name in enumerate(names)]

    subtract = schema.BuiltinOperator.SUB
    model = schema.ModelT(
        version=3,
        operatorCodes=[schema.OperatorCodeT(builtinCode=subtract, deprecatedBuiltinCode=subtract, version=1)],
        subgraphs=[
            schema.SubGraphT(
                tensors=[
                    schema.TensorT(name=name, shape=[1, 2], type=schema.TensorType.FLOAT32, buffer=0)
                    for name in (*inputs, *outputs)
                ],
                inputs=[0, 1],
                outputs=[2, 3],
                operators=[
                    schema.OperatorT(
                        opcodeIndex=0,
                        inputs=[0, 1],
                        outputs=[output],
                        builtinOptionsType=schema.BuiltinOptions.SubOptions,
                        builtinOptions=schema.SubOptionsT(),
                    )
                    for output in (2, 3)
                ],
            )
        ],
        buffers=[schema.BufferT()],
        signatureDefs=[schema.SignatureDefT(named(inputs, 0), named(outputs, 2), b"run")] if is_signed else None,
    )
    path.write_bytes(flatbuffer.pack(model))
    return path


SEVERAL = (
    r"The file has several {0}s named 'a', so that they cannot be told apart: rename them where the "
    r"file is made, every {0} needs a name of its own\.$"
)


@pytest.mark.parametrize("is_signed", [True, False])
@pytest.mark.parametrize("run", MACHINES)
def test_names_that_are_not_different_are_refused(run, is_signed, tmp_path):
    """Runtimes take the array of one of them, and compute with what is in the memory of the other."""
    right = difference(tmp_path / "right.tflite", ["a", "b"])
    two_inputs = difference(tmp_path / "input.tflite", ["a", "a"], is_signed=is_signed)
    two_outputs = difference(tmp_path / "output.tflite", ["b", "c"], ["a", "a"], is_signed)
    first, second, other = run([(two_inputs, {"a": X}), (two_outputs, {"b": X, "c": X}), (right, {"a": X, "b": -X})])
    for refused, what in ((first, "input"), (second, "output")):
        assert refused.outputs is None
        assert re.match("ValueError: " + SEVERAL.format(what), refused.error)
    assert other.outputs["y"].tolist() == (2 * X).tolist()


@pytest.mark.parametrize(("inputs", "outputs", "what"), [("aa", "yz", "input"), ("bc", "aa", "output")])
def test_names_that_are_not_different_are_refused_here(inputs, outputs, what, tmp_path):
    path = difference(tmp_path / f"{what}.tflite", inputs, outputs)
    with pytest.raises(ValueError, match=SEVERAL.format(what)):
        here.predict(path, dict.fromkeys(inputs, X))


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("here.mjs:3\n  a.b\n   ^\n\nTypeError: no b\n    at Error (a.js)\n\nNode.js v24.19.0\n", "TypeError: no b"),
        (
            "    throw new E(\n\nError [E_NO]: Cannot find 'x'\n    at f {\n  code: 'E'\n}\n\nNode.js v24\n",
            "Error [E_NO]: Cannot find 'x'",
        ),
        (
            "KeyError: 'x'\n\nDuring handling\n\nnumpy.exceptions.AxisError: axis 2\n",
            "numpy.exceptions.AxisError: axis 2",
        ),
        ("E: first\nE: Failed to fetch\n", "E: Failed to fetch"),
        ("", ""),
    ],
)
def test_the_line_that_tells_most(said, line):
    assert process.telling_line(said) == line


@pytest.mark.parametrize(
    ("machine", "expected"),
    [("aarch64", ["file", "dense"]), ("wasm", ["file", "dense"]), ("micro", ["file", "twin", "dense"])],
)
def test_only_what_is_compared_runs(machine, expected, monkeypatch):
    """Of a compressed file the dense twin, in TFLite Micro."""
    ran = []

    def check_on(machine, reference, paths, tolerances, repeats):
        ran.extend(paths)
        return [(Check(machine, 0, 0), process.Run({"y": X}, None, [1.0], 1)) for _ in paths]

    monkeypatch.setattr(elsewhere.verification, "check_on", check_on)
    model = schema.ModelT(operatorCodes=[], subgraphs=[schema.SubGraphT(operators=[], tensors=[])])
    twin, dense = (types.SimpleNamespace(path=name) for name in ("twin", "dense"))
    check, measured = elsewhere.measure(
        machine, None, types.SimpleNamespace(path="file", twin=twin, model=model), dense, {}
    )
    assert ran == expected
    assert check.passed
    assert measured.ratio == 1
