"""Released folders of every method that is described, for tiny towers: what is read from them, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import cskt
from cskt.config import BackboneConfig, ClipArchitecture, load_config
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.released import methods
from cskt.model.io.released.methods import METHODS, ReleasedMethod, released_name, unused_shapes
from cskt.model.io.released.reader import INCOMPLETE, read_released, read_released_config
from cskt.model.io.weights import load_backbone
from cskt.model.parts import PARTS, Part, PartExtras, part_config, register
from cskt.utils.modules import named_tensors
from pickled_trap import Trap

TOWERS = ClipArchitecture(
    embed_dim=8, image_height=48, image_width=16, patch_size=8, stride=8, vision_width=64, vision_layers=2,
    vision_heads=1, text_width=64, text_layers=2, text_heads=1, context_length=77, vocab_size=40,
)  # fmt: skip
SQUARE = ClipArchitecture(**{**TOWERS.__dict__, "image_height": 16})
SETTINGS: dict[str, dict[str, Any]] = {
    "irra": {},
    "rde": {"tse": {"ratio": 0.3, "width": 6}},
    "up_person": {"up_person": {"prefix_length": 3, "rank": 2, "depth_prefix": 1, "depth_lora": 2, "depth_adapter": 1}},
    "dm_adapter": {"dm_adapter": {"num_experts": 3, "topk": 1, "reduction": 4}},
    "tbps_clip": {},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "irra": {"MLM": True, "loss_names": "sdm+id+mlm"},
    "rde": {"loss_names": "TRL+sr0.3_n0.2", "select_ratio": 0.3, "tau": 0.02, "margin": 0.2, "txt_aug": False},
    "up_person": {
        "loss_names": "sdm", "MLM": True, "n_ctx": 4, "depth": 12,
        **{key: SETTINGS["up_person"]["up_person"][key] for key in ("prefix_length", "rank")},
    },
    "dm_adapter": {"loss_names": "sdm+aux", "MLM": True, "num_experts": 3, "topk": 1, "reduction": 4},
}  # fmt: skip
HEADS = {"fusion.attn.in_proj_weight": (24, 8), "fusion.attn.in_proj_bias": (24,), "grab.fc.weight": (16, 8)}


def model_of(method: str) -> DualEncoder:
    """Return a model of a method with drawn weights."""
    architecture = SQUARE if method == "tbps_clip" else TOWERS
    model = DualEncoder(architecture, load_config("clip", {"parts": SETTINGS[method]}, fit=False).method)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in named_tensors(model).values():
            if tensor.is_floating_point():
                tensor.copy_(0.1 * torch.rand(tensor.shape, generator=generator))
    return model


def tensors_of(method: str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, with those that its code never uses."""
    model = model_of(method)
    tensors = {METHODS[method].name(name): value.detach() for name, value in named_tensors(model).items()}
    return tensors | {name: torch.zeros(shape) for name, shape in METHODS[method].unused(model.architecture).items()}


def write(folder: Path, method: str, tensors: Mapping[str, Any], **options: Any) -> Path:
    """Write a released folder; options are laid over those of the method."""
    folder.mkdir(exist_ok=True)
    if method == "tbps_clip":
        torch.save({"model": tensors}, folder / "checkpoint_best.pth")
        return folder
    common = {"img_size": [48, 16], "stride_size": 8, "dataset_name": "RSTPReid", "root_dir": "/nowhere"}
    (folder / "configs.yaml").write_text(yaml.safe_dump(common | OPTIONS[method] | options))
    torch.save({"model": tensors, "epoch": 7}, folder / "best.pth")
    return folder


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        read_released(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("method", SETTINGS)
def test_every_method_comes_back(tmp_path: Path, method: str) -> None:
    folder = write(tmp_path / "run", method, tensors_of(method))
    released, expected = read_released(folder), named_tensors(model_of(method))
    assert released.state.keys() == expected.keys(), "without unused tensors"
    assert all(torch.equal(value, expected[name]) for name, value in released.state.items())
    for part, settings in SETTINGS[method].items():
        assert released.config.parts[part].items() >= settings.items()
    assert read_released_config(folder).loss.weights == released.config.loss.weights


def test_rde_has_its_own_words_for_losses(tmp_path: Path) -> None:
    config = read_released(write(tmp_path / "run", "rde", tensors_of("rde"))).config
    assert config.loss.weights == {"trl": 1.0, "tse_trl": 1.0}
    assert (config.loss.tal_temperature, config.loss.tal_margin) == (0.02, 0.2)
    assert config.augment.caption_change_probability == 0


@pytest.mark.parametrize("count", [0, 5])
def test_counted_batches_tell_whether_rde_left_evaluation_mode(tmp_path: Path, count: int) -> None:
    tensors = tensors_of("rde")
    tensors |= {name: torch.tensor(count) for name in tensors if name.endswith("bns.0.num_batches_tracked")}
    config = read_released(write(tmp_path / "run", "rde", tensors)).config
    assert config.parts["tse"]["train_mode_after_division"] == (count > 0)


@pytest.mark.parametrize(
    ("mlp", "recipe", "num_losses"), [("simclr_mlp.0.weight", "tbps-clip", 4), ("", "tbps-clip-simple", 2)]
)
def test_the_simplified_recipe_of_tbps_clip_has_no_mlp(tmp_path: Path, mlp: str, recipe: str, num_losses: int) -> None:
    tensors = {f"module.{name}": value for name, value in tensors_of("tbps_clip").items()}
    folder = write(tmp_path / "run", "tbps_clip", tensors | ({f"module.{mlp}": torch.zeros(2, 8)} if mlp else {}))
    for place in (folder, folder / "checkpoint_best.pth"):
        for config in (read_released(place).config, read_released_config(place)):
            assert (config.name, len(config.loss.weights)) == (recipe, num_losses)


def test_heads_of_other_losses_of_tbps_clip_are_left_out(tmp_path: Path) -> None:
    heads = {"classifier.weight": torch.zeros(3, 8), "mlm_head.fc.weight": torch.zeros(40, 8)}
    released = read_released(write(tmp_path / "run", "tbps_clip", tensors_of("tbps_clip") | heads))
    assert released.state.keys() == named_tensors(model_of("tbps_clip")).keys()


def test_either_file_of_a_folder_can_be_named(tmp_path: Path) -> None:
    best = tensors_of("irra")
    folder = write(tmp_path / "run", "irra", best)
    torch.save({"model": {name: value + 1 for name, value in best.items()}}, folder / "last.pth")
    start = best["base_model.ln_final.bias"]
    for path, expected in ((folder, start), (folder / "best.pth", start), (folder / "last.pth", start + 1)):
        assert torch.equal(read_released(path).state["text.ln_final.bias"], expected)
        assert read_released_config(path).data.dataset == "rstpreid"


@pytest.mark.parametrize("stored", ["twice", "second"])
def test_prefixes_of_up_person_have_two_names(tmp_path: Path, stored: str) -> None:
    tensors = tensors_of("up_person")
    first = {name: value for name, value in tensors.items() if "prefix_learner" in name}
    second = {
        name.replace("vit_prefix_learner.vit_prefix.0.", "base_model.visual.transformer.resblocks.0.attn.prefix.")
        .replace("text_prefix_learner.text_prefix.0.", "base_model.transformer.resblocks.0.attn.prefix."): value
        for name, value in first.items()
    }  # fmt: skip
    assert len(second) == 10 and not second.keys() & first.keys()
    kept = tensors if stored == "twice" else {name: v for name, v in tensors.items() if name not in first}
    released = read_released(write(tmp_path / "run", "up_person", kept | second))
    expected = named_tensors(model_of("up_person"))
    assert all(torch.equal(value, expected[name]) for name, value in released.state.items())
    if stored == "twice":
        name = min(second)
        line = refused(write(tmp_path / "run", "up_person", tensors | second | {name: second[name] + 1}))
        assert f"'{name}'" in line and "their values differ" in line


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("up_person", {"prefix_length": 10}, "prefix_length 10 contradicts best.pth, which has 3"),
        ("up_person", {"rank": 32}, "rank 32 contradicts best.pth, which has 2"),
        ("up_person", {"depth_adapter": 0}, "depth_adapter 0 contradicts best.pth, which has 1"),
        ("up_person", {"depth_prefix": [1]}, "depth_prefix [1] contradicts"),
        ("dm_adapter", {"num_experts": 6}, "num_experts 6 contradicts best.pth, which has 3"),
        ("dm_adapter", {"topk": 4}, "topk 4 is above num_experts 3"),
        ("dm_adapter", {"topk": "two"}, "topk"),
        ("dm_adapter", {"depth": 12}, "depth 12 contradicts best.pth, which holds no prompts"),
        ("rde", {"select_ratio": 0}, "ratio"),
        ("rde", {"select_ratio": 0.001}, "select"),
        ("rde", {"tau": "small"}, "tal_temperature"),
        ("rde", {"img_size": [48, 48]}, "12 patch positions do not fit"),
    ],
)
def test_options_must_fit_the_tensors(tmp_path: Path, method: str, options: dict[str, Any], message: str) -> None:
    line = refused(write(tmp_path / "run", method, tensors_of(method), **options))
    assert message in line and line.startswith(f"{tmp_path / 'run'}{os.sep}"), "the file is named"


@pytest.mark.parametrize(
    ("method", "name", "change", "message"),
    [
        ("rde", "visul_emb_layer.fc.weight", None, "not a checkpoint of RDE: no matrix"),
        ("rde", "texual_emb_layer.mlp.bns.0.running_var", None, "is missing"),
        ("rde", "texual_emb_layer.mlp.bns.0.num_batches_tracked", None, "is missing"),
        ("rde", "texual_emb_layer.mlp.bns.0.num_batches_tracked", torch.tensor(0.5), "is torch.float32"),
        ("rde", "visul_emb_layer.mlp.layers.0.weight", torch.zeros(2, 2), "has shape [2, 2]"),
        ("up_person", "LORA_learner.lora_text.1.lora_B.1", None, "is missing"),
        ("up_person", "vit_prefix_learner.vit_prefix.0.scale_to_grad", torch.tensor(float("inf")), "holds NaN or inf"),
        ("dm_adapter", "base_model.transformer.resblocks.1.feed_forward.experts.2.up.bias", None, "is missing"),
        ("dm_adapter", "base_model.visual.transformer.resblocks.0.feed_forward.input_gate.weight", None, "no matrix"),
        ("tbps_clip", "encode_text.ln_final.weight", None, "is missing"),
        ("tbps_clip", "visual.positional_embedding", torch.zeros(4, 64), "3 patch positions make no square grid"),
        ("tbps_clip", "visual.conv1.weight", torch.zeros(4, 64), "expected 4 dimensions"),
    ],
)
def test_wrong_tensor_is_named(tmp_path: Path, method: str, name: str, change: Tensor | None, message: str) -> None:
    tensors = tensors_of(method)
    del tensors[name]
    line = refused(write(tmp_path / "run", method, tensors if change is None else {**tensors, name: change}))
    assert message in line and (f"'{name}'" in line or "square" in line)


def test_weights_of_no_method_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", "irra", {"encoder.weight": torch.zeros(2)})
    assert "not a checkpoint of a known method; found tensors such as 'encoder.weight'" in refused(folder)
    torch.save([1, 2], folder / "best.pth")
    assert "no named tensors" in refused(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "an empty file"), (b"<html>", "a web page"), (b"version https://git-lfs", "a Git LFS pointer")],
)
@pytest.mark.parametrize("method", ["rde", "tbps_clip"])
def test_files_that_are_no_weights_are_named(tmp_path: Path, method: str, content: bytes, message: str) -> None:
    folder = write(tmp_path / "run", method, {})
    next(folder.glob("*.pth")).write_bytes(content)
    assert message in refused(folder)
    if method == "tbps_clip":
        with pytest.raises(ValueError, match=message):
            read_released_config(folder)


class EasyDict(dict[str, Any]):
    """Pickled under the name of the class of a package that is not installed."""


EasyDict.__module__ = "easydict"


def test_pickled_config_of_tbps_clip_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = type(os)("easydict")
    package.EasyDict = EasyDict  # type: ignore[attr-defined]
    folder = write(tmp_path / "run", "tbps_clip", {})
    config = EasyDict(device="cuda:0", experiment=EasyDict(input_resolution=[224, 224]))
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "easydict", package)
        torch.save({"model": tensors_of("tbps_clip"), "config": config}, folder / "checkpoint_best.pth")
    assert b"easydict" in (folder / "checkpoint_best.pth").read_bytes()
    assert read_released(folder).architecture.grid == (2, 2)


def test_code_in_place_of_the_config_is_refused_and_not_run(tmp_path: Path) -> None:
    folder, mark = write(tmp_path / "run", "tbps_clip", {}), tmp_path / "executed"
    torch.save({"model": tensors_of("tbps_clip"), "config": Trap(mark)}, folder / "checkpoint_best.pth")
    assert "nothing in it was executed" in refused(folder)
    assert not mark.exists()


def with_heads(method: str = "irra") -> dict[str, Tensor]:
    gate = {"base_model.visual.transformer.resblocks.1.gate.scale": torch.ones(())}
    return tensors_of(method) | {name: torch.zeros(shape) for name, shape in HEADS.items()} | gate


@pytest.mark.parametrize("method", ["irra", "rde"])
def test_unknown_heads_are_refused_and_described(tmp_path: Path, method: str) -> None:
    line = refused(write(tmp_path / "run", method, with_heads(method)))
    assert "'fusion.attn.in_proj_weight' [24, 8] and 1 more (attention" in line
    assert "'grab.fc.weight' [16, 8] (linear layers)" in line
    assert "gate.scale' [] (inside the blocks of the towers)" in line
    assert f"{METHODS[method].title} has no such tensors" in line and "--ignore-extra" in line


@pytest.mark.parametrize("method", ["irra", "rde"])
def test_the_rest_is_loaded_without_unknown_heads(
    tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path / "run", method, with_heads(method), loss_names="sdm+sieve")
    released = read_released(folder, ignore_extra=True)
    assert "no score is the full score of the method" in caplog.text
    expected = named_tensors(model_of(method))
    assert released.state.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in released.state.items())


def test_nothing_is_left_out_of_other_models() -> None:
    with pytest.raises(ValueError, match="leave out --ignore-extra"):
        cskt.load("clip-tiny", device="cpu", ignore_extra=True)


@pytest.mark.parametrize("as_folder", [True, False])
def test_pretrained_irra_serves_as_a_backbone(tmp_path: Path, as_folder: bool) -> None:
    tensors = {f"module.{name}": value.half() for name, value in tensors_of("irra").items()}
    tensors["module.classifier.weight"] = torch.zeros(5, 8)
    folder = write(tmp_path / "run", "irra", tensors)
    name = str(folder if as_folder else folder / "best.pth")
    backbone = load_backbone(BackboneConfig(name))
    assert backbone.architecture == TOWERS, "its own size, QuickGELU and heads of width 64"
    expected = dict(model_of("irra").named_parameters())
    assert backbone.state.keys() == expected.keys()
    assert all(torch.equal(value, expected[name].half().float()) for name, value in backbone.state.items())
    resized = load_backbone(BackboneConfig(name, image_height=96, image_width=32))
    assert resized.architecture.grid == (12, 4) and len(resized.state["vision.positional_embedding"]) == 49


def test_patches_of_a_pretrained_irra_may_overlap(tmp_path: Path) -> None:
    overlapping = dataclasses.replace(TOWERS, image_height=44, image_width=20, stride=6)  # 7 x 3 patches
    model = DualEncoder(overlapping, load_config("clip", fit=False).method)
    model.initialise_backbone(torch.Generator().manual_seed(3))
    tensors = {METHODS["irra"].name(name): value.detach() for name, value in named_tensors(model).items()}
    folder = write(tmp_path / "run", "irra", tensors, img_size=[44, 20], stride_size=6)
    backbone = load_backbone(BackboneConfig(str(folder), image_height=44, image_width=20, stride=6))
    assert backbone.architecture.grid == (7, 3)
    positions = tensors["base_model.visual.positional_embedding"]
    assert torch.equal(backbone.state["vision.positional_embedding"], positions)
    with pytest.raises(ValueError, match=r"21 patch positions fit no image .* set image size and stride"):
        load_backbone(BackboneConfig(str(folder)))


def test_a_tensor_beside_the_wrapped_model_is_an_unknown_one(tmp_path: Path) -> None:
    wrapped = {f"module.{name}": value for name, value in tensors_of("irra").items()}
    folder = write(tmp_path / "run", "irra", wrapped | {"temperature": torch.ones(())})
    assert "unknown tensor 'temperature' []" in refused(folder)
    assert read_released(folder, ignore_extra=True).note == INCOMPLETE


def test_heads_of_a_backbone_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heads = {name: torch.zeros(shape) for name, shape in HEADS.items()}
    folder = write(tmp_path / "run", "irra", tensors_of("irra") | heads)
    load_backbone(BackboneConfig(str(folder / "best.pth")))
    assert "left out beside the towers: 'fusion.attn.in_proj_bias' and 2 more" in caplog.text


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            lambda: tensors_of("rde"),
            "checkpoint of RDE, not a backbone; give the folder that its code wrote (configs.yaml, best.pth) as the",
        ),
        (
            lambda: tensors_of("tbps_clip"),
            "of TBPS-CLIP, not a backbone; give the folder that its code wrote (checkpoint_best.pth)",
        ),
        (lambda: tensors_of("up_person"), "checkpoint of UP-Person, not a backbone"),
        (with_heads, "unknown tensor 'base_model.visual.transformer.resblocks.1.gate.scale'"),
        (
            lambda: tensors_of("irra") | {"base_model.visual.positional_embedding": torch.zeros(12, 64)},
            "11 patch positions fit no image three times as high as wide",
        ),
    ],
)
def test_other_checkpoints_are_no_backbones(
    tmp_path: Path, tensors: Callable[[], dict[str, Tensor]], message: str
) -> None:
    torch.save({"model": tensors()}, tmp_path / "best.pth")
    with pytest.raises(ValueError) as caught:
        load_backbone(BackboneConfig(str(tmp_path / "best.pth")))
    assert message in str(caught.value)


@pytest.fixture
def gate() -> Iterator[None]:
    """A method of a plug-in: a part, and the description of its released code."""

    @register("gate")
    class Bias(Part):
        @part_config
        class Config:
            length: int = 2

        def __init__(self, config: Any, architecture: ClipArchitecture) -> None:
            super().__init__(config, architecture)
            self.tokens = nn.Parameter(torch.zeros(config.length, architecture.text_width))

        def extras(self, side: str) -> PartExtras:
            return PartExtras(prompts=[self.tokens] if side == "text" else [])

    METHODS.register(
        "gate",
        ReleasedMethod(
            "Gate", "finetune", r"^gating\.",
            parts={"gate": ((r"^tokens$", "gating.tokens"),)},
            settings=lambda found: {"parts.gate.length": found.matrix("gating.tokens")[0]},
            flags={"gate_length": methods.Flag("parts.gate.length", "")},
        ),
    )  # fmt: skip
    yield
    for registry in (PARTS, METHODS):
        del registry._entries["gate"], registry._plugins["gate"]


@pytest.mark.usefixtures("gate")
def test_a_plugin_describes_its_released_code(tmp_path: Path) -> None:
    tensors = tensors_of("irra") | {"gating.tokens": torch.ones(5, 64)}
    folder = write(tmp_path / "run", "irra", tensors, gate_length=5)
    released = read_released(folder)
    assert released.config.parts["gate"]["length"] == 5
    assert torch.equal(released.state["parts.gate.tokens"], torch.ones(5, 64))
    assert (released_name("parts.gate.tokens"), unused_shapes("gate", TOWERS)) == ("gating.tokens", {})
    assert "gate_length 4 contradicts" in refused(write(tmp_path / "run", "irra", tensors, gate_length=4))


def test_without_the_plugin_its_tensors_are_unknown(tmp_path: Path) -> None:
    line = refused(write(tmp_path / "run", "irra", tensors_of("irra") | {"gating.tokens": torch.ones(5, 64)}))
    assert "unknown tensor 'gating.tokens' [5, 64] (matrices or tokens)" in line and "--plugin" in line
    with pytest.raises(ValueError, match=r"parts\.gate: no released code"):
        released_name("parts.gate.tokens")
