"""`cskt index`: a folder of crops into a gallery that can be searched, or a gallery brought up to date."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cskt.app.gallery_flags import add_source_flags, is_gallery, load_source, report_indexing, source_of
from cskt.app.metadata_table import KEY_NAMES, read_metadata, tell_unmatched
from cskt.app.next_steps import command_line
from cskt.app.parsing import Parser, existing_folder
from cskt.gallery.gallery import Gallery
from cskt.gallery.manifest import read_manifest
from cskt.progress import counting_bar

DESCRIPTION = """\
Make a gallery of the crops in a folder, or bring one up to date: new images are added, changed ones replaced, unchanged
ones passed over. An interrupted run loses nothing that it has stored; the same command goes on.
"""
EXAMPLES = """\
examples:
  cskt index my-gallery --images crops --run ViT-B/16
  cskt index my-gallery --images crops --run logs/cuhk-pedes/... --metadata cameras.csv
  cskt index my-gallery --prune          the same folder and model again; forget images that are gone
"""


def main(argv: Sequence[str]) -> int:
    """See `cskt index --help`."""
    flags = _flags(argv)
    known = read_manifest(flags.gallery) if is_gallery(flags.gallery) else None
    folder = flags.images or (flags.gallery / known.images if known and known.images else None)
    if folder is None:
        raise ValueError(f"{flags.gallery}: holds no folder of crops yet; say which it is to hold: --images FOLDER")
    images = existing_folder(folder)
    if known is not None and flags.store not in (None, known.store):
        raise ValueError(f"--store {flags.store}: the gallery keeps its vectors in {known.store}; leave --store out")
    metadata = read_metadata(flags.metadata, images, flags.key) if flags.metadata else None
    if metadata is not None:
        tell_unmatched(flags.metadata, metadata, images)
    source = source_of(flags, known.model if known else None)
    encoder = load_source(source, flags)
    if known is None:
        gallery = Gallery.create(flags.gallery, encoder, source, store=flags.store or "lance")
    else:
        gallery = Gallery.open(flags.gallery, encoder=encoder)
    with gallery:
        try:
            with counting_bar("images", unit="images") as on_progress:
                report = gallery.index(flags.images, metadata=metadata, prune=flags.prune, on_progress=on_progress)
        except KeyboardInterrupt:
            stored = f"{gallery.count():,} images are in the gallery"
            print(f"cskt index: interrupted; {stored}; run the same command to go on", file=sys.stderr)
            return 130
        report_indexing(report, flags.gallery, gallery.count(), as_json=flags.json)
    if known is None and not flags.json:
        print(f"Search it: {command_line('search', flags.gallery, 'a woman in a red coat')}")
    return 0


def _flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="cskt index", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("gallery", type=Path, metavar="GALLERY", help="folder of the gallery; made if there is none")
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="folder of the crops and its subfolders (default: as before)"
    )
    parser.add_argument(
        "--metadata", type=Path, metavar="TABLE",
        help="what is known of the images (camera, time, track, ...): CSV with comma, semicolon or tab, or JSON lines;"
        " what a column holds is seen from its values. Rows that name no image, and images without a row, are told",
    )  # fmt: skip
    parser.add_argument(
        "--key", metavar="COLUMN", help=f"column of the table with the images' paths (default: {', '.join(KEY_NAMES)})"
    )
    parser.add_argument("--prune", action="store_true", help="remove crops whose image is gone from the folder")
    parser.add_argument(
        "--store", metavar="STORE",
        help="where vectors are kept: lance, in the gallery's folder; milvus://HOST:PORT/COLLECTION; or milvus:FILE.db"
        " (default: lance)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="JSON on stdout, with every unreadable image")
    add_source_flags(parser, "the gallery's own; for a new one clip-tiny, which knows paper dolls and not people")
    flags = parser.parse(argv)
    if flags.key and not flags.metadata:
        raise ValueError("--key names a column of a table; give the table: --metadata table.csv")
    return flags
