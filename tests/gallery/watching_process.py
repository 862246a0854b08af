"""A program that watches a folder; `test_watching` starts it in a process of its own, and kills it.

    python watching_process.py GALLERY BACKBONE IMAGES LIMIT

It commits one image after the other, says so when it has committed LIMIT of them, and commits nothing more.
"""

from __future__ import annotations

import sys

import torch

import cskt
from cskt.gallery.gallery import Gallery
from cskt.gallery.indexing import commits


def main(folder: str, backbone: str, images: str, limit: str) -> None:
    """Watch, one commit per image."""
    commits.MAX_UNCOMMITTED = 0
    encoder = cskt.load(backbone, device="cpu", batch_size=1, num_workers=1)

    def acknowledge(done: int, _: int) -> None:
        if done >= int(limit):
            print("reached", flush=True)
            sys.stdin.read()  # until the kill

    with Gallery.open(folder, encoder=encoder) as gallery:
        for _ in gallery.watch(images, seconds=0.01, on_progress=acknowledge):
            pass


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
