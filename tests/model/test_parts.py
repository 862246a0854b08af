"""The protocol of method parts: all that a part may add, against a second implementation; folded; refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import naive_clip
import pytest
import tiny_clip
import torch
from torch import Tensor, nn

from cskt.config import AdapterConfig, ClipArchitecture, LoraConfig, PromptConfig
from cskt.data.tokenizer import Tokenizer
from cskt.embed import Encoder
from cskt.errors import CsktError
from cskt.explain import patch_relevance
from cskt.model.dual_encoder import DualEncoder
from cskt.model.folded import FoldedMLP, fold_text, fold_vision
from cskt.model.parts import PARTS, Part, PartExtras, Side, part_config, register
from cskt.model.parts.adapters import Adapter
from cskt.model.parts.lora import LowRank
from cskt.utils.modules import named_tensors

SIZES = ClipArchitecture(
    embed_dim=6, image_height=16, image_width=12, patch_size=4, stride=4, vision_width=24, vision_layers=3,
    vision_heads=2, text_width=16, text_layers=2, text_heads=2, context_length=15, vocab_size=30,
)  # fmt: skip
KINDS = ("prompts", "prefix_kv", "before_attention", "before_mlp", "beside_mlp", "low_rank")
WIDTHS: dict[Side, tuple[int, int]] = {
    "vision": (SIZES.vision_layers, SIZES.vision_width), "text": (SIZES.text_layers, SIZES.text_width)
}  # fmt: skip


class Everything(Part):
    """A part that adds the kinds of its config to both towers; prompts to one block, prefixes to two."""

    @part_config
    class Config:
        kinds: tuple[str, ...] = KINDS
        foldable: bool = False
        is_on: bool = True

    def __init__(self, config: Any, architecture: ClipArchitecture) -> None:
        super().__init__(config, architecture)
        for side, (layers, width) in WIDTHS.items():
            made = {
                "prompts": nn.ParameterList([torch.empty(2, width)]),
                "prefix_kv": nn.ParameterList([torch.empty(3, 2 * width), torch.empty(1, 2 * width)]),
                "before_attention": nn.ModuleList(nn.Linear(width, width) for _ in range(layers)),
                "before_mlp": nn.ModuleList(nn.Linear(width, width) for _ in range(layers)),
                "beside_mlp": nn.ModuleList(
                    Adapter(width, 4, 0.5) if config.foldable else nn.Sequential(nn.Linear(width, width), nn.Tanh())
                    for _ in range(layers)
                ),
                "low_rank": nn.ModuleList(
                    nn.ModuleDict({"key": LowRank(width, width, 2, 0.5)}) for _ in range(layers)
                ),
            }  # fmt: skip
            self.add_module(side, nn.ModuleDict({kind: made[kind] for kind in config.kinds}))

    @classmethod
    def is_active(cls, config: Any) -> bool:
        return bool(config.is_on)

    def extras(self, side: Side) -> PartExtras:
        return PartExtras(**dict(getattr(self, side).items()))


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PARTS, "_entries", dict(PARTS._entries))
    monkeypatch.setattr(PARTS, "_plugins", dict(PARTS._plugins))
    register("everything")(Everything)


def model_of(method: dict[str, Any]) -> DualEncoder:
    """Every number random, in float64."""
    model, generator = DualEncoder(SIZES, method), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model.double()


def batch() -> tuple[Tensor, Tensor]:
    return tiny_clip.random_images(3, SIZES.image_height, SIZES.image_width).double(), tiny_clip.random_captions(30, 15)


def naively(model: DualEncoder) -> tuple[Tensor, Tensor]:
    """Features of the batch by the second implementation; the low-rank update of keys goes by the name of LoRA."""
    state, added = dict(model.state_dict()), {}
    prompts: dict[Side, list[Tensor]] = {}
    for side in WIDTHS:
        parts = getattr(model.parts["everything"], side)
        prompts[side] = list(parts["prompts"]) if "prompts" in parts else []
        for kind in set(KINDS[1:5]) & set(parts.keys()):
            for index, value in enumerate(parts[kind]):
                added[side, index, kind] = value if isinstance(value, nn.Module) else lambda _, value=value: value
        for index, updates in enumerate(dict(parts.items()).get("low_rank", ())):
            state |= {f"lora.{side}.{index}.key.{leaf}": getattr(updates["key"], leaf) for leaf in ("up", "down")}
    return naive_clip.features(state, SIZES, *batch(), prompts["vision"], prompts["text"], scale=0.5, added=added)


@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), KINDS], ids="-".join)
@pytest.mark.parametrize("foldable", [False, True])
@torch.no_grad()
def test_every_addition_is_computed_and_folded(kinds: tuple[str, ...], foldable: bool) -> None:
    model = model_of({"everything": {"kinds": kinds, "foldable": foldable}})
    found, plain = model(*batch()), model.bare()(*batch())
    folded = fold_vision(model, torch.float64)(batch()[0]), fold_text(model, torch.float64)(batch()[1])
    for ours, expected, inferred, without in zip(found, naively(model), folded, plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(inferred.double(), expected, rtol=1e-5, atol=1e-5)
        assert (ours - without).abs().max() > 1e-4
    is_folded = isinstance(fold_vision(model).tower.blocks[0].mlp, FoldedMLP)
    assert is_folded == ("before_mlp" not in kinds and ("beside_mlp" not in kinds or foldable))


@torch.no_grad()
def test_parts_add_up_and_the_tokens_are_those_of_the_features() -> None:
    own = {
        "prompts": PromptConfig(depth=1, length=1),
        "adapters": AdapterConfig(reduction=4),
        "lora": LoraConfig("both"),
    }
    model = model_of({**own, "everything": {}})
    assert list(model.method_parts()) == [*own, "everything"] and model.num_text_slots == 2 + 2
    images, caption_ids = batch()
    folded = fold_vision(model, torch.float64)(images), fold_text(model, torch.float64)(caption_ids)
    for found, expected in zip(folded, model(images, caption_ids), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert {p.dtype for p in fold_text(model, torch.bfloat16).parameters()} == {torch.bfloat16}
    torch.testing.assert_close(model.image_outputs(images).features, model.encode_image(images))
    torch.testing.assert_close(model.text_outputs(caption_ids).features, model.encode_text(caption_ids))


def test_its_parameters_train_and_a_step_with_less_memory_is_the_same() -> None:
    model = model_of({"everything": {}})
    assert all(name.startswith("parts.everything.") for name in model.trainable_names())
    gradients = []
    for recompute in (False, True):
        model.checkpoint_activations(recompute)
        model.zero_grad()
        sum(features.square().sum() for features in model(*batch())).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(*gradients)
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0])


def test_heat_maps_cover_the_patches() -> None:
    model = model_of({"everything": {}})
    _, relevance = patch_relevance(model, batch()[0][:1], torch.eye(6, dtype=torch.float64)[:2])
    assert relevance.shape == (2, *SIZES.grid) and relevance.abs().sum() > 0


def test_low_rank_updates_alone_are_merged() -> None:
    model = model_of({"everything": {"kinds": ["low_rank"]}})
    expected = model(*batch())
    model.fold_low_rank()
    assert not model.method_parts()
    torch.testing.assert_close(model(*batch()), expected)


class WithEmptyLists(Everything):
    """Lists of nothing beside the additions; also a head that looks at the whole batch, if it adds nothing."""

    Config = Everything.Config

    def __init__(self, config: Any, architecture: ClipArchitecture) -> None:
        super().__init__(config, architecture)
        if not config.kinds:
            self.by_row, self.embedding_width = False, 4

    def extras(self, side: Side) -> PartExtras:
        return dataclasses.replace(super().extras(side), **{kind: [] for kind in KINDS if kind != "low_rank"})


def test_empty_lists_add_nothing() -> None:
    register("empty")(WithEmptyLists)
    model = model_of({"empty": {"kinds": ["low_rank"]}})
    model.fold_low_rank()
    assert not model.method_parts(), "only low-rank updates, which are merged"
    assert not next(iter(model_of({"empty": {"kinds": []}}).heads.values())).by_row


def test_the_settings_are_part_of_the_fingerprint() -> None:
    def fingerprint(method: dict[str, Any]) -> str:
        model = model_of(method).float()
        return Encoder(model, Tokenizer(10), device="cpu").fingerprint

    assert fingerprint({"everything": {}}) == fingerprint({"everything": Everything.Config()})
    assert fingerprint({"everything": {}}) != fingerprint({"everything": {"kinds": KINDS[::-1]}})
    assert not model_of({"everything": {"is_on": False}}).method_parts()


# --- what is refused


class Wrong(Part):
    @part_config
    class Config:
        kind: str
        side: str = "text"

    def extras(self, side: Side) -> PartExtras:
        made = {
            "prompts": [torch.zeros(2, 5)], "prefix_kv": [torch.zeros(1, 32)] * 4, "deep": [torch.zeros(1, 16)] * 2,
            "uneven": [torch.zeros(1, 16), torch.zeros(2, 16)], "long": [torch.zeros(13, 16)],
            "beside_mlp": nn.ModuleList([nn.Identity()]), "one": torch.zeros(2, 16), "functions": [torch.relu] * 2,
            "low_rank": nn.ModuleList([nn.ModuleDict({"gate": nn.Identity()}), nn.ModuleDict()]),
        }  # fmt: skip
        if self.config.kind == "dict":
            return {"prompts": made["deep"]}  # type: ignore[return-value]
        kind = self.config.kind if self.config.kind in KINDS else "prompts"
        kind = "before_mlp" if self.config.kind == "functions" else kind
        return PartExtras(**{kind: made[self.config.kind]}) if side == "text" else PartExtras()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("prompts", r"method part 'wrong', text tower: prompts of shape \[2, 5\], expected \[rows, 16\]"),
        ("prefix_kv", "text tower: prefix_kv for 4 blocks, the tower has 2"),
        ("uneven", "the number of prompts differs between blocks"),
        ("beside_mlp", "beside_mlp has 1 modules, the tower has 2 blocks"),
        ("low_rank", "low_rank target 'gate' is none of query, key"),
        (
            "deep",
            "the method parts prompts, wrong add prompts to 1, 2 blocks of the text tower; give them the same depth",
        ),
        ("dict", "method part 'wrong': extras returned dict; expected PartExtras"),
        ("one", r"text tower: prompts is shape \[2, 16\] of torch.float32; expected a list with a tensor for each"),
        ("functions", "text tower: before_mlp is list; expected a list with a module or None for each"),
        ("long", "prompts leave no word in 15 positions"),
    ],
)
def test_additions_that_do_not_fit_are_refused(kind: str, message: str) -> None:
    register("wrong")(Wrong)
    with pytest.raises(CsktError, match=message):
        DualEncoder(SIZES, {"prompts": PromptConfig(depth=1, length=1), "wrong": {"kind": kind}})


class OneBlock(Everything):
    """The modules of the last block alone; None in the others."""

    Config = Everything.Config

    def extras(self, side: Side) -> PartExtras:
        modules = {kind: list(value) for kind, value in getattr(self, side).items()}
        return PartExtras(**{kind: [None] * (len(value) - 1) + value[-1:] for kind, value in modules.items()})


@torch.no_grad()
def test_blocks_may_have_no_module() -> None:
    kinds = KINDS[2:]
    register("one_block")(OneBlock)
    model, same = (model_of({name: {"kinds": kinds}}) for name in ("one_block", "everything"))
    for side, (layers, _) in WIDTHS.items():
        for kind in kinds:
            for module in getattr(same.parts["everything"], side)[kind][: layers - 1]:
                for parameter in module.parameters():
                    parameter.zero_()
    for found, expected in zip(model(*batch()), same(*batch()), strict=True):
        torch.testing.assert_close(found, expected)
    folded = fold_vision(model, torch.float64)(batch()[0])
    torch.testing.assert_close(folded.double(), model.encode_image(batch()[0]), rtol=1e-5, atol=1e-5)


class Buffered(Everything):
    """With a table, that no file would hold unless it is persistent."""

    @part_config
    class Config:
        persistent: bool = True
        kinds: tuple[str, ...] = KINDS
        foldable: bool = False

    def __init__(self, config: Any, architecture: ClipArchitecture) -> None:
        super().__init__(config, architecture)
        self.register_buffer("table", torch.arange(3), persistent=config.persistent)

    is_active = Part.is_active


def test_buffers_must_be_persistent() -> None:
    register("buffered")(Buffered)
    assert "parts.buffered.table" in named_tensors(DualEncoder(SIZES, {"buffered": {}}))
    with pytest.raises(CsktError, match="method part 'buffered': the buffer 'table' is not persistent"):
        DualEncoder(SIZES, {"buffered": {"persistent": False}})


@pytest.mark.parametrize("name", ["", "two words", "a.b", "items", "prompts"])
def test_a_name_that_cannot_be_used_is_refused(name: str) -> None:
    with pytest.raises(CsktError, match="method part"):
        register(name)(Everything)


@pytest.mark.parametrize("kind", [int, nn.Linear, type("Bare", (Part,), {})])
def test_what_is_no_part_is_refused(kind: type) -> None:
    with pytest.raises(CsktError, match="method part 'mine': decorate a class that extends Part"):
        register("mine")(kind)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"everythin": {}}, "unknown method part 'everythin': did you mean 'everything'?"),
        ({"everything": {"kind": 1}}, r"parts\.everything: unknown key 'kind'"),
        ({"everything": {"is_on": "perhaps"}}, r"parts\.everything: is_on: "),
    ],
)
def test_a_wrong_config_is_refused(method: dict[str, Any], message: str) -> None:
    with pytest.raises(CsktError, match=message.replace("?", r"\?")):
        DualEncoder(SIZES, method)
