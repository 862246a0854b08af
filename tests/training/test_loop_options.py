"""Options of `train`: moving average, several captions an image, nothing to train, masked words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import (
    NO_AUGMENTATION,
    PLAIN_SGD,
    assert_changed_as_by_hand,
    assert_computes_alike,
    assert_same_tensors,
    by_hand,
    events_of,
    losses_of,
    with_scores,
)  # fmt: skip
from torch import Tensor

from cskt.data.tokenizer import Tokenizer
from cskt.embed import Encoder, load
from cskt.errors import CsktError
from cskt.evaluation.evaluate import Evaluation, evaluate
from cskt.model.io.native import read_method
from cskt.model.io.tensors import load_plain
from cskt.model.parts.interaction import InteractionEncoder
from cskt.training import loop, trainer
from cskt.training import step as training_step
from cskt.training.context import TrainingContext, prepare
from cskt.training.loop import train
from cskt.training.objective import ModelInputs
from cskt.training.state import trainable_state
from tiny_run import Configure, plain_clip

AVERAGED = {"optim.ema_decay": 0.6, "loop.num_epochs": 2, "adapters.init": "normal"}


# --- the moving average of the weights


@pytest.fixture
def weights_of_steps(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Trained weights: at the start, then after every step of the optimiser."""
    seen: list[dict[str, Tensor]] = []

    def prepare_and_watch(*arguments: Any, **options: Any) -> TrainingContext:
        context = prepare(*arguments, **options)

        def note(*_: Any) -> None:
            seen.append({name: value.clone() for name, value in trainable_state(context.state.model).items()})

        note()
        context.state.optimizer.register_step_post_hook(note)
        return context

    monkeypatch.setattr(loop, "prepare", prepare_and_watch)
    return seen


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_evaluated_and_saved_and_training_continues_from_the_weights(
    configure: Configure,
    tmp_path: Path,
    weights_of_steps: list[dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    accumulate: int,
) -> None:
    with_scores(monkeypatch, [0.1, 0.2])
    scored, evaluated = trainer.evaluate, []

    def note_and_score(encoder: Encoder, split: Any, features: Any) -> Evaluation:
        parameters = dict(encoder.model.named_parameters())
        evaluated.append({name: parameters[name].detach().clone() for name in weights_of_steps[0]})
        return scored(encoder, split, features)

    monkeypatch.setattr(trainer, "evaluate", note_and_score)
    folder = train(configure(AVERAGED | {"loop.accumulate_steps": accumulate}), tmp_path / "run").folder

    steps_per_epoch = -(-3 // accumulate)
    expected, average = [], {name: value.double() for name, value in weights_of_steps[0].items()}
    for step, weights in enumerate(weights_of_steps[1:], start=1):
        kept = min(0.6, (1 + step) / (10 + step))
        average = {name: kept * average[name] + (1 - kept) * value.double() for name, value in weights.items()}
        if step % steps_per_epoch == 0:
            expected.append({name: value.float() for name, value in average.items()})
    assert len(expected) == len(evaluated) == 2
    for found, wanted in zip(evaluated, expected, strict=True):
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)

    best, last = read_method(folder / "best.safetensors").tensors, load_plain(folder / "last.pt")
    assert_same_tensors(best, evaluated[1])
    assert_same_tensors(last["average"]["averages"], evaluated[1])
    assert last["average"]["num_updates"] == len(weights_of_steps) - 1
    assert_same_tensors(last["model"], weights_of_steps[-1])
    assert not torch.equal(best["prompts.text.0"], last["model"]["prompts.text.0"])


def test_the_average_changes_no_step(configure: Configure, tmp_path: Path) -> None:
    plain = train(configure({"loop.num_epochs": 2, "adapters.init": "normal"}), tmp_path / "plain").folder
    averaged = train(configure(AVERAGED), tmp_path / "averaged").folder
    assert losses_of(averaged) == losses_of(plain)
    assert load_plain(plain / "last.pt")["average"] is None


# --- several captions of an image


@pytest.fixture
def rows_encoded(contexts: list[TrainingContext], monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Rows that reach each tower in every step of training."""
    rows: dict[str, list[int]] = {"vision": [], "text": []}
    prepare_and_keep = loop.prepare

    def prepare_and_count(*arguments: Any, **options: Any) -> TrainingContext:
        context = prepare_and_keep(*arguments, **options)
        for side, seen in rows.items():

            def note(tower: Any, inputs: Any, hidden: Tensor, seen: list[int] = seen) -> None:
                if torch.is_grad_enabled():
                    seen.append(len(hidden))

            first = {"vision": "vision.ln_post", "text": "text.token_embedding"}[side]
            context.state.model.get_submodule(first).register_forward_hook(note)
        return context

    monkeypatch.setattr(loop, "prepare", prepare_and_count)
    return rows


def test_an_image_is_encoded_once_for_its_captions(
    configure: Configure, tmp_path: Path, contexts: list[TrainingContext], rows_encoded: dict[str, list[int]]
) -> None:
    folder = train(configure({"data.captions_per_image": 2}), tmp_path / "run").folder
    assert rows_encoded == {"vision": [4, 4, 4], "text": [8, 8, 8]}, "12 images with two captions each"
    val = contexts[0].val_split
    loaded = load(folder, device="cpu", batch_size=5, num_workers=0)
    assert_computes_alike(loaded, contexts[0].encoder(), val.image_paths, val.captions)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_sharing_an_image_gives_the_gradients_of_encoding_it_again(
    configure: Configure, tmp_path: Path, contexts: list[TrainingContext], accumulate: int
) -> None:
    changes = {"data.captions_per_image": 2, "loop.accumulate_steps": accumulate, "adapters.init": "normal"}
    config = configure(changes | NO_AUGMENTATION | PLAIN_SGD)
    train(config, tmp_path / "run")
    assert_changed_as_by_hand(contexts[0].state.model, by_hand(config, None), tolerance=1e-3)


@pytest.mark.parametrize("loss", ["itc", "triplet"])
def test_losses_that_take_other_captions_for_wrong_are_refused(configure: Configure, tmp_path: Path, loss: str) -> None:
    config = configure({"data.captions_per_image": 2, "loss.weights": {"sdm": 1.0, loss: 0.5}})
    with pytest.raises(CsktError) as caught:
        train(config, tmp_path / "run")
    message = str(caught.value)
    assert message.startswith(f"data.captions_per_image 2: {loss} takes other pairs of an image for negatives;")
    assert "\n" not in message and not (tmp_path / "run").exists()


def test_every_other_loss_takes_several_captions(configure: Configure, tmp_path: Path) -> None:
    weights = {"sdm": 1.0, "cmpm": 0.1, "tal": 0.1, "id": 1.0, "mlm": 1.0}
    changes = {"data.captions_per_image": 2, "loss.weights": weights, "loss.sdm_other_image": 0.3, "mlm.cmt_depth": 1}
    for event in events_of(train(configure(changes), tmp_path / "run").folder, "step"):
        assert event["losses"].keys() == weights.keys() and all(value > 0 for value in event["losses"].values())


# --- nothing to train


def test_zero_shot_clip_is_evaluated_once_and_kept(
    configure: Configure, tmp_path: Path, contexts: list[TrainingContext]
) -> None:
    config = configure({"loop.evaluate_before": True, "optim.ema_decay": 0.9}, "clip")
    result = train(config, tmp_path / "run")
    plain = Encoder(plain_clip(), Tokenizer(), device=torch.device("cpu"), batch_size=5, num_workers=0)
    val = contexts[0].val_split
    loaded = load(result.folder, device="cpu", batch_size=5, num_workers=0)
    assert_computes_alike(loaded, plain, val.image_paths, val.captions)
    (event,) = events_of(result.folder, "evaluation")
    assert event["t2i"]["r1"] == result.best_r1 == evaluate(plain, val).t2i.r1
    assert events_of(result.folder, "step") == []
    assert read_method(result.folder / "best.safetensors").tensors == {}
    again = train(config, result.folder, resume=True)
    assert (again.best_r1, len(events_of(result.folder, "evaluation"))) == (result.best_r1, 1)


# --- captions masked for guessing, and as augmentation


IRRA = {"mlm.cmt_depth": 1, "optim.lr": 1e-4}


@pytest.mark.parametrize(("masked_for_all", "text_rows"), [(True, [8, 8, 8]), (False, [8] * 6)])
def test_irra_trains_heads_that_only_training_has(
    configure: Configure,
    tmp_path: Path,
    contexts: list[TrainingContext],
    rows_encoded: dict[str, list[int]],
    lengths_seen: list[int],
    masked_for_all: bool,
    text_rows: list[int],
) -> None:
    config = configure(IRRA | {"mlm.masked_for_all": masked_for_all}, "irra")
    folder = train(config, tmp_path / "run").folder
    assert rows_encoded == {"vision": [8, 8, 8], "text": text_rows}, "an image once; two passes for text or one"
    assert lengths_seen == [77, 77, 77], "the interaction encoder sees the whole context, as in the released code"
    kept, last = read_method(folder / "best.safetensors").tensors, load_plain(folder / "last.pt")
    assert kept.keys() == last["model"].keys() == dict(plain_clip().named_parameters()).keys()
    heads = {name.partition(".")[0] for name in last["objective"]}
    assert heads == {"classifier", "interaction"} and "interaction.mlm_head.fc.weight" in last["objective"]
    (start,) = events_of(folder, "start")
    assert start["trainable_parameters"] == sum(value.numel() for value in kept.values())
    for event in events_of(folder, "step"):
        assert event["loss"] == pytest.approx(sum(event["losses"].values()), rel=1e-6)
        assert event["losses"].keys() == {"sdm", "id", "mlm"}
    val = contexts[0].val_split
    loaded = load(folder, device="cpu", batch_size=5, num_workers=0)
    assert_computes_alike(loaded, contexts[0].encoder(), val.image_paths, val.captions)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_irra_in_lower_precision_computes_about_the_same(configure: Configure, tmp_path: Path, precision: str) -> None:
    full = train(configure(IRRA, "irra"), tmp_path / "full").folder
    low = train(configure(IRRA | {"precision": precision}, "irra"), tmp_path / "low").folder
    assert losses_of(low)[0] == pytest.approx(losses_of(full)[0], rel=0.02)
    assert losses_of(low) != losses_of(full)
    saved = load_plain(low / "last.pt")
    for value in [*saved["model"].values(), *saved["objective"].values()]:
        assert value.dtype == torch.float32 and value.isfinite().all()


def test_the_heads_of_irra_learn(configure: Configure, tmp_path: Path, contexts: list[TrainingContext]) -> None:
    train(configure(IRRA, "irra"), tmp_path / "run")
    fresh = prepare(configure(IRRA, "irra")).state.objective.state_dict()
    for name, value in contexts[0].state.objective.state_dict().items():
        assert not torch.equal(value, fresh[name]), name


@pytest.fixture
def lengths_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens per caption that the interaction encoder was given, step by step."""
    lengths = []
    forward = InteractionEncoder.forward

    def watched(self: InteractionEncoder, text_tokens: Tensor, *others: Tensor) -> Tensor:
        lengths.append(text_tokens.shape[1])
        return forward(self, text_tokens, *others)

    monkeypatch.setattr(InteractionEncoder, "forward", watched)
    return lengths


@pytest.fixture
def batches_seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """The images and caption ids that the model is given, step by step."""
    seen: list[tuple[Tensor, Tensor]] = []
    usual = training_step.encode

    def encode_and_note(model: Any, views: ModelInputs, **named: Any) -> Any:
        seen.append((views.images, views.caption_ids))
        return usual(model, views, **named)

    monkeypatch.setattr(training_step, "encode", encode_and_note)
    return seen


@pytest.mark.parametrize("kind", ["mask", "drop"])
def test_changed_captions_leave_the_images_as_they_are(
    configure: Configure, tmp_path: Path, batches_seen: list[tuple[Tensor, Tensor]], kind: str
) -> None:
    plain = train(configure(), tmp_path / "plain").folder
    changed = train(configure({f"augment.caption_{kind}_probability": 0.5}), tmp_path / "changed").folder
    assert len(batches_seen) == 6
    for before, after in zip(batches_seen[:3], batches_seen[3:], strict=True):
        assert torch.equal(after[0], before[0]), "the same crops, flips and erasures"
        lengths, shorter = (ids.argmax(dim=1) for ids in (before[1], after[1]))
        assert (shorter < lengths).any() if kind == "drop" else not torch.equal(after[1], before[1])
    assert losses_of(changed)[0] != losses_of(plain)[0], "from the same start"
