"""The reference of the documentation site, and the check of its links."""

from __future__ import annotations

from pathlib import Path

import pytest

from cskt.cli.main import COMMANDS
from cskt.cli.parsing import FIELDS

SITE = Path(__file__).parents[1] / "tools" / "site"


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SITE))


def test_every_config_key_is_in_the_reference() -> None:
    import config_keys

    (text,) = config_keys.pages().values()
    assert [key for key in FIELDS if f'id="{key}"' not in text] == []


def test_flags_of_a_command_are_in_its_page() -> None:
    import commands

    text = commands.page("index")
    flags = [flag for action in commands.parser_of("index")._actions for flag in action.option_strings]
    assert [flag for flag in flags if flag not in text] == []
    paths = [f"{commands.SECTION}/index.md", *map(commands.path_of, COMMANDS)]
    assert len(set(paths)) == len(paths)


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
