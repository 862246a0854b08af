"""`cskt gallery export`: a gallery as one archive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cskt.cli.parsing import Parser, command_line
from cskt.gallery.gallery import Gallery

DESCRIPTION = """\
Write a gallery to one archive, a tar file with checksums: its manifest, vectors, thumbnails, metadata, threshold and
uploaded originals. Left out are the audit log, the files of the indexed folder and the model. Searches continue
meanwhile, and changes wait. Crops that were removed may still be in older versions of the store, and so in the archive;
to leave them out, call `cskt gallery erase` before.
"""
EXAMPLES = """\
examples:
  cskt gallery export my-gallery backup.tar
  tar xf backup.tar -C EMPTY_FOLDER && cd EMPTY_FOLDER && sha256sum -c SHA256SUMS      checks it without cskt
"""


def main(argv: Sequence[str]) -> int:
    """See `cskt gallery export --help`."""
    parser = Parser(prog="cskt gallery export", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("gallery", type=Path, metavar="GALLERY", help="folder of the gallery")
    parser.add_argument("archive", type=Path, metavar="ARCHIVE", help="file to write; must not exist")
    flags = parser.parse(argv)
    with Gallery.open(flags.gallery, device="cpu") as gallery:
        num_files = gallery.export(flags.archive)
        num_crops = gallery.count()
    size = flags.archive.stat().st_size
    print(f"{flags.archive}: {num_crops:,} crops, {num_files:,} files, {size:,} bytes")
    print(f"to restore: {command_line('gallery', 'import', flags.archive, 'NEW_FOLDER')}")
    return 0
