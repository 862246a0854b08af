"""Values that pydantic checks: wrong ones become a CsktError of one line, bugs of our own checks stay bugs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, dataclass_transform

import pydantic
import pydantic.dataclasses
from pydantic import ConfigDict, ValidationError
from pydantic_core import ArgsKwargs, ErrorDetails

from cskt.errors import SHORT, CsktError
from cskt.utils.messages import nearest
from cskt.utils.terminal import printable

UNKNOWN_FIELD = ("unexpected_keyword_argument", "extra_forbidden")
"""pydantic's names of the error that a field is not in the schema."""
PLAIN = dict.fromkeys(("tuple_type", "list_type"), "input should be a list, such as [a, b]")
"""pydantic's names of errors -> messages without words of Python."""

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, pydantic.Field))
def checked_dataclass(config: ConfigDict) -> Callable[[type[T]], type[T]]:
    """Return a decorator for frozen pydantic dataclasses that users construct; a wrong value raises a CsktError.

    `dataclasses.replace` checks as well. Dataclasses that only describe files take pydantic's own decorator.
    """

    def decorate(plain: type[T]) -> type[T]:
        checked: Any = pydantic.dataclasses.dataclass(config=config, frozen=True)(plain)
        construct = checked.__init__
        fields = [field.name for field in dataclasses.fields(checked)]

        def nearest_key(key: str) -> str:
            return nearest(key, fields) if "." not in key else "check its spelling"

        @functools.wraps(construct)
        def init(self: T, *args: Any, **values: Any) -> None:
            try:
                construct(self, *args, **values)
            except ValidationError as error:
                reason = describe(main_fault(error), checked, nearest_key)
                raise CsktError(f"{plain.__name__}: {reason}") from None

        checked.__init__ = init
        return checked

    return decorate


def main_fault(error: ValidationError) -> ErrorDetails:
    """Return the first unknown field, else the first fault: a misspelt name says more than the field it leaves out.

    Raises:
        Exception: see `raise_bug`.
    """
    details = error.errors(include_url=False)
    raise_bug(details)
    return next((detail for detail in details if detail["type"] in UNKNOWN_FIELD), details[0])


def raise_bug(details: Sequence[Mapping[str, Any]]) -> None:
    """Raise the exception of one of our validators that is no CsktError: pydantic takes every ValueError for bad input.

    Args:
        details: `errors()` of a ValidationError, with context.
    """
    for detail in details:
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, Exception) and not isinstance(cause, CsktError):
            raise cause


def describe(
    detail: ErrorDetails, checked: type, nearest_key: Callable[[str], str], spelled: Callable[[str], str] = str
) -> str:
    """Return a fault as `key: what is wrong, got VALUE`; the value of a field without repr, a secret, is left out.

    Args:
        detail: the fault.
        checked: dataclass that refuses its values.
        nearest_key: unknown key -> a clause that names the key that was meant.
        spelled: key -> the name by which the user knows it, a flag for example.
    """
    fields = dataclasses.fields(checked)
    place = [str(part)[:80] for part in detail["loc"]]
    if place and place[0].isdigit() and int(place[0]) < len(fields):  # a positional argument
        place[0] = fields[int(place[0])].name
    key = ".".join(place)
    if detail["type"] in UNKNOWN_FIELD:
        return printable(f"unknown key '{key}': {nearest_key(key)}")
    secrets = {field.name for field in fields if not field.repr}
    is_shown = not (isinstance(detail["input"], dict | ArgsKwargs) or key in secrets)
    found = f", got {SHORT.repr(detail['input'])}" if is_shown else ""
    message = PLAIN.get(detail["type"], detail["msg"].removeprefix("Value error, "))
    return printable(f"{spelled(key) + ': ' if key else ''}{message[0].lower()}{message[1:]}{found}"[:300])
