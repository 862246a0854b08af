"""Is this data set complete and sound? Everything that reading the annotation alone does not ask.

Errors are what makes training fail or its figures wrong; warnings are what a user should know and may intend, such
as a subset of a published data set.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from cskt.data.annotations import PUBLISHED_COUNTS, WITHDRAWN_RSTPREID_COUNTS, dataset_key, read_dataset
from cskt.data.images import REMEDY, decode_image, read_bytes
from cskt.data.overlaps import file_keys, names_of, overlaps, same_images, some
from cskt.data.records import Split, SplitCounts
from cskt.data.tokenizer import Tokenizer
from cskt.image_files.decode import stored_orientation
from cskt.image_files.orientation import UPRIGHT

CONTEXT_LENGTH = 77
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
    """What was found in one split."""

    name: str
    counts: SplitCounts
    published: SplitCounts | None
    """What the data set's paper reports; None for a split that it does not have."""
    missing_images: tuple[Path, ...]
    damaged_images: tuple[tuple[Path, str], ...]
    """Path and reason; empty where images were not decoded."""
    caption_lengths: CaptionLengths
    num_shared_captions: int
    """Distinct captions that describe more than one identity: their queries have right answers that count as wrong."""
    num_id_gaps: int
    """Numbers between the smallest and the largest identity that no record uses; harmless."""
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
        on_progress: called with the images looked at so far and their total.

    Raises:
        CsktError: the annotation cannot be read; see `read_dataset`.
    """
    key = dataset_key(name)
    dataset = read_dataset(key, root)
    total = sum(len(split.records) for split in dataset.values())
    done = 0

    def advance(num_images: int) -> None:
        nonlocal done
        done += num_images
        if on_progress is not None:
            on_progress(done, total)

    contents: dict[Path, Hashable] = {}
    reports = [_check_split(split, decode, advance, contents) for split in dataset.values()]
    keys = file_keys(dataset) | contents
    return CheckReport(
        dataset=key,
        root=Path(root),
        splits=tuple(reports),
        errors=[*_image_errors(reports), *overlaps(dataset, keys), *_withdrawn_split_errors(key, dataset)],
        warnings=[
            *_count_warnings(key, reports),
            *_caption_warnings(dataset, reports),
            *_repeat_warnings(dataset, keys),
            *_orientation_warnings(reports),
        ],
    )


def _check_split(
    split: Split, decode: bool, advance: Callable[[int], None], contents: dict[Path, Hashable]
) -> SplitReport:
    images = _examine_images(split.image_paths, decode, advance, contents)
    pids = set(split.image_pids)
    pids_by_caption = defaultdict(set)
    for caption, pid in zip(split.captions, split.caption_pids, strict=True):
        pids_by_caption[caption].add(pid)
    return SplitReport(
        name=split.name,
        counts=split.counts,
        published=PUBLISHED_COUNTS.get(split.dataset, {}).get(split.name),
        missing_images=tuple(images.missing),
        damaged_images=tuple(images.damaged),
        caption_lengths=_caption_lengths(split.captions),
        num_shared_captions=sum(len(described) > 1 for described in pids_by_caption.values()),
        num_id_gaps=max(pids) - min(pids) + 1 - len(pids),
        num_turned_images=images.num_turned,
    )


@dataclass
class _Images:
    """Findings on the images of a split: errors, and what is unusual."""

    missing: list[Path] = field(default_factory=list)
    damaged: list[tuple[Path, str]] = field(default_factory=list)
    """Path and reason."""
    num_turned: int = 0
    """Sound ones with an EXIF orientation that readers do not apply by themselves."""


def _examine_images(
    paths: Sequence[Path], decode: bool, advance: Callable[[int], None], contents: dict[Path, Hashable]
) -> _Images:
    """Examine images in threads; the digest of every sound one that is decoded goes into `contents`."""
    images = _Images()
    with ThreadPoolExecutor(NUM_DECODING_THREADS) as pool:
        for start in range(0, len(paths), IMAGES_PER_STEP):
            step = paths[start : start + IMAGES_PER_STEP]
            present = [path for path in step if path.is_file()]
            images.missing += sorted(set(step).difference(present))
            if decode:
                for path, (digest, fault, is_turned) in zip(present, pool.map(_examine, present), strict=True):
                    if fault:
                        images.damaged.append((path, fault))
                    else:
                        contents[path] = digest
                        images.num_turned += is_turned
            advance(len(step))
    return images


def _examine(path: Path) -> tuple[bytes, str, bool]:
    """SHA-256 of an image file, what is wrong with it, and whether it has an orientation; the file is read once."""
    try:
        content = read_bytes(path)
        decode_image(content, name=str(path))
    except ValueError as error:
        return b"", str(error).removeprefix(f"{path}: ").removesuffix(f"; {REMEDY}"), False
    return hashlib.sha256(content).digest(), "", stored_orientation(content) != UPRIGHT


def _caption_lengths(captions: Sequence[str]) -> CaptionLengths:
    tokenizer = Tokenizer(CONTEXT_LENGTH)
    lengths = [len(tokenizer.encode(caption)) + 2 for caption in captions]
    return CaptionLengths(
        shortest=min(lengths),
        median=statistics.median(lengths),
        mean=statistics.fmean(lengths),
        longest=max(lengths),
        num_over_context=sum(length > CONTEXT_LENGTH for length in lengths),
    )


def _image_errors(reports: Sequence[SplitReport]) -> list[str]:
    errors = []
    for report in reports:
        if report.missing_images:
            errors.append(
                f"{report.name}: missing images: {len(report.missing_images)} of {report.counts.num_images} "
                f"({some(report.missing_images)}); unpack them there"
            )
        if report.damaged_images:
            named = [f"{path}: {fault}" for path, fault in report.damaged_images]
            errors.append(
                f"{report.name}: damaged images: {len(named)} of {report.counts.num_images} ({some(named)}); "
                "copy them again or take their records out"
            )
    return errors


def _withdrawn_split_errors(key: str, dataset: Mapping[str, Split]) -> list[str]:
    counts = {name: split.counts for name, split in dataset.items()}
    if key != "rstpreid" or counts != WITHDRAWN_RSTPREID_COUNTS:
        return []
    return [
        "this is the withdrawn split of RSTPReid (3901 / 100 / 100 identities); published results use "
        "3701 / 200 / 200: ask for the current data_captions.json"
    ]


def _count_warnings(key: str, reports: Sequence[SplitReport]) -> list[str]:
    found = {report.name: report.counts for report in reports}
    warnings = []
    for name, published in PUBLISHED_COUNTS.get(key, {}).items():
        if name not in found:
            warnings.append(f"{name}: the published data set has this split, this copy does not")
        elif found[name] != published:
            warnings.append(
                f"{name}: {_counts_in_words(found[name])} where the paper has {_counts_in_words(published)}; "
                "a subset, or another version?"
            )
    return warnings


def _caption_warnings(dataset: Mapping[str, Split], reports: Sequence[SplitReport]) -> list[str]:
    warnings = []
    for split, report in zip(dataset.values(), reports, strict=True):
        num_blank = sum(not caption.strip() for caption in split.captions)
        if num_blank:
            warnings.append(f"{split.name}: blank captions: {num_blank}")
        if report.caption_lengths.num_over_context:
            warnings.append(
                f"{split.name}: captions of more than {CONTEXT_LENGTH} tokens, which lose their ends: "
                f"{report.caption_lengths.num_over_context}"
            )
        if report.num_shared_captions:
            warnings.append(f"{split.name}: captions of more than one identity: {report.num_shared_captions}")
    return warnings


def _repeat_warnings(dataset: Mapping[str, Split], keys: Mapping[Path, Hashable]) -> list[str]:
    """Repeated images that do no harm: of one person, in one split."""
    groups = [
        group
        for group in same_images(dataset, keys)
        if len({record.pid for record in group}) == len({record.split for record in group}) == 1
    ]
    named = [names_of(group) for group in groups]
    return [f"images with more than one record: {len(named)} ({some(named)})"] if named else []


def _orientation_warnings(reports: Sequence[SplitReport]) -> list[str]:
    return [
        f"{report.name}: images with an EXIF orientation: {report.num_turned_images} of {report.counts.num_images};"
        " training and evaluation read them as they are stored, lying or mirrored, like the released codes;"
        " --apply-orientation (data.apply_orientation) turns them upright"
        for report in reports
        if report.num_turned_images
    ]


def _counts_in_words(counts: SplitCounts) -> str:
    return f"{counts.num_ids} identities, {counts.num_images} images, {counts.num_captions} captions"
