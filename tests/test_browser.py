"""The page of `examples/browser` in a real browser: digits drawn with the mouse."""

import functools
import http.server
import itertools
import json
import os
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
    small = ["--size", "32", "--alpha", "0.25", "--epochs", "10"]
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
        browser.wait("document.getElementById('ratio').textContent !== '–'")
        # In one call: the page writes all three anew with every frame.
        shown = "['dense-time', 'sparse-time', 'ratio'].map(id => document.getElementById(id).textContent)"
        dense, sparse, ratio = browser.evaluate(shown)
        print(f"{dense}, {sparse}, {ratio}, {text(browser, 'sizes')}")
        check_times(dense, sparse, ratio)
        assert not [line for line in browser.said if line.startswith("ERROR")]


def check_times(dense, sparse, ratio):
    """The ratio is that of the two times beside it, up to the 0.005 ms and the 0.05 that they are rounded by."""
    assert all(re.fullmatch(r"\d+\.\d\d ms", time) for time in (dense, sparse))
    dense, sparse = float(dense.split()[0]), float(sparse.split()[0])
    number, _, word = ratio.partition(" × ")
    if ratio == "as fast":
        number, word = 1, "faster"
    slow, quick = {"faster": (dense, sparse), "slower": (sparse, dense)}[word]
    assert (slow - 0.005) / (quick + 0.005) - 0.051 <= float(number) <= (slow + 0.005) / (quick - 0.005) + 0.051


@pytest.mark.xdist_group("browser")
@pytest.mark.parametrize(
    ("dense", "sparse", "words"), [(7, 2, "3.5 × faster"), (5, 7, "1.4 × slower"), (4, 4.1, "as fast")]
)
def test_what_is_slower_is_not_called_faster(page, dense, sparse, words):
    with Browser(page[0]) as browser:
        browser.wait("document.getElementById('status').textContent.includes('read rightly')")
        code = (SERVE.parent / "app.js").read_text()
        function = code[code.index("function showTimes") : code.index("async function main")]
        networks = f"[{{name: 'dense', times: [{dense}]}}, {{name: 'sparse', times: [{sparse}]}}]"
        browser.evaluate(f"const element = id => document.getElementById(id); {function} showTimes({networks})")
        shown = [text(browser, name) for name in ("dense-time", "sparse-time", "ratio")]
        assert shown[2] == words
        check_times(*shown)


@pytest.mark.xdist_group("browser")
def test_a_browser_that_cannot_show_a_page_is_ended(monkeypatch):
    processes, popen = [], subprocess.Popen

    def started(*arguments, **options):
        processes.append(popen(*arguments, **options))
        return processes[0]

    monkeypatch.setattr(subprocess, "Popen", started)
    open_files = os.listdir("/proc/self/fd")
    with pytest.raises(RuntimeError, match="invalid URL"):
        Browser("no address")
    assert processes[0].poll() is not None
    assert os.listdir("/proc/self/fd") == open_files


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
