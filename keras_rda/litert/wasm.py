"""Run LiteRT files as a browser would, on any PC: in WebAssembly, by LiteRT.js under Node.js.

    python3 -m pip install 'keras_rda[wasm]'
    python3 -m keras_rda.litert.wasm [FOLDER]

The first brings Node.js (61 MB, a wheel), the second LiteRT.js from the npm registry (12 MB). FOLDER is the environment
variable `KERAS_RDA_WASM`, else `~/.cache/keras_rda/wasm`.

    dense, sparse = wasm.run([("dense.tflite", image), ("sparse.tflite", image)], repeats=30)
    dense.seconds / sparse.seconds  # of a MobileNetV1 with 90 % zeros in its 1×1 kernels 3 and more

Absolute times are about Chromium's on the same machine; ratios carry further. LiteRT.js runs files of a fixed batch
size, with inputs and outputs of float32, int32 and uint8. What it returns has to be compared: it may compute nonsense
without an error.
"""

from keras_rda.litert.machines.wasm import folder, is_ready, run
from keras_rda.litert.machines.wasm_set_up import main, set_up

__all__ = ["folder", "is_ready", "run", "set_up"]

if __name__ == "__main__":
    main()
