"""A whole generated data set on disk: images, captions, part masks on request, in the format of a public data set."""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from cskt.data.datasets.base import DATASETS, DatasetFormat, JsonListFormat
from cskt.data.paperdoll.attributes import sample_attributes, stable_random
from cskt.data.paperdoll.captions import write_caption
from cskt.data.paperdoll.drawing import Domain, draw_person
from cskt.data.records import SPLIT_NAMES
from cskt.errors import CsktError, file_system_errors
from cskt.utils.json_files import read_json
from cskt.utils.messages import nearest

logger = logging.getLogger(__name__)

Layout: TypeAlias = Literal["cuhk-pedes", "icfg-pedes", "rstpreid", "jsonl"]
Record: TypeAlias = dict[str, Any]
"""One image with its captions, under neutral names; the path of the image is relative to `imgs`."""

GENERATOR_VERSION = 1
"""Raised with every change of a pixel or a word, so that older folders are not taken for current ones."""
MAX_CAPTIONS = 10
MARKER = "paperdoll.json"
"""File with the arguments that made a folder, and whether it was finished."""
REMEDY = "restore it, or choose another root"


@file_system_errors()
def make_dataset(
    root: Path | str,
    *,
    layout: Layout = "cuhk-pedes",
    domain: Domain = "target",
    captions: Domain | None = None,
    ids: Mapping[str, int],
    images_per_id: int = 4,
    captions_per_image: int = 2,
    seed: int = 1,
    masks: bool = False,
    num_processes: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw a data set of paper dolls and write it in the format of a public data set.

    An identity depends on (seed, domain, split, its index in the split) alone, an image and each caption also on their
    numbers: larger data sets extend smaller ones, and the number of processes changes no byte. A folder that was made
    with the same arguments is left as it is.

    Args:
        root: folder that receives the data set's folder (CUHK-PEDES, ICFG-PEDES or RSTPReid), or, for jsonl, the
            files themselves.
        layout: format of the annotation: cuhk-pedes, icfg-pedes, rstpreid or jsonl. icfg-pedes has one caption per
            image and no val split, as the real data set: further captions are left out, val identities train.
        domain: source (studio, short captions), target (street, captions of 20 to 40 words), or varied (any backdrop,
            rendering and camera, captions in many forms).
        captions: domain of the captions, to tell apart what pictures and what words do; default: that of the pictures.
        ids: identities by split (train, val, test), such as {"train": 250, "val": 50, "test": 100}.
        images_per_id: images of each identity.
        captions_per_image: 1 to 10.
        seed: of everything that is drawn.
        masks: also write `masks/<name>.png` for `imgs/<name>.jpg`: palette images of `PART_LABELS`.
        num_processes: processes that draw; with more than one, call from under `if __name__ == "__main__":`.
        on_progress: called with the number of images done and their total, after each identity.

    Returns:
        The data set's folder.

    Raises:
        CsktError: an argument is out of range, or the folder already contains something else.
        FileSystemError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> folder = make_dataset(tempfile.mkdtemp(), layout="jsonl", ids={"test": 1}, images_per_id=2)
        >>> sorted(path.name for path in folder.iterdir())
        ['imgs', 'paperdoll.json', 'test.jsonl']
    """
    captions = captions or domain
    _check_names(layout, (domain, captions), ids)
    _check_numbers(ids, captions_per_image, images_per_id=images_per_id, num_processes=num_processes)
    settings = {
        "generator_version": GENERATOR_VERSION,
        "layout": layout,
        "domain": domain,
        "ids": {split: ids[split] for split in SPLIT_NAMES if ids.get(split)},
        "images_per_id": images_per_id,
        "captions_per_image": captions_per_image,
        "seed": seed,
        "masks": masks,
    }
    if captions != domain:
        settings["captions"] = captions
    folder = Path(root) / DATASETS[layout].folder
    if _is_finished(folder, settings):
        logger.info("%s: already made with these arguments", folder)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _write_marker(folder, settings, finished=False)
    people = [(split, index) for split in SPLIT_NAMES for index in range(ids.get(split, 0))]
    make = partial(_make_identity, folder, settings)
    records: list[Record] = []
    with ExitStack() as stack:
        results: Iterable[list[Record]] = map(make, enumerate(people))
        if num_processes > 1:
            context = multiprocessing.get_context("spawn")  # forking a process that runs torch's threads can hang
            pool = stack.enter_context(ProcessPoolExecutor(num_processes, mp_context=context))
            results = pool.map(make, enumerate(people), chunksize=8)
        for identity in results:
            records.extend(identity)
            if on_progress is not None:
                on_progress(len(records), len(people) * images_per_id)
    _write_annotation(folder, DATASETS[layout], records)
    _write_marker(folder, settings, finished=True)
    return folder


def _make_identity(folder: Path, settings: Mapping[str, Any], person: tuple[int, tuple[str, int]]) -> list[Record]:
    """Draw, describe and save all images of one identity, given as its number, its split and its index in the split."""
    pid, (split, index) = person
    domain, masks = settings["domain"], settings["masks"]
    words = settings.get("captions", domain)
    key = ("paperdoll", settings["seed"], domain, split, index)
    attributes = sample_attributes(stable_random(*key))
    name = f"{pid + 1:04d}"
    image_folder, mask_folder = (folder / kind / "paperdoll" / name for kind in ("imgs", "masks"))
    for kind in (image_folder, mask_folder) if masks else (image_folder,):
        kind.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(settings["images_per_id"]):
        drawing = draw_person(attributes, stable_random(*key, "image", number), domain=domain)
        drawing.image.save(image_folder / f"{name}_{number}.jpg", quality=drawing.jpeg_quality)
        if masks:
            drawing.mask.save(mask_folder / f"{name}_{number}.png")
        captions = [
            write_caption(attributes, drawing, stable_random(*key, "caption", number, turn), domain=words)
            for turn in range(settings["captions_per_image"])
        ]
        path = f"paperdoll/{name}/{name}_{number}.jpg"
        worn = dataclasses.asdict(attributes)
        records.append({"split": split, "captions": captions, "path": path, "pid": pid, "attributes": worn})
    return records


def _write_annotation(folder: Path, dataset: DatasetFormat, records: Sequence[Record]) -> None:
    if isinstance(dataset, JsonListFormat):
        text = ",\n".join(json.dumps(_published_record(record, dataset, n)) for n, record in enumerate(records))
        (folder / dataset.files[0]).write_text(f"[{text}]\n", encoding="utf-8")
        return
    for split in dict.fromkeys(record["split"] for record in records):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for record in records:
                if record["split"] == split:
                    named = {key: record[key] for key in ("pid", "captions", "attributes")}
                    file.write(json.dumps({"image": f"imgs/{record['path']}", **named}) + "\n")


def _published_record(record: Record, dataset: JsonListFormat, index: int) -> Record:
    """Rename the fields of a record as the public data set has them, with its peculiarities."""
    captions = record["captions"]
    named = {
        "split": record["split"],
        "captions": captions,
        dataset.path_key: record["path"],
        "id": record["pid"] + (dataset.name == "cuhk-pedes"),  # its identities start at 1
        "attributes": record["attributes"],
    }
    if dataset.name == "icfg-pedes":  # one caption per image and no validation split
        named |= {"captions": captions[:1], "split": "train" if record["split"] == "val" else record["split"]}
    if dataset.name == "cuhk-pedes" and index % 3 == 0:  # some real records have their tokens, which no reader needs
        named["processed_tokens"] = [re.findall(r"[\w-]+", caption.lower()) for caption in captions]
    return named


def _check_names(layout: str, domains: Iterable[str], ids: Mapping[str, int]) -> None:
    names = [("layout", layout, get_args(Layout)), *(("domain", domain, get_args(Domain)) for domain in domains)]
    for kind, name, known in [*names, *(("split", split, SPLIT_NAMES) for split in ids)]:
        if name not in known:
            raise CsktError(f"unknown {kind} '{name}': {nearest(name, known)}")


def _check_numbers(ids: Mapping[str, int], captions_per_image: int, **at_least_one: int) -> None:
    for split, number in ids.items():
        if number < 0:
            raise CsktError(f"ids has {number} identities for {split}; expected 0 or more")
    if not sum(ids.values()):
        raise CsktError('ids names no identity; expected for instance {"train": 250, "val": 50, "test": 100}')
    if not 1 <= captions_per_image <= MAX_CAPTIONS:
        raise CsktError(f"captions_per_image is {captions_per_image}; expected 1 to {MAX_CAPTIONS}")
    for name, number in at_least_one.items():
        if number < 1:
            raise CsktError(f"{name} is {number}; expected 1 or more")


def _is_finished(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether the folder already contains exactly this data set; raise CsktError if it contains another one."""
    marker = folder / MARKER
    if marker.is_file():
        found = read_json(marker, dict[str, Any], remedy=REMEDY)
        finished = found.pop("finished", False) is True
        if found == settings:
            return finished
        different = sorted(key for key in {*settings, *found} if found.get(key) != settings.get(key))
        raise CsktError(f"{folder}: has paper dolls made with other {', '.join(different)}; choose another root")
    annotations = [name for dataset in DATASETS.values() for name in getattr(dataset, "files", ())]
    names = sorted({*annotations, *(f"{split}.jsonl" for split in SPLIT_NAMES), "imgs", "masks"})
    if taken := [name for name in names if (folder / name).exists()]:
        raise CsktError(f"{folder}: already has another data set ({taken[0]}); choose another root")
    return False


def _write_marker(folder: Path, settings: Mapping[str, Any], *, finished: bool) -> None:
    text = json.dumps({**settings, "finished": finished}, indent=1)
    (folder / MARKER).write_text(text + "\n", encoding="utf-8")
