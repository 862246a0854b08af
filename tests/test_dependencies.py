"""Documents on security and dependencies agree with the files that they describe."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def normal(name: str) -> str:
    """Return the normalised name of a package."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    """Package -> version in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {normal(name): version for name, _, version in (line.partition("==") for line in lines) if version}


def wanted() -> dict[str, set[str]]:
    """Extra (empty for the core) -> packages in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = {"": project["dependencies"]} | project["optional-dependencies"]
    names = {extra: {normal(re.split(r"[^\w.-]", line)[0]) for line in lines} for extra, lines in lists.items()}
    return {extra: found - {"cskt"} for extra, found in names.items()}


def test_every_direct_dependency_is_listed_with_its_version_and_a_reason() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:`\[(\w+)\]`)? *\| ([\w.-]+) \| (\S+) \| (.+) \|$", page, flags=re.MULTILINE)
    listed: dict[str, set[str]] = {}
    for extra, name, version, reason in rows:
        assert pinned()[name] == version, name
        assert len(reason) > 5, name
        listed.setdefault(extra, set()).add(name)
    assert listed == wanted()


def test_versions_that_run_are_versions_that_are_allowed() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name, least in re.findall(r'^ +"([\w.-]+)(?:\[\w+\])?>=([\d.]+)', text, flags=re.MULTILINE):
        version = pinned()[normal(name)]
        assert [int(part) for part in version.split(".")[:3] if part.isdigit()] >= [int(p) for p in least.split(".")]


def test_what_holds_a_promise_is_there() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    places = re.findall(r"`(tests/[\w/.]+)`", page)
    assert len(places) >= 8
    assert [place for place in places if not (ROOT / place).exists()] == []
