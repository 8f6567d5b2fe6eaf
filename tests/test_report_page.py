"""An export's report: what people read on a terminal and in a page."""

import dataclasses
import html
import json
import shutil
import subprocess

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import BACKEND, sparsify, wide_network

import keras_rda
from keras_rda import cli, output
from keras_rda.litert import graph, page

pytestmark = [
    pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras exports LiteRT on TensorFlow"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of TensorFlow's converter
]


def test_report_as_table_dictionary_and_page(tmp_path):
    model = sparsify(wide_network())
    report = keras_rda.export(model, tmp_path / "<b>model.tflite")
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["chosen"] == "sparse"
    assert plain["weight_bytes"] == sum(tensor["bytes"] for tensor in plain["tensors"]) >= plain["floor_bytes"] > 0
    assert plain["multiply_adds"] == 64 * 3 * 9 * 32 + 36 * 32 * 9 * 64 + 64 * 10
    assert plain["gzip_bytes"] < plain["dense_gzip_bytes"]
    assert [tensor["keras_path"] for tensor in plain["tensors"]] == [
        variable.path for variable in model.weights if variable.name == "kernel"
    ]
    text = str(report)
    for part in ("operators included", "zeros stored sparsely, float32", "XNNPACK, as applications run"):
        assert part in text
    for part in ("information-theoretic floor", "latency, sparse", "zeros faster, Arm", "no: ", "not tried: larger"):
        assert part in text
    report.to_html(tmp_path / "report.html")
    content = (tmp_path / "report.html").read_text()
    assert "<b>model" not in content
    assert "&lt;b&gt;model.tflite" in content
    assert content.count('class="bar zeros"') == len(report.tensors) == 3
    times = f"{report.dense_bytes / report.bytes:.1f}"
    assert f">Right, {times} times smaller</h1>" in content
    for part in ("same outputs as the Keras model", "Written: zeros stored sparsely.", "XNNPACK, as applications run"):
        assert part in content
    assert ">floor" not in content
    lost = dataclasses.replace(report, lost=("1 of 4 channels of 'output_0'",))
    assert "same outputs" not in page.render(lost)
    for tensor in report.tensors:
        assert tensor.keras_path in content.replace("<wbr>", "")
        assert tensor.name in content.replace("<wbr>", "")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (1200, 400)  # pixels: a laptop, a phone
# Frames, since a window of Chromium cannot be as narrow as a phone.
MEASURE = """<script>onload = () => document.title = JSON.stringify(
  [...document.querySelectorAll('iframe')].map(frame => {
    const inside = frame.contentDocument, page = inside.documentElement, tiles = inside.querySelector('#picture');
    return {
      width: page.clientWidth,
      overflow: page.scrollWidth - page.clientWidth,
      outside: [...inside.querySelectorAll('main *')].filter(
        element => element.getBoundingClientRect().right > page.clientWidth).length,
      zeros: [...inside.querySelectorAll('#tensors .zeros > div')].map(
        bar => bar.getBoundingClientRect().width / bar.parentNode.getBoundingClientRect().width),
      unlabelled: [...inside.querySelectorAll('.tile')].filter(
        tile => Math.min(tile.offsetWidth, tile.offsetHeight) > 40 && Math.max(tile.offsetWidth, tile.offsetHeight) > 70
          && !tile.querySelector('span').offsetHeight).length,
      areas: [...inside.querySelectorAll('.tile')].map(
        tile => tile.offsetWidth * tile.offsetHeight / (tiles.offsetWidth * tiles.offsetHeight)),
      requests: frame.contentWindow.performance.getEntriesByType('resource').length}}))</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
def test_page_fits_a_laptop_and_a_phone(tmp_path):
    names = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(32, 3, name="a_layer_" + 9 * "of_a_long_name")]
    )
    reports = [
        keras_rda.export(model, tmp_path / "model.tflite") for model in (sparsify(wide_network()), sparsify(names))
    ]
    alike = reports[0].tensors[:1] * 20  # tiles of which the phone shows the width of a word
    for report in (*reports, dataclasses.replace(reports[0], bytes=21 * alike[0].bytes, tensors=alike)):
        report.to_html(tmp_path / "report.html")
        content = html.escape((tmp_path / "report.html").read_text())
        frames = [f'<iframe style="border: 0; width: {width}px" srcdoc="{content}"></iframe>' for width in WIDTHS]
        (tmp_path / "frames.html").write_text(f'<!doctype html><meta charset="utf-8">{"".join(frames)}{MEASURE}')
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1300,900", "--dump-dom"]
        result = subprocess.run(
            [*command, f"file://{tmp_path / 'frames.html'}"], capture_output=True, text=True, timeout=120
        )
        measured = json.loads(result.stdout.split("<title>")[1].split("</title>")[0])
        largest = max(report.bytes - report.weight_bytes, *(tensor.bytes for tensor in report.tensors)) / report.bytes
        for width, frame in zip(WIDTHS, measured, strict=True):
            assert width - 20 <= frame["width"] <= width
            assert frame["overflow"] == frame["outside"] == frame["unlabelled"] == 0
            np.testing.assert_allclose(frame["zeros"], [tensor.zeros for tensor in report.tensors], atol=0.02)
            np.testing.assert_allclose(max(frame["areas"]), largest, atol=0.02)
            assert frame["requests"] == 0  # one file, self-contained


def test_tiles_fill_the_picture_by_their_bytes():
    random = np.random.default_rng(0)
    pieces = [(f"{number}", "kind", int(random.pareto(1) * 1000)) for number in range(40)]
    tiles = page.tiles([*pieces, ("nothing", "kind", 0)])
    total = sum(size for *_, size in pieces)
    for tile in tiles:
        np.testing.assert_allclose(tile.width * tile.height / 10_000, tile.bytes / total)
        assert tile.left >= 0
        assert tile.top >= 0
        assert tile.left + tile.width <= 100 + 1e-9
        assert tile.top + tile.height <= 100 + 1e-9
    corners = {(tile.left, tile.top) for tile in tiles}
    assert len(corners) == len(tiles) == sum(size > 0 for *_, size in pieces)
    assert page.tiles([]) == []


def test_every_operator_with_weights_has_a_kind():
    assert set(page._KINDS) == set(graph.OPERANDS)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (24_047, "24.0 kB"), (999_600, "1.00 MB"), (1_003_633, "1.00 MB")],
)
def test_sizes_for_people(number, text):
    assert output.size(number) == text


def run(*arguments):
    result = CliRunner().invoke(cli.main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_tables_fit_a_terminal_of_100_columns(tmp_path, monkeypatch):
    """For MobileNet, and every weight's name on a line of its own."""
    monkeypatch.chdir(tmp_path)
    model = sparsify(keras_rda.models.MobileNetV1((32, 32, 3), classes=1000), alive=False)
    model.save("mobilenet.keras")
    kernels = [variable.path for variable in model.weights if variable.name == "kernel"]
    lines = run("export", "mobilenet.keras", "mobilenet.tflite", "--quantize", "float16")
    firsts = [line.split()[0] for line in lines if line.strip()]
    assert set(kernels) <= set(firsts)
    in_model = run("inspect", "mobilenet.keras")
    assert {variable.path for variable in model.weights} <= {line.split()[0] for line in in_model if line.strip()}
    in_file = run("inspect", "mobilenet.tflite")
    # The head and its rule, the sums and what parts them from the rest, and what `shrink` would make of it.
    assert len(in_file) == len(kernels) + 5
    lines += in_model + in_file + run("verify", "mobilenet.keras", "mobilenet.tflite")
    lines += run("benchmark", "mobilenet.tflite", "--seconds", "0.01")
    assert max(map(len, lines)) <= 100
