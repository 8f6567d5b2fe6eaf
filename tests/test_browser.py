"""The page of `examples/browser` in a real browser: digits drawn with the mouse."""

import functools
import http.server
import itertools
import json
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from helpers import BACKEND

from keras_rda.litert import flatbuffer, wasm

SERVE = pathlib.Path(__file__).parent.parent / "examples/browser/serve.py"
pytestmark = [
    pytest.mark.skipif(BACKEND != "tensorflow", reason="the example trains and exports on TensorFlow"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"),
    pytest.mark.skipif(not wasm.is_ready(), reason="LiteRT.js is not set up: python3 -m keras_rda.litert.wasm"),
]


def arc(x, y, width, height, start, end):
    """Points on an ellipse, by its centre and half axes; degrees, clockwise from the top."""
    angles = np.radians(np.linspace(start, end, 24))
    return [(x + width * np.sin(a), y - height * np.cos(a)) for a in angles]


# As people draw them, in a square of 0 … 1.
DIGITS = {
    0: [arc(0.5, 0.5, 0.25, 0.38, 0, -360)],
    1: [[(0.42, 0.25), (0.52, 0.12), (0.52, 0.88)]],
    2: [[*arc(0.5, 0.32, 0.22, 0.2, -80, 120), (0.28, 0.86), (0.78, 0.86)]],
    3: [[*arc(0.48, 0.3, 0.22, 0.18, -70, 180), *arc(0.48, 0.67, 0.26, 0.2, 0, 250)]],
    4: [[(0.55, 0.1), (0.25, 0.6), (0.8, 0.6)], [(0.62, 0.4), (0.6, 0.9)]],
    5: [[(0.72, 0.12), (0.36, 0.12), (0.33, 0.45), *arc(0.48, 0.64, 0.25, 0.23, -20, 230)]],
    6: [[(0.6, 0.1), (0.38, 0.35), *arc(0.5, 0.66, 0.22, 0.22, -90, -450)]],
    7: [[(0.25, 0.14), (0.75, 0.14), (0.45, 0.88)], [(0.35, 0.5), (0.7, 0.5)]],
    8: [[*arc(0.5, 0.3, 0.19, 0.18, 180, -180), *arc(0.5, 0.7, 0.23, 0.21, 0, 360)]],
    9: [[*arc(0.5, 0.34, 0.21, 0.22, 90, -270), (0.7, 0.5), (0.62, 0.9)]],
}


def dense_points(stroke, count=12):
    """A mouse reports points on the way."""
    return [
        tuple(np.add(a, np.subtract(b, a) * step / count))
        for a, b in itertools.pairwise(stroke)
        for step in range(count if abs(np.subtract(b, a)).max() > 0.1 else 1)
    ] + [stroke[-1]]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """URL of the page, made by the example's own command with a smaller network, and its folder."""
    folder = tmp_path_factory.mktemp("browser") / "page"
    small = ["--size", "32", "--alpha", "0.25", "--epochs", "16"]
    command = [sys.executable, SERVE, "--port", "0", "--output", folder, *small]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        lines, found = [], None
        for line in server.stdout:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                yield found[0], folder
                break
        server.kill()
    assert found, "".join(lines)


def text(browser, name):
    return browser.evaluate(f"document.getElementById({name!r}).textContent")


def draw(browser, digit):
    """Draw a digit with the mouse."""
    box = browser.evaluate("document.getElementById('drawing').getBoundingClientRect().toJSON()")
    browser.evaluate("document.getElementById('clear').click()")
    assert text(browser, "digit") == ""
    browser.draw(
        [
            [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in dense_points(stroke)]
            for stroke in DIGITS[digit]
        ]
    )


def read(browser, digit):
    """Draw a digit and return what the page takes it for."""
    draw(browser, digit)
    browser.evaluate("new Promise(resolve => setTimeout(resolve, 500))")  # it reads with every frame
    browser.wait("document.getElementById('digit').textContent !== ''")
    return int(text(browser, "digit"))


@pytest.mark.xdist_group("browser")
def test_drawn_digits_are_read_and_timed(page):
    url, folder = page
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["zeros"] > 0.85
    assert facts["top1"] > 0.8
    assert facts["bytes"]["sparse"] < 0.4 * facts["bytes"]["dense"]
    with Browser(url) as browser:
        browser.wait("document.getElementById('status').textContent.includes('read rightly')")
        answers = {digit: read(browser, digit) for digit in DIGITS}
        print(f"drawn and read: {answers}")
        assert sum(digit == answer for digit, answer in answers.items()) > 5  # a small network, trained for seconds
        browser.wait("document.getElementById('ratio').textContent.includes('faster')")
        times = {name: text(browser, f"{name}-time") for name in ("dense", "sparse")}
        print(f"{times}, {text(browser, 'ratio')}, {text(browser, 'sizes')}")
        assert all(re.fullmatch(r"\d+\.\d\d ms", time) for time in times.values())
        assert not [line for line in browser.said if line.startswith("ERROR")]


@pytest.mark.xdist_group("browser")
def test_files_that_differ_are_not_believed(page, tmp_path):
    """The page compares the two files; here the sparse one is of another network."""
    shutil.copytree(page[1], tmp_path / "page")
    graph = flatbuffer.read(tmp_path / "page/dense.tflite")
    (bias,) = [t for t in graph.subgraphs[0].tensors if list(t.shape) == [10] and t.buffer]
    graph.buffers[bias.buffer].data = np.zeros(40, np.uint8)
    (tmp_path / "page/sparse.tflite").write_bytes(flatbuffer.pack(graph))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "page")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Browser(f"http://127.0.0.1:{server.server_port}/") as browser:
            browser.wait("document.getElementById('status').textContent.includes('read rightly')")
            draw(browser, 3)
            browser.wait(
                "document.getElementById('status').textContent.includes('It does not run here: the files differ')"
            )
            assert text(browser, "digit") == ""
        server.shutdown()
