"""Weight files that lie about what they hold, and pickles that would run something."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METADATA = "__metadata__"


class Call:
    """Unpickles to a call of any function."""

    def __init__(self, function: Any, arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and numbers of a safetensors file."""
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def safetensors(header: Mapping[str, Any] | bytes, numbers: bytes, *, claimed: int | None = None) -> bytes:
    """A safetensors file of any header, and any claim of its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + numbers


def lying(good: bytes) -> dict[str, bytes]:
    """Forgeries of a backbone of our own."""
    header, numbers = header_of(good)
    first, second = (name for name in list(header)[:3] if name != METADATA)
    noted = json.loads(header[METADATA]["cskt"])
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != METADATA)

    def with_first(**changes: Any) -> bytes:
        return safetensors({**header, first: {**header[first], **changes}}, numbers)

    def with_notes(**changes: Any) -> bytes:
        return safetensors({**header, METADATA: {"cskt": json.dumps({**noted, **changes})}}, numbers)

    def with_sizes(**changes: Any) -> bytes:
        return with_notes(architecture={**noted["architecture"], **changes})

    extra = {"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}
    return {
        "nothing": b"",
        "seven bytes": good[:7],
        "the length alone": good[:8],
        "half": good[: len(good) // 2],
        "all but a byte": good[:-1],
        "a byte too many": good + b"\0",
        "a header beyond the file": safetensors(header, numbers, claimed=2 * len(good)),
        "a header of 2^63 bytes": safetensors(header, numbers, claimed=2**63),
        "a header of 2^64 - 1 bytes": safetensors(header, numbers, claimed=2**64 - 1),
        "a header of no bytes": safetensors(header, numbers, claimed=0),
        "a header cut short": safetensors(header, numbers, claimed=100),
        "100 MB of spaces": safetensors(b"{" + b" " * 10**8 + b"}", b""),
        "a header of spaces": safetensors(b"{" + b" " * 10**6 + b"}", b""),
        "a deep header": safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, numbers),
        "a deep list": safetensors(b'{"a":' + b"[" * 100_000, numbers),
        "a header that is a list": safetensors(b"[]", numbers),
        "a header that is no UTF-8": safetensors(b'{"\xff\xfe": 1}', numbers),
        "a header of NaN": safetensors(b'{"a": NaN}', numbers),
        "offsets beyond the file": with_first(data_offsets=[0, 10**15], shape=[10**15 // 4]),
        "negative offsets": with_first(data_offsets=[-4, 0]),
        "offsets the wrong way round": with_first(data_offsets=header[first]["data_offsets"][::-1]),
        "overlapping tensors": safetensors(
            {**header, second: {**header[second], **{key: header[first][key] for key in ("shape", "data_offsets")}}},
            numbers,
        ),
        "a shape that overflows": with_first(shape=[2**62, 2**62]),
        "a shape of 10^5 dimensions": with_first(shape=[1] * 100_000),
        "a shape that does not fit": with_first(shape=[1]),
        "a negative shape": with_first(shape=[-1]),
        "an unknown type": with_first(dtype="F7"),
        "whole numbers for real ones": with_first(dtype="I32"),
        "a tensor twice": safetensors(
            json.dumps(header).encode()[:-1] + f', "{first}": {json.dumps(header[second])}}}'.encode(), numbers
        ),
        "a tensor too many": safetensors({**header, "vision.more": extra}, numbers + bytes(4)),
        "a path for a name": safetensors({**header, "../../etc/passwd": extra}, numbers + bytes(4)),
        "a name of a megabyte": safetensors({**header, "x" * 10**6: extra}, numbers + bytes(4)),
        "no notes": safetensors({name: value for name, value in header.items() if name != METADATA}, numbers),
        "notes that are no text": safetensors({**header, METADATA: {"cskt": 1}}, numbers),
        "notes that are no JSON": safetensors({**header, METADATA: {"cskt": "{"}}, numbers),
        "notes that are deep": safetensors({**header, METADATA: {"cskt": "[" * 100_000}}, numbers),
        "notes that are a list": safetensors({**header, METADATA: {"cskt": "[1]"}}, numbers),
        "a newer version": with_notes(version=99),
        "a version beyond all": with_notes(version=float("inf")),
        "another kind": with_notes(kind="x"),
        "a kind of a megabyte": with_notes(kind="x" * 10**6),
        "a list for a kind": with_notes(kind=[1]),
        "no architecture": with_notes(architecture=None),
        "a list for an architecture": with_notes(architecture=[]),
        "facts that are none": with_notes(facts=[1]),
        "a size that is text": with_sizes(vision_width="x"),
        "a size of nothing": with_sizes(vision_heads=0),
        "a size that is NaN": with_sizes(vision_width=float("nan")),
        "a size nobody knows": with_sizes(depth_of_hell=1),
        "a billion blocks": with_sizes(vision_layers=10**9),
        "200 blocks": with_sizes(text_layers=200),
        "a width of a billion": with_sizes(vision_width=10**9),
        "a width of 99,999": with_sizes(vision_width=99_999, vision_heads=1),
        "a vocabulary of 10^12": with_sizes(vocab_size=10**12),
        "an image of 10^10 pixels a side": with_sizes(image_height=8 * 10**9),
        "an image of 99,999 pixels a side": with_sizes(image_height=99_999, image_width=99_999, stride=1),
    }


def rewritten(
    archive: Path, path: Path, pickled: bytes | None, *, compress: bool = False, prefix: str | None = None
) -> Path:
    """A zip archive of torch's with another data.pkl, compressed, or with its folder under another name."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            content = pickled if pickled is not None and entry.filename.endswith("/data.pkl") else old.read(entry)
            root, _, rest = entry.filename.partition("/")
            own = zipfile.ZIP_DEFLATED if compress else entry.compress_type
            new.writestr(f"{root if prefix is None else prefix}/{rest}", content, compress_type=own)
    return path


def overlapping(path: Path, num_entries: int) -> Path:
    """Entries that share one megabyte of content: a small file that claims to hold a thousand times as much."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", bytes(10**6))
        entry = archive.getinfo("archive/data/0")
        for number in range(1, num_entries):
            twin = zipfile.ZipInfo(f"archive/data/{number}")
            twin.header_offset, twin.file_size, twin.compress_size = 0, entry.file_size, entry.compress_size
            twin.CRC = entry.CRC
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("archive/version", b"3\n")
    return path


MODULE = b"c__torch__\nM\n)\x81"
"""A pickled module without its state."""


def unfolding_modules(levels: int) -> bytes:
    """A module with two names for a module with two names for ...: 2^levels of them, if all names were followed."""
    pickled = b"\x80\x02" + MODULE + b"}bq\x00"
    for level in range(1, levels):
        parts = b"".join(b"X\1\0\0\0" + name + b"h" + bytes([level - 1]) for name in (b"a", b"b"))
        pickled += b"0" + MODULE + b"}(" + parts + b"ubq" + bytes([level])
    return pickled + b"."


PICKLES = {
    "empty": b"",
    "a stop": b"\x80\x02.",
    "noise": bytes(range(256)),
    "protocol 200": b"\x80\xc8N.",
    "a module in itself": b"\x80\x02" + MODULE + b"q\0}X\1\0\0\0ah\0sb.",
    "modules that unfold": unfolding_modules(60),
    "a table of 2^32 places": b"\x80\x02" + MODULE + b"}br\xff\xff\xff\xff.",
    "a text of 2^60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x.",
    "a number of 2^31 bytes": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "an unknown opcode": b"\x80\x02\xff.",
    "a global of two lines": b"cos\nsystem\n(S'touch canary'\ntR.",
    "a global by stack": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
    "an inner name": b"\x80\x04\x8c\x05torch\x8c\x0bhub.os.system\x93.",
    "a dotted module": b"cos.path\nos.system\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "an old instance": b"(S'touch canary'\nios\nsystem\n.",
    "an object": b"(cos\nsystem\nS'touch canary'\no.",
    "a state for a class": b"\x80\x02c__torch__\nM\n}X\1\0\0\0aNsb.",
    "a state for a dictionary": b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\0\0\0itemsNsb.",
    "nested without end": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a persistent name that is none": b"\x80\x02NQ.",
    "a frame beyond the file": b"\x80\x04\x95" + struct.pack("<Q", 2**50) + b"N.",
    "a frame that ends within a name": b"\x80\x04\x95" + struct.pack("<Q", 4) + b"\x8c\x05os" + b"N.",
    "a changeable 2^40 bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "a changeable 2^62 bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"x.",
    "bytes of 2^60": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.",
    "a buffer from elsewhere": b"\x80\x05\x97\x98.",
    "a global by stack, remembered": (
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x94\x8c\x0ctouch canary\x94\x85\x94R\x94."
    ),
    "an object of a class by stack": b"\x80\x04\x8c\nsubprocess\x8c\x05Popen\x93\x8c\x05touch\x85\x81.",
    "an object with named arguments": b"\x80\x04\x8c\nsubprocess\x8c\x05Popen\x93)}\x92.",
    "a name within a harmless one": b"\x80\x04\x8c\x08argparse\x8c\x12Namespace.__init__\x93.",
    "an attribute of anything": b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93\x8c\x01a\x8c\x01b\x86R.",
    "another pickle within": b"\x80\x02ctorch.storage\n_load_from_bytes\nU\x01.\x85R.",
    "a state for a builder of tensors": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\1\0\0\0aNsb.",
    "a state for a list": b"\x80\x02]}X\1\0\0\0aNsb.",
    "a class of nobody's, called": b"\x80\x02cnobody\nrun\nX\x0c\0\0\0touch canary\x85R.",
    "lists that double": b"\x80\x04]\x94" + b"".join(b"](h%ch%ce\x94" % (n, n) for n in range(60)) + b".",
    "a stack that is empty": b"\x80\x04\x93.",
    "a mark without an end": b"\x80\x04((((.",
}
"""Programs for a pickle machine, each as some archive's data.pkl."""
