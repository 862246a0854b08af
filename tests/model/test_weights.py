"""Backbones are read strictly, fitted to the images, and copied into a model whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_clip
import torch
from safetensors.torch import save_file
from tiny_clip import ARCHITECTURE, LEFTOVERS, UNKNOWN_ORIGIN, assert_tiny, refused, with_changes
from torch import Tensor

from cskt.config import AdapterConfig, BackboneConfig
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.weights import load_backbone, load_state, resize_positions


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("visual.proj", lambda x: None, "'visual.proj' is missing"),
        ("transformer.resblocks.1.mlp.c_fc.bias", lambda x: None, "'transformer.resblocks.1.mlp.c_fc.bias' is missing"),
        ("visual.conv1.weight", lambda x: x[0], "'visual.conv1.weight' has shape [3, 8, 8]"),
        ("visual.conv1.weight", lambda x: x[..., :4], "'visual.conv1.weight' has shape [128, 3, 8, 4], expected"),
        ("visual.ln_pre.bias", lambda x: x[:5], "'visual.ln_pre.bias' has shape [5], expected [128]"),
        ("text_projection", lambda x: x.T.contiguous(), "'visual.proj' has shape [128, 24], expected [128, 64]"),
        (
            "positional_embedding",
            lambda x: x[:, :10].clone(),
            "'text_projection' has shape [64, 24], expected [10, 24]",
        ),
        ("ln_final.weight", lambda x: x.long(), "'ln_final.weight' is torch.int64"),
        ("ln_final.weight", lambda x: x.fill_(float("nan")), "'ln_final.weight' holds NaN"),
        (
            "token_embedding.weight",
            lambda x: x.index_fill(0, torch.tensor([3]), float("inf")),
            "'token_embedding.weight' holds NaN or infinity",
        ),
        (
            "transformer.resblocks.7.ln_1.bias",
            lambda x: torch.zeros(64),
            "'transformer.resblocks.3.ln_1.weight' is missing",
        ),
        ("visual.ln_mid.weight", lambda x: torch.zeros(64), "unknown tensor 'visual.ln_mid.weight'"),
        ("visual.positional_embedding", lambda x: x[:12].clone(), "11 patch positions make no square grid"),
    ],
)
def test_wrong_tensor_is_named(tmp_path: Path, name: str, change: Callable[[Any], Any], message: str) -> None:
    def apply(state: dict[str, Any]) -> None:
        value = change(state.get(name))
        if value is None:
            del state[name]
        else:
            state[name] = value

    assert message in refused(with_changes(apply, tmp_path / "clip.pt"), **UNKNOWN_ORIGIN)


def test_known_extras_are_left_out(tmp_path: Path) -> None:
    extras = {
        "logit_scale": torch.tensor(4.6), "attn_mask": torch.full((20, 20), float("-inf")),
        "visual.position_ids": torch.arange(17), **{name: torch.tensor(size) for name, size in LEFTOVERS.items()},
    }  # fmt: skip
    path = with_changes(lambda state: state.update(extras), tmp_path / "clip.pt")
    assert_tiny(load_backbone(BackboneConfig(name=str(path))).state)


def test_what_is_no_tensor_is_passed_over_but_missed_in_place_of_one(tmp_path: Path) -> None:
    path = with_changes(lambda state: state.update(note="hello", epoch=3), tmp_path / "clip.pt")
    assert_tiny(load_backbone(BackboneConfig(name=str(path), **UNKNOWN_ORIGIN)).state)
    path = with_changes(lambda state: state.update({"visual.ln_pre.bias": "hello"}), tmp_path / "clip.pt")
    assert "'visual.ln_pre.bias' is missing" in refused(path, **UNKNOWN_ORIGIN)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"visual.conv1.weight": 0, "visual.layer1.0.conv1.weight": 0}, "not a CLIP with a vision transformer"),
        ({"encoder.weight": 0}, "'encoder.weight'"),
        ({"base_model.visual.proj": 0}, "'base_model.visual.conv1.weight' is missing"),
        ({"base_model.visual.proj": 0, "prompt_learner.ctx": 0}, "checkpoint of CSKT, not a backbone; give the folder"),
        ({}, "no named tensors"),
        ([1, 2], "no named tensors"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, state: object, message: str) -> None:
    torch.save(state, tmp_path / "x.pt")
    assert message in refused(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"weights\n" * 20, "an unknown format"),
        (b"PK\x03\x04" + b"\0" * 200, "corrupt"),
        (b"\x80\x02" + b"\0" * 200, "corrupt"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x00{}" + b" " * 100, "cannot be read as safetensors"),
    ],
)
def test_what_is_no_weight_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "clip.pt").write_bytes(content)
    assert message in refused(tmp_path / "clip.pt")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97, 0.9999])
@pytest.mark.parametrize("kind", ["archive", "plain", "legacy", "safetensors"])
def test_truncated_file_is_one_line(tmp_path: Path, archive: Path, kind: str, share: float) -> None:
    path = tmp_path / "clip"
    if kind == "archive":
        path.write_bytes(archive.read_bytes())
    elif kind == "safetensors":
        save_file(tiny_clip.plain_state(), path)
    else:
        torch.save(tiny_clip.plain_state(), path, _use_new_zipfile_serialization=kind == "plain")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert str(path) in refused(path, **UNKNOWN_ORIGIN)


def test_load_state_is_all_or_nothing(archive: Path) -> None:
    state = load_backbone(BackboneConfig(name=str(archive))).state
    model = DualEncoder(ARCHITECTURE, {"adapters": AdapterConfig(sides="text")})
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    wrong = state | {"text.proj": state["text.proj"] * float("nan")}
    for bad in (wrong, {**state, "text.extra": torch.zeros(1)}, dict(list(state.items())[1:])):
        with pytest.raises(ValueError, match="a file: "):
            load_state(model, bad, origin="a file")
        assert not any(parameter.any() for parameter in model.parameters())
    load_state(model, state, origin="a file")
    own = dict(model.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in state.items())
    assert not any(parameter.any() for name, parameter in own.items() if name.startswith("adapters."))
    assert not own["vision.proj"].requires_grad
    with pytest.raises(
        ValueError, match=r"'adapters.text.0.down.bias' is missing|'adapters.text.0.norm.weight' is missing"
    ):
        load_state(model, state, origin="a file", prefixes=("",))


def test_a_model_without_memory_takes_the_tensors_over(archive: Path) -> None:
    backbone = load_backbone(BackboneConfig(name=str(archive)))
    usual = DualEncoder(backbone.architecture, trainable="none")
    load_state(usual, backbone.state, origin="usual")
    with torch.device("meta"):
        taking = DualEncoder(backbone.architecture, trainable="none")
    load_state(taking, backbone.state, origin="taking", prefixes=("",))
    for (name, found), expected in zip(taking.named_parameters(), usual.parameters(), strict=True):
        assert torch.equal(found, expected) and found.dtype == torch.float32 and not found.requires_grad, name
    name, some = next(iter(taking.named_parameters()))
    assert some.data_ptr() == backbone.state[name].data_ptr(), "no copy"


def naive_bilinear(grid: Tensor, rows: int, columns: int) -> Tensor:
    """[h, w, width] -> [rows, columns, width]; a point between the centres of four cells, edges held."""
    height, width = grid.shape[:2]
    resized = torch.empty(rows, columns, grid.shape[2])
    for i in range(rows):
        for j in range(columns):
            y = min(max((i + 0.5) * height / rows - 0.5, 0), height - 1)
            x = min(max((j + 0.5) * width / columns - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = grid[top, left] * (1 - x + left) + grid[top, right] * (x - left)
            lower = grid[bottom, left] * (1 - x + left) + grid[bottom, right] * (x - left)
            resized[i, j] = upper * (1 - y + top) + lower * (y - top)
    return resized


@pytest.mark.parametrize("new_grid", [(24, 8), (3, 5), (1, 1), (14, 13)])
def test_positions_are_resized_bilinearly(new_grid: tuple[int, int]) -> None:
    positions = torch.randn(1 + 14 * 14, 6)
    resized = resize_positions(positions, (14, 14), new_grid)
    assert torch.equal(resized[0], positions[0])
    expected = naive_bilinear(positions[1:].view(14, 14, 6), *new_grid).flatten(0, 1)
    torch.testing.assert_close(resized[1:], expected, rtol=1e-5, atol=1e-5)


def test_equal_grid_keeps_positions_bit_for_bit() -> None:
    positions = torch.randn(1 + 6, 4)
    assert torch.equal(resize_positions(positions, (2, 3), (2, 3)), positions)


def test_backbone_is_fitted_to_the_asked_images(archive: Path) -> None:
    plain = load_backbone(BackboneConfig(name=str(archive)))
    fitted = load_backbone(BackboneConfig(name=str(archive), image_height=48, image_width=16, stride=4))
    assert fitted.architecture.grid == (11, 3)
    name = "vision.positional_embedding"
    assert torch.equal(fitted.state[name], resize_positions(plain.state[name], (4, 4), (11, 3)))
    assert "holds no patch" in refused(archive, image_height=4, image_width=4)
