"""Completion in a shell, and the ways to ask for help."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import typed

from cskt.cli.main import COMMANDS


def completions(line: str, folder: Path) -> list[str]:
    """Return what a shell is offered for a line with the cursor at its end."""
    answer = folder / "answer"
    environment = {
        **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line, "COMP_POINT": str(len(line.encode())),
    }  # fmt: skip
    code = "from cskt.cli.main import main; main()"
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, check=False, capture_output=True)
    return [word.strip() for word in answer.read_text().split("\n")] if answer.exists() else []


def test_the_names_of_commands_are_completed(tmp_path: Path) -> None:
    assert completions("cskt ev", tmp_path) == ["evaluate"]
    commands = {name.split()[1] for name in COMMANDS if name.startswith("data ")}
    assert set(completions("cskt data ", tmp_path)) == {*commands, "-h", "--help"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cskt search my-gallery --min-s", "--min-score"),
        ("cskt train --config cskt --warmup-m", "--warmup-method"),
        ("cskt data check --no-d", "--no-decode"),
        ("cskt train --config cskt-ref", "cskt-reference"),
        ("cskt evaluate dra", "draft/"),
        ("cskt completion f", "fish"),
    ],
)
def test_flags_values_and_files_are_completed(tmp_path: Path, line: str, expected: str) -> None:
    (tmp_path / "draft").mkdir()
    assert expected in completions(line, tmp_path)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell: str) -> None:
    assert "cskt" in typed(f"cskt completion {shell}").out
    assert "invalid choice: 'tcsh'" in typed("cskt completion tcsh").refusal()


def test_help_of_a_command_and_of_a_group() -> None:
    assert typed("cskt help train").out == typed("cskt train --help").out
    assert typed("cskt help").out == typed("cskt --help").out == typed("cskt").out
    for words in ("cskt data", "cskt data --help", "cskt help data"):
        text = typed(words).out
        assert "data check" in text and "evaluate" not in text
    assert "unknown command 'data chek': did you mean 'data check'?" in typed("cskt data chek").refusal()
    assert "unknown command 'trian': did you mean 'train'?" in typed("cskt help trian").refusal()
