"""`cskt gallery info`: facts about a gallery."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cskt.cli.parsing import Parser
from cskt.gallery.gallery import Gallery
from cskt.utils.terminal import json_text, printable

DESCRIPTION = """\
Print what a gallery contains: crops, columns, model, store, source, threshold and sizes on the disk. The model is not
loaded.
"""
EXAMPLES = """\
examples:
  cskt gallery info my-gallery
  cskt gallery info my-gallery --json
"""


def main(argv: Sequence[str]) -> int:
    """See `cskt gallery info --help`."""
    parser = Parser(prog="cskt gallery info", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("gallery", type=Path, metavar="GALLERY", help="folder of the gallery")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of lines")
    flags = parser.parse(argv)
    with Gallery.open(flags.gallery, device="cpu") as gallery:
        info = gallery.info()
    if flags.json:
        print(json_text(vars(info), indent=1))
        return 0
    lines = {
        "crops": f"{info.crops:,}, {info.uploads:,} of them uploads",
        "model": f"{info.model} (fingerprint {info.fingerprint[:12]})",
        "store": info.store,
        "created": info.created,
        "source": ", ".join(info.shards) or info.images or "none: uploads only",
        "threshold": "not calibrated" if info.min_score is None else f"{info.min_score:.4f}",
        "columns": ", ".join(f"{name} ({kind})" for name, kind in info.columns.items()) or "none",
        "on disk": ", ".join(f"{part} {size / 1e6:,.1f} MB" for part, size in info.num_bytes.items()),
    }
    width = max(map(len, lines))
    for name, text in lines.items():
        print(printable(f"{name:<{width}}  {text}"))
    return 0
