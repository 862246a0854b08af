"""kill -9 at any moment of a training, SIGTERM, corrupt checkpoints: the resumed run equals one that never stopped."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import ENVIRONMENT, command, kill_at, num_moments, run

from cskt.config import RunConfig, save_config
from cskt.errors import CsktError
from cskt.model.io.tensors import load_plain
from cskt.training.events import read_events
from cskt.training.loop import train
from cskt.training.run_folder import RunFolder
from elsewhere import claimed_elsewhere
from fault_tries import chance, record, tries
from same_run import assert_same_run, story
from tiny_run import quick_config

resource = pytest.importorskip("resource", reason="Windows has no SIGKILL")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")

TEST = "tests/faults/test_killed_training.py"
CHANGES: dict[str, Any] = {
    "data.batch_size": 5, "loop.num_epochs": 8, "loop.save_period_steps": 1, "loop.evaluate_before": True,
    "loss.weights": {"sdm": 1.0, "id": 1.0}, "adapters.init": "normal", "optim.ema_decay": 0.9,
}  # fmt: skip


@pytest.fixture(scope="module")
def config(dolls: Path, tiny_backbone: Path) -> RunConfig:
    return quick_config(dolls, tiny_backbone, "cskt", CHANGES)


@pytest.fixture(scope="module")
def config_file(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    save_config(config, path)
    return path


@pytest.fixture(scope="module")
def whole(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Return an undisturbed run, and the number of its moments."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, num_moments(run("train", config_file, folder))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_at_any_moment_is_resumed_without_loss(
    config_file: Path, whole: tuple[Path, int], tmp_path: Path
) -> None:
    """One run is killed repeatedly: by itself exactly at a moment, and from outside shortly after one."""
    random, folder, num_tries = chance("training"), tmp_path / "run", tries(2, 50)
    undisturbed, total = whole
    most = max(4 * total // num_tries, 8)  # so that the kills spread over the whole run, its first moments included
    num_kills = 0
    for attempt in range(3 * num_tries):
        if num_kills == num_tries:
            break
        moment = random.randint(1, most)
        if attempt % 2:
            killed = kill_at(moment, "train", config_file, folder)
        else:
            ended = run("train", config_file, folder, moment=moment)
            killed = ended.returncode == -signal.SIGKILL
            assert killed or ended.returncode == 0, ended.stderr
        if not killed:  # it ended before: start again
            assert_same_run(folder, undisturbed)
            shutil.rmtree(folder)
        num_kills += killed
    ended = run("train", config_file, folder)
    assert ended.returncode == 0, ended.stderr
    assert_same_run(folder, undisturbed)
    assert not list(folder.glob(".*.tmp")), "temporary files are deleted"
    assert num_kills == num_tries, "it was killed before its end"
    record("training killed (kill -9)", tried=num_kills, test=TEST)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sigterm_saves_and_exits_within_ten_seconds(config: RunConfig, whole: tuple[Path, int], tmp_path: Path) -> None:
    random, num_tries, slowest = chance("sigterm"), tries(2, 10), 0.0
    config_file = tmp_path / "config.yaml"
    saved_rarely = quick_config(
        Path(config.data.root), Path(config.backbone.name), "cskt", CHANGES | {"loop.save_period_steps": 0}
    )
    save_config(saved_rarely, config_file)
    for attempt in range(num_tries):
        folder = tmp_path / f"run-{attempt}"
        step = random.randint(1, 30)
        with subprocess.Popen(
            command("command", "train", "--config", config_file, "--output", folder),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for _ in process.stdout:  # a line at each moment
                if max((event.get("step", 0) for event in read_events(folder)), default=0) >= step:
                    break
            earlier = resource.getrusage(resource.RUSAGE_CHILDREN)
            before = psutil.Process(process.pid).cpu_times()
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime - earlier.ru_utime - before.user + after.ru_stime - earlier.ru_stime - before.system
        slowest = max(slowest, seconds)  # of computing: on a busy machine the clock runs on meanwhile
        assert process.returncode == 143, stderr
        assert f"stopped by SIGTERM; continue with: cskt train --resume {folder}" in stderr
        assert load_plain(folder / "last.pt")["progress"]["total_steps"] >= step, "the recorded step is saved"
        train(saved_rarely, folder, resume=True)
        assert story(folder)[1:] == story(whole[0])[1:]  # but for the config in the first
    assert slowest < 10
    record("training stopped (SIGTERM)", tried=num_tries, test=TEST)


def damage(content: bytes, kind: str, random: Any) -> bytes:
    """Return a corrupt file."""
    if kind == "cut":
        return content[: random.randrange(len(content))]
    if kind == "zeros":
        start = random.randrange(len(content) - 4096)
        return content[:start] + bytes(4096) + content[start + 4096 :]
    place = random.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << random.randrange(8))]) + content[place + 1 :]


@pytest.mark.parametrize("kind", ["cut", "zeros", "flipped"])
def test_a_corrupt_checkpoint_is_replaced_by_the_previous_one(
    config: RunConfig, whole: tuple[Path, int], tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The damage is noticed, or harmless (between the parts of the file); the run ends as it should either way."""
    random, num_tries, noticed = chance(kind), tries(4, 40), 0
    for attempt in range(num_tries):
        folder = tmp_path / str(attempt)
        shutil.copytree(whole[0], folder)
        content = (folder / "last.pt").read_bytes()
        (folder / "last.pt").write_bytes(damage(content, kind, random))
        caplog.clear()
        train(config, folder, resume=True)
        fell_back = [
            message for message in caplog.messages if message.endswith("; the run resumes from last.previous.pt")
        ]
        assert all("\n" not in message and "last.pt: " in message for message in fell_back)
        noticed += bool(fell_back)
        assert_same_run(folder, whole[0])
        shutil.rmtree(folder)
    assert noticed >= num_tries // 2
    record(f"`last.pt` corrupt ({kind})", tried=num_tries, test=TEST)


@pytest.mark.slow
def test_a_kill_after_the_fallback_keeps_the_intact_checkpoint(
    config_file: Path, whole: tuple[Path, int], tmp_path: Path
) -> None:
    """At none of the first moments after it the corrupt file replaces the previous one."""
    undisturbed, total = whole
    moments = chance("fallback").sample(range(1, 31), tries(2, 24))
    assert run("train", config_file, tmp_path / "half", moment=total // 2).returncode == -signal.SIGKILL
    last = tmp_path / "half" / "last.pt"
    corrupt = last.read_bytes()[:-1000]
    last.unlink()  # a kill while it is replaced leaves it as a link to last.previous.pt, which must stay whole
    last.write_bytes(corrupt)
    for moment in moments:
        folder = shutil.copytree(tmp_path / "half", tmp_path / str(moment))
        ended = run("train", config_file, folder, moment=moment)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        ended = run("train", config_file, folder)
        assert ended.returncode == 0, ended.stderr
        assert_same_run(folder, undisturbed)
        assert (folder / "last.damaged.pt").is_file()
        shutil.rmtree(folder)
    record("training killed (kill -9) after `last.pt` was corrupt", tried=len(moments), test=TEST)


def test_two_corrupt_checkpoints_are_refused_in_one_line(
    config: RunConfig, whole: tuple[Path, int], tmp_path: Path
) -> None:
    folder = shutil.copytree(whole[0], tmp_path / "run")
    for name in ("last.pt", "last.previous.pt"):
        (folder / name).write_bytes((folder / name).read_bytes()[:1000])
    with pytest.raises(CsktError, match=r"last\.previous\.pt: corrupt: ") as caught:
        train(config, folder, resume=True)
    assert "\n" not in str(caught.value)


def test_a_second_training_in_the_same_folder_is_refused(config: RunConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with claimed_elsewhere(folder) as theirs:
        assert theirs
        for resume in (False, True):
            with pytest.raises(CsktError, match="another process is training there; wait for it, or name another"):
                train(config, folder, resume=resume)
        assert [path.name for path in folder.iterdir()] == [".lock"]
    record("two trainings into one folder", tried=2, test=TEST)


@pytest.mark.slow
def test_a_clock_that_is_set_back_changes_nothing(
    config: RunConfig, whole: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No result depends on the time of day."""
    started = time.time()
    monkeypatch.setattr(time, "time", lambda: 2 * started - time.monotonic() - started)
    train(config, tmp_path / "run")
    assert story(tmp_path / "run") == story(whole[0])
    assert all(event["seconds"] >= 0 for event in read_events(tmp_path / "run") if event["event"] == "step")
    record("clock set back", tried=1, test=TEST)


def test_a_run_whose_data_set_vanished_is_resumed_when_it_is_back(
    config: RunConfig, whole: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, away = tmp_path / "data", tmp_path / "away"
    shutil.copytree(config.data.root, root)
    moved = quick_config(root, Path(config.backbone.name), "cskt", CHANGES)

    record_event = RunFolder.record

    def record_and_take_away(run_folder: RunFolder, event: str, **values: Any) -> None:
        record_event(run_folder, event, **values)
        if (event, values.get("step")) == ("step", 7):
            root.rename(away)

    with monkeypatch.context() as patched, pytest.raises(CsktError, match=r"data.*: no such image; put it") as caught:
        patched.setattr(RunFolder, "record", record_and_take_away)
        train(moved, tmp_path / "run")
    assert "\n" not in str(caught.value)
    with pytest.raises(CsktError, match="data"):
        train(moved, tmp_path / "run", resume=True)
    away.rename(root)
    train(moved, tmp_path / "run", resume=True)
    assert story(tmp_path / "run")[1:] == story(whole[0])[1:]
    record("data set deleted", tried=1, test=TEST)
