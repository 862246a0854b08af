"""Checks of the arguments of public functions: a wrong type is a TypeError that names the argument.

A wrong value of the right type is a CsktError.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cskt.errors import SHORT, CsktError


def expect(value: object, kinds: type | tuple[type, ...], name: str, hint: str = "") -> None:
    """Check the type of an argument.

    Args:
        value: the argument.
        kinds: types that it may have.
        name: of the argument.
        hint: remedy, the end of the message.

    Raises:
        TypeError: the argument has another type.
    """
    if not isinstance(value, kinds):
        known = kinds if isinstance(kinds, tuple) else (kinds,)
        names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in known)
        raise TypeError(f"{name} must be {names}, got {type(value).__name__}{f'; {hint}' if hint else ''}")


def listed(values: Any, kinds: type | tuple[type, ...], name: str, hint: str = "") -> tuple[Any, ...]:
    """Return a list argument as a tuple; one value, a string for example, is a list of one.

    Args:
        values: one value, or several.
        kinds: types of a value.
        name, hint: see `expect`.

    Raises:
        TypeError: a value has another type.
    """
    if isinstance(values, kinds):
        return (values,)
    if not isinstance(values, Iterable):
        expect(values, kinds, name, hint)
    found = tuple(values)
    for value in found:
        expect(value, kinds, f"each of {name}", hint)
    return found


def whole_number(value: Any, name: str, least: int) -> None:
    """Check that an argument is a whole number of at least `least`.

    Raises:
        CsktError: it is another value.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise CsktError(f"{name} {SHORT.repr(value)}: must be a whole number")
    if value < least:
        raise CsktError(f"{name} {value}: must be at least {least}")
