"""The site: pages that lie anywhere in the repository, with what they link to; and what fails its build."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("material", "mkdocs_click", "mkdocstrings", "nbconvert")),
    reason="needs the extra: pip install 'keras_rda[docs]'",
)

README = """# A project

[Guide](docs/guide.md#what-is-σ), [source](code/step.py), ![dot](docs/dot.png), `L1(1e-3)`, and `# L1` in code.
"""
GUIDE = """# Guide

## What is σ?

[Back](../README.md#a-project), [the notebook](../notebooks/first.ipynb#a-plot).
"""
DOT = (ROOT / "docs/report-400.png").read_bytes()


def notebook(text):
    """A notebook of text and a cell whose outputs no run of it could give."""
    stream = {"output_type": "stream", "name": "stdout", "text": "1/2 loss 7\r2/2 loss 5\n"}
    html = {"output_type": "display_data", "metadata": {}, "data": {"text/html": "<pre>a table</pre>"}}
    code = {"cell_type": "code", "id": "b", "metadata": {}, "execution_count": 1, "source": "raise SystemExit"}
    cells = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": text},
        {**code, "outputs": [stream, html]},
    ]
    metadata = {"language_info": {"name": "python"}}
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def build(folder, **files):
    """Build a small project as this one is built; return its exit status, what it said, and the folder of the site."""
    configuration = {
        "INHERIT": str(ROOT / "mkdocs.yml"),
        "hooks": [str(ROOT / "docs/site/hook.py")],
        "nav": [
            {"Home": "README.md"},
            "docs/guide.md",
            "docs/api/penalties.md",
            {"Notebooks": ["notebooks/first.ipynb"]},
        ],
        "watch": [],
    }
    written = {
        "mkdocs.yml": json.dumps(configuration),
        "README.md": README,
        "docs/guide.md": GUIDE,
        "docs/api/penalties.md": "# API\n\n::: keras_rda.L1\n",
        "notebooks/first.ipynb": notebook("# First\n\n[Guide](../docs/guide.md)\n\n## A plot"),
        "code/step.py": "def step(w):\n    return w\n",
        **files,
    }
    for name, text in written.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "docs/dot.png").write_bytes(DOT)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
    )
    return done.returncode, done.stdout + done.stderr, folder / "build/site"


def test_pages_keep_their_links(tmp_path):
    status, said, site = build(tmp_path)
    assert not status, said
    home = (site / "index.html").read_text()
    # Pages of `docs` lie at the top of the site, and σ stays in an anchor, as on repository hosts.
    assert 'href="guide/#what-is-σ"' in home
    assert 'href="code/step.py/"' in home
    assert 'href="api/penalties/#keras_rda.L1"><code>L1(1e-3)</code>' in home
    assert "<code># L1</code>" in home
    assert (site / "dot.png").read_bytes() == DOT
    assert "step" in (site / "code/step.py/index.html").read_text()
    page = (site / "notebooks/first/index.html").read_text()
    assert "loss 5" in page
    assert "loss 7" not in page  # a progress bar is its last state
    assert "<pre>a table</pre>" in page
    assert (site / "notebooks/download/first.ipynb").read_text() == (tmp_path / "notebooks/first.ipynb").read_text()


def test_nothing_is_fetched_from_elsewhere(tmp_path):
    """Neither scripts nor fonts: what the pages load lies in the site."""
    site = build(tmp_path)[2]
    for page in ("index.html", "notebooks/first/index.html", "api/penalties/index.html"):
        tags = (site / page).read_text().split("<")
        loading = [tag for tag in tags if tag.startswith(("script", "link", "img", "iframe"))]
        assert loading
        assert not [tag for tag in loading if "http" in tag]


def test_faults_fail_the_build(tmp_path):
    """Planted faults: a warning for each of them."""
    status, said, _ = build(
        tmp_path,
        **{
            "README.md": README + "\n[gone](docs/gone.md) [folder](docs) [absolute](/guide/)\n",
            "docs/guide.md": GUIDE + "\n[anchor](../README.md#not-there)\n",
            "docs/forgotten.md": "# In no list\n",
            "notebooks/first.ipynb": notebook("# First\n\n[gone](../docs/gone_too.md)\n\n## A plot"),
        },
    )
    assert status
    warnings = re.findall(r"^WARNING.*(?:\n +.*)*", said, re.MULTILINE)
    for fault in ("gone.md", "'docs'", "/guide/", "#not-there", "forgotten.md", "gone_too.md"):
        assert any(fault in warning for warning in warnings), fault
