"""Python files that the documentation shows, as tests run them."""

from __future__ import annotations

import re
from pathlib import Path

_PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
FILES: dict[str, str] = dict(
    re.findall(
        r"^`(\w+\.py)`:\n\n```python\n(.*?)^```",
        _PAGE.read_text(encoding="utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )
)
"""Name -> content of the files of docs/extending.md."""
