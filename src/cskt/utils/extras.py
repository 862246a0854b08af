"""Optional parts of the package, and the command that installs them."""

from __future__ import annotations

import importlib.util

from cskt.errors import CsktError


def require(extra: str, *modules: str) -> None:
    """Check that the modules of an extra are installed, without importing them.

    Args:
        extra: its name in pyproject.toml, such as `gallery`.
        modules: what it brings.

    Raises:
        CsktError: one is missing; says how to install it.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise CsktError(f"{', '.join(missing)} not installed; type: pip install 'cskt[{extra}]'")
