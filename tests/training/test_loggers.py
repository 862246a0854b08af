"""Loggers: what they receive, that a failing one never ends a training, and the clients of the services themselves."""

from __future__ import annotations

import json
import logging
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cskt import plugins
from cskt.cli.main import main
from cskt.config import RunConfig, load_config, read_yaml, save_config
from cskt.errors import CsktError
from cskt.training.events import read_events
from cskt.training.loggers import LOGGERS, Logger, Loggers, TensorBoardLogger, scalars_of
from cskt.training.loop import train
from tiny_run import Configure

CONFIG = load_config("cskt")
EVENTS: list[dict[str, Any]] = [
    {"event": "step", "epoch": 1, "step": 5, "loss": 2.5, "losses": {"sdm": 1.5}, "note": "words"},
    {"event": "evaluation", "stage": "epoch", "epoch": 1, "step": 6, "t2i": {"r1": 0.25}},
]


class Recorder(Logger):
    """Keeps what it receives, in the class."""

    calls: list[Any]

    def __init__(self, folder: Path, config: RunConfig, facts: Mapping[str, Any]) -> None:
        super().__init__(folder, config, facts)
        self.calls.append(facts)

    def log(self, event: Mapping[str, Any]) -> None:
        self.calls.append(event)

    def close(self) -> None:
        self.calls.append("closed")


def failing(method: str) -> type[Logger]:
    """Return a logger whose method raises what no other code of the package does."""

    def fail(self: Logger, *arguments: Any) -> None:
        raise ZeroDivisionError("no\nservice")

    return type("Failing", (Recorder,), {method: fail, "calls": []})


@pytest.fixture
def registered() -> Iterator[Callable[[str, type[Logger]], None]]:
    """Function that registers a logger for one test."""
    names: list[str] = []

    def register(name: str, kind: type[Logger]) -> None:
        LOGGERS.register(name, kind)
        names.append(name)

    yield register
    for name in names:
        del LOGGERS._entries[name], LOGGERS._plugins[name]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(item.step, item.value) for item in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def test_the_numbers_of_events_have_tags() -> None:
    assert [pair for event in EVENTS for pair in scalars_of(event)] == [
        ("step/loss", 2.5), ("step/losses/sdm", 1.5), ("epoch/t2i/r1", 0.25),
    ]  # fmt: skip


def test_values_of_a_hook_may_have_the_names_of_a_position() -> None:
    event = {"event": "hook", "epoch": 2, "step": 6, "values": {"epoch": 3.0, "step": 7.0, "clean": 0.9}}
    assert list(scalars_of(event)) == [
        ("hook/values/epoch", 3.0),
        ("hook/values/step", 7.0),
        ("hook/values/clean", 0.9),
    ]


def test_scalars_reach_tensorboard(tmp_path: Path) -> None:
    with closing(TensorBoardLogger(tmp_path, CONFIG, {})) as board:
        for event in EVENTS:
            board.log(event)
    assert curves(tmp_path) == {"step/loss": [(5, 2.5)], "step/losses/sdm": [(5, 1.5)], "epoch/t2i/r1": [(6, 0.25)]}


def test_tensorboard_discards_steps_that_a_resumed_run_repeats(tmp_path: Path) -> None:
    with closing(TensorBoardLogger(tmp_path, CONFIG, {})) as board:
        for step in range(1, 5):
            board.log({"event": "step", "step": step, "loss": float(step)})
    with closing(TensorBoardLogger(tmp_path, CONFIG, {"resumed_after_step": 2})) as board:
        board.log({"event": "step", "step": 3, "loss": 0.5})
    assert curves(tmp_path)["step/loss"] == [(1, 1.0), (2, 2.0), (3, 0.5)]


def test_a_link_in_place_of_tensorboards_folder_is_not_written_through(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path / "victim")
    Loggers(["tensorboard"], tmp_path / "run", CONFIG).log(EVENTS[0])
    assert list((tmp_path / "victim").iterdir()) == [] and "logger tensorboard: " in caplog.text


def test_a_logger_receives_the_events_of_the_run(
    registered: Callable[[str, type[Logger]], None], configure: Configure, tmp_path: Path
) -> None:
    recorder = type("Mine", (Recorder,), {"calls": []})
    registered("mine", recorder)
    run = train(configure({"loop.loggers": ["mine"]}), tmp_path / "run").folder
    facts, *events, last = recorder.calls
    assert events == read_events(run) and last == "closed" and facts["train_pairs"] == events[0]["train_pairs"]
    assert not (run / "tensorboard").exists() and read_yaml(run / "config.yaml")["loop"]["loggers"] == ["mine"]


@pytest.mark.parametrize("method", ["__init__", "log", "close"])
def test_a_failing_logger_warns_once_and_changes_nothing(
    registered: Callable[[str, type[Logger]], None], configure: Configure, tmp_path: Path, method: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    registered("bad", failing(method))
    with caplog.at_level(logging.WARNING):
        bad = train(configure({"loop.loggers": ["bad", "tensorboard"]}), tmp_path / "bad").folder
    warnings = [record.getMessage() for record in caplog.records if "logger" in record.getMessage()]
    assert warnings == ["logger bad: no service; it logs nothing more in this session, metrics.jsonl has all events"]
    assert curves(bad)["step/loss"], "the other logger works"
    good = train(configure({"loop.loggers": []}), tmp_path / "good").folder
    assert (good / "best.safetensors").stat().st_size > 0
    assert [event["event"] for event in read_events(bad)] == [event["event"] for event in read_events(good)]


def test_a_deleted_file_of_tensorboard_is_a_warning(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = Loggers.log

    def delete_and_log(loggers: Loggers, event: Mapping[str, Any]) -> None:
        if event["event"] == "evaluation":
            shutil.rmtree(tmp_path / "run" / "tensorboard")
        log(loggers, event)

    monkeypatch.setattr(Loggers, "log", delete_and_log)
    assert train(configure(), tmp_path / "run").best_epoch == 1
    assert caplog.text.count("was deleted; it logs nothing more") == 1 and not (tmp_path / "run/tensorboard").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["tensorbord"], "unknown logger 'tensorbord': did you mean 'tensorboard'?"),
        (["mlflow", "mlflow"], "loop.loggers mlflow,mlflow names a logger twice"),
        ("tensorboard", "loop.loggers: "),
        (["wandb"], "wandb not installed; type: pip install 'cskt[wandb]'"),
        (["mlflow"], "mlflow not installed; type: pip install 'cskt[mlflow]'"),
    ],
)
def test_bad_loggers_are_refused_before_anything_is_written(
    configure: Configure, tmp_path: Path, names: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    with pytest.raises(CsktError) as caught:
        train(configure({"loop.loggers": names}), tmp_path / "run")
    assert message in str(caught.value) and not (tmp_path / "run").exists()


def test_a_logger_of_a_plugin_is_recorded_and_free_on_resume(configure: Configure, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from cskt.training.loggers import Logger, register\n"
        "@register('file')\nclass File(Logger):\n"
        "    def log(self, event):\n"
        "        with (self.folder / 'mine.txt').open('a') as lines:\n            lines.write(event['event'] + '\\n')\n"
    )
    (plugin,) = plugins.load_plugins([path])
    try:
        config = configure({"loop.loggers": ["file"], "loop.num_epochs": 2, "loop.stop_after_epochs": 1})
        run = train(config, tmp_path / "run").folder
    finally:
        LOGGERS.forget(plugin)
        del plugins._loaded[plugin]
    assert read_yaml(run / "config.yaml")["plugins"][0]["provides"] == ["loggers.file"]
    assert (run / "mine.txt").read_text().split() == [event["event"] for event in read_events(run)]
    more = {"loop.num_epochs": 2, "loop.loggers": ["tensorboard"]}
    assert train(configure(more), run, resume=True).num_epochs_done == 2


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both services without a network; returns the address of MLflow's files."""
    for name, value in {
        "WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(), "GIT_PYTHON_REFRESH": "quiet",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return (tmp_path / "mlruns").as_uri()


@pytest.mark.slow
def test_a_resumed_run_is_one_run_of_mlflow(offline: str, configure: Configure, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    changes = {"loop.num_epochs": 2}
    save_config(configure(changes), tmp_path / "config.yaml")
    run = tmp_path / "runs" / "one"
    arguments = ["--config", str(tmp_path / "config.yaml"), "--output", str(run), "--loggers", "mlflow"]
    assert main(["train", *arguments, "--stop-after-epochs", "1"]) == 0
    client = mlflow.MlflowClient()
    identity = (run / "mlflow.id").read_text()
    assert client.get_run(identity).info.status == "FINISHED"
    assert main(["train", "--resume", str(run)]) == 0

    (experiment,) = client.search_experiments(filter_string="name = 'cskt'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_id, found.info.run_name, found.info.status) == (identity, "runs/one", "FINISHED")
    assert found.data.params["optim.lr"] == "0.01" and found.data.tags["cskt.train_pairs"] == "24"
    history = {(item.step, item.value) for item in client.get_metric_history(identity, "step/loss")}
    assert history == {(event["step"], event["loss"]) for event in read_events(run) if event["event"] == "step"}


@pytest.mark.slow
def test_a_run_that_fails_is_failed_at_mlflow(offline: str, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    loggers = Loggers(["mlflow"], tmp_path, CONFIG, {"device": "cpu"})
    loggers.log(EVENTS[0])
    loggers.close()
    assert mlflow.MlflowClient().get_run((tmp_path / "mlflow.id").read_text()).info.status == "FAILED"


@pytest.mark.slow
def test_a_resumed_run_is_one_run_of_weights_and_biases(
    offline: str, configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wandb = pytest.importorskip("wandb")
    changes = {"loop.loggers": ["wandb"], "loop.num_epochs": 2}
    run = train(configure({**changes, "loop.stop_after_epochs": 1}), tmp_path / "runs" / "one").folder
    identity = (run / "wandb.id").read_text()
    train(configure(changes), run, resume=True)
    wandb.teardown()  # ends the process that writes the files

    sessions = sorted((run / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
    assert len(sessions) == 2 and "logger wandb" not in caplog.text
    logged = [item for session in sessions for item in wandb_history(session)]
    expected = [(event["step"], event["loss"]) for event in read_events(run) if event["event"] == "step"]
    assert [(item["step"], item["step/loss"]) for item in logged if "step/loss" in item] == expected


def wandb_history(path: Path) -> list[dict[str, Any]]:
    """Return what was logged in a session of an offline run: a log of LevelDB with records of the client."""
    from wandb.proto import wandb_internal_pb2

    data, position, payload, found = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # a rest of a block that holds no header
            position += 32768 - position % 32768
        size, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        payload += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record.FromString(payload)
            payload = b""
            if record.history.item:
                items = record.history.item
                found.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("service", ["wandb", "mlflow"])
def test_an_id_that_was_altered_is_a_warning(
    service: str, offline: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip(service)
    (tmp_path / f"{service}.id").write_text("../../elsewhere")
    Loggers([service], tmp_path, CONFIG, {}).close()
    assert f"logger {service}: {tmp_path / service}.id: must hold letters" in caplog.text
