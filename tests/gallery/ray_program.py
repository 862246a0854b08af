"""Programs that use Ray, which needs a process of its own; started by `test_ray_engine`.

    python ray_program.py check BACKBONE CROPS MANY SCRATCH NUM_KILLS
    python ray_program.py index WORDS...

`check` fills galleries in SCRATCH on one cluster, kills workers while it fills the last, and prints what came of each
as a line of JSON. `index` is `cskt index WORDS` in many small commits, up to a batch at which it waits to be killed or
interrupted.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import psutil

from cskt.embed import EncodeOptions, ModelSource, load_source
from cskt.gallery.engines.ray import RayEngine
from cskt.gallery.engines.ray_cluster import connected
from cskt.gallery.indexing import commits
from cskt.gallery.indexing.commits import IndexReport
from cskt.gallery.indexing.encoding import Pending, Processed

NUM_BATCHES = 15
"""Batches that `index` takes before it waits to be killed or interrupted, so that it never ends by itself."""


def check(backbone: str, crops: str, many: str, scratch: str, num_kills: str) -> None:
    """Every kind of source, twice each; what is refused; and workers killed."""
    with connected(None):
        from cskt.gallery.gallery import Gallery

        model, folder = ModelSource(backbone, precision="fp32"), Path(scratch)
        encoder = load_source(model, EncodeOptions("cpu"))

        def engine(fingerprint: str = encoder.fingerprint, images: str = crops, num_workers: int = 1) -> RayEngine:
            return RayEngine(
                model, fingerprint, Path(images), num_workers, device="cpu", batch_size=4, num_threads=1
            )  # fmt: skip

        def try_twice(name: str, fill: Callable[[Gallery], IndexReport]) -> None:
            with Gallery.create(folder / name, encoder) as gallery:
                tell(name, [counts(fill(gallery)) for _ in range(2)])

        pending = Pending("a.jpg", Path(crops, "a.jpg"), 0, False, {}, None)
        unmounted = folder / "unmounted"
        unmounted.mkdir()
        (unmounted / "a.jpg").touch()

        def find_it_empty() -> None:
            blind = engine(images=str(unmounted))
            (unmounted / "a.jpg").unlink()
            list(blind.work([pending]))

        tell("no folder", refusal(find_it_empty))
        tell("another model", refusal(lambda: list(engine("another").work([pending]))))
        tell("too many workers", refusal(lambda: engine(num_workers=1000)))

        two = engine(num_workers=2)
        try_twice("folder", lambda gallery: gallery.index(crops, engine=two))
        try_twice("list", lambda gallery: gallery.index(Path(crops, "names.txt"), engine=two))
        for kind in ("parquet", "tar"):
            shards = sorted(folder.glob(f"*.{kind}"))
            try_twice(kind, lambda gallery, shards=shards: gallery.add_shards(shards, engine=two))
        killing = Killing(two, int(num_kills), every=len(list(Path(many).iterdir())) // (int(num_kills) + 1))
        try_twice("killed", lambda gallery: gallery.index(many, engine=killing))
        tell("kills", killing.num_killed)


def tell(name: str, finding: object) -> None:
    """A line of JSON."""
    print(json.dumps([name, finding]), flush=True)


def refusal(fill: Callable[[], object]) -> str:
    """How a ValueError words it."""
    try:
        return f"not refused: {fill()}"
    except ValueError as error:
        return str(error)


def counts(report: IndexReport) -> dict[str, object]:
    """What indexing did, without its time."""
    return {name: value for name, value in asdict(report).items() if name != "seconds"}


class Killing:
    """An engine whose workers are killed, one whenever so many more images have been taken."""

    def __init__(self, engine: RayEngine, num_kills: int, every: int) -> None:
        self._engine, self._num_kills, self._every = engine, num_kills, every
        self.num_killed = 0

    def work(self, pending: Iterable[Pending]) -> Iterator[list[Processed]]:
        """Batches as they are done."""
        return self._engine.work(self._killing(pending))

    def _killing(self, pending: Iterable[Pending]) -> Iterator[Pending]:
        for number, item in enumerate(pending, start=1):
            yield item
            if number % self._every == 0 and self.num_killed < self._num_kills:
                while not (workers := workers_of(psutil.Process())):
                    time.sleep(0.1)
                oldest = min(workers, key=psutil.Process.create_time)
                oldest.kill()
                oldest.wait(30)  # or the next kill would strike it again
                self.num_killed += 1


def workers_of(driver: psutil.Process) -> list[psutil.Process]:
    """The processes of the actors below a process."""
    found = []
    for child in driver.children(recursive=True):
        try:
            if "ray::_Worker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:  # it has ended
            continue
    return found


def index(*words: str) -> None:
    """The command; it commits often, and waits for a signal after `NUM_BATCHES`."""
    commits.COMMIT_SECONDS = 0.05
    work = RayEngine.work

    def up_to_there(engine: RayEngine, pending: Iterable[Pending]) -> Iterator[list[Processed]]:
        with closing(work(engine, pending)) as batches:  # an interruption ends the engine's work at once
            for number, worked in enumerate(batches):
                while number >= NUM_BATCHES:
                    time.sleep(0.05)
                time.sleep(0.1)
                yield worked

    RayEngine.work = up_to_there
    from cskt.cli.main import main

    sys.exit(main(["index", *words]))


if __name__ == "__main__":
    {"check": check, "index": index}[sys.argv[1]](*sys.argv[2:])
