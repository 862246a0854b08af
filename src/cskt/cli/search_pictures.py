"""Answers of a gallery with thumbnails and heat maps, for a page or a sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from cskt.cli.explanations import Explanations
from cskt.explain import Explanation, overlay
from cskt.gallery.gallery import Gallery
from cskt.image_files.decode import decode_image
from cskt.report.answers import Answer, PicturedHit
from cskt.types import Hit

JPEG_QUALITY = 85


def pictured(gallery: Gallery, query: str, hits: Sequence[Hit], explanations: Explanations | None, note: str) -> Answer:
    """An answer with thumbnails and, where it is explained, heat maps over them."""
    with_pictures = []
    for hit in hits:
        thumbnail = gallery.thumbnail(hit.image_id)
        maps = _heat_maps(thumbnail, explanations[hit.image_id]) if explanations else []
        with_pictures.append(PicturedHit(hit, thumbnail, heat_maps=maps))
    return Answer(query, with_pictures, note)


def _heat_maps(thumbnail: bytes, explanation: Explanation) -> list[tuple[str, bytes]]:
    crop = Image.fromarray(decode_image(thumbnail))
    maps = []
    for label, heat in (("whole sentence", explanation.sentence), *explanation.words):
        file = io.BytesIO()
        overlay(crop, heat, height=crop.height).convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY)
        maps.append((label, file.getvalue()))
    return maps
