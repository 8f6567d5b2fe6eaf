"""The page of `examples/browser` in a real browser: digits drawn with the mouse."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from helpers import BACKEND

from keras_rda.litert import wasm

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
        for a, b in zip(stroke, stroke[1:], strict=False)
        for step in range(count if abs(np.subtract(b, a)).max() > 0.1 else 1)
    ] + [stroke[-1]]


def draw(browser, digit):
    """Draw a digit and return what the page reads."""
    box = browser.evaluate("document.getElementById('drawing').getBoundingClientRect().toJSON()")
    browser.evaluate("document.getElementById('clear').click()")
    browser.draw(
        [
            [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in dense_points(stroke)]
            for stroke in DIGITS[digit]
        ]
    )
    browser.evaluate("new Promise(resolve => setTimeout(resolve, 300))")
    browser.wait("document.getElementById('digit').textContent !== ''")
    return int(browser.evaluate("document.getElementById('digit').textContent"))
