"""Data sets: one file per data set, each with one `register` line.

    name         annotation (in the data set's folder)        images
    cuhk-pedes   CUHK-PEDES/reid_raw.json                     imgs/<file_path>
    icfg-pedes   ICFG-PEDES/ICFG-PEDES.json, ICFG_PEDES.json  imgs/<file_path>
    rstpreid     RSTPReid/data_captions.json                  imgs/<img_path>
    jsonl        train.jsonl, val.jsonl, test.jsonl           <image>, relative to the folder

Any record may have `attributes`, an object that a gallery can filter by; other unknown fields are ignored. Images are
not looked up (40,000 look-ups over a network take minutes): `cskt.data.check` and decoding do so.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from cskt.data.datasets.base import DATASETS, DatasetFormat, dataset_key, folders, present, register
from cskt.data.records import SPLIT_NAMES, Record, Split, number_pids
from cskt.errors import CsktError, MissingFileError
from cskt.utils.arguments import expect
from cskt.utils.paths import expanded

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):  # each registers its data set
    importlib.import_module(_module.name)


def read_dataset(name: str, root: Path | str) -> dict[str, Split]:
    """Read the annotation of a data set.

    Args:
        name: "cuhk-pedes", "icfg-pedes", "rstpreid" or "jsonl"; case and `_` for `-` do not matter.
        root: the folder that contains the data set's folder, or that folder itself.

    Returns:
        The splits by name, in the order train, val, test; those without records are left out.

    Raises:
        CsktError: the name is unknown, or the annotation is missing or malformed. The message names the file, the
            record and the remedy.

    Example:
        >>> import tempfile, cskt
        >>> from cskt.data.paperdoll import make_dataset
        >>> root = make_dataset(tempfile.mkdtemp(), layout="jsonl", ids={"train": 2, "test": 1}, images_per_id=1)
        >>> cskt.read_dataset("jsonl", root)["train"].counts
        SplitCounts(num_ids=2, num_images=2, num_captions=4)
    """
    expect(name, str, "name")
    expect(root, (str, Path), "root")
    key = dataset_key(name)
    dataset, folder = DATASETS[key], expanded(root)
    if dataset.folder and (folder / dataset.folder).is_dir():
        folder = folder / dataset.folder
    if not folder.is_dir():
        remedy = dataset.remedy if dataset.folder else "say where the data is: --root DIR (data.root)"
        raise MissingFileError(f"{folder}: no such folder; {remedy}")
    try:
        records = dataset.read(folder)
    except MissingFileError:
        if (found := present(expanded(root))) and key not in found:
            meant = f"did you mean --dataset {found[0]}?"
            raise MissingFileError(f"{folder}: does not hold {key}, but {', '.join(found)}; {meant}") from None
        raise
    try:
        numbers = number_pids(record.pid for record in records)
    except CsktError as error:
        raise CsktError(f"{folder}: {error}") from None
    splits = {
        name: Split(key, name, tuple(record for record in records if record.split == name), numbers)
        for name in SPLIT_NAMES
    }
    return {name: split for name, split in splits.items() if split.records}
