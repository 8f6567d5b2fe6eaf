"""What `TargetSparsity` keeps in the state of an optimizer, so that a run that is resumed steers on."""

import keras


class SteeringMemory:
    """λ of single variables, and a few numbers for each; zero throughout is what state without steering has.

    Attributes:
        strength_exponents: Variable of shape (variables,): λ of a variable is penalty.strength times e to its exponent.
    """

    # The density 1 − σ when last measured; σ when steering began; 1 + the epoch in which it began. Zero is never, or
    # dense.
    ROWS = ("measured_density", "initial_sparsity", "begun")

    def __init__(self, optimizer, variables):
        options = {"dtype": "float32", "aggregation": "only_first_replica"}
        self.strength_exponents = optimizer.add_variable((variables,), name="strength_exponents", **options)
        self._rows = optimizer.add_variable((len(self.ROWS), variables), name="steering", **options)

    def remember(self, positions, **numbers_by_row):
        """Keep numbers in rows of `ROWS` for the variables at `positions`."""
        array = keras.ops.convert_to_numpy(self._rows).copy()
        for row, number in numbers_by_row.items():
            array[self.ROWS.index(row), positions] = number
        self._rows.assign(array)

    def forget(self, positions):
        """Have nothing remembered of the variables at `positions`."""
        self.remember(positions, **dict.fromkeys(self.ROWS, 0.0))

    def recall(self, position, row):
        """A number that was kept, or zero."""
        return float(keras.ops.convert_to_numpy(self._rows)[self.ROWS.index(row), position])

    def set_exponents(self, positions, exponent):
        """Set the exponents of the variables at `positions`."""
        array = keras.ops.convert_to_numpy(self.strength_exponents).copy()
        array[positions] = exponent
        self.strength_exponents.assign(array)
