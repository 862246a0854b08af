"""`cskt export --format released`: folders that the program of a method's authors accepts, with equal figures."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from command_line import done, typed
from torch import Tensor, nn

import cskt
from cskt.config import ClipArchitecture, LossConfig, MlmConfig, load_config, save_config
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.native import read_heads, save_backbone
from cskt.model.io.released.methods import METHODS, released_name
from cskt.model.io.released.writer import check_expressible
from cskt.model.io.tensors import load_plain
from cskt.training.objective import Objective

# The released programs compute heads of width 64; the interaction encoder needs an embedding of at least 64.
SIZES = ClipArchitecture(
    embed_dim=64, image_height=32, image_width=16, patch_size=8, stride=8, vision_width=128, vision_layers=2,
    vision_heads=2, text_width=64, text_layers=2, text_heads=1,
)  # fmt: skip
CSKT_SIZES = ClipArchitecture(image_height=384, image_width=128)
OPTIONS = """
    MLM alpha batch_size beta bias_lr_factor cmt_depth dataset_name distributed eval_period gamma id_loss_weight img_aug
    img_size local_rank log_period loss_names lr lr_factor lrscheduler masked_token_rate masked_token_unchanged_rate
    milestones mlm_loss_weight momentum name num_epoch num_instance num_workers optimizer output_dir power
    pretrain_choice resume resume_ckpt_file root_dir sampler stride_size target_lr temperature test_batch_size
    text_length training val_dataset vocab_size warmup_epochs warmup_factor warmup_method weight_decay weight_decay_bias
"""
"""Keys of the configs.yaml of IRRA's released program; CSKT's has `depth` and `n_ctx` beside them."""
TYPES = {"img_size": tuple, "milestones": tuple, "stride_size": int, "img_aug": bool, "MLM": bool, "training": bool}


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=QuickGELU(), c_proj=nn.Linear(4 * width, width))
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


def transformer(width: int, layers: int) -> nn.Module:
    module = nn.Module()
    module.resblocks = nn.ModuleList(Block(width) for _ in range(layers))
    return module


class ReleasedIrra(nn.Module):
    """IRRA under the names of its released program, from the sizes of its pre-trained file and its options alone."""

    def __init__(self, options: dict[str, Any], pretrained: dict[str, Tensor], num_classes: int) -> None:
        super().__init__()
        width, _, patch, _ = pretrained["visual.conv1.weight"].shape
        text_width, embed_dim = pretrained["text_projection"].shape
        height, image_width = options["img_size"]
        stride, base = options["stride_size"], nn.Module()
        num_patches = ((height - patch) // stride + 1) * ((image_width - patch) // stride + 1)
        visual = nn.Module()
        visual.conv1 = nn.Conv2d(3, width, patch, stride, bias=False)
        visual.class_embedding = nn.Parameter(torch.empty(width))
        visual.positional_embedding = nn.Parameter(torch.empty(num_patches + 1, width))
        visual.ln_pre, visual.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        visual.transformer = transformer(width, SIZES.vision_layers)
        visual.proj = nn.Parameter(torch.empty(width, embed_dim))
        base.visual = visual
        base.transformer = transformer(text_width, SIZES.text_layers)
        base.token_embedding = nn.Embedding(options["vocab_size"], text_width)
        base.positional_embedding = nn.Parameter(torch.empty(options["text_length"], text_width))
        base.ln_final = nn.LayerNorm(text_width)
        base.text_projection = nn.Parameter(torch.empty(text_width, embed_dim))
        self.base_model = base
        if "id" in options["loss_names"]:
            self.classifier = nn.Linear(embed_dim, num_classes)
        if "mlm" in options["loss_names"]:
            self.cross_attn = nn.MultiheadAttention(embed_dim, embed_dim // 64, batch_first=True)
            self.cross_modal_transformer = transformer(embed_dim, options["cmt_depth"])
            self.ln_pre_t, self.ln_pre_i = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
            self.ln_post = nn.LayerNorm(embed_dim)
            self.mlm_head = nn.Sequential(
                OrderedDict(
                    dense=nn.Linear(embed_dim, embed_dim),
                    gelu=QuickGELU(),
                    ln=nn.LayerNorm(embed_dim),
                    fc=nn.Linear(embed_dim, options["vocab_size"]),
                )
            )

    def forward(self, images: Tensor, caption_ids: Tensor) -> tuple[Tensor, Tensor]:
        visual = self.base_model.visual
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
        x = visual.ln_pre(x).transpose(0, 1)
        for block in visual.transformer.resblocks:
            x = block(x, None)
        image_features = (visual.ln_post(x.transpose(0, 1)) @ visual.proj)[:, 0]
        y = (self.base_model.token_embedding(caption_ids) + self.base_model.positional_embedding).transpose(0, 1)
        mask = torch.full((len(y), len(y)), -torch.inf).triu(1)
        for block in self.base_model.transformer.resblocks:
            y = block(y, mask)
        y = self.base_model.ln_final(y.transpose(0, 1)) @ self.base_model.text_projection
        return image_features, y[torch.arange(len(y)), caption_ids.argmax(dim=1)]


def as_released_loads(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """The released checkpointer: for each tensor the saved one with the longest name that ends it, then strictly."""
    state = model.state_dict()
    assert state.keys() == saved.keys()
    for name in state:
        state[name] = saved[max((other for other in saved if name.endswith(other)), key=len)]
    model.load_state_dict(state, strict=True)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = DualEncoder(SIZES, trainable="none")
    model.initialise_backbone(torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("backbone") / "wide.safetensors"
    save_backbone(path, {name: value.detach() for name, value in model.named_parameters()}, SIZES, facts={})
    return path


@pytest.fixture(scope="module")
def command(root: Path, backbone: Path) -> str:
    """A quick training, to be followed by `--config RECIPE --output FOLDER`."""
    return (
        f"cskt train --root {root} --backbone.name {backbone} --image-height 32 --image-width 16 --batch-size 8"
        " --num-epochs 2 --num-workers 0 --device cpu --evaluate-before false --warmup-epochs 0 --lr 1e-3 --cmt-depth 2"
    )


@pytest.fixture(scope="module")
def irra(command: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An IRRA run, and its export."""
    folder = tmp_path_factory.mktemp("irra")
    done(f"{command} --config irra --output {folder}/run")
    assert (
        done(f"cskt export {folder}/run --format released --output {folder}/released").strip() == f"{folder}/released"
    )
    return folder / "run", folder / "released"


@pytest.fixture(scope="module")
def cskt_run(command: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cskt") / "run"
    done(f"{command} --config cskt --prompts.depth 2 --loss.weights '{{sdm: 1, id: 0.5}}' --output {folder}")
    return folder


def any_sizes(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Let a released program take the small model: its code has 768 and 512 written into it."""
    fixed = cast(dict[str, Any], METHODS[method].fixed)
    for key in fixed.keys() & vars(SIZES).keys():
        monkeypatch.setitem(fixed, key, getattr(SIZES, key))


def read_options(folder: Path) -> dict[str, Any]:
    """As the released program reads them."""
    return yaml.load((folder / "configs.yaml").read_text(), Loader=yaml.FullLoader)


def copy_of(run: Path, folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """The run with another config, whose weights are the same."""
    shutil.copytree(run, folder)
    save_config(load_config(folder / "config.yaml", changes or {}), folder / "config.yaml")
    return folder


# --- what the folder holds


def test_every_option_of_the_released_program_is_there(irra: tuple[Path, Path], root: Path) -> None:
    _, folder = irra
    options = read_options(folder)
    assert options.keys() == set(OPTIONS.split())
    assert {name: type(options[name]) for name in TYPES} == TYPES
    assert None not in options.values()
    expected = {
        "img_size": (32, 16), "stride_size": 8, "vocab_size": 49408, "text_length": 77, "MLM": True, "training": True,
        "loss_names": "sdm+id+mlm", "cmt_depth": 2, "dataset_name": "CUHK-PEDES", "root_dir": str(root),
        "output_dir": str(folder), "pretrain_choice": str(folder / "backbone.pth"), "optimizer": "Adam",
        "masked_token_rate": 0.8, "distributed": False, "local_rank": 0, "resume_ckpt_file": "", "milestones": (20, 50),
    }  # fmt: skip
    assert {name: options[name] for name in expected} == expected
    assert sorted(path.name for path in folder.iterdir()) == ["backbone.pth", "best.pth", "configs.yaml"]


@torch.no_grad()
def test_the_released_model_loads_it_strictly_and_computes_the_same(irra: tuple[Path, Path]) -> None:
    run, folder = irra
    options = read_options(folder)
    pretrained = torch.load(options["pretrain_choice"], weights_only=True)
    saved = torch.load(Path(options["output_dir"]) / "best.pth", weights_only=True)
    assert all(value.dtype == torch.float32 for value in saved["model"].values())
    model = ReleasedIrra(options, pretrained, num_classes=8).eval()  # 8 training identities
    as_released_loads(model, saved["model"])

    heads = read_heads(run / "best.heads.safetensors").tensors
    assert torch.equal(model.classifier.weight, heads["classifier.weight"])
    assert torch.equal(model.mlm_head.fc.bias, heads["interaction.mlm_head.fc.bias"])

    own, back = cskt.load(run, device="cpu"), cskt.load(folder, device="cpu")
    images = torch.randn(3, 3, 32, 16, generator=torch.Generator().manual_seed(2))
    caption_ids = own.tokenizer(["a man in red", "a woman", "she wears a long grey coat"], pad_to_context=True)
    for found, ours, again in zip(
        model(images, caption_ids), own.model(images, caption_ids), back.model(images, caption_ids), strict=True
    ):
        torch.testing.assert_close(found, ours, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(again, ours, rtol=1e-6, atol=1e-7)


def test_the_figures_are_equal(irra: tuple[Path, Path], tmp_path: Path) -> None:
    run, folder = irra
    ours = typed(f"python test.py --config_file {run}/configs.yaml --json").json()
    theirs = typed(f"python test.py --config_file {folder}/configs.yaml --json").json()
    assert theirs["t2i"] == ours["t2i"] and theirs["i2t"] == ours["i2t"]


def test_cskt_and_its_classifier_come_back(
    cskt_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    any_sizes(monkeypatch, "cskt")
    folder = tmp_path / "released"
    done(f"cskt export {cskt_run} --format released --output {folder}")
    options = read_options(folder)
    assert options.keys() == set(OPTIONS.split()) | {"depth", "n_ctx"}
    assert (options["depth"], options["n_ctx"], options["loss_names"], options["id_loss_weight"]) == (
        2,
        4,
        "sdm+id",
        0.5,
    )
    encoder = cskt.load(cskt_run, device="cpu")
    saved = torch.load(folder / "best.pth", weights_only=True)["model"]
    heads = read_heads(cskt_run / "best.heads.safetensors").tensors
    assert saved.keys() == {released_name(name) for name, _ in encoder.model.named_parameters()} | heads.keys()
    assert torch.equal(saved["classifier.weight"], heads["classifier.weight"])
    ours = typed(f"cskt evaluate {cskt_run} --json").json()
    assert typed(f"python test.py --config_file {folder}/configs.yaml --json").json()["t2i"] == ours["t2i"]
    assert not any("the released folder has no word" in message for message in caplog.messages), "all of it can be said"


@pytest.mark.parametrize("recipe", ["finetune", "linear", "lora"])
def test_other_methods_that_are_plain_towers_in_the_end(command: str, tmp_path: Path, recipe: str) -> None:
    """LoRA's updates are folded into the weights: the same function, in tensors that the released program has."""
    done(f"{command} --config {recipe} --num-epochs 1 --output {tmp_path}/run")
    folder = Path(done(f"cskt export {tmp_path}/run --format released").strip())
    assert folder == tmp_path / "run" / "released"
    assert not {"depth", "n_ctx", "classifier.weight"} & (read_options(folder).keys() | load_plain(folder / "best.pth"))
    ours = typed(f"cskt evaluate {tmp_path}/run --json").json()
    assert typed(f"cskt evaluate {folder} --json").json()["t2i"] == pytest.approx(ours["t2i"], rel=1e-6)


def test_a_published_backbone_is_named_and_any_other_written(
    cskt_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    any_sizes(monkeypatch, "cskt")
    config = load_config(cskt_run / "config.yaml")
    run = copy_of(cskt_run, tmp_path / "run", {"backbone.name": "ViT-B/16"})
    done(f"cskt export {run} --format released --backbone {config.backbone.name}")
    assert read_options(run / "released")["pretrain_choice"] == "ViT-B/16"
    assert not (run / "released" / "backbone.pth").exists()


def test_names_and_shapes_are_those_of_the_released_checkpoints() -> None:
    """CSKT and IRRA at their published size, without the memory for it."""
    with torch.device("meta"):
        for recipe in ("cskt-reference", "irra"):
            config = load_config(recipe, {"loss.weights": {"sdm": 1.0, "id": 1.0, "mlm": 1.0}})
            check_expressible(config, CSKT_SIZES)
            model = DualEncoder(CSKT_SIZES, config.method)
            objective = Objective(config.loss, config.mlm, CSKT_SIZES, 11003)
            shapes = {
                released_name(name): list(value.shape)
                for name, value in [*model.named_parameters(), *objective.named_parameters()]
            }
            assert shapes["classifier.weight"] == [11003, 512]
            assert shapes["base_model.visual.positional_embedding"] == [193, 768]
            assert shapes["cross_modal_transformer.resblocks.3.attn.in_proj_weight"] == [1536, 512]
            assert shapes["mlm_head.fc.weight"] == [49408, 512]
            if recipe == "cskt-reference":
                assert shapes["prompt_learner.compound_prompt_projections_vision.10.weight"] == [512, 768]
                assert shapes["base_model.visual.transformer.resblocks.11.adapter_mlp.down.weight"] == [96, 768]


# --- heads


def test_old_runs_give_the_last_epochs_heads_and_say_so(
    irra: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = copy_of(irra[0], tmp_path / "run")
    (run / "best.heads.safetensors").unlink()
    done(f"cskt export {run} --format released")
    assert "the training heads are the last epoch's, from last.pt" in caplog.text
    saved, last = load_plain(run / "released" / "best.pth")["model"], load_plain(run / "last.pt")["objective"]
    assert torch.equal(saved["classifier.weight"], last["classifier.weight"])
    for name in ("last.pt", "last.previous.pt"):
        (run / name).unlink(missing_ok=True)
    refusal = typed(f"cskt export {run} --format released --output {tmp_path}/other").refusal()
    assert "has neither best.heads.safetensors nor last.pt, so the heads of the losses id, mlm are lost" in refusal


def test_held_out_identities_get_rows_of_zeros(
    command: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released program counts all people of ICFG-PEDES' training split; a run holds some out as val."""
    held_out = "--dataset icfg-pedes --holdout-fraction 0.1"
    done(f"{command} --config irra {held_out} --num-epochs 1 --output {tmp_path}/run")
    run = tmp_path / "run"
    rows = read_heads(run / "best.heads.safetensors").tensors["classifier.weight"]
    assert len(rows) == 11
    done(f"cskt export {run} --format released")
    whole = load_plain(run / "released" / "best.pth")["model"]["classifier.weight"]
    assert whole.shape == (12, 64)
    kept = [index for index, row in enumerate(whole) if row.any()]
    assert len(kept) == 11 and torch.equal(whole[kept], rows)
    moved = copy_of(run, tmp_path / "moved", {"data.root": str(tmp_path / "nowhere")})
    shutil.rmtree(moved / "released")
    assert "--root DIR" in typed(f"cskt export {moved} --format released").refusal()
    done(f"cskt export {moved} --format released --root {root}")
    assert torch.equal(load_plain(moved / "released" / "best.pth")["model"]["classifier.weight"], whole)


# --- what is refused, in one line


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("maple", {}, "prompts.directions t2v: the released CSKT program has both only"),
        ("cskt-own", {}, "prompts.directions own: the released CSKT program has both only"),
        ("cskt-dat", {}, "prompts.directions none: the released CSKT program has both only"),
        ("cskt-bpt", {}, "adapters.sides none: the released CSKT program has both only"),
        ("cskt-dat-text", {}, "prompts.directions none"),
        ("cskt", {"adapters.reduction": 4}, "adapters.reduction 4: the released CSKT program has 8 only"),
        ("cskt", {"adapters.vision_scale": 0.2}, "adapters.vision_scale 0.2: the released CSKT program has 0.1 only"),
        ("cskt", {"adapters.text_scale": 1.0}, "adapters.text_scale 1.0: the released CSKT program has 4.0 only"),
        ("irra", {"data.caption_length": 60}, "data.caption_length 60: the released program takes 77 only"),
        (
            "irra",
            {"backbone.interpolation": "bicubic"},
            "backbone.interpolation bicubic: the released IRRA program has bilinear",
        ),
        (
            "cskt",
            {"data.eval_interpolation": "bicubic"},
            "data.eval_interpolation bicubic: the released CSKT program",
        ),
        (
            "irra",
            {"data.templates": ["a photo of {}"]},
            "data.templates ('a photo of {}',): the released IRRA",
        ),
    ],
)
def test_what_the_released_program_cannot_express(recipe: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_expressible(load_config(recipe, changes), CSKT_SIZES)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "sizes", "message"),
    [
        (
            "cskt",
            {"vision_width": 1024, "vision_heads": 16},
            "vision_width 1024: the released CSKT program has 768 only",
        ),
        ("cskt", {"text_width": 768, "text_heads": 12}, "text_width 768: the released CSKT program has 512 only"),
        ("irra", {"vision_heads": 24}, "vision_heads 24: the released IRRA program has 12 only"),
        ("irra", {"text_heads": 16}, "text_heads 16: the released IRRA program has 8 only"),
        ("irra", {"activation": "gelu"}, "activation gelu: the released IRRA program has quick_gelu only"),
        ("irra", {"image_mean": (0.5, 0.5, 0.5)}, "image_mean .*: the released IRRA program has .* only"),
        ("cskt", {"image_std": (0.5, 0.5, 0.5)}, "image_std .*: the released CSKT program has .* only"),
        ("irra", {"vocab_size": 49410}, "vocab_size 49410: the released IRRA program has 49408 only"),
        ("irra", {"embed_dim": 32}, "embed_dim is 32: the released interaction encoder needs 64"),
    ],
)
def test_towers_that_the_released_program_cannot_build(recipe: str, sizes: dict[str, Any], message: str) -> None:
    architecture = ClipArchitecture(image_height=384, image_width=128, **sizes)
    with pytest.raises(ValueError, match=message):
        check_expressible(load_config(recipe), architecture)


def test_refusals_of_the_command(irra: tuple[Path, Path], cskt_run: Path, run: Path, tmp_path: Path) -> None:
    wide = typed(f"cskt export {cskt_run} --format released --output {tmp_path}/a").refusal()
    assert wide.startswith(f"{cskt_run}: the model's vision_width 128: the released CSKT program has 768 only")
    thin = typed(f"cskt export {run} --format released --output {tmp_path}/a").refusal()
    assert "program has" in thin
    full = typed(f"cskt export {irra[0]} --format released --output {irra[1]}").refusal()
    assert full == f"{irra[1]}: holds something already; name another folder with --output"
    flag = typed(f"cskt export {irra[0]} --format released --int8").refusal()
    assert flag == "--int8 belongs to --format; give it with --format onnx or openvino"
    other = copy_of(irra[0], tmp_path / "jsonl", {"data.dataset": "jsonl"})
    refusal = typed(f"cskt export {other} --format released --output {tmp_path}/a").refusal()
    assert refusal == "data.dataset jsonl: the released programs read CUHK-PEDES, ICFG-PEDES, RSTPReid only"
    assert not (tmp_path / "a").exists()


def test_what_the_options_cannot_say_is_named(
    irra: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"loss.weights": {"sdm": 2.0, "id": 1.0, "mlm": 1.0}, "optim.clip_grad_norm": 1.0}
    done(f"cskt export {copy_of(irra[0], tmp_path / 'run', changes)} --format released")
    (warning,) = [message for message in caplog.messages if "the released folder has no word" in message]
    assert "loss.weights, optim.clip_grad_norm: settings of the training, which test.py does not use" in warning


# --- the flat copy of a run


def test_a_runs_own_flat_copy_has_numbers(run: Path, irra: tuple[Path, Path]) -> None:
    for folder, stride in ((run, 8), (irra[0], 8)):
        flat = yaml.safe_load((folder / "configs.yaml").read_text())
        assert (flat["stride_size"], flat["img_size"]) == (stride, [32, 16])
    assert load_config(irra[0] / "config.yaml").backbone.stride is None, "the truth is as it was asked for"


def test_heads_belong_to_the_objective() -> None:
    objective = Objective(LossConfig(weights={"id": 1.0, "mlm": 1.0}), MlmConfig(cmt_depth=1), SIZES, 3)
    names = {released_name(name).partition(".")[0] for name, _ in objective.named_parameters()}
    assert names == {
        "classifier",
        "cross_attn",
        "cross_modal_transformer",
        "ln_pre_t",
        "ln_pre_i",
        "ln_post",
        "mlm_head",
    }
