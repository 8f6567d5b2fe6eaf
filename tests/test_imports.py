"""The package's walls: who imports whom when a module is loaded."""

import ast
import graphlib
import pathlib
import re
import subprocess
import sys

import pytest
from helpers import BACKEND

import keras_rda

PACKAGE = pathlib.Path(keras_rda.__file__).parent
CONTRIBUTING = pathlib.Path(__file__).parent.parent / "CONTRIBUTING.md"


def modules():
    """Dotted name → file."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def loaded(body):
    """The statements that run when a module is loaded: not those in functions."""
    for node in body:
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for name in ("body", "orelse", "finalbody", "handlers"):
                yield from loaded(getattr(node, name, []))


def imports():
    """Module of this package → the modules of this package that it imports when it is loaded."""
    names = modules()
    graph = {name: set() for name in names}
    for name, file in names.items():
        for node in loaded(ast.parse(file.read_text(encoding="utf-8")).body):
            if isinstance(node, ast.Import):
                graph[name].update(alias.name for alias in node.names if alias.name in names)
            elif isinstance(node, ast.ImportFrom) and node.module in names:
                for alias in node.names:  # a module, or something that one defines
                    inner = f"{node.module}.{alias.name}"
                    graph[name].add(inner if inner in names else node.module)
    return graph


def test_imports_have_no_circles():
    graph = imports()
    assert graph["keras_rda"]
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" → ".join(error.args[1][::-1]))


def room(module):
    """The module or package right below `keras_rda`; `""` for `keras_rda` itself."""
    return module.split(".")[1] if "." in module else ""


def test_modules_import_what_stands_left_of_them():
    """In the order of CONTRIBUTING's `a, b → c → d`, also within a step; two modules stand alone."""
    order = re.search(r"Data flows one way: `(.*?)`", CONTRIBUTING.read_text(encoding="utf-8"), re.DOTALL)[1]
    place = {name: number for number, name in enumerate(re.findall(r"\w+", order))}
    alone = {"models", "datasets"}
    graph = imports()
    assert {room(module) for module in graph} == {"", *place, *alone}
    for module, imported in graph.items():
        for other in {room(name) for name in imported} - {room(module), "types"}:
            if room(module):  # `keras_rda` itself names what is public
                right = other and (room(module) in alone or place[other] > place[room(module)])
                assert not right, f"{module} imports keras_rda.{other}, which does not stand left of it"


@pytest.mark.skipif(BACKEND == "tensorflow", reason="Keras imports TensorFlow itself")
def test_tensorflow_is_not_imported():
    """Where Keras computes with another backend: it takes seconds and half a gigabyte."""
    code = "import sys, keras_rda; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
