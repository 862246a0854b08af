"""A bug in the code around a library call is a bug, although errors of the call itself are bad input."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cskt.cli import model_flags
from cskt.cli.main import main
from cskt.config.plain_yaml import plain_yaml
from cskt.errors import CsktError, FileSystemError
from cskt.gallery.gallery import Gallery
from cskt.image_files.decode import decode_image
from cskt.model.io.released.reader import read_released_config
from cskt.model.io.tensors import load_checkpoint, load_plain, read_tensors
from cskt.training import distributed

UNPICKLER = "cskt.model.io.unpickling.RestrictedUnpickler"


def value_error(*_: Any, **__: Any) -> Any:
    return np.ones(2) + np.ones(3)


def key_error(*_: Any, **__: Any) -> Any:
    return {}["colour"]


def weight_file(folder: Path) -> Path:
    torch.save({"a": torch.ones(2)}, folder / "a.pt")
    return folder / "a.pt"


def foreign_file(folder: Path, *, legacy: bool = False) -> Path:
    """Write a file that `torch.load(weights_only=True)` refuses, because of an object beside the tensors."""
    content = {"a": torch.ones(2), "flags": argparse.Namespace(lr=1)}
    torch.save(content, folder / "b.pt", _use_new_zipfile_serialization=not legacy)
    return folder / "b.pt"


def crop(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("CMYK" if kind == "JPEG" else "RGB", (24, 48)).save(stream, kind)
    return stream.getvalue()


def released(folder: Path) -> Path:
    (folder / "configs.yaml").write_text("lr: 1.0e-4\n")
    return folder


@pytest.mark.parametrize("bug", [value_error, key_error])
@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("cskt.config.plain_yaml.PlainLoader.flatten_mapping", lambda _: plain_yaml("a: 1")),
        ("cskt.config.plain_yaml.PlainLoader.compose_node", lambda _: plain_yaml("a: 1")),
        ("cskt.model.io.tensors._check_archive", lambda folder: load_plain(weight_file(folder))),
        ("cskt.model.io.tensors._check_archive", lambda folder: read_tensors(weight_file(folder))),
        ("cskt.model.io.tensors.is_torchscript", lambda folder: read_tensors(weight_file(folder))),
        (
            f"{UNPICKLER}.find_class",
            lambda folder: load_checkpoint(foreign_file(folder)),
        ),
        (
            f"{UNPICKLER}.rebuild_tensor",
            lambda path: load_checkpoint(foreign_file(path)),
        ),
        ("cskt.model.io.torch_files._storage_of", lambda folder: load_checkpoint(foreign_file(folder))),
        ("cskt.model.io.torch_files._storage_of", lambda folder: load_checkpoint(foreign_file(folder, legacy=True))),
        ("cskt.model.io.torch_files._fill", lambda folder: load_checkpoint(foreign_file(folder, legacy=True))),
        ("cskt.model.io.released.reader.from_published", lambda folder: read_released_config(released(folder))),
        ("cskt.model.io.released.reader.plain_yaml", lambda folder: read_released_config(released(folder))),
        ("cskt.image_files.formats.formats", lambda _: decode_image(crop("PNG"))),
        ("cskt.image_files.jpeg.check_size", lambda _: decode_image(crop("JPEG"))),
        ("cskt.training.distributed.has_agent_store", lambda _: distributed._connect(distributed.Ranks(0, 1), "gloo")),
    ],
)
def test_a_bug_around_a_library_call(
    function: str,
    call: Callable[[Path], Any],
    bug: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.distributed.rendezvous", lambda *_, **__: iter([(None, 0, 1)]))
    monkeypatch.setattr(function, bug)
    with pytest.raises((ValueError, KeyError), match="broadcast|colour") as caught:
        call(tmp_path)
    assert not isinstance(caught.value, CsktError)


def test_a_bug_in_the_reading_of_a_flag(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "clip-tiny", "--dataset", "jsonl", "--root", "nowhere", "--image-mean", "a,b"]
    monkeypatch.setattr("cskt.evaluation.evaluate.split_of", lambda *_, **__: None)
    assert main(words) == 2
    expected = "cskt evaluate: --image-mean a,b: give a number per channel, as in --image-mean 0.5,0.5,0.5\n"
    assert capsys.readouterr().err == expected
    monkeypatch.setattr(model_flags, "_channels", value_error)
    assert main(words) == 70


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "a\ud800", "folder/" + "y" * 300])
def test_a_path_that_no_system_takes_is_refused_in_one_line(path: str, tmp_path: Path) -> None:
    import cskt

    encoder = cskt.load("clip-tiny", device="cpu")
    for call in (
        lambda: cskt.load(path),
        lambda: cskt.load_config(f"{path}.yaml"),
        lambda: cskt.read_dataset("cuhk-pedes", path),
        lambda: encoder.encode_image(path),
        lambda: encoder.save(path),
        lambda: Gallery.create(path, encoder),
        lambda: Gallery.open(path),
        lambda: cskt.load("clip-tiny", plugins=[f"{path}.py"]),
    ):
        with pytest.raises(CsktError) as caught:
            call()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    with Gallery.create(tmp_path / "gallery", encoder) as gallery:
        for call in (lambda: gallery.index(path), lambda: gallery.add_shards([path])):
            with pytest.raises(FileSystemError if "\0" in path else CsktError):
                call()
