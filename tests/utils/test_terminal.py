"""Text from elsewhere on a terminal: escaped in streams, tables, log lines and tracebacks; readable where harmless."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
from rich.table import Table

from cskt.utils.console import bar, console, literal, write_rendered
from cskt.utils.terminal import StderrHandler, json_text, printable, standard_streams

HOSTILE = "a\x1b[2J\x1b]0;title\x07\x9b31m\u202eb\u2066c\ud800d\x7f\u2028e\U000e0041\u200bf[red][link=http://x]"
"""Clears the screen, sets a title, colours, reorders, breaks lines, hides text; and markup of rich."""
ESCAPED = r"a\x1b[2J\x1b]0;title\x07\x9b31m\u202eb\u2066c\ud800d\x7f\u2028e\U000e0041\u200bf[red][link=http://x]"


class Terminal(io.StringIO):
    """A stream that takes itself for a terminal."""

    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def streams(columns: str = "200") -> Iterator[tuple[Terminal, Terminal]]:
    """stdout and stderr of a terminal of 200 columns, under the streams of a command."""
    out, err = Terminal(), Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setenv("COLUMNS", columns)
        patch.setenv("TERM", "xterm-256color")
        patch.delenv("NO_COLOR", raising=False)
        with standard_streams():
            yield out, err


@pytest.mark.parametrize("code", [*range(0x20), 0x7F, *range(0x80, 0xA0), 0xAD, 0x61C, 0x200B, 0x200E, 0x200F,
    *range(0x2028, 0x202F), *range(0x2060, 0x2070), 0xFEFF, 0xFFF9, 0x180E, 0x3164, 0x115F, 0xFFA0, 0xD800, 0xDFFF,
    0xFFFE, 0xFFFF, 0xFDD0, 0x1FFFF, 0xE0001, 0xE0041, 0x1D173])  # fmt: skip
def test_characters_that_control_or_hide_are_escaped(code: int) -> None:
    shown = printable(f"a{chr(code)}b")
    assert shown.isascii() and shown.isprintable()
    assert shown.startswith("a\\") and shown.endswith("b")


@pytest.mark.parametrize(
    "text",
    [
        "a man in a grey coat", "üñî çédille", "Ω Ж ש ا 你好 ひらがな 한국어 हिन्दी ไทย ქართული አማርኛ",
        "👩\u200d👩\u200d👧\u200d👦 👍🏽 🇩🇪 ❤\ufe0f 1\ufe0f⃣", "می\u200cخواهم", "क्\u200dष", "葛\U000e0100", "e\u0301",
        "٣\u0600٤", "a\u00a0b\u3000c",
    ],
)  # fmt: skip
def test_letters_of_every_script_and_emoji_are_kept(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    "text", ["ad\u200dmin", "\u200d👦", "你\u200c ", " \ufe0f", "a\ufe0f\ufe0f", "x\U000e0100\U000e0101"]
)
def test_joiners_and_selectors_that_belong_to_nothing_are_escaped(text: str) -> None:
    assert "\\" in printable(text)


def test_line_breaks_are_kept_on_request_only() -> None:
    assert printable("a\nb\tc\rd") == r"a\nb\tc\rd"
    assert printable("a\nb\tc\rd", keep="\n\t") == "a\nb\tc\\rd"


def test_json_has_no_control_character_and_reads_back() -> None:
    text = json_text([HOSTILE, "é"])
    assert text.isascii() and text.isprintable()
    assert json.loads(text) == [HOSTILE, "é"]
    assert printable(text) == text, "so that the streams leave it alone"


def test_prints_warnings_and_log_lines_are_escaped() -> None:
    with streams() as (out, err):
        print(HOSTILE)
        print(HOSTILE, file=sys.stderr)
        sys.stderr.write(warnings.formatwarning(HOSTILE, UserWarning, "file.py", 1, line=""))
        record = logging.LogRecord("cskt.test", logging.INFO, "", 0, "%s", (HOSTILE + "\nforged line",), None)
        StderrHandler().emit(record)
        assert out.getvalue() == ESCAPED + "\n"
        assert err.getvalue().count(ESCAPED) == 3
        assert "\\nforged line\n" in err.getvalue(), "one record is one line"
        assert "\x1b" not in out.getvalue() + err.getvalue()


def test_a_logged_traceback_keeps_its_lines() -> None:
    with streams() as (_out, err):
        try:
            raise KeyError("x") from RuntimeError("\x1b[2J")
        except KeyError:
            StderrHandler().emit(logging.LogRecord("cskt.a", logging.ERROR, "", 0, "failed", (), sys.exc_info()))
        lines = err.getvalue().splitlines()
        assert lines[0] == "failed" and "Traceback" in "".join(lines) and r"\x1b[2J" in "".join(lines)


def test_tables_keep_our_colours_and_show_text_literally() -> None:
    with streams() as (out, _err):
        table = Table("[b]head[/b]", title="[red]t :smile:")
        table.add_row(literal(HOSTILE))
        table.add_row(HOSTILE)
        console().print(table)
        shown = out.getvalue()
        assert shown.count(ESCAPED) == 1 and shown.count(r"\x1b[2J") == 2
        assert "[red]t :smile:" in shown and "[b]head[/b]" in shown
        assert "\x1b[1m" in shown, "headings are bold"
        assert "\x1b[2J" not in shown and "\x1b]" not in shown and "\u202e" not in shown


def test_rendered_text_keeps_its_colours() -> None:
    with streams() as (out, _err):
        terminal = console()
        with terminal.capture() as capture:
            terminal.print(HOSTILE, style="red")
        write_rendered(capture.get())
        assert "\x1b[31m" in out.getvalue()
        assert r"a\x1b[2J" in out.getvalue() and "\x1b[2J" not in out.getvalue()


def test_lines_printed_beside_a_progress_bar_are_escaped() -> None:
    with streams() as (out, err):
        with bar(f"[red]{HOSTILE}", 2) as advance:
            print(HOSTILE)
            StderrHandler().emit(logging.LogRecord("cskt.a", logging.INFO, "", 0, HOSTILE, (), None))
            advance(2, note=HOSTILE)
        shown = out.getvalue() + err.getvalue()
        assert "\x1b[2J" not in shown and "\x1b]" not in shown and "\u202e" not in shown
        assert "[red]a" in shown


@pytest.mark.parametrize("columns", ["0", "1", "3"])
def test_a_very_narrow_terminal_still_shows_a_table(columns: str) -> None:
    with streams(columns) as (out, _err):
        table = Table("rank", "image")
        table.add_row("1", literal("crop"))
        console().print(table)
        assert "rank" in out.getvalue() and "crop" in out.getvalue()


def test_an_encoding_that_lacks_a_character_shows_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with standard_streams():
        print("é 你")
        sys.stdout.flush()
    assert raw.getvalue() == rb"\xe9 \u4f60" + b"\n"


def test_the_streams_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyError), standard_streams():
        raise KeyError
    assert (sys.stdout, sys.stderr) == before


def test_the_traceback_of_a_bug_is_escaped() -> None:
    run = "guarded(lambda argv: {}['\\x1b[2J\\u202e'], [], 'cskt')"
    program = f"from cskt.cli.main import guarded\nraise SystemExit({run})\n"
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, env=os.environ | {"PYTHONUTF8": "1"}
    )
    assert finished.returncode == 70
    assert b"KeyError" in finished.stderr
    assert b"\x1b" not in finished.stderr
