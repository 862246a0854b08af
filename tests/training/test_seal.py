"""The digest inside a checkpoint: whatever happens to a byte is noticed, and the file stays one that torch reads."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from cskt.training.checksum import NUM_SEAL_BYTES, is_broken, seal


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "file.pt"
    torch.save({"a": torch.arange(50), "b": "text"}, path)
    return path


@pytest.fixture
def sealed(plain: Path) -> Path:
    seal(plain)
    return plain


def test_a_sealed_file_is_read_as_before(sealed: Path) -> None:
    assert not is_broken(sealed)
    assert zipfile.ZipFile(sealed).testzip() is None
    content = torch.load(sealed, weights_only=True)
    assert torch.equal(content["a"], torch.arange(50)) and content["b"] == "text"


def test_every_cut_is_noticed_or_leaves_no_archive(sealed: Path) -> None:
    content = sealed.read_bytes()
    for length in range(len(content)):
        sealed.write_bytes(content[:length])
        if not is_broken(sealed):
            assert length < len(content) - NUM_SEAL_BYTES
            with pytest.raises((RuntimeError, EOFError, OSError, pickle.UnpicklingError)):
                torch.load(sealed, weights_only=True)


def test_every_flipped_bit_is_noticed_or_leaves_no_archive(sealed: Path) -> None:
    content = sealed.read_bytes()
    for place in range(len(content)):
        sealed.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        if not is_broken(sealed):
            assert not zipfile.is_zipfile(sealed)


def test_a_byte_too_many_is_noticed(sealed: Path) -> None:
    sealed.write_bytes(sealed.read_bytes() + b"x")
    assert is_broken(sealed)


def test_a_file_that_was_never_sealed_is_not_broken(plain: Path, tmp_path: Path) -> None:
    assert not is_broken(plain)
    (tmp_path / "empty").touch()
    assert not is_broken(tmp_path / "empty")
