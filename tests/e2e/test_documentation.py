"""Commands in README and docs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import REPOSITORY, done, typed
from test_published_programs import VERBATIM

from cskt.cli.parsing import Parser
from documentation_files import files_in

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def commands_in(text: str) -> list[str]:
    """Return the lines of a page's shell blocks that call our programs, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("cskt ", "python train.py", "python test.py"))]


DOCUMENTED = [
    (page.relative_to(REPOSITORY).as_posix(), command)
    for page in PAGES
    for command in commands_in(page.read_text(encoding="utf-8"))
]


class UnderstoodError(BaseException):
    """Raised instead of running a command; no Exception, which the command line would report as a bug."""


@pytest.mark.parametrize(("page", "command"), DOCUMENTED)
def test_every_command_is_understood(
    page: str, command: str, tmp_path: Path, forgets_plugins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "--plugin" in command:
        monkeypatch.chdir(tmp_path)
        for name, content in files_in(REPOSITORY / page).items():
            Path(name).write_text(content, encoding="utf-8")
    parse = Parser.parse

    def parse_only(parser: Parser, argv: Sequence[str], **how: bool) -> None:
        parse(parser, argv, **how)
        raise UnderstoodError

    monkeypatch.setattr(Parser, "parse", parse_only)
    with pytest.raises(UnderstoodError):
        print(typed(command))


def test_readme_has_the_published_commands() -> None:
    commands = [command for page, command in DOCUMENTED if page == "README.md"]
    assert VERBATIM.format(dataset="$DATASET_NAME", root="DIR") in commands
    assert "python test.py --config_file path/to/model_dir/configs.yaml" in commands


FILE_NAME = re.compile(r"`((?:src|tests|docs|tools|examples|benchmarks)/[\w./-]+\w)`")
"""A file or folder of the repository, as documents write it; without capitals, which stand for names."""


def test_every_file_that_a_document_names_exists() -> None:
    documents = [*PAGES, *REPOSITORY.glob("*.md")]
    named = [(page, name) for page in documents for name in FILE_NAME.findall(page.read_text(encoding="utf-8"))]
    assert len(named) > 20
    missing = [(page.name, name) for page, name in named if "NAME" not in name and not (REPOSITORY / name).exists()]
    assert missing == []


def test_tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tour = commands_in((REPOSITORY / "docs" / "tour.md").read_text(encoding="utf-8"))
    verbs = ["data", "data", "train", "evaluate", "query", "evaluate", "compare", "report", "export", "index", "search"]
    assert [command.split()[1] for command in tour] == verbs
    monkeypatch.chdir(tmp_path)
    for command in tour:
        done(command)
    assert {path.name for path in tmp_path.iterdir()} == {
        "dolls", "dolls-run", "answer.png", "zero-shot", "report.html", "report_files", "dolls-run.safetensors",
        "dolls-gallery", "answer.html",
    }  # fmt: skip


@pytest.mark.slow
def test_tutorials(tmp_path: Path) -> None:
    program = [sys.executable, REPOSITORY / "tools" / "run_tutorials.py"]
    subprocess.run([*program, "--quick", "--images", tmp_path], check=True)
    taken = {path.name for path in tmp_path.iterdir()}
    assert taken and all((REPOSITORY / "docs" / "images" / name).exists() for name in taken)
