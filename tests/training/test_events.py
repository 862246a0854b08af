"""Bad lines of `metrics.jsonl`: ignored, counted, and no reason to refuse an intact run."""

from __future__ import annotations

import json
import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cskt.cli.run_report import write_run_report
from cskt.config import RunConfig, load_config
from cskt.errors import CsktError
from cskt.report.learning_curves import learning_curves
from cskt.training.events import first_event, ignored_lines, last_event, parse_event, read_events
from cskt.training.loggers.tensorboard import ScalarFile
from cskt.training.loop import train
from cskt.training.run_folder import RunFolder, claimed, fresh_folder
from cskt.training.series import finished
from json_fuzz import wrong_shapes
from tiny_run import quick_config

COMPAT = Path(__file__).parents[1] / "compat" / "v0_1_0" / "run"
BAD = [
    b"5", b"null", b"{}", b"[]", b'"x"', b"NaN", b'{"event": 5}', b'{"event": "step"}', b'{"event": "step", "step": 1}',
    b'{"event": "evaluation", "stage": "epoch", "epoch": 1}', b'{"event": "end"}', b'{"event": "start", "backbone": 5}',
    b'{"event": "end", "best_r1": "x", "best_epoch": 1, "seconds": 1, "peak_memory_bytes": 1}',
    b'{"event": "step", "step": 1e999, "loss": 1, "lr": 1}', b'{"event": "step", "step": -1, "loss": 1, "lr": 1}',
    b"\xff\xfe", b"[" * 100_000, b'{"event": "step", "event": "end"}', b"not JSON", b"9" * 10_000,
    b'{"event": "step", "step": 1, "loss": 1, "lr": 1, "losses": [1]}', b"{",
]  # fmt: skip


def lines_of(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().split(b"\n") if line]


def test_bad_lines_are_ignored_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = lines_of(COMPAT / "metrics.jsonl")
    expected = [json.loads(line) for line in good]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([BAD[0], *good[:3], *BAD[1:], *good[3:]]) + b"\n")
    with caplog.at_level(logging.WARNING):
        assert read_events(tmp_path) == read_events(tmp_path) == expected
    [record] = caplog.records
    message = record.getMessage()
    assert (
        message.startswith(f"{path}: ignored {len(BAD)} lines (1, 5, 6")
        and message.isprintable()
        and len(message) < 500
    )
    assert ignored_lines(tmp_path) == "1, 5, 6, 7, 8, 9, 10, 11, 12, 13 and 12 more"


def test_a_last_line_without_an_end_is_not_counted_as_bad(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = lines_of(COMPAT / "metrics.jsonl")
    for cut in (1, 10, len(good[-1]) - 1):
        (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*good[:-1], good[-1][:cut]]))
        assert len(read_events(tmp_path)) == len(good) - 1
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(good))
    assert len(read_events(tmp_path)) == len(good)
    assert not caplog.records


@pytest.mark.parametrize("kind", ["start", "step", "evaluation", "end"])
def test_an_event_of_any_shape_is_refused_or_works_in_every_reader(kind: str, tmp_path: Path) -> None:
    content = next(event for line in lines_of(COMPAT / "metrics.jsonl") if (event := json.loads(line))["event"] == kind)
    if kind == "evaluation":
        content = {name: value for name, value in content.items() if name != "i2t"}
    taken: list[dict[str, Any]] = []
    for what, text in wrong_shapes(content):
        try:
            taken.append(parse_event(text, "line 1"))
        except ValueError as error:
            assert str(error).isprintable() and str(error).startswith("line 1: "), what
    kinds = [event for event in taken if event["event"] == kind]
    assert kinds
    if kind in ("step", "evaluation"):
        learning_curves(kinds[:60])
    for event in kinds:
        (tmp_path / "best.safetensors").touch()
        (tmp_path / "metrics.jsonl").write_text(json.dumps(event) + "\n")
        if kind == "end":
            assert finished(tmp_path) is not None
        assert first_event(read_events(tmp_path), kind) == last_event(read_events(tmp_path), kind)


@pytest.fixture
def trained(dolls: Path, tiny_backbone: Path, tmp_path: Path) -> tuple[RunConfig, Path]:
    """A run of two epochs that was stopped after the first."""
    config = quick_config(dolls, tiny_backbone, "cskt", {"loop.num_epochs": 2, "loop.stop_after_epochs": 1})
    train(config, tmp_path / "run")
    return config, tmp_path / "run"


def test_bad_lines_and_strange_files_do_not_stop_a_resumed_run(
    trained: tuple[RunConfig, Path], caplog: pytest.LogCaptureFixture
) -> None:
    _, folder = trained
    before = [event for event in read_events(folder) if event["event"] != "end"]
    with (folder / "metrics.jsonl").open("ab") as stream:
        stream.write(b"\n".join(BAD) + b"\n")
    for name in ("events.out.tfevents.\u00b2.x", "events.out.tfevents." + "9" * 150, "events.out.tfevents.x"):
        (folder / "tensorboard" / name).write_bytes(b"\xff")
    (folder / ".notes.tmp").write_text("mine")
    (folder / ".metrics.jsonl.123.456.tmp").write_text("half")
    (folder / ".folder.1.2.tmp").mkdir()
    with caplog.at_level(logging.WARNING):
        train(load_config(folder / "config.yaml", {"loop.stop_after_epochs": None}), folder, resume=True)
    assert sum("ignored" in record.getMessage() for record in caplog.records) == 1
    events = read_events(folder)
    assert events[: len(before)] == before and events[-1]["event"] == "end"
    assert all(json.loads(line) in events for line in lines_of(folder / "metrics.jsonl")), "good lines only"
    assert (folder / ".notes.tmp").exists() and not (folder / ".metrics.jsonl.123.456.tmp").exists()


def test_a_report_names_the_ignored_lines(trained: tuple[RunConfig, Path]) -> None:
    _, folder = trained
    with (folder / "metrics.jsonl").open("ab") as stream:
        stream.write(b"null\n5\n")
    count = len(lines_of(folder / "metrics.jsonl"))
    page = write_run_report(folder).read_text(encoding="utf-8")
    assert "ignored lines of metrics.jsonl" in page and f"{count - 1}, {count}" in page


LINKED = ["metrics.jsonl", "configs.yaml", "report.html", ".lock"]


@pytest.mark.parametrize("name", LINKED)
def test_a_link_in_a_run_folder_is_not_written_through(name: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("private")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).symlink_to(victim)
    config = load_config("cskt")
    if name == "configs.yaml":
        RunFolder(folder).create(config)
        assert not (folder / name).is_symlink()
    elif name == ".lock":
        with pytest.raises(CsktError, match="link|leads outside"), claimed(folder):
            pass
    else:
        run = RunFolder(folder)
        if name != "report.html":
            run.create(config)
        with closing(run), pytest.raises(CsktError, match="link|leads outside"):
            if name == "report.html":
                (folder / "config.yaml").write_text((COMPAT / "config.yaml").read_text())
                write_run_report(folder)
            run.record("step", step=1, loss=1.0, lr=0.1)
    assert victim.read_text() == "private"


NAMES = ["../../victim", "/etc/x", "..", ".", "", "a/b", "a\0b", "a\nb", "x" * 5000, "\x1b[31m"]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_outside_the_output_folder(name: str, tmp_path: Path) -> None:
    config = load_config("cskt", {"name": name, "output_dir": str(tmp_path / "logs"), "data.dataset": name})
    folder = fresh_folder(config)
    assert folder.is_dir() and folder.parents[1] == tmp_path / "logs"
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_files_with_names_like_those_of_tensorboard_are_ignored(tmp_path: Path) -> None:
    for stamp in ("\u0663" * 10, "9" * 11, "9" * 200, "0000000001", "²"):
        (tmp_path / f"events.out.tfevents.{stamp}.x").touch()
    ScalarFile(tmp_path).close()
    assert len(list(tmp_path.iterdir())) == 6
