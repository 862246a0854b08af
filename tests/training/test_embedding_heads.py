"""Embedding heads and balance losses of plug-ins: exact in pieces and in several processes, saved, ranked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shared_training import gradients_of_epoch
from test_distributed import BASE, PROGRAM, torchrun
from test_step import gradients_of

from cskt import plugins
from cskt.cli import export, index, search
from cskt.config import load_config, save_config
from cskt.data.datasets import read_dataset
from cskt.embed import Encoder, load
from cskt.errors import CsktError
from cskt.explain import explain
from cskt.losses import LOSSES
from cskt.model.folded import fold_text, fold_vision
from cskt.model.io.native import read_method
from cskt.model.parts import PARTS
from cskt.training.checkpoint import read_last
from cskt.training.context import prepare
from cskt.training.loop import train
from cskt.utils.modules import named_tensors
from tiny_run import Configure, quick_config

PLUGIN = Path(__file__).with_name("plugin_heads.py")
HEADS: dict[str, Any] = {"parts.chosen": {}, "parts.mean_token": {}, "prompts.directions": "none"}
LOSS_WEIGHTS = {"sdm": 1.0, "heads_sdm": 0.5}
EVERYTHING: dict[str, Any] = HEADS | {"parts.experts": {}, "loss.weights": LOSS_WEIGHTS | {"spread": 0.5}}


def forget() -> None:
    for loaded in plugins.loaded_plugins():
        for registry in (PARTS, LOSSES):
            registry.forget(loaded)
    plugins._loaded.clear()


@pytest.fixture(autouse=True)
def _plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(plugins, "_loaded", {})
    plugins.load_plugins([PLUGIN])
    yield
    forget()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param(
            {"loss.weights": LOSS_WEIGHTS | {"spread": 0.5, "mlm": 1.0}, "loop.checkpoint_activations": True},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"data.captions_per_image": 2, "trainable": "all", "loss.temperature": 0.05}, marks=pytest.mark.slow
        ),
    ],
    ids=["plain", "masked-recomputed", "two-captions"],
)
def test_pieces_have_the_gradients_of_the_whole_batch(configure: Configure, changes: dict[str, Any]) -> None:
    context = prepare(configure(EVERYTHING | {"data.batch_size": 8, "adapters.init": "normal"} | changes))
    model, batch = context.state.model, next(iter(context.loader.epoch(0)))
    start = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = []
    for size in (None, 3):
        for name, buffer in model.named_buffers():
            buffer.copy_(start[name])
        gradients, losses = gradients_of(context, batch, size)
        found.append((gradients, losses, {name: buffer.clone() for name, buffer in model.named_buffers()}))
    (whole, whole_losses, after), (pieces, pieces_losses, after_pieces) = found
    assert pieces_losses == pytest.approx(whole_losses, rel=1e-5)
    assert (
        pieces.keys() == whole.keys() and {"parts.chosen.first.text.weight", "parts.mean_token.prompt"} < whole.keys()
    )
    largest = max(float(gradient.norm()) for gradient in whole.values())
    for name, gradient in whole.items():
        assert (pieces[name] - gradient).norm() < 1e-5 * gradient.norm() + 1e-6 * largest, name
    torch.testing.assert_close(after_pieces, after)
    assert after["parts.chosen.norm.text.num_batches_tracked"] == 1
    assert not torch.equal(after["parts.chosen.norm.text.running_var"], start["parts.chosen.norm.text.running_var"])


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_have_the_gradients_of_one(configure: Configure, tmp_path: Path, num_processes: int) -> None:
    changes = BASE | EVERYTHING
    save_config(configure(changes), tmp_path / "config.yaml")
    words = (PROGRAM, "gradients", tmp_path / "config.yaml", tmp_path / "found")
    ran = torchrun(num_processes, *words, **{plugins.ENVIRONMENT: str(PLUGIN)})
    assert ran.returncode == 0, ran.stderr
    context = prepare(configure(changes))
    alone, buffers = gradients_of_epoch(context), dict(context.state.model.named_buffers())
    for rank in range(num_processes):
        for shared, whole in zip(torch.load(tmp_path / f"found.{rank}"), alone, strict=True):
            assert shared["gradients"].keys() == whole["gradients"].keys()
            total = torch.cat([gradient.flatten() for gradient in whole["gradients"].values()]).norm()
            for name, value in whole["losses"].items():
                assert shared["losses"][name].item() == pytest.approx(value.item(), rel=1e-5), name
            for name, gradient in whole["gradients"].items():
                assert (shared["gradients"][name] - gradient).norm() < 1e-5 * total, name
        found = torch.load(tmp_path / f"found.{rank}")[-1]["buffers"]
        torch.testing.assert_close(found, buffers, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def run(dolls: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short training with both heads."""
    plugins.load_plugins([PLUGIN])
    changes = HEADS | {"loss.weights": LOSS_WEIGHTS, "optim.ema_decay": 0.5}
    folder = train(quick_config(dolls, tiny_backbone, "cskt", changes), tmp_path_factory.mktemp("run") / "run").folder
    forget()
    return folder


def features(encoder: Encoder, dolls: Path) -> torch.Tensor:
    split = read_dataset("cuhk-pedes", dolls)["val"]
    return torch.cat([encoder.encode_text(split.captions), encoder.encode_image(split.image_paths)])


def test_the_cosine_is_the_mean_over_all_vectors(run: Path, dolls: Path) -> None:
    encoder = load(run, device="cpu")
    assert encoder.embed_dim == 16 + 6 + 4
    split = read_dataset("cuhk-pedes", dolls)["val"]
    texts, images = encoder.encode_text(split.captions), encoder.encode_image(split.image_paths)
    model, pixels = encoder.model, torch.stack([encoder.read_image(path) for path in split.image_paths])
    heads = list(model.heads.values())
    with torch.no_grad():
        outputs = model.image_outputs(encoder.normalise(pixels)), model.text_outputs(encoder.tokenizer(split.captions))
        of_images, of_texts = (
            [found.features, *(head.embed(side, found.tokens, found.attention, found.mask) for head in heads)]
            for side, found in zip(("vision", "text"), outputs, strict=True)
        )
    cosines = [
        F.cosine_similarity(one[:, None], other[None], dim=2) for one, other in zip(of_texts, of_images, strict=True)
    ]
    assert [one.shape[1] for one in of_texts] == [16, 6, 4]
    torch.testing.assert_close(texts @ images.T, sum(cosines) / 3, rtol=1e-4, atol=1e-5)


def test_captions_of_any_padding_have_one_vector(run: Path) -> None:
    encoder = load(run, device="cpu")
    long = "a woman in a long red coat with white shoes and a small bag over her left shoulder"
    alone = encoder.encode_text("a man")
    torch.testing.assert_close(encoder.encode_text(["a man", long])[0], alone, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_folded_towers_compute_the_same(run: Path) -> None:
    model = load(run, device="cpu").model
    images, ids = torch.randn(2, 3, 32, 16), torch.tensor([[49406, 320, 786, 2533, 49407], [49406, 320, 49407, 0, 0]])
    torch.testing.assert_close(fold_vision(model)(images), model.encode_image(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fold_text(model)(ids), model.encode_text(ids), rtol=1e-5, atol=1e-5)


def test_buffers_are_saved_averaged_and_part_of_the_fingerprint(run: Path, dolls: Path, tmp_path: Path) -> None:
    name = "parts.chosen.norm.vision.running_mean"
    best, (last, _) = read_method(run / "best.safetensors").tensors, read_last(run / "last.pt")
    assert {name, "parts.mean_token.scale", "parts.chosen.norm.text.num_batches_tracked"} < best.keys()
    assert best["parts.chosen.norm.text.num_batches_tracked"].dtype == torch.int64
    assert name in last["model"] and name in last["average"]["averages"]
    assert not torch.equal(best[name], last["model"][name])  # of the average
    encoder = load(run, device="cpu")
    before, expected = encoder.fingerprint, features(encoder, dolls)
    again = load(encoder.save(tmp_path / "copy.safetensors"), device="cpu")
    assert again.fingerprint == before and torch.equal(features(again, dolls), expected)
    encoder = load(run, device="cpu")
    named_tensors(encoder.model)[name].add_(1.0)
    assert encoder.fingerprint != before


def test_heat_maps_are_of_the_whole_vector(run: Path, dolls: Path) -> None:
    encoder = load(run, device="cpu")
    image = read_dataset("cuhk-pedes", dolls)["val"].image_paths[0]
    sentence = "a woman with a red bag"
    found = explain(encoder, image, sentence)
    cosine = encoder.encode_text(sentence) @ encoder.encode_image(image)
    assert found.score == pytest.approx(cosine.item(), abs=1e-5)
    assert found.sentence.shape == encoder.model.architecture.grid


@pytest.mark.slow
def test_the_onnx_export_has_the_whole_vector(run: Path, dolls: Path, tmp_path: Path) -> None:
    expected = features(load(run, device="cpu"), dolls)
    assert export.main([str(run), "--format", "onnx", "--output", str(tmp_path / "onnx")]) == 0
    forget()
    exported = load(tmp_path / "onnx", device="cpu")
    assert exported.embed_dim == 26
    torch.testing.assert_close(features(exported, dolls), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_merged_run_is_indexed_and_searched(
    run: Path, dolls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(run), "--merge", str(tmp_path / "merged.safetensors")]) == 0
    gallery, images = str(tmp_path / "gallery"), str(dolls / "CUHK-PEDES" / "imgs")
    assert index.main([gallery, "--images", images, "--model", str(tmp_path / "merged.safetensors")]) == 0
    assert search.main([gallery, "a woman in a red coat"]) == 0
    assert ".jpg" in capsys.readouterr().out


def test_a_resumed_run_is_the_run_without_a_stop(configure: Configure, tmp_path: Path) -> None:
    config = configure(HEADS | {"loss.weights": LOSS_WEIGHTS, "loop.num_epochs": 2})
    straight = train(config, tmp_path / "straight").folder
    train(dataclasses.replace(config, loop=dataclasses.replace(config.loop, stop_after_epochs=1)), tmp_path / "resumed")
    resumed = tmp_path / "resumed"
    train(load_config(resumed / "config.yaml", {"loop.stop_after_epochs": None}), resumed, resume=True)
    one, other = (read_last(folder / "last.pt")[0]["model"] for folder in (straight, resumed))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_new_run_starts_from_its_buffers(run: Path, configure: Configure, tmp_path: Path) -> None:
    changes = HEADS | {"loss.weights": LOSS_WEIGHTS, "init_from": str(run), "trainable": "added", "optim.lr": 1e-9}
    again = train(configure(changes), tmp_path / "again").folder
    name = "parts.chosen.norm.text.num_batches_tracked"
    before, after = (read_method(folder / "best.safetensors").tensors[name] for folder in (run, again))
    assert after > before


def test_a_loss_without_its_head_is_refused(configure: Configure, tmp_path: Path) -> None:
    class Needy(LOSSES["heads_sdm"]):  # type: ignore[misc]
        def forward(self, inputs: Any) -> Any:
            return super().forward(inputs.of_head("chosn"))

    with pytest.raises(
        CsktError, match="needs an embedding head of the method part 'chosn'; heads of this run: chosen"
    ):
        context = prepare(configure(HEADS | {"loss.weights": LOSS_WEIGHTS}))
        context.state.objective.losses["heads_sdm"] = Needy()
        gradients_of(context, next(iter(context.loader.epoch(0))), None)


@pytest.mark.parametrize(
    ("change", "returned"),
    [
        (lambda found: found[1:], r"shape \[\d+, \d+\] of torch.float32"),
        (lambda found: found[:, 1:], r"shape \[\d+, \d+\] of torch.float32"),
        (lambda found: (found, found), "tuple"),
    ],
)
def test_an_embedding_of_another_shape_is_refused(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any], returned: str
) -> None:
    context = prepare(configure(HEADS | {"loss.weights": LOSS_WEIGHTS}))
    kind = type(context.state.model.parts["mean_token"])
    embed = kind.embed
    monkeypatch.setattr(kind, "embed", lambda self, *args: change(embed(self, *args)))
    with pytest.raises(CsktError, match=rf"'mean_token': embed returned {returned}; expected floats of shape \[B, "):
        gradients_of(context, next(iter(context.loader.epoch(0))), None)


def test_a_buffer_that_a_tower_changes_is_refused(configure: Configure) -> None:
    context = prepare(configure(HEADS | {"loss.weights": LOSS_WEIGHTS}))
    part = context.state.model.parts["mean_token"]
    part.register_buffer("count", torch.zeros(1))
    embed = type(part).embed

    def counting(self: Any, *args: Any) -> torch.Tensor:
        self.count.add_(1.0)
        return embed(self, *args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(CsktError, match="the buffer 'count' changed in a step"):
        patch.setattr(type(part), "embed", counting)
        gradients_of(context, next(iter(context.loader.epoch(0))), None)
