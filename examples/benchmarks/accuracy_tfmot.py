"""Train with TensorFlow Model Optimization's magnitude pruning: a part of accuracy.py, which runs it.

A process of its own, because importing `tensorflow_model_optimization` switches the whole process to Keras 2.

    python examples/benchmarks/accuracy_tfmot.py CELL     # the cell as JSON; prints the result as JSON
"""

import json
import os
import sys
import time

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import accuracy_data as data
import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras


def main():
    cell = data.Cell(**json.loads(sys.argv[1]))
    data.limit_threads(cell.threads)
    tf_keras.utils.set_random_seed(cell.seed)
    task = data.TASKS[cell.task]
    train, (x_test, y_test) = data.load(tf_keras.utils.Sequence, cell)
    steps = len(train) * cell.epochs
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, cell.sparsity, 0, int(0.5 * steps), frequency=100)
    network = task.network(tf_keras, tf_keras.layers, task.input_shape)
    model = tfmot.sparsity.keras.prune_low_magnitude(network, pruning_schedule=schedule)
    rate = tf_keras.optimizers.schedules.CosineDecay(task.learning_rate, steps)
    model.compile(
        tf_keras.optimizers.SGD(rate, momentum=data.MOMENTUM, weight_decay=task.decoupled_weight_decay),
        loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    start = time.perf_counter()
    history = model.fit(
        train,
        epochs=cell.epochs,
        shuffle=False,
        verbose=0,
        callbacks=[tfmot.sparsity.keras.UpdatePruningStep()],
    ).history
    seconds = time.perf_counter() - start
    stripped = tfmot.sparsity.keras.strip_pruning(model)
    top1 = data.top1(stripped.predict(x_test, batch_size=1000, verbose=0), y_test)
    kernels = [v.numpy() for v in stripped.trainable_variables if len(v.shape) > 1]
    sigma = 1 - sum(map(np.count_nonzero, kernels)) / sum(k.size for k in kernels)
    versions = {"tensorflow": tf.__version__, "tf_keras": tf_keras.__version__, "tfmot": tfmot.__version__}
    line = data.result(cell, top1, sigma, seconds, history["accuracy"][-1], versions)
    file = tf.lite.TFLiteConverter.from_keras_model(stripped).convert()
    print(json.dumps(line | {"bytes": len(file)}))


if __name__ == "__main__":
    main()
