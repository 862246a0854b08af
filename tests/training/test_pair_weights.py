"""Weights and losses of single training pairs: in the losses of a run, in its checkpoints, from its hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cskt import losses, plugins
from cskt.data.loading import TrainingLoader
from cskt.data.mixing import MixPart
from cskt.errors import CsktError
from cskt.losses import LOSSES, Loss, LossInputs, SDMLoss
from cskt.model.io.tensors import load_plain
from cskt.model.parts import PARTS
from cskt.training import trainer
from cskt.training.context import TrainingContext, prepare
from cskt.training.hooks import Hook
from cskt.training.loop import train
from cskt.training.pair_losses import pair_losses
from cskt.training.run_hooks import TrainingRun
from cskt.training.step import forward_backward
from same_run import assert_same_run, story
from tiny_run import Configure

EVERY_LOSS = {"sdm": 1.0, "itc": 0.5, "cmpm": 0.5, "tal": 0.1, "triplet": 0.5, "id": 1.0, "mlm": 1.0}
PLAIN_IMAGES = {"augment.flip_probability": 0.0, "augment.pad_pixels": 0, "augment.erase_probability": 0.0}


@dataclass
class Weights(Hook):
    """Weights the pairs before each epoch by a function of the epoch and their number."""

    choose: Callable[[int, int], Any]

    def before_epoch(self, run: TrainingRun) -> None:
        run.pair_weights = self.choose(run.epoch, len(run.train_split.captions))


def half(epoch: int, num_pairs: int) -> np.ndarray:
    """Give weights from 0 to 1.5 that move by one pair an epoch."""
    return (np.arange(num_pairs) + epoch) % 4 / 2


def steps(folder: Path) -> list[dict[str, Any]]:
    return [event for event in story(folder) if event["event"] == "step"]


# --- pairs of a batch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"data.captions_per_image": 2}, {"data.sampler": "identity"}, {"data.sampler": "identity-released"}],
)
def test_a_batch_names_its_pairs_by_their_place_in_the_split(configure: Configure, changes: dict[str, Any]) -> None:
    context = prepare(configure(changes))
    split = context.train_split
    check_pairs(context.loader, split.captions, split.caption_image_ids, split.caption_pids, context)
    every = torch.cat([batch.pair_ids for batch in context.loader.every_pair(0, 1)])
    assert sorted(every.tolist()) == list(range(len(split.captions))) and every.tolist() != sorted(every.tolist())
    again = torch.cat([batch.pair_ids for batch in context.loader.every_pair(0, 1)])
    other = torch.cat([batch.pair_ids for batch in context.loader.every_pair(1, 1)])
    assert torch.equal(again, every) and not torch.equal(other, every)


def test_pairs_of_a_mix_are_named_by_their_place_in_all_of_it(configure: Configure) -> None:
    context = prepare(configure())
    split, data = context.train_split, context.config.data
    parts = [MixPart(5, 2.0), MixPart(len(split.records) - 5, 1.0)]
    loader = TrainingLoader(split, context.tokenizer, data, context.loader._reader, seed=3, mix_parts=parts)
    check_pairs(loader, split.captions, split.caption_image_ids, split.caption_pids, context)


def check_pairs(
    loader: TrainingLoader, captions: list[str], image_ids: list[int], pids: list[int], context: TrainingContext
) -> None:
    numbers = {pid: number for number, pid in enumerate(sorted(set(pids)))}
    for batch in [*loader.epoch(0), *loader.every_pair(0, 1)]:
        pair_ids = batch.pair_ids.tolist()
        length = batch.caption_ids.shape[1]
        assert torch.equal(batch.caption_ids, context.tokenizer([captions[pair] for pair in pair_ids])[:, :length])
        assert batch.pids.tolist() == [numbers[pids[pair]] for pair in pair_ids]
        per_image = len(pair_ids) // len(batch.image_ids)
        assert [image_ids[pair] for pair in pair_ids] == batch.image_ids.repeat_interleave(per_image).tolist()


# --- losses of a run ---------------------------------------------------------------------------------------------


def test_weights_of_one_change_no_bit_and_others_do(configure: Configure, tmp_path: Path) -> None:
    config = configure({"loss.weights": EVERY_LOSS, "loop.num_epochs": 2})
    plain = train(config, tmp_path / "plain").folder
    ones = train(config, tmp_path / "ones", hooks=[Weights(lambda epoch, num_pairs: [True] * num_pairs)]).folder
    assert steps(ones) == steps(plain)
    assert (ones / "best.safetensors").read_bytes() == (plain / "best.safetensors").read_bytes()
    others = steps(train(config, tmp_path / "others", hooks=[Weights(half)]).folder)
    for name in EVERY_LOSS:
        assert others[0]["losses"][name] != steps(plain)[0]["losses"][name], name


def test_the_losses_of_a_batch_are_those_of_its_weights(configure: Configure) -> None:
    context = prepare(configure({"loss.weights": {"sdm": 1.0, "tal": 1.0}} | PLAIN_IMAGES))
    weights = torch.rand(context.loader.num_pairs, generator=torch.Generator().manual_seed(0))
    context.state.objective.pair_weights = weights
    batch = next(context.loader.epoch(0))
    found = forward_backward(context, batch, 0, torch.Generator())
    encoder, split = context.encoder(), context.train_split
    pairs = batch.pair_ids.tolist()
    features = (
        torch.as_tensor(encoder.encode_image([split.image_paths[split.caption_image_ids[pair]] for pair in pairs])),
        torch.as_tensor(encoder.encode_text([split.captions[pair] for pair in pairs])),
    )
    for name, function in (("sdm", losses.sdm), ("tal", losses.tal)):
        expected = function(*features, batch.pids, pair_weights=weights[batch.pair_ids])
        assert found[name].item() == pytest.approx(expected.item(), rel=1e-3), name


def test_a_hook_sees_a_copy_and_takes_weights_back(configure: Configure, tmp_path: Path) -> None:
    seen: list[Tensor | None] = []

    class Changes(Hook):
        def before_epoch(self, run: TrainingRun) -> None:
            seen.append(run.pair_weights)
            if run.epoch == 1:
                run.pair_weights = half(1, 24)
                run.pair_weights[:] = 7
            if run.epoch == 3:
                run.pair_weights = None

        def after_epoch(self, run: TrainingRun) -> None:
            seen.append(run.pair_weights)

    train(configure({"loop.num_epochs": 3}), tmp_path / "run", hooks=[Changes()])
    expected = torch.tensor(half(1, 24)).float()
    assert [None if one is None else one.tolist() for one in seen] == [
        None, expected.tolist(), expected.tolist(), expected.tolist(), expected.tolist(), None
    ]  # fmt: skip
    assert "pair_weights" not in load_plain(tmp_path / "run" / "last.pt")["hooks"]


class CutError(Exception):
    """Raised in a test to end a training."""


@pytest.mark.parametrize("step", [2, 5])
def test_a_resumed_run_has_the_weights_of_its_epoch(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The hook is not called again in the middle of an epoch."""
    config = configure({"loop.num_epochs": 3, "loop.save_period_steps": 1})
    whole = train(config, tmp_path / "whole", hooks=[Weights(half)]).folder
    update, calls = trainer.optimizer_step, [0]

    def interrupt(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == step:
            raise CutError
        return update(*arguments)

    with monkeypatch.context() as patch, pytest.raises(CutError):
        patch.setattr(trainer, "optimizer_step", interrupt)
        train(config, tmp_path / "cut", hooks=[Weights(half)])
    train(config, tmp_path / "cut", resume=True, hooks=[Weights(half)])
    assert_same_run(tmp_path / "cut", whole)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], r"run.pair_weights has shape \[2\]; give \[24\], a number for each training pair"),
        (np.ones((24, 1)), r"has shape \[24, 1\]"),
        ([1.0] * 23 + [math.nan], r"run.pair_weights\[23\] is nan; give finite numbers of at least 0"),
        ([1.0, math.inf] + [1.0] * 22, r"run.pair_weights\[1\] is inf"),
        (torch.arange(24.0) - 1, r"run.pair_weights\[0\] is -1"),
        ([0] * 24, "run.pair_weights are all 0"),
        (["high"] * 24, "give a number for each training pair"),
        ("high", "give a number for each training pair"),
    ],
)
def test_bad_weights_end_the_training(configure: Configure, tmp_path: Path, weights: Any, message: str) -> None:
    with pytest.raises(CsktError, match=message):
        train(configure(), tmp_path / "run", hooks=[Weights(lambda *_: weights)])


@pytest.fixture
def deaf() -> Iterator[str]:
    """A loss that takes no weights of pairs."""

    @losses.register("deaf")
    @dataclass(eq=False)
    class Deaf(Loss):
        def forward(self, inputs: LossInputs) -> Tensor:
            return (inputs.image_features - inputs.text_features).square().mean()

    yield "deaf"
    del LOSSES._entries["deaf"], LOSSES._plugins["deaf"]


def test_a_loss_that_takes_no_weights_is_named(configure: Configure, tmp_path: Path, deaf: str) -> None:
    config = configure({"loss.weights": {"sdm": 1.0, deaf: 1.0}})
    with pytest.raises(CsktError, match="loss 'deaf' takes no weights of pairs; take it out of loss.weights"):
        train(config, tmp_path / "run", hooks=[Weights(half)])
    with pytest.raises(CsktError, match="Deaf has no value for each pair"):
        pair_losses(prepare(config), deaf)


# --- losses of single pairs --------------------------------------------------------------------------------------


@dataclass
class Measures(Hook):
    """Remembers the losses of the pairs before each epoch."""

    found: list[dict[str, Tensor]] = field(default_factory=list)

    def before_epoch(self, run: TrainingRun) -> None:
        self.found.append(run.pair_losses(["tal", "sdm"]))


@pytest.mark.parametrize("changes", [{}, {"data.captions_per_image": 2}, {"loop.micro_batch_size": 5}])
def test_losses_of_pairs_are_those_of_the_loss_without_weights(configure: Configure, changes: dict[str, Any]) -> None:
    """One batch of all pairs: its loss does not depend on their order."""
    changes = changes | {"data.batch_size": 24, "loss.weights": {"sdm": 1.0, "tal": 0.0, "id": 1.0}} | PLAIN_IMAGES
    context = prepare(configure(changes))
    context.state.objective.pair_weights = torch.tensor(half(0, 24)).float()
    context.state.model.vision.eval()
    before = [module.training for module in context.state.model.modules()]
    found = pair_losses(context, ["sdm", "tal", "id"])
    assert [module.training for module in context.state.model.modules()] == before and not all(before)
    assert all(parameter.grad is None for parameter in context.state.model.parameters())
    encoder, split = context.encoder(), context.train_split
    images = torch.as_tensor(encoder.encode_image([split.image_paths[image] for image in split.caption_image_ids]))
    texts = torch.as_tensor(encoder.encode_text(split.captions))
    pids = torch.tensor(split.caption_pids)
    assert found.keys() == {"sdm", "tal", "id"} and all(one.shape == (24,) for one in found.values())
    for name, function in (("sdm", losses.sdm), ("tal", losses.tal)):
        expected = function(images, texts, pids, reduction="none")
        assert torch.allclose(found[name], expected, rtol=1e-3, atol=1e-4), name
    model, classifier = context.state.model.eval(), context.state.objective.classifier
    pixels = torch.stack([encoder.read_image(split.image_paths[image]) for image in split.caption_image_ids])
    features = model.image_features(encoder.normalise(pixels)), model.text_features(encoder.tokenizer(split.captions))
    logits = [classifier(one) for one in features]
    expected = losses.identity(*logits, pids.unique(return_inverse=True)[1], reduction="none")
    assert torch.allclose(found["id"], expected, rtol=1e-3, atol=1e-4)


def test_measuring_changes_nothing_and_is_a_function_of_the_epoch(configure: Configure, tmp_path: Path) -> None:
    config = configure({"loop.num_epochs": 2, "loss.weights": {"sdm": 1.0, "tal": 0.1}})
    plain, hooks = train(config, tmp_path / "plain").folder, [Measures(), Measures()]
    for name, hook in zip("ab", hooks, strict=True):
        run = train(config, tmp_path / name, hooks=[hook]).folder
        assert steps(run) == steps(plain)
    for one, other in zip(hooks[0].found, hooks[1].found, strict=True):
        assert torch.equal(one["tal"], other["tal"]) and torch.equal(one["sdm"], other["sdm"])
    assert len(hooks[0].found) == 2 and not torch.equal(hooks[0].found[0]["sdm"], hooks[0].found[1]["sdm"])


@pytest.mark.parametrize(
    ("names", "message"), [("itc", r"'itc' is not in loss.weights \("), ("mlm", "MLMLoss has no value for each pair")]
)
def test_a_loss_that_is_not_trained_or_has_no_pairs_is_refused(configure: Configure, names: str, message: str) -> None:
    with pytest.raises(CsktError, match=message):
        pair_losses(prepare(configure({"loss.weights": {"sdm": 1.0, "mlm": 1.0}})), names)


@pytest.fixture
def of_head(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """SDM of an embedding head with batch normalisation, and the plug-in that has the head."""
    monkeypatch.setattr(plugins, "_loaded", {})
    plugins.load_plugins([Path(__file__).with_name("plugin_heads.py")])

    @losses.register("of_head")
    @dataclass(eq=False)
    class OfHead(SDMLoss):
        def per_pair(self, inputs: LossInputs) -> Tensor:
            return super().per_pair(inputs.of_head("chosen"))

        def forward(self, inputs: LossInputs) -> Tensor:
            return super().forward(inputs.of_head("chosen"))

    yield "of_head"
    del LOSSES._entries["of_head"], LOSSES._plugins["of_head"]
    for registry in (PARTS, LOSSES):
        for loaded in plugins.loaded_plugins():
            registry.forget(loaded)


def test_embedding_heads_are_measured_in_evaluation_mode(configure: Configure, of_head: str) -> None:
    changes = {"parts.chosen": {}, "prompts.directions": "none", "loss.weights": {"sdm": 1.0, of_head: 1.0}}
    context = prepare(configure(changes | {"data.batch_size": 24} | PLAIN_IMAGES))
    context.state.objective.pair_weights = torch.tensor(half(0, 24)).float()
    forward_backward(context, next(context.loader.epoch(0)), 0, torch.Generator())  # moves the running statistics
    model = context.state.model
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = pair_losses(context, ["sdm", of_head])
    assert before and all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert all(module.training for module in model.modules())
    dim = model.architecture.embed_dim
    encoder, split, pids = context.encoder(), context.train_split, torch.tensor(context.train_split.caption_pids)
    images = torch.as_tensor(encoder.encode_image([split.image_paths[image] for image in split.caption_image_ids]))
    texts = torch.as_tensor(encoder.encode_text(split.captions))
    for name, columns in (("sdm", slice(0, dim)), (of_head, slice(dim, None))):
        expected = losses.sdm(images[:, columns], texts[:, columns], pids, reduction="none")
        assert torch.allclose(found[name], expected, rtol=2e-3, atol=1e-3), name
