"""Deletion of everything about crops, with a search for what is left; and the crops that are older than a time.

`Gallery.remove` deletes crops from all answers, but what they leave in older versions of the store is deleted only
later. `erase_crops` deletes that too, at the cost of writing the whole store again.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cskt.errors import CsktError, file_system_errors
from cskt.gallery.columns import convert, find_column
from cskt.gallery.conditions import Comparison, Condition
from cskt.gallery.indexing.encoding import batched
from cskt.gallery.manifest import AUDIT_FILE
from cskt.gallery.opening import other_vectors
from cskt.gallery.state import GalleryState
from cskt.gallery.stores.base import CropRecord, operator_errors
from cskt.utils.files import files_below
from cskt.utils.messages import command_text

MAX_SEARCHED = 100
"""Crops whose remains are searched for; each is looked for in every file."""
MIN_SEARCHED_CHARACTERS = 8
"""Shorter names occur by chance in files of millions of bytes."""
SAMPLE_BYTES = 64
"""Bytes from the middle of a picture that are searched for: its start is the same in many files."""


@dataclass
class EraseReport:
    """Result of `Gallery.erase`; after a dry run, what it would delete."""

    erased: list[str] = field(default_factory=list)
    """Names of the crops."""
    unknown: list[str] = field(default_factory=list)
    """Names that the gallery does not have; remains of deleted crops are deleted all the same. Only the names are
    searched for."""
    files: list[Path] = field(default_factory=list)
    """Files of these crops in the indexed folder, which are not touched; the next indexing would add them again."""
    purged: bool = False
    """False if the store cannot delete what crops leave in it, such as a Milvus server, and after a dry run."""
    num_files: int = 0
    """Files of the gallery folder in which remains were searched for."""
    num_bytes: int = 0
    found: list[tuple[str, str]] = field(default_factory=list)
    """(file within the gallery, what it contains), such as ("vectors/...", "the vector of live/1")."""
    not_searched: list[str] = field(default_factory=list)
    """Remains that were not searched for, each with the reason."""


def erase_crops(state: GalleryState, image_ids: Sequence[str], *, dry_run: bool) -> EraseReport:
    """Delete everything about crops from the gallery folder; see `Gallery.erase`."""
    report = EraseReport()
    with state.writing():
        _check_vectors(state)
        crops = state.store.get(image_ids)
        report.erased = [name for name in dict.fromkeys(image_ids) if name in crops]
        report.unknown = [name for name in dict.fromkeys(image_ids) if name not in crops]
        report.files = [path for path in _indexed_files(state, crops.values()) if path.is_file()]
        if dry_run:
            return report
        others = state.store.files().keys() - crops.keys()
        searched = [*report.erased[:MAX_SEARCHED], *report.unknown[:MAX_SEARCHED]]
        distinct = {name for name in searched if _is_distinct(name, others)}
        remains = _remains(state, crops, distinct, report)
        uploads = {facts.sha256 for facts in crops.values() if facts.kept}
        with state.originals.changing(uploads):
            state.store.delete(report.erased)
            state.originals.delete_unused(uploads)
        _hide_names(state.folder / AUDIT_FILE, image_ids, distinct)
        report.purged = state.store.purge()
        _search(state.folder, remains, report)
    return report


def expired_crops(
    state: GalleryState, older_than: timedelta, where: str | Condition | None, column: str | None
) -> tuple[list[str], int]:
    """Return the names of crops before a time, and the number of those without one; see `Gallery.expired`."""
    columns = state.refresh().manifest.columns
    times = [name for name, kind in columns.items() if kind == "time"]
    if column is None and len(times) != 1:
        which = f"several columns of times ({', '.join(times)})" if times else "no column of times"
        raise CsktError(f"{state.folder}: has {which}; name the one that says when a crop was taken: --column NAME")
    name = times[0] if column is None else find_column(column, columns)
    if columns[name] != "time":
        raise CsktError(f"{state.folder}: the column '{name}' holds a {columns[name]}, not times; name another")
    limit = convert((datetime.now(UTC) - older_than).isoformat(), "time", name)
    assert limit is not None
    is_old, condition = Comparison(name, "<", limit), state.condition(where)
    old: list[str] = []
    num_without = 0
    for names in batched(sorted(state.store.files())):
        for facts in state.store.get(names).values():
            if facts.fulfils(condition):
                num_without += name not in facts.metadata
                old += [facts.image_id] if facts.fulfils(is_old) else []
    return sorted(old), num_without


def _check_vectors(state: GalleryState) -> None:
    """Check that no vectors of another model are in the folder: they would keep crops that this one no longer has."""
    if others := other_vectors(state.folder, state.manifest):
        again = command_text("reindex", state.folder, "--model", "MODEL")
        raise CsktError(
            f"{others[0]}: vectors of another model, which an interrupted 'cskt reindex' has left; finish it ({again}),"
            " or delete that folder"
        )


def _indexed_files(state: GalleryState, crops: Iterable[CropRecord]) -> Iterator[Path]:
    for facts in crops:
        if not facts.kept:
            try:
                yield state.file_of(facts)
            except CsktError:  # a link that leads out of the folder
                continue


def _remains(
    state: GalleryState, crops: Mapping[str, CropRecord], distinct: Collection[str], report: EraseReport
) -> dict[bytes, str]:
    """Return bytes to search for once the crops are deleted, and what they are."""
    names = report.erased[:MAX_SEARCHED]
    if len(crops) > len(names):
        report.not_searched.append(f"{len(crops) - len(names):,} of {len(crops):,} crops: too many")
    vectors, thumbnails = state.store.vectors(names), state.store.thumbnails(names)
    remains: dict[bytes, str] = {}
    for name in names:
        remains[vectors[name].tobytes()] = f"the vector of {name}"
        remains[_middle(thumbnails[name])] = f"the thumbnail of {name}"
        try:
            remains[_middle(state.unchanged_file(crops[name]).read_bytes())] = f"the picture of {name}"
        except (CsktError, OSError):  # gone, or changed
            report.not_searched.append(f"the picture of {name}: its file is gone or has changed")
    unknown = report.unknown[:MAX_SEARCHED]
    if num_left := len(report.unknown) - len(unknown):
        report.not_searched.append(f"{num_left:,} of {len(report.unknown):,} names not in the gallery: too many")
    for name in unknown:
        report.not_searched.append(f"the vector and the pictures of {name}: it is not in the gallery")
    for name in [*names, *unknown]:
        if name in distinct:
            remains |= dict.fromkeys((name.encode(), _in_json(name), _in_filter(name)), f"the name {name}")
        else:
            report.not_searched.append(f"the name {name}: it is short, or a part of another crop's name")
    return remains


def _search(folder: Path, remains: Mapping[bytes, str], report: EraseReport) -> None:
    """Look for bytes in every file of a folder."""
    with operator_errors(), file_system_errors(folder):
        for path in files_below(folder):
            if path.is_symlink() or not path.is_file():
                continue
            report.num_files += 1
            if not (size := path.stat().st_size):
                continue
            report.num_bytes += size
            with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                found = dict.fromkeys(what for part, what in remains.items() if content.find(part) >= 0)
            report.found += [(path.relative_to(folder).as_posix(), what) for what in found]


def _hide_names(audit_log: Path, names: Sequence[str], distinct: Collection[str]) -> None:
    """Overwrite names in the audit log with asterisks, in place: a running service continues to append to the file.

    A name that is not `distinct` is overwritten only where it is in quotation marks.
    """
    with operator_errors(), file_system_errors(audit_log):
        if audit_log.is_symlink() or not audit_log.is_file() or not audit_log.stat().st_size:
            return
        with audit_log.open("rb+") as stream, mmap.mmap(stream.fileno(), 0) as content:
            for name in sorted(set(names), key=len, reverse=True):  # the longest first: one may be a part of another
                for text, mark in ((_in_json(name), b'"'), (_in_filter(name), b"'")):
                    _hide(content, text, b"" if name in distinct else mark)
            content.flush()


def _hide(content: mmap.mmap, text: bytes, mark: bytes) -> None:
    """Overwrite a text between two marks in what requests contained; times, clients and names of fields stay."""
    place = content.find(mark + text + mark)
    while place >= 0:
        start, end = place + len(mark), place + len(mark) + len(text)
        line_start, line_end = content.rfind(b"\n", 0, start) + 1, content.find(b"\n", end)
        action = content.find(b'"action": ', line_start, line_end if line_end >= 0 else len(content))
        is_field = content[start - 1 : start] == b'"' and content[end : end + 3] == b'": '
        if start > action and not is_field:
            content[start:end] = b"*" * len(text)
        place = content.find(mark + text + mark, end)


def _is_distinct(name: str, others: Collection[str]) -> bool:
    """Return whether a name occurs neither by chance nor in the names of other crops."""
    return len(name) >= MIN_SEARCHED_CHARACTERS and not any(name in other for other in others)


def _in_json(name: str) -> bytes:
    """Return a name as the audit log contains it, without quotation marks."""
    return json.dumps(name).encode("ascii")[1:-1]


def _in_filter(name: str) -> bytes:
    """Return a name as the audit log contains it in a filter, without quotation marks."""
    return _in_json(name.replace("'", "''"))


def _middle(data: bytes) -> bytes:
    start = max(0, (len(data) - SAMPLE_BYTES) // 2)
    return data[start : start + SAMPLE_BYTES]
