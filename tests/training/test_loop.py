"""`train` as a whole: its numbers, what it changes and leaves alone, which epoch it keeps, and bad steps."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from make_golden_run import GOLDEN, RECIPES, golden_run
from torch import Tensor, nn

from cskt import losses
from cskt.config import RunConfig
from cskt.data.datasets import read_dataset
from cskt.data.images import ImageReader, normalise
from cskt.data.paperdoll import make_dataset
from cskt.data.records import select_splits
from cskt.data.tokenizer import Tokenizer
from cskt.embed import Encoder, load
from cskt.errors import CsktError
from cskt.evaluation.evaluate import Evaluation, evaluate
from cskt.model.io.native import read_method
from cskt.model.io.tensors import load_plain
from cskt.training import trainer
from cskt.training.context import TrainingContext, prepare
from cskt.training.events import read_events
from cskt.training.loop import train
from cskt.training.state import trainable_state
from tiny_run import HEIGHT, WIDTH, Configure, plain_clip, quick_config

NO_AUGMENTATION = {"augment.flip_probability": 0, "augment.pad_pixels": 0, "augment.erase_probability": 0}
PLAIN_SGD = {"optim.name": "sgd", "optim.momentum": 0, "optim.weight_decay": 0, "optim.lr": 0.05}


def events_of(folder: Path, event: str) -> list[dict[str, Any]]:
    return [entry for entry in read_events(folder) if entry["event"] == event]


def losses_of(folder: Path) -> list[float]:
    return [entry["loss"] for entry in events_of(folder, "step")]


def assert_same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# --- the numbers


@pytest.mark.parametrize("recipe", RECIPES)
def test_golden_run(recipe: str, tmp_path: Path) -> None:
    golden, found = json.loads(GOLDEN.read_text())[recipe], golden_run(recipe, tmp_path)
    assert len(golden["losses"]) == 3
    # On one machine the figures come out to the last digit; the kernels of another CPU move them by up to 3e-6.
    assert found["norm"] == pytest.approx(golden["norm"], rel=1e-6)
    for step, expected in zip(found["losses"], golden["losses"], strict=True):
        assert step == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_the_weighted_sum_of_its_parts(configure: Configure, tmp_path: Path) -> None:
    folder = train(configure({"loss.weights": {"sdm": 1.0, "itc": 0.25, "triplet": 0.0}}), tmp_path / "run").folder
    for event in events_of(folder, "step"):
        assert event["losses"].keys() == {"sdm", "itc", "triplet"}, "weight 0 is watched"
        assert event["loss"] == pytest.approx(event["losses"]["sdm"] + 0.25 * event["losses"]["itc"])


def test_rates_follow_the_schedule_and_steps_are_logged_as_asked(configure: Configure, tmp_path: Path) -> None:
    changes = {"loop.num_epochs": 3, "loop.log_period_steps": 2, "optim.lr": 1e-3, "optim.warmup_epochs": 2}
    steps = events_of(train(configure(changes), tmp_path / "run").folder, "step")
    # 24 pairs in batches of 8 are three steps an epoch: every second one is logged, and the last of each epoch.
    assert [event["step"] for event in steps] == [2, 3, 4, 6, 8, 9]
    assert {event["epoch"]: event["lr"] for event in steps} == pytest.approx({1: 1e-4, 2: 5.5e-4, 3: 1e-3})
    assert [event["seconds"] for event in steps] == sorted(event["seconds"] for event in steps)


def test_a_checkpoint_between_two_logged_steps_counts_the_time_until_then(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, saved = itertools.count(), []
    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    monkeypatch.setattr(trainer, "save_last", lambda _, state, __: saved.append(state.progress.seconds))
    changes = {"loop.num_epochs": 1, "loop.log_period_steps": 100, "loop.save_period_steps": 1}
    folder = train(configure(changes), tmp_path / "run").folder
    (logged,) = events_of(folder, "step")
    first, *within = saved[:4]  # before training, and after each of the three steps
    assert first < within[0] < within[1] < within[2] == logged["seconds"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_computes_about_the_same(
    configure: Configure, tmp_path: Path, contexts: list[TrainingContext], precision: str
) -> None:
    full = losses_of(train(configure(), tmp_path / "full").folder)
    low = losses_of(train(configure({"precision": precision}), tmp_path / "low").folder)
    assert low != full
    assert low[0] == pytest.approx(full[0], rel=0.05), "the same batch from the same start"
    assert contexts[1].state.scaler.is_enabled() == (precision == "fp16")
    assert {value.dtype for value in trainable_state(contexts[1].state.model).values()} == {torch.float32}
    assert all(torch.isfinite(value).all() for value in trainable_state(contexts[1].state.model).values())


def test_recomputed_activations_change_no_loss(
    configure: Configure, tmp_path: Path, contexts: list[TrainingContext]
) -> None:
    plain = train(configure(), tmp_path / "plain").folder
    recomputed = train(configure({"loop.checkpoint_activations": True}), tmp_path / "recomputed").folder
    assert contexts[1].state.model.vision.checkpoint_activations and contexts[1].state.model.text.checkpoint_activations
    assert losses_of(recomputed) == losses_of(plain)


class ByHand(NamedTuple):
    before: dict[str, Tensor]
    after: dict[str, Tensor]


def by_hand(config: RunConfig, clip_norm: float | None) -> ByHand:
    """Return the trainable tensors before and after an epoch of plain SGD, computed by autograd batch by batch."""
    context = prepare(config)
    model, group = context.state.model, config.loop.accumulate_steps
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    batches = list(context.loader.epoch(0))
    for start in range(0, len(batches), group):
        members = batches[start : start + group]
        gradients = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
        for batch in members:
            captions_per_image = len(batch.caption_ids) // len(batch.images)
            images = normalise(batch.images).repeat_interleave(captions_per_image, dim=0)  # each encoded over again
            image_features, text_features = model(images, batch.caption_ids)
            loss = losses.sdm(image_features, text_features, batch.pids)
            for name, gradient in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
                gradients[name] += gradient / len(members)
        norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
        share = 1.0 if clip_norm is None else min(1.0, clip_norm / float(norm))
        assert clip_norm is None or share < 1, "a clip that bites"
        with torch.no_grad():
            for name, parameter in named.items():
                rate = config.optim.lr * (config.optim.bias_lr_factor if "bias" in name else 1.0)
                parameter.sub_(rate * share * gradients[name])
    return ByHand(before, {name: parameter.detach() for name, parameter in named.items()})


def assert_changed_as_by_hand(model: nn.Module, expected: ByHand, tolerance: float) -> None:
    """Each trainable tensor moved by what was computed by hand, up to a share of that change."""
    for name, found in trainable_state(model).items():
        change = (expected.after[name] - expected.before[name]).norm()
        assert change > 0, name
        assert (found - expected.after[name]).norm() < tolerance * change, name


@pytest.mark.parametrize(("accumulate", "clip_norm"), [(1, None), (2, None), (3, None), (2, 0.5)])
def test_accumulated_gradients_are_averaged_and_clipped(
    configure: Configure, tmp_path: Path, contexts: list[TrainingContext], accumulate: int, clip_norm: float | None
) -> None:
    # Three batches: in groups of two the last group has one batch only, and counts as much as a whole one.
    changes = {"loop.accumulate_steps": accumulate, "optim.clip_grad_norm": clip_norm, "adapters.init": "normal"}
    config = configure(changes | NO_AUGMENTATION | PLAIN_SGD)
    train(config, tmp_path / "run")
    assert_changed_as_by_hand(contexts[0].state.model, by_hand(config, clip_norm), tolerance=1e-3)


def test_in_fp16_the_gradients_are_clipped_and_not_the_scaled_ones(
    configure: Configure, tmp_path: Path, contexts: list[TrainingContext]
) -> None:
    changes = {"optim.clip_grad_norm": 0.5, "adapters.init": "normal", "precision": "fp16"}
    config = configure(changes | NO_AUGMENTATION | PLAIN_SGD)
    train(config, tmp_path / "run")
    # fp16 tips a ReLU or two over; gradients that are still scaled would be 64 times too large.
    assert_changed_as_by_hand(contexts[0].state.model, by_hand(config, clip_norm=0.5), tolerance=0.2)


# --- what trains, what stays, what is written


def test_the_backbone_is_unchanged_and_everything_else_changes(
    configure: Configure, tmp_path: Path, contexts: list[TrainingContext]
) -> None:
    config = configure({"loop.num_epochs": 2, "adapters.init": "normal"})
    before = {name: value.detach().clone() for name, value in prepare(config).state.model.named_parameters()}
    train(config, tmp_path / "run")
    frozen = {f"{name}" for name, _ in plain_clip().named_parameters()}
    for name, value in contexts[0].state.model.named_parameters():
        assert torch.equal(value, before[name]) == (name in frozen), name


def test_weight_files_contain_the_trained_tensors_of_inference(
    configure: Configure, tmp_path: Path, contexts: list[TrainingContext]
) -> None:
    result = train(configure({"loss.weights": {"sdm": 1.0, "id": 1.0}}), tmp_path / "run")
    file, context = read_method(result.folder / "best.safetensors"), contexts[0]
    assert file.tensors.keys() == set(context.state.model.trainable_names())
    assert all(name.startswith(("prompts.", "adapters.")) for name in file.tensors), "no tower, no classifier"
    assert file.architecture is None
    assert file.backbone_sha256 == context.state.backbone_sha256 != ""
    assert file.facts == {"epoch": "1", "selected_on": "val", "selection_r1": f"{result.best_r1:.6f}"}
    assert {"classifier.weight", "classifier.bias"} == load_plain(result.folder / "last.pt")["objective"].keys()


def assert_computes_alike(encoder: Encoder, trained: Encoder, paths: list[Path], captions: list[str]) -> None:
    assert torch.equal(encoder.encode_image(paths), trained.encode_image(paths))
    assert torch.equal(encoder.encode_text(captions), trained.encode_text(captions))


@pytest.mark.parametrize("trainable", ["added", "projections"])
def test_a_loaded_run_computes_what_the_trained_model_does(
    configure: Configure, tmp_path: Path, contexts: list[TrainingContext], trainable: str
) -> None:
    folder = train(configure({"trainable": trainable}), tmp_path / "run").folder
    context = contexts[0]
    encoder = load(folder, device="cpu", batch_size=5, num_workers=0)
    val = context.val_split
    assert_computes_alike(encoder, context.encoder(), val.image_paths, val.captions)
    bare = context.encoder(bare=True).encode_text(val.captions)
    assert not torch.allclose(encoder.encode_text(val.captions), bare, atol=1e-3), "training made a difference"


@pytest.mark.parametrize("recipe", ["finetune", "cskt"])
def test_a_wholly_trained_run_needs_no_backbone_file(
    dolls: Path, tiny_backbone: Path, tmp_path: Path, contexts: list[TrainingContext], recipe: str
) -> None:
    passing = tmp_path / "passing.safetensors"
    passing.write_bytes(tiny_backbone.read_bytes())
    folder = train(
        quick_config(dolls, passing, recipe, {"trainable": "all", "optim.lr": 1e-3}), tmp_path / "run"
    ).folder
    passing.unlink()
    val = contexts[0].val_split
    encoder = load(folder, device="cpu", batch_size=5, num_workers=0)
    assert_computes_alike(encoder, contexts[0].encoder(), val.image_paths, val.captions)


def test_a_run_over_random_weights_saves_them(
    configure: Configure, tmp_path: Path, contexts: list[TrainingContext]
) -> None:
    """No file holds them, so a run that trained next to nothing is whole all the same."""
    architecture = {"embed_dim": 8, "image_height": HEIGHT, "image_width": WIDTH, "patch_size": 8, "stride": 8}
    towers = {"vision_width": 16, "vision_layers": 2, "vision_heads": 1} | {
        "text_width": 16, "text_layers": 2, "text_heads": 1
    }  # fmt: skip
    folder = train(configure({"backbone.architecture": architecture | towers}), tmp_path / "run").folder
    assert contexts[0].backbone_name == "random"
    val = contexts[0].val_split
    encoder = load(folder, device="cpu", batch_size=5, num_workers=0)
    assert_computes_alike(encoder, contexts[0].encoder(), val.image_paths, val.captions)


def test_a_folder_that_holds_a_run_is_not_overwritten(configure: Configure, tmp_path: Path) -> None:
    folder = train(configure(), tmp_path / "run").folder
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(CsktError, match=r"run: already holds a run; resume it \(--resume .*run\) or name another"):
        train(configure({"seed": 2}), folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_start_that_failed_can_be_repeated(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure({"loop.evaluate_before": True})

    def failing(*_: object) -> None:
        raise CsktError("a.jpg: no such file")

    with monkeypatch.context() as patch, pytest.raises(CsktError, match="no such file"):
        patch.setattr(trainer, "_encode_split", failing)
        train(config, tmp_path / "run")
    with pytest.raises(CsktError, match=r"no such file; nothing to resume, start the run again with --output"):
        train(config, tmp_path / "run", resume=True)
    folder = train(config, tmp_path / "run").folder
    assert len(events_of(folder, "start")) == 1


# --- which epoch is kept, and on whose word


def with_scores(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """Let the evaluations of a training come out with these R1s, one after the other."""
    coming = iter(scores)

    def scored(encoder: Encoder, split: Any, features: Any) -> Evaluation:
        result = evaluate(encoder, split, features)
        return replace(result, t2i=replace(result.t2i, r1=next(coming)))

    monkeypatch.setattr(trainer, "evaluate", scored)


def test_the_best_epoch_is_saved_and_of_equal_ones_the_first(
    configure: Configure, tmp_path: Path, contexts: list[TrainingContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, Tensor]] = []
    last = trainer.save_last

    def save_and_remember(*arguments: Any) -> None:
        last(*arguments)
        states.append({name: value.clone() for name, value in trainable_state(contexts[0].state.model).items()})

    monkeypatch.setattr(trainer, "save_last", save_and_remember)
    with_scores(monkeypatch, [0.2, 0.5, 0.5, 0.1])
    result = train(configure({"loop.num_epochs": 4}), tmp_path / "run")
    assert (result.best_r1, result.best_epoch) == (0.5, 2)
    file = read_method(result.folder / "best.safetensors")
    assert_same_tensors(file.tensors, states[4])  # one from before training, two of each epoch
    assert file.facts["epoch"] == "2"
    assert_same_tensors(load_plain(result.folder / "last.pt")["model"], states[-1])
    (end,) = events_of(result.folder, "end")
    assert (end["best_r1"], end["best_epoch"], end["step"]) == (0.5, 2, 12)


def test_evaluations_follow_the_period_and_include_the_last_epoch(configure: Configure, tmp_path: Path) -> None:
    folder = train(configure({"loop.num_epochs": 5, "loop.eval_period_epochs": 2}), tmp_path / "run").folder
    assert [event["epoch"] for event in events_of(folder, "evaluation")] == [2, 4, 5]


def test_zero_shot_and_step_0_are_two_figures(
    configure: Configure, tmp_path: Path, contexts: list[TrainingContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zero-shot is CLIP without prompts and adapters; step 0 has them, still random in this recipe."""
    encoders: list[tuple[Tensor, Tensor]] = []

    def keeping(encoder: Encoder, split: Any, features: Any) -> Evaluation:
        encoders.append((encoder.encode_image(split.image_paths), encoder.encode_text(split.captions)))
        return evaluate(encoder, split, features)

    monkeypatch.setattr(trainer, "evaluate", keeping)
    folder = train(configure({"loop.evaluate_before": True}, "cskt-reference"), tmp_path / "run").folder
    assert [event["stage"] for event in events_of(folder, "evaluation")] == ["zero-shot", "step-0", "epoch"]
    plain = Encoder(plain_clip(), Tokenizer(), device=torch.device("cpu"), batch_size=5, num_workers=0)
    val = contexts[0].val_split
    zero_shot, step_0 = encoders[0], encoders[1]
    assert contexts[0].encoder().tokenizer.context_length == 77 - 2 * 2, "prompts take their share of a caption"
    assert contexts[0].encoder(bare=True).tokenizer.context_length == 77
    for found, other, expected in zip(
        zero_shot, step_0, (plain.encode_image(val.image_paths), plain.encode_text(val.captions)), strict=True
    ):
        assert torch.equal(found, expected)
        assert not torch.allclose(other, expected, atol=1e-3)


@pytest.fixture
def images_read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the images that are decoded from now on."""
    seen: set[str] = set()
    read = ImageReader.read

    def read_and_note(reader: ImageReader, source: Path) -> Tensor:
        seen.add(source.name)
        return read(reader, source)

    monkeypatch.setattr(ImageReader, "read", read_and_note)
    return seen


def test_training_never_opens_a_test_image(tiny_backbone: Path, tmp_path: Path, images_read: set[str]) -> None:
    make_dataset(tmp_path, ids={"train": 6, "val": 3, "test": 3}, images_per_id=2, seed=2)
    splits = read_dataset("cuhk-pedes", tmp_path)
    for path in splits["test"].image_paths:
        path.unlink()
    folder = train(
        quick_config(tmp_path, tiny_backbone, changes={"loop.evaluate_before": True}), tmp_path / "run"
    ).folder
    assert images_read == {path.name for name in ("train", "val") for path in splits[name].image_paths}
    assert {event["split"] for event in events_of(folder, "evaluation")} == {"val"}


def test_selection_on_test_must_be_configured_and_is_marked(
    configure: Configure, tmp_path: Path, images_read: set[str]
) -> None:
    config = configure({"data.select_on": "test"})
    folder = train(config, tmp_path / "run").folder
    splits = read_dataset("cuhk-pedes", Path(config.data.root))
    assert images_read == {path.name for name in ("train", "test") for path in splits[name].image_paths}
    assert {event["split"] for event in events_of(folder, "evaluation")} == {"test"}
    assert read_method(folder / "best.safetensors").facts["selected_on"] == "test"
    assert "val_dataset: test" in (folder / "configs.yaml").read_text()


def test_without_a_val_split_identities_are_held_out(
    tiny_backbone: Path, tmp_path: Path, contexts: list[TrainingContext], images_read: set[str]
) -> None:
    make_dataset(tmp_path, layout="icfg-pedes", ids={"train": 8, "test": 2}, images_per_id=2, seed=3)
    changes = {"data.dataset": "icfg-pedes", "data.holdout_fraction": 0.25, "data.batch_size": 4}
    config = quick_config(tmp_path, tiny_backbone, changes=changes)
    folder = train(config, tmp_path / "run").folder
    dataset = read_dataset("icfg-pedes", tmp_path)
    kept, held_out = select_splits(dataset, config.data)
    assert (kept.num_ids, held_out.num_ids) == (6, 2)
    assert not set(kept.image_pids) & set(held_out.image_pids)
    assert contexts[0].loader.num_identities == 6 and contexts[0].loader.num_pairs == len(kept.captions)
    assert contexts[0].val_split == held_out
    assert images_read == {path.name for path in dataset["train"].image_paths}
    assert events_of(folder, "start")[0]["train_identities"] == 6
    assert events_of(folder, "evaluation")[0]["split"] == "val"


# --- steps that go wrong


def diverging(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate that blows up at the start of the second epoch."""
    usual = trainer.learning_rate
    monkeypatch.setattr(
        trainer, "learning_rate", lambda epoch, *rest, **place: math.inf if epoch else usual(epoch, *rest, **place)
    )


@pytest.mark.parametrize(
    ("save_period", "message"),
    [
        (0, r"^loss is nan at epoch 2, step 2; .*run keeps the last good checkpoint\. Lower optim\.lr"),
        # The loss of step 1 is still sound; what it made of the weights is not, and must not be saved.
        (1, r"last\.pt: not written, '.*' holds NaN or infinity after step 4; .*Lower optim\.lr"),
    ],
)
def test_divergence_stops_and_keeps_the_last_good_checkpoint(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_period: int, message: str
) -> None:
    config = configure({"loop.num_epochs": 2, "loop.save_period_steps": save_period})
    files: dict[str, bytes] = {}
    last = trainer.save_last

    def save_and_remember(*arguments: Any) -> None:
        last(*arguments)
        files.update(
            {
                path.name: path.read_bytes()
                for path in (tmp_path / "run").iterdir()
                if path.suffix != ".jsonl" and path.is_file()
            }
        )

    monkeypatch.setattr(trainer, "save_last", save_and_remember)
    diverging(monkeypatch)
    with pytest.raises(CsktError, match=message) as caught:
        train(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert {"last.pt", "best.safetensors", "config.yaml"} <= files.keys()
    assert {name: (tmp_path / "run" / name).read_bytes() for name in files} == files
    monkeypatch.undo()
    assert train(config, tmp_path / "run", resume=True).best_epoch in (1, 2), "and continues with a lower rate"


def test_a_full_disk_ends_in_one_line_and_loses_nothing(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure({"loop.num_epochs": 2})
    write, count = torch.save, []

    def full_at_the_fourth(content: Any, path: Path) -> None:
        count.append(path)
        write(content, path)
        if len(count) == 4:  # before training, twice in epoch 1, before the evaluation of epoch 2
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(torch, "save", full_at_the_fourth)
    with pytest.raises(CsktError, match=r"last\.pt: cannot be written: .*No space left on device") as caught:
        train(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert load_plain(tmp_path / "run" / "last.pt")["progress"]["epoch"] == 1
    assert not list((tmp_path / "run").glob(".*.tmp"))
