"""Programs that fill a gallery; `test_faults` starts them in processes of their own.

    python filling_process.py index GALLERY BACKBONE LOG LIMIT
    python filling_process.py add GALLERY BACKBONE NAME IMAGES...

`index` writes a line into the log after each commit: the number of crops that it has added so far. From LIMIT on it
commits nothing more and waits to be killed.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

import cskt
from cskt.gallery.gallery import Gallery
from cskt.gallery.indexing import commits


def index(folder: str, backbone: str, log: str, limit: str) -> None:
    """Index the gallery's folder in many small commits."""
    commits.COMMIT_SECONDS = 0.02
    encoder = cskt.load(backbone, device="cpu", batch_size=2, num_workers=2)
    with Gallery.open(folder, encoder=encoder) as gallery, Path(log).open("a", encoding="ascii") as stream:

        def acknowledge(done: int, _: int) -> None:
            stream.write(f"{done}\n")
            stream.flush()
            os.fsync(stream.fileno())
            while done >= int(limit):
                time.sleep(0.01)

        gallery.index(on_progress=acknowledge)


def add(folder: str, backbone: str, name: str, *images: str) -> None:
    """Upload crops, one call each."""
    encoder = cskt.load(backbone, device="cpu", num_workers=1)
    with Gallery.open(folder, encoder=encoder) as gallery:
        for number, image in enumerate(images):
            gallery.add([Path(image)], [f"{name}/{number}"], [{"writer": name, "number": number}])


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"index": index, "add": add}[sys.argv[1]](*sys.argv[2:])
