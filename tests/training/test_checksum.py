"""Checksum of a checkpoint: a change of any byte is noticed, and torch still reads the file."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from cskt.training.checkpoint import NUM_CHECKSUM_BYTES, add_checksum, is_corrupt


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "file.pt"
    torch.save({"a": torch.arange(50), "b": "text"}, path)
    return path


@pytest.fixture
def with_checksum(plain: Path) -> Path:
    add_checksum(plain)
    return plain


def test_a_file_with_a_checksum_is_read_as_before(with_checksum: Path) -> None:
    assert not is_corrupt(with_checksum)
    assert zipfile.ZipFile(with_checksum).testzip() is None
    content = torch.load(with_checksum, weights_only=True)
    assert torch.equal(content["a"], torch.arange(50)) and content["b"] == "text"


def test_every_cut_is_noticed_or_leaves_no_archive(with_checksum: Path) -> None:
    content = with_checksum.read_bytes()
    for length in range(len(content)):
        with_checksum.write_bytes(content[:length])
        if not is_corrupt(with_checksum):
            assert length < len(content) - NUM_CHECKSUM_BYTES
            with pytest.raises((RuntimeError, EOFError, OSError, pickle.UnpicklingError)):
                torch.load(with_checksum, weights_only=True)


def test_every_flipped_bit_is_noticed_or_leaves_no_archive(with_checksum: Path) -> None:
    content = with_checksum.read_bytes()
    for place in range(len(content)):
        with_checksum.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        if not is_corrupt(with_checksum):
            assert not zipfile.is_zipfile(with_checksum)


def test_a_byte_too_many_is_noticed(with_checksum: Path) -> None:
    with_checksum.write_bytes(with_checksum.read_bytes() + b"x")
    assert is_corrupt(with_checksum)


def test_a_file_without_a_checksum_is_not_corrupt(plain: Path, tmp_path: Path) -> None:
    assert not is_corrupt(plain)
    (tmp_path / "empty").touch()
    assert not is_corrupt(tmp_path / "empty")
