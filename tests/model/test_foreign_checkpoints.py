"""Weight files of other programs: wrapped, sharded, with objects beside the tensors, in any pickle protocol."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import logging
import pathlib
import types
import uuid
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_clip
import torch
from safetensors.torch import save_file
from tiny_clip import UNKNOWN_ORIGIN, assert_tiny, open_clip_config, refused
from torch import Tensor

import cskt
from cskt.config import BackboneConfig
from cskt.embed import EncodeOptions, ModelSource, load_source
from cskt.model.io import cache, hub_repository
from cskt.model.io.layouts import hugging_face_names, openai_name
from cskt.model.io.tensors import load_checkpoint, read_tensors
from cskt.model.io.weights import load_backbone, tower_shapes


class Settings:
    """A class of the program that trained; here it might not even exist."""

    def __init__(self) -> None:
        self.rate, self.place = 0.1, Path("logs")


class Attributes(dict[str, Any]):
    """A mapping whose keys are attributes, as frameworks have them."""


def of_openai(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {openai_name(name): value for name, value in state.items()}


def loaded(path: Path, **flags: Any) -> dict[str, Tensor]:
    return load_backbone(BackboneConfig(name=str(path), **UNKNOWN_ORIGIN | flags)).state


# --- objects beside the tensors

BESIDE: dict[str, Any] = {
    "a NumPy scalar": np.float64(0.7),
    "a NumPy array": np.arange(6).reshape(2, 3),
    "NumPy's random state": np.random.default_rng(0).bit_generator.state,
    "argparse.Namespace": argparse.Namespace(lr=1e-4, root=pathlib.Path("data"), milestones=[1, 2]),
    "a path": pathlib.PurePosixPath("a/b"),
    "an ordered mapping": OrderedDict(a=1),
    "a mapping with a default": collections.defaultdict(list, {1: [2]}),
    "a counter and a queue": (collections.Counter("aab"), collections.deque([1], maxlen=3)),
    "a time": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    "a duration": datetime.timedelta(3),
    "an identifier": uuid.UUID(int=5),
    "a namespace": types.SimpleNamespace(a=1),
    "plain data": {
        "a": (1, 2.5, None, True, b"x", {3}, frozenset({4}), 1 + 2j, slice(1, 2), range(3), bytearray(b"y"))
    },
    "an object of the program": Settings(),
    "a mapping of the program": Attributes(a=Settings()),
    "types of torch": [torch.float16, torch.Size([2]), torch.device("cpu")],
    "a function of NumPy": np.sum,
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_objects_beside_the_tensors_are_passed_over(tmp_path: Path, protocol: int, legacy: bool) -> None:
    path, state = tmp_path / "clip.pt", {"visual.proj": torch.randn(3, 2), "logit_scale": torch.tensor(1.0)}
    for kind, beside in BESIDE.items():
        for content in ({"state_dict": state, "beside": beside}, {**state, "beside": beside}):
            torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
            found = read_tensors(path)
            assert found.keys() == state.keys(), kind
            assert all(torch.equal(found[name], value) for name, value in state.items()), kind
    content = {"state_dict": tiny_clip.plain_state(), **BESIDE}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    assert_tiny(loaded(path))


def test_views_parameters_and_half_precision_come_back(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "visual.view": whole.T[1:3], "visual.parameter": torch.nn.Parameter(whole), "visual.bf16": whole.bfloat16(),
        "visual.half": whole.half(), "visual.complex": torch.complex(whole, whole),
        "visual.empty": torch.zeros(0, 3), "visual.long": whole.long(),
    }  # fmt: skip
    for legacy in (False, True):
        content = {"model": tensors, "args": argparse.Namespace()}
        torch.save(content, tmp_path / "x.pt", pickle_protocol=4, _use_new_zipfile_serialization=not legacy)
        found = read_tensors(tmp_path / "x.pt")
        assert found.keys() == tensors.keys()
        for name, value in tensors.items():
            assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def test_the_error_for_a_pickled_module_says_what_to_save(tmp_path: Path) -> None:
    torch.save(tiny_clip.OpenAIClip(), tmp_path / "clip.pt")
    line = refused(tmp_path / "clip.pt")
    assert "tiny_clip.OpenAIClip" in line and "state_dict()" in line and "fetch" not in line


# --- prefixes

PREFIXES: dict[str, Callable[[str], str]] = {
    "DataParallel": lambda name: f"module.{name}",
    "doubled": lambda name: f"module.module.{name}",
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "the other way": lambda name: f"_orig_mod.module.{name}",
    "Lightning": lambda name: f"model.{name}",
    "Lightning, compiled": lambda name: f"net._orig_mod.{name}",
    "an own name": lambda name: f"clip_model.backbone.{name}",
    "a compiled tower": lambda name: name.replace("visual.", "visual._orig_mod."),
    "checkpointed blocks": lambda name: name.replace("resblocks.0.", "resblocks.0._checkpoint_wrapped_module."),
}


@pytest.mark.parametrize("kind", PREFIXES)
def test_prefixes_that_all_names_share_are_taken_off(tmp_path: Path, kind: str) -> None:
    state = {PREFIXES[kind](name): value for name, value in tiny_clip.plain_state().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "clip.ckpt")
    assert_tiny(loaded(tmp_path / "clip.ckpt"))
    save_file(state, tmp_path / "clip.safetensors")
    assert_tiny(loaded(tmp_path / "clip.safetensors"))


def test_an_averaged_model(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(tiny_clip.OpenAIClip())
    torch.save(averaged.half().float().state_dict(), tmp_path / "swa.pt")
    assert_tiny(loaded(tmp_path / "swa.pt"))


def test_a_prefix_that_not_all_names_share_stays(tmp_path: Path) -> None:
    state = {f"model.{name}": value for name, value in tiny_clip.plain_state().items()} | {"loss.w": torch.zeros(1)}
    torch.save(state, tmp_path / "clip.pt")
    line = refused(tmp_path / "clip.pt")
    assert "holds a CLIP under the prefix 'model.', beside 'loss.w'; save its tensors alone" in line
    clash = tiny_clip.plain_state()
    torch.save(clash | {"_orig_mod.visual.proj": clash["visual.proj"]}, tmp_path / "clip.pt")
    assert "two tensors have one name" in refused(tmp_path / "clip.pt")


# --- two sets of weights


def two_sets() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    own = tiny_clip.plain_state()
    return own, {name: 2 * value for name, value in own.items()}


PAIRS: dict[str, Callable[[Any, Any], Any]] = {
    "timm": lambda own, ema: {"state_dict": own, "state_dict_ema": ema, "args": argparse.Namespace()},
    "model_ema": lambda own, ema: {"model": own, "model_ema": ema},
    "ema": lambda own, ema: {"model": own, "ema": ema},
    "deep": lambda own, ema: {"model": {"state_dict": own}, "ema": {"module": ema, "decay": 0.9}},
    "AveragedModel": lambda own, ema: {
        "model": own,
        "ema_model": {f"module.{name}": value for name, value in ema.items()} | {"n_averaged": torch.tensor(3)},
    },
    "beside": lambda own, ema: {**own, "ema": ema},
    "by name": lambda own, ema: {
        "state_dict": {f"model.{name}": value for name, value in own.items()}
        | {f"model_ema.module.{name}": value for name, value in ema.items()}
    },
}


@pytest.mark.parametrize("kind", PAIRS)
def test_a_model_and_its_moving_average(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    own, ema = two_sets()
    path = tmp_path / "clip.pt"
    torch.save(PAIRS[kind](own, ema), path)
    assert_tiny(loaded(path))
    assert [line for line in caplog.messages if "--weights model is taken" in line], "the choice is logged"
    found = loaded(path, weights="ema")
    assert torch.equal(found["vision.proj"], ema["visual.proj"])
    assert "--weights ema is taken" in caplog.text


def test_a_moving_average_must_be_there_and_be_asked_for(tmp_path: Path, tiny_backbone: Path) -> None:
    own, ema = two_sets()
    path = tmp_path / "clip.pt"
    torch.save({"model": own}, path)
    assert "holds no moving average" in refused(path, weights="ema", **UNKNOWN_ORIGIN)
    torch.save({"ema": ema}, path)
    assert "give --weights ema" in refused(path, **UNKNOWN_ORIGIN)
    assert torch.equal(loaded(path, weights="ema")["vision.proj"], ema["visual.proj"])
    assert "holds no moving average" in refused(tiny_backbone, weights="ema")
    for kind in ("pt", "safetensors"):
        place = tmp_path / f"plain.{kind}"
        torch.save(own, place) if kind == "pt" else save_file(own, place)
        assert "holds no moving average" in refused(place, weights="ema", **UNKNOWN_ORIGIN)


def square_state() -> dict[str, Tensor]:
    """A CLIP with the real vocabulary, in OpenAI's names."""
    from cskt.config import ClipArchitecture

    sizes = ClipArchitecture(
        embed_dim=8, image_height=16, image_width=16, patch_size=8, stride=8, vision_width=16, vision_layers=1,
        vision_heads=2, text_width=16, text_layers=1, text_heads=2,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in tower_shapes(sizes).items()}


HEADS: dict[str, Any] = {"activation": "gelu", "vision_heads": 2, "text_heads": 2}


def test_a_gallery_remembers_which_weights(tmp_path: Path) -> None:
    own = of_openai(square_state())
    path = tmp_path / "clip.pt"
    torch.save({"model": own, "model_ema": {name: -value for name, value in own.items()}}, path)
    source = ModelSource(str(path), weights="ema", settings=HEADS)
    encoders = [load_source(each, EncodeOptions("cpu")) for each in (ModelSource(str(path), settings=HEADS), source)]
    assert encoders[0].fingerprint != encoders[1].fingerprint
    assert cskt.load(path, device="cpu", weights="ema", settings=HEADS).fingerprint == encoders[1].fingerprint
    with pytest.raises(ValueError, match="'name' is not known"):
        cskt.load(path, device="cpu", settings={"name": "elsewhere"})
    with pytest.raises(ValueError, match="vision_heads"):
        cskt.load(path, device="cpu", settings=HEADS | {"vision_heads": "two"})


# --- appended tokens


@pytest.mark.parametrize("more", [0, 1, 64])
def test_appended_tokens_are_left_out(tmp_path: Path, more: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    state = square_state()
    table = state["text.token_embedding.weight"]
    own = of_openai(state) | {"token_embedding.weight": torch.cat([table, torch.ones(more, 16)])}
    torch.save(own, tmp_path / "clip.pt")
    encoder = cskt.load(tmp_path / "clip.pt", device="cpu", settings=HEADS)
    torch.save(of_openai(state), tmp_path / "usual.pt")
    usual = cskt.load(tmp_path / "usual.pt", device="cpu", settings=HEADS)
    sentences = ["a man in red", "", "a woman with a bag " * 30]
    assert torch.equal(encoder.encode_text(sentences), usual.encode_text(sentences))
    assert encoder.fingerprint == usual.fingerprint
    assert bool(more) == (f"{more} tokens appended to CLIP's vocabulary" in caplog.text)


def test_too_few_tokens_are_refused(tmp_path: Path) -> None:
    own = of_openai(square_state())
    torch.save(own | {"token_embedding.weight": own["token_embedding.weight"][:-1].clone()}, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match="49407 tokens"):
        cskt.load(tmp_path / "clip.pt", device="cpu", settings=HEADS)


# --- shards


def write_shards(folder: Path, suffix: str = "safetensors", count: int = 3) -> Path:
    """The tiny CLIP in several files, in open_clip's names under a common prefix."""
    state, stem = tiny_clip.plain_state(), "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for number in range(count):
        part = dict(list(state.items())[number::count])
        name = f"{stem}-{number + 1:05}-of-{count:05}.{suffix}"
        save_file(part, folder / name) if suffix == "safetensors" else torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_sharded_folder(tmp_path: Path, suffix: str) -> None:
    index = write_shards(tmp_path, suffix)
    for path in (tmp_path, index):
        assert_tiny(loaded(path))
    sha256 = load_backbone(BackboneConfig(name=str(tmp_path), **UNKNOWN_ORIGIN)).sha256
    assert sha256 == cache.weights_sha256(index) != cache.sha256_of(index)
    shard = sorted(tmp_path.glob("*-00002-*"))[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert cache.weights_sha256(index) != sha256
    shard.unlink()
    assert f"the shard {shard.name} is missing" in refused(tmp_path, **UNKNOWN_ORIGIN)


INDICES: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "not JSON"),
    "a list": ([], "must be"),
    "no map": ({}, "weight_map"),
    "an empty map": ({"weight_map": {}}, "weight_map"),
    "a map of numbers": ({"weight_map": {"a": 1}}, "weight_map"),
    "a path up": ({"weight_map": {"a": "../x.safetensors"}}, "a shard is a file beside its index"),
    "an absolute path": ({"weight_map": {"a": "/etc/passwd"}}, "a shard is a file beside its index"),
    "a sub-folder": ({"weight_map": {"a": "b/c.bin"}}, "a shard is a file beside its index"),
    "a backslash": ({"weight_map": {"a": "..\\c.bin"}}, "a shard is a file beside its index"),
    "the folder": ({"weight_map": {"a": ".."}}, "a shard is a file beside its index"),
    "nothing": ({"weight_map": {"a": ""}}, "a shard is a file beside its index"),
    "itself": ({"weight_map": {"a": "model.safetensors.index.json"}}, "names an index"),
    "a tensor elsewhere": ({"weight_map": {"a": "x.safetensors"}}, "tensor 'a' is missing in x.safetensors"),
    "too many": ({"weight_map": {f"t{i}": f"s{i}" for i in range(1500)}}, "1,500 shards"),
    "a tensor twice": ({"weight_map": {"b": "x.safetensors", "c": "y.safetensors"}}, "tensor 'b' is in two shards"),
}


@pytest.mark.parametrize("kind", INDICES)
def test_an_index_is_somebody_elses_file(tmp_path: Path, kind: str) -> None:
    content, message = INDICES[kind]
    save_file({"b": torch.zeros(1)}, tmp_path / "x.safetensors")
    save_file({"b": torch.zeros(1), "c": torch.zeros(1)}, tmp_path / "y.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content if isinstance(content, str) else json.dumps(content))
    line = refused(tmp_path)
    assert str(index) in line and message in line


def test_a_sharded_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    index = write_shards(tmp_path / "snapshot")
    for shard in sorted((tmp_path / "snapshot").glob("*.safetensors")):  # as the hub's cache has them: links out
        shard.rename(tmp_path / "blobs" / shard.name)
        shard.symlink_to(tmp_path / "blobs" / shard.name)
    (tmp_path / "snapshot" / "config.json").write_text(json.dumps({"vision_config": {}}))
    preprocessing = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "snapshot" / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    fetched = []

    def fetch(repository: str, name: str, **_: bool) -> str:
        fetched.append(name)
        if not (tmp_path / "snapshot" / name).is_file():
            raise EntryNotFoundError(f"no {name}")
        return str(tmp_path / "snapshot" / name)

    monkeypatch.setattr(hub_repository, "hf_hub_download", fetch)
    monkeypatch.setattr(hub_repository, "model_info", lambda *_, **__: None)
    backbone = load_backbone(BackboneConfig(name="someone/large", **UNKNOWN_ORIGIN))
    assert_tiny(backbone.state)
    assert backbone.architecture.image_mean == (0.5, 0.5, 0.5)
    assert index.name in fetched and len([name for name in fetched if "-of-" in name]) == 3


# --- what is refused


def test_only_what_is_incomplete_is_to_be_fetched_again(tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    whole: list[bytes] = []
    for legacy in (False, True):
        torch.save({"a": torch.zeros(50), "b": Settings()}, path, _use_new_zipfile_serialization=not legacy)
        whole.append(path.read_bytes())
    save_file({"a": torch.zeros(50)}, path)
    whole.append(path.read_bytes())
    for content in whole:
        path.write_bytes(content[: int(0.8 * len(content))])
        assert "fetch it again" in refused(path)
    for content in (b"", b"PK\x03\x04" + bytes(100)):
        path.write_bytes(content)
        assert "fetch it again" in refused(path)
    complete: list[Any] = [
        {"x": torch.zeros(1)},
        [1],
        {},
        {"state_dict": 5},
        Settings(),
        {"a": torch.zeros(3).to_sparse()},
    ]
    for content in complete:
        torch.save(content, path)
        assert "fetch" not in refused(path)
    for raw in (b"weights\n" * 20, b"\x80\x02" + bytes(100), b"<html>", b"\x80\x04]."):
        path.write_bytes(raw)
        assert "fetch it again" not in refused(path)


def test_hugging_faces_names_keep_their_sections() -> None:
    """No section of a model's own names is taken for a prefix."""
    names = {name for ours in tower_shapes(tiny_clip.ARCHITECTURE) for name in hugging_face_names(ours)}
    assert {name.partition(".")[0] for name in names} == {
        "vision_model", "text_model", "visual_projection", "text_projection",
    }  # fmt: skip


def test_load_checkpoint_gives_what_lies_beside_as_stand_ins(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": Attributes(lr=1)}, tmp_path / "x.pt", pickle_protocol=5)
    content = load_checkpoint(tmp_path / "x.pt")
    assert content["args"].origin.endswith("Attributes") and content["args"]["lr"] == 1
    assert not isinstance(content["args"], Attributes)
    assert open_clip_config()["preprocess_cfg"] == {}
