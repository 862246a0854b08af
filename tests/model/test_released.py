"""Released CSKT and IRRA folders, as their authors' programs would have left them for a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from cskt.config import AdapterConfig, ClipArchitecture, PromptConfig
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.released.methods import released_name
from cskt.model.io.released.reader import read_released, read_released_config
from cskt.model.io.weights import load_state
from cskt.model.parts.interaction import InteractionEncoder
from pickled_trap import Trap

ARCHITECTURE = ClipArchitecture(
    embed_dim=12, image_height=24, image_width=16, patch_size=8, stride=4, vision_width=64, vision_layers=3,
    vision_heads=1, text_width=128, text_layers=2, text_heads=2, context_length=20, vocab_size=40,
)  # fmt: skip
DEPTH, LENGTH = 2, 3
CONFIG = """\
batch_size: 64
dataset_name: RSTPReid
depth: 2
distributed: false
img_aug: true
img_size: !!python/tuple
- 24
- 16
local_rank: 0
loss_names: sdm+id
lr: 0.0005
lrscheduler: cosine
milestones: !!python/tuple
- 20
- 50
n_ctx: 3
name: somebody
num_epoch: 40
optimizer: Adam
output_dir: /home/somebody/logs
pretrain_choice: ViT-B/16
root_dir: /home/somebody/data
stride_size: 4
temperature: 0.02
text_length: 77
vocab_size: 49408
"""
IRRA_CONFIG = """\
MLM: true
batch_size: 64
cmt_depth: 2
dataset_name: CUHK-PEDES
distributed: false
id_loss_weight: 0.5
img_aug: true
img_size: !!python/tuple
- 24
- 16
loss_names: sdm+mlm+id
lr: 2.0e-05
masked_token_rate: 0.8
masked_token_unchanged_rate: 0.1
mlm_loss_weight: 1.0
name: iira
num_epoch: 60
root_dir: ./data
stride_size: 4
test: false
val_dataset: test
vocab_size: 49408
"""


def trained_model() -> DualEncoder:
    model = DualEncoder(
        ARCHITECTURE, {"prompts": PromptConfig(depth=DEPTH, length=LENGTH), "adapters": AdapterConfig()}
    )
    generator = torch.Generator().manual_seed(8)
    for parameter in model.parameters():
        parameter.data = (0.1 * torch.randn(parameter.shape, generator=generator)).half().float()
    return model


def released_state() -> dict[str, Tensor]:
    """Backbone in float16 and the rest in float32, as a GPU run with a frozen backbone leaves them."""
    state = {released_name(name): value.detach() for name, value in trained_model().named_parameters()}
    return {name: value.half() if "prompt_learner" not in name else value for name, value in state.items()}


def trained_irra() -> DualEncoder:
    model = DualEncoder(ARCHITECTURE, trainable="all")
    generator = torch.Generator().manual_seed(8)
    for parameter in model.parameters():
        parameter.data = (0.1 * torch.randn(parameter.shape, generator=generator)).half().float()
    return model


def irra_state(*, mlm: bool = True) -> dict[str, Tensor]:
    """Matrices in float16 and vectors in float32, as a GPU run of the whole model leaves them."""
    state = {released_name(name): value.detach() for name, value in trained_irra().named_parameters()}
    state |= {"classifier.weight": torch.zeros(7, 12), "classifier.bias": torch.zeros(7)}
    if mlm:
        heads = InteractionEncoder(12, depth=2, vocab_size=40).named_parameters(prefix="interaction")
        state |= {released_name(name): torch.zeros_like(value) for name, value in heads}
    return {name: value.half() if value.ndim > 1 else value for name, value in state.items()}


def write(
    folder: Path, state: dict[str, Any], *, config: str = CONFIG, file: str = "best.pth", wrap: bool = True
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "configs.yaml").write_text(config)
    torch.save({"model": state, "epoch": 37} if wrap else state, folder / file)
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        read_released(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("file", ["best.pth", "last.pth"])
def test_folder_comes_back(tmp_path: Path, prefix: str, wrap: bool, file: str) -> None:
    state = released_state() | {"classifier.weight": torch.zeros(7, 12), "classifier.bias": torch.zeros(7)}
    released = read_released(
        write(tmp_path / "run", {prefix + name: value for name, value in state.items()}, wrap=wrap, file=file)
    )
    assert released.architecture == ARCHITECTURE
    expected = dict(trained_model().named_parameters())
    assert released.state.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in released.state.items())
    assert all(value.dtype == torch.float32 for value in released.state.values())


@torch.no_grad()
def test_loaded_model_computes_the_same(tmp_path: Path) -> None:
    released = read_released(write(tmp_path / "run", released_state()))
    model = DualEncoder(released.architecture, released.config.method, trainable="none")
    load_state(model, released.state, origin="released", prefixes=("",))
    images = torch.randn(2, 3, 24, 16, generator=torch.Generator().manual_seed(9))
    caption_ids = torch.tensor([[38, 5, 6, 39, 0], [38, 7, 39, 0, 0]])
    for found, expected in zip(model(images, caption_ids), trained_model()(images, caption_ids), strict=True):
        assert torch.equal(found, expected)


def test_config_is_the_folders_own(tmp_path: Path) -> None:
    config = read_released(write(tmp_path / "run", released_state())).config
    assert (config.prompts.depth, config.prompts.length, config.prompts.directions) == (DEPTH, LENGTH, "both")
    assert (config.backbone.image_height, config.backbone.image_width, config.backbone.stride) == (24, 16, 4)
    assert (config.adapters.reduction, config.adapters.vision_scale, config.adapters.text_scale) == (8, 0.1, 4.0)
    assert config.backbone.name == "ViT-B/16"
    assert (config.data.dataset, config.data.root, config.data.batch_size) == ("rstpreid", "/home/somebody/data", 64)
    assert config.loss.weights == {"sdm": 1.0, "id": 1.0}
    assert (config.optim.name, config.optim.lr, config.optim.eps) == ("adam", 5e-4, 1e-3)
    assert (config.loop.num_epochs, config.trainable) == (40, "added")
    assert read_released_config(tmp_path / "run").loop.num_epochs == 40


def test_sizes_come_from_the_tensors_where_the_config_is_silent(tmp_path: Path) -> None:
    lines = [line for line in CONFIG.splitlines() if not line.startswith(("depth", "n_ctx"))]
    config = read_released(write(tmp_path / "run", released_state(), config="\n".join(lines))).config
    assert (config.prompts.depth, config.prompts.length) == (DEPTH, LENGTH)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("depth: 2", "depth: 12", "depth 12 contradicts best.pth, which has 2"),
        ("n_ctx: 3", "n_ctx: 4", "n_ctx 4 contradicts best.pth, which has 3"),
        ("- 24\n- 16", "- 384\n- 128", "15 patch positions do not fit"),
        ("stride_size: 4", "stride_size: 8", "15 patch positions do not fit the 3 x 2 patches"),
        ("lr: 0.0005", "lr: fast", "optim.lr"),
        ("- 24\n- 16", "- 24", "img_size"),
    ],
)
def test_config_must_fit_the_tensors(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in CONFIG
    assert message in refused(write(tmp_path / "run", released_state(), config=CONFIG.replace(old, new)))


@pytest.mark.parametrize(
    "code",
    [
        "!!python/object/apply:os.mkdir [{mark}]",
        "!!python/object/new:os.mkdir [{mark}]",
        "!!python/name:os.mkdir ''",
        "!!python/module:os ''",
        "!!python/tuple [!!python/object/apply:os.mkdir [{mark}]]",
    ],
)
def test_yaml_with_code_is_refused_and_not_run(tmp_path: Path, code: str) -> None:
    mark = tmp_path / "executed"
    if "object/apply:os.mkdir [" in code:
        yaml.unsafe_load(code.format(mark=mark))
        mark.rmdir()  # the code works where it is let run
    text = CONFIG + f"extra: {code.format(mark=mark)}\n"
    assert "no code in it was executed" in refused(write(tmp_path / "run", released_state(), config=text))
    assert not mark.exists()


def test_weights_with_code_are_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    folder = write(tmp_path / "run", released_state())
    torch.save({"model": released_state(), "optimizer": Trap(mark)}, folder / "best.pth")
    assert "nothing in it was executed" in refused(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("prompt_learner.vmap.weight", None, "is missing"),
        ("base_model.transformer.resblocks.1.adapter_mlp.up.bias", None, "is missing"),
        ("base_model.token_embedding.weight", None, "is missing"),
        ("prompt_learner.ctx", None, "not a checkpoint of CSKT"),
        ("base_model.logit_bias", torch.zeros(1), "unknown tensor 'base_model.logit_bias'"),
        ("prompt_learner.vision", torch.zeros(4, 64), "'prompt_learner.vision' has shape [4, 64], expected [3, 64]"),
        ("base_model.ln_final.bias", torch.full((128,), float("nan")), "holds NaN"),
    ],
)
def test_wrong_tensor_is_named(tmp_path: Path, name: str, change: Tensor | None, message: str) -> None:
    state = released_state()
    state.pop(name, None)
    line = refused(write(tmp_path / "run", state if change is None else {**state, name: change}))
    assert message in line
    assert f"'{name}'" in line


def test_truncated_or_absent_files_are_one_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", released_state())
    content = (folder / "best.pth").read_bytes()
    (folder / "best.pth").write_bytes(content[: len(content) // 2])
    assert "best.pth: corrupt" in refused(folder)
    (folder / "best.pth").unlink()
    assert "expected best.pth, last.pth or checkpoint_best.pth" in refused(folder)
    (folder / "configs.yaml").unlink()
    assert "configs.yaml" in refused(folder)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("mlm", [True, False])
def test_irra_is_recognised_by_its_tensors(tmp_path: Path, prefix: str, mlm: bool) -> None:
    state = {prefix + name: value for name, value in irra_state(mlm=mlm).items()}
    config = IRRA_CONFIG if mlm else IRRA_CONFIG.replace("MLM: true", "MLM: false").replace("sdm+mlm+id", "sdm+id")
    released = read_released(write(tmp_path / "run", state, config=config))
    assert released.architecture == ARCHITECTURE
    expected = dict(trained_irra().named_parameters())
    assert released.state.keys() == expected.keys(), "no classifier, no interaction encoder"
    assert all(torch.equal(value, expected[name]) for name, value in released.state.items())
    assert all(value.dtype == torch.float32 for value in released.state.values())
    model = DualEncoder(released.architecture, released.config.method, trainable="none")
    load_state(model, released.state, origin="released", prefixes=("",))
    images = torch.randn(2, 3, 24, 16, generator=torch.Generator().manual_seed(9))
    caption_ids = torch.tensor([[38, 5, 6, 39, 0], [38, 7, 39, 0, 0]])
    for found, expected_features in zip(model(images, caption_ids), trained_irra()(images, caption_ids), strict=True):
        assert torch.equal(found, expected_features)


def test_irra_config_is_the_folders_own(tmp_path: Path) -> None:
    config = read_released(write(tmp_path / "run", irra_state(), config=IRRA_CONFIG)).config
    assert (config.prompts.directions, config.adapters.sides, config.trainable) == ("none", "none", "all")
    assert config.loss.weights == {"sdm": 1.0, "mlm": 1.0, "id": 0.5}
    assert (config.mlm.cmt_depth, config.mlm.masked_for_all, config.optim.lr) == (2, True, 2e-5)
    assert (config.name, config.data.dataset, config.data.select_on) == ("iira", "cuhk-pedes", "test")
    assert read_released_config(tmp_path / "run") == config


@pytest.mark.parametrize(
    "heads", [["classifier.weight", "classifier.bias"], ["cross_attn.in_proj_weight", "mlm_head.fc.bias"], None]
)
def test_cskt_trained_with_any_loss_is_cskt(tmp_path: Path, heads: list[str] | None) -> None:
    wanted = irra_state() if heads is None else {name: irra_state()[name] for name in heads}
    extra = {name: value for name, value in wanted.items() if not name.startswith("base_model.")}
    released = read_released(write(tmp_path / "run", released_state() | extra))
    assert released.state.keys() == dict(trained_model().named_parameters()).keys()
    assert released.config.prompts.directions == "both"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("base_model.visual.proj", None, "is missing"),
        ("base_model.transformer.resblocks.1.ln_2.bias", None, "is missing"),
        ("base_model.transformer.resblocks.1.ln_3.bias", torch.zeros(128), "unknown tensor"),
        ("cross_modal.weight", torch.zeros(1), "unknown tensor"),
        ("base_model.ln_final.bias", torch.zeros(64), "has shape [64], expected [128]"),
    ],
)
def test_wrong_tensor_of_irra_is_named(tmp_path: Path, name: str, change: Tensor | None, message: str) -> None:
    state = irra_state()
    state.pop(name, None)
    state = state if change is None else {**state, name: change}
    line = refused(write(tmp_path / "run", state, config=IRRA_CONFIG))
    assert message in line and f"'{name}'" in line


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (IRRA_CONFIG + "depth: 12\n", "configs.yaml: depth 12 contradicts best.pth, which holds no prompts"),
        (IRRA_CONFIG + "n_ctx: 4\n", "configs.yaml: n_ctx 4 contradicts best.pth, which holds no prompts"),
        (IRRA_CONFIG.replace("stride_size: 4", "stride_size: 8"), "15 patch positions do not fit the 3 x 2 patches"),
        (IRRA_CONFIG.replace("cmt_depth: 2", "cmt_depth: two"), "mlm.cmt_depth"),
    ],
)
def test_irra_config_must_fit_the_tensors(tmp_path: Path, config: str, message: str) -> None:
    assert config != IRRA_CONFIG
    assert message in refused(write(tmp_path / "run", irra_state(), config=config))
