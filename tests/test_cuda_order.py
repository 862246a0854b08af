"""The order of CUDA calls, on a fake CUDA (`fake_cuda`): initialised before use, copies that do not wait."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import cskt
from cskt.cli.main import main
from cskt.data.prefetcher import Prefetcher, read_back
from cskt.device import held_memory_bytes, peak_memory_bytes, reset_peak_memory, to_device
from cskt.embed import load
from cskt.explain import explain
from cskt.types import Batch
from fake_cuda import FakeCuda, installed
from tiny_run import quick_config

CUDA = torch.device("cuda:1")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    with installed(monkeypatch) as cuda:
        yield cuda


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
def test_cuda_is_initialised_before_its_memory_is_measured(cuda: FakeCuda, name: str) -> None:
    device = torch.device(name)
    reset_peak_memory(device)
    assert cuda.is_initialised
    assert peak_memory_bytes(device) == held_memory_bytes(device) == 1


def test_the_fake_fails_as_cuda_does(cuda: FakeCuda) -> None:
    with pytest.raises(RuntimeError, match="did you call init"):
        torch.cuda.reset_peak_memory_stats("cuda:0")
    torch.cuda.reset_peak_memory_stats("cuda")
    torch.cuda.reset_peak_memory_stats("cuda:0")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1"])
def test_a_training_names_its_device_from_the_first_call_to_the_last(
    cuda: FakeCuda, dolls: Path, tiny_backbone: Path, tmp_path: Path, device: str
) -> None:
    """The command itself: training, its evaluation and its end, which reads the peak of the memory."""
    config = quick_config(dolls, tiny_backbone, changes={"device": device, "loop.evaluate_before": True})
    cskt.train(config, tmp_path / "ours")
    assert next(name for name in cuda.names() if name != "read") == "init"  # weights are read from their file before
    assert {call.device for call in cuda.calls if call.name == "copy"} == {device}
    in_their_stream = [call for call in cuda.calls if call.name == "copy" and call.stream == "copies"]
    start, *_ = map(json.loads, (tmp_path / "ours" / "metrics.jsonl").read_text().splitlines())
    num_evaluations, num_images = 3, 2  # batches of a training step and of an evaluation of 8 images, 5 at once
    assert len(in_their_stream) >= start["steps_per_epoch"] + num_evaluations * num_images
    assert start["device"] == device


def test_a_fake_run_equals_one_on_the_cpu(cuda: FakeCuda, dolls: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    found = {}
    for device in ("cpu", "cuda:0"):
        result = cskt.train(quick_config(dolls, tiny_backbone, changes={"device": device}), tmp_path / device[:4])
        found[device] = result.best_r1
    assert found["cpu"] == found["cuda:0"]
    weights = [(tmp_path / name / "best.safetensors").read_bytes()[-4096:] for name in ("cpu", "cuda")]
    assert weights[0] == weights[1]


def test_results_are_read_while_the_next_batch_is_computed(cuda: FakeCuda) -> None:
    def computed() -> Iterator[tuple[int, torch.Tensor]]:
        for number in range(3):
            cuda.record(f"compute {number}")
            yield number, torch.full((2,), float(number))

    found = []
    for number, tensor in read_back(computed(), CUDA):
        cuda.record(f"use {number}")
        found.append(tensor.tolist())
    assert found == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
    assert [name for name in cuda.names() if name not in ("copy back", "event")] == [
        "compute 0", "compute 1", "wait for event 1", "use 0", "compute 2", "wait for event 2", "use 1",
        "wait for event 3", "use 2",
    ]  # fmt: skip
    assert {call.device for call in cuda.calls if call.name == "event"} == {"cuda:1"}


def test_the_consumer_waits_for_a_copy_and_not_for_the_one_after_it(cuda: FakeCuda) -> None:
    images, ids = torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.zeros(1, 3, dtype=torch.int64)
    batches = (Batch(images, ids, ids[:, 0], ids[:, 0]) for _ in range(2))
    with Prefetcher(batches, CUDA) as prefetcher:
        for number, _ in enumerate(prefetcher):
            cuda.record(f"use {number}")
    waits = "default waits for copies"
    (begun,) = (call for call in cuda.calls if call.name == "set_device")
    assert begun.device == "cuda:1" and begun.thread.startswith("prefetcher"), "a thread begins on GPU 0"
    names = [name for name in cuda.names() if name not in ("init", "set_device")]
    assert names[:2] == ["copy", waits] and names[-1] == "use 1"
    assert names.index(waits) < len(names) - 1 - names[::-1].index("copy"), "the second copy starts after the wait"
    assert names.count("copy") == names.count(waits) == 2


def test_a_device_without_a_number_is_the_current_one_in_every_thread(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_threads = {threading.main_thread(): 1}  # each other thread begins on 0
    monkeypatch.setattr(torch.cuda, "current_device", lambda: of_threads.get(threading.current_thread(), 0))
    ids = torch.zeros(1, 3, dtype=torch.int64)
    batches = (Batch(torch.zeros(1, 3, 2, 2), ids, ids[:, 0], ids[:, 0]) for _ in range(2))
    with Prefetcher(batches, torch.device("cuda")) as prefetcher:
        assert len(list(prefetcher)) == 2
    assert [call.device for call in cuda.calls if call.name == "set_device"] == ["cuda:1"]


def test_a_slice_is_copied_from_contiguous_pinned_memory(cuda: FakeCuda) -> None:
    whole = torch.arange(12).view(3, 4)
    assert torch.equal(to_device(whole[:, :2], CUDA), whole[:, :2])
    assert cuda.names() == ["init", "copy"]


def test_an_encoder_copies_from_pinned_memory_and_never_waits(cuda: FakeCuda, tiny_backbone: Path) -> None:
    encoder = load(tiny_backbone, device="cuda:1", batch_size=2)
    height, width = encoder.image_size
    encoder.encode_text("a person"), encoder.encode_image(torch.zeros(1, 3, height, width, dtype=torch.uint8))
    cuda.calls.clear()
    images = encoder.encode_image(torch.zeros(5, 3, height, width, dtype=torch.uint8))
    texts = encoder.encode_text(["a person", "a woman in a red coat", "a man"])
    assert images.shape == (5, encoder.embed_dim) and texts.shape == (3, encoder.embed_dim)
    assert "copy and wait" not in cuda.names() and "read" not in cuda.names()
    waits = [name for name in cuda.names() if name.startswith("wait for")]
    assert len(waits) == cuda.names().count("copy back") == 3 + 2, "one for each batch, by an event"


def test_heat_maps_are_read_once(cuda: FakeCuda, tiny_backbone: Path) -> None:
    encoder = load(tiny_backbone, device="cuda:0")
    pixels = torch.zeros(3, *encoder.image_size, dtype=torch.uint8).permute(1, 2, 0).numpy()
    from PIL import Image

    cuda.calls.clear()
    explain(encoder, Image.fromarray(pixels), "a woman with a red bag")
    assert cuda.names().count("read") == 1


@pytest.mark.parametrize("argument", ["cuda:2", "cuda:x"])
def test_a_device_that_is_not_there_is_refused(
    cuda: FakeCuda, capsys: pytest.CaptureFixture[str], argument: str
) -> None:
    assert main(["train", "--device", argument, "--dataset", "jsonl", "--root", "nowhere"]) == 2
    assert argument in capsys.readouterr().err and not cuda.is_initialised
