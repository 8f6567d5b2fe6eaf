"""A page where a sparse network reads digits drawn with the mouse, in WebAssembly, timed beside its dense file.

    python examples/browser/serve.py

Trains a MobileNetV1 on the embedded digits until 90 % of its 1×1 kernels are zeros, exports it twice, with the zeros
written down and left out, puts both beside the page and LiteRT.js, and serves the folder. What is in the folder runs
from any static host: it needs no headers, and loads 9 MB of WebAssembly. A folder that is there already is served as it
is; delete it to train again.
"""

import argparse
import functools
import http.server
import json
import os
import pathlib
import shutil

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"  # export needs it

import keras
import numpy as np
import tensorflow as tf

import keras_rda
from keras_rda import litert
from keras_rda.litert import wasm

HERE = pathlib.Path(__file__).parent
BATCH_SIZE = 64
layers = keras.layers


def network(size, alpha):
    """From digits of 8×8 numbers between 0 and 16 to logits: enlarged, in the 3 channels that sparse kernels need."""
    digits = keras.Input((8, 8, 1), name="digit")
    x = layers.Rescaling(1 / 8, offset=-1)(digits)
    x = layers.UpSampling2D(size // 8, interpolation="bilinear")(x)
    x = layers.Concatenate()([x, x, x])
    mobilenet = keras_rda.models.MobileNetV1((size, size, 3), alpha, 10)
    for layer in mobilenet.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9  # the default would average over the last 100 steps, four epochs
    return keras.Model(digits, mobilenet(x))


def batches(x, y):
    """Digits moved, turned, stretched, and with a thinner or thicker pen: a mouse is no pencil."""
    change = keras.Sequential(
        [
            layers.UpSampling2D(4, interpolation="bilinear"),
            layers.RandomRotation(0.04, fill_mode="constant"),
            layers.RandomTranslation(0.06, 0.06, fill_mode="constant"),
            layers.RandomZoom((-0.1, 0.15), (-0.2, 0.2), fill_mode="constant"),
            layers.AveragePooling2D(4),
        ]
    )

    def changed(x, y):
        ink = tf.random.uniform((BATCH_SIZE, 1, 1, 1), 0.8, 1.4)
        return tf.minimum(change(tf.cast(x, "float32"), training=True) * ink, 16.0), y

    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x)).batch(BATCH_SIZE, drop_remainder=True)
    return data.map(changed).prefetch(2)


def trained(size, alpha, sparsity, epochs):
    (x, y), _ = keras_rda.datasets.load_digits()
    model = network(size, alpha)
    rate = keras.optimizers.schedules.CosineDecay(1.0, epochs * (len(x) // BATCH_SIZE))
    optimizer = keras_rda.XRDA(rate, weight_decay=5e-4)
    # Zeros pay in 1×1 convolutions; the few other kernels stay dense.
    optimizer.exclude_from_penalty(
        [v for v in model.trainable_variables if v.shape[:2] != (1, 1) and len(v.shape) == 4]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # XLA would compile for half a minute, and its convolutions are slower on processors than TensorFlow's own.
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    model.fit(batches(x, y), epochs=epochs, shuffle=False, verbose=2, callbacks=[keras_rda.TargetSparsity(sparsity)])
    return model


def make(folder, size, alpha, sparsity, epochs):
    """Fill the folder; what is put there last is the page."""
    wasm.set_up()
    model = trained(size, alpha, sparsity, epochs)
    folder.mkdir(parents=True, exist_ok=True)
    write(model, folder)
    (_, _), (x, y) = keras_rda.datasets.load_digits()
    (run,) = wasm.run([(folder / "sparse.tflite", x.astype("float32"))])
    (logits,) = run.outputs.values()
    facts = {
        "zeros": keras_rda.sparsity(model, kernels_only=True),
        "top1": float(np.mean(np.argmax(logits, -1) == y)),
        "images": len(x),
        "bytes": {name: (folder / f"{name}.tflite").stat().st_size for name in ("dense", "sparse")},
    }
    (folder / "facts.json").write_text(json.dumps(facts))
    print(f"zeros {facts['zeros']:.3f}, top-1 in WebAssembly {100 * facts['top1']:.1f} %, bytes {facts['bytes']}")
    shutil.copytree(wasm.folder() / "node_modules/@litertjs", folder / "litertjs", dirs_exist_ok=True)
    for name in ("app.js", "index.html"):
        shutil.copy(HERE / name, folder)


def write(model, folder):
    """The model as `dense.tflite` and `sparse.tflite`, both for one digit at a time."""
    litert.export(model, folder / "dense.tflite", machine="wasm", sparse=False)
    print(litert.export(model, folder / "sparse.tflite", machine="wasm"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default=HERE.parent / "output/browser")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--size", type=int, default=64, help="to which the 8×8 digits are enlarged, a multiple of 8")
    parser.add_argument("--alpha", type=float, default=0.5, help="factor of the numbers of channels")
    parser.add_argument("--sparsity", type=float, default=0.9, help="wanted σ of the 1×1 kernels")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.epochs < 2:
        parser.error(f"--epochs must be at least 2; received {arguments.epochs}")
    if arguments.size % 8 or arguments.size < 8:
        parser.error(f"--size must be a multiple of 8; received {arguments.size}")
    keras.utils.set_random_seed(arguments.seed)
    if not (arguments.output / "index.html").is_file():
        make(arguments.output, arguments.size, arguments.alpha, arguments.sparsity, arguments.epochs)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=arguments.output)
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", arguments.port), handler)
    except OSError as error:
        parser.error(f"--port {arguments.port} cannot be used: {error.strerror}; --port 0 takes any that is free")
    with server:
        print(f"Draw a digit: http://127.0.0.1:{server.server_port}/ (Ctrl+C ends)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
