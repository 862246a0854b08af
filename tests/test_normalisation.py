"""A backbone's own normalisation and filter reach every place where pixels become features."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import cskt
from cskt.config import CLIP_MEAN, CLIP_STD, DataConfig, load_config, to_dict
from cskt.data.images import ImageReader, normalise, resize
from cskt.embed import Encoder
from cskt.embed.models import tokenizer_for
from cskt.explain import explain
from cskt.export.graphs import ImageGraph
from cskt.gallery.gallery import Gallery
from cskt.image_files.decode import decode_image
from cskt.model.dual_encoder import DualEncoder
from cskt.model.folded import fold_vision
from cskt.model.io.layouts import openai_name
from cskt.model.io.native import read_backbone, read_method, save_backbone
from cskt.training.loop import train
from tiny_run import ARCHITECTURE, HEIGHT, plain_clip, quick_config, write_backbone

HALF = (0.5, 0.5, 0.5)
SQUARE = dataclasses.replace(ARCHITECTURE, image_width=HEIGHT)
SIZES = {"image_height": HEIGHT, "image_width": HEIGHT}


def square_clip() -> dict[str, Tensor]:
    """A CLIP for square images, as foreign files have them."""
    model = DualEncoder(SQUARE, trainable="none")
    model.initialise_backbone(torch.Generator().manual_seed(7))
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def write_open_clip(folder: Path, state: dict[str, Tensor], mean: Any = None, std: Any = None) -> Path:
    """A folder of open_clip with this CLIP, and the normalisation beside it."""
    folder.mkdir()
    save_file({openai_name(name): value for name, value in state.items()}, folder / "open_clip_model.safetensors")
    towers = {"vision_cfg": {"head_width": 16}, "text_cfg": {"heads": 2}, "quick_gelu": True}
    content = {"model_cfg": towers, "preprocess_cfg": {} if mean is None else {"mean": mean, "std": std}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder


def for_half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same function of the pixels, for images normalised with 0.5.

    w * (x - m) / s = w * (0.5 / s) * (x - 0.5) / 0.5 + w * (0.5 - m) / s; the second term, the same at every place,
    goes into the positions of the patches.
    """
    weight, positions = state["vision.conv1.weight"], state["vision.positional_embedding"].clone()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    positions[1:] += (weight * (0.5 - mean) / std).sum(dim=(1, 2, 3))
    return state | {"vision.conv1.weight": weight * 0.5 / std, "vision.positional_embedding": positions}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of one CLIP, as OpenAI normalises and for 0.5."""
    root, state = tmp_path_factory.mktemp("clips"), square_clip()
    return write_open_clip(root / "usual", state), write_open_clip(root / "half", for_half(state), HALF, HALF)


@pytest.fixture(scope="module")
def paths(dolls: Path) -> list[Path]:
    return sorted(dolls.rglob("*.jpg"))[:6]


def quick_load(path: Path, **settings: Any) -> Encoder:
    return cskt.load(path, device="cpu", **{"num_workers": 0} | SIZES | settings)


def test_a_backbone_rewritten_for_another_normalisation_gives_the_same_features(
    clips: tuple[Path, Path], paths: list[Path]
) -> None:
    usual, half = (quick_load(path) for path in clips)
    assert (half.model.architecture.image_mean, half.model.architecture.image_std) == (HALF, HALF)
    expected = usual.encode_image(paths)
    torch.testing.assert_close(half.encode_image(paths), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(half.encode_text(["a man in red"]), usual.encode_text(["a man in red"]))
    # Without the JSON file the features are others, by far more than rounding.
    wrong = quick_load(clips[1], settings={"image_mean": CLIP_MEAN, "image_std": CLIP_STD})
    assert (wrong.encode_image(paths) - expected).abs().max() > 0.01
    pixels = torch.stack([usual.read_image(path) for path in paths])
    assert torch.equal(half.encode_image(pixels), half.encode_image(half.normalise(pixels)))


def test_heat_maps_and_graphs_normalise_likewise(clips: tuple[Path, Path], paths: list[Path]) -> None:
    usual, half = (quick_load(path) for path in clips)
    found, expected = (explain(encoder, paths[0], "a man in red") for encoder in (half, usual))
    assert found.score == pytest.approx(expected.score, abs=1e-4)
    pixels = torch.stack([usual.read_image(path) for path in paths])
    graph = ImageGraph(fold_vision(half.model), half.model.architecture)
    torch.testing.assert_close(graph(pixels), half.encode_image(pixels), rtol=0, atol=1e-6)


def config_over(backbone: Path, dolls: Path, **changes: Any) -> Any:
    square = {"backbone.image_height": HEIGHT, "backbone.image_width": HEIGHT}
    return quick_config(dolls, backbone, "cskt", square | {key.replace("__", "."): v for key, v in changes.items()})


def test_a_run_trains_on_and_keeps_the_normalisation(
    clips: tuple[Path, Path], dolls: Path, tmp_path: Path, paths: list[Path]
) -> None:
    # Erased rectangles have CLIP's mean after normalising, which is another colour under another normalisation.
    runs = [
        train(config_over(path, dolls, augment__erase_probability=0), tmp_path / path.name).folder for path in clips
    ]
    usual, half = (cskt.load(run, device="cpu", num_workers=0) for run in runs)
    torch.testing.assert_close(half.encode_image(paths), usual.encode_image(paths), rtol=1e-2, atol=2e-3)
    backbone = load_config(runs[1] / "config.yaml").backbone
    assert (backbone.image_mean, backbone.image_std) == (HALF, HALF)
    assert load_config(runs[0] / "config.yaml").backbone.image_mean == CLIP_MEAN
    # The JSON file goes: the run holds what it needs, head counts included.
    beside = clips[1] / "open_clip_config.json"
    text = beside.read_text()
    try:
        beside.unlink()
        again = cskt.load(runs[1], device="cpu", num_workers=0)
    finally:
        beside.write_text(text)
    assert again.fingerprint == half.fingerprint
    assert torch.equal(again.encode_image(paths), half.encode_image(paths))


def test_a_run_that_recorded_none_was_trained_with_clips(
    clips: tuple[Path, Path], dolls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of version 0.1 over a backbone with another normalisation: it opens as it was trained."""
    run = train(
        config_over(clips[1], dolls, backbone__image_mean=CLIP_MEAN, backbone__image_std=CLIP_STD), tmp_path / "r"
    )
    file = read_method(run.folder / "best.safetensors")
    known = cskt.load(run.folder, device="cpu").fingerprint
    old = dict(file.config["backbone"])
    for key in ("image_mean", "image_std", "interpolation", "weights", "activation", "vision_heads", "text_heads"):
        del old[key]
    monkeypatch.setattr(
        "cskt.model.io.native.read_method",
        lambda path: dataclasses.replace(file, config=file.config | {"backbone": old}),
    )
    assert cskt.load(run.folder, device="cpu").fingerprint == known


def test_own_backbone_files_keep_the_normalisation(tmp_path: Path) -> None:
    path, usual = tmp_path / "half.safetensors", write_backbone(tmp_path / "usual.safetensors")
    state = {name: value.detach() for name, value in plain_clip().named_parameters()}
    save_backbone(path, state, dataclasses.replace(ARCHITECTURE, image_mean=HALF, image_std=HALF), facts={})
    assert read_backbone(path).architecture.image_mean == HALF
    encoder = cskt.load(path, device="cpu")
    assert encoder.model.architecture.image_std == HALF
    assert encoder.fingerprint != cskt.load(usual, device="cpu").fingerprint
    assert b"image_mean" not in usual.read_bytes(), "files with CLIP's own are as they were"


# --- the filter


@pytest.mark.parametrize("size", [(40, 30), (20, 9), (96, 48)])
def test_bicubic_is_pillows(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    expected = Image.fromarray(noise).resize(size[::-1], Image.Resampling.BICUBIC)
    found = resize(noise, *size, "bicubic").permute(1, 2, 0).numpy()
    difference = np.abs(found.astype(int) - np.asarray(expected).astype(int))
    assert (difference <= 1).mean() > 0.97, "but for a few places where one of the two cuts off at white or black"
    assert not np.array_equal(found, resize(noise, *size).permute(1, 2, 0).numpy())


def test_the_filter_reaches_every_way_of_reading_images(
    clips: tuple[Path, Path], paths: list[Path], tmp_path: Path
) -> None:
    usual = quick_load(clips[0])
    bicubic = quick_load(clips[0], settings={"interpolation": "bicubic"})
    pixels = torch.stack([resize(decode_image(path), HEIGHT, HEIGHT, "bicubic") for path in paths])
    expected = usual.encode_image(pixels)
    assert not torch.equal(usual.encode_image(paths), expected)
    for settings in ({}, {"cache_dir": tmp_path / "cache"}, {"num_workers": 2}):
        encoder = quick_load(clips[0], settings={"interpolation": "bicubic"}, **settings)
        assert torch.equal(encoder.encode_image(paths), expected)
    assert torch.equal(
        quick_load(clips[0], cache_dir=tmp_path / "cache").encode_image(paths), usual.encode_image(paths)
    )
    assert len(list((tmp_path / "cache").iterdir())) == 2, "each filter has a cache of its own"
    assert bicubic.fingerprint != usual.fingerprint
    with Gallery.create(tmp_path / "g", bicubic) as gallery:
        gallery.index(paths[0].parent)
        hits = gallery.search(image=paths[0], k=1)
        assert hits[0].score == pytest.approx(1, abs=1e-5)
    with Gallery.open(tmp_path / "g", device="cpu") as again:
        assert again.encoder.interpolation == "bicubic" and again.encoder.fingerprint == bicubic.fingerprint


@pytest.mark.parametrize(("evaluation", "expected"), [(None, "bicubic"), ("bilinear", "bilinear")])
def test_training_and_evaluation_may_use_other_filters(
    clips: tuple[Path, Path], dolls: Path, tmp_path: Path, evaluation: str | None, expected: str
) -> None:
    seen = []

    read, patch = ImageReader.read, pytest.MonkeyPatch()

    def recording(reader: ImageReader, source: Any) -> Tensor:
        seen.append(reader.interpolation)
        return read(reader, source)

    with patch.context() as context:
        context.setattr(ImageReader, "read", recording)
        changes = {"backbone__interpolation": "bicubic", "data__eval_interpolation": evaluation}
        run = train(config_over(clips[0], dolls, **changes), tmp_path / "run").folder
    assert set(seen) == {"bicubic", expected}
    assert cskt.load(run, device="cpu").interpolation == expected


# --- fingerprints


def exact_model(recipe: str) -> DualEncoder:
    """A model whose parameters are fractions by place: the same on every machine."""
    config = load_config(recipe, {"prompts.depth": 2, "prompts.length": 2})
    model = DualEncoder(ARCHITECTURE, config.method)
    with torch.no_grad():
        for parameter in model.parameters():
            places = torch.arange(parameter.numel(), dtype=torch.float32)
            parameter.copy_((places.remainder(97) - 48).div(128).view_as(parameter))
    return model


FINGERPRINTS = {
    "clip": "c47f0a23f23e1383d7fa1553db094177093d1f088b3b6c914c039ee9e843105c",
    "cskt": "5e632aaab62ed13375aad32d3eb7b4d22e7d68b453b34bb327119358e319112d",
    "lora": "6d87d7ae31c9118aaf9ec95bd5743cae692ddb1628ab5b9dc3f70808167e19c7",
}
"""Fingerprints of version 0.1, which galleries contain."""


@pytest.mark.parametrize("recipe", FINGERPRINTS)
def test_fingerprints_of_existing_models_stay(recipe: str) -> None:
    model = exact_model(recipe)
    encoder = Encoder(
        model, tokenizer_for(model, DataConfig(), frozenset({1, 2, 49406, 49407})), device=torch.device("cpu")
    )
    assert encoder.fingerprint == FINGERPRINTS[recipe]


def test_the_fingerprint_of_clip_tiny_stays() -> None:
    known = "4180866fb715c508037ebf3a47c886897f487d1b37274cf9f32e78686fcf2500"
    assert cskt.load("clip-tiny", device="cpu").fingerprint == known
    both = cskt.load("clip-tiny", device="cpu", templates=("{}", "a photo of {}"))
    assert both.fingerprint == "5d3a7adf596ad517797d39d873e5a60b98254863c0e85b254178502f1f08f405"


def test_a_normalisation_like_clips_is_not_written() -> None:
    assert "image_mean" not in to_dict(ARCHITECTURE)
    assert to_dict(dataclasses.replace(ARCHITECTURE, image_std=HALF))["image_std"] == list(HALF)
    assert torch.equal(normalise(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), HALF, HALF), -torch.ones(1, 3, 1, 1))
