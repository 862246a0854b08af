"""`cskt index`: a folder of crops into a gallery that can be searched, or a gallery brought up to date."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from cskt.cli.gallery_flags import add_source_flags, load_from_flags, report_indexing, source_from_flags
from cskt.cli.metadata_table import KEY_NAMES, log_unmatched, read_metadata
from cskt.cli.model_flags import encode_options
from cskt.cli.parsing import Parser, command_line
from cskt.cli.watched_folder import watch_folder
from cskt.embed import ModelSource
from cskt.embed.model_paths import absolute_source
from cskt.errors import SMALLER_BATCHES, CsktError, out_of_memory_errors
from cskt.gallery.engines.ray import RayEngine
from cskt.gallery.engines.ray_cluster import connected
from cskt.gallery.gallery import Gallery
from cskt.gallery.indexing.commits import IndexReport
from cskt.gallery.indexing.shards import SHARD_SUFFIXES, find_shards
from cskt.gallery.manifest import Manifest, absolute_store, check_store, is_gallery, read_manifest
from cskt.gallery.opening import source_to_index
from cskt.gallery.stores.registry import backend_of
from cskt.utils.console import counting_bar

DESCRIPTION = """\
Make a gallery of the crops in a folder, or update one: new images are added, changed ones replaced, unchanged ones
skipped. An interrupted run loses nothing that it has stored; the same command continues it. With --engine ray, images
are encoded on a Ray cluster.
"""
EXAMPLES = """\
examples:
  cskt index my-gallery --images crops --model ViT-B/16
  cskt index my-gallery --images crops --model logs/cuhk-pedes/... --metadata cameras.csv
  cskt index my-gallery --images names.txt                 the files that a list names
  cskt index my-gallery --images 'shards-*.tar' --engine ray   or .parquet; the gallery keeps the originals
  cskt index my-gallery --images crops --ignore '*.png' --ignore old/
  cskt index my-gallery --prune          the same source and model again; remove images that are gone
  cskt index my-gallery --watch --prune    follow the folder until Ctrl-C; may be killed and started again
  cskt index my-gallery --model moved/run  the same model, which was moved
exit code: 0 done, also where single images are unreadable; 1 done, but a folder could not be read; 2 refused
"""


@out_of_memory_errors(SMALLER_BATCHES)
def main(argv: Sequence[str]) -> int:
    """See `cskt index --help`."""
    flags = _flags(argv)
    known = read_manifest(flags.gallery) if is_gallery(flags.gallery) else None
    shards = _shards(flags.images, known)
    ignore = None if flags.ignore is None else [pattern for pattern in flags.ignore if pattern]
    # A gallery of uploads has nothing to index, but crops that an older version encoded without their EXIF orientation.
    only_reorient = known is not None and known.images is None and not known.upright and not shards and not flags.images
    crops = None if shards or only_reorient else source_to_index(flags.gallery, known, flags.images, ignore)
    if flags.store is not None:
        _check_store(flags.store, known)
    if flags.prune and shards:
        raise CsktError("--prune is for a folder or a list; crops of shards stay")
    if flags.watch and crops is None:
        raise CsktError("--watch is for a folder or a list; name it: --images PATH")
    metadata = None
    if flags.metadata:
        if crops is None:
            raise CsktError("--metadata is for a folder or a list; shards bring their own columns")
        metadata = read_metadata(flags.metadata, crops.folder, flags.key)
        log_unmatched(flags.metadata, metadata, crops.scan(flags.gallery).files, crops.folder)
    source = source_from_flags(flags, known.model if known else None, same_model=True)
    # Ray starts processes, which it must before the gallery's store is open; and after all argument checks.
    with nullcontext() if flags.engine == "local" else connected(flags.address):
        encoder = load_from_flags(source, flags, flags.gallery if known else None)
        if known is None:
            gallery = Gallery.create(flags.gallery, encoder, store=flags.store or "lance")
        else:
            gallery = Gallery.open(flags.gallery, encoder=encoder)
        with gallery:
            moved = known is not None and gallery.remember_model(source)
            if flags.watch and crops is not None:
                watch_folder(gallery, crops.folder, ignore, flags)
            folder = None if crops is None else crops.folder
            engine = None if flags.engine == "local" else _on_ray(flags, gallery, source, folder)
            add: Callable[..., IndexReport]
            if shards:
                add = partial(gallery.add_shards, shards, ignore=ignore, engine=engine)
            else:
                add = partial(
                    gallery.index, flags.images, metadata=metadata, ignore=ignore, prune=flags.prune, engine=engine
                )
            report = _run_index(gallery, add)
            report.model_moved = moved
            num_crops = gallery.count()
            report_indexing(report, flags.gallery, num_crops, as_json=flags.json)
    if known is None and not flags.json:
        search = f"Search it: {command_line('search', flags.gallery, 'a woman in a red coat')}"
        print(search if num_crops else "The gallery is empty: no image was found that can be read; check --images")
    return 1 if report.unreadable_folders else 0


def _run_index(gallery: Gallery, add: Callable[..., IndexReport]) -> IndexReport:
    """Call `Gallery.index` or `add_shards` with a progress bar; an interruption says what is stored."""
    try:
        with counting_bar("images", unit="images") as on_progress:
            return add(on_progress=on_progress)
    except KeyboardInterrupt:
        stored = f"{gallery.count():,} images are in the gallery"
        raise KeyboardInterrupt(f"{stored}; run the same command to continue") from None


def _check_store(store: str, known: Manifest | None) -> None:
    try:
        check_store(store)
        backend_of(store)
    except CsktError as error:
        raise CsktError(f"--store: {error}") from error
    if known is not None and absolute_store(store) != known.store:
        raise CsktError(f"--store {store}: the gallery's store is {known.store}; leave --store out")


def _shards(images: str | None, known: Manifest | None) -> tuple[str, ...]:
    """Return the shards that `--images`, or the last indexing of a gallery without a folder, names; none otherwise."""
    if images is None:
        patterns = known.shards if known is not None and known.images is None else ()
    else:
        patterns = (images,) if images.endswith(SHARD_SUFFIXES) and not Path(images).is_dir() else ()
    for pattern in patterns:
        find_shards(pattern)
    return patterns


def _on_ray(flags: argparse.Namespace, gallery: Gallery, source: ModelSource, folder: Path | None) -> RayEngine:
    """Return the workers of `--engine ray`, each with the model."""
    options = dataclasses.replace(encode_options(flags), precision=None)  # which the source states
    images = None if folder is None else folder.resolve()
    return RayEngine(absolute_source(source), gallery.encoder.fingerprint, images, flags.workers, options)


def _flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="cskt index", description=DESCRIPTION, epilog=EXAMPLES)
    add = parser.add_argument
    # fmt: off
    add("gallery", type=Path, metavar="GALLERY", help="folder of the gallery; made if there is none")
    add("--images", metavar="PATH",
        help="folder of the crops and its subfolders (default: what was indexed last); or a list of paths (.txt); or"
        " shards, several as a quoted pattern: Parquet with a column of image bytes, WebDataset archives (.tar)")
    add("--metadata", type=Path, metavar="TABLE",
        help="metadata of the images (camera, time, track, ...): CSV with comma, semicolon or tab, or JSON lines; the"
        " type of a column follows from its values. Rows without an image, and images without a row, are reported")
    add("--key", metavar="COLUMN", help=f"column of the table with the images' paths (default: {', '.join(KEY_NAMES)})")
    add("--ignore", action="append", metavar="PATTERN",
        help="files and folders to skip, as in .gitignore: '*.png', 'old/', 'cam3/*_thumb.jpg'; may be given several"
        " times, and is remembered until it is given again; '' for none (default: as before)")
    add("--prune", action="store_true",
        help="remove crops whose image is gone or ignored, and older versions of images that are unreadable now; what"
        " is in a folder that cannot be read stays")
    add("--watch", action="store_true",
        help="continue until Ctrl-C, and index again whenever the folder or the table changes; files that a program is"
        " still writing wait")
    add("--interval", type=float, metavar="SECONDS", help="--watch: time between two looks (default: 2)")
    add("--store", metavar="STORE",
        help="store of the vectors: lance, in the gallery's folder; milvus://HOST:PORT/COLLECTION; milvus:FILE.db;"
        " or one of a plug-in (default: lance)")
    add("--engine", choices=("local", "ray"), default="local",
        help="where images are encoded: in this process, or by the workers of a Ray cluster (%(default)s)")
    add("--workers", type=int, metavar="N", help="Ray: workers (default: one per GPU, or per two CPUs)")
    add("--address", metavar="HOST:PORT",
        help="Ray: a running cluster, or auto (default: one on this machine, for now)")
    add("--json", action="store_true", help="JSON on stdout, with every unreadable image and folder")
    # fmt: on
    add_source_flags(parser, "the gallery's own; for a new one clip-tiny, which knows paper dolls and not people")
    flags = parser.parse(argv)
    if flags.key and not flags.metadata:
        raise CsktError("--key names a column of a table; give the table: --metadata table.csv")
    if flags.interval is not None and not flags.watch:
        raise CsktError("--interval is the time between two looks at a watched folder; add --watch")
    flags.interval = 2.0 if flags.interval is None else flags.interval
    if not 0 < flags.interval < float("inf"):
        raise CsktError(f"--interval {flags.interval}: give a number of seconds above 0")
    if flags.watch and flags.engine == "ray":
        raise CsktError("--watch encodes in this process; leave out --engine ray")
    if flags.engine == "local" and (flags.workers is not None or flags.address is not None):
        raise CsktError("--workers and --address are of a Ray cluster; add --engine ray")
    if flags.workers is not None and flags.workers < 1:
        raise CsktError(f"--workers {flags.workers}: give at least 1")
    return flags
