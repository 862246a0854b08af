"""JSON lines: the format for a data set of the user's own.

A line of `train.jsonl`, `val.jsonl` or `test.jsonl` is `{"image": "a/b.jpg", "pid": 7, "captions": ["..."]}`.
"""

from __future__ import annotations

from pathlib import Path

from cskt.data.datasets.base import DatasetFormat, parse_json, read_annotation, register, to_record
from cskt.data.records import SPLIT_NAMES, Record
from cskt.errors import CsktError


class JsonLinesFormat(DatasetFormat):
    """One file per split with one record per line; files that do not exist are skipped."""

    def read(self, folder: Path) -> list[Record]:
        """Read all records below the data set's own folder; see `DatasetFormat.read`."""
        files = [folder / f"{split}.jsonl" for split in SPLIT_NAMES]
        present = [path for path in files if path.is_file()]
        if not present:
            raise CsktError(f"{folder}: none of {', '.join(path.name for path in files)} found; {self.remedy}")
        return [record for path in present for record in self._read_split(path)]

    def _read_split(self, path: Path) -> list[Record]:
        lines = [(n, line) for n, line in enumerate(read_annotation(path).split("\n"), start=1) if line.strip()]
        if not lines:
            raise CsktError(f"{path}: empty; delete the file or add a record per line")
        return [
            to_record(
                parse_json(line, f"{path}:{number}"), f"{path}:{number}", path.parent, path.stem,
                path_key="image", pid_key="pid",
            )
            for number, line in lines
        ]  # fmt: skip


JSONL = register(
    JsonLinesFormat("jsonl", remedy='write lines {"image": "relative/path.jpg", "pid": 7, "captions": ["..."]}')
)
