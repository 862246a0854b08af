"""Weight files that are not what they should be, and places that cannot be written: one line, and nothing lost."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import contents, done, typed
from safetensors.torch import load_file, save_file

from cskt.model.io import native
from pickled_trap import Trap
from tiny_run import write_backbone

pytestmark = pytest.mark.usefixtures("nothing_is_lost")


# --- weights


def test_code_in_a_pickle_is_not_run(run: Path, root: Path, train_command: str, tmp_path: Path) -> None:
    mark, released, copy = tmp_path / "executed", tmp_path / "released", tmp_path / "run"
    trap = tmp_path / "clip.pt"
    torch.save({"visual.proj": torch.zeros(2, 2), "more": Trap(mark)}, trap)
    torch.load(trap, weights_only=False)
    mark.rmdir()  # the trap works where it is let run
    released.mkdir()
    (released / "configs.yaml").write_text("depth: 2\n")
    shutil.copy(trap, released / "best.pth")
    shutil.copytree(run, copy)
    for name in ("last.pt", "last.previous.pt"):
        shutil.copy(trap, copy / name)
    for command in (
        f"cskt evaluate {trap} --dataset cuhk-pedes --root {root}",
        f"{train_command} --backbone.name {trap} --output {tmp_path / 'new'}",
        f"python test.py --config_file {released}/configs.yaml --root_dir {root} --dataset_name CUHK-PEDES",
        f"cskt train --resume {copy}",
    ):
        refusal = typed(command).refusal()
        assert "nothing in it was executed" in refusal and "mkdir" in refusal
        assert not mark.exists()


def test_code_in_yaml_is_not_run(run: Path, root: Path, tmp_path: Path) -> None:
    mark, copy, released = tmp_path / "executed", tmp_path / "run", tmp_path / "released"
    text = f"name: !!python/object/apply:os.mkdir ['{mark}']\n"
    shutil.copytree(run, copy)
    (copy / "config.yaml").write_text(text)
    released.mkdir()
    (released / "configs.yaml").write_text(text)
    for command in (
        f"cskt train --config {copy}/config.yaml",
        f"cskt train --resume {copy}",
        f"cskt evaluate {copy}",
        f"python test.py --config_file {released}/configs.yaml --root_dir {root} --dataset_name CUHK-PEDES",
    ):
        refusal = typed(command).refusal()
        assert "not plain YAML" in refusal
        assert not mark.exists()


def cut(path: Path, share: float = 0.5) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_checkpoints(share: float, run: Path, root: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    copy, clip = tmp_path / "run", tmp_path / "clip.safetensors"
    shutil.copytree(run, copy)
    shutil.copy(tiny_backbone, clip)
    for path in (copy / "best.safetensors", copy / "last.pt", copy / "last.previous.pt", clip):
        cut(path, share)
    for path, command in (
        (copy / "best.safetensors", f"cskt evaluate {copy}"),
        (copy / "best.safetensors", f"cskt export {copy} --merge {tmp_path}/merged.safetensors"),
        (copy / "last.previous.pt", f"cskt train --resume {copy}"),
        (clip, f"cskt evaluate {clip} --dataset cuhk-pedes --root {root}"),
    ):
        refusal = typed(command).refusal()
        assert refusal.startswith(f"{path}: ")
    assert not (tmp_path / "merged.safetensors").exists()


def test_weights_over_another_backbone(run: Path, tmp_path: Path) -> None:
    other = write_backbone(tmp_path / "other.safetensors", seed=9)
    evaluated = typed(f"cskt evaluate {run} --backbone {other}").refusal()
    assert "another backbone than the weights were trained over" in evaluated and "SHA-256" in evaluated
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    resumed = typed(f"cskt train --resume {copy} --backbone.name {other}").refusal()
    assert "trained over another backbone (SHA-256 " in resumed and "--backbone.name" in resumed
    assert contents(copy).keys() == {copy / path.relative_to(run) for path in contents(run)}


def test_weights_of_another_architecture(
    run: Path, root: Path, train_command: str, tiny_backbone: Path, tmp_path: Path
) -> None:
    resnet, incomplete = tmp_path / "resnet.pt", tmp_path / "incomplete.safetensors"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, resnet)
    refusal = typed(f"{train_command} --backbone.name {resnet} --output {tmp_path / 'new'}").refusal()
    assert refusal.startswith(f"{resnet}: not a CLIP with a vision transformer")
    tensors, metadata = native.read_safetensors(tiny_backbone)
    tensors.pop("text.blocks.1.mlp.c_fc.bias")
    save_file(tensors, incomplete, metadata=metadata)
    refusal = typed(f"cskt evaluate {incomplete} --dataset cuhk-pedes --root {root}").refusal()
    assert refusal == f"{incomplete}: tensor 'text.blocks.1.mlp.c_fc.bias' is missing"
    assert load_file(incomplete).keys() == tensors.keys()

    # a run whose weights are of another depth than its own config says
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    tensors, metadata = native.read_safetensors(run / "best.safetensors")
    tensors["prompts.text.2"] = tensors["prompts.text.1"].clone()
    save_file(tensors, copy / "best.safetensors", metadata=metadata)
    refusal = typed(f"cskt evaluate {copy}").refusal()
    assert "unknown tensor 'prompts.text.2'" in refusal


def test_run_without_weights_yet(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "best.safetensors").unlink()
    refusal = typed(f"cskt evaluate {copy}").refusal()
    assert refusal.startswith(f"{copy / 'best.safetensors'}: no such file")


def test_no_network_says_which_file_to_put_where(
    train_command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(url: str, timeout: float) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setenv("CSKT_CACHE", str(tmp_path / "cache"))
    refusal = typed(f"{train_command} --backbone.name ViT-B/32 --output {tmp_path / 'run'}").refusal()
    assert "download https://" in refusal and f"save it as {tmp_path / 'cache' / 'ViT-B-32.pt'}" in refusal
    assert not any((tmp_path / "cache").iterdir())


# --- saving


def disk_is_full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_disk_full_in_export_keeps_the_file_before(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merged = tmp_path / "merged.safetensors"
    done(f"cskt export {run} --merge {merged}")
    before = contents(tmp_path)
    monkeypatch.setattr(native, "save_file", disk_is_full)
    refusal = typed(f"cskt export {run} --merge {merged}").refusal()
    assert refusal.startswith(f"{merged}: cannot be written: ") and "No space left on device" in refusal
    assert "free disk space" in refusal
    assert contents(tmp_path) == before


def test_disk_full_in_training_loses_nothing(
    train_command: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    save, saved = torch.save, []

    def save_once(content: Any, path: Path) -> None:
        save(content, path)
        saved.append(path)
        if len(saved) > 3:  # before the first step, and before and after the evaluation of each of two epochs
            path.write_bytes(path.read_bytes()[:1000])
            disk_is_full()

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_once)
        refusal = typed(f"{train_command} --output {folder}").refusal()
    assert refusal.startswith(f"{folder / 'last.pt'}: cannot be written: ") and "No space left on device" in refusal
    assert not list(folder.glob(".*.tmp")), "no half a file is left"
    assert torch.load(folder / "last.pt")["progress"]["epoch"] == 1
    done(f"cskt evaluate {folder}")
    done(f"cskt train --resume {folder}")
    ends = [torch.load(path / "last.pt")["model"] for path in (folder, run)]
    torch.testing.assert_close(*ends, rtol=0, atol=0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_device_that_is_really_full(train_command: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    # where the trainer writes before it renames, everything goes to that device
    (folder / f".last.pt.{os.getpid()}.{threading.get_ident()}.tmp").symlink_to("/dev/full")
    refusal = typed(f"{train_command} --output {folder}").refusal()
    assert refusal.startswith(f"{folder / 'last.pt'}: cannot be written: ")
    assert not (folder / "last.pt").exists() and not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize(
    "command",
    [
        "{train} --output {file}/run",
        "cskt export {run} --merge {file}/merged.safetensors",
        "cskt data make {file}/data --train-ids 1 --val-ids 0 --test-ids 0",
        "cskt demo --output {file} --train-ids 10 --test-ids 10",
    ],
)
def test_folder_that_cannot_be_written(command: str, run: Path, train_command: str, tmp_path: Path) -> None:
    file = tmp_path / "file"  # a folder below a file cannot be made, not even by the administrator
    file.write_text("precious")
    refusal = typed(command.format(train=train_command, run=run, file=file)).refusal()
    assert refusal.startswith(str(file)) and "choose another" in refusal
    assert file.read_text() == "precious"
