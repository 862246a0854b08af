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
END_OF_ARCHIVE, NUM_END_BYTES = b"PK\x05\x06", 22
"""How the last record of a zip archive begins, and how long it is; its last two bytes tell how long the comment is."""
MOST_COMMENT_BYTES = 65_535
READ_AT_ONCE_BYTES = 1 << 20


def seal(path: Path) -> None:
    """Add the digest to a file that `torch.save` has just written.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("rb+") as stream:
        stream.seek(-2, 2)  # as yet without a comment, the file ends with the comment's length
        stream.write(struct.pack("<H", NUM_SEAL_BYTES))
        digest = _digest(stream, stream.tell())
        stream.write(MARK + digest)


def is_broken(path: Path) -> bool:
    """Whether any byte is not what it was when the file was sealed, or is gone; false of a file that never was.

    Raises:
        OSError: it cannot be read.
    """
    num_bytes = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(0, num_bytes - MOST_COMMENT_BYTES - NUM_END_BYTES))
        _, found, end = stream.read().rpartition(END_OF_ARCHIVE)
        end = found + end
        if not found or (len(end) == NUM_END_BYTES and end.endswith(b"\0\0")):
            return False  # no archive, which whoever reads it will notice; or one without a comment
        return end[NUM_END_BYTES:] != MARK + _digest(stream, num_bytes - NUM_SEAL_BYTES)


def _digest(stream: BinaryIO, num_bytes: int) -> bytes:
    """Of the first bytes; the stream stands behind them afterwards."""
    digest = hashlib.sha256()
    stream.seek(0)
    while chunk := stream.read(min(READ_AT_ONCE_BYTES, num_bytes - stream.tell())):
        digest.update(chunk)
    return digest.hexdigest().encode()
