"""A whole generated data set on disk: images, captions, part masks on request."""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from cskt.data.paperdoll.attributes import sample_attributes, stable_random
from cskt.data.paperdoll.captions import write_caption
from cskt.data.paperdoll.drawing import Domain, draw_person
from cskt.data.paperdoll.layouts import LAYOUTS, Entry, Layout, write_annotation
from cskt.errors import CsktError, file_system_errors
from cskt.utils.json_files import load_json, read_text
from cskt.utils.messages import nearest

logger = logging.getLogger(__name__)

GENERATOR_VERSION = 1
"""Raised with every change that alters a pixel or a word, so that older folders are not taken for current ones."""

SPLITS = ("train", "val", "test")
MOST_CAPTIONS = 10
MARKER = "paperdoll.json"
REMEDY = "restore it, or choose another root"
"""File that says what a generated folder was made with, and whether it was finished."""


@dataclass(frozen=True)
class _Job:
    """One identity to draw; small, since it travels to another process."""

    folder: Path
    domain: Domain
    seed: int
    split: str
    index_in_split: int
    pid: int
    images_per_id: int
    captions_per_image: int
    masks: bool


@file_system_errors()
def make_dataset(
    root: Path,
    *,
    layout: Layout = "cuhk-pedes",
    domain: Domain = "target",
    ids: Mapping[str, int],
    images_per_id: int = 4,
    captions_per_image: int = 2,
    seed: int = 1,
    masks: bool = False,
    num_processes: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw a data set of paper dolls and write it as a public data set would come.

    An identity depends on (seed, domain, split, its place in the split) alone, an image and each caption also on their
    numbers: larger data sets extend smaller ones, and the number of processes changes no byte. A folder that was made
    with the same arguments is left as it is.

    Args:
        root: folder that receives the data set's folder (CUHK-PEDES, ICFG-PEDES or RSTPReid), or, for jsonl, the
            files themselves.
        layout: format of the annotation: cuhk-pedes, icfg-pedes, rstpreid or jsonl. icfg-pedes has one caption per
            image and no val split, as the real data set: further captions are left out, val identities train.
        domain: source (studio, short captions) or target (street, captions of 20 to 40 words).
        ids: identities by split (train, val, test), such as {"train": 250, "val": 50, "test": 100}.
        images_per_id: images of each identity.
        captions_per_image: 1 to 10.
        seed: of everything that is drawn.
        masks: also write `masks/<name>.png` for `imgs/<name>.jpg`: palette images of `PART_LABELS`.
        num_processes: processes that draw; with more than one, call from under `if __name__ == "__main__":`.
        on_progress: called with the images done and the images in all, after each identity.

    Returns:
        The data set's folder.

    Raises:
        CsktError: an argument out of range, or a folder that already holds something else.
    """
    _check_names(layout, domain, ids)
    _check_numbers(ids, images_per_id, captions_per_image, num_processes)
    folder = Path(root) / LAYOUTS[layout].folder
    made_with = {
        "generator_version": GENERATOR_VERSION, "layout": layout, "domain": domain,
        "ids": {split: ids[split] for split in SPLITS if ids.get(split)}, "images_per_id": images_per_id,
        "captions_per_image": captions_per_image, "seed": seed, "masks": masks,
    }  # fmt: skip
    if _is_finished(folder, made_with):
        logger.info("%s: already made with these arguments", folder)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _write_marker(folder, made_with, finished=False)
    places = [(split, index) for split in SPLITS for index in range(ids.get(split, 0))]
    jobs = [
        _Job(folder, domain, seed, split, index, pid, images_per_id, captions_per_image, masks)
        for pid, (split, index) in enumerate(places)
    ]
    entries: list[Entry] = []
    with ExitStack() as stack:
        results: Iterable[list[Entry]] = map(_make_identity, jobs)
        if num_processes > 1:
            context = multiprocessing.get_context("spawn")  # forking a process that runs torch's threads can hang
            pool = stack.enter_context(ProcessPoolExecutor(num_processes, mp_context=context))
            results = pool.map(_make_identity, jobs, chunksize=8)
        for identity in results:
            entries.extend(identity)
            if on_progress is not None:
                on_progress(len(entries), len(jobs) * images_per_id)
    write_annotation(folder, layout, entries)
    _write_marker(folder, made_with, finished=True)
    return folder


def _make_identity(job: _Job) -> list[Entry]:
    """Draw, describe and save all images of one identity."""
    key = ("paperdoll", job.seed, job.domain, job.split, job.index_in_split)
    attributes = sample_attributes(stable_random(*key))
    name = f"{job.pid + 1:04d}"
    image_folder, mask_folder = (job.folder / kind / "paperdoll" / name for kind in ("imgs", "masks"))
    image_folder.mkdir(parents=True, exist_ok=True)
    if job.masks:
        mask_folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number in range(job.images_per_id):
        drawing = draw_person(attributes, stable_random(*key, "image", number), domain=job.domain)
        drawing.image.save(image_folder / f"{name}_{number}.jpg", quality=drawing.jpeg_quality)
        if job.masks:
            drawing.mask.save(mask_folder / f"{name}_{number}.png")
        captions = tuple(
            write_caption(attributes, drawing, stable_random(*key, "caption", number, turn), domain=job.domain)
            for turn in range(job.captions_per_image)
        )
        entries.append(Entry(job.split, job.pid, f"paperdoll/{name}/{name}_{number}.jpg", captions, attributes))
    return entries


def _check_names(layout: str, domain: str, ids: Mapping[str, int]) -> None:
    if layout not in LAYOUTS:
        raise CsktError(f"unknown layout '{layout}': {nearest(layout, list(LAYOUTS))}")
    if domain not in get_args(Domain):
        raise CsktError(f"unknown domain '{domain}': {nearest(domain, get_args(Domain))}")
    for split in ids:
        if split not in SPLITS:
            raise CsktError(f"unknown split '{split}' in ids: {nearest(split, SPLITS)}")


def _check_numbers(ids: Mapping[str, int], images_per_id: int, captions_per_image: int, num_processes: int) -> None:
    for split, number in ids.items():
        if number < 0:
            raise CsktError(f"ids has {number} identities for {split}; expected 0 or more")
    if not sum(ids.values()):
        raise CsktError('ids names no identity; expected for instance {"train": 250, "val": 50, "test": 100}')
    if images_per_id < 1:
        raise CsktError(f"images_per_id is {images_per_id}; expected 1 or more")
    if not 1 <= captions_per_image <= MOST_CAPTIONS:
        raise CsktError(f"captions_per_image is {captions_per_image}; expected 1 to {MOST_CAPTIONS}")
    if num_processes < 1:
        raise CsktError(f"num_processes is {num_processes}; expected 1 or more")


def _is_finished(folder: Path, made_with: Mapping[str, object]) -> bool:
    """Whether the folder already holds exactly this data set.

    Raises:
        CsktError: it holds another one.
    """
    marker = folder / MARKER
    if marker.is_file():
        found = load_json(read_text(marker, remedy=REMEDY), where=str(marker), remedy=REMEDY)
        if not isinstance(found, dict):
            raise CsktError(f"{marker}: not written by this program; {REMEDY}")
        finished = found.pop("finished", False) is True
        if found == made_with:
            return finished
        different = sorted(key for key in made_with if found.get(key) != made_with[key])
        raise CsktError(f"{folder}: holds paper dolls made with other {', '.join(different)}; choose another root")
    annotations = {shape.annotation for shape in LAYOUTS.values()} | {f"{split}.jsonl" for split in SPLITS}
    taken = [name for name in sorted(annotations | {"imgs", "masks"}) if name and (folder / name).exists()]
    if taken:
        raise CsktError(f"{folder}: already holds another data set ({taken[0]}); choose another root")
    return False


def _write_marker(folder: Path, made_with: Mapping[str, object], *, finished: bool) -> None:
    text = json.dumps({**made_with, "finished": finished}, indent=1)
    (folder / MARKER).write_text(text + "\n", encoding="utf-8")
