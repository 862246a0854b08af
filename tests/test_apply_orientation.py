"""`data.apply_orientation` reaches training, evaluation, query and the pixel cache; it is off by default."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import cskt
from cskt.config import load_config, to_dict
from cskt.data.check import check_dataset
from cskt.data.images import ImageReader
from cskt.data.loading import cached_images, iter_images
from cskt.embed import Encoder
from cskt.embed.exported import ExportedFacts
from cskt.explain import explain
from cskt.training.loop import train
from tiny_run import HEIGHT, WIDTH, quick_config


@pytest.fixture
def lying(dolls: Path, tmp_path: Path) -> Path:
    """An image that is stored lying, with the tag of a camera that was held upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(next(iter(sorted(dolls.rglob("*.jpg"))))) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "lying.jpg", exif=exif, quality=95)
    return tmp_path / "lying.jpg"


def test_reading_follows_the_setting(lying: Path, tmp_path: Path) -> None:
    stored = ImageReader(HEIGHT, WIDTH).read(lying)
    upright = ImageReader(HEIGHT, WIDTH, apply_orientation=True).read(lying)
    assert not torch.equal(stored, upright)
    for apply_orientation, expected in ((False, stored), (True, upright)):
        for cache_dir in (None, tmp_path / "cache", tmp_path / "cache"):
            reader = ImageReader(HEIGHT, WIDTH, apply_orientation=apply_orientation)
            (found,) = iter_images([lying], reader, 4, 0, cache_dir)
            assert torch.equal(found[0], expected)
    assert len(list((tmp_path / "cache").iterdir())) == 2, "the cache keeps the two apart"


def test_images_as_stored_have_one_folder(lying: Path, tmp_path: Path) -> None:
    first = cached_images(tmp_path, [lying], ImageReader(HEIGHT, WIDTH), 0)
    again = cached_images(tmp_path, [lying], ImageReader(HEIGHT, WIDTH, apply_orientation=False), 0)
    assert torch.equal(first[torch.tensor([0])], again[torch.tensor([0])])
    assert len([entry for entry in tmp_path.iterdir() if entry.is_dir()]) == 1


def test_an_encoder_follows_its_setting_unless_an_argument_overrides_it(lying: Path, tiny_backbone: Path) -> None:
    encoder = cskt.load(tiny_backbone, device="cpu", num_workers=0)
    turning = Encoder(encoder.model, encoder.tokenizer, device=torch.device("cpu"), apply_orientation=True)
    assert not encoder.apply_orientation and encoder.fingerprint == turning.fingerprint
    sources = [lying, str(lying), lying.read_bytes()]
    stored, upright = encoder.encode_image(sources), turning.encode_image(sources)
    assert not torch.allclose(stored, upright)
    assert torch.equal(encoder.encode_image(sources, apply_orientation=True), upright)
    assert torch.equal(turning.encode_image(sources, apply_orientation=False), stored)
    assert not torch.equal(encoder.read_image(lying), turning.read_image(lying))
    scores = [explain(encoder, lying, "a red bag", apply_orientation=turned).score for turned in (None, False, True)]
    assert scores[0] == scores[1] != scores[2] == explain(turning, lying, "a red bag").score


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"data.cache_images": True}])
@pytest.mark.parametrize("apply_orientation", [False, True])
def test_a_run_is_evaluated_as_it_was_trained(
    apply_orientation: bool,
    changes: dict[str, bool],
    dolls: Path,
    tiny_backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    read = ImageReader.read

    def recording(reader: ImageReader, *arguments: Any) -> Tensor:
        seen.append(reader.apply_orientation)
        return read(reader, *arguments)

    monkeypatch.setattr(ImageReader, "read", recording)
    changes = changes | ({"data.apply_orientation": True} if apply_orientation else {})
    run = train(quick_config(dolls, tiny_backbone, changes=changes), tmp_path / "run").folder
    assert set(seen) == {apply_orientation}
    assert cskt.load(run, device="cpu").apply_orientation is apply_orientation


def test_it_is_off_in_every_recipe_and_in_older_runs_and_exports() -> None:
    for recipe in ("cskt", "cskt-reference", "irra", "clip", "demo"):
        assert load_config(recipe, {}).data.apply_orientation is False
    assert ExportedFacts.__dataclass_fields__["apply_orientation"].default is False
    assert "apply_orientation" in to_dict(load_config("cskt", {}))["data"]


def test_data_check_counts_images_with_a_tag(dolls: Path, lying: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(dolls, root)
    images = sorted(root.rglob("*.jpg"))
    shutil.copyfile(lying, images[0])
    found = check_dataset("cuhk-pedes", root)
    assert sum(split.num_turned_images for split in found.splits) == 1 and found.errors == []
    warning = next(line for line in found.warnings if "EXIF orientation" in line)
    assert "1 of" in warning and "--apply-orientation" in warning and "data.apply_orientation" in warning
    before = check_dataset("cuhk-pedes", dolls)
    assert sum(split.num_turned_images for split in before.splits) == 0
    assert not any("EXIF" in line for line in before.warnings)
