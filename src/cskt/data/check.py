"""Check of a data set beyond what reading its annotation finds: sizes, images, captions, overlaps.

Errors make training fail or its figures wrong. Warnings are what a user should know and may intend, such as a subset of
a published data set.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cskt.data.datasets import DATASETS, dataset_key, read_dataset
from cskt.data.loading import work_ahead
from cskt.data.overlaps import file_keys, names_of, overlaps, same_images, some
from cskt.data.records import Pid, Split, SplitCounts
from cskt.data.tokenizer import Tokenizer
from cskt.errors import CsktError
from cskt.image_files.decode import UPRIGHT, decode_image, read_bytes, stored_orientation
from cskt.image_files.limits import REMEDY

CONTEXT_LENGTH = 77
COUNTS = "{} identities, {} images, {} captions"
NUM_DECODING_THREADS = 4
IMAGES_PER_STEP = 256
"""Images between two reports of progress."""


@dataclass(frozen=True)
class CaptionLengths:
    """Tokens per caption, start and end included."""

    shortest: int
    median: float
    mean: float
    longest: int
    num_over_context: int
    """Captions that CLIP's 77 tokens cut."""


@dataclass(frozen=True)
class SplitReport:
    """Findings on one split."""

    name: str
    counts: SplitCounts
    published: SplitCounts | None
    """Size in the data set's paper; None for a split that it does not have."""
    missing_images: tuple[Path, ...]
    damaged_images: tuple[tuple[Path, str], ...]
    """Path and reason; empty where images were not decoded."""
    caption_lengths: CaptionLengths
    num_shared_captions: int
    """Distinct captions of more than one identity: their queries have right answers that count as wrong."""
    num_id_gaps: int
    """Numbers between the smallest and the largest identity that no record uses; harmless. 0 if people have names."""
    num_turned_images: int = 0
    """Images that `data.apply_orientation` would turn; 0 where images were not decoded."""


@dataclass(frozen=True)
class CheckReport:
    """Result of `check_dataset`."""

    dataset: str
    root: Path
    splits: tuple[SplitReport, ...]
    errors: list[str]
    warnings: list[str]


class _Image(NamedTuple):
    """Finding on one image file."""

    path: Path
    is_missing: bool = False
    fault: str = ""
    digest: bytes = b""
    """SHA-256 of the file; empty where it was not decoded."""
    is_turned: bool = False
    """True if it has an EXIF orientation that its decoder does not apply."""


def check_dataset(
    name: str,
    root: Path,
    *,
    decode: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Compare a data set with its paper, and check every image and caption.

    Images are compared by the SHA-256 of their files: the same content in two splits, or of two people, is an error.

    Args:
        name, root: as for `read_dataset`.
        decode: decode every image; otherwise only its existence is checked, and images are compared by path and link.
        on_progress: called with the number of images checked so far and their total.
    """
    key = dataset_key(name)
    dataset = read_dataset(key, root)
    total = sum(len(split.records) for split in dataset.values())
    reports = []
    digests: dict[Path, bytes] = {}
    num_done = 0
    for split in dataset.values():
        paths, images = split.image_paths, []
        steps = (paths[start : start + IMAGES_PER_STEP] for start in range(0, len(paths), IMAGES_PER_STEP))
        for step in work_ahead(partial(_examine, decode=decode), steps, NUM_DECODING_THREADS):
            images += step
            num_done += len(step)
            if on_progress is not None:
                on_progress(num_done, total)
        reports.append(_report(split, images))
        digests |= {image.path: image.digest for image in images if image.digest}
    keys = file_keys(dataset) | digests
    return CheckReport(
        dataset=key,
        root=Path(root),
        splits=tuple(reports),
        errors=[*_image_errors(reports), *overlaps(dataset, keys), *_withdrawn_split_errors(key, reports)],
        warnings=[
            *_count_warnings(key, reports),
            *_caption_warnings(dataset, reports),
            *_repeat_warnings(dataset, keys),
            *_orientation_warnings(reports),
        ],
    )


def _examine(path: Path, decode: bool) -> _Image:
    if not path.is_file():
        return _Image(path, is_missing=True)
    if not decode:
        return _Image(path)
    try:
        content = read_bytes(path)
        decode_image(content, name=str(path))
    except CsktError as error:
        return _Image(path, fault=str(error).removeprefix(f"{path}: ").removesuffix(f"; {REMEDY}"))
    is_turned = stored_orientation(content) != UPRIGHT
    return _Image(path, digest=hashlib.sha256(content).digest(), is_turned=is_turned)


def _report(split: Split, images: Sequence[_Image]) -> SplitReport:
    pids_by_caption = defaultdict(set)
    for caption, pid in zip(split.captions, split.caption_pids, strict=True):
        pids_by_caption[caption].add(pid)
    tokenizer = Tokenizer(CONTEXT_LENGTH)
    lengths = [len(tokenizer.encode(caption)) + 2 for caption in split.captions]
    return SplitReport(
        name=split.name,
        counts=split.counts,
        published=DATASETS[split.dataset].published_counts.get(split.name),
        missing_images=tuple(sorted({image.path for image in images if image.is_missing})),
        damaged_images=tuple((image.path, image.fault) for image in images if image.fault),
        caption_lengths=CaptionLengths(
            shortest=min(lengths),
            median=statistics.median(lengths),
            mean=statistics.fmean(lengths),
            longest=max(lengths),
            num_over_context=sum(length > CONTEXT_LENGTH for length in lengths),
        ),
        num_shared_captions=sum(len(described) > 1 for described in pids_by_caption.values()),
        num_id_gaps=_num_id_gaps(split.pids.values()),
        num_turned_images=sum(image.is_turned for image in images),
    )


def _num_id_gaps(pids: Collection[Pid]) -> int:
    numbers = [pid for pid in pids if isinstance(pid, int)]
    return max(numbers) - min(numbers) + 1 - len(numbers) if len(numbers) == len(pids) else 0


def _image_errors(reports: Sequence[SplitReport]) -> Iterator[str]:
    for report in reports:
        if report.missing_images:
            yield (
                f"{report.name}: missing images: {len(report.missing_images)} of {report.counts.num_images} "
                f"({some(report.missing_images)}); unpack them there"
            )
        if report.damaged_images:
            named = [f"{path}: {fault}" for path, fault in report.damaged_images]
            yield (
                f"{report.name}: corrupt images: {len(named)} of {report.counts.num_images} ({some(named)}); "
                "copy them again or take their records out"
            )


def _withdrawn_split_errors(key: str, reports: Sequence[SplitReport]) -> Iterator[str]:
    dataset = DATASETS[key]
    if {report.name: report.counts for report in reports} == dataset.withdrawn_counts:
        found, published = (
            " / ".join(str(counts.num_ids) for counts in splits.values())
            for splits in (dataset.withdrawn_counts, dataset.published_counts)
        )
        yield (
            f"this is the withdrawn split of {dataset.folder} ({found} identities); published results use {published}: "
            "ask for the current annotation"
        )


def _count_warnings(key: str, reports: Sequence[SplitReport]) -> Iterator[str]:
    found = {report.name: report.counts for report in reports}
    for name, published in DATASETS[key].published_counts.items():
        if name not in found:
            yield f"{name}: the published data set has this split, this copy does not"
        elif found[name] != published:
            yield (
                f"{name}: {COUNTS.format(*found[name])} where the paper has {COUNTS.format(*published)}; "
                "a subset, or another version?"
            )


def _caption_warnings(dataset: Mapping[str, Split], reports: Sequence[SplitReport]) -> Iterator[str]:
    too_long = f"captions of more than {CONTEXT_LENGTH} tokens, which lose their ends"
    for split, report in zip(dataset.values(), reports, strict=True):
        numbers = {
            "blank captions": sum(not caption.strip() for caption in split.captions),
            too_long: report.caption_lengths.num_over_context,
            "captions of more than one identity": report.num_shared_captions,
        }
        yield from (f"{split.name}: {kind}: {number}" for kind, number in numbers.items() if number)


def _repeat_warnings(dataset: Mapping[str, Split], keys: Mapping[Path, Hashable]) -> Iterator[str]:
    """Yield a warning of repeated images that do no harm: of one person, in one split."""
    groups = same_images(dataset, keys)
    named = [names_of(group) for group in groups if len({(record.pid, record.split) for record in group}) == 1]
    if named:
        yield f"images with more than one record: {len(named)} ({some(named)})"


def _orientation_warnings(reports: Sequence[SplitReport]) -> Iterator[str]:
    for report in reports:
        if report.num_turned_images:
            yield (
                f"{report.name}: images with an EXIF orientation: {report.num_turned_images} of"
                f" {report.counts.num_images}; training and evaluation read them as they are stored, lying or mirrored,"
                " like the released codes; --apply-orientation (data.apply_orientation) turns them upright"
            )
