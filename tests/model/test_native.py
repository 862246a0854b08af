"""Our own files: what comes back is what went in, and no half or foreign file is ever taken for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cskt.config import ClipArchitecture, RunConfig, to_dict
from cskt.model.io import native

ARCHITECTURE = ClipArchitecture(
    embed_dim=8, image_height=32, image_width=16, patch_size=8, stride=8, vision_width=8, vision_layers=1,
    vision_heads=2, text_width=8, text_layers=1, text_heads=2, context_length=12, vocab_size=20,
)  # fmt: skip
DIGEST = "ab" * 32


def trained() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "prompts.text.0": torch.randn(4, 8, generator=generator),
        "adapters.vision.0.up.weight": torch.randn(8, 2, generator=generator).T,  # not contiguous
    }


def save(path: Path, **changes: object) -> None:
    values = {
        "config": to_dict(RunConfig(name="größe")), "backbone_name": "ViT-B/16", "backbone_sha256": DIGEST,
        "facts": {"epoch": "7"},
    }  # fmt: skip
    native.save_weights(path, native.MethodFile(**(values | changes), tensors=trained()))  # type: ignore[arg-type]


def rewrite_metadata(path: Path, **changes: object) -> None:
    tensors, metadata = native.read_safetensors(path)
    content = json.loads(metadata[native.METADATA_KEY]) | changes
    save_file(tensors, path, metadata={native.METADATA_KEY: json.dumps(content)})


def test_method_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "best.safetensors"
    save(path)
    found = native.read_method(path)
    assert found.tensors.keys() == trained().keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in trained().items())
    assert (found.backbone_name, found.backbone_sha256, found.facts) == ("ViT-B/16", DIGEST, {"epoch": "7"})
    assert found.config == to_dict(RunConfig(name="größe"))
    assert found.architecture is None
    assert found.known_token_ids is None
    assert native.kind_of(path) == "method"


def test_merged_file_carries_its_architecture(tmp_path: Path) -> None:
    path = tmp_path / "merged.safetensors"
    save(path, architecture=ARCHITECTURE, known_token_ids=frozenset({3, 1}))
    found = native.read_method(path)
    assert found.architecture == ARCHITECTURE
    assert found.known_token_ids == {1, 3}


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / name, facts={"x": "1", "y": "2"} if name == "a" else {"y": "2", "x": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_read_tensors_outlive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save(path)
    found = native.read_method(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(found.tensors["prompts.text.0"], trained()["prompts.text.0"])


@pytest.mark.parametrize("half", [False, True])
def test_backbone_comes_back(tmp_path: Path, half: bool) -> None:
    state = {"vision.proj": torch.randn(8, 8), native.TOKEN_EMBEDDING: torch.randn(20, 8)}
    path = tmp_path / "backbone.safetensors"
    native.save_backbone(path, state, ARCHITECTURE, facts={"made": "by a test"}, half=half)
    found = native.read_backbone(path)
    for name, value in state.items():
        assert found.tensors[name].dtype == torch.float32
        assert torch.equal(found.tensors[name], value.half().float() if half else value)
    assert (found.architecture, found.facts, found.known_token_ids) == (ARCHITECTURE, {"made": "by a test"}, None)
    assert native.kind_of(path) == "backbone"


def test_backbone_with_some_token_rows(tmp_path: Path) -> None:
    table = torch.randn(20, 8)
    path = tmp_path / "backbone.safetensors"
    native.save_backbone(
        path, {native.TOKEN_EMBEDDING: table}, ARCHITECTURE, facts={}, known_token_ids=frozenset({19, 4, 7})
    )
    assert load_file(path)[native.TOKEN_EMBEDDING].shape == (3, 8)
    found = native.read_backbone(path)
    assert found.known_token_ids == {4, 7, 19}
    rebuilt = found.tensors[native.TOKEN_EMBEDDING]
    assert rebuilt.shape == table.shape
    assert torch.equal(rebuilt[[4, 7, 19]], table[[4, 7, 19]])
    unknown = [row for row in range(20) if row not in (4, 7, 19)]
    known = table[[4, 7, 19]]
    scores = (rebuilt[unknown] - known.mean(dim=0)) / known.std(dim=0, correction=0)
    assert scores.abs().max() < 5 and scores.std() > 0.5, "drawn as the known ones lie"
    assert len(rebuilt.unique(dim=0)) == 20, "unseen words differ"
    assert torch.equal(rebuilt, native.read_backbone(path).tensors[native.TOKEN_EMBEDDING]), "always the same"
    assert native.TOKEN_ROWS not in found.tensors


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.tensor([1, 2], dtype=torch.int32), "does not fit"),
        (torch.tensor([1, 2, 20], dtype=torch.int32), "outside 0 to 19"),
        (torch.tensor([-1, 2, 3], dtype=torch.int32), "outside 0 to 19"),
        (torch.tensor([1.0, 2.0, 3.0]), "outside"),
    ],
)
def test_wrong_token_rows_are_refused(tmp_path: Path, rows: torch.Tensor, message: str) -> None:
    path = tmp_path / "backbone.safetensors"
    native.save_backbone(
        path, {native.TOKEN_EMBEDDING: torch.zeros(3, 8), native.TOKEN_ROWS: rows}, ARCHITECTURE, facts={}
    )
    with pytest.raises(ValueError, match=message):
        native.read_backbone(path)


def test_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save(path)
    rewrite_metadata(path, version=native.FORMAT_VERSION + 1)
    with pytest.raises(ValueError, match="newer version of cskt"):
        native.read_method(path)


def test_kinds_are_not_mixed_up(tmp_path: Path) -> None:
    save(tmp_path / "method")
    native.save_backbone(tmp_path / "backbone", {}, ARCHITECTURE, facts={})
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="holds a method, expected a backbone"):
        native.read_backbone(tmp_path / "method")
    with pytest.raises(ValueError, match="holds a backbone, expected a method"):
        native.read_method(tmp_path / "backbone")
    with pytest.raises(ValueError, match="not a file of cskt's own format"):
        native.read_method(tmp_path / "foreign")
    assert native.kind_of(tmp_path / "foreign") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"facts": None}, {"config": 3}, {"backbone_name": 1, "facts": "no"}, {"architecture": "ViT"},
        {"architecture": {"embed_dim": -1}}, {"architecture": {"depth": 1}}, {"version": "one"}, {"known_token_ids": 5},
    ],
)  # fmt: skip
def test_damaged_metadata_is_one_line(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "best.safetensors"
    save(path)
    rewrite_metadata(path, **changes)
    with pytest.raises(ValueError, match="best.safetensors") as caught:
        native.read_method(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [0, 4, 8, 50, -1])
def test_truncated_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "best.safetensors"
    save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="cannot be read as safetensors") as caught:
        native.read_method(path)
    assert "\n" not in str(caught.value)


def test_lying_header_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save(path)
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        native.kind_of(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent.safetensors"):
        native.read_method(tmp_path / "absent.safetensors")


def test_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="best.safetensors: cannot be written"):
        save(tmp_path / "file" / "best.safetensors")
