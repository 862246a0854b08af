"""A digest over every byte of a `torch.save` file, kept inside it as the comment of the zip archive that it is.

`torch.load` checks no sums, and those of the archive cover its parts but not its directory, where one flipped bit makes
a tensor of whatever lay in memory.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import BinaryIO

MARK = b"cskt sha256 "
NUM_SEAL_BYTES = len(MARK) + 2 * hashlib.sha256().digest_size
READ_AT_ONCE_BYTES = 1 << 20


def seal(path: Path) -> None:
    """Add the digest to a file that `torch.save` has just written.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("rb+") as stream:
        stream.seek(-2, 2)  # where a zip archive without a comment says how long its comment is
        stream.write(struct.pack("<H", NUM_SEAL_BYTES))
        digest = _digest(stream, stream.tell())
        stream.write(MARK + digest)


def is_broken(path: Path) -> bool:
    """Whether any byte is not what it was when the file was sealed; false of a file that never was.

    Raises:
        OSError: it cannot be read.
    """
    num_bytes = path.stat().st_size - NUM_SEAL_BYTES
    if num_bytes < 0:
        return False
    with path.open("rb") as stream:
        stream.seek(num_bytes)
        comment = stream.read()
        return comment.startswith(MARK) and comment != MARK + _digest(stream, num_bytes)


def _digest(stream: BinaryIO, num_bytes: int) -> bytes:
    """Of the first bytes; the stream stands behind them afterwards."""
    digest = hashlib.sha256()
    stream.seek(0)
    while chunk := stream.read(min(READ_AT_ONCE_BYTES, num_bytes - stream.tell())):
        digest.update(chunk)
    return digest.hexdigest().encode()
