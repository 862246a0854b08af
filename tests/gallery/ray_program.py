"""Programs that use Ray, which needs a process of its own; started by `test_ray_engine`.

    python ray_program.py check BACKBONE CROPS MANY SCRATCH NUM_KILLS
    python ray_program.py index NUM_BATCHES MARKER WORDS...

`check` fills galleries in SCRATCH on one cluster, kills workers while it fills the last, and prints the result of each
as a line of JSON. `index` is `cskt index WORDS` with many small commits; after NUM_BATCHES it creates the file MARKER,
and waits to be killed or interrupted.
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
from cskt.errors import CsktError
from cskt.gallery.engines.ray import RayEngine
from cskt.gallery.engines.ray_cluster import connected
from cskt.gallery.indexing import commits
from cskt.gallery.indexing.commits import IndexReport
from cskt.gallery.indexing.encoding import Pending, Processed


def check(backbone: str, crops: str, many: str, scratch: str, num_kills: str) -> None:
    """Index every kind of source twice; provoke every refusal; kill workers."""
    with connected(None):
        from cskt.gallery.gallery import Gallery

        model, folder = ModelSource(backbone, precision="fp32"), Path(scratch)
        encoder = load_source(model, EncodeOptions("cpu"))
        options = EncodeOptions("cpu", batch_size=4, num_workers=1)

        def engine(fingerprint: str = encoder.fingerprint, images: str = crops, num_workers: int = 1) -> RayEngine:
            return RayEngine(model, fingerprint, Path(images), num_workers, options)

        def fill_twice(name: str, fill: Callable[[Gallery], IndexReport]) -> None:
            with Gallery.create(folder / name, encoder) as gallery:
                print_result(name, [counts(fill(gallery)) for _ in range(2)])

        pending = Pending("a.jpg", Path(crops, "a.jpg"), 0, False, {}, None)
        unmounted = folder / "unmounted"
        unmounted.mkdir()
        (unmounted / "a.jpg").touch()

        def work_without_folder() -> None:
            blind = engine(images=str(unmounted))
            (unmounted / "a.jpg").unlink()
            list(blind.work([pending]))

        print_result("no folder", refusal(work_without_folder))
        print_result("another model", refusal(lambda: list(engine("another").work([pending]))))
        print_result("too many workers", refusal(lambda: engine(num_workers=1000)))

        two = engine(num_workers=2)
        fill_twice("folder", lambda gallery: gallery.index(crops, engine=two))
        fill_twice("list", lambda gallery: gallery.index(Path(crops, "names.txt"), engine=two))
        for kind in ("parquet", "tar"):
            shards = sorted(folder.glob(f"*.{kind}"))
            fill_twice(kind, lambda gallery, shards=shards: gallery.add_shards(shards, engine=two))
        killing = KillingEngine(two, int(num_kills), every=len(list(Path(many).iterdir())) // (int(num_kills) + 1))
        fill_twice("killed", lambda gallery: gallery.index(many, engine=killing))
        print_result("kills", killing.num_killed)


def print_result(name: str, result: object) -> None:
    print(json.dumps([name, result]), flush=True)


def refusal(fill: Callable[[], object]) -> str:
    """Return the message of a CsktError."""
    try:
        return f"not refused: {fill()}"
    except CsktError as error:
        return str(error)


def counts(report: IndexReport) -> dict[str, object]:
    """Return a report without its time."""
    return {name: value for name, value in asdict(report).items() if name != "seconds"}


class KillingEngine:
    """Kills a worker of an engine each time that `every` further images have been taken."""

    def __init__(self, engine: RayEngine, num_kills: int, every: int) -> None:
        self._engine, self._num_kills, self._every = engine, num_kills, every
        self.num_killed = 0

    def work(self, pending: Iterable[Pending]) -> Iterator[list[Processed]]:
        return self._engine.work(self._killing(pending))

    def _killing(self, pending: Iterable[Pending]) -> Iterator[Pending]:
        for number, item in enumerate(pending, start=1):
            yield item
            if number % self._every == 0 and self.num_killed < self._num_kills:
                while not (workers := workers_of(psutil.Process())):
                    time.sleep(0.1)
                oldest = min(workers, key=psutil.Process.create_time)
                oldest.kill()
                oldest.wait(120)  # or the next kill would strike it again
                self.num_killed += 1


def workers_of(driver: psutil.Process) -> list[psutil.Process]:
    """Return the processes of the actors below a process."""
    found = []
    for child in driver.children(recursive=True):
        try:
            if "ray::_Worker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:  # it has ended
            continue
    return found


def index(num_batches: str, marker: str, *words: str) -> None:
    """Run the command with many commits; after `num_batches`, wait for a signal."""
    commits.COMMIT_SECONDS = 0.0
    work = RayEngine.work

    def limited(engine: RayEngine, pending: Iterable[Pending]) -> Iterator[list[Processed]]:
        with closing(work(engine, pending)) as batches:  # an interruption ends the engine's work at once
            for number, results in enumerate(batches, start=1):
                yield results
                if number == int(num_batches):
                    Path(marker).touch()
                    while True:
                        time.sleep(0.05)

    RayEngine.work = limited
    from cskt.cli.main import main

    sys.exit(main(["index", *words]))


if __name__ == "__main__":
    {"check": check, "index": index}[sys.argv[1]](*sys.argv[2:])
