"""No step makes the host wait for the device: on the meta device, tensors have no values that could be read."""

from __future__ import annotations

import dataclasses
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from cskt.data.prefetcher import Prefetcher
from cskt.device import to_device
from cskt.model.attention import Packing
from cskt.model.folded import fold_text, fold_vision
from cskt.training import context as context_module
from cskt.training.context import TrainingContext, prepare
from cskt.training.distributed import Processes, Rows
from cskt.training.state import ExponentialMovingAverage
from cskt.training.step import forward_backward, generator_of, optimizer_step
from cskt.utils.modules import named_tensors
from tiny_run import quick_config

META = torch.device("meta")
ALL_LOSSES = dict.fromkeys(("sdm", "cmpm", "tal", "id", "mlm"), 1.0)


def on_meta(context: TrainingContext) -> TrainingContext:
    """Move everything that a step uses to the meta device, as `prepare` does with the device of the run."""
    state = context.state
    state.model.to(META)
    state.objective.to(META)
    state.optimizer = context_module.build_optimizer(state.model.named_parameters(), context.config.optim)
    if state.ema is not None:
        state.ema = ExponentialMovingAverage(named_tensors(state.model).items(), 0.9)
    return dataclasses.replace(context, device=META)


class CopiesThatWait(TorchFunctionMode):
    """Finds copies from the host to the device that are not made by `to_device`: on CUDA the host waits for them."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_function__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        is_copied = func in (torch.tensor, torch.as_tensor) or (func is torch.Tensor.to and not args[0].is_meta)
        if is_copied and found.is_meta:
            caller = traceback.extract_stack()[-2]
            if caller.name != "to_device":
                self.places.append(f"{Path(caller.filename).name}:{caller.lineno}")
        return found


def test_a_copy_that_waits_is_found() -> None:
    with CopiesThatWait() as copies:
        to_device(torch.zeros(2), META)
        torch.zeros(2, device=META).to(META)
    assert copies.places == []
    with copies:
        torch.zeros(2).to(META)
        torch.tensor([1.0], device=META)
    assert len(copies.places) == 2


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("cskt", {"optim.ema_decay": 0.9, "optim.clip_grad_norm": 1.0}),
        ("cskt", {"loop.micro_batch_size": 4}),
        ("irra", {"mlm.cmt_depth": 1, "loss.weights": ALL_LOSSES, "data.captions_per_image": 2}),
        ("lora", {"loop.checkpoint_activations": True, "loss.weights": {"sdm": 1.0, "tal": 1.0}}),
        ("dm-adapter", {}),
        ("up-person", {}),
        ("rde", {}),
        ("tbps-clip", {}),
        ("tbps-clip-simple", {"augment.text_attention_dropout": 0.1}),
        ("finetune", {"loss.weights": {"itc": 1.0, "triplet": 1.0}}),
    ],
)
def test_a_step_reads_nothing_from_the_device(
    monkeypatch: pytest.MonkeyPatch, dolls: Path, tiny_backbone: Path, recipe: str, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # the meta device has none
    context = on_meta(prepare(quick_config(dolls, tiny_backbone, recipe, changes)))
    if not recipe.startswith("tbps-clip"):  # its losses take no weights
        context.state.objective.pair_weights = torch.linspace(0.1, 1.0, context.loader.num_pairs)  # as a hook sets them
    with Prefetcher(context.loader.epoch(0), META) as batches, CopiesThatWait() as copies:
        for step, batch in zip(range(2), batches, strict=False):
            losses = forward_backward(context, batch, step, generator_of(0, step))
            largest = optimizer_step(context, step)
            assert all(loss.is_meta for loss in losses.values()) and largest is not None and largest.is_meta
    assert copies.places == []


def test_the_meta_device_shows_a_wait() -> None:
    value = torch.zeros((), device=META)
    for read in (float, bool, torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read(value)


def test_folded_towers_read_nothing_from_the_device(dolls: Path, tiny_backbone: Path) -> None:
    model = prepare(quick_config(dolls, tiny_backbone)).state.model
    vision, text = fold_vision(model).to(META), fold_text(model).to(META)
    assert vision(torch.zeros(3, 3, 32, 16, device=META)).is_meta
    caption_ids = torch.zeros(3, 9, dtype=torch.int64)
    assert text(caption_ids.to(META)).is_meta
    caption_ids[range(3), (2, 8, 5)] = model.text.end_id
    packing = text.packing(caption_ids)
    assert packing is not None
    assert text(caption_ids.to(META), Packing(*(index.to(META) for index in packing))).is_meta


def test_the_share_of_a_mean_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of terms is a tensor on the device if pairs have weights."""
    processes = Processes(rank=0, world_size=2, local_rank=0, local_world_size=2)
    monkeypatch.setattr(Processes, "all_reduce", lambda self, values: 2 * values)
    rows = Rows(processes, slice(0, 2), num_images=4, captions_per_image=1)
    assert rows.share_of_mean(torch.ones((), device=META), torch.ones((), device=META)).is_meta
    mean = torch.tensor(3.0, requires_grad=True)
    for num_terms in (torch.tensor(5.0), 5, None):
        share = rows.share_of_mean(mean, num_terms)
        assert share.dtype == torch.float32 and share.requires_grad and share.item() == 1.5
    assert rows.share_of_mean(mean, torch.tensor(0.0)).item() == 0.0
