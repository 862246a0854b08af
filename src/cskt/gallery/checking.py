"""Facts about a gallery, the check whether it is intact, and its repair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cskt.errors import CorruptRowError, CsktError, file_system_errors
from cskt.gallery.columns import Kind
from cskt.gallery.conditions import Comparison
from cskt.gallery.indexing.encoding import batched, digest
from cskt.gallery.manifest import AUDIT_FILE, MANIFEST
from cskt.gallery.opening import VECTORS, check_place, other_vectors
from cskt.gallery.originals import ORIGINALS, PENDING, original_path
from cskt.gallery.state import GalleryState
from cskt.gallery.stores.base import SHA256, FileState, operator_errors
from cskt.gallery.stores.row_checks import checked_thumbnail
from cskt.utils.files import bytes_below, files_below, is_temporary

REPAIR = "'cskt gallery repair GALLERY --yes' deletes it"
"""Remedy of the findings that `repair_gallery` corrects."""
ROWS = "'cskt gallery repair GALLERY --yes' deletes all rows that cannot be read"
RESTORE = "restore it from a backup"
INDEX = "cskt index GALLERY"


@dataclass(frozen=True)
class GalleryInfo:
    """Facts about a gallery."""

    crops: int
    uploads: int
    """Crops among them whose files the gallery stores itself."""
    columns: Mapping[str, Kind]
    model: str
    fingerprint: str
    store: str
    images: str | None
    """The indexed folder."""
    shards: tuple[str, ...]
    min_score: float | None
    """The calibrated threshold."""
    created: str
    num_bytes: Mapping[str, int]
    """Part of the folder (`vectors`, `originals`, `audit.jsonl`) -> bytes."""


@dataclass(frozen=True)
class Finding:
    """Something in a gallery that is not as it should be."""

    place: str
    """Name of a crop, path of a file within the gallery, or another path."""
    problem: str
    remedy: str

    @property
    def is_repairable(self) -> bool:
        """Return whether `Gallery.repair` corrects it."""
        return self.remedy in (REPAIR, ROWS)


@dataclass
class CheckReport:
    """Result of `Gallery.check`."""

    crops: int = 0
    """Crops whose row was checked; 0 if the rows cannot be read."""
    uploads: int = 0
    """Uploaded files whose SHA-256 was computed."""
    findings: list[Finding] = field(default_factory=list)

    def add(self, place: object, problem: str, remedy: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(str(place), problem, remedy))


@dataclass
class RepairReport:
    """Result of `Gallery.repair`."""

    rows: int = 0
    """Deleted rows of the store, which could not be read."""
    files: list[str] = field(default_factory=list)
    """Deleted files, as paths within the gallery."""
    remaining: list[Finding] = field(default_factory=list)
    """Findings of the check after it."""


def gallery_info(state: GalleryState) -> GalleryInfo:
    """Return facts about a gallery; see `Gallery.info`."""
    manifest = state.refresh().manifest
    parts = (VECTORS, ORIGINALS, AUDIT_FILE)
    return GalleryInfo(
        crops=state.store.count(),
        uploads=state.store.count(Comparison("kept", "=", True)),
        columns=manifest.columns,
        model=manifest.model.path,
        fingerprint=manifest.fingerprint,
        store=manifest.store,
        images=manifest.images,
        shards=manifest.shards,
        min_score=state.min_score(),
        created=manifest.created,
        num_bytes={part: bytes_below(state.folder / part) for part in parts},
    )


def check_gallery(state: GalleryState) -> CheckReport:
    """Read everything of a gallery, and report what is not as it should be; see `Gallery.check`."""
    report = CheckReport()
    with state.writing():
        _check_model(state, report)
        for folder in other_vectors(state.folder, state.manifest):
            remedy = "finish it (cskt reindex GALLERY --model MODEL), or delete the folder"
            report.add(folder.relative_to(state.folder), "vectors of another model, of an interrupted reindex", remedy)
        files = _check_rows(state, report)
        if files is not None:
            report.crops = len(files)
            _check_uploads(state, files, report)
            _check_indexed(state, files, report)
        _check_leftovers(state, files, report)
    return report


def repair_gallery(state: GalleryState) -> RepairReport:
    """Delete rows that cannot be read, files that nothing needs, and leftovers; see `Gallery.repair`."""
    report = RepairReport()
    with state.writing():
        report.rows = state.store.delete_corrupt()
        before = check_gallery(state)
        with operator_errors(), file_system_errors(state.folder):
            for finding in before.findings:
                if finding.remedy == REPAIR:
                    (state.folder / finding.place).unlink(missing_ok=True)
                    report.files.append(finding.place)
                else:
                    report.remaining.append(finding)
        state.store.compact()
    return report


def _check_model(state: GalleryState, report: CheckReport) -> None:
    try:
        check_place(state.folder, state.manifest.model)
    except CsktError as error:
        report.add(MANIFEST, str(error), "searches by sentence or picture need the model")
    try:
        state.min_score()
    except CsktError as error:
        report.add("calibration.json", str(error), "cskt calibrate GALLERY")


def _check_rows(state: GalleryState, report: CheckReport) -> dict[str, FileState] | None:
    """Read every row as a whole, and return the files of all crops; None if some cannot be read."""
    store = state.store
    try:
        files = store.files()
        for names in batched(sorted(files)):
            store.get(names)
            store.vectors(names)
            _check_thumbnails(store.thumbnails(names), report)
    except CorruptRowError as error:
        report.add(f"row {error.row}", f"{error.reason}; there may be more such rows", ROWS)
    except CsktError as error:
        report.add(VECTORS, str(error), RESTORE)
    else:
        return files
    return None


def _check_thumbnails(thumbnails: Mapping[str, bytes], report: CheckReport) -> None:
    for name, thumbnail in thumbnails.items():
        try:
            checked_thumbnail(name, thumbnail, name)
        except CorruptRowError as error:
            report.add(name, error.reason, "remove the crop (cskt gallery erase), and add it again")


def _check_uploads(state: GalleryState, files: Mapping[str, FileState], report: CheckReport) -> None:
    num_bytes = {file.sha256: file.num_bytes for file in files.values() if file.kept}
    problems: dict[str, str] = {}
    for sha256, size in num_bytes.items():
        path = original_path(state.folder, sha256)
        with file_system_errors(path):
            if not path.is_file():
                problems[sha256] = "its uploaded file is missing"
            elif path.stat().st_size != size or digest(path.read_bytes()) != sha256:
                problems[sha256] = "its uploaded file has changed"
    report.uploads = len(num_bytes)
    for name, file in files.items():
        if file.kept and file.sha256 in problems:
            place = f"{name}: {original_path(state.folder, file.sha256).relative_to(state.folder)}"
            report.add(place, problems[file.sha256], f"{RESTORE}, or upload the crop again; searches do not need it")


def _check_indexed(state: GalleryState, files: Mapping[str, FileState], report: CheckReport) -> None:
    root = state.images
    if root is None:
        return
    if not root.is_dir():
        report.add(root, "the indexed folder is missing", f"put it back, or say where it is now: {INDEX} --images PATH")
        return
    for name, file in files.items():
        if file.kept:
            continue
        try:
            facts = (root / name).lstat()
        except OSError:
            report.add(name, "its file in the indexed folder cannot be read, or is gone", f"{INDEX} --prune removes it")
            continue
        if (facts.st_size, facts.st_mtime_ns) != (file.num_bytes, file.modified_ns):
            report.add(name, "its file has changed since it was indexed", INDEX)


def _check_leftovers(state: GalleryState, files: Mapping[str, FileState] | None, report: CheckReport) -> None:
    """Report files that killed programs and removed crops have left; no change is under way."""
    needed = None if files is None else {file.sha256 for file in files.values() if file.kept}
    with operator_errors(), file_system_errors(state.folder):
        top = [path for path in state.folder.iterdir() if path.is_file()]
        for path in sorted([*top, *files_below(state.folder / ORIGINALS)]):
            place = path.relative_to(state.folder).as_posix()
            if is_temporary(path.name):
                report.add(place, "unfinished file of a program that was killed", REPAIR)
            elif place == PENDING:
                report.add(place, "mark of a change of uploads that was interrupted", REPAIR)
            elif path.parent == state.folder or needed is None:
                continue
            elif not SHA256.fullmatch(path.name) or path != original_path(state.folder, path.name):
                report.add(place, "no upload of this gallery", "look at it, and delete it")
            elif path.name not in needed:
                report.add(place, "uploaded file that no crop needs", REPAIR)
