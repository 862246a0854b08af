"""Weight files of every common kind are understood, and nothing in them is ever executed."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_clip
import torch
from safetensors.torch import save_file
from tiny_clip import ARCHITECTURE, LEFTOVERS, UNKNOWN_ORIGIN, assert_tiny, open_clip_config, refused
from torch import Tensor

from cskt.config import BackboneConfig
from cskt.model.io import cache
from cskt.model.io.native import MethodFile, save_backbone, save_weights
from cskt.model.io.tensors import read_tensors
from cskt.model.io.weights import load_backbone
from pickled_trap import Trap


def test_torchscript_archive(archive: Path) -> None:
    backbone = load_backbone(BackboneConfig(name=str(archive)))
    assert backbone.architecture == ARCHITECTURE
    assert backbone.sha256 == cache.sha256_of(archive)
    assert backbone.known_token_ids is None
    assert_tiny(backbone.state)


def test_scripted_archive_with_attributes(tmp_path: Path) -> None:
    class Root(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
            self.register_buffer("input_resolution", torch.tensor(224))
            self.vocab_size, self.sizes, self.label, self.empty = 60, [1, 2], "x", torch.zeros(0)
            self.inner = torch.nn.Sequential(torch.nn.Linear(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + self.vocab_size

    root, path = Root(), tmp_path / "scripted.pt"
    with pytest.warns(DeprecationWarning):
        torch.jit.script(root).save(str(path))
    found = read_tensors(path)
    assert found.keys() == {*root.state_dict(), "empty"}
    assert all(torch.equal(found[name], value) for name, value in root.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: OrderedDict((f"module.{name}", value) for name, value in state.items()),
        lambda state: {
            "state_dict": {f"module.{name}": value for name, value in state.items()},
            "epoch": 3,
            "name": "x",
        },
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_plain_state_dict(tmp_path: Path, wrap: Callable[[dict[str, Tensor]], object], legacy: bool) -> None:
    path = tmp_path / "clip.pth"
    torch.save(wrap(tiny_clip.plain_state()), path, _use_new_zipfile_serialization=not legacy)
    backbone = load_backbone(BackboneConfig(name=str(path), **UNKNOWN_ORIGIN))
    assert backbone.architecture == ARCHITECTURE
    assert_tiny(backbone.state)


def test_state_dict_of_openais_archive_is_known(tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    torch.save(tiny_clip.plain_state() | {name: torch.tensor(size) for name, size in LEFTOVERS.items()}, path)
    assert load_backbone(BackboneConfig(name=str(path))).architecture == ARCHITECTURE


def test_unknown_origin_asks_for_what_the_file_does_not_say(tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    torch.save(tiny_clip.plain_state(), path)
    assert "backbone.activation" in refused(path)
    assert "backbone.vision_heads" in refused(path, activation="gelu")
    assert "backbone.text_heads" in refused(path, activation="gelu", vision_heads=2)
    architecture = load_backbone(
        BackboneConfig(name=str(path), activation="gelu", vision_heads=4, text_heads=2)
    ).architecture
    assert (architecture.activation, architecture.vision_heads, architecture.text_heads) == ("gelu", 4, 2)
    assert "not divisible" in refused(path, activation="gelu", vision_heads=3, text_heads=2)


@pytest.mark.parametrize(("quick", "activation"), [({}, "gelu"), ({"quick_gelu": True}, "quick_gelu")])
def test_open_clip_folder(tmp_path: Path, quick: dict[str, object], activation: str) -> None:
    save_file(tiny_clip.plain_state(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(open_clip_config(**quick)))
    backbone = load_backbone(BackboneConfig(name=str(tmp_path)))
    assert_tiny(backbone.state)
    architecture = backbone.architecture
    assert (architecture.activation, architecture.vision_heads, architecture.text_heads) == (activation, 4, 4)


def test_a_smaller_vocabulary_of_a_foreign_file_is_refused(tmp_path: Path) -> None:
    """Its tokenizer is unknown; only files of our own say that it is CLIP's with fewer merges."""
    state = tiny_clip.plain_state()
    state["token_embedding.weight"] = torch.zeros(1000, state["token_embedding.weight"].shape[1])
    path = tmp_path / "clip.pt"
    torch.save(state, path)
    message = f"{path}: the backbone has 1000 tokens; the tokenizer is CLIP's, with 49408"
    assert message == refused(path, **UNKNOWN_ORIGIN)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"text_cfg": {"hf_model_name": "roberta"}}, "text_cfg.hf_model_name"),
        ({"vision_cfg": {"timm_model_name": "convnext"}}, "vision_cfg.timm_model_name"),
        ({"vision_cfg": None}, "no model_cfg.vision_cfg"),
    ],
)
def test_foreign_open_clip_settings_are_refused(tmp_path: Path, model: dict[str, object], message: str) -> None:
    save_file(tiny_clip.plain_state(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(open_clip_config(**model)))
    assert message in refused(tmp_path)


def test_our_own_file(tmp_path: Path, archive: Path) -> None:
    state = load_backbone(BackboneConfig(name=str(archive))).state
    path = tmp_path / "ours.safetensors"
    save_backbone(path, state, ARCHITECTURE, facts={}, half=True, known_token_ids=frozenset({1, 2, 58, 59}))
    backbone = load_backbone(BackboneConfig(name=str(path)))
    assert backbone.architecture == ARCHITECTURE
    assert backbone.known_token_ids == {1, 2, 58, 59}
    known = [1, 2, 58, 59]
    assert torch.equal(
        backbone.state["text.token_embedding.weight"][known], state["text.token_embedding.weight"][known]
    )


def test_a_runs_file_is_no_backbone(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save_weights(path, MethodFile(config={}, backbone_name="x", backbone_sha256="", facts={}))
    assert "holds a method, expected a backbone" in refused(path)


def rewritten(archive: Path, path: Path, pickled: bytes) -> Path:
    """The archive with another data.pkl."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            new.writestr(entry, pickled if entry.filename.endswith("/data.pkl") else old.read(entry))
    return path


def test_archive_with_code_is_refused_and_not_run(tmp_path: Path, archive: Path) -> None:
    mark = tmp_path / "executed"
    pickled = pickle.dumps(Trap(mark), protocol=2)
    pickle.loads(pickled)
    assert mark.is_dir()  # the bomb works
    mark.rmdir()
    line = refused(rewritten(archive, tmp_path / "evil.pt", pickled))
    assert "posix.mkdir" in line or "nt.mkdir" in line
    assert not mark.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_plain_file_with_code_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    mark, path = tmp_path / "executed", tmp_path / "evil.pt"
    torch.save({**tiny_clip.plain_state(), "x": Trap(mark)}, path, _use_new_zipfile_serialization=not legacy)
    assert "nothing in it was executed" in refused(path)
    assert not mark.exists()


GLOBALS = [b"cbuiltins\neval\n.", b"ctorch\nload\n.", b"ctorch._utils\n_rebuild_parameter\n.", b"ctorch.jit\nload\n."]


@pytest.mark.parametrize("pickled", GLOBALS)
def test_archive_may_name_tensors_and_modules_only(tmp_path: Path, archive: Path, pickled: bytes) -> None:
    assert "it asks for" in refused(rewritten(archive, tmp_path / "evil.pt", b"\x80\x02" + pickled))


def tensor_pickle(count: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """A module with one tensor over storage 0, of which these sizes are claimed."""

    def tuple_of(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"L%dL\n" % value for value in values) + b"t"

    storage = b"((X\x07\0\0\0storagectorch\nHalfStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + b"L%dL\ntQ" % count
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + storage + b"L%dL\n" % offset + tuple_of(size) + tuple_of(stride)
    return b"\x80\x02c__torch__\nM\n)\x81}X\x01\0\0\0w" + tensor + b"\x89N" + b"tRsb."


def test_archives_tensor_stays_within_its_storage(tmp_path: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        count = opened.getinfo(f"{opened.namelist()[0].split('/')[0]}/data/0").file_size // 2
    whole = rewritten(archive, tmp_path / "whole.pt", tensor_pickle(count, (count,), (1,)))
    assert "not a CLIP" in refused(whole)  # a well-formed archive of one tensor
    cases = {
        "bytes instead of": tensor_pickle(count + 1, (4,), (1,)),
        "larger than its storage": tensor_pickle(count, (10**12,), (0,)),
        "out of bounds": tensor_pickle(count, (count,), (1,), offset=1),
    }
    for message, pickled in cases.items():
        assert message in refused(rewritten(archive, tmp_path / "lying.pt", pickled))
