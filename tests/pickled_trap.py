"""An object whose pickle runs code when it is read by a reader that lets it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Trap:
    """Unpickles to a call that makes the folder `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)
