"""File descriptors: every connection takes one, and so does every file of the gallery, which must not go without.

asyncio accepts a crowd of connections before it tells of the first: four times `at_once` may be open beyond those that
are held when the first of them is sent away.
"""

from __future__ import annotations

import logging
import os
from typing import NamedTuple

MOST_AT_ONCE = 128

log = logging.getLogger(__name__)


class Room(NamedTuple):
    """What connections may take of the descriptors."""

    connections: int
    """Held."""
    at_once: int
    """Accepted in one turn of the loop."""


def room_for(connections: int) -> Room:
    """So many connections, or as many as leave half of the descriptors; the system is asked for more of these first.

    Args:
        connections: that are wanted.
    """
    if os.name == "nt":  # there sockets are not counted with files
        return Room(connections, MOST_AT_ONCE)
    import resource  # noqa: PLC0415  (not on Windows)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return Room(connections, MOST_AT_ONCE)
    wanted = 4 * connections
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if (most := max(1, soft // 2)) < connections:
        log.warning("%d connections are held instead of %d; the system allows %d files", most, connections, soft)
    return Room(min(most, connections), max(1, min(MOST_AT_ONCE, soft // 16)))
