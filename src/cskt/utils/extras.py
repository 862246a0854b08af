"""Optional parts of the package, and the command that installs them."""

from __future__ import annotations

import importlib.util

from cskt.errors import CsktError


def require(extra: str, *modules: str) -> None:
    """Check that the modules of an extra of pyproject.toml are installed, without importing them."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise CsktError(f"{', '.join(missing)} not installed; type: pip install 'cskt[{extra}]'")
