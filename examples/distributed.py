"""Several machines train one sparse network: `tf.distribute.MultiWorkerMirroredStrategy` on TensorFlow.

    python examples/distributed.py --local-workers 2            # to try it: two processes on this machine

On each machine of a cluster, with its own `index` and a `--backup` file that all of them see:

    TF_CONFIG='{"cluster": {"worker": ["host0:12345", "host1:12345"]}, "task": {"type": "worker", "index": 0}}' \\
        python examples/distributed.py --backup DIR/run.npz

Without either, one process trains alone, to the same weights and zeros: each worker takes its share of each batch,
gradients are summed over the workers, and normalisation layers take their statistics from all of them. When a worker
dies, start all of them again with the same command: they go on from the last whole epoch. The backup is removed when
the model is saved.

Keras' `fit` does not run under this strategy (keras-team/keras issue 20585), so the loop is spelled out; it calls
callbacks as `fit` does. Several devices of one machine need only `tf.distribute.MirroredStrategy` and `fit`, and on JAX
`keras.distribution.set_distribution` and `fit`.
"""

import argparse
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zlib

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", choices=("digits", "mnist", "fashion_mnist"))
    parser.add_argument("--data-dir", help="prepared tensorflow-datasets directory; default: download to the usual one")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64, help="images of one step, of all workers together")
    parser.add_argument("--sparsity", type=float, default=0.9, help="wanted σ of the kernels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backup", type=pathlib.Path, help=".npz file to go on from when started again")
    output = pathlib.Path(__file__).parent / "output" / "distributed.keras"
    parser.add_argument(
        "--output", type=pathlib.Path, default=output, help="file of the trained model; beside it a plot"
    )
    parser.add_argument("--local-workers", type=int, help="start that many workers on this machine")
    arguments = parser.parse_args()
    for name in ("epochs", "batch_size", "local_workers"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1; received {value}")
    if arguments.local_workers is not None and "TF_CONFIG" not in os.environ:  # which the workers have
        start_local_workers(arguments.local_workers)
        return
    cluster = json.loads(os.environ.get("TF_CONFIG", "{}"))
    workers = len(cluster["cluster"]["worker"]) if cluster else 1
    train(arguments, cluster["task"]["index"] if cluster else 0, workers)


def start_local_workers(workers):
    """Start this command once for each worker, on free ports of the loopback interface, and wait for them."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(workers)]
    addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in sockets]
    for server in sockets:
        server.close()
    processes = []
    for index in range(workers):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(task)}
        processes.append(subprocess.Popen([sys.executable, *sys.argv], env=environment))
    try:
        while None in (codes := [process.poll() for process in processes]) and not any(codes):
            time.sleep(0.1)
        if any(code is not None and code < 0 for code in codes):
            sys.exit("A worker died; start again with the same --backup to go on from the last whole epoch.")
        if any(codes):
            sys.exit(1)  # it has said why
    finally:
        for process in processes:
            process.kill()
            process.wait()


def train(arguments, worker, workers):
    import tensorflow as tf

    # Before anything else of TensorFlow: it connects the workers.
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if workers > 1 else tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync  # more than workers where these have several GPUs
    if arguments.batch_size % replicas:
        sys.exit(f"--batch-size must be a multiple of the {replicas} replicas; received {arguments.batch_size}")

    import keras
    import numpy as np

    import keras_rda

    keras.utils.set_random_seed(arguments.seed)  # the same first weights on each worker
    if arguments.dataset == "digits":
        sets, white = keras_rda.datasets.load_digits(), 16
    else:
        sets, white = keras_rda.datasets.load(arguments.dataset, arguments.data_dir), 255
    (x_train, y_train), (x_test, y_test) = sets
    x_train, x_test = (x.astype("float32") / white for x in (x_train, x_test))
    steps = len(x_train) // arguments.batch_size
    if not steps:
        sys.exit(f"--batch-size must be at most {len(x_train)}, all training images; received {arguments.batch_size}")

    with strategy.scope():
        model = network(x_train.shape[1:])
        rate = keras.optimizers.schedules.CosineDecay(1.0, arguments.epochs * steps)
        optimizer = keras_rda.XRDA(rate, weight_decay=1e-4)
        model.compile(optimizer)  # for the callbacks, which ask the model for its optimizer
        optimizer.build(model.trainable_variables)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")

    def replica_step(x, y):
        with tf.GradientTape() as tape:
            loss = cross_entropy(y, model(x, training=True)) / arguments.batch_size  # the mean over all workers
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    @tf.function
    def step(x, y):
        return strategy.reduce("SUM", strategy.run(replica_step, (x, y)), axis=None)

    @tf.function
    def total(value):
        return strategy.reduce("SUM", strategy.run(lambda value: value, (value,)), axis=None)

    def shares(array, rows):
        """Rows of an array, to each replica its share."""
        share = len(rows) // replicas

        def own(context):
            first = share * context.replica_id_in_sync_group
            return tf.constant(array[rows[first : first + share]])

        return strategy.experimental_distribute_values_from_function(own)

    history = keras.callbacks.History()
    callbacks = [keras_rda.TargetSparsity(arguments.sparsity), history]
    own = tempfile.TemporaryDirectory()
    if arguments.backup:
        # One worker writes the backup that all of them go on from; the others keep a copy.
        file = arguments.backup
        if worker:
            file = pathlib.Path(own.name) / "backup.npz"
            if arguments.backup.exists():
                shutil.copy(arguments.backup, file)
        callbacks.append(keras_rda.Backup(file, delete_checkpoint=False))
    callbacks = keras.callbacks.CallbackList(callbacks, model=model, epochs=arguments.epochs, steps=steps)
    callbacks.on_train_begin()
    state = b"".join(np.asarray(v).tobytes() for v in [*model.variables, *optimizer.variables])
    own_sum = zlib.crc32(state)
    if int(total(tf.constant(own_sum, tf.int64))) != replicas * own_sum:
        sys.exit(f"The workers have read different backups: {arguments.backup} must be one file that all of them see.")
    for epoch in range(int(optimizer.iterations.numpy()) // steps, arguments.epochs):
        callbacks.on_epoch_begin(epoch)
        order = np.random.default_rng((arguments.seed, epoch)).permutation(len(x_train))
        losses = []
        for batch in range(steps):
            callbacks.on_train_batch_begin(batch)
            rows = order[batch * arguments.batch_size : (batch + 1) * arguments.batch_size]
            losses.append(step(shares(x_train, rows), shares(y_train, rows)))
            callbacks.on_train_batch_end(batch)
        callbacks.on_epoch_end(epoch, {"loss": float(np.mean(losses))})
        if not worker:
            print(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}, σ {keras_rda.sparsity(model):.4f}", flush=True)
    callbacks.on_train_end()
    own.cleanup()
    if not worker:
        logits = np.concatenate([model(x, training=False) for x in np.array_split(x_test, 10)])
        top1 = np.mean(np.argmax(logits, -1) == y_test)
        sigma = keras_rda.sparsity(model, kernels_only=True)
        print(f"{workers} of {workers} workers: top-1 {100 * top1:.2f} %, σ of the kernels {sigma:.4f}")
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        unfinished = arguments.output.with_suffix(".part.keras")
        model.save(unfinished)
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())  # on the disk before the backup goes
        unfinished.replace(arguments.output)
        if arguments.backup:
            arguments.backup.unlink(missing_ok=True)
        if history.epoch:
            import plotting

            figure = keras_rda.plot_history(history)[0].figure
            command = f"python examples/distributed.py --dataset {arguments.dataset} --epochs {arguments.epochs}"
            plotting.save(figure, arguments.output.with_suffix(".png"), f"{command}, {workers} workers")


def network(input_shape):
    import keras

    layers = keras.layers
    model = [layers.Input(input_shape)]
    for filters in (32, 64):
        model += [
            layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9, synchronized=True),
            layers.ReLU(),
        ]
    return keras.Sequential([*model, layers.GlobalAveragePooling2D(), layers.Dense(10)])


if __name__ == "__main__":
    main()
