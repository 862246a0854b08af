"""Runs of RDE, UP-Person, DM-Adapter and TBPS-CLIP after training: merged, exported, indexed, searched, explained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import done, typed
from torch import Tensor

from cskt import load
from cskt.config import BackboneConfig
from cskt.data.datasets import read_dataset
from cskt.embed import Encoder
from cskt.model.io.weights import load_backbone, tower_shapes
from tiny_run import HEIGHT, WIDTH

pytestmark = pytest.mark.slow
RECIPES = ("rde", "up-person", "dm-adapter", "tbps-clip")
QUICK = (
    "--device cpu --lr 1e-3 --warmup-epochs 0 --data.batch_size 8 --num-workers 2 --num-epochs 1"
    f" --image-height {HEIGHT} --image-width {WIDTH}"
)
SENTENCE = "a woman with a red bag"


@pytest.fixture(scope="module", params=RECIPES)
def trained(
    request: pytest.FixtureRequest, root: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a short training."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    done(f"cskt train --config {request.param} --root {root} --backbone.name {tiny_backbone} {QUICK} --output {folder}")
    return folder


def features(encoder: Encoder, root: Path) -> Tensor:
    """Return the vectors of captions, one of them without words, and of images."""
    split = read_dataset("cuhk-pedes", root)["val"]
    found = torch.cat([encoder.encode_text([SENTENCE, "", *split.captions]), encoder.encode_image(split.image_paths)])
    assert found.isfinite().all()
    return found


def test_a_merged_file_needs_no_backbone(trained: Path, root: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged.safetensors"
    done(f"cskt export {trained} --merge {merged}")
    expected = features(load(trained, device="cpu", precision="fp32"), root)
    torch.testing.assert_close(features(load(merged, device="cpu"), root), expected, rtol=1e-5, atol=1e-5)
    ours, theirs = (
        typed(f"cskt evaluate {model} --root {root} --device cpu --json").json() for model in (merged, trained)
    )
    assert ours["t2i"] == theirs["t2i"]


def test_only_plain_towers_become_a_backbone(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "backbone.safetensors"
    command = f"cskt export {trained} --as-backbone {target}"
    if trained.name == "tbps-clip":
        done(command)
        backbone, model = load_backbone(BackboneConfig(str(target))), load(trained, device="cpu").model
        assert backbone.state.keys() == tower_shapes(backbone.architecture).keys()
        own = dict(model.named_parameters())
        assert all(torch.equal(value, own[name]) for name, value in backbone.state.items())
    else:
        assert "has method parts (parts." in typed(command).refusal()
        assert not target.exists()


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_graphs_compute_the_vector_that_ranks(trained: Path, root: Path, tmp_path: Path, form: str) -> None:
    done(f"cskt export {trained} --format {form} --output {tmp_path / form}")
    exported, encoder = load(tmp_path / form, device="cpu"), load(trained, device="cpu", precision="fp32")
    assert exported.embed_dim == encoder.embed_dim
    torch.testing.assert_close(features(exported, root), features(encoder, root), rtol=1e-4, atol=1e-4)


def test_a_gallery_ranks_as_the_run_and_explains_its_hits(trained: Path, root: Path, tmp_path: Path) -> None:
    gallery, images = tmp_path / "gallery", root / "CUHK-PEDES" / "imgs"
    done(f"cskt index {gallery} --images {images} --model {trained} --device cpu --precision fp32")
    found = typed(f"cskt search {gallery} '{SENTENCE}' --device cpu -k 3 --json --explain").json()
    encoder, paths = load(trained, device="cpu"), sorted(images.rglob("*.jpg"))
    scores = encoder.encode_text(SENTENCE) @ encoder.encode_image(paths).T
    hits = found[0]["hits"]
    assert [hit["score"] for hit in hits] == pytest.approx(scores.topk(3).values.tolist(), abs=1e-3)
    rows, columns = encoder.model.architecture.grid
    for hit in hits:
        heat = torch.tensor(hit["explanation"]["sentence"])
        assert heat.shape == (rows, columns) and heat.isfinite().all()
        assert [word["word"] for word in hit["explanation"]["words"]]
    page = tmp_path / "why.html"
    done(f"cskt search {gallery} '{SENTENCE}' --device cpu -k 1 --explain --html {page}")
    assert "whole sentence" in page.read_text(encoding="utf-8")
