"""`Gallery`: crops indexed once, searched by sentence, picture or both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias, TypeVar

from cskt.embed import EncodeOptions, Encoder, ModelSource, load_source
from cskt.gallery.archive import export_gallery
from cskt.gallery.checking import CheckReport, GalleryInfo, RepairReport, check_gallery, gallery_info, repair_gallery
from cskt.gallery.conditions import Condition
from cskt.gallery.erasing import EraseReport, erase_crops, expired_crops
from cskt.gallery.indexing.commits import IndexReport, Progress
from cskt.gallery.indexing.encoding import Engine, LocalEngine
from cskt.gallery.indexing.reencoding import reindex
from cskt.gallery.indexing.updating import add_crops, add_shards, index, remove_crops
from cskt.gallery.indexing.watching import watch
from cskt.gallery.manifest import Manifest, as_source, read_manifest, source_of
from cskt.gallery.opening import check_model, create_gallery
from cskt.gallery.reading import GalleryReader
from cskt.gallery.state import Row
from cskt.image_files.decode import Source
from cskt.plugins import load_plugins
from cskt.utils.arguments import listed
from cskt.utils.messages import renamed
from cskt.utils.paths import expanded

Model: TypeAlias = str | Path | ModelSource
"""Source of a model, as `cskt.load` takes it."""
Plugins: TypeAlias = str | Path | Iterable[str | Path]
"""Python files and names of modules."""
T = TypeVar("T")


class Gallery(GalleryReader):
    """A folder with vectors, thumbnails and metadata of crops. Make one with `create` or `open`.

    Searching is safe from several threads, beside writers in this and in other processes; only `reindex` must not run
    beside searches of the same object.

    Example:
        >>> with cskt.Gallery.open("my-gallery") as gallery:
        ...     hits = gallery.search("a woman in a red coat", k=2, where="camera = 'c1'")
        >>> [hit.rank for hit in hits]
        [1, 2]
    """

    cut_off = renamed("Gallery.cut_off", "min_score")
    kept = renamed("Gallery.kept", "uploaded")

    @classmethod
    def create(
        cls,
        folder: str | Path,
        encoder: Encoder,
        model: Model | None = None,
        *,
        store: str = "lance",
        plugins: Plugins = (),
    ) -> Gallery:
        """Create an empty gallery.

        Args:
            folder: created if it is missing.
            encoder: the model that will fill it; `open` loads it again from `Encoder.source`.
            model: source of an encoder that was not made by `cskt.load`; deprecated for others, which know theirs.
            store: `lance`, files in the folder; `milvus://HOST:PORT/COLLECTION`, `milvus:FILE.db`; or the name of one
                that a plug-in adds.
            plugins: Python files or modules with that store; their code is run.

        Raises:
            CsktError: a gallery or other files are in the folder, the store contains crops, or it cannot be reached.

        Example:
            >>> gallery = cskt.Gallery.create("new-gallery", cskt.load("clip-tiny", device="cpu"))
            >>> len(gallery)
            0
        """
        load_plugins(plugins)
        manifest = Manifest.of(encoder, source_of(encoder, model), store)
        place = expanded(folder)
        create_gallery(place, manifest)
        return cls(place, manifest, encoder, None)

    @classmethod
    def open(
        cls, folder: str | Path, *, encoder: Encoder | None = None, device: str | None = None, plugins: Plugins = ()
    ) -> Gallery:
        """Open a gallery; its model is loaded when first needed.

        Args:
            folder: of the gallery.
            encoder: the gallery's model, if it is loaded already.
            device: cpu, cuda or mps; None: the best one of this machine.
            plugins: Python files or modules that its store or its model comes from; their code is run.

        Raises:
            CsktError: no gallery in the folder, one of a newer version, one that another model filled, or one whose
                plug-in is not loaded.

        Example:
            >>> cskt.Gallery.open("my-gallery", device="cpu").manifest.model.path
            'clip-tiny'
        """
        load_plugins(plugins)
        place = expanded(folder)
        manifest = read_manifest(place)
        if encoder is not None:
            check_model(place, manifest, encoder)
        return cls(place, manifest, encoder, device)

    def index(
        self,
        images: str | Path | None = None,
        *,
        metadata: Mapping[str, Row] | None = None,
        ignore: str | Sequence[str] | None = None,
        prune: bool = False,
        on_progress: Progress | None = None,
        engine: Engine | None = None,
    ) -> IndexReport:
        """Bring the gallery up to date with a folder of crops: new files are added, changed ones replaced.

        Crops that an older version encoded without their EXIF orientation are encoded again, uploads included.

        Args:
            images: a folder, which may have moved since the last call; or a list (.txt, .lst) of paths below its own
                folder. None: the source of the last call.
            metadata: path within the folder -> column -> value; other columns stay, an empty value deletes one.
            ignore: a pattern of files and folders or several, see
                `cskt.gallery.indexing.ignoring`. None: those of the last call.
            prune: remove crops whose file is missing or ignored, and older versions of unreadable files; they are only
                counted otherwise. Crops below a folder that cannot be read stay.
            on_progress: called with (finished images, images to encode) after each commit.
            engine: reads and encodes; None: this process.

        Raises:
            CsktError: no such folder or list, another folder than before, or a value that does not fit its column.

        Example:
            >>> gallery = cskt.Gallery.open("my-gallery")
            >>> gallery.index("crops", metadata={"1.jpg": {"camera": "c7"}}).updated
            1
        """
        engine = engine or LocalEngine(self.encoder)
        return index(self._state, engine, images, metadata or {}, ignore, prune=prune, on_progress=on_progress)

    def watch(
        self,
        images: str | Path | None = None,
        *,
        metadata: Callable[[], Mapping[str, Row]] = dict,
        ignore: str | Sequence[str] | None = None,
        prune: bool = False,
        seconds: float = 2.0,
        wait: Callable[[float], object] = time.sleep,
        on_progress: Progress | None = None,
    ) -> Iterator[IndexReport]:
        """Index a folder now and whenever it changes, as `index` does, and yield the report of each indexing.

        The folder is listed every `seconds`. A file is indexed once it is the same in two lists, so that half-written
        ones are left out. After the first indexing, errors (a drive that is not mounted, a full disk) are logged, and
        the next look tries again.

        Args:
            images, ignore, prune, on_progress: see `index`.
            metadata: returns the rows of `index` as they are now.
            seconds: time between two looks.
            wait: called with `seconds` after each look; an exception of it ends the iteration.

        Raises:
            CsktError: as `index`, before the first report.
            GalleryChangedError: another process has filled the gallery with another model, or deleted it.

        Example:
            >>> gallery = cskt.Gallery.open("my-gallery")
            >>> next(gallery.watch("crops", seconds=0.01)).added
            0
        """
        return watch(
            self._state, LocalEngine(self.encoder), images, metadata, ignore,
            prune=prune, seconds=seconds, wait=wait, on_progress=on_progress,
        )  # fmt: skip

    def remember_model(self, model: Model) -> bool:
        """Store another place of the gallery's model, and return whether the manifest named another before.

        Raises:
            CsktError: it is another model.

        Example:
            >>> cskt.Gallery.open("my-gallery", device="cpu").remember_model("clip-tiny")
            False
        """
        source = as_source(model)
        with self._loading:
            encoder = self._encoder
            if encoder is None or encoder.source != source:
                encoder = load_source(source, EncodeOptions(self._device))
            check_model(self.folder, self.manifest, encoder)
            self._encoder = self._encoder or encoder
        return self._state.remember_model(source)

    def add(
        self,
        images: Source | str | Sequence[Source | str],
        image_ids: str | Sequence[str],
        metadata: Row | Sequence[Row] | None = None,
    ) -> IndexReport:
        """Upload crops, for example of a detector; the gallery stores the originals, named by their content.

        Args:
            images: a path, an opened image, or the bytes of an image file; or several of these.
            image_ids: the name, or a name for each; a crop of that name is replaced.
            metadata: column -> value, likewise.

        Raises:
            CsktError: an invalid name, one of an indexed file, or a value that does not fit its column.

        Example:
            >>> gallery = cskt.Gallery.open("my-gallery")
            >>> gallery.add(["new.jpg"], ["live/1"], [{"camera": "c7"}]).added
            1
            >>> "live/1" in gallery
            True
        """
        return add_crops(self._state, LocalEngine(self.encoder), images, image_ids, metadata)

    def add_shards(
        self,
        shards: str | Path | Sequence[str | Path] | None = None,
        *,
        ignore: str | Sequence[str] | None = None,
        on_progress: Progress | None = None,
        engine: Engine | None = None,
    ) -> IndexReport:
        """Upload the crops of Parquet files and WebDataset archives; the gallery stores the originals.

        Crops with the same name and content are skipped, so an interrupted call can be repeated.

        Args:
            shards: paths or patterns (`shards-*.tar`); None: those of the last call. `.parquet` files with a column of
                image bytes, one of names, and metadata in the others; `.tar` files whose images, and JSON or text
                beside them, share a name up to its first dot.
            ignore, engine: see `index`.
            on_progress: called with (finished images, images read so far).

        Raises:
            CsktError: a file that cannot be read, or a value that does not fit its column.

        Example:
            >>> import tarfile
            >>> with tarfile.open("more.tar", "w") as archive:
            ...     archive.add("new.jpg")
            >>> gallery = cskt.Gallery.open("my-gallery")
            >>> gallery.add_shards("more.tar").added
            1
        """
        return add_shards(self._state, engine or LocalEngine(self.encoder), shards, ignore, on_progress=on_progress)

    def remove(self, image_ids: str | Sequence[str]) -> int:
        """Remove crops, with the stored originals of uploads, and return their number; unknown names are ignored.

        Files of the indexed folder are not touched.

        Example:
            >>> gallery = cskt.Gallery.open("my-gallery")
            >>> gallery.remove("nobody.jpg")
            0
        """
        return remove_crops(self._state, listed(image_ids, str, "image_ids"))

    def info(self) -> GalleryInfo:
        """Return numbers of crops, columns, model, store and sizes on the disk.

        Example:
            >>> cskt.Gallery.open("my-gallery").info().store
            'lance'
        """
        return gallery_info(self._state)

    def check(self) -> CheckReport:
        """Read all rows, uploads and file names of the gallery, and report what is not as it should be.

        Every upload is compared with its SHA-256. Changes wait meanwhile; nothing is corrected.

        Example:
            >>> cskt.Gallery.open("my-gallery").check().findings
            []
        """
        return check_gallery(self._state)

    def repair(self) -> RepairReport:
        """Delete rows that cannot be read, uploads that no crop needs and leftovers of killed programs, and compact.

        The indexed folder is not touched.

        Example:
            >>> cskt.Gallery.open("my-gallery").repair().rows
            0
        """
        return repair_gallery(self._state)

    def export(self, archive: str | Path) -> int:
        """Write the gallery to one archive, and return the number of its files; see `cskt gallery export --help`.

        Raises:
            CsktError: the file exists or cannot be written, or the store is not in the gallery's folder.

        Example:
            >>> gallery = cskt.Gallery.open("my-gallery")
            >>> gallery.export("backup.tar") > 3
            True
        """
        return export_gallery(self._state, Path(archive))

    def erase(self, image_ids: str | Sequence[str] = (), *, dry_run: bool = False) -> EraseReport:
        """Remove crops, delete everything that they have left in the gallery folder, and search all of its files.

        The whole store is written again, so it takes as long as copying the gallery. What crops that were removed
        earlier have left is deleted too. In the audit log in the folder their names become asterisks. Files of the
        indexed folder, backups, and audit logs elsewhere are not touched.

        Args:
            image_ids: names; none, to delete what is left of removed crops.
            dry_run: change nothing.

        Raises:
            CsktError: vectors of another model are in the folder; a file of the store could not be deleted.

        Example:
            >>> gallery = cskt.Gallery.open("my-gallery")
            >>> gallery.erase("nobody.jpg", dry_run=True).unknown
            ['nobody.jpg']
        """
        return erase_crops(self._state, listed(image_ids, str, "image_ids"), dry_run=dry_run)

    def expired(
        self, older_than: timedelta, where: str | Condition | None = None, *, column: str | None = None
    ) -> tuple[list[str], int]:
        """Return the names of crops that are older than this, and the number of crops without a time.

        Args:
            older_than: age of the time in `column`.
            where: only crops that match this filter, such as those of one camera; see `SearchOptions.where`.
            column: metadata column with the time of a crop; None: the only one that holds times.

        Raises:
            CsktError: there is no such column, or `where` is no filter on this gallery.

        Example:
            >>> import datetime
            >>> gallery = cskt.Gallery.create("live-gallery", cskt.load("clip-tiny", device="cpu"))
            >>> gallery.add(["new.jpg"], ["live/1"], [{"taken": "2020-01-31"}]).added
            1
            >>> gallery.expired(datetime.timedelta(days=30))
            (['live/1'], 0)
        """
        return expired_crops(self._state, older_than, where, column)

    def reindex(
        self,
        encoder: Encoder,
        model: Model | None = None,
        *,
        prune: bool = False,
        on_progress: Progress | None = None,
    ) -> IndexReport:
        """Encode every crop again with another model; metadata stays.

        Searches use the old vectors until all new ones are stored; after an interruption, the next call continues. The
        same model at another place changes only the manifest.

        Args:
            encoder: the new model.
            model: see `create`.
            prune: drop crops whose file cannot be read any more.
            on_progress: see `index`.

        Raises:
            CsktError: the gallery names this model already, or crops cannot be read and `prune` is not set.

        Example:
            >>> gallery = cskt.Gallery.create("old-gallery", cskt.load("clip-tiny", device="cpu"))
            >>> gallery.reindex(cskt.load("clip-tiny", device="cpu", templates=["a photo of {}"])).added
            0
        """
        report = reindex(self._state, encoder, source_of(encoder, model), prune=prune, on_progress=on_progress)
        self._encoder = encoder
        return report
