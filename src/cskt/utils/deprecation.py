"""Old names in the Python API: they keep working until version 1.0 and warn once per process."""

from __future__ import annotations

import warnings
from typing import Any

_warned = set[str]()


def warn_deprecated(old: str, new: str) -> None:
    """Warn, once per process, that an old name or form such as "Gallery.cut_off" is replaced by another."""
    if old not in _warned:
        _warned.add(old)
        warnings.warn(
            f"{old} is deprecated and will be removed in cskt 1.0; use {new}", DeprecationWarning, stacklevel=3
        )


def renamed(old: str, new: str) -> Any:
    """Return a property with a deprecated name (with its class: "Gallery.cut_off") of an attribute."""

    def value(owner: object) -> Any:
        warn_deprecated(old, f"{old.partition('.')[0]}.{new}")
        return getattr(owner, new)

    return property(value)
