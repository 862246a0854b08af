"""`Encoder` as users see it: single inputs and lists, NumPy, its source, its repr, `save`, and kinds of models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cskt.config import LoraConfig, to_dict
from cskt.config.file_names import BEST, CONFIG, RELEASED_CONFIG
from cskt.data.tokenizer import Tokenizer
from cskt.embed import EncodeOptions, Encoder, ModelSource, build, load, load_source
from cskt.embed.model_paths import run_config
from cskt.embed.readers import READERS, reader_of
from cskt.errors import CsktError
from cskt.model.io.native import MethodFile, read_method, save_backbone, save_weights
from tiny_run import ARCHITECTURE, HEIGHT, WIDTH, plain_clip, quick_config

DIM = ARCHITECTURE.embed_dim
CAPTIONS = ["a woman in a red coat", "a man"]
QUICK: dict[str, Any] = {"device": "cpu", "num_workers": 0}


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    noise = torch.randint(0, 256, (40, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).save(path)
    return path


@pytest.fixture(scope="module")
def clip(tiny_backbone: Path) -> Encoder:
    return load(tiny_backbone, **QUICK)


@pytest.fixture(scope="module")
def run(dolls: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weight file of an adapter-only run with prompts, adapters and LoRA, untrained."""
    changes = {
        "lora.sides": "both", "lora.rank": 2, "data.templates": ["a photo of {}"], "data.eval_interpolation": "bicubic",
        "data.caption_length": 20, "data.apply_orientation": True,
    }  # fmt: skip
    config = quick_config(dolls, tiny_backbone, changes=changes)
    assert config.lora != LoraConfig()
    built = build(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in built.model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.05, generator=generator)
    folder = tmp_path_factory.mktemp("runs") / "run"
    tensors = {name: value for name, value in built.model.named_parameters() if value.requires_grad}
    file = MethodFile(to_dict(config), built.backbone_name, built.backbone_sha256, facts={}, tensors=tensors)
    save_weights(folder / BEST, file)
    return folder


def test_one_input_gives_a_vector_and_a_list_gives_rows(clip: Encoder, picture: Path) -> None:
    image = Image.open(picture)
    for single in (picture, str(picture), image, picture.read_bytes(), clip.read_image(picture)):
        assert clip.encode_image(single).shape == (DIM,)
    assert torch.equal(clip.encode_image(picture), clip.encode_image([picture])[0])
    assert clip.encode_text(CAPTIONS[0]).shape == (DIM,)
    assert torch.equal(clip.encode_text(CAPTIONS[0]), clip.encode_text(CAPTIONS[:1])[0])
    ensemble = load(clip.source.path if clip.source else "", templates=["a photo of {}", "{}"], **QUICK)
    assert ensemble.encode_text("a man").shape == (DIM,)


def test_features_as_numpy_or_on_the_device(clip: Encoder, picture: Path) -> None:
    texts, image = clip.encode_text(CAPTIONS, convert_to="numpy"), clip.encode_image(picture, convert_to="numpy")
    assert texts.dtype == np.float32 and texts.shape == (2, DIM) and image.shape == (DIM,)
    assert np.array_equal(texts, clip.encode_text(CAPTIONS).numpy())
    assert clip.encode_text(CAPTIONS, keep_on_device=True).device == clip.device
    with pytest.raises(CsktError, match="convert_to 'jax': must be torch or numpy"):
        clip.encode_text(CAPTIONS, convert_to="jax")  # type: ignore[call-overload]
    with pytest.raises(CsktError, match="keep_on_device: NumPy arrays are on the CPU"):
        clip.encode_image(picture, convert_to="numpy", keep_on_device=True)  # type: ignore[call-overload]


def test_an_encoder_takes_its_device_as_a_string() -> None:
    encoder = Encoder(plain_clip(), Tokenizer(), device="cpu")
    assert encoder.device == torch.device("cpu") and encoder.source is None
    assert repr(encoder).startswith("Encoder(a model in memory, CLIP, ")
    with pytest.raises(CsktError, match="unknown device 'cdua': did you mean 'cuda'"):
        Encoder(plain_clip(), Tokenizer(), device="cdua")


def test_repr_names_model_source_device_precision_and_width(run: Path, tiny_backbone: Path) -> None:
    text = repr(load(run, tiny_backbone, **QUICK))
    assert text.startswith(f"Encoder('{run}', CLIP + prompts + adapters + lora, ")
    assert text.endswith(f" parameters, D={DIM}, images {HEIGHT} x {WIDTH}, cpu, fp32)")


def test_an_encoder_remembers_what_it_was_loaded_from(tiny_backbone: Path) -> None:
    settings = {"interpolation": "bicubic"}
    encoder = load(tiny_backbone, None, "cpu", image_height=64, image_width=24, stride=4, settings=settings)
    assert encoder.source == ModelSource(str(tiny_backbone), None, 64, 24, 4, settings=settings)
    again = load_source(encoder.source, EncodeOptions("cpu", precision="fp32"))
    assert again.fingerprint == encoder.fingerprint


@pytest.mark.parametrize("form", ["folder", "file"])
@pytest.mark.parametrize("kind", ["clip", "run"])
def test_a_saved_encoder_gives_equal_features(
    kind: str, form: str, run: Path, tiny_backbone: Path, picture: Path, tmp_path: Path
) -> None:
    backbone = tmp_path / "backbone.safetensors"
    shutil.copy(tiny_backbone, backbone)
    encoder = load(backbone, **QUICK, templates=["{}, outdoors"]) if kind == "clip" else load(run, backbone, **QUICK)
    saved = encoder.save(tmp_path / ("saved" if form == "folder" else "saved.safetensors"))
    backbone.unlink()
    again = load(saved.parent if form == "folder" else saved, **QUICK)
    assert torch.equal(again.encode_text(CAPTIONS), encoder.encode_text(CAPTIONS))
    assert torch.equal(again.encode_image(picture), encoder.encode_image(picture))
    assert again.fingerprint == encoder.fingerprint
    assert (again.apply_orientation, again.templates) == (encoder.apply_orientation, encoder.templates)
    assert read_method(saved).facts == {"source": str(encoder.source.path if encoder.source else "")}


def test_save_does_not_overwrite_a_run(clip: Encoder, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("name: precious\n")
    with pytest.raises(CsktError, match="holds a run, which is not overwritten"):
        clip.save(tmp_path)


def test_each_path_has_one_kind(run: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    released, exported = tmp_path / "released", tmp_path / "exported"
    for folder, name in ((released, RELEASED_CONFIG), (exported, "exported.json")):
        folder.mkdir()
        (folder / name).write_text("{}")
    kinds = {
        exported: "ExportedReader", run: "RunReader", released: "ReleasedReader", run / BEST: "MethodFileReader",
        tiny_backbone: "ClipReader", Path("clip-tiny"): "ClipReader", tmp_path / "absent": "ClipReader",
    }  # fmt: skip
    assert {path: type(reader_of(path)).__name__ for path in kinds} == kinds
    assert len(READERS) == len(set(kinds.values()))
    for path in (run, run / BEST):
        config = run_config(path)
        assert config is not None and config.data.templates == ("a photo of {}",)
    assert run_config(tiny_backbone) is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"weights": "emma"}, "weights 'emma': must be model or ema"),
        ({"weights": "ema"}, "a trained run has one set of weights; leave out --weights ema"),
        ({"settings": {"text_heads": 2}}, "not plain CLIP weights, so these are fixed; leave out --text-heads"),
    ],
)
def test_a_run_has_no_settings_of_plain_clip(
    run: Path, tiny_backbone: Path, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(CsktError, match=message):
        load(run, tiny_backbone, "cpu", **asked)


def test_unknown_settings_of_clip_are_refused(tmp_path: Path) -> None:
    state = {name: value.detach() for name, value in plain_clip().named_parameters()}
    save_backbone(tmp_path / "clip.safetensors", state, ARCHITECTURE, facts={})
    with pytest.raises(CsktError, match="settings: 'head' is not known; known: activation, vision_heads"):
        load(tmp_path / "clip.safetensors", settings={"head": 2})


def test_a_tilde_is_the_home_folder(clip: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    clip.save(tmp_path / "saved" / "copy.safetensors")
    for name in ("~/saved/copy.safetensors", Path("~/saved/copy.safetensors")):
        encoder = load(name, **QUICK)
        assert encoder.fingerprint == clip.fingerprint
        assert encoder.source is not None and encoder.source.path == f"{tmp_path}/saved/copy.safetensors"


def test_pixels_are_normalised_once_and_stay_as_they_are(clip: Encoder) -> None:
    pixels = torch.full((1, 3, *clip.image_size), 255, dtype=torch.uint8)
    assert clip.normalise(pixels).dtype == torch.float32 and (pixels == 255).all()
    floats = torch.ones(1, 3, *clip.image_size)
    with pytest.raises(CsktError, match=r"expected uint8 pixels, found torch\.float32; float images are taken as norm"):
        clip.normalise(floats)
    assert (floats == 1).all()
    with pytest.raises(CsktError, match=r"expected images \[B, 3, "):
        clip.normalise(pixels[0])


def test_options_of_another_type_are_refused(tmp_path: Path, picture: Path) -> None:
    encoder = Encoder(plain_clip(), Tokenizer(), device="cpu", cache_dir=str(tmp_path / "cache"))
    assert encoder.encode_image([picture]).shape == (1, encoder.embed_dim)
    assert (tmp_path / "cache").is_dir()
    for wrong in ({"cache_dir": 3}, {"compile": "yes"}, {"show_progress": 1}):
        with pytest.raises(TypeError, match=f"{next(iter(wrong))} must be"):
            Encoder(plain_clip(), Tokenizer(), device="cpu", **wrong)  # type: ignore[arg-type]
