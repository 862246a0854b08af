"""JSON lines: the format for a data set of the user's own.

A line of `train.jsonl`, `val.jsonl` or `test.jsonl` is `{"image": "a/b.jpg", "pid": 7, "captions": ["..."]}`. `pid` is
an integer or a string; without it, or where it is null, the image is a person of its own (for pre-training).
"""

from __future__ import annotations

import logging
from pathlib import Path

from cskt.data.datasets.base import JSON_REMEDY, DatasetFormat, read_annotation, register, to_record
from cskt.data.records import SPLIT_NAMES, Record
from cskt.errors import CsktError, MissingFileError
from cskt.utils.json_files import load_json

logger = logging.getLogger(__name__)


class JsonLinesFormat(DatasetFormat):
    """One file per split with one record per line; files that do not exist are skipped."""

    def read(self, folder: Path) -> list[Record]:
        """Read the annotations of all splits."""
        files = [folder / f"{split}.jsonl" for split in SPLIT_NAMES]
        if not any(path.is_file() for path in files):
            raise MissingFileError(f"{folder}: none of {', '.join(path.name for path in files)} found; {self.remedy}")
        records = []
        for path in filter(Path.is_file, files):
            lines = [(n, line) for n, line in enumerate(read_annotation(path).split("\n"), start=1) if line.strip()]
            if not lines:
                raise CsktError(f"{path}: empty; delete the file or add a record per line")
            num_unknown = 0
            for number, line in lines:
                where = f"{path}:{number}"
                entry = load_json(line, where=where, remedy=JSON_REMEDY)
                records.append(
                    to_record(entry, where, folder, path.stem, path_key="image", pid_key="pid", own_data=True)
                )
                num_unknown += entry.get("pid") is None
            if num_unknown:
                logger.info("%s: %d images without a pid count as a person each", path, num_unknown)
        return records


JSONL = register(
    JsonLinesFormat("jsonl", remedy='write lines {"image": "relative/path.jpg", "pid": 7, "captions": ["..."]}')
)
