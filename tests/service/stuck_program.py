"""A service in which some calls never return: python stuck_program.py GALLERY STOP_SECONDS CALL...

A call is a method of the gallery. Each blocks in a thread pool of its own, as native code and nested pools would.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from cskt.gallery.gallery import Gallery
from cskt.service.app import create_app
from cskt.service.server import address_of, listen, serve
from cskt.service.settings import ServiceSettings

TOKEN = "correct-horse-battery-staple"


def stuck(*_: Any, **__: Any) -> NoReturn:
    """Print a line and wait for ever in a thread that the interpreter would wait for."""

    def block() -> NoReturn:
        print("stuck", flush=True)
        while True:
            threading.Event().wait()

    ThreadPoolExecutor(1).submit(block).result()
    raise AssertionError


def main(folder: str, stop_seconds: str, *calls: str) -> None:
    """Serve until a signal."""
    settings = ServiceSettings(port=0, token=TOKEN, stop_seconds=int(stop_seconds), rate=1e6)
    with Gallery.open(folder, device="cpu") as gallery, listen(settings.host, settings.port) as listener:
        app = create_app(gallery, settings)
        for call in calls:
            setattr(gallery, call, stuck)
        print(address_of(listener), flush=True)
        serve(app, listener, settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
