"""`SearchOptions`: how many crops a search returns, and which ones; one class for Python, the shell and HTTP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from cskt.errors import SHORT, CsktError
from cskt.utils.arguments import expect
from cskt.utils.messages import warn_deprecated

if TYPE_CHECKING:
    from cskt.gallery.conditions import Condition

MAX_RESULTS = 10_000
"""Best crops that one search ranks, those before `offset` included."""
EVERY_SCORE = -1.0
"""As `min_score`: every crop is returned, also where a threshold was calibrated."""


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search.

    Raises:
        CsktError: an option is out of range.

    Example:
        >>> SearchOptions(k=5, where="camera = 'c3'", group_by="track").k
        5
    """

    k: int = 10
    """Most crops to return, from 1."""
    offset: int = 0
    """Best crops to skip; at most `MAX_RESULTS` together with k."""
    where: str | Condition | None = None
    """A filter on metadata, such as "camera = 'c3' and time > '2026-01-01'"; see `cskt.gallery.filters`."""
    min_score: float | None = None
    """Crops with a lower cosine are not returned; -1 returns all. None: the calibrated threshold, if there is one."""
    group_by: str | None = None
    """A metadata column: of crops with one value in it, only the best is returned."""

    def __post_init__(self) -> None:
        for name in ("k", "offset"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise CsktError(f"{name} is {SHORT.repr(value)}; give a whole number")
        if self.k < 1 or self.offset < 0 or self.k + self.offset > MAX_RESULTS:
            raise CsktError(
                f"k is {self.k} with offset {self.offset}; give k of at least 1, and at most {MAX_RESULTS} together"
            )
        expect(self.group_by, (str, type(None)), "group_by")
        score = self.min_score
        if score is not None and not (isinstance(score, Real) and math.isfinite(score)):
            raise CsktError(f"min_score is {SHORT.repr(score)}; give a number, -1 for all crops")


DEFAULTS = SearchOptions()


def search_options(options: SearchOptions | int, keywords: Mapping[str, Any]) -> SearchOptions:
    """Return the options of a search, also those in the old form: k, and the other fields as keywords."""
    if isinstance(options, SearchOptions) and not keywords:
        return options
    warn_deprecated("search_many and search_vectors with k, where, ...", "SearchOptions(k=..., where=...)")
    if unknown := keywords.keys() - {field.name for field in fields(SearchOptions)}:
        raise CsktError(f"unknown option of a search: '{min(unknown)}'")
    return replace(options if isinstance(options, SearchOptions) else SearchOptions(options), **keywords)
