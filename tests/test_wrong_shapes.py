"""Invalid JSON files of every kind: accepted, or refused in one line that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from cskt.config import load_config, to_dict
from cskt.data.paperdoll import make_dataset
from cskt.embed import ModelSource
from cskt.embed.exported import EXPORTED, read_facts
from cskt.embed.model_paths import needed_backbone
from cskt.evaluation.results import Result, Summary, load_result, save_result
from cskt.gallery.calibration import Calibration, load_calibration, save_calibration
from cskt.gallery.manifest import Manifest, read_manifest, write_manifest
from cskt.model.io import native
from cskt.model.io.released.reader import read_released_config
from json_fuzz import wrong_shapes

COMPAT = Path(__file__).parent / "compat" / "v0_1_0"
Reader: TypeAlias = tuple[Path, Any, Callable[[], object]]
ARCHITECTURE = to_dict(native.read_backbone(COMPAT / "backbone.safetensors").architecture)
SHA256 = "0123456789abcdef" * 4


def manifest(folder: Path) -> Reader:
    """`gallery.json`."""
    model = ModelSource("clip-tiny", "backbone.pt", 64, 32, 16, "fp32")
    write_manifest(folder, Manifest(model, SHA256, 16, "w", "lance", {"camera": "text"}, "crops", None, ("*.png",)))
    path = folder / "gallery.json"
    return path, json.loads(path.read_text()), lambda: read_manifest(folder)


def calibration(folder: Path) -> Reader:
    """`calibration.json`."""
    measured = Calibration(0.2, 0.01, 0.005, (0.0, 0.1), 0.9, 10, 1000)
    path = save_calibration(folder, measured, fingerprint=SHA256, source="test")
    return path, json.loads(path.read_text()), lambda: load_calibration(folder, SHA256)


def result(folder: Path) -> Reader:
    """A result of `cskt evaluate`."""
    ranks = np.array([1, 2, 0])
    metrics = Summary(0.5, 1.0, 1.0, 0.75, 0.75, 3, 3, 1)
    made = Result(
        "jsonl", "test", SHA256, "a", {"t2i": vars(metrics), "i2t": vars(metrics)}, np.array([1, 2, 3]), ranks,
        np.array([1, 0.5, 0]), np.array([1, 0.5, 0]),
    )  # fmt: skip
    path = save_result(folder, made)
    return path, json.loads(path.read_text()), lambda: load_result(path)


def exported(folder: Path) -> Reader:
    """The description of an exported folder."""
    content = {
        "format_version": 1, "form": "onnx", "precision": "fp32", "fingerprint": SHA256, "architecture": ARCHITECTURE,
        "longest_caption": 77, "known_token_ids": [1, 2], "templates": ["{}"], "num_parameters": 5, "config": {"a": 1},
        "sha256": {"image.onnx": SHA256}, "usage": {"images": "RGB"}, "versions": {"cskt": "0.1.0"}, "parity": None,
    }  # fmt: skip
    return folder / EXPORTED, content, lambda: read_facts(folder)


def marker(folder: Path) -> Reader:
    """`paperdoll.json`, the settings of generated pedestrians."""
    made = make_dataset(folder, ids={"train": 1}, images_per_id=1, seed=1)
    path = made / "paperdoll.json"
    content = json.loads(path.read_text())
    return path, content, lambda: make_dataset(folder, ids={"train": 1}, images_per_id=1, seed=1)


READERS: dict[str, Callable[[Path], Reader]] = {
    "gallery.json": manifest, "calibration.json": calibration, "a result": result, "exported.json": exported,
    "paperdoll.json": marker,
}  # fmt: skip


def refusal(read: Callable[[], object], path: Path, kind: str) -> str:
    """Return the error message of one line, or an empty string if the file was accepted."""
    try:
        read()
    except ValueError as error:
        assert not isinstance(error, UnicodeError), kind
        line = str(error)
        assert "\n" not in line and line.isprintable() and len(line) < 700, f"{kind}: {line[:2000]!r}"
        assert str(path) in line or str(path.parent) in line, f"{kind}: {line}"
        return line
    return ""


@pytest.mark.parametrize("name", READERS)
def test_invalid_files_are_accepted_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path, content, read = READERS[name](tmp_path)
    path.write_text(json.dumps(content))
    read()
    num_refused = 0
    for kind, text in wrong_shapes(content):
        path.write_bytes(text)
        line = refusal(read, path, kind)
        num_refused += bool(line)
        if kind in ("empty", "null", "five", "NaN", "infinity", "text", "a list", "not UTF-8", "cut", "deep lists"):
            assert line, kind
        if "twice" in kind and "key" in kind:
            assert "is there twice" in line, kind
    assert num_refused > 100 or name == "paperdoll.json"
    path.unlink()
    path.mkdir()
    assert refusal(read, path, "a folder") or name == "paperdoll.json"


METADATA: dict[str, dict[str, Any]] = {
    "method": {
        "version": 1, "kind": "method", "config": {"name": "a"}, "backbone_name": "b", "backbone_sha256": SHA256,
        "facts": {"epoch": "1"}, "architecture": None, "known_token_ids": [1, 2],
    },
    "backbone": {"version": 1, "kind": "backbone", "architecture": {"embed_dim": 4}, "facts": {}},
    "heads": {"version": 1, "kind": "heads", "weights_sha256": SHA256, "data_sha256": SHA256, "facts": {}},
}  # fmt: skip


@pytest.mark.parametrize("kind", METADATA)
def test_metadata_of_our_safetensors_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    content = METADATA[kind]
    if kind == "backbone":
        content = {
            **content,
            "architecture": to_dict(native.read_backbone(COMPAT / "backbone.safetensors").architecture),
        }
    reader: Callable[[Path], object] = {
        "method": native.read_method, "backbone": native.read_backbone, "heads": native.read_heads,
    }[kind]  # fmt: skip
    shapes = [("as it was", json.dumps(content).encode()), *wrong_shapes(content)]
    for what, text in shapes:
        try:
            written = text.decode()
        except UnicodeDecodeError:
            continue  # safetensors refuses it
        save_file({"x": torch.zeros(1)}, path, metadata={native.METADATA_KEY: written})
        line = refusal(lambda: reader(path), path, what)
        assert bool(line) == (what != "as it was") or what.partition(" ")[0] not in ("kind", "version"), what
        for read in (native.kind_of, needed_backbone):
            refusal(lambda read=read: read(path), path, what)  # type: ignore[misc]


def test_flat_configs_and_configs_of_a_run(tmp_path: Path) -> None:
    """YAML contains JSON, so the same contents are used; only some, because reading YAML is slow."""
    readers: dict[str, Callable[[], object]] = {
        "configs.yaml": lambda: read_released_config(tmp_path),
        "config.yaml": lambda: load_config(tmp_path / "config.yaml"),
    }
    for name, read in readers.items():
        content, path = yaml.safe_load((COMPAT / "run" / name).read_text()), tmp_path / name
        shapes = list(wrong_shapes(content))
        for kind, text in [*shapes[:: len(shapes) // 25], *shapes[-21:]]:
            path.write_bytes(text[:5000] if "deep" in kind else text)
            refusal(read, path, kind)
        path.unlink()
        path.mkdir()
        assert refusal(read, path, "a folder")
