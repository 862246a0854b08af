"""Registries and the loading of plug-ins."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cskt import plugins
from cskt.errors import CsktError, MissingFileError
from cskt.plugins import Registry, load_plugins, loaded_plugins
from cskt.utils.messages import command_text

CIRCLE = """
from cskt.plugins import REGISTRIES

@REGISTRIES["test.shapes"].register("circle")
class Circle:
    corners = 0
"""


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[type]]:
    """A registry of its own; what the test loads is forgotten afterwards."""
    monkeypatch.setattr(plugins, "REGISTRIES", dict(plugins.REGISTRIES))
    monkeypatch.setattr(plugins, "_loaded", {})
    registry: Registry[type] = Registry("shape", "test.shapes")
    before = set(sys.modules)
    yield registry
    for name in set(sys.modules) - before:
        if name.startswith(plugins.FILES):
            del sys.modules[name]


def write(folder: Path, code: str, name: str = "circle.py") -> Path:
    path = folder / name
    path.write_text(code, encoding="utf-8")
    return path


def test_a_file_registers_entries_under_its_name_and_digest(shapes: Registry[type], tmp_path: Path) -> None:
    path = write(tmp_path, CIRCLE)

    (plugin,) = load_plugins([path])

    assert shapes["circle"].corners == 0  # type: ignore[attr-defined]
    assert (plugin.name, plugin.sha256) == ("circle.py", hashlib.sha256(CIRCLE.encode()).hexdigest())
    assert shapes.provider("circle") == plugin
    assert loaded_plugins() == [plugin]


def test_commands_in_messages_name_the_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.ENVIRONMENT, os.pathsep.join([str(Path.cwd() / "circle.py"), "package.module"]))
    command = "cskt train --resume 'my run' --plugin circle.py --plugin package.module"
    assert command_text("train", "--resume", "my run") == command


def test_an_unchanged_file_runs_once(shapes: Registry[type], tmp_path: Path) -> None:
    path = write(tmp_path, CIRCLE)

    assert load_plugins([path, path]) == load_plugins([str(path)]) * 2

    assert len(loaded_plugins()) == 1


def test_dataclasses_of_a_plugin_resolve_their_annotations(shapes: Registry[type], tmp_path: Path) -> None:
    code = "from __future__ import annotations\n" + CIRCLE + "from dataclasses import dataclass\n"
    code += "from typing import ClassVar, get_type_hints\n@dataclass\nclass Sized:\n    kind: ClassVar[int] = 1\n"
    code += "    size: float = 1.0\n"
    code += "assert get_type_hints(Sized)['size'] is float\n"

    load_plugins([write(tmp_path, code)])


def test_a_module_is_loaded_by_name(shapes: Registry[type], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, CIRCLE, "cskt_test_shapes.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cskt_test_shapes", raising=False)

    (plugin,) = load_plugins(["cskt_test_shapes"])

    assert plugin.name == "cskt_test_shapes"
    assert plugin.sha256 == hashlib.sha256(CIRCLE.encode()).hexdigest()
    assert "circle" in shapes


def test_an_entry_point_is_imported_when_its_entry_is_asked_for(
    shapes: Registry[type], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "class Square:\n    corners = 4\n", "cskt_test_square.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    point = importlib.metadata.EntryPoint("square", "cskt_test_square:Square", "test.shapes")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [point] if group == "test.shapes" else [])

    assert list(shapes) == ["square"] and len(shapes) == 1
    assert "cskt_test_square" not in sys.modules

    assert shapes["square"].corners == 4  # type: ignore[attr-defined]
    provider = shapes.provider("square")
    assert provider is not None and provider.name == "cskt_test_square"


def test_a_loaded_plugin_counts_before_an_entry_point_of_the_same_name(
    shapes: Registry[type], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = importlib.metadata.EntryPoint("circle", "cskt_no_such_module:Circle", "test.shapes")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [point] if group == "test.shapes" else [])

    load_plugins([write(tmp_path, CIRCLE)])

    provider = shapes.provider("circle")
    assert list(shapes) == ["circle"] and provider is not None and provider.name == "circle.py"


def test_an_unknown_name_is_an_error_that_names_the_nearest(shapes: Registry[type], tmp_path: Path) -> None:
    load_plugins([write(tmp_path, CIRCLE)])

    with pytest.raises(CsktError, match=r"unknown shape 'circel': did you mean 'circle'\?$"):
        shapes["circel"]
    with pytest.raises(
        CsktError, match=r"unknown shape 'x': known: circle \(a plug-in can add others: --plugin FILE\)"
    ):
        shapes["x"]


def test_a_taken_name_is_refused_and_the_first_entry_stays(shapes: Registry[type], tmp_path: Path) -> None:
    load_plugins([write(tmp_path, CIRCLE)])

    with pytest.raises(CsktError, match=r"plug-in other\.py: the plug-in circle\.py has a shape 'circle' already"):
        load_plugins([write(tmp_path, CIRCLE + "# other", "other.py")])

    provider = shapes.provider("circle")
    assert provider is not None and provider.name == "circle.py"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import cskt_no_such_module\n", r"line 1: ModuleNotFoundError: No module named 'cskt_no_such_module'"),
        (CIRCLE + "1 / 0\n", r"circle\.py, line 7: ZeroDivisionError: division by zero"),
        ("def f(:\n", r"line 1: SyntaxError"),
        ("class A:\n\tx = 1\n        y = 2\n", r"circle\.py, line 3: (TabError|IndentationError)"),
    ],
)
def test_a_plugin_that_raises_is_one_line_with_its_place_and_registers_nothing(
    shapes: Registry[type], tmp_path: Path, code: str, message: str
) -> None:
    path, modules = write(tmp_path, code), set(sys.modules)

    for _ in range(2):  # the second attempt reports the same error
        with pytest.raises(CsktError, match=message):
            load_plugins([path])

    assert list(shapes) == [] and loaded_plugins() == []
    assert not [name for name in set(sys.modules) - modules if name.startswith(plugins.FILES)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.py", "plug-in missing.py: no such file"),
        ("cskt_no_such_module", "plug-in cskt_no_such_module: no such module; install it"),
        ("no.such.package", "plug-in no.such.package: No module named 'no'"),
        ("..", "plug-in ..: "),
    ],
)
def test_a_missing_plugin_is_an_error(shapes: Registry[type], source: str, message: str) -> None:
    with pytest.raises(CsktError, match=message):
        load_plugins([source])


def test_a_missing_file_is_a_missing_file_error(shapes: Registry[type]) -> None:
    with pytest.raises(MissingFileError):
        load_plugins(["missing.py"])


def test_an_exception_of_plugin_code_is_attributed_to_the_plugin(shapes: Registry[type], tmp_path: Path) -> None:
    code = CIRCLE + "\n    @staticmethod\n    def area():\n        raise TypeError('no radius')\n"
    (plugin,) = load_plugins([write(tmp_path, code)])

    with pytest.raises(TypeError) as caught:
        shapes["circle"].area()  # type: ignore[attr-defined]

    assert plugins.plugin_in(caught.tb) == plugin
    (outer,) = load_plugins([write(tmp_path, "def call(function):\n    function()\n", "outer.py")])
    call = next(module.call for name, module in sys.modules.items() if name.startswith(f"{plugins.FILES}.outer"))
    with pytest.raises(TypeError) as nested:
        call(shapes["circle"].area)  # type: ignore[attr-defined]
    assert plugins.plugin_in(nested.tb) == plugin != outer
    with pytest.raises(ZeroDivisionError) as ours:
        1 / 0  # noqa: B018
    assert plugins.plugin_in(ours.tb) is None


def test_the_environment_names_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.ENVIRONMENT, os.pathsep.join(["a.py", "", "package.module"]))

    assert plugins.environment_plugins() == ["a.py", "package.module"]
