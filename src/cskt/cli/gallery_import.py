"""`cskt gallery import`: a gallery made of an archive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cskt.cli.parsing import Parser, command_line
from cskt.errors import CsktError
from cskt.gallery.archive import import_gallery
from cskt.gallery.manifest import read_manifest
from cskt.gallery.opening import check_place

DESCRIPTION = """\
Make a gallery of an archive that `cskt gallery export` wrote, whole or not at all. Every file is checked against its
SHA-256, and only files that a gallery consists of are unpacked. The model and the indexed folder are not in the
archive; if they are not where the gallery expects them, a message says how to state their new place.
"""
EXAMPLES = """\
examples:
  cskt gallery import backup.tar restored
"""


def main(argv: Sequence[str]) -> int:
    """See `cskt gallery import --help`."""
    parser = Parser(prog="cskt gallery import", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("archive", type=Path, metavar="ARCHIVE", help="file that `cskt gallery export` wrote")
    parser.add_argument("gallery", type=Path, metavar="GALLERY", help="new folder")
    flags = parser.parse(argv)
    num_crops = import_gallery(flags.archive, flags.gallery)
    print(f"{flags.gallery}: {num_crops:,} crops")
    manifest = read_manifest(flags.gallery)
    try:
        check_place(flags.gallery, manifest.model)
    except CsktError as error:
        print(f"before you search: {error}")
    if manifest.images is not None and not Path(manifest.images).is_dir():
        command = command_line("index", flags.gallery, "--images", "FOLDER")
        print(f"the indexed folder is not at {manifest.images}; searches do not need it, originals do: {command}")
    return 0
