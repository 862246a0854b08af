"""Who may import whom: the arrows between the rooms of the house, read off the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cskt

SOURCE = Path(cskt.__file__).parent

ARROWS: dict[str, set[str]] = {
    "types": set(),
    "config": {"terminal"},
    "console": {"terminal"},
    "progress": {"console"},
    "terminal": set(),
    "csv_cells": set(),
    "losses": set(),
    "arrays": set(),
    "metrics": {"arrays", "types"},
    "published": {"config"},
    "device": {"config"},
    "model": {"config", "published"},
    "image_files": set(),
    "data": {"config", "image_files", "types"},
    "extras": set(),
    "embed": {"config", "data", "device", "extras", "model", "progress"},
    "export": {"config", "data", "embed", "evaluate", "extras", "model"},
    "explain": {"data", "device", "embed", "image_files", "model"},
    "gallery": {"config", "csv_cells", "data", "device", "embed", "explain", "extras", "image_files", "model", "types"},
    "service": {"config", "data", "extras", "gallery", "types"},
    "statistics": set(),
    "rerank": set(),
    "results": {"model"},
    "evaluate": {"data", "embed", "metrics", "rerank", "results", "types"},
    "compare": {"results", "statistics"},
    "analysis": {"types"},
    "reproduce": {"statistics"},
    "study": {"config"},
    "report": {"console", "csv_cells", "image_files", "terminal", "types"},
    "train": {
        "config", "data", "device", "embed", "evaluate", "losses", "model", "progress", "published", "results",
        "types", "cskt",
    },
    "app": {
        "analysis", "compare", "config", "console", "data", "device", "embed", "evaluate", "explain", "export",
        "extras", "gallery", "model", "progress", "published", "report", "reproduce", "results", "service",
        "statistics", "study", "terminal", "train", "types", "cskt",
    },
    "cskt": {"embed", "gallery", "metrics"},
    "__main__": {"app"},
}  # fmt: skip
"""Room -> the rooms that it may import. `cskt` is the package's own module: the public names and the version. A new
arrow is a decision: it stands here, and in ARCHITECTURE.md, before it stands in the code."""

PURE = ("losses", "metrics", "types")
SHARED = {"paths", "json_files"}
"""Small modules that import nothing of ours and that every other one may import, so no arrows lead to them."""


def room_of(path: Path) -> str:
    """The room that a source file belongs to: its folder, or the file itself at the top."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return "cskt" if parts == ("__init__",) else parts[0]


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in it; `from cskt import losses` is `cskt.losses`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            yield from (f"cskt.{alias.name}" if node.module == "cskt" else node.module for alias in node.names)


def rooms_imported(path: Path) -> set[str]:
    """Rooms that a file imports, its own left out; the package's own names (`__version__`) are the room `cskt`."""
    inside = {name.split(".")[1] for name in imported(path) if name.startswith("cskt.")}
    return {room if room in rooms() else "cskt" for room in inside} - {room_of(path)} - SHARED


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def rooms() -> set[str]:
    return {room_of(path) for path in files()}


def test_every_room_is_in_the_table() -> None:
    assert rooms() == ARROWS.keys() | SHARED


@pytest.mark.parametrize("room", sorted(SHARED))
def test_a_shared_module_imports_nothing_of_ours(room: str) -> None:
    assert not [name for name in imported(SOURCE / f"{room}.py") if name.startswith("cskt")]


@pytest.mark.parametrize("room", ARROWS)
def test_a_room_imports_only_what_its_arrows_allow(room: str) -> None:
    for path in files():
        if room_of(path) == room:
            unknown = rooms_imported(path) - ARROWS[room]
            assert not unknown, f"{path.relative_to(SOURCE)} imports {sorted(unknown)}"


@pytest.mark.parametrize("room", ARROWS)
def test_every_arrow_is_in_use(room: str) -> None:
    """The table tells what is, not what might be."""
    used = {arrow for path in files() if room_of(path) == room for arrow in rooms_imported(path)}
    assert used == ARROWS[room]


def test_the_table_keeps_the_rules_of_the_house() -> None:
    assert "model" not in ARROWS["data"] and "data" not in ARROWS["model"], "they meet in embed"
    assert [room for room, arrows in ARROWS.items() if "app" in arrows] == ["__main__"], "nothing else starts the app"
    assert not ARROWS["report"] & {"train", "model", "data", "embed", "evaluate"}, "a report reads results"
    assert {room for room, arrows in ARROWS.items() if "train" in arrows} == {"app"}, "one may evaluate without it"
    assert {room for room, arrows in ARROWS.items() if "losses" in arrows} == {"train"}
    assert {room for room, arrows in ARROWS.items() if "metrics" in arrows} == {"evaluate", "cskt"}


def test_no_room_reaches_itself() -> None:
    def reached(room: str, seen: frozenset[str]) -> frozenset[str]:
        for arrow in ARROWS[room] - seen - {"cskt"}:  # its names are loaded when first asked for
            seen = reached(arrow, seen | {arrow})
        return seen

    assert [room for room in ARROWS if room in reached(room, frozenset())] == []


@pytest.mark.parametrize("room", PURE)
def test_the_pure_core_knows_torch_and_the_standard_library_only(room: str) -> None:
    (path,) = (path for path in files() if room_of(path) == room)
    outside = {name.split(".")[0] for name in imported(path)} - sys.stdlib_module_names - {"torch", "cskt"}
    assert not outside


def test_files_of_the_model_room_know_config_alone_where_they_write() -> None:
    assert rooms_imported(SOURCE / "model" / "files.py") == {"config"}


def test_the_package_itself_waits_for_nothing() -> None:
    """`import cskt` is quick; torch comes with the first name that needs it."""
    code = "import sys, cskt; cskt.__version__; print('torch' in sys.modules); cskt.load; print('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["False", "True"]


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'cskt' has no attribute 'Galery'"):
        _ = cskt.Galery  # type: ignore[attr-defined]
    for name in cskt.__all__:
        assert getattr(cskt, name) is not None
