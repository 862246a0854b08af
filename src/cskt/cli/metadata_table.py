"""Tables of metadata for the images of a folder."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PureWindowsPath

from cskt.errors import CsktError
from cskt.gallery.columns import column_name, named
from cskt.utils.user_tables import column_of, read_table

logger = logging.getLogger(__name__)

KEY_NAMES = ("image", "path", "file", "image_id")


def read_metadata(path: Path, images: Path, key: str | None = None) -> dict[str, dict[str, object]]:
    """Read a CSV or JSON-lines table as path of an image within its folder -> column -> raw value.

    Args:
        path: the table; its key column holds paths of images, relative to `images` or absolute, with `/` or `\\`.
        images: the folder of the images.
        key: heading of the key column; `image`, `path`, `file` or `image_id` if empty. Case does not matter.
    """
    rows = read_table(path)
    heading = column_of(rows, KEY_NAMES if key is None else (key,), path)
    _check_names({column for row in rows for column in row.cells if column and column != heading}, path)
    metadata: dict[str, dict[str, object]] = {}
    for row in rows:
        name = row.cells.get(heading)
        if not isinstance(name, str) or not name.strip():
            raise CsktError(f"{row.where}: no path of an image under '{heading}'; name one, or delete the line")
        values = {column: value for column, value in row.cells.items() if column and column != heading}
        try:
            named(values)
        except CsktError as error:
            raise CsktError(f"{row.where}: {error}") from None
        metadata[image_name(name, images)] = values
    if len(metadata) < len(rows):
        logger.warning("%s: %d images have several rows; the last one counts", path, len(rows) - len(metadata))
    return metadata


def log_unmatched(path: Path, metadata: Mapping[str, object], present: Collection[str], images: Path) -> None:
    """Log how many rows name no image, and how many of the indexed images (`present`) have no row."""
    known = {unicodedata.normalize("NFC", name) for name in present}
    strange = [name for name in metadata if unicodedata.normalize("NFC", name) not in known]
    if strange:
        logger.warning(
            "%s: %d of %d rows name no image in %s (the first: '%s')",
            path, len(strange), len(metadata), images, strange[0],
        )  # fmt: skip
    if without := len(present) - (len(metadata) - len(strange)):
        logger.warning("%s: %d of %d images have no row", path, without, len(present))


def image_name(name: str, images: Path) -> str:
    """Return a path of a table as galleries write it, relative to the folder of the images.

    Args:
        name: relative to `images` or absolute, with `/` or `\\`; a path to elsewhere is left as it is.
        images: the folder.
    """
    plain = name.strip().replace("\\", "/")
    if plain.startswith("/") or PureWindowsPath(plain).drive:
        inside = next((folder for folder in (images, images.resolve()) if Path(plain).is_relative_to(folder)), None)
        return plain if inside is None else Path(plain).relative_to(inside).as_posix()
    return "/".join(part for part in plain.split("/") if part not in ("", "."))


def _check_names(headings: Iterable[str], path: Path) -> None:
    """Check that no two headings have one name in a gallery."""
    heading_of: dict[str, str] = {}
    for heading in sorted(headings):
        try:
            other = heading_of.setdefault(column_name(heading), heading)
        except CsktError as error:
            raise CsktError(f"{path}: {error}") from None
        if other != heading:
            raise CsktError(f"{path}: '{other}' and '{heading}' are one name to a gallery; rename one of the columns")
