"""Activation and heads in JSON files have the meaning that transformers and open_clip give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_clip
import torch
from safetensors.torch import save_file
from tiny_clip import ARCHITECTURE, LEFTOVERS, assert_tiny, open_clip_config, refused
from transformers import CLIPConfig

from cskt.config import BackboneConfig
from cskt.model.io.json_configs import hugging_face_facts, resolved_section
from cskt.model.io.weights import load_backbone

# --- TorchScript archives


def other_archive(path: Path) -> Path:
    """The archive of a CLIP that is not OpenAI's: without its extra tensors."""
    return tiny_clip.save_archive(tiny_clip.OpenAIClip(), path, extras=())


def test_an_archive_is_openais_only_with_its_extra_tensors_or_digest(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_backbone(BackboneConfig(name=str(archive))).architecture == ARCHITECTURE
    other = other_archive(tmp_path / "other.pt")
    line = refused(other)
    for flag in ("backbone.activation", "backbone.vision_heads", "backbone.text_heads", "--vision-heads"):
        assert flag in line
    flags: dict[str, Any] = {"activation": "gelu", "vision_heads": 4, "text_heads": 2}
    architecture = load_backbone(BackboneConfig(name=str(other), **flags)).architecture
    assert (architecture.activation, architecture.vision_heads, architecture.text_heads) == ("gelu", 4, 2)
    monkeypatch.setattr("cskt.model.io.layouts.is_openais", lambda sha256: True)
    assert load_backbone(BackboneConfig(name=str(other))).architecture == ARCHITECTURE


@pytest.mark.parametrize("missing", LEFTOVERS)
def test_every_extra_tensor_is_needed(tmp_path: Path, missing: str) -> None:
    extras = {name: torch.tensor(size) for name, size in LEFTOVERS.items() if name != missing}
    torch.save(tiny_clip.plain_state() | extras, tmp_path / "clip.pt")
    assert "backbone.activation" in refused(tmp_path / "clip.pt")


def test_an_archive_with_open_clips_config_beside_is_what_that_says(tmp_path: Path) -> None:
    other = other_archive(tmp_path / "other.pt")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(open_clip_config()))
    architecture = load_backbone(BackboneConfig(name=str(other))).architecture
    assert (architecture.activation, architecture.vision_heads, architecture.text_heads) == ("gelu", 4, 4)


# --- Hugging Face

PLAIN: dict[str, Any] = {"num_attention_heads": 4, "hidden_act": "gelu", "num_hidden_layers": 3, "hidden_size": 64}
OTHER: dict[str, Any] = {"num_attention_heads": 2, "hidden_act": "quick_gelu", "num_hidden_layers": 6}
VARIANTS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a section": {"X_config": PLAIN},
    "an empty section": {"X_config": {}},
    "null": {"X_config": None},
    "a legacy section": {"X_config_dict": PLAIN},
    "an empty legacy section": {"X_config": PLAIN, "X_config_dict": {}},
    "a legacy section of null": {"X_config": PLAIN, "X_config_dict": None},
    "both, equal": {"X_config": PLAIN, "X_config_dict": PLAIN},
    "both, differing": {"X_config": PLAIN, "X_config_dict": OTHER | {"hidden_size": 32}},
    "a partial legacy section": {"X_config": PLAIN, "X_config_dict": {"hidden_act": "gelu"}},
    "a partial section": {"X_config": {"num_attention_heads": 4}, "X_config_dict": OTHER},
    "null beside a legacy section": {"X_config": None, "X_config_dict": OTHER},
    "an empty section beside a legacy one": {"X_config": {}, "X_config_dict": OTHER},
    "sections with a type": {"X_config": PLAIN | {"model_type": "clip_X_model"}, "X_config_dict": OTHER},
    "settings of training": {"X_config": PLAIN | {"attention_dropout": 0.1, "torch_dtype": "float16"}},
}
READ = ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps")


@pytest.mark.parametrize("side", ["text", "vision"])
@pytest.mark.parametrize("kind", VARIANTS)
def test_sections_resolve_as_in_transformers(kind: str, side: str, tmp_path: Path) -> None:
    content = json.loads(json.dumps({"model_type": "clip"} | VARIANTS[kind]).replace("X_", f"{side}_"))
    found = resolved_section(content, side, Path("config.json"))
    (tmp_path / "config.json").write_text(json.dumps(content))
    theirs = getattr(CLIPConfig.from_pretrained(tmp_path), f"{side}_config")
    assert {key: found[key] for key in READ} == {key: getattr(theirs, key) for key in READ}


SIZES = {"text_width": 512, "text_layers": 12, "vision_width": 768, "vision_layers": 12, "vocab_size": 49408}


def facts(tmp_path: Path, content: Any) -> dict[str, Any]:
    (tmp_path / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return hugging_face_facts(tmp_path / "config.json", SIZES, weights_name="model.safetensors")


def test_what_is_left_out_has_transformers_defaults(tmp_path: Path) -> None:
    expected = {"activation": "quick_gelu", "text_heads": 8, "vision_heads": 12}
    assert facts(tmp_path, {}) == facts(tmp_path, {"text_config": {"eos_token_id": 2}}) == expected
    gelu = {f"{side}_config": {"hidden_act": "gelu_python"} for side in ("text", "vision")}
    assert facts(tmp_path, gelu)["activation"] == "gelu"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "must be"),
        ("{", "not JSON"),
        ({"model_type": 7}, "model_type 7"),
        ({"text_config": [1]}, "text_config, which must be an object"),
        ({"text_config_dict": 5}, "text_config_dict, which must be an object"),
        ({"text_config": {"num_attention_heads": "8"}}, "'text_config.num_attention_heads' must be a whole number"),
        ({"text_config": {"num_attention_heads": 0}}, "'text_config.num_attention_heads' must be a whole number"),
        ({"vision_config": {"num_attention_heads": None}}, "'vision_config.num_attention_heads'"),
        ({"text_config": {"hidden_act": ["gelu"]}}, "hidden_act"),
        ({"text_config": {"hidden_act": "gelu_new"}}, "'text_config.hidden_act' 'gelu_new' is not supported"),
        ({"text_config": {"hidden_act": "gelu"}}, "different activations"),
        ({"text_config": {"layer_norm_eps": None}}, "layer_norm_eps None"),
        ({"text_config": {"hidden_size": 64}}, "text hidden_size 64 does not fit model.safetensors (512)"),
        ({"text_config": {"eos_token_id": 49409}}, "text eos_token_id 49409"),
        ({"text_config": {"eos_token_id": [2]}}, "text eos_token_id"),
    ],
)
def test_what_is_not_supported_is_one_line(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"config\.json: ") as caught:
        facts(tmp_path, content)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# --- open_clip


def with_settings(folder: Path, **model: Any) -> Path:
    save_file(tiny_clip.plain_state(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config(**model)))
    return folder


def towers(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> dict[str, Any]:
    known: Any = open_clip_config()["model_cfg"]
    return {"vision_cfg": known["vision_cfg"] | (vision or {}), "text_cfg": known["text_cfg"] | (text or {})}


@pytest.mark.parametrize(
    "model",
    [
        towers({"patch_dropout": 0.5}),
        towers({"output_tokens": True, "attentional_pool": False, "pool_type": "tok", "ls_init_value": None}),
        towers({"timm_model_name": None, "timm_pool": "avg", "timm_proj": "linear", "norm_kwargs": {"eps": 1e-5}}),
        towers(text={"pool_type": "argmax", "pad_id": 1, "proj_bias": False, "proj_type": "linear", "act_kwargs": {}}),
        towers(text={"hf_pooler_type": "mean_pooler", "hf_model_pretrained": True, "mlp_ratio": 4.0}),
        {"init_logit_scale": 2.6, "init_logit_bias": -10, "cast_dtype": "fp16"},
    ],
)
def test_settings_without_effect_at_inference_are_taken(tmp_path: Path, model: dict[str, Any]) -> None:
    assert_tiny(load_backbone(BackboneConfig(name=str(with_settings(tmp_path, **model)))).state)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (towers({"ls_init_value": 1e-4}), "vision_cfg.ls_init_value"),
        (towers({"attentional_pool": True}), "vision_cfg.attentional_pool"),
        (towers({"pool_type": "avg"}), "vision_cfg.pool_type"),
        (towers({"norm_kwargs": {"eps": 1e-6}}), "vision_cfg.norm_kwargs"),
        (towers(text={"no_causal_mask": True}), "text_cfg.no_causal_mask"),
        (towers(text={"hf_tokenizer_name": "bert"}), "text_cfg.hf_tokenizer_name"),
        (towers({"head_width": 0}), "vision_cfg.head_width' must be a whole number"),
        (towers({"head_width": "64"}), "vision_cfg.head_width' must be a whole number"),
        (towers(text={"heads": [4]}), "text_cfg.heads' must be a whole number"),
        ({"quick_gelu": "yes"}, "model_cfg.quick_gelu' must be true or false"),
        ({"multimodal_cfg": {"width": 1}}, "model_cfg.multimodal_cfg"),
    ],
)
def test_settings_that_change_the_function_are_refused(tmp_path: Path, model: dict[str, Any], message: str) -> None:
    line = refused(with_settings(tmp_path, **model))
    assert "open_clip_config.json: " in line and message in line
