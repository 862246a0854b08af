"""Files of a run: created once, readable after a crash."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from cskt.config import as_trained, load_config
from cskt.config.released_flags import from_published
from cskt.errors import CsktError
from cskt.training import run_folder
from cskt.training.events import first_event, last_event, read_events
from cskt.training.run_folder import RunFolder, fresh_folder

CONFIG = load_config("cskt", {"name": "one", "optim.lr": 1e-4})


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    with closing(RunFolder(tmp_path / "deep" / "run")) as made:
        made.create(CONFIG)
        yield made


def test_the_config_is_saved(run: RunFolder) -> None:
    assert run.config == as_trained(CONFIG), "with the normalisation that a run without one was trained with"
    assert RunFolder(run.path).config == as_trained(CONFIG)


def test_flat_copy_says_the_same_in_published_words(run: RunFolder) -> None:
    flat = yaml.safe_load((run.path / "configs.yaml").read_text())
    assert (flat["name"], flat["lr"], flat["n_ctx"], flat["img_size"]) == ("one", 1e-4, 4, [384, 128])
    assert load_config("cskt", from_published(flat)) == CONFIG


def test_folders_are_named_by_data_set_time_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder.time, "strftime", lambda form: "20240131_235959")
    config = load_config("cskt", {"name": "one", "output_dir": str(tmp_path)})
    folders = [fresh_folder(config) for _ in range(3)]
    names = [folder.relative_to(tmp_path).as_posix() for folder in folders]
    stem = "cuhk-pedes/20240131_235959_one"
    assert names == [stem, f"{stem}_2", f"{stem}_3"], "two runs of one second do not meet"


def test_a_folder_with_a_run_is_refused_and_unchanged(run: RunFolder) -> None:
    before = (run.path / "config.yaml").read_bytes()
    run.record("start")
    run.record("step", step=1, loss=1.0, lr=0.1)
    with pytest.raises(CsktError, match=r"already holds a run; it has no last\.pt and cannot be resumed; delete it or"):
        RunFolder(run.path).create(load_config("cskt", {"seed": 2}))
    run.last.touch()
    with pytest.raises(CsktError, match=r"already holds a run; resume it \(--resume .*run\) or name another folder"):
        RunFolder(run.path).create(load_config("cskt", {"seed": 2}))
    run.last.rename(run.best)
    with pytest.raises(CsktError, match=r"already holds a run; it has no last\.pt and cannot be resumed; delete it or"):
        RunFolder(run.path).create(load_config("cskt", {"seed": 2}))
    assert (run.path / "config.yaml").read_bytes() == before


def test_a_folder_that_cannot_be_created_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CsktError, match=r"run: cannot be written: Not a directory"):
        RunFolder(tmp_path / "file" / "run").create(CONFIG)


SUMMARY = {
    "r1": 0.25, "r5": 0.5, "r10": 1.0, "mean_ap": 0.5, "mean_inp": 0.5, "num_queries": 8, "num_gallery": 4,
    "num_unmatched_queries": 0,
}  # fmt: skip
FIGURES: dict[str, Any] = {"dataset": "jsonl", "split": "val", "t2i": SUMMARY, "i2t": SUMMARY}


def test_events_are_written_and_read_as_one_line_each(run: RunFolder) -> None:
    events: list[dict[str, Any]] = [
        {"event": "start", "backbone": "a\nb"},
        {"event": "step", "step": 1, "loss": 0.5, "lr": 1e-3, "losses": {"sdm": 0.5}},
    ]
    for event in events:
        values = dict(event)
        run.record(values.pop("event"), **values)
    assert read_events(run.path) == events
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_line_cut_short_by_a_crash_is_ignored(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    run.record("step", step=1, loss=2.5, lr=0.1)
    with (run.path / "metrics.jsonl").open("a") as lines:
        lines.write('{"event": "step", "st')
    assert read_events(run.path) == [{"event": "step", "step": 1, "loss": 2.5, "lr": 0.1}]
    assert not caplog.records


def test_a_folder_without_events_has_none(tmp_path: Path) -> None:
    assert read_events(tmp_path) == []


def test_a_record_that_cannot_be_written_is_an_error_of_one_line(run: RunFolder) -> None:
    (run.path / "metrics.jsonl").mkdir()
    with pytest.raises(
        CsktError,
        match=r"metrics\.jsonl: cannot be written: Is a directory; free disk space, or choose another folder$",
    ):
        run.record("step", step=1)


def test_events_after_a_checkpoint_are_dropped(run: RunFolder) -> None:
    run.record("start", seed=1)
    run.record("evaluation", stage="step-0", epoch=0, step=0, **FIGURES)
    run.record("step", epoch=1, step=4, loss=1.0, lr=0.1)
    run.record("evaluation", stage="epoch", epoch=1, step=4, **FIGURES)
    run.record("step", epoch=2, step=8, loss=1.0, lr=0.1)
    run.record("evaluation", stage="epoch", epoch=2, step=8, **FIGURES)
    run.record("step", epoch=3, step=9, loss=1.0, lr=0.1)
    run.record("end", step=4, best_r1=0.5, best_epoch=1, seconds=1.0, peak_memory_bytes=1)
    kept = read_events(run.path)[:5]
    run.drop_events_after(total_steps=8, epochs=1)  # the second epoch's steps are done, its evaluation is not
    assert read_events(run.path) == kept
    run.drop_events_after(total_steps=4, epochs=1)
    assert read_events(run.path) == kept[:4]
    assert [path.name for path in run.path.glob("*.tmp")] == []


def test_dropping_events_is_atomic(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.record("step", step=1, loss=1.0, lr=0.1)
    run.record("step", step=2, loss=1.0, lr=0.1)
    before = read_events(run.path)

    def no_space(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(CsktError, match=r"metrics\.jsonl: cannot be written: .*No space left"):
        run.drop_events_after(total_steps=1, epochs=0)
    assert read_events(run.path) == before


def test_lines_are_plain_json(run: RunFolder) -> None:
    run.record("step", step=1, loss=0.1)
    assert json.loads((run.path / "metrics.jsonl").read_text()) == {"event": "step", "step": 1, "loss": 0.1}


def test_first_and_last_event_of_a_kind() -> None:
    events = [{"event": "start"}, {"event": "step", "step": 1}, {"event": "step", "step": 2}]
    assert (first_event(events, "step")["step"], last_event(events, "step")["step"]) == (1, 2)
    assert first_event(events, "end") == last_event(events, "end") == {}
