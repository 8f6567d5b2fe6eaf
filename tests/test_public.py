"""What users may rely on is documented and typed."""

import doctest
import importlib
import inspect
import math
import pathlib
import pkgutil
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_rda

MODULES = (keras_rda, keras_rda.datasets, keras_rda.litert, keras_rda.models, keras_rda.optimizers)
API = pathlib.Path(__file__).parents[1] / "docs/api"


def public():
    """Every function and class that the public modules name, once."""
    found = {}
    for module in MODULES:
        names = getattr(module, "__all__", None) or [
            name for name, item in vars(module).items() if getattr(item, "__module__", "") == module.__name__
        ]
        for name in names:
            item = getattr(module, name)
            if callable(item) and not name.startswith("_"):
                found.setdefault(item, f"{module.__name__}.{name}")
    return [pytest.param(item, id=name) for item, name in found.items()]


@pytest.mark.parametrize("item", public())
def test_documented_and_typed(item):
    text = inspect.getdoc(item)
    assert text
    assert text.splitlines()[0].endswith((".", ":"))
    assert not re.search(r"^>>>", text, re.M), "an example outside of a section would be shown as a quotation"
    if isinstance(item, type) and "__init__" not in vars(item):
        return  # a result that users do not make, or an exception
    for name, parameter in inspect.signature(item).parameters.items():
        if not hasattr(item, "__dataclass_fields__"):
            assert parameter.annotation is not inspect.Parameter.empty, f"{name} has no type"
        assert re.search(rf"^ *(.*, )?\**{name}(, .*)?: ", text, re.MULTILINE), f"{name} is not documented"


@pytest.mark.parametrize("item", [p for p in public() if isinstance(p.values[0], type)])
def test_public_methods_are_documented(item):
    for name, method in vars(item).items():
        known = any(hasattr(base, name) for base in item.__mro__[1:])  # a base class documents what it is for
        if callable(method) and not name.startswith("_") and not known:
            assert inspect.getdoc(method), f"{name} has no documentation"


def functions(item):
    """The function itself; of a class what makes it, and the methods and properties that it documents or introduces."""
    if not isinstance(item, type):
        yield item
        return
    for name, member in vars(item).items():
        parts = [member.fget, member.fset] if isinstance(member, property) else [getattr(member, "__func__", member)]
        for function in filter(inspect.isfunction, parts):
            known = any(hasattr(base, name) for base in item.__mro__[1:])
            if name == "__init__" or (not name.startswith("_") and (function.__doc__ or not known)):
                yield function


@pytest.mark.parametrize("item", public())
def test_hints_are_complete(item):
    for function in functions(item):
        signature = inspect.signature(function)
        hints = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        hints = {name: hint for name, hint in hints.items() if name not in ("self", "cls")}
        hints["its result"] = signature.return_annotation
        untyped = [name for name, hint in hints.items() if hint is inspect.Signature.empty]
        assert not untyped, f"{function.__qualname__} gives no type of {', '.join(untyped)}"


def test_api_pages_name_everything():
    """Every public name has its place in the site, once."""
    shown = [name for page in API.glob("*.md") for name in re.findall(r"^::: (keras_rda\S+)", page.read_text(), re.M)]
    assert len(shown) == len(set(shown))
    assert not {parameter.id for parameter in public()} - set(shown)


def test_hints_are_shipped():
    import importlib.resources

    assert importlib.resources.files("keras_rda").joinpath("py.typed").is_file()
    hints = inspect.get_annotations(keras_rda.compress)
    assert hints["model"] is keras.Model


def test_importing_warns_of_nothing():
    """Nor does any module: each once, in a process in which warnings are errors."""
    names = [info.name for info in pkgutil.walk_packages(keras_rda.__path__, "keras_rda.")]
    names = [name for name in names if not name.endswith("runner")]  # which run in other processes
    assert "keras_rda.cli" in names
    script = "import importlib, sys; list(map(importlib.import_module, sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script, *names], capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]


def test_the_changelog_begins_with_the_version():
    """And a tag needs both."""
    text = (pathlib.Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[(.+)\] - (\d{4}-\d\d-\d\d|Unreleased)$", text, re.MULTILINE)[1] == keras_rda.__version__


def examples():
    """Every docstring of the package with an example."""
    for info in pkgutil.walk_packages(keras_rda.__path__, "keras_rda."):
        if not info.name.endswith(("runner", "aarch64")):  # scripts
            tests = doctest.DocTestFinder().find(importlib.import_module(info.name))
            yield from (pytest.param(test, id=test.name) for test in tests if test.examples)


@pytest.mark.parametrize("example", list(examples()))
def test_examples_in_docstrings_run(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(4)])
    model.compile(keras_rda.MRDA(), loss="mse")
    example.globs.update(
        keras=keras,
        keras_rda=keras_rda,
        math=math,
        model=model,
        x=random.normal(size=(512, 8)),
        y=random.normal(size=(512, 4)),
    )
    result = doctest.DocTestRunner().run(example)
    assert (result.attempted, result.failed) == (len(example.examples), 0)
