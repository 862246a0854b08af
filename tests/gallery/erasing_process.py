"""A program that erases crops and is killed (kill -9) at a stated call; `test_erasing` starts it.

python erasing_process.py GALLERY CALL NAME...
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

import torch

from cskt.gallery.gallery import Gallery
from cskt.gallery.stores.lance import purging

CALLS = {
    "the deletion of uploads": ("cskt.gallery.originals:Originals.delete_unused", 1),
    "the audit log": ("cskt.gallery.erasing:_hide_names", 1),
    "the purge": ("cskt.gallery.stores.lance.lance_store:purge_table", 1),
    "the second part of the rows": ("cskt.gallery.stores.lance.versions:Version.take", 2),
    "the deletion of older versions": ("lancedb.table:LanceTable.optimize", 1),
    "the search for what is left": ("cskt.gallery.erasing:_search", 1),
}
"""Call -> (function, which call of it): the kill strikes in its place."""


def main(folder: str, call: str, *names: str) -> None:
    """Erase crops until the kill."""
    purging.ROWS_AT_ONCE = 4
    path, number = CALLS[call]
    module, _, place = path.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, last = place.split(".")
    for name in outer:
        owner = getattr(owner, name)
    function, calls = getattr(owner, last), 0

    def killed(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, last, killed)
    with Gallery.open(folder, device="cpu") as gallery:
        gallery.erase(names)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
