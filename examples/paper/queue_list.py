"""The runs that wait for a fast machine, as queue.toml lists them."""

import itertools
import pathlib
import tomllib

import click

from examples.paper import commands, data, results, training
from examples.paper.comparison import Comparison, accuracy_data
from examples.paper.tables import TABLES, WrongSettings

QUEUE = pathlib.Path(__file__).with_name("queue.toml")
COMPARISON = {  # what an entry with `task` may set beside the method; the last changes fastest
    "epochs": click.IntRange(2),
    "dtype": click.Choice(accuracy_data.DTYPES),
    "seed": commands.SEED,
    "sparsity": click.FloatRange(0, 1, min_open=True, max_open=True),
}


class BadList(ValueError):
    """The list of runs is not one; the message says which entry, what was received and what was expected."""


class TableRun:
    """A run of a cell of a table."""

    def __init__(self, table, cell, settings, purpose):
        self.table, self.cell, self.settings, self.purpose = table, cell, settings, purpose

    def __str__(self):
        return commands.place(self.table, self.cell, self.settings)

    def key(self):
        return self.settings

    def is_done(self, lines):
        return results.find(lines, self.settings) is not None

    def network(self):
        """What the time of an epoch depends on, but for the method."""
        s = self.settings
        return s.run.architecture, s.run.dataset, s.subset, s.width, s.batch_size, s.dtype

    def images(self):
        """Training images of an epoch."""
        return self.settings.subset or data.TRAINING_IMAGES[self.settings.run.dataset]

    def epochs(self):
        return self.settings.epochs


class StepTime:
    """The benchmark of update times for one network, which is never put back."""

    def __init__(self, network, optimizers, rounds, purpose):
        self.network, self.optimizers, self.rounds, self.purpose = network, optimizers, rounds, purpose

    def __str__(self):
        return f"step_time {self.network}"

    def key(self):
        return self.network, *self.optimizers

    def is_done(self, lines):
        here = {"network": self.network, "backend": training.keras.backend.backend(), "device": training.device()}
        measured = (line for line in lines if results.kind(line) == "step_time")
        return any(
            all(line[name] == value for name, value in here.items()) and {*self.optimizers} <= {*line["optimizers"]}
            for line in measured
        )

    def measure(self):
        from examples.benchmarks import step_time

        measured = step_time.measure(step_time.NETWORKS[self.network](), self.rounds, self.optimizers)
        environment = {"device": training.device(), "versions": training.versions()}
        words = [f"KERAS_BACKEND={measured['backend']} python examples/benchmarks/step_time.py"]
        words += [f"--network {self.network} --rounds {self.rounds} --optimizer"]
        words += [f"'{name}'" for name in self.optimizers]
        return {"benchmark": "step_time"} | measured | environment | {"command": " ".join(words)}


def read_list(file=QUEUE):
    """The runs of a list, in order.

    Raises:
        BadList: an entry is not one.
        OSError: the file cannot be read.
    """
    try:
        listed = tomllib.loads(pathlib.Path(file).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadList(f"{file} is no TOML: {error}") from error
    entries, defaults = listed.pop("entry", []), listed.pop("defaults", {})
    if listed or not isinstance(entries, list) or not isinstance(defaults, dict):
        received = sorted(listed) or [entries, defaults]
        raise BadList(f"{file} takes a table [defaults] and tables [[entry]]; received {received}.")
    runs = []
    for number, entry in enumerate(entries, 1):
        try:
            if not isinstance(entry, dict):
                raise BadList(f"an entry is a table; received {entry!r}.")
            makers = {"benchmark": _step_times, "task": _comparisons}
            make = next((make for name, make in makers.items() if name in entry), _table_runs)
            runs += make(dict(entry), defaults)
        except BadList as error:
            raise BadList(f"{file}, entry {number}: {error}") from error
    different = {}
    for run in runs:
        different.setdefault(run.key(), run)
    return list(different.values())


def _table_runs(entry, defaults):
    entry = defaults | entry
    purpose = entry.pop("purpose", "")
    table = _one_of("table", [entry.pop("table", None)], TABLES)[0]
    _, cells = TABLES[table]
    rows = _one_of("row", _listed(entry.pop("row", [])), [cell.row for cell in cells])
    columns = _one_of("column", _listed(entry.pop("column", [])), [cell.column for cell in cells])
    seeds = _listed(entry.pop("seed", 0))
    chosen = [cell for cell in cells if cell.row in (rows or [cell.row]) and cell.column in (columns or [cell.column])]
    order = {name: position for position, name in enumerate((*rows, *columns))}
    chosen.sort(key=lambda cell: (order.get(cell.row, 0), order.get(cell.column, 0)))
    if not chosen:
        raise BadList(f"{table} has no cell of the rows {rows} and the columns {columns}.")
    try:
        return [
            TableRun(table, cell, commands.settings(cell, seed, **entry), purpose)
            for cell, seed in itertools.product(chosen, seeds)
        ]
    except WrongSettings as error:
        raise BadList(str(error)) from error


def _comparisons(entry, defaults):
    entry = {"sparsity": 0.95, "seed": 0, "epochs": None, "dtype": defaults.get("dtype", "float32")} | entry
    purpose = entry.pop("purpose", "")
    tasks = _one_of("task", _listed(entry.pop("task")), accuracy_data.TASKS)
    methods = [method for method in accuracy_data.METHODS if method != "tfmot"]  # which needs a process of its own
    methods = _one_of("method", _listed(entry.pop("method", None)), methods)
    if unknown := sorted({*entry} - {*COMPARISON}):
        raise BadList(f"{unknown} are none of {['task', 'method', 'purpose', *COMPARISON]}.")
    try:
        options = {
            name: [None if value is None else commands.converted(name, kind, value) for value in _listed(entry[name])]
            for name, kind in COMPARISON.items()
        }
    except WrongSettings as error:
        raise BadList(str(error)) from error
    shared = {"data_dir": None, "threads": None, "backend": training.keras.backend.backend()}
    return [
        Comparison(accuracy_data.make_cell(task, method, sparsity, seed, epochs, dtype=dtype, **shared), purpose)
        for epochs, dtype, seed, sparsity, task, method in itertools.product(*options.values(), tasks, methods)
    ]


def _step_times(entry, defaults):
    from examples.benchmarks import step_time

    purpose = entry.pop("purpose", "")
    _one_of("benchmark", [entry.pop("benchmark")], ["step_time"])
    networks = _one_of("network", _listed(entry.pop("network", [*step_time.NETWORKS])), step_time.NETWORKS)
    optimizers = _one_of("optimizer", _listed(entry.pop("optimizer", [*step_time.OPTIMIZERS])), step_time.OPTIMIZERS)
    rounds = entry.pop("rounds", 40)
    if type(rounds) is not int or rounds < 1 or entry:
        raise BadList(
            f"a benchmark takes network, optimizer and a number of rounds from 1; received rounds {rounds!r} and "
            f"{sorted(entry)}."
        )
    return [StepTime(network, optimizers, rounds, purpose) for network in networks]


def _listed(value):
    return value if isinstance(value, list) else [value]


def _one_of(name, values, known):
    known = list(dict.fromkeys(known))
    if unknown := [value for value in values if value not in known]:
        raise BadList(f"{name} must be of {known}; received {unknown}.")
    return values
