"""A service with any settings, those without a flag included: python service_program.py GALLERY SETTINGS_AS_JSON"""

from __future__ import annotations

import json
import sys

from cskt.gallery.gallery import Gallery
from cskt.service.app import create_app
from cskt.service.server import address_of, listen, serve
from cskt.service.settings import ServiceSettings


def main(folder: str, text: str) -> None:
    """Serve until a signal; the first line printed ends with the address, as that of `cskt serve` does."""
    settings = ServiceSettings(**json.loads(text))
    with Gallery.open(folder, device="cpu") as gallery, listen(settings.host, settings.port) as listener:
        app = create_app(gallery, settings)
        print(f"Serving at {address_of(listener)}", flush=True)
        serve(app, listener, settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
