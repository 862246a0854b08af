"""`Encoder`, `build` and `load`: one path from images and sentences to unit vectors, whatever holds the model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import cskt
from cskt.config import RECORDED, AdapterConfig, BackboneConfig, ClipArchitecture, PromptConfig, load_config, to_dict
from cskt.data.datasets import read_dataset
from cskt.data.images import ImageReader, normalise
from cskt.data.tokenizer import END_ID, START_ID, Tokenizer
from cskt.embed import Encoder, build, load
from cskt.errors import MissingBackboneError
from cskt.image_files.decode import decode_image
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.cache import FORMER_CLIP_TINY, sha256_of
from cskt.model.io.native import read_method, save_backbone, save_weights
from cskt.model.io.released.methods import released_name
from cskt.training.loop import train
from tiny_run import ARCHITECTURE, HEIGHT, WIDTH, plain_clip, quick_config, write_backbone

CPU = torch.device("cpu")
CAPTIONS = [
    "A man in a long dark green raincoat with a hood, black boots and a white umbrella in his left hand.",
    "a woman",
    "",
    "A child with a red cap, seen from behind.",
    "a woman",
    "word " * 200,
    "A tall person wearing blue jeans.",
]


@pytest.fixture(autouse=True)
def _no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setenv("CSKT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def run(dolls: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that trained prompts and adapters."""
    return train(quick_config(dolls, tiny_backbone), tmp_path_factory.mktemp("runs") / "run").folder


@pytest.fixture(scope="session")
def paths(dolls: Path) -> list[Path]:
    return read_dataset("cuhk-pedes", dolls)["train"].image_paths


@pytest.fixture(scope="module")
def encoder(run: Path) -> Encoder:
    return quick_load(run)


def quick_load(path: Path | str, backbone: Path | None = None, **settings: Any) -> Encoder:
    return load(path, backbone, device="cpu", **{"batch_size": 5, "num_workers": 0} | settings)


def assert_equal(found: Encoder, expected: Encoder, paths: list[Path]) -> None:
    assert torch.equal(found.encode_image(paths), expected.encode_image(paths))
    assert torch.equal(found.encode_text(CAPTIONS), expected.encode_text(CAPTIONS))


# --- images


def test_paths_pictures_and_tensors_give_the_same_unit_vectors(encoder: Encoder, paths: list[Path]) -> None:
    features = encoder.encode_image(paths)
    assert features.shape == (len(paths), ARCHITECTURE.embed_dim)
    assert features.dtype == torch.float32 and not features.requires_grad
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(paths)))
    assert torch.equal(encoder.encode_image([str(path) for path in paths]), features)
    pictures = [Image.fromarray(decode_image(path)) for path in paths]
    assert torch.equal(encoder.encode_image(pictures), features)
    pixels = normalise(torch.stack([ImageReader(HEIGHT, WIDTH).read(path) for path in paths]))
    assert torch.equal(encoder.encode_image(pixels), features)
    raw = encoder.model.encode_image(pixels[:3])
    torch.testing.assert_close(raw / raw.norm(dim=1, keepdim=True), features[:3])


def test_images_keep_their_order_in_any_batch_and_with_threads(run: Path, paths: list[Path]) -> None:
    one_by_one = torch.cat([quick_load(run).encode_image([path]) for path in paths])
    together = quick_load(run, batch_size=7, num_workers=2).encode_image(paths)
    torch.testing.assert_close(together, one_by_one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_pixels_of_another_float_type_are_converted(encoder: Encoder, paths: list[Path], dtype: torch.dtype) -> None:
    pixels = normalise(torch.stack([ImageReader(HEIGHT, WIDTH).read(path) for path in paths[:2]]))
    found, expected = encoder.encode_image(pixels.to(dtype)), encoder.encode_image(pixels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, HEIGHT, WIDTH + 1), r"expected images \[B, 3, 32, 16\], found \[2, 3, 32, 17\]"),
        (torch.zeros(HEIGHT, WIDTH), r"expected images \[B, 3, 32, 16\], found \[32, 16\]"),
        (torch.zeros(2, HEIGHT, WIDTH, 3), r"expected images \[B, 3, 32, 16\]"),
        (torch.zeros(2, 3, HEIGHT, WIDTH, dtype=torch.int32), "expected uint8 pixels or .* found torch.int32"),
    ],
)
def test_images_that_do_not_fit_are_refused(encoder: Encoder, images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder.encode_image(images)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_image_is_named(run: Path, paths: list[Path], tmp_path: Path, num_workers: int) -> None:
    (tmp_path / "cut.jpg").write_bytes(paths[0].read_bytes()[:300])
    encoder = quick_load(run, num_workers=num_workers)
    with pytest.raises(ValueError, match=r"cut\.jpg: corrupt image"):
        encoder.encode_image([*paths, tmp_path / "cut.jpg"])
    with pytest.raises(ValueError, match=r"absent\.jpg: no such image"):
        encoder.encode_image([tmp_path / "absent.jpg"])


# --- captions


def test_captions_of_mixed_length_equal_those_encoded_alone(encoder: Encoder) -> None:
    """They are sorted by length into batches of five, and come back in the caller's order."""
    together = encoder.encode_text(CAPTIONS)
    assert together.shape == (len(CAPTIONS), ARCHITECTURE.embed_dim) and together.dtype == torch.float32
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(CAPTIONS)))
    alone = torch.cat([encoder.encode_text([caption]) for caption in CAPTIONS])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(together[0], together[3], atol=1e-3)
    assert torch.equal(together[1], together[4])


def test_captions_of_similar_length_share_a_batch(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    encode = encoder._text_features
    monkeypatch.setattr(encoder, "_text_features", lambda ids: (shapes.append(tuple(ids.shape)), encode(ids))[1])
    monkeypatch.setattr(encoder, "batch_size", 2)
    encoder.encode_text(["word " * 30, "a", "word " * 30, "b", "c", "d"])
    assert shapes == [(2, 3), (2, 3), (2, 32)]


def test_ids_and_sentences_give_the_same_and_ids_stay_as_they_are(encoder: Encoder) -> None:
    caption_ids = Tokenizer()(CAPTIONS)
    before = caption_ids.clone()
    features = encoder.encode_text(caption_ids)
    assert torch.equal(caption_ids, before)
    assert torch.equal(features, encoder.encode_text(CAPTIONS))
    assert torch.equal(features, encoder.encode_text(Tokenizer()(CAPTIONS, pad_to_context=True)))


def test_a_caption_beyond_the_context_keeps_its_first_words(encoder: Encoder) -> None:
    # 77 tokens hold start, end and 75 words; the prompts take four of those.
    words = encoder.tokenizer.encode("red " * 200)
    kept = torch.tensor([[START_ID, *words[:71], END_ID]])
    torch.testing.assert_close(encoder.encode_text(["red " * 200]), encoder.encode_text(kept))


def test_nothing_gives_nothing(encoder: Encoder) -> None:
    for features in (
        encoder.encode_image([]),
        encoder.encode_image(torch.zeros(0, 3, HEIGHT, WIDTH)),
        encoder.encode_text([]),
        encoder.encode_text(torch.zeros(0, 5, dtype=torch.int64)),
    ):
        assert features.shape == (0, ARCHITECTURE.embed_dim)


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (torch.tensor([START_ID, END_ID]), r"expected caption ids \[B, L\] int64, found \[2\]"),
        (torch.tensor([[START_ID, END_ID]], dtype=torch.int32), r"found \[1, 2\] torch.int32"),
        (torch.tensor([[START_ID, END_ID]]).float(), "torch.float32"),
        (torch.tensor([[START_ID, 5, END_ID], [START_ID, 5, 6]]), "with the end token 49407 in every row"),
        (torch.tensor([[START_ID, -5, END_ID]]), "caption ids must be from 0 to 49407"),
        (torch.tensor([[START_ID, 49408, END_ID]]), "caption ids must be from 0 to 49407"),
    ],
)
def test_captions_that_do_not_fit_are_refused(encoder: Encoder, captions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder.encode_text(captions)


# --- templates


def test_the_template_that_is_the_caption_changes_nothing(run: Path, encoder: Encoder) -> None:
    assert encoder.templates == ("{}",)
    assert torch.equal(quick_load(run, templates=["{}"]).encode_text(CAPTIONS), encoder.encode_text(CAPTIONS))
    # The same twice goes the way of an ensemble, and is the mean of two equal vectors.
    twice = quick_load(run, templates=["{}", "{}"]).encode_text(CAPTIONS)
    torch.testing.assert_close(twice, encoder.encode_text(CAPTIONS), rtol=1e-6, atol=1e-6)


def test_templates_are_averaged_as_unit_vectors(run: Path, encoder: Encoder) -> None:
    templates = ["a photo of {}", "{}", "{}, seen from behind."]
    found = quick_load(run, templates=templates).encode_text(CAPTIONS)
    for caption, feature in zip(CAPTIONS, found, strict=True):
        total = torch.zeros(ARCHITECTURE.embed_dim)
        for sentence in (f"a photo of {caption}", caption, f"{caption}, seen from behind."):
            total += encoder.encode_text([sentence])[0]
        torch.testing.assert_close(feature, total / total.norm(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found[1], encoder.encode_text(CAPTIONS)[1], atol=1e-3)


def test_templates_leave_ids_and_braces_of_a_caption_alone(run: Path, encoder: Encoder) -> None:
    photo = quick_load(run, templates=["a photo of {}"])
    caption_ids = Tokenizer()(CAPTIONS)
    assert torch.equal(photo.encode_text(caption_ids), encoder.encode_text(caption_ids))
    braces = photo.encode_text(["{0} {} {a}"])
    torch.testing.assert_close(braces, encoder.encode_text(["a photo of {0} {} {a}"]), rtol=1e-6, atol=1e-6)
    assert photo.encode_text([]).shape == (0, ARCHITECTURE.embed_dim)


def test_the_templates_of_a_run_hold_when_it_is_loaded(dolls: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    templates = ["a photo of {}", "{}"]
    config = quick_config(dolls, tiny_backbone, "clip", {"data.templates": templates})
    folder = train(config, tmp_path / "run").folder
    assert quick_load(folder).templates == tuple(templates)
    assert quick_load(folder, templates=["{}"]).templates == ("{}",)
    expected = quick_load(tiny_backbone, templates=templates)
    assert torch.equal(quick_load(folder).encode_text(CAPTIONS), expected.encode_text(CAPTIONS))


@pytest.mark.parametrize("templates", ["a photo of {}", ["a photo of a person"], ["{} {}"]])
def test_templates_without_their_place_are_refused(run: Path, templates: Any) -> None:
    with pytest.raises(ValueError, match=r"templates must be a list of sentences, each with one \{\}"):
        quick_load(run, templates=templates)


# --- settings


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_gives_float32_close_by(run: Path, paths: list[Path], precision: str) -> None:
    low, full = quick_load(run, precision=precision), quick_load(run)
    for found, expected in (
        (low.encode_image(paths), full.encode_image(paths)),
        (low.encode_text(CAPTIONS), full.encode_text(CAPTIONS)),
    ):
        assert found.dtype == torch.float32 and not torch.equal(found, expected)
        assert (found * expected).sum(dim=1).min() > 0.995


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size 0: must be at least 1"),
        ({"num_workers": -1}, "num_workers -1: must be at least 0"),
        ({"precision": "bf61"}, "unknown precision 'bf61': did you mean 'bf16'"),
    ],
)
def test_settings_out_of_range_are_refused(run: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quick_load(run, **settings).encode_text(["a woman"])


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "unknown device 'gpu': "),
        ("cdua", "unknown device 'cdua': did you mean 'cuda'"),
        ("cpu:", "unknown device 'cpu:'"),
        ("cuda:x", "unknown device 'cuda:x'"),
        ("cpu:1", "device 'cpu:1' is not available here; use --device auto or --device cpu"),
        ("cuda:99", "device 'cuda:99' is not available here"),
    ],
)
def test_an_unavailable_device_is_refused(run: Path, device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(run, device=device)


# --- build


def test_a_built_model_is_the_backbone_plus_what_the_seed_draws(dolls: Path, tiny_backbone: Path) -> None:
    changes = [{"seed": seed, "prompts.init": "random"} for seed in (3, 3, 4)]
    built, again, other = (build(quick_config(dolls, tiny_backbone, changes=change)) for change in changes)
    assert (built.backbone_name, built.backbone_sha256) == (str(tiny_backbone), sha256_of(tiny_backbone))
    plain = dict(plain_clip().named_parameters())
    drawn = 0
    for (name, value), twin, different in zip(
        built.model.named_parameters(), again.model.parameters(), other.model.parameters(), strict=True
    ):
        assert torch.equal(value, twin), name
        if name in plain:
            assert torch.equal(value, plain[name]) and not value.requires_grad, name
        elif name.startswith("prompts.") and not name.endswith("bias"):
            drawn += 1
            assert not torch.equal(value, different), name
    assert drawn == 2 * 2 * 2, "prompts and couplings of two towers in two blocks"


def test_prompts_start_as_words_where_asked(dolls: Path, tiny_backbone: Path) -> None:
    words = torch.tensor(Tokenizer().encode("photo of"))
    expected = plain_clip().text.token_embedding.weight[words]
    as_words = build(quick_config(dolls, tiny_backbone, changes={"prompts.words": "photo of a person"}))
    assert torch.equal(as_words.model.prompts.text[0], expected)
    random = {"prompts.words": "photo of a person", "prompts.init": "random"}
    assert not torch.equal(build(quick_config(dolls, tiny_backbone, changes=random)).model.prompts.text[0], expected)


def test_a_random_backbone_needs_no_file_and_has_no_digest(dolls: Path) -> None:
    config = quick_config(dolls, Path("nowhere.pt"), changes={"backbone.architecture": to_dict(ARCHITECTURE)})
    built, again = build(config), build(config)
    assert (built.backbone_name, built.backbone_sha256) == ("random", "")
    for (name, value), twin in zip(built.model.named_parameters(), again.model.parameters(), strict=True):
        assert value.isfinite().all() and torch.equal(value, twin), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts.depth": 3}, "prompts.depth 3 is above the blocks of a tower"),
        ({"adapters.reduction": 99}, "adapters.reduction 99 is above the tower's width 32"),
        ({"prompts.length": 40}, "prompts.length 40 leaves no position for words"),
        ({"data.caption_length": 78}, "data.caption_length 78 is more than the backbone's 77 positions"),
        ({"backbone.name": "clip-tinny"}, "backbone 'clip-tinny': no such file; did you mean 'clip-tiny'"),
        (
            {"backbone.architecture": to_dict(ARCHITECTURE) | {"vocab_size": 100}},
            "vocab_size is 100; CLIP's tokenizer has from 514 to 49408 tokens",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_backbone_is_refused(
    dolls: Path, tiny_backbone: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(quick_config(dolls, tiny_backbone, changes=changes))


# --- load


def test_run_folder_weights_alone_and_public_name_are_one(run: Path, paths: list[Path]) -> None:
    assert cskt.load is load and cskt.Encoder is Encoder
    encoder = quick_load(run)
    assert_equal(quick_load(run / "best.safetensors"), encoder, paths)
    assert_equal(quick_load(str(run)), encoder, paths)
    assert encoder.model.trainable_names() == []
    method = read_method(run / "best.safetensors").tensors
    for name, value in encoder.model.named_parameters():
        assert torch.equal(value, method.get(name, dict(plain_clip().named_parameters()).get(name))), name


def test_a_merged_file_stands_alone(run: Path, paths: list[Path], tmp_path: Path) -> None:
    encoder, file = quick_load(run), read_method(run / "best.safetensors")
    config = file.config | {"backbone": file.config["backbone"] | {"name": "gone.safetensors"}}
    tensors = dict(encoder.model.named_parameters())
    merged = dataclasses.replace(file, config=config, architecture=encoder.model.architecture, tensors=tensors)
    save_weights(tmp_path / "merged.safetensors", merged)
    assert_equal(quick_load(tmp_path / "merged.safetensors"), encoder, paths)


def test_a_backbone_that_moved_is_taken_by_name_or_found_by_digest(
    dolls: Path, paths: list[Path], tmp_path: Path
) -> None:
    old, new = write_backbone(tmp_path / "backbone.safetensors"), tmp_path / "elsewhere.safetensors"
    folder = train(quick_config(dolls, old), tmp_path / "run").folder
    before = quick_load(folder)
    old.rename(new)
    with pytest.raises(ValueError) as caught:
        quick_load(folder)
    message = str(caught.value)
    assert f"trained over {old} with SHA-256 {sha256_of(new)}; give that file with backbone= (--backbone): " in message
    assert "no such file" in message and "\n" not in message
    assert_equal(quick_load(folder, backbone=new), before, paths)
    (tmp_path / "cache").mkdir()
    new.rename(tmp_path / "cache" / "any-name")
    assert_equal(quick_load(folder), before, paths)


def test_weights_over_another_backbone_are_refused(run: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    other = write_backbone(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(ValueError) as caught:
        quick_load(run, backbone=other)
    assert f"SHA-256 {sha256_of(tiny_backbone)}" in str(caught.value) and "\n" not in str(caught.value)
    assert f"{other}: another backbone than the weights were trained over" in str(caught.value)


def test_a_run_over_the_clip_tiny_of_an_earlier_version_names_it(
    run: Path, tiny_backbone: Path, tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = sha256_of(tiny_backbone)
    monkeypatch.setitem(FORMER_CLIP_TINY, digest, "0.1.0")
    other = write_backbone(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(MissingBackboneError) as caught:
        quick_load(run, backbone=other)
    message = str(caught.value)
    assert "trained over clip-tiny of version 0.1.0, which a later version replaced" in message and digest in message
    assert "--backbone OLD_FILE" in message and "\n" not in message
    assert_equal(quick_load(run, backbone=tiny_backbone), quick_load(run), paths)


def test_a_file_of_ours_may_have_a_smaller_vocabulary(tmp_path: Path) -> None:
    sizes = dataclasses.replace(ARCHITECTURE, vocab_size=1000)
    model = DualEncoder(sizes)
    model.initialise_backbone(torch.Generator().manual_seed(0))
    path = tmp_path / "small.safetensors"
    save_backbone(path, {name: value.detach() for name, value in model.named_parameters()}, sizes, facts={})
    encoder = quick_load(path)
    assert (encoder.tokenizer.vocab_size, encoder.tokenizer.end_id) == (1000, 999)
    assert encoder.encode_text(["a supercalifragilistic coat", "日本語"]).isfinite().all()
    assert encoder.text_warnings(["日本語 zog"]) == []


def test_a_clip_file_is_zero_shot_clip(tiny_backbone: Path, paths: list[Path]) -> None:
    plain = Encoder(plain_clip(), Tokenizer(), device=CPU, batch_size=5, num_workers=0)
    assert_equal(quick_load(tiny_backbone), plain, paths)


def test_a_clip_file_is_taken_at_another_image_size(tiny_backbone: Path) -> None:
    encoder = quick_load(tiny_backbone, image_height=64, image_width=24, stride=4)
    assert encoder.model.architecture.grid == (15, 5)
    assert encoder.encode_image([Image.new("RGB", (9, 9))]).shape == (1, ARCHITECTURE.embed_dim)


def test_a_run_computes_in_the_precision_it_was_trained_in(dolls: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    folder = train(quick_config(dolls, tiny_backbone, changes={"precision": "bf16"}), tmp_path / "run").folder
    assert quick_load(folder).precision == "bf16"
    assert quick_load(folder, precision="fp32").precision == "fp32"


def test_a_run_without_weights_yet_says_so(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "started", ignore=shutil.ignore_patterns("best.safetensors", "tensorboard"))
    with pytest.raises(ValueError, match=r"best\.safetensors: no such file; the run has not completed an evaluation"):
        quick_load(tmp_path / "started")


def test_nothing_there_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path / "absent.pt", tmp_path):
        with pytest.raises(ValueError) as caught:
            quick_load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_words_that_a_backbone_knows_travel_with_it(dolls: Path, tmp_path: Path) -> None:
    known = frozenset({START_ID, END_ID, *Tokenizer().encode("a woman in a red coat")})
    state = {name: value.detach() for name, value in plain_clip().named_parameters()}
    backbone = tmp_path / "few.safetensors"
    save_backbone(backbone, state, ARCHITECTURE, facts={}, known_token_ids=known)
    whole = quick_config(dolls, backbone, "finetune", {"optim.lr": 1e-4})
    added = train(quick_config(dolls, backbone), tmp_path / "added").folder
    for path in (backbone, added, train(whole, tmp_path / "whole").folder):
        encoder = quick_load(path)
        assert encoder.tokenizer.known_ids == known
        assert encoder.text_warnings(["a woman in a red coat"]) == []
        assert "'zebra'" in encoder.text_warnings(["a zebra"])[0]


def test_a_released_folder_is_the_model_it_was(tmp_path: Path) -> None:
    sizes = {"vision_width": 64, "vision_heads": 1, "text_width": 64, "text_heads": 1}  # the released heads are 64 wide
    architecture = ClipArchitecture(**to_dict(ARCHITECTURE) | sizes)
    prompts, adapters = PromptConfig(depth=2, length=2), AdapterConfig()
    model = DualEncoder(architecture, {"prompts": prompts, "adapters": adapters}, trainable="none")
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(std=0.1, generator=generator)
    state = {released_name(name): value.detach() for name, value in model.named_parameters()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "best.pth")
    (tmp_path / "configs.yaml").write_text(
        "depth: 2\nn_ctx: 2\nstride_size: 8\nimg_size: !!python/tuple\n- 32\n- 16\ntext_length: 77\n"
    )
    encoder = quick_load(tmp_path)
    expected = Encoder(model, Tokenizer(), device=CPU, batch_size=5, num_workers=0)
    assert torch.equal(encoder.encode_text(CAPTIONS), expected.encode_text(CAPTIONS))
    pixels = torch.randn(3, 3, HEIGHT, WIDTH, generator=generator)
    assert torch.equal(encoder.encode_image(pixels), expected.encode_image(pixels))


def test_the_caption_length_of_a_run_holds_when_it_is_loaded(dolls: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    short = train(quick_config(dolls, tiny_backbone, changes={"data.caption_length": 20}), tmp_path / "run").folder
    assert quick_load(short).tokenizer.context_length == 20
    assert quick_load(tiny_backbone).tokenizer.context_length == 77


def test_config_of_a_run_is_in_its_weights(run: Path) -> None:
    config = read_method(run / "best.safetensors").config
    assert json.loads(json.dumps(config)) == config
    assert load_config(config) == load_config(run / "config.yaml")
    found = {key: getattr(ARCHITECTURE, key) for key in RECORDED}
    assert load_config(config).backbone == BackboneConfig(name=load_config(config).backbone.name, **found)
    assert (found["image_height"], found["image_width"]) == (HEIGHT, WIDTH)


def test_a_run_from_before_later_keys_still_loads(run: Path, paths: list[Path], tmp_path: Path) -> None:
    file = read_method(run / "best.safetensors")
    config = {name: section for name, section in file.config.items() if name not in ("lora", "mlm")}
    config["data"] = {key: value for key, value in config["data"].items() if key not in ("templates",)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    save_weights(tmp_path / "best.safetensors", dataclasses.replace(file, config=config))
    assert load_config(tmp_path / "config.yaml") == load_config(run / "config.yaml")
    assert_equal(quick_load(tmp_path), quick_load(run), paths)


def test_published_weights_run_at_the_size_of_person_crops_by_default(tmp_path: Path) -> None:
    """384 x 128, as every recipe over them has it; our own backbone files keep the size that they were made for."""
    transformers = pytest.importorskip("transformers")
    tower = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=tower | {"vocab_size": 49408}, vision_config=tower | {"image_size": 64, "patch_size": 16},
        projection_dim=32,
    )  # fmt: skip
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    crops = load(tmp_path, device="cpu").model.architecture
    assert (crops.image_height, crops.image_width, crops.grid) == (384, 128, (24, 8))
    asked = load(tmp_path, device="cpu", image_height=64, image_width=32, stride=8).model.architecture
    assert (asked.image_height, asked.image_width, asked.grid) == (64, 32, (7, 3))


def test_a_backbone_of_overlapping_patches_stays_so(tmp_path: Path) -> None:
    architecture = replace(ARCHITECTURE, stride=ARCHITECTURE.patch_size // 2)
    model = DualEncoder(architecture, trainable="none")
    model.initialise_backbone(torch.Generator().manual_seed(0))
    state = {name: value.detach() for name, value in model.named_parameters()}
    save_backbone(tmp_path / "overlapping.safetensors", state, architecture, facts={})
    found = load(tmp_path / "overlapping.safetensors", device="cpu").model
    assert found.architecture == architecture
    assert torch.equal(found.vision.positional_embedding, model.vision.positional_embedding)


def test_pixels_and_normalised_images_are_the_same(encoder: Encoder) -> None:
    pixels = torch.randint(0, 256, (3, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(encoder.encode_image(pixels), encoder.encode_image(normalise(pixels)))


def test_weights_that_change_are_seen_by_a_new_encoder() -> None:
    model = plain_clip()
    old = Encoder(model, Tokenizer(), device=torch.device("cpu"))
    before = old.encode_text(["a man"])
    with torch.no_grad():
        model.text.ln_final.bias.add_(1.0)
    new = Encoder(model, Tokenizer(), device=torch.device("cpu"))
    assert not torch.allclose(new.encode_text(["a man"]), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "clip-tiny", "backbone": "nope"}, "clip-tiny: contains its backbone; leave out --backbone"),
        ({"image_height": 64}, "not plain CLIP weights, so image_height is fixed; leave out --image-height"),
    ],
)
def test_settings_without_effect_are_refused(run: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(**({"path": run} | arguments))
