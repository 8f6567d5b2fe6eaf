"""What public arguments have to be, and how an error says it."""

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

_LARGEST_FLOAT32 = float(np.finfo("float32").max)


def is_number(value):
    """Whether a value is a real number of Python or NumPy; a bool is none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_float32(value):
    """Whether a value is a real number, of Python or NumPy, that is finite in float32."""
    try:
        return is_number(value) and abs(float(value)) <= _LARGEST_FLOAT32
    except OverflowError:
        return False


def is_positive_integer(value):
    """Whether a value is a whole number above zero, of Python or NumPy."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value > 0


def check_number(
    owner: object, name: str, number: Any, expected: str, is_in_range: Callable[[Any], bool], hint: str = ""
) -> float:
    """Return `number` as a float if it is one, finite in float32, and in its range.

    Args:
        owner: The object, or the name of the class, that was given the number.
        name: The argument's name and symbol, for example `"averaging (c)"`.
        expected: What the number must be, in words.
        is_in_range: Tells whether a finite number is in the range.
        hint: A sentence after the message.

    Raises:
        ValueError: it is not; the message holds all of these.
    """
    if not (is_float32(number) and is_in_range(number)):
        owner = owner if isinstance(owner, str) else type(owner).__name__
        raise ValueError(f"{owner}: {name} must be {expected}; received {number!r}.{hint and ' '}{hint}")
    return float(number)
