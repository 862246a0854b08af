"""A service in a process of its own, over a small gallery of paper dolls, and what it takes of the machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import psutil

from cskt.embed import load
from cskt.gallery.gallery import Gallery

PROGRAM = Path(__file__).with_name("service_program.py")
TOKEN = "correct-horse-battery-staple"
WRITER = {"Authorization": f"Bearer {TOKEN}"}
CAMERAS = 3


def make_gallery(folder: Path, backbone: Path, dolls: Path, store: str = "lance") -> Path:
    """Crops of a data set with camera and track: every other one is indexed from `images`, the others are uploaded."""
    with Gallery.create(folder, load(backbone, device="cpu", num_workers=0), store=store) as gallery:
        for number, crop in enumerate(sorted(dolls.rglob("*.jpg"))):
            place = folder / ("handed", "images")[number % 2] / f"{number:02}.jpg"
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(crop, place)
        indexed = {path.name: metadata_of(path.name) for path in (folder / "images").iterdir()}
        gallery.index(folder / "images", metadata=indexed)
        handed = sorted((folder / "handed").iterdir())
        gallery.add(handed, [path.name for path in handed], [metadata_of(path.name) for path in handed])
    return folder


def crop_files(folder: Path, *places: str) -> dict[str, Path]:
    """The crops of such a gallery by name, those from `images` or `handed`, or both."""
    return {path.name: path for place in places for path in sorted((folder / place).iterdir())}


def metadata_of(name: str) -> dict[str, object]:
    """Return the metadata of a crop."""
    number = int(name.partition(".")[0])
    return {"camera": f"c{number % CAMERAS}", "track": number // 2}


class Usage(NamedTuple):
    """Resources of a process."""

    rss: int
    """Bytes of memory."""
    descriptors: int
    threads: int


class Served:
    """A running service; on leaving the block it is killed.

    Args:
        gallery: its folder.
        flags: of `cskt serve`.
        settings: for settings without a flag; then there are no flags.
        descriptors: that the system allows it; as many as this process if empty.
    """

    def __init__(
        self,
        gallery: Path,
        *flags: str | Path,
        settings: Mapping[str, Any] | None = None,
        descriptors: int | None = None,
    ) -> None:
        words = ["-m", "cskt", "serve", gallery, "--device", "cpu", *flags]
        if settings is not None:
            words = [PROGRAM, gallery, json.dumps({"port": 0, **settings})]
        limited = [] if descriptors is None else ["sh", "-c", 'ulimit -n "$0" && exec "$@"', str(descriptors)]
        self.errors = gallery.with_name(f"{gallery.name}-errors")
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [*limited, sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=errors, encoding="utf-8",
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def __enter__(self) -> Served:
        try:
            self._wait_until_ready()
        except BaseException:  # the test's time is up, for example: nobody else would end it
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.communicate()

    def _wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://([^ ]*):(\d+)/$", line.strip())
        assert found, (line, self.errors.read_text())
        self.host, self.port = found[1], int(found[2])
        while self.status("healthz") != 200:
            assert self.process.poll() is None, self.errors.read_text()
            time.sleep(0.02)

    @property
    def address(self) -> str:
        """As clients write it."""
        return f"http://{self.host}:{self.port}"

    def ask(self, path: str, body: Any = None, **headers: str) -> Any:
        """The JSON of an answer that must be a 200."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.address}/{path}", data, {"Content-Type": "application/json", **headers}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.loads(answer.read())

    def status(self, path: str) -> int:
        """Return the status of a request without a body."""
        try:
            with urllib.request.urlopen(f"{self.address}/{path}", timeout=300) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def metrics(self) -> str:
        """Figures for Prometheus."""
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=300) as answer:
            return answer.read().decode()

    def usage(self) -> Usage:
        """Return the resources in use now."""
        process = psutil.Process(self.process.pid)
        with process.oneshot():
            return Usage(process.memory_info().rss, process.num_fds(), process.num_threads())

    def wait_until_descriptors(self, most: int, seconds: float) -> float:
        """Seconds until it holds no more than so many; it must get there in time."""
        begun = time.monotonic()
        while (held := self.usage().descriptors) > most:
            assert time.monotonic() < begun + seconds, f"{held} descriptors are held, {most} are allowed"
            time.sleep(0.02)
        return time.monotonic() - begun

    def stop(self, number: int = signal.SIGTERM, seconds: float = 300) -> int:
        """Exit code after a signal."""
        self.process.send_signal(number)
        self.process.communicate(timeout=seconds)
        return self.process.returncode
