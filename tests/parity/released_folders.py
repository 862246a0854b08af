"""Run folders as the released codes of RDE, UP-Person, DM-Adapter, TBPS-CLIP and IRRA write them, of golden cases."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import weights as rule
from golden import Golden
from torch import Tensor

from cskt.config import ClipArchitecture
from cskt.model.io.weights import resize_positions

OPTIONS = """\
MLM: {mlm}
batch_size: 128
dataset_name: CUHK-PEDES
img_aug: true
img_size: !!python/tuple
- 384
- 128
loss_names: {losses}
lr: {lr}
lrscheduler: cosine
milestones: !!python/tuple
- 20
- 50
name: somebody
num_epoch: 60
output_dir: /nowhere/logs
pretrain_choice: ViT-B/16
root_dir: /nowhere
stride_size: 16
temperature: 0.02
text_length: 77
training: true
vocab_size: 49408
"""
OF_METHOD = {
    "irra": ("sdm+id+mlm", "1.0e-05", ()),
    "rde": ("TAL+sr0.3_tau0.015_margin0.1_n0.0", "1.0e-05", ("margin", "select_ratio", "tau")),
    "up_person": ("sdm", "0.001", ("depth_adapter", "depth_lora", "depth_prefix", "prefix_length", "rank")),
    "dm_adapter": ("sdm+aux", "0.0003", ("num_experts", "reduction", "topk")),
}  # fmt: skip
"""Method -> its losses, its rate, and the options that it adds."""
FURTHER = {
    "rde": "noisy_file: ./noiseindex/x.npy\nnoisy_rate: 0.0\ntxt_aug: true\n",
    "up_person": "n_ctx: 4\ndepth: 12\n",  # left over from CSKT, without effect
}
HALF_PRECISION = torch.float16


def released_tensors(method: str, golden: Golden) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by their released names."""
    figures = golden.figures
    clip = rule.clip_state_dict(figures["seed"], **golden.layers)
    del clip["logit_scale"]
    if method == "tbps_clip":
        model = {name if name.startswith("visual.") else f"encode_text.{name}": value for name, value in clip.items()}
    else:
        positions, square = "visual.positional_embedding", ClipArchitecture(**golden.layers)
        clip[positions] = resize_positions(clip[positions], square.grid, golden.architecture.grid)
        model = {f"base_model.{name}": value for name, value in clip.items()}
    for name, shape in figures.get("shapes", {}).items():
        is_count = name.endswith("num_batches_tracked")
        model[name] = torch.tensor(0) if is_count else rule.value(name, tuple(shape), figures["seed"])
    if method == "tbps_clip":
        model["logit_scale"] = torch.tensor(figures["logit_scale"])
    for name in figures.get("duplicate_names_after_first_forward", ()):
        tower = "vit" if ".visual." in name else "text"
        block, leaf = name.split(".resblocks.")[1].split(".attn.prefix.")
        model[name] = model[f"{tower}_prefix_learner.{tower}_prefix.{block}.{leaf}"]
    return model


def in_half_precision(method: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in the precision in which a run on a GPU holds each of them."""
    return {
        name: value.to(HALF_PRECISION) if _is_half(method, name, value) else value for name, value in tensors.items()
    }


def _is_half(method: str, name: str, value: Tensor) -> bool:
    leaf = name.rsplit(".", maxsplit=1)[-1]
    if method == "up_person" and (".attn.prefix." in name or not name.startswith("base_model.")):
        return leaf == "tokens" or (leaf == "scale" and value.ndim == 0 and not name.startswith("LORA"))
    stay = (".ln_", ".bns.", "token_embedding", "positional_embedding", "class_embedding")
    return not (any(part in name for part in stay) or leaf.endswith("_param") or value.ndim == 0)


def options_of(method: str, golden: Golden) -> str:
    """Return the text of configs.yaml."""
    losses, lr, names = OF_METHOD[method]
    masks = "false" if method == "rde" else "true"
    added = "".join(f"{name}: {golden.figures[name]}\n" for name in names)
    return OPTIONS.format(losses=losses, lr=lr, mlm=masks) + added + FURTHER.get(method, "")


def write_folder(folder: Path, method: str, golden: Golden, tensors: dict[str, Tensor], file: str = "best.pth") -> Path:
    """Write a folder with these tensors; `file` is the name of the weights of all methods but TBPS-CLIP."""
    folder.mkdir(parents=True, exist_ok=True)
    if method != "tbps_clip":
        (folder / "configs.yaml").write_text(options_of(method, golden))
        content: dict[str, Any] = {"model": tensors, "optimizer": {}, "scheduler": {}, "epoch": 3, "iteration": 0}
        torch.save(content, folder / file)
        return folder
    package = types.ModuleType("easydict")
    package.EasyDict = type("EasyDict", (dict,), {"__module__": "easydict"})  # type: ignore[attr-defined]
    with mock.patch.dict(sys.modules, easydict=package):
        experiment = package.EasyDict(input_resolution=[224, 224], text_length=77)
        config = package.EasyDict(device="cuda:0", experiment=experiment)
        torch.save({"model": tensors, "optimizer": {"state": {}}, "config": config}, folder / "checkpoint_best.pth")
    return folder
