"""A `fit` epoch of TensorFlow Model Optimization's wrapped network: a part of overhead.py, which runs it.

A process of its own, because importing `tensorflow_model_optimization` switches the whole process to Keras 2.

    python examples/benchmarks/overhead_tfmot.py STEPS    # trains an epoch for each line it reads, and answers it
"""

import os
import sys

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import accuracy_data as data
import tensorflow_model_optimization as tfmot
import tf_keras
from accuracy_networks import residual


def main():
    batches = data.random_batches(int(sys.argv[1]))
    # Masks are made anew every hundred steps, its default: this is what a step costs between.
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.95, 0, 1_000_000, frequency=100)
    network = residual(tf_keras, tf_keras.layers, batches.element_spec[0].shape[1:])
    model = tfmot.sparsity.keras.prune_low_magnitude(network, pruning_schedule=schedule)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.SGD(0.01, momentum=data.MOMENTUM), loss)
    for _ in sys.stdin:
        update = tfmot.sparsity.keras.UpdatePruningStep()
        model.fit(batches, shuffle=False, verbose=0, callbacks=[update])
        print("trained", flush=True)


if __name__ == "__main__":
    main()
