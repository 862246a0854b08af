import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_datasets import write_image

from cskt.config import DataConfig
from cskt.data import loading
from cskt.data.images import ImageReader
from cskt.data.loading import TrainingLoader, iter_images
from cskt.data.records import Record, Split
from cskt.data.samplers import draw_units, identity_batches
from cskt.data.tokenizer import Tokenizer
from cskt.errors import OutOfMemoryError
from cskt.types import Batch

HEIGHT, WIDTH = 24, 8
READER = ImageReader(HEIGHT, WIDTH)
RANDOM = DataConfig(batch_size=5, num_workers=0)
TWO_CAPTIONS = replace(RANDOM, batch_size=6, captions_per_image=2)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """9 images of 4 people with gaps in their numbers, 23 pairs: ten captions for one image, one or two elsewhere."""
    pids = [70, 5, 5, 900, 70, 5, 31, 31, 5]
    num_captions = [2, 1, 10, 2, 1, 2, 1, 2, 2]
    return Split(
        "jsonl",
        "train",
        tuple(
            Record(
                pid=pid,
                image_path=write_image(tmp_path / f"{index}.jpg", seed=index, size=(10 + index, 30)),
                captions=tuple(f"person {pid} image {index} caption {n}" + " long" * n for n in range(count)),
                split="train",
            )
            for index, (pid, count) in enumerate(zip(pids, num_captions, strict=True))
        ),
    )


def make_loader(split: Split, data: DataConfig = RANDOM, seed: int = 1) -> TrainingLoader:
    return TrainingLoader(split, Tokenizer(), data, READER, seed=seed)


def assert_same_batches(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        for field in ("images", "caption_ids", "pids", "image_ids"):
            assert torch.equal(getattr(one, field), getattr(other, field)), field


def captions_of(batch: Batch) -> list[tuple[int, ...]]:
    return [tuple(row[: row.argmax() + 1].tolist()) for row in batch.caption_ids]


def test_batches_have_the_content_of_the_records(split: Split) -> None:
    loader = make_loader(split)
    assert (loader.num_identities, loader.num_pairs, loader.steps_per_epoch) == (4, 23, 5)
    batches = list(loader.epoch(0))
    assert [len(batch.pids) for batch in batches] == [5, 5, 5, 5, 3], "the last partial batch is kept"
    tokenizer = Tokenizer()
    pairs = {
        tuple(tokenizer([caption])[0].tolist()): image_id
        for caption, image_id in zip(split.captions, split.caption_image_ids, strict=True)
    }
    seen = []
    for batch in batches:
        assert batch.images.shape == (len(batch.pids), 3, HEIGHT, WIDTH) and batch.images.dtype == torch.uint8
        assert batch.caption_ids.dtype == batch.pids.dtype == batch.image_ids.dtype == torch.int64
        assert batch.caption_ids.shape[1] == max(map(len, captions_of(batch)))
        for row, caption in enumerate(captions_of(batch)):
            image_id = pairs[caption]
            assert batch.image_ids[row] == image_id
            assert batch.pids[row] == [5, 31, 70, 900].index(split.image_pids[image_id])
            assert torch.equal(batch.images[row], READER.read(split.image_paths[image_id]))
            seen.append(caption)
    assert sorted(seen) == sorted(pairs), "every pair once"


def test_order_depends_on_seed_and_epoch_alone(split: Split) -> None:
    loader = make_loader(split)
    first, second = list(loader.epoch(0)), list(loader.epoch(1))
    assert_same_batches(list(loader.epoch(0)), first)
    assert_same_batches(list(make_loader(split).epoch(1)), second)
    orders = [
        [caption for batch in batches for caption in captions_of(batch)]
        for batches in (first, second, list(make_loader(split, seed=2).epoch(0)))
    ]
    assert orders[0] != orders[1] and orders[0] != orders[2] and orders[1] != orders[2]


@pytest.mark.parametrize("captions_per_image", [1, 2])
@pytest.mark.parametrize("sampler", ["random", "identity", "identity-released"])
def test_resume_yields_the_rest_without_decoding_the_skipped(
    split: Split, sampler: str, captions_per_image: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = replace(RANDOM, batch_size=4, instances=2, sampler=sampler, captions_per_image=captions_per_image)
    loader = make_loader(split, data)
    everything = list(loader.epoch(3))
    assert len(everything) == loader.num_steps(3)
    decoded: list[Path] = []

    def counting(reader: ImageReader, source: Path) -> torch.Tensor:
        decoded.append(source)
        return read(reader, source)

    read = ImageReader.read
    monkeypatch.setattr(ImageReader, "read", counting)
    assert_same_batches(list(loader.epoch(3, start_step=1)), everything[1:])
    assert len(decoded) == sum(len(batch.image_ids.unique()) for batch in everything[1:])
    assert list(loader.epoch(3, start_step=loader.num_steps(3))) == []


@pytest.mark.parametrize("kept_in", ["nothing", "memory", "folder"])
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_workers_and_caches_change_nothing(split: Split, tmp_path: Path, num_workers: int, kept_in: str) -> None:
    changes = {"nothing": {}, "memory": {"cache_images": True}, "folder": {"cache_dir": str(tmp_path / "cache")}}
    loader = make_loader(split, replace(RANDOM, num_workers=num_workers, **changes[kept_in]))
    assert_same_batches(list(loader.epoch(2)), list(make_loader(split).epoch(2)))
    assert_same_batches(list(loader.epoch(2, start_step=3)), list(make_loader(split).epoch(2, start_step=3)))


def test_images_are_copied_into_memory_in_parts(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "IMAGES_AT_ONCE", 4)
    loader = make_loader(split, replace(RANDOM, cache_images=True))
    assert_same_batches(list(loader.epoch(0)), list(make_loader(split).epoch(0)))


def test_images_that_do_not_fit_into_memory_name_the_other_cache(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(shape: object, *rest: object, **options: object) -> np.ndarray:
        if shape == (len(split.records), 3, HEIGHT, WIDTH):
            raise MemoryError
        return empty(shape, *rest, **options)

    empty = np.empty
    loader = make_loader(split, replace(RANDOM, cache_images=True))
    monkeypatch.setattr(loading.np, "empty", full)
    with pytest.raises(OutOfMemoryError, match=r"use data\.cache_dir instead of data\.cache_images"):
        next(loader.epoch(0))


def test_a_cache_folder_serves_training_and_evaluation(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = list(make_loader(split).epoch(0))
    everything = torch.stack([READER.read(path) for path in split.image_paths])
    data = replace(RANDOM, cache_dir=str(tmp_path / "cache"))
    list(make_loader(split, data).epoch(0))
    pictures = [Image.open(path) for path in split.image_paths]
    taken_apart = torch.cat(list(iter_images(pictures, READER, 4, 0, cache_dir=tmp_path / "cache")))
    assert torch.equal(taken_apart, everything), "pictures are no files"

    def never(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageReader, "read", never)
    assert_same_batches(list(make_loader(split, data).epoch(0)), plain)
    for num_workers in (0, 2):
        chunks = list(iter_images(split.image_paths, READER, 4, num_workers, cache_dir=tmp_path / "cache"))
        assert [len(chunk) for chunk in chunks] == [4, 4, 1]
        assert torch.equal(torch.cat(chunks), everything)
    assert list(iter_images([], READER, 4, 0, cache_dir=tmp_path / "cache")) == []


def test_cache_decodes_each_image_once(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: Counter[Path] = Counter()

    def counting(reader: ImageReader, source: Path) -> torch.Tensor:
        decoded[source] += 1
        return read(reader, source)

    read = ImageReader.read
    monkeypatch.setattr(ImageReader, "read", counting)
    loader = make_loader(split, replace(RANDOM, cache_images=True))
    list(loader.epoch(0)), list(loader.epoch(1))
    assert decoded == Counter(split.image_paths)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("content", [None, b"", b"text", "truncated"])
def test_a_bad_image_is_an_error_that_names_it(split: Split, num_workers: int, content: bytes | str | None) -> None:
    path = split.image_paths[6]
    intact = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(intact[: len(intact) // 2] if content == "truncated" else content)
    before = threading.active_count()
    with pytest.raises(ValueError, match="image") as caught:
        list(make_loader(split, replace(RANDOM, num_workers=num_workers)).epoch(0))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert threading.active_count() == before, "no thread outlives the epoch"


def test_stopping_early_ends_the_threads(split: Split) -> None:
    before = threading.active_count()
    batches = make_loader(split, replace(RANDOM, num_workers=2)).epoch(0)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_identity_batches_hold_whole_groups(split: Split) -> None:
    data = replace(RANDOM, batch_size=6, instances=2, sampler="identity")
    loader = make_loader(split, data)
    batches = list(loader.epoch(0))
    assert len(batches) == loader.steps_per_epoch == 4
    for batch in batches:
        assert sorted(Counter(batch.pids.tolist()).values()) == [2, 2, 2]


@pytest.mark.parametrize("captions_per_image", [2, 3, 4])
def test_an_image_meets_several_of_its_captions(split: Split, captions_per_image: int) -> None:
    loader = make_loader(split, replace(RANDOM, batch_size=12, captions_per_image=captions_per_image))
    captions_of_image = [
        [tuple(row[: row.argmax() + 1].tolist()) for row in Tokenizer()(record.captions)] for record in split.records
    ]
    batches = list(loader.epoch(0))
    visits: Counter[int] = Counter()
    seen: Counter[tuple[int, ...]] = Counter()
    for batch in batches:
        num_images = len(batch.image_ids)
        assert batch.images.shape == (num_images, 3, HEIGHT, WIDTH)
        assert len(batch.pids) == len(batch.caption_ids) == captions_per_image * num_images
        assert batch.caption_ids.shape[1] == max(map(len, captions_of(batch)))
        captions = captions_of(batch)
        for row, image_id in enumerate(batch.image_ids.tolist()):
            together = slice(captions_per_image * row, captions_per_image * (row + 1))
            own, met = captions_of_image[image_id], captions[together]
            assert set(met) <= set(own)
            assert len(set(met)) == min(captions_per_image, len(own)), "repeats only where there are too few"
            pid = [5, 31, 70, 900].index(split.image_pids[image_id])
            assert batch.pids[together].tolist() == [pid] * captions_per_image
            assert torch.equal(batch.images[row], READER.read(split.image_paths[image_id]))
            visits[image_id] += 1
            seen.update(met)
    assert visits == {image_id: -(-len(own) // captions_per_image) for image_id, own in enumerate(captions_of_image)}
    assert seen.keys() == {caption for own in captions_of_image for caption in own}, "every caption"
    sizes = [len(batch.pids) for batch in batches]
    assert len(sizes) == loader.steps_per_epoch == -(-sum(sizes) // 12)
    assert sizes[:-1] == [12] * (len(sizes) - 1), "batch_size counts pairs"
    assert loader.num_pairs == 23


def test_captions_of_a_unit_depend_on_seed_and_epoch_alone(split: Split) -> None:
    def meetings(loader: TrainingLoader, epoch: int) -> list[list[tuple[int, ...]]]:
        """The captions that met, without the order of the units."""
        captions = [caption for batch in loader.epoch(epoch) for caption in captions_of(batch)]
        return sorted(sorted(captions[start : start + 2]) for start in range(0, len(captions), 2))

    loader = make_loader(split, TWO_CAPTIONS)
    assert_same_batches(list(loader.epoch(1)), list(make_loader(split, TWO_CAPTIONS).epoch(1)))
    assert meetings(loader, 0) != meetings(loader, 1) != meetings(make_loader(split, TWO_CAPTIONS, seed=2), 1)


@pytest.mark.parametrize("changes", [{"num_workers": 3}, {"cache_images": True}])
def test_workers_and_cache_change_nothing_for_several_captions(split: Split, changes: dict[str, object]) -> None:
    loader = make_loader(split, replace(TWO_CAPTIONS, **changes))
    assert_same_batches(list(loader.epoch(2)), list(make_loader(split, TWO_CAPTIONS).epoch(2)))


def test_identity_sampler_counts_pairs_and_draws_whole_images(split: Split) -> None:
    data = replace(RANDOM, batch_size=12, instances=4, sampler="identity", captions_per_image=2)
    loader = make_loader(split, data)
    batches = list(loader.epoch(0))
    assert len(batches) == loader.steps_per_epoch == 3
    for batch in batches:
        assert len(batch.image_ids) == 6
        assert sorted(Counter(batch.pids.tolist()).values()) == [4, 4, 4]
        image_pids = [[5, 31, 70, 900].index(split.image_pids[image_id]) for image_id in batch.image_ids.tolist()]
        assert batch.pids.tolist() == [pid for pid in image_pids for _ in range(2)]


def test_units_of_one_caption_are_the_pairs_and_draw_nothing() -> None:
    random = np.random.default_rng(0)
    assert draw_units(np.array([0, 0, 1]), 1, random).tolist() == [[0], [1], [2]]
    assert random.random() == np.random.default_rng(0).random()


def test_the_last_unit_is_filled_with_the_others_alike() -> None:
    random, filled = np.random.default_rng(0), Counter[int]()
    for _ in range(3000):
        units = draw_units(np.zeros(5, dtype=np.int64), 2, random)
        assert units.shape == (3, 2)
        filled.update(pair for pair, count in Counter(units.flatten().tolist()).items() if count == 2)
    assert filled.total() == 3000, "one of five captions comes twice"
    assert all(filled[pair] == pytest.approx(600, abs=100) for pair in range(5))  # a standard deviation is 22


def test_identity_sampler_draws_identities_equally_often() -> None:
    pids = np.repeat(np.arange(10), [1, 2, 3, 4, 5, 6, 7, 8, 9, 40])
    batches = identity_batches(pids, 12, 4, num_batches=200, random=np.random.default_rng(0))
    assert len(batches) == 200
    drawn = Counter(pids[np.concatenate(batches)].tolist())
    assert max(drawn.values()) - min(drawn.values()) < 4 * 40, "240 each; a round leaves one identity of ten out"
    for batch in batches:
        groups = Counter(pids[batch].tolist())
        assert set(groups.values()) == {4} and len(groups) == 3
        for pid in groups:
            members = batch[pids[batch] == pid]
            assert len(set(members)) == 4 or pid < 3, "repeats only where there are fewer than four pairs"
    of_the_largest = [batch[pids[batch] == 9] for batch in batches if 9 in pids[batch]]
    assert len(set(np.concatenate(of_the_largest[:10]).tolist())) == 40, "a deck is dealt out before it is shuffled"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 24}, "data.batch_size 24 is more than the 23 training pairs; lower data.batch_size"),
        ({"sampler": "identity", "instances": 4}, "data.batch_size 5 is not divisible by data.instances 4"),
        (
            {"sampler": "identity", "instances": 1},
            "needs 5 identities, the training split has 4; lower data.batch_size",
        ),
        (
            {"sampler": "identity", "batch_size": 6, "instances": 3, "captions_per_image": 2},
            "data.instances 3 is not divisible by data.captions_per_image 2; the identity sampler counts pairs",
        ),
        (
            {"batch_size": 28, "captions_per_image": 2},
            "data.batch_size 28 is more than the 26 training pairs; lower data.batch_size",
        ),
    ],
)
def test_batches_that_cannot_be_drawn(split: Split, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loader(split, replace(RANDOM, **changes))


def test_batch_as_large_as_the_split(split: Split) -> None:
    (batch,) = make_loader(split, replace(RANDOM, batch_size=23)).epoch(0)
    assert sorted(batch.image_ids.tolist()) == split.caption_image_ids


@pytest.mark.parametrize("num_workers", [0, 2])
def test_iter_images_keeps_order(split: Split, num_workers: int) -> None:
    chunks = list(iter_images(split.image_paths, READER, 4, num_workers))
    assert [len(chunk) for chunk in chunks] == [4, 4, 1]
    expected = torch.stack([READER.read(path) for path in split.image_paths])
    assert torch.equal(torch.cat(chunks), expected)
    assert list(iter_images([], READER, 4, num_workers)) == []


def test_decoding_runs_ahead_but_not_far(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Path] = []

    def counting(reader: ImageReader, source: Path) -> torch.Tensor:
        decoded.append(source)
        return read(reader, source)

    read = ImageReader.read
    monkeypatch.setattr(ImageReader, "read", counting)
    images = iter_images(split.image_paths * 10, READER, 9, num_workers=1)
    next(images)
    images.close()
    assert len(decoded) <= 9 * (1 + loading.NUM_GROUPS_AHEAD)
