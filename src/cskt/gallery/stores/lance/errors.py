"""What LanceDB says in pages, in a line and of a kind that tells the operator's affairs from the user's."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from cskt.errors import StoreError

DAMAGE = re.compile(r"LanceError\(IO\)|Not found|[Cc]orrupt|Invalid range")
"""In what Lance says of files that are cut short, altered or gone."""
P = ParamSpec("P")
Result = TypeVar("Result")
Store = TypeVar("Store", bound="InFolder")


class InFolder(Protocol):
    """A store in a folder, which its errors name."""

    folder: Path


@contextmanager
def in_one_line(folder: Path) -> Iterator[None]:
    """Tell in a line what Lance tells in pages.

    Raises:
        OSError: what the system has refused it: a full disk, lost rights, ...
        StoreError: anything else.
    """
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if (refused := re.search(r"\(os error (\d+)\)", text)) is not None:
            number = int(refused[1])
            raise OSError(number, os.strerror(number), str(folder)) from None
        if not text.startswith("lance error"):
            raise
        reason = text.partition(", /")[0][:200]  # what follows is a place in Lance's source
        if DAMAGE.search(reason):
            reason = f"damaged ({reason}); restore it, or index into a new folder"
        raise StoreError(f"{folder}: {reason}") from error


def told(method: Callable[Concatenate[Store, P], Result]) -> Callable[Concatenate[Store, P], Result]:
    """A method of the store, its errors in one line."""

    @functools.wraps(method)
    def called(store: Store, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        with in_one_line(store.folder):
            return method(store, *args, **kwargs)

    return called
