"""The cache gives the pixels that decoding gives, with several runs, killed runs and changed files."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from small_datasets import write_image

from cskt.data import images, loading, pixel_cache
from cskt.data.images import ImageReader
from cskt.data.loading import cached_images
from cskt.data.pixel_cache import INDEX, PIXELS, ImageArray

HEIGHT, WIDTH = 24, 8
READER = ImageReader(HEIGHT, WIDTH)
IMAGE_BYTES = 3 * HEIGHT * WIDTH
NUM_IMAGES = 20

FILLING = """
import os, signal, sys
from pathlib import Path
from cskt.data import loading
from cskt.data.images import ImageReader

folder, die_at_append, *paths = sys.argv[1:]
loading.IMAGES_PER_APPEND = 4
fsync, appends = os.fsync, 0

def counting(file):
    global appends
    fsync(file)
    appends += 1
    if appends == int(die_at_append):
        os.kill(os.getpid(), signal.SIGKILL)

os.fsync = counting
loading.cached_images(Path(folder), [Path(path) for path in paths], ImageReader(24, 8), 2)
"""


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [write_image(tmp_path / "imgs" / f"{seed}.jpg", seed, (10 + seed, 50)) for seed in range(NUM_IMAGES)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Number of times that each file is decoded."""
    counts: Counter[str] = Counter()
    read = ImageReader.read

    def counting(reader: ImageReader, data: bytes, name: str = "") -> torch.Tensor:
        if name:  # the test picture has none
            counts[name] += 1
        return read(reader, data, name)

    monkeypatch.setattr(ImageReader, "read", counting)
    return counts


def open_images(folder: Path, paths: list[Path], num_workers: int = 0) -> ImageArray:
    return cached_images(folder, paths, READER, num_workers)


def assert_right(kept: ImageArray, paths: list[Path]) -> None:
    expected = torch.stack([READER.read(path) for path in paths])
    assert len(kept) == len(paths)
    assert torch.equal(kept[torch.arange(len(paths))], expected)


def store_of(folder: Path) -> Path:
    (store,) = folder.iterdir()
    return store


def num_indexed(folder: Path) -> int:
    size = (store_of(folder) / INDEX).stat().st_size
    assert size % 32 == 0
    return size // 32


@pytest.mark.parametrize("num_workers", [0, 3])
def test_pixels_equal_decoding_in_any_order(
    folder: Path, paths: list[Path], num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "IMAGES_PER_APPEND", 7)
    for order in (paths, paths[::-1], paths[3:9] * 2):
        assert_right(open_images(folder, order, num_workers), order)
    kept = open_images(folder, paths, num_workers)
    batch = kept[torch.tensor([4, 0, 4])]
    assert batch.shape == (3, 3, HEIGHT, WIDTH) and batch.dtype == torch.uint8
    batch.zero_()
    assert_right(kept, paths)


def test_nothing_is_decoded_twice(folder: Path, paths: list[Path], tmp_path: Path, decoded: Counter[str]) -> None:
    open_images(folder, paths[:12])
    assert decoded == {str(path): 1 for path in paths[:12]}
    moved = [Path(shutil.copy(path, tmp_path / f"moved-{path.name}")) for path in paths]
    assert_right(open_images(folder, moved), paths)
    assert decoded.total() == NUM_IMAGES and num_indexed(folder) == NUM_IMAGES, "known by content, not by name"


def test_a_changed_file_is_read_again_even_with_its_old_size_and_time(folder: Path, paths: list[Path]) -> None:
    files = [write_image(path.with_suffix(".ppm"), seed) for seed, path in enumerate(paths[:3])]
    before = open_images(folder, files)
    old, status = READER.read(files[1]), files[1].stat()
    files[1].write_bytes(write_image(files[1].with_name("other.ppm"), seed=99).read_bytes())
    os.utime(files[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files[1].stat().st_size == status.st_size
    assert_right(open_images(folder, files), files)
    assert torch.equal(before[torch.tensor([1])][0], old), "who has the old images keeps them"


def test_sizes_and_methods_have_folders_of_their_own(
    folder: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_images(folder, paths)
    larger = cached_images(folder, paths, ImageReader(2 * HEIGHT, WIDTH), 0)
    assert torch.equal(larger[torch.tensor([2])][0], ImageReader(2 * HEIGHT, WIDTH).read(paths[2]))
    assert len(list(folder.iterdir())) == 2

    resize, before = images.resize, READER.read(paths[2])

    def darker(pixels: np.ndarray, height: int, width: int, *_: str) -> torch.Tensor:
        return resize(pixels, height, width) // 2

    monkeypatch.setattr(images, "resize", darker)
    pixel_cache._method.cache_clear()
    try:
        kept = open_images(folder, paths)
    finally:
        pixel_cache._method.cache_clear()
    assert torch.equal(kept[torch.tensor([2])][0], before // 2), "not the old pixels"
    assert len(list(folder.iterdir())) == 3


def test_two_runs_fill_at_once(folder: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "IMAGES_PER_APPEND", 3)
    with ThreadPoolExecutor(4) as pool:
        orders = [paths, paths[::-1], paths[10:] + paths[:10], paths]
        for kept, order in zip(pool.map(lambda order: open_images(folder, order, 1), orders), orders, strict=True):
            assert_right(kept, order)
    assert num_indexed(folder) == NUM_IMAGES, "none twice"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no such signal")
def test_a_killed_run_leaves_no_wrong_pixel(folder: Path, paths: list[Path]) -> None:
    """Killed between its third append's pixels and their index, while another run fills the same cache."""

    def start(die_at_append: int, order: list[Path]) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", FILLING, str(folder), str(die_at_append), *map(str, order)])

    alone = start(3, paths)
    assert alone.wait() == -signal.SIGKILL
    assert num_indexed(folder) == 8 and (store_of(folder) / PIXELS).stat().st_size == 12 * IMAGE_BYTES
    killed, other = start(1, paths[12:]), start(0, paths[::-1])
    assert killed.wait() in (-signal.SIGKILL, 0), "0 where the other run was faster"
    assert other.wait() == 0
    assert num_indexed(folder) == NUM_IMAGES
    assert_right(open_images(folder, paths), paths)


@pytest.mark.parametrize(
    ("pixel_bytes", "index_bytes"),
    [
        (5 * IMAGE_BYTES + 100, 5 * 32),  # killed while writing pixels
        (9 * IMAGE_BYTES, 5 * 32 + 7),  # killed while writing the index
        (5 * IMAGE_BYTES - 1, 9 * 32),  # a copy of the folder that stopped in the middle
        (0, 9 * 32),
    ],
)
def test_remains_of_a_killed_run_are_overwritten(
    folder: Path, paths: list[Path], pixel_bytes: int, index_bytes: int
) -> None:
    open_images(folder, paths)
    store = store_of(folder)
    index = (store / INDEX).read_bytes()
    (store / PIXELS).write_bytes((store / PIXELS).read_bytes()[:pixel_bytes])
    (store / INDEX).write_bytes(index[:index_bytes])
    assert_right(open_images(folder, paths[::-1]), paths[::-1])
    assert sorted(_digests(store)) == sorted(hashlib.sha256(path.read_bytes()).digest() for path in paths)


def test_a_write_that_fails_halfway_indexes_nothing_wrong(
    folder: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stale digests behind the last whole image never come to name another image's pixels."""
    open_images(folder, paths[:10])
    store = store_of(folder)
    (store / PIXELS).write_bytes((store / PIXELS).read_bytes()[: 2 * IMAGE_BYTES])  # the index names ten

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", full)
        with pytest.raises(ValueError, match=r"cache: No space left on device; free space there or .* data\.cache_dir"):
            open_images(folder, paths[10:])
    assert_right(open_images(folder, paths), paths)


def _digests(store: Path) -> list[bytes]:
    data = (store / INDEX).read_bytes()
    return [data[start : start + 32] for start in range(0, len(data), 32)]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("content", [None, b"", b"text"])
def test_bad_images_are_named_and_not_kept(
    folder: Path, paths: list[Path], content: bytes | None, num_workers: int
) -> None:
    intact = paths[5].read_bytes()
    paths[5].unlink()
    if content is not None:
        paths[5].write_bytes(content)
    with pytest.raises(ValueError, match="image") as caught:
        open_images(folder, paths, num_workers)
    assert str(caught.value).startswith(f"{paths[5]}: ") and "\n" not in str(caught.value)
    paths[5].write_bytes(intact)
    assert_right(open_images(folder, paths), paths)


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path, paths: list[Path]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file: .*; free space there or name another folder with data\.cache_dir"):
        open_images(tmp_path / "file", paths)


def test_no_images_at_all(folder: Path) -> None:
    assert open_images(folder, [])[torch.arange(0)].shape == (0, 3, HEIGHT, WIDTH)
