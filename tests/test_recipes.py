"""Recipes: valid files that train the stated parts and learn; recipes based on others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from cskt.config import (
    RECIPES,
    ClipArchitecture,
    RunConfig,
    flat_fields,
    load_config,
    read_recipe,
    read_yaml,
    recipe_names,
    save_config,
    validate,
)  # fmt: skip
from cskt.config.schema import value_of
from cskt.data.paperdoll import make_dataset
from cskt.embed import load
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.native import save_backbone
from cskt.training.events import read_events
from cskt.training.loop import train

TEXT, VISION, T2V, V2T = "prompts.text", "prompts.vision", "prompts.t2v", "prompts.v2t"
PROMPTS = {TEXT, VISION, T2V, V2T}
ADAPTERS = {"adapters.text", "adapters.vision"}
WHOLE = {"text", "vision"}
TRAINS: dict[str, set[str]] = {
    "clip": set(),
    "cskt": PROMPTS | ADAPTERS,
    "cskt-bpt": PROMPTS,
    "cskt-dat": ADAPTERS,
    "cskt-dat-text": {"adapters.text"},
    "cskt-dat-vision": {"adapters.vision"},
    "cskt-own": {TEXT, VISION} | ADAPTERS,
    "cskt-reference": PROMPTS | ADAPTERS,
    "cskt-t2v": {TEXT, T2V} | ADAPTERS,
    "cskt-text": {TEXT} | ADAPTERS,
    "cskt-v2t": {VISION, V2T} | ADAPTERS,
    "cskt-vision": {VISION} | ADAPTERS,
    "demo": PROMPTS | ADAPTERS,
    "dm-adapter": {"parts.dm_adapter"},
    "finetune": WHOLE,
    "finetune-itc": WHOLE,
    "irra": WHOLE,
    "linear": {"text.proj", "vision.proj"},
    "lora": {"lora.text", "lora.vision"},
    "maple": {TEXT, T2V},
    "rde": WHOLE | {"parts.tse"},
    "rde-released": WHOLE | {"parts.tse"},
    "tbps-clip": WHOLE,
    "tbps-clip-simple": WHOLE,
    "tiny": WHOLE,
    "up-person": {"parts.up_person"},
}
"""Recipe -> trained parts of the model, as prefixes of parameter names."""
NUMBERS = {
    "clip": 0,
    "cskt": 12_117_888,
    # norm, task vector, alpha, both gates; six experts of two layers
    "dm-adapter": sum(12 * (3 * d + 1 + 2 * 6 * d + 6 * (2 * d * d // 8 + d // 8 + d)) for d in (768, 512)),
    "linear": (768 + 512) * 512,
    "lora": 12 * 3 * 4 * 2 * (768 + 512),
    "maple": 9 * (2 * 512 + 512 * 768 + 768),
    # prefixes; updates of keys and values; adapters before attention and MLP
    "up-person": sum(
        12 * (2 * 10 * d + 3 + 2 * (2 * 32 * d + 1) + 2 * (2 * d * d // 8 + d // 8 + d + 1)) for d in (768, 512)
    ),
}
"""Recipe -> number of trained parameters over ViT-B/16, in closed form or as published."""


# --- content


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_file_is_valid_by_itself(name: str) -> None:
    content = read_yaml(RECIPES / f"{name}.yaml")
    base = content.pop("base", None)
    assert validate(RunConfig, content, name).name == name
    assert base in (None, "init_from", *recipe_names())


@pytest.mark.parametrize("name", sorted(set(recipe_names()) - {"adapt"}))
def test_a_recipe_trains_the_stated_parts(name: str) -> None:
    config = load_config(name)
    sizes = config.backbone.architecture or ClipArchitecture(image_height=384, image_width=128)
    with torch.device("meta"):
        model = DualEncoder(sizes, config.method, trainable=config.trainable, frozen=config.frozen)
    names = [each for each, _ in model.named_parameters() if not each.startswith(config.frozen)]
    assert len(names) == len(list(model.parameters())) - len(config.frozen)
    expected = [each for each in names if each.startswith(tuple(f"{part}." for part in TRAINS[name]))]
    expected += [each for each in names if each in TRAINS[name]]  # a projection is a parameter, not a module
    trainable = model.trainable_names()
    assert set(trainable) == set(expected)
    assert all(any(each.startswith(part) for each in trainable) for part in TRAINS[name])
    added = {".".join(each.split(".")[:2]) for each in names if not each.startswith(("text.", "vision."))}
    assert added == {part for part in TRAINS[name] if not part.startswith(("text", "vision"))}, "no unused part"
    if name in NUMBERS:
        assert model.num_parameters(trainable_only=True) == NUMBERS[name]


def differences(one: RunConfig, other: RunConfig) -> dict[str, Any]:
    """Return the keys in which two configs differ, with the value of the first."""
    return {key: value_of(one, key) for key, _ in flat_fields() if value_of(one, key) != value_of(other, key)}


@pytest.mark.parametrize(
    ("name", "base", "changes"),
    [
        ("cskt-bpt", "cskt", {"adapters.sides": "none"}),
        ("cskt-dat", "cskt", {"prompts.directions": "none"}),
        ("cskt-dat-text", "cskt", {"prompts.directions": "none", "adapters.sides": "text"}),
        ("cskt-dat-vision", "cskt", {"prompts.directions": "none", "adapters.sides": "vision"}),
        ("cskt-own", "cskt", {"prompts.directions": "own"}),
        ("cskt-t2v", "cskt", {"prompts.directions": "t2v"}),
        ("cskt-text", "cskt", {"prompts.directions": "text"}),
        ("cskt-v2t", "cskt", {"prompts.directions": "v2t"}),
        ("cskt-vision", "cskt", {"prompts.directions": "vision"}),
        ("finetune-itc", "finetune", {"loss.weights": {"itc": 1.0}}),
        (
            "linear",
            "cskt",
            {"trainable": "projections", "prompts.directions": "none", "adapters.sides": "none"},
        ),
        (
            "maple",
            "cskt",
            {"prompts.directions": "t2v", "prompts.depth": 9, "prompts.length": 2, "adapters.sides": "none"},
        ),
        (
            "lora",
            "cskt",
            {
                "prompts.directions": "none", "adapters.sides": "none", "lora.sides": "both",
                "lora.targets": ("query", "key", "value"),
            },
        ),
    ],
)  # fmt: skip
def test_an_ablation_changes_one_thing(name: str, base: str, changes: dict[str, Any]) -> None:
    assert differences(load_config(name), load_config(base)) == {"name": name} | changes


# --- recipes based on others


def write(folder: Path, files: dict[str, str]) -> Path:
    """Write files and return the path of the first."""
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder / next(iter(files))


def test_a_recipe_overrides_its_base_key_by_key(tmp_path: Path) -> None:
    path = write(tmp_path, {"mine.yaml": "base: irra\nname: mine\nmlm: {cmt_depth: 2}\nloss: {weights: {sdm: 2.0}}\n"})
    irra, mine = load_config("irra"), load_config(path)
    changes = {"name": "mine", "mlm.cmt_depth": 2, "loss.weights": {"sdm": 2.0}}
    assert differences(mine, irra) == changes, "sections merge, weights of losses are replaced whole"
    save_config(mine, tmp_path / "config.yaml")
    assert "base" not in read_yaml(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == mine


def test_a_base_is_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {
            "top.yaml": "base: below/middle.yaml\nname: top\noptim: {lr: 0.5}\n",
            "below/middle.yaml": "base: lowest.yaml\nname: middle\noptim: {lr: 0.25, eps: 0.125}\n",
            "below/lowest.yaml": "base: lora\nseed: 9\noptim: {eps: 0.5, beta1: 0.5}\n",
        },
    )
    changes = {"name": "top", "seed": 9, "optim.lr": 0.5, "optim.eps": 0.125, "optim.beta1": 0.5}
    assert differences(load_config(path), load_config("lora")) == changes


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.yaml": "base: csktt"}, "a.yaml: base: unknown recipe 'csktt': did you mean 'cskt'?"),
        ({"a.yaml": "base: [cskt, irra]"}, "a.yaml: base: unknown recipe '['cskt', 'irra']': known: adapt, clip, "),
        ({"a.yaml": "base: absent.yaml"}, "absent.yaml: no such file"),
        ({"a.yaml": "base: a.yaml"}, "a.yaml: base: a.yaml is laid over itself"),
        ({"a.yaml": "base: b.yaml", "b.yaml": "base: a.yaml"}, "b.yaml: base: a.yaml is laid over itself"),
        ({"a.yaml": "base: b.yaml", "b.yaml": "base: csktt"}, "b.yaml: base: unknown recipe 'csktt': did you mean"),
        ({"a.yaml": "base: cskt\noptim: {lrr: 1}"}, "a.yaml: unknown key 'optim.lrr': did you mean 'optim.lr'?"),
        ({"a.yaml": "base: cskt\noptim: 3"}, "a.yaml: optim: "),
    ],
)
def test_an_invalid_base_is_an_error_of_one_line(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_config(write(tmp_path, files))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_only_files_have_a_base() -> None:
    with pytest.raises(ValueError, match="config: unknown key 'base'"):
        load_config({"base": "cskt"})
    assert "base" not in read_recipe(RECIPES / "maple.yaml")


# --- learning

CHANCE = 2 / 20
"""R1 of a random order: two images of the right person among those of ten people."""
QUICK: dict[str, Any] = {
    "device": "cpu", "backbone.image_height": 64, "backbone.image_width": 32,
    "prompts.depth": 3, "prompts.length": 2, "mlm.cmt_depth": 1, "data.dataset": "jsonl",
    "data.batch_size": 20, "data.caption_length": 20, "data.num_workers": 0, "data.cache_images": True,
    "augment.flip_probability": 0.0, "augment.pad_pixels": 0, "augment.erase_probability": 0.0,
    "optim.lr": 5e-3, "optim.eps": 1e-6, "optim.warmup_epochs": 0,
    "loop.num_epochs": 8, "loop.eval_period_epochs": 8, "loop.evaluate_before": False, "loop.log_period_steps": 1,
}  # fmt: skip
"""Overrides of a recipe: 16 steps on small crops at a high rate."""
WHOLE_CLIP = {"optim.lr": 3e-4, "loss.temperature": 0.05, "loop.num_epochs": 5}
RDE = WHOLE_CLIP | {
    "optim.head_lr_factor": 10.0, "augment.caption_change_probability": 0.0, "loss.tal_temperature": 0.05,
    "hooks.noise_division.mixture": "none", "loop.num_epochs": 8,
}  # fmt: skip
TBPS_CLIP = WHOLE_CLIP | {"augment.draws": 0, "augment.word_drop_probability": 0.0, "loop.num_epochs": 8}
RATES = {
    "finetune": WHOLE_CLIP, "finetune-itc": WHOLE_CLIP, "irra": WHOLE_CLIP, "linear": {"optim.lr": 1e-3},
    "rde": RDE, "rde-released": RDE, "tbps-clip": TBPS_CLIP, "tbps-clip-simple": TBPS_CLIP,
    "cskt-bpt": {"optim.lr": 1e-2}, "cskt-dat-vision": {"optim.lr": 1e-2}, "maple": {"optim.lr": 1e-2},
    "up-person": {"optim.lr": 1e-3},
}  # fmt: skip
"""Overrides per recipe: lower rates for many trained parameters, higher ones for few."""


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten people with two images of two captions each, and copies of them under other identities for selection.

    A few steps suffice to learn these ten people, but not to generalise to others.
    """
    root = tmp_path_factory.mktemp("people")
    make_dataset(root, layout="jsonl", domain="source", ids={"train": 10, "val": 1, "test": 1}, images_per_id=2)
    records = [json.loads(line) for line in (root / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    for record in records:
        copy = f"copies/{record['image']}"
        (root / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / record["image"], root / copy)
        record |= {"image": copy, "pid": record["pid"] + 1000}
    (root / "val.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clip-tiny with one large vector added to every caption, so that most captions find the same few images.

    Its towers still separate the people, and a method has to restore this in the ranking.
    """
    encoder = load("clip-tiny", device="cpu")
    bias = encoder.model.text.ln_final.bias
    with torch.no_grad():
        bias += 13 * torch.randn(bias.shape, generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("hub") / "hub.safetensors"
    state = {name: value.detach() for name, value in encoder.model.named_parameters()}
    known = encoder.tokenizer.known_ids
    save_backbone(path, state, encoder.model.architecture, facts={}, known_token_ids=known)
    return path


@pytest.fixture(autouse=True)
def _in_one_thread(one_thread: None) -> None:
    """Sums in the same order on every machine."""


@pytest.fixture(scope="module")
def zero_shot(people: Path, hub: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """R1 of the recipe `clip` with clip-tiny and with the modified backbone."""
    folder = tmp_path_factory.mktemp("zero-shot")
    return {name: run("clip", people, name, folder / Path(name).stem)[0] for name in ("clip-tiny", str(hub))}


def run(recipe: str, root: Path, backbone: str, folder: Path) -> tuple[float, list[float]]:
    """Train and return R1 on the selection split and the mean loss of each epoch."""
    fixed = {"data.root": str(root), "backbone.name": backbone}
    result = train(load_config(recipe, QUICK | RATES.get(recipe, {}) | fixed), folder)
    steps = [event for event in read_events(result.folder) if event["event"] == "step"]
    epochs = sorted({event["epoch"] for event in steps})
    return result.best_r1, [fmean(event["loss"] for event in steps if event["epoch"] == epoch) for epoch in epochs]


def test_zero_shot_r1_of_both_backbones(zero_shot: dict[str, float], hub: Path) -> None:
    assert zero_shot["clip-tiny"] > 6 * CHANCE
    assert zero_shot[str(hub)] < 3 * CHANCE, "the recipes below must exceed it"


LEARNING = [name for name in recipe_names() if name not in ("adapt", "clip", "demo", "tiny")]


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=() if name == "cskt" else pytest.mark.slow) for name in LEARNING]
)
def test_a_recipe_learns(recipe: str, people: Path, hub: Path, tmp_path: Path, zero_shot: dict[str, float]) -> None:
    r1, losses = run(recipe, people, str(hub), tmp_path / "run")
    assert losses[-1] < 0.9 * losses[0]
    assert r1 > 3 * CHANCE and r1 > 1.5 * zero_shot[str(hub)]
