"""The normalisation of a backbone comes from the JSON files beside its weights, read as their programs read them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import tiny_clip
import torch
from safetensors.torch import save_file
from tiny_clip import UNKNOWN_ORIGIN, open_clip_config, refused
from transformers import CLIPImageProcessor

from cskt.config import CLIP_MEAN, CLIP_STD, BackboneConfig
from cskt.model.io.json_configs import Preprocessing, read_preprocessing
from cskt.model.io.weights import load_backbone

HALF = (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def folder_with(folder: Path, **files: Any) -> Path:
    """A weight file in open_clip's names, with JSON files beside it; a name ends in the file's stem."""
    folder.mkdir(exist_ok=True)
    save_file(tiny_clip.plain_state(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config(quick_gelu=True)))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def open_clip(**preprocess: Any) -> dict[str, Any]:
    return open_clip_config(quick_gelu=True) | {"preprocess_cfg": preprocess}


def found(folder: Path, **flags: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    architecture = load_backbone(BackboneConfig(name=str(folder), **flags)).architecture
    return architecture.image_mean, architecture.image_std


CLIPS = (CLIP_MEAN, CLIP_STD)
STATED: dict[str, tuple[dict[str, Any], Any]] = {
    "nothing": ({}, CLIPS),
    "an empty section": ({"open_clip_config": open_clip()}, CLIPS),
    "no section": ({"open_clip_config": open_clip_config(quick_gelu=True) | {"preprocess_cfg": None}}, CLIPS),
    "open_clip's 0.5": ({"open_clip_config": open_clip(mean=HALF, std=HALF)}, (HALF, HALF)),
    "one number for three": ({"open_clip_config": open_clip(mean=0.5, std=0.25)}, (HALF, (0.25, 0.25, 0.25))),
    "whole numbers": ({"open_clip_config": open_clip(mean=[0, 0, 0], std=[1, 1, 1])}, ((0, 0, 0), (1, 1, 1))),
    "ImageNet's": ({"open_clip_config": open_clip(mean=IMAGENET[0], std=IMAGENET[1])}, IMAGENET),
    "null": ({"open_clip_config": open_clip(mean=None, std=None)}, CLIPS),
    "the mean alone": ({"open_clip_config": open_clip(mean=HALF)}, (HALF, CLIP_STD)),
    "settings without effect here": (
        {"open_clip_config": open_clip(mean=HALF, std=HALF, size=[3, 4], mode="RGB", resize_mode="squash")},
        (HALF, HALF),
    ),
    "transformers'": ({"preprocessor_config": {"image_mean": HALF, "image_std": HALF}}, (HALF, HALF)),
    "transformers' since 5": (
        {"processor_config": {"image_processor": {"image_mean": HALF, "image_std": HALF}, "processor_class": "x"}},
        (HALF, HALF),
    ),
    "both of transformers'": (
        {
            "processor_config": {"image_processor": {"image_mean": HALF, "image_std": HALF}},
            "preprocessor_config": {"image_mean": IMAGENET[0], "image_std": IMAGENET[1]},
        },
        (HALF, HALF),
    ),
    "a processor without images": (
        {
            "processor_config": {"processor_class": "CLIPProcessor"},
            "preprocessor_config": {"image_mean": HALF, "image_std": HALF},
        },
        (HALF, HALF),
    ),
    "open_clip's first": (
        {
            "open_clip_config": open_clip(mean=HALF, std=HALF),
            "preprocessor_config": {"image_mean": IMAGENET[0], "image_std": IMAGENET[1]},
        },
        (HALF, HALF),
    ),
    "no normalisation": (
        {"preprocessor_config": {"do_normalize": False, "image_mean": HALF, "image_std": HALF}},
        ((0, 0, 0), (1, 1, 1)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", STATED)
def test_mean_and_std_are_those_that_the_files_state(tmp_path: Path, kind: str) -> None:
    files, expected = STATED[kind]
    assert found(folder_with(tmp_path / "clip", **files)) == expected


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "clip", open_clip_config=open_clip(mean=HALF, std=HALF))
    assert found(folder, image_mean=IMAGENET[0]) == (IMAGENET[0], HALF)
    assert found(folder, image_mean=IMAGENET[0], image_std=IMAGENET[1]) == IMAGENET


def test_openais_published_files_are_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their digest, whatever JSON file is in the same folder."""
    folder = folder_with(tmp_path / "clip", open_clip_config=open_clip(mean=HALF, std=HALF))
    monkeypatch.setattr("cskt.model.io.layouts.is_openais", lambda sha256: True)
    assert found(folder) == CLIPS


PROCESSORS: dict[str, dict[str, Any]] = {
    "CLIP's": {},
    "0.5": {"image_mean": HALF, "image_std": HALF},
    "another factor": {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
    "no factor": {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3},
    "not normalised": {"do_normalize": False},
    "neither": {"do_normalize": False, "do_rescale": False},
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_normalised_pixels_equal_those_of_transformers(tmp_path: Path, kind: str) -> None:
    from cskt.data.images import normalise

    processor = CLIPImageProcessor(do_resize=False, do_center_crop=False, **PROCESSORS[kind])
    processor.save_pretrained(tmp_path)
    pixels = torch.randint(0, 256, (2, 3, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stated = read_preprocessing(tmp_path / "model.safetensors", is_open_clip=False).completed(BackboneConfig())
    theirs = processor(list(pixels), return_tensors="pt")["pixel_values"]
    ours = normalise(pixels, stated["image_mean"], stated["image_std"])
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)


WRONG: dict[str, tuple[str, Any, str]] = {
    "no JSON": ("open_clip_config", "{", "open_clip_config.json: not JSON"),
    "a list": ("preprocessor_config", [1], "preprocessor_config.json: "),
    "a mean of two": ("preprocessor_config", {"image_mean": [1, 2]}, "'image_mean' must hold 3 numbers"),
    "a mean of text": ("preprocessor_config", {"image_mean": ["a", "b", "c"]}, "image_mean"),
    "a mean that is true": ("preprocessor_config", {"image_mean": True}, "image_mean"),
    "NaN": ("preprocessor_config", '{"image_mean": [NaN, 0, 0]}', "image_mean"),
    "a std of 0": ("preprocessor_config", {"image_std": [0, 1, 1]}, "standard deviation"),
    "a negative std": ("open_clip_config", open_clip(std=[-1, 1, 1]), "standard deviation"),
    "a std of 1e-300": ("open_clip_config", open_clip(std=[1e-300, 1, 1]), "standard deviation"),
    "a factor of 0": ("preprocessor_config", {"rescale_factor": 0}, "rescale_factor"),
    "a section of text": ("open_clip_config", open_clip_config() | {"preprocess_cfg": "x"}, "preprocess_cfg"),
    "BGR": ("open_clip_config", open_clip(mode="BGR"), "preprocess_cfg.mode must be RGB"),
    "defaults of another processor": (
        "preprocessor_config", {"image_processor_type": "ViTImageProcessor"}, "'image_mean' is missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_understood_is_one_line_with_file_and_field(tmp_path: Path, kind: str) -> None:
    name, content, message = WRONG[kind]
    line = refused(folder_with(tmp_path / "clip", **{name: content}))
    assert f"{name}.json: " in line and message in line


@pytest.mark.parametrize(
    ("files", "logged"),
    [
        ({}, None),
        ({"open_clip_config": open_clip(interpolation="bilinear")}, None),
        ({"open_clip_config": open_clip(interpolation="bicubic")}, "bicubic"),
        ({"open_clip_config": open_clip(interpolation="random")}, "bicubic"),
        ({"preprocessor_config": {"resample": 2}}, None),
        ({"preprocessor_config": {"resample": 3}}, "bicubic"),
        ({"preprocessor_config": {"resample": 1}}, "lanczos"),
        ({"preprocessor_config": {"resample": "PIL.Image.BICUBIC"}}, "bicubic"),
        ({"preprocessor_config": {"resample": 77}}, None),
    ],
)
def test_another_filter_is_logged_in_one_line(
    tmp_path: Path, files: dict[str, Any], logged: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    load_backbone(BackboneConfig(name=str(folder_with(tmp_path / "clip", **files))))
    lines = [line for line in caplog.messages if "interpolation" in line]
    assert len(lines) == (logged is not None) and all(f"states interpolation {logged}" in line for line in lines)
    caplog.clear()
    load_backbone(BackboneConfig(name=str(tmp_path / "clip"), interpolation="bicubic"))
    assert logged != "bicubic" or not caplog.messages


def test_files_that_contradict_each_other_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_with(
        tmp_path / "clip", open_clip_config=open_clip(mean=HALF, std=HALF), preprocessor_config={"do_normalize": True}
    )
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": CLIP_MEAN, "image_std": CLIP_STD}))
    assert found(folder) == (HALF, HALF)
    assert "preprocessor_config.json: states another normalisation" in caplog.text


def test_a_file_alone_means_clips_normalisation(tmp_path: Path) -> None:
    torch.save(tiny_clip.plain_state(), tmp_path / "clip.pt")
    assert found(tmp_path / "clip.pt", **UNKNOWN_ORIGIN) == CLIPS
    assert read_preprocessing(tmp_path / "clip.pt", is_open_clip=True) == Preprocessing()
