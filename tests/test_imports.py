"""Allowed imports between the packages of `cskt`, checked against the source."""

from __future__ import annotations

import ast
import pydoc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import cskt

SOURCE = Path(cskt.__file__).parent

ALLOWED: dict[str, set[str]] = {
    "types": set(),
    "config": set(),
    "losses": set(),
    "metrics": {"types"},
    "device": set(),
    "model": {"config", "device"},
    "image_files": set(),
    "data": {"config", "device", "image_files", "types"},
    "embed": {"config", "data", "device", "image_files", "model"},
    "evaluation": {"config", "data", "embed", "metrics", "types"},
    "export": {"config", "data", "embed", "evaluation", "model"},
    "explain": {"data", "device", "embed", "image_files", "model"},
    "gallery": {"config", "data", "device", "embed", "explain", "image_files", "types"},
    "service": {"config", "cskt", "data", "gallery", "image_files", "types"},
    "report": {"evaluation", "image_files", "types"},
    "training": {"config", "cskt", "data", "device", "embed", "evaluation", "losses", "model", "types"},
    "cli": {
        "config", "cskt", "data", "device", "embed", "evaluation", "explain", "export", "gallery", "image_files",
        "losses", "model", "report", "service", "training", "types",
    },
    "cskt": {"config", "data", "embed", "evaluation", "gallery", "losses", "metrics", "model", "training"},
    "__main__": {"cli"},
}  # fmt: skip
"""Package or top-level module -> those that it imports. `cskt` is the module `cskt/__init__.py`. A new import between
packages is a design decision: it is added here and in ARCHITECTURE.md."""

PURE = ("losses", "metrics", "types")
SHARED = {"errors", "plugins", "utils"}
"""Imported by every package; they import each other only."""


def package_of(path: Path) -> str:
    """Return the package directly below `cskt`, or the top-level module, that contains a source file."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return "cskt" if parts == ("__init__",) else parts[0]


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, also inside functions; `from cskt import losses` is `cskt.losses`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            yield from (f"cskt.{alias.name}" if node.module == "cskt" else node.module for alias in node.names)


def packages_imported(path: Path) -> set[str]:
    """Return the other packages that a file imports; public names (`cskt.__version__`) belong to `cskt`."""
    inside = {name.split(".")[1] for name in imported(path) if name.startswith("cskt.")}
    return {package if package in packages() else "cskt" for package in inside} - {package_of(path)} - SHARED


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def packages() -> set[str]:
    return {package_of(path) for path in files()}


def test_every_package_is_in_the_table() -> None:
    assert packages() == ALLOWED.keys() | SHARED


@pytest.mark.parametrize("package", sorted(ALLOWED.keys() | SHARED))
def test_a_package_imports_exactly_what_the_table_lists(package: str) -> None:
    used = {other for path in files() if package_of(path) == package for other in packages_imported(path)}
    assert used == ALLOWED.get(package, set())


def test_the_table_keeps_the_layers_apart() -> None:
    assert "model" not in ALLOWED["data"] and "data" not in ALLOWED["model"], "they meet in embed"
    assert [package for package, imports in ALLOWED.items() if "cli" in imports] == ["__main__"]
    assert not ALLOWED["report"] & {"training", "model", "data", "embed"}, "a report takes results of evaluation"
    assert "training" not in ALLOWED["evaluation"], "evaluation works without training"
    assert {package for package, imports in ALLOWED.items() if "losses" in imports} == {"training", "cli", "cskt"}


def test_imports_form_no_cycle() -> None:
    def reached(package: str, seen: frozenset[str]) -> frozenset[str]:
        for other in ALLOWED[package] - seen - {"cskt"}:  # the public names are imported lazily
            seen = reached(other, seen | {other})
        return seen

    assert [package for package in ALLOWED if package in reached(package, frozenset())] == []


@pytest.mark.parametrize("module", PURE)
def test_the_pure_modules_import_torch_and_the_standard_library_only(module: str) -> None:
    paths = [path for path in files() if package_of(path) == module]
    outside = {name.split(".")[0] for path in paths for name in imported(path)}
    assert outside - sys.stdlib_module_names <= {"torch", "cskt"}


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, cskt; cskt.__version__; print('torch' in sys.modules); cskt.load; print('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["False", "True"]


def test_public_names_are_found_by_dir_help_and_an_ide() -> None:
    lazy = set(cskt._MODULES)
    assert lazy >= {
        "load", "Encoder", "Gallery", "train", "evaluate", "losses", "metrics", "errors", "RunConfig", "load_config",
        "read_dataset",
    }  # fmt: skip
    assert dir(cskt) == sorted(cskt.__all__) == sorted(lazy | {"__version__"})
    text = pydoc.render_doc(cskt, renderer=pydoc.plaintext)
    for name in lazy:
        value = getattr(cskt, name)
        assert f"class {name}(" in text or f"{name}(" in text or isinstance(value, ModuleType)
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    names = {alias.name for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names == lazy, "an IDE and mypy read the imports below TYPE_CHECKING"


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'cskt' has no attribute 'Galery'"):
        _ = cskt.Galery  # type: ignore[attr-defined]


def test_help_works_without_the_extra_of_galleries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "Gallery" not in dir(cskt) and "load" in dir(cskt)
