"""The notebooks run, in a short form, without a warning, and keep what they print and draw."""

import re

import pytest
from helpers import BACKEND

from examples.notebooks import execute
from keras_rda.litert.machines import micro, wasm

# Parameters that make them short.
SHORT = {
    "browser_and_microcontroller": {"epochs": 3, "size": "100 kB"},
    "fine_tuning": {"epochs": 2, "choosing": 2, "finishing": 1},
    "first_sparse_network": {"epochs": 3},
    "whole_channels": {"epochs": 4, "budget": 0.3},
}
COMMAND = "python examples/notebooks/execute.py {name} runs it anew"


def kinds(notebook):
    """What each cell with code gives: the names of streams, the types of pictures and results."""
    return [
        {kind for result in cell.outputs for kind in result.get("data", [result.get("name")])}
        for cell in execute.code(notebook)
    ]


def test_all_notebooks_are_known():
    assert {file.stem for file in execute.FOLDER.glob("*.ipynb")} == set(SHORT)


@pytest.mark.parametrize("name", SHORT)
def test_outputs_are_kept(name):
    """Those of the code as it is now, of all cells in order, without warnings and places on somebody's machine."""
    notebook = execute.read(name)
    assert notebook.metadata["executed"] == execute.digest(notebook), COMMAND.format(name=name)
    cells = execute.code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, 1 + len(cells)))
    assert sum("image/png" in kind for kind in kinds(notebook)) >= 3
    assert "stderr" not in set().union(*kinds(notebook))
    text = [
        result.get("text", "") + "".join(of for kind, of in result.get("data", {}).items() if kind != "image/png")
        for cell in cells
        for result in cell.outputs
    ]
    assert not re.search(r"/(home|root|tmp|Users)/|\\Users\\|INFO|WARN", "\n".join(text))
    assert (execute.FOLDER / f"{name}.ipynb").stat().st_size < 300_000


@pytest.mark.skipif(BACKEND != "tensorflow", reason="on others every export starts TensorFlow")
@pytest.mark.parametrize("name", SHORT)
def test_runs(name):
    """In a short form each cell gives what it keeps, picture for picture."""
    notebook = execute.read(name)
    kept = kinds(notebook)
    execute.execute(notebook, **SHORT[name])
    if name != "browser_and_microcontroller" or (wasm.is_ready() and micro.is_ready()):
        assert kinds(notebook) == kept, COMMAND.format(name=name)
