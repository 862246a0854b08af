"""A batch in pieces: the gradients of the whole batch, whatever the loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_training import weight_pairs
from torch import Tensor

from cskt.data.masking import MASK_ID, MaskedCaptions
from cskt.training.context import TrainingContext, prepare
from cskt.training.distributed import Rows
from cskt.training.events import read_events
from cskt.training.loop import train
from cskt.training.objective import ModelInputs
from cskt.training.step import augmented, forward_backward
from cskt.types import Batch
from tiny_run import Configure

TBPS_CLIP: dict[str, Any] = {
    "loss.weights": {"nitc": 1.0, "ritc": 1.0, "citc": 0.1, "simclr": 0.4}, "loss.nitc_view": "second",
    "loss.soft_ramp_epochs": 0.0, "loss.logit_scale": 20.0, "trainable": "all", "frozen": ["vision.conv1"],
    "prompts.directions": "none", "adapters.sides": "none", "augment.text_attention_dropout": 0.2, "augment.draws": 2,
    "augment.ops": {"flip": {}, "jitter": {"brightness": 0.1}, "rotate": {}},
    "augment.views": {"second": {}, "simclr_1": {"ops": {"resized_crop": {"area": [0.2, 1]}}}, "simclr_2": {}},
}  # fmt: skip
"""TBPS-CLIP over a tiny backbone, with soft targets from the first step."""
BATCH: dict[str, Any] = {"data.batch_size": 8, "adapters.init": "normal", "optim.warmup_epochs": 0}


def gradients_of(
    context: TrainingContext, batch: Batch, micro_batch_size: int | None
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradient of everything that trains, and the losses."""
    loop = replace(context.config.loop, micro_batch_size=micro_batch_size)
    context = replace(context, config=replace(context.config, loop=loop))
    parts = forward_backward(context, batch, 0, torch.Generator().manual_seed(3))
    named = [*context.state.model.named_parameters(), *context.state.objective.named_parameters()]
    gradients = {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}
    context.state.optimizer.zero_grad(set_to_none=True)
    return gradients, {name: value.item() for name, value in parts.items()}


@pytest.mark.parametrize(("micro_batch_size", "is_weighted"), [(1, False), (3, False), (3, True), (4, False)])
@pytest.mark.parametrize(
    "changes",
    [
        {"loss.weights": {"sdm": 1.0}},
        {"loss.weights": {"sdm": 1.0, "itc": 0.5, "id": 1.0, "tal": 0.1}},
        {"loss.weights": {"sdm": 1.0, "mlm": 1.0}, "mlm.masked_for_all": True},
        {"loss.weights": {"sdm": 1.0}, "mlm.without_loss": True},
        {"loss.weights": {"sdm": 1.0, "id": 1.0, "mlm": 1.0}, "trainable": "all"},
        {"loss.weights": {"sdm": 1.0}, "data.captions_per_image": 2, "loop.checkpoint_activations": True},
        {"prompts.directions": "none", "adapters.sides": "text"},  # nothing of the vision tower trains
        TBPS_CLIP,
    ],
)
def test_gradients_are_those_of_the_whole_batch(
    configure: Configure, changes: dict[str, Any], micro_batch_size: int, is_weighted: bool
) -> None:
    if is_weighted and "citc" in changes.get("loss.weights", {}):
        pytest.skip("citc takes no weights")
    if is_weighted:  # at a temperature of 0.02 few pairs of weight above 0 leave more rounding than the bound below
        changes = changes | {"loss.temperature": 0.05}
    context = prepare(configure(BATCH | changes))
    if is_weighted:
        weight_pairs(context)
    batch = next(iter(context.loader.epoch(0)))
    whole, whole_losses = gradients_of(context, batch, None)
    pieces, pieces_losses = gradients_of(context, batch, micro_batch_size)
    assert pieces_losses == pytest.approx(whole_losses, rel=1e-5)
    assert pieces.keys() == whole.keys() and len(whole) > 4
    largest = max(float(gradient.norm()) for gradient in whole.values())
    for name, gradient in whole.items():
        assert gradient.norm() > 0, name
        assert (pieces[name] - gradient).norm() < 1e-5 * gradient.norm() + 1e-7 * largest, name


def test_captions_are_masked_without_the_loss_mlm(configure: Configure) -> None:
    context = prepare(configure(BATCH | {"mlm.without_loss": True}))
    batch = next(iter(context.loader.epoch(0)))
    views = augmented(context, batch, Rows.of(batch, context.processes), torch.Generator().manual_seed(3))
    assert views.masked is None, "there is no loss to guess the words"
    assert views.caption_ids.shape == batch.caption_ids.shape
    assert bool((views.caption_ids == MASK_ID).any()) and not bool((batch.caption_ids == MASK_ID).any())


def test_summing_the_losses_of_pieces_would_be_another_loss(configure: Configure) -> None:
    context = prepare(configure(BATCH))
    batch = next(iter(context.loader.epoch(0)))
    whole, _ = gradients_of(context, batch, None)
    halves = []
    for rows in (slice(0, 4), slice(4, 8)):
        half = Batch(batch.images[rows], batch.caption_ids[rows], batch.pids[rows], batch.image_ids[rows])
        halves.append(gradients_of(context, half, None)[0])
    name = "adapters.vision.0.up.weight"
    assert (sum(half[name] for half in halves) / 2 - whole[name]).norm() > 0.05 * whole[name].norm()


def test_pieces_contain_whole_images_and_no_needless_padding() -> None:
    caption_ids = torch.zeros(6, 9, dtype=torch.int64)
    for row, length in zip(caption_ids, (3, 5, 9, 4, 6, 3), strict=True):
        row[:length] = torch.tensor([98, *range(1, length - 1), 99])
    images = torch.arange(3.0).view(3, 1, 1, 1)
    masked = MaskedCaptions(caption_ids + 1, caption_ids)
    pieces = ModelInputs(images, caption_ids, masked).split(3)  # two captions to an image: one image at a time
    assert [piece.images.flatten().tolist() for piece in pieces] == [[0.0], [1.0], [2.0]]
    assert [piece.caption_ids.shape for piece in pieces] == [(2, 5), (2, 9), (2, 6)]
    for index, piece in enumerate(pieces):
        rows = slice(2 * index, 2 * index + 2)
        assert torch.equal(piece.caption_ids, caption_ids[rows, : piece.caption_ids.shape[1]])
        assert piece.masked is not None and torch.equal(piece.masked.ids, masked.ids[rows])
        assert torch.equal(piece.masked.labels, masked.labels[rows])


def test_a_run_in_pieces_learns_the_same(configure: Configure, tmp_path: Path) -> None:
    losses = {}
    for name, micro_batch_size in (("whole", None), ("pieces", 2)):
        config = configure(
            {"loop.micro_batch_size": micro_batch_size, "loop.num_epochs": 2, "loop.log_period_steps": 1}
        )
        folder = train(config, tmp_path / name).folder
        events = read_events(folder)
        assert next(event for event in events if event["event"] == "start")["micro_batch_size"] == micro_batch_size
        losses[name] = [event["loss"] for event in events if event["event"] == "step"]
    assert len(losses["whole"]) > 3
    assert losses["pieces"] == pytest.approx(losses["whole"], rel=1e-4)
