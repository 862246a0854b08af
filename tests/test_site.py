"""The reference of the documentation site, and the check of its links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cskt.cli.main import COMMANDS
from cskt.cli.parsing import FIELDS
from cskt.plugins import REGISTRIES

ROOT = Path(__file__).parents[1]
SITE = ROOT / "tools" / "site"


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SITE))


def test_every_config_key_is_in_the_reference() -> None:
    import config_keys

    (text,) = config_keys.pages().values()
    assert [key for key in FIELDS if f'id="{key}"' not in text] == []


def test_every_document_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\ntheme:")[0]
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if not re.search(rf"[ :]{re.escape(page)}$", navigation, re.MULTILINE)] == []


def test_flags_of_a_command_are_in_its_page() -> None:
    import commands

    text = commands.page("index")
    flags = [flag for action in commands.parser_of("index")._actions for flag in action.option_strings]
    assert [flag for flag in flags if flag not in text] == []
    paths = [f"{commands.SECTION}/index.md", *map(commands.path_of, COMMANDS)]
    assert len(set(paths)) == len(paths)


def test_every_registered_name_has_a_purpose_in_the_reference() -> None:
    import inventory
    from markdown_text import code

    text = inventory.names()
    groups = {group: registry for group, registry in REGISTRIES.items() if group.startswith("cskt.")}
    assert set(inventory.REGISTERED) == set(groups)
    own = [name for registry in groups.values() for name in registry if registry.provider(name) is None]
    assert [name for name in own if f"| {code(name)} | " not in text or f"| {code(name)} |  |" in text] == []


@pytest.mark.parametrize(
    ("tag", "finding"),
    [
        ('<a href="gone.html">', "no such file"),
        ('<a href="#gone">', "no such anchor"),
        ('<script src="https://example.org/a.js">', "from another host"),
    ],
)
def test_broken_links_are_found(tag: str, finding: str, tmp_path: Path) -> None:
    import check_site

    (tmp_path / "a.html").write_text(f'<p id="here"><a href="#here"><a href="https://example.org/">{tag}')
    (line,) = check_site.findings(tmp_path)
    assert line.startswith("a.html: ") and line.endswith(finding)


def test_examples_and_shared_arguments_of_docstrings() -> None:
    pytest.importorskip("griffe")
    import docstrings

    text = docstrings.readable("Add.\n\nArgs:\n    a, b: numbers,\n        both.\n\nExample:\n    >>> 1")
    assert (
        text == "Add.\n\nArgs:\n    a: numbers,\n        both.\n    b: numbers,\n        both.\n\nExamples:\n    >>> 1"
    )
