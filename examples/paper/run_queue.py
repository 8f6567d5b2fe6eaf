"""Runs what waits for a fast machine: as much as the time allows, resumable."""

import fcntl
import gc
import os
import pathlib
import signal
import sys
import tempfile
import threading
import time

from examples.paper import commands, results, training
from examples.paper.checkpoint import COPY, Checkpoint, Copy
from examples.paper.queue_list import StepTime, TableRun
from examples.paper.tables import WrongSettings

GRACE = 10  # seconds after the end until a call that cannot be interrupted is left behind
STEP_TIME = 120.0  # seconds that the benchmark is given for compiling and measuring


class NotReady(RuntimeError):
    """The queue cannot begin; the message says what is in its way."""


def remove_checkpoints(done, checkpoints):
    """Remove the checkpoints of runs that are done: a kill may have come before that."""
    for run in done:
        if isinstance(run, TableRun):
            Checkpoint(checkpoints, run.settings).remove()


class Queue:
    """Runs what is on a list until it is empty or the time is over; passed to `training.train` as its `clock`.

    The first run in order that can end in the time that is left comes first. A run that cannot end, as its first epochs
    show, is put back if one of the others can; else it trains on, and its checkpoint is what remains. A comparison and
    the benchmark of update times have none: they are begun only where they can end, and a comparison that cannot stops.

    Args:
        runs: What `read_list` returned, without what is done already.
        minutes: Until the end, counted from `start`.
        data_dir, checkpoints: As for `training.train`.
        output: Folder for the lines of the results, `runs.jsonl`, and a copy of the last checkpoint.
        start: `time.monotonic()` when the time began.
        report: Function of one line of text.
    """

    def __init__(self, runs, minutes, data_dir, checkpoints, output, start, report=print):
        self.waiting, self.end = list(runs), start + 60 * minutes
        self.data_dir, self.checkpoints, self.output = data_dir, checkpoints, pathlib.Path(output)
        self.report = report
        self.failed = []
        self.running = None
        self.seconds = {}  # of an epoch, by network
        self._counted_from, self._epochs_seen, self._put_back = None, 0, False
        self._left_alone = None  # a copy of another queue that this one could not take
        self._ending, self._ended = threading.Lock(), False

    def left(self):
        """Seconds until the end."""
        return self.end - time.monotonic()

    def needs(self, run):
        """Seconds that the rest of a run will take, as far as this machine has shown; 0 where it has shown nothing."""
        if isinstance(run, StepTime):
            return STEP_TIME
        if not self.seconds:
            return 0.0
        epochs = run.epochs() - self._saved_epochs(run)
        if run.network() in self.seconds:
            return epochs * self.seconds[run.network()][0]
        # A network that was not seen yet counts as if it took as long an image as the slowest that was.
        return epochs * run.images() * max(seconds / images for seconds, images in self.seconds.values())

    def run(self):
        """Run the list; return the runs that failed.

        Raises:
            NotReady: a folder cannot be used, another queue uses it, or the copy of a checkpoint is damaged.
            KeyboardInterrupt: by Ctrl-C or SIGTERM, after the checkpoint was copied.
        """
        with self._check_folders():
            if Copy.is_in(self.output):
                self._take_copy()
            before = signal.signal(signal.SIGTERM, signal.default_int_handler)
            try:
                return self._run()
            finally:
                signal.signal(signal.SIGTERM, before)

    def _run(self):
        interrupted = None
        watch = threading.Timer(max(0.0, self.left()) + GRACE, self._leave)
        watch.daemon = True
        watch.start()
        while self.waiting and self.left() > 0:
            fitting = [run for run in self.waiting if self.needs(run) <= self.left()]
            # Where none can end, one whose checkpoint goes on is begun.
            if not (fitting := fitting or [run for run in self.waiting if isinstance(run, TableRun)]):
                break
            self.running = fitting[0]
            self.report(f"{self.running}: {self.running.purpose}")
            try:
                self._run_one(self.running)
                self.waiting.remove(self.running)
            except training.Paused:
                if not self._put_back:
                    self.report(f"{self.running}: stopped, {self._saved_epochs(self.running)} epochs are saved")
                    break
                minutes = f"{self.needs(self.running) / 60:.1f} minutes, and {self.left() / 60:.1f} are left"
                self.report(f"{self.running}: put back, because it needs {minutes}")
            except KeyboardInterrupt as error:
                interrupted = error
                break
            except Exception as error:
                # One run's fault must not cost the others their time.
                self.report(f"{self.running}: failed, {type(error).__name__}: {error}")
                self.waiting.remove(self.running)
                self.failed.append(self.running)
            gc.collect()  # of a model that refers to itself, before the next one needs the memory
        with self._ending:
            self._ended = True
            watch.cancel()
            self._bring_home()
        if interrupted:
            raise interrupted
        return self.failed

    def _check_folders(self):
        """Return the open file whose lock keeps other queues away."""
        if self.data_dir is not None and not pathlib.Path(self.data_dir).is_dir():
            raise NotReady(f"--data-dir {self.data_dir} is no folder.")
        try:
            for folder in (self.output, pathlib.Path(self.checkpoints)):
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            lock = (pathlib.Path(self.checkpoints) / "queue.lock").open("w")
        except OSError as error:
            raise NotReady(f"The folders for results and checkpoints cannot be written to: {error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise NotReady(
                f"Another queue uses {self.checkpoints}: wait for it, or name other --checkpoints."
            ) from error
        except OSError as error:
            raise NotReady(f"The folders for results and checkpoints cannot be written to: {error}") from error
        return lock

    def _take_copy(self):
        """Go on from the copy of a checkpoint that an earlier queue has left in `output`."""
        try:
            copy = Copy(self.output)
        except WrongSettings as error:
            raise NotReady(f"{error} Or delete {self.output}/{COPY}.json, and its run begins anew.") from error
        for run, checkpoint in self._checkpoints(self.waiting):
            if checkpoint.is_of_same_run(copy):
                try:
                    checkpoint.take(copy)
                    self.report(f"{run}: {checkpoint.epochs()} epochs are done")
                except WrongSettings as error:
                    self._left_alone = copy
                    self.report(f"{run} begins anew, and the copy stays while it is further: {error}")

    def _checkpoints(self, runs):
        return [(run, Checkpoint(self.checkpoints, run.settings)) for run in runs if isinstance(run, TableRun)]

    def _saved_epochs(self, run):
        return sum(checkpoint.epochs() for _, checkpoint in self._checkpoints([run]))

    def _run_one(self, run):
        self._epochs_seen, self._put_back = 0, False
        if not isinstance(run, TableRun):
            line = run.measure() if isinstance(run, StepTime) else run.measure(self.data_dir, self)
            results.append(self.output / "runs.jsonl", line)
            return
        line, _, checkpoint = training.train(
            run.settings, self.data_dir, self.checkpoints, report=self.report, clock=self
        )
        line["command"] = commands.command_line(run.table, run.cell, run.settings)
        results.append(self.output / "runs.jsonl", line)
        checkpoint.remove()
        self.report(commands.summary(run, line))

    def is_over(self):
        """Whether the time is over."""
        return self.left() <= 0

    def pauses(self, epochs_left):
        """Whether the run that trains stops after this epoch."""
        self._epochs_seen += 1
        if self._epochs_seen <= 2:  # the first compiled as well, and the second began by writing a checkpoint
            self._counted_from = time.monotonic()
            return self.is_over()
        # A mean, because a checkpoint is not written after every epoch.
        seconds = (time.monotonic() - self._counted_from) / (self._epochs_seen - 2)
        self.seconds[self.running.network()] = seconds, self.running.images()
        others_can_end = any(self.needs(run) <= self.left() for run in self.waiting if run is not self.running)
        self._put_back = epochs_left * seconds > self.left() and (
            others_can_end or not isinstance(self.running, TableRun)
        )
        return self._put_back or seconds > self.left()

    def _bring_home(self):
        """Say what remains, and copy the checkpoint in which the most epochs were spent."""
        self.report(f"{len(self.waiting)} runs wait" + (f", {len(self.failed)} failed" if self.failed else ""))
        begun = self._checkpoints([*self.waiting, *self.failed])
        run, checkpoint = max(begun, key=lambda pair: pair[1].epochs(), default=(None, None))
        kept = self._left_alone.epochs if self._left_alone else 0
        if checkpoint is not None and checkpoint.epochs() > kept:
            self.report(f"{run}: {checkpoint.write_copy(self.output)}")

    def _leave(self):
        """End the process in the middle of a call that cannot be interrupted; what was saved before is whole."""
        with self._ending:
            if self._ended:
                return
            status = 1 if self.failed else 0
            try:
                self.report("The time is over in the middle of a call: what it did since the last checkpoint is lost.")
                self._bring_home()
            except Exception as error:
                self.report(f"The checkpoint could not be copied: {error}")
                status = 1
            finally:
                sys.stdout.flush()
                os._exit(status)
