"""Several processes train what one process trains: gradients, losses, evaluation, files."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_training import THREADS_LEFT, gradients_of_epoch, in_double, weight_pairs

from cskt.config import save_config
from cskt.errors import CsktError
from cskt.model.io.tensors import load_plain
from cskt.training.context import prepare
from cskt.training.distributed import Processes, Rows
from cskt.training.events import read_events
from cskt.training.loop import train
from cskt.training.state import trainable_state
from same_run import story
from tiny_run import Configure

PROGRAM = Path(__file__).with_name("shared_training.py")
LAUNCHER = [sys.executable, "-m", "torch.distributed.run"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
# 24 pairs in batches of 7: the last has three, one for each of three processes, and none for one of four.
# At a temperature of 0.02 the rounding of cosines alone moves the gradients of SDM over these random features by 2e-5.
BASE: dict[str, Any] = {
    "data.batch_size": 7, "adapters.init": "normal", "loop.evaluate_before": True, "loss.temperature": 0.05,
}  # fmt: skip
IN_PIECES = {"loop.micro_batch_size": 2}
# Soft targets of a second pass with other dropout, from the first step; four views of every image.
TBPS_CLIP: dict[str, Any] = {
    "loss.weights": {"nitc": 1.0, "ritc": 1.0, "citc": 0.1, "simclr": 0.4}, "loss.nitc_view": "second",
    "loss.soft_ramp_epochs": 0.0, "loss.logit_scale": 20.0, "trainable": "all", "frozen": ["vision.conv1"],
    "prompts.directions": "none", "adapters.sides": "none", "augment.text_attention_dropout": 0.2, "augment.draws": 2,
    "augment.ops": {"flip": {}, "jitter": {"brightness": 0.1}, "rotate": {}},
    "augment.views": {"second": {}, "simclr_1": {"ops": {"resized_crop": {"area": [0.2, 1]}}}, "simclr_2": {}},
}  # fmt: skip
IRRA_LOSSES = {"sdm": 1.0, "id": 1.0, "mlm": 1.0}
EXPERTS = {
    "parts.up_person": {"prefix_length": 2, "prefix_factor": 5.0, "rank": 2}, "parts.dm_adapter": {"num_experts": 4},
    "loss.weights": {"sdm": 1.0, "balance": 0.5}, "mlm.without_loss": True,
}  # fmt: skip
EVERY_LOSS = {"sdm": 1.0, "itc": 0.5, "cmpm": 0.5, "tal": 0.1, "triplet": 0.5, "id": 1.0, "mlm": 1.0}


def torchrun(
    num_processes: int, *words: str | Path, restarts: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Start a program, or `-m module`, in several processes of this machine."""
    counts = ["--standalone", f"--nproc-per-node={num_processes}", f"--max-restarts={restarts}"]
    command = [*LAUNCHER, *counts, *map(str, words)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, env=ENVIRONMENT | variables, timeout=500)
    assert THREADS_LEFT not in ran.stderr
    return ran


def saved(configure: Configure, folder: Path, changes: dict[str, Any]) -> Path:
    """The file of a quick config with changes."""
    path = folder / "config.yaml"
    save_config(configure(BASE | changes), path)
    return path


@pytest.mark.parametrize(
    ("num_processes", "changes", "kind"),
    [
        (2, {"loss.weights": EVERY_LOSS}, "weighted"),
        pytest.param(2, EXPERTS | IN_PIECES, "weighted", marks=pytest.mark.slow),
        *(
            pytest.param(num_processes, changes, "", marks=pytest.mark.slow)
            for num_processes, changes in (
                (2, {"loss.weights": EVERY_LOSS}),
                (3, {"loss.weights": EVERY_LOSS, "trainable": "all", "mlm.masked_for_all": True} | IN_PIECES),
                (4, {"loss.weights": {"sdm": 1.0, "id": 1.0}, "augment.caption_drop_probability": 0.3}),
                (2, {"data.batch_size": 6, "data.captions_per_image": 2, "loss.weights": IRRA_LOSSES}),
                (3, {"data.batch_size": 8, "data.sampler": "identity", "loss.weights": {"sdm": 1.0, "triplet": 1.0}}),
                (3, TBPS_CLIP | IN_PIECES),
            )
        ),
    ],
    ids=[
        "two-with-weights",
        "experts-in-pieces",
        "two",
        "three-in-pieces",
        "four-for-three",
        "two-captions",
        "groups-of-people",
        "tbps-clip",
    ],
)
def test_gradients_and_losses_are_those_of_one_process(
    configure: Configure, tmp_path: Path, num_processes: int, changes: dict[str, Any], kind: str
) -> None:
    config = saved(configure, tmp_path, changes)
    ran = torchrun(num_processes, PROGRAM, "gradients", config, tmp_path / "found", kind)
    assert ran.returncode == 0, ran.stderr
    context = prepare(configure(BASE | changes | {"loop.micro_batch_size": None}))
    alone = gradients_of_epoch(weight_pairs(context) if kind == "weighted" else context)
    first, *others = (torch.load(tmp_path / f"found.{rank}") for rank in range(num_processes))
    assert len(first) == len(alone) >= 3
    for shared, whole, *same in zip(first, alone, *others, strict=True):
        assert shared["losses"].keys() == whole["losses"].keys()
        for name, value in whole["losses"].items():
            assert shared["losses"][name].item() == pytest.approx(value.item(), rel=1e-5), name
        assert shared["gradients"].keys() == whole["gradients"].keys()
        total = torch.cat([gradient.flatten() for gradient in whole["gradients"].values()]).norm()
        for name, gradient in whole["gradients"].items():
            off = (shared["gradients"][name] - gradient).norm()
            assert off < 1e-5 * total, name
            assert off < 5e-5 * gradient.norm() + 1e-6 * total, name
            assert all(torch.equal(other["gradients"][name], shared["gradients"][name]) for other in same), name


@pytest.mark.slow
def test_in_float64_gradients_are_equal_at_the_published_temperature(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"loss.temperature": 0.02, "loss.weights": EVERY_LOSS}
    config = saved(configure, tmp_path, changes)
    ran = torchrun(2, PROGRAM, "gradients", config, tmp_path / "found", "double")
    assert ran.returncode == 0, ran.stderr
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    alone = gradients_of_epoch(in_double(prepare(configure(BASE | changes))))
    for shared, whole in zip(torch.load(tmp_path / "found.0"), alone, strict=True):
        total = torch.cat([gradient.flatten() for gradient in whole["gradients"].values()]).norm()
        for name, gradient in whole["gradients"].items():
            assert gradient.dtype == torch.float64
            assert (shared["gradients"][name] - gradient).norm() < 1e-12 * total, name


def test_gradients_of_halves_would_be_another_loss(configure: Configure, tmp_path: Path) -> None:
    """Without gathered features each process would have a loss of its own pairs."""
    context = prepare(configure(BASE | {"data.batch_size": 8}))
    whole = gradients_of_epoch(context)[0]["gradients"]
    halves = gradients_of_epoch(prepare(configure(BASE | {"data.batch_size": 4})))[:2]
    name = "adapters.vision.0.up.weight"
    mean = sum(half["gradients"][name] for half in halves) / 2
    assert (mean - whole[name]).norm() > 0.05 * whole[name].norm()


@pytest.mark.slow
def test_two_processes_train_as_one_and_three_may_resume(configure: Configure, tmp_path: Path) -> None:
    changes = {"loop.num_epochs": 2, "loss.weights": {"sdm": 1.0, "id": 1.0}, "optim.clip_grad_norm": 1.0}
    config = saved(configure, tmp_path, changes)
    alone = train(configure(BASE | changes), tmp_path / "alone")
    ran = torchrun(2, PROGRAM, "stop", "3", "train", "--config", config, "--output", tmp_path / "two")
    assert ran.stderr.count("stopped by SIGTERM; continue with: cskt train --resume") == 1
    assert load_plain(tmp_path / "two" / "last.pt")["progress"]["total_steps"] == 3
    ran = torchrun(3, "-m", "cskt", "train", "--resume", tmp_path / "two")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("best: epoch") == ran.stdout.count("report: ") == 1

    steps = {folder: [e for e in read_events(tmp_path / folder) if e["event"] == "step"] for folder in ("alone", "two")}
    assert len(steps["two"]) == len(steps["alone"]) == 8
    for shared, whole in zip(steps["two"], steps["alone"], strict=True):
        assert shared["loss"] == pytest.approx(whole["loss"], rel=1e-3)
        assert shared["losses"] == pytest.approx(whole["losses"], rel=1e-3)
        assert shared["gathered_bytes"] > 0 and shared["added_up_bytes"] > 0
        assert 0 < shared["exchange_share"] < 1
        assert "gathered_bytes" not in whole
    scores = [[e["t2i"]["r1"] for e in read_events(tmp_path / name) if e["event"] == "evaluation"] for name in steps]
    assert scores[0] == scores[1] and len(scores[0]) == 4
    whole, shared = (load_plain(tmp_path / name / "last.pt") for name in ("alone", "two"))
    for name, value in whole["model"].items():
        assert torch.allclose(shared["model"][name], value, atol=1e-3), name
    assert shared["progress"]["best_r1"] == alone.best_r1
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 2, "one process writes: two sessions, two files"


@pytest.mark.slow
def test_accumulated_fp16_steps_of_two_processes_equal_those_of_one(configure: Configure, tmp_path: Path) -> None:
    """The gradients of one process overflow in the fourth batch: its step is passed over by all of them."""
    changes = {
        "loop.accumulate_steps": 2, "precision": "fp16", "loop.num_epochs": 2,
        "optim.name": "sgd", "optim.momentum": 0, "optim.weight_decay": 0, "optim.lr": 0.02,
    }  # fmt: skip
    config = saved(configure, tmp_path, changes)
    for count in (1, 2):
        words = ["overflow", "4", "train", "--config", config, "--output", tmp_path / str(count)]
        ran = torchrun(count, PROGRAM, *words)
        assert ran.returncode == 0, ran.stderr
    alone, shared = (load_plain(tmp_path / name / "last.pt") for name in "12")
    assert shared["scaler"] == alone["scaler"]
    assert shared["scaler"]["scale"] == 32.0, "half of what it began with"
    start = trainable_state(prepare(configure(BASE | changes)).state.model)
    moved, off = (
        torch.cat([(one[name] - other[name]).flatten() for name in start]).norm()
        for one, other in ((alone["model"], start), (shared["model"], alone["model"]))
    )
    assert off < 0.01 * moved


@pytest.mark.slow
def test_torchrun_replaces_a_killed_process_without_loss(configure: Configure, tmp_path: Path) -> None:
    config = saved(configure, tmp_path, {"loop.num_epochs": 2, "loop.save_period_steps": 1})
    whole = torchrun(2, "-m", "cskt", "train", "--config", config, "--output", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    words = ["train", "--config", config, "--output", tmp_path / "run"]
    ran = torchrun(2, PROGRAM, "kill", "6", *words, restarts=1)
    assert ran.returncode == 0, ran.stderr
    assert "resuming" in ran.stderr and "exitcode: -9" in ran.stderr
    assert story(tmp_path / "run") == story(tmp_path / "whole")
    kept, expected = (load_plain(tmp_path / name / "last.pt")["model"] for name in ("run", "whole"))
    assert all(torch.equal(kept[name], value) for name, value in expected.items())


@pytest.mark.slow
def test_all_processes_end_when_the_run_folder_is_deleted(configure: Configure, tmp_path: Path) -> None:
    """The first process alone writes, and so notices; the others wait for it, and end with it."""
    config, folder = saved(configure, tmp_path, {"loop.num_epochs": 3}), tmp_path / "run"
    ended = torchrun(2, PROGRAM, "delete", "2", folder, "train", "--config", config, "--output", folder)
    assert ended.returncode != 0 and not folder.exists()
    (line,) = (line for line in ended.stderr.splitlines() if "during training, which ends here" in line)
    assert f"{folder}: deleted or moved" in line
    assert ended.stderr.count("Traceback") == ended.stderr.count("ChildFailedError: "), "that of torchrun alone"


@pytest.mark.slow
def test_two_machines_train_what_one_trains(configure: Configure, tmp_path: Path) -> None:
    """Two launchers that find each other over the network, here of one machine."""
    config = saved(configure, tmp_path, {})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    meeting = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    words = ["-m", "cskt", "train", "--config", str(config), "--output", str(tmp_path / "two")]
    launchers = [
        subprocess.Popen([*LAUNCHER, *meeting, *words], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
        for _ in range(2)
    ]
    try:
        printed = [launcher.communicate(timeout=500)[0] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    assert [launcher.returncode for launcher in launchers] == [0, 0]
    assert sorted(text.count("best: epoch") for text in printed) == [0, 1]
    whole = torchrun(2, "-m", "cskt", "train", "--config", config, "--output", tmp_path / "one")
    assert whole.returncode == 0, whole.stderr
    assert story(tmp_path / "two") == story(tmp_path / "one")


@pytest.mark.slow
def test_processes_that_differ_are_refused(configure: Configure, tmp_path: Path) -> None:
    key = "the kind of device"
    config = saved(configure, tmp_path, {})
    words = ["train", "--config", config, "--output", tmp_path / "run"]
    ran = torchrun(2, PROGRAM, "differ", key, "another", *words)
    known = prepare(configure(BASE)).values_equal_on_all_ranks()[key]
    assert ran.returncode != 0
    assert f"process 0 and process 1 differ in {key}: {known}, another; give every machine the same" in ran.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("own", "theirs"), [({"a": 1, "b": 2}, {"a": 1}), ({"a": 1}, {"a": 1, "b": 2})])
def test_a_setting_that_only_one_process_has_is_refused(
    own: dict[str, int], theirs: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processes, "_gather_objects", lambda _, facts: [facts, theirs])
    with pytest.raises(CsktError, match="process 0 and process 1 differ in b: (2, None|None, 2); give every machine"):
        Processes(rank=0, world_size=2).check_equal(own)


@pytest.mark.parametrize("shape", [[], [5], [0], [4, 5]])
def test_rows_of_any_shape_are_gathered(shape: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process has the rows of this one, negated."""
    monkeypatch.setattr(Processes, "gather", lambda _, own, *__: torch.cat([own, -own]))
    own = torch.rand(3, *shape, requires_grad=True)
    whole = Rows(Processes(rank=0, world_size=2), slice(0, 3), num_images=6, captions_per_image=1).gather(own)
    assert torch.equal(whole, torch.cat([own, -own]))
    whole[:3].sum().backward()
    assert own.grad is not None and torch.equal(own.grad, torch.ones_like(own))


@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 7, 24])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_contain_every_row_once_and_are_even(num_rows: int, count: int) -> None:
    shares = Processes(world_size=count).shares(num_rows)
    assert [row for share in shares for row in share] == list(range(num_rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for rank, share in enumerate(shares):
        assert Processes(rank, count).share(num_rows) == (share if len(share) else range(1))
