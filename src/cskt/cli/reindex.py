"""`cskt reindex`: every crop of a gallery encoded anew, by another model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cskt.cli.gallery_flags import add_source_flags, load_from_flags, report_indexing, source_from_flags
from cskt.cli.parsing import Parser, command_line
from cskt.embed import Encoder
from cskt.errors import SMALLER_BATCHES, CsktError, out_of_memory_errors
from cskt.gallery.calibration import outdated_calibration
from cskt.gallery.gallery import Gallery
from cskt.gallery.manifest import Manifest, read_manifest
from cskt.utils.console import counting_bar

DESCRIPTION = """\
Encode every crop of a gallery anew, with another model. The gallery answers with the old one until all is done; an
interrupted run loses nothing, the same command continues it. Metadata is kept. A calibrated threshold belongs to the
old model; set it again with `cskt calibrate`. If the gallery's own model was moved, --model (or --backbone) with its
new place updates the path in the gallery, and nothing is encoded.
"""
EXAMPLES = """\
examples:
  cskt reindex my-gallery --model logs/cuhk-pedes/...
  cskt reindex my-gallery --model moved/run                  the same model at another place
  cskt reindex my-gallery --backbone moved/ViT-B-16.pt     the same for the backbone of an adapter-only run
"""


@out_of_memory_errors(SMALLER_BATCHES)
def main(argv: Sequence[str]) -> int:
    """See `cskt reindex --help`."""
    parser = Parser(prog="cskt reindex", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("gallery", type=Path, metavar="GALLERY", help="folder of the gallery")
    parser.add_argument("--prune", action="store_true", help="remove crops whose image cannot be read any more")
    parser.add_argument("--json", action="store_true", help="JSON on stdout, with every unreadable image")
    add_source_flags(parser, "the gallery's own, for weights that have changed in their place")
    flags = parser.parse(argv)
    encoder = _model(flags, read_manifest(flags.gallery))
    with Gallery.open(flags.gallery) as gallery:
        try:
            with counting_bar("images", unit="images") as on_progress:
                report = gallery.reindex(encoder, prune=flags.prune, on_progress=on_progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the gallery answers as before; run the same command to continue") from None
        report_indexing(report, flags.gallery, gallery.count(), as_json=flags.json)
        if not flags.json and (again := outdated_calibration(flags.gallery, gallery.manifest.fingerprint)):
            print(f"the threshold belongs to the old model; to set it again: {command_line(*again)}")
    return 0


def _model(flags: argparse.Namespace, manifest: Manifest) -> Encoder:
    """Return what `--model` names: the gallery's own model at another place, with its image size, or another model."""
    same, other = source_from_flags(flags, manifest.model, same_model=True), source_from_flags(flags, manifest.model)
    if same != other:
        with suppress(CsktError):  # another model may not take these settings
            encoder = load_from_flags(same, flags, flags.gallery)
            if encoder.fingerprint == manifest.fingerprint:
                return encoder
    return load_from_flags(other, flags, flags.gallery)
