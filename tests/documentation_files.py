"""Python files that the documentation shows, as tests run them."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def files_in(page: Path) -> dict[str, str]:
    """Return name -> content of the Python files that a page shows."""
    text = page.read_text(encoding="utf-8")
    return dict(re.findall(r"^`(\w+\.py)`:\n\n```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))


FILES = files_in(DOCS / "extending.md")
"""Name -> content of the files of docs/extending.md."""
