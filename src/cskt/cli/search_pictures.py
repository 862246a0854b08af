"""Answers of a gallery with their pictures and heat maps, as a page shows them or drawn as a sheet."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from cskt.cli.explanations import Explanations
from cskt.explain import Explanation, overlay
from cskt.gallery.gallery import Gallery
from cskt.image_files.decode import decode_image
from cskt.report.answer_page import PicturedAnswer, PicturedHit
from cskt.report.explained_sheet import explained_sheet
from cskt.report.pictures import Answer, answer_sheet
from cskt.types import Hit

JPEG_QUALITY = 85


def pictured(
    gallery: Gallery, query: str, hits: Sequence[Hit], explanations: Explanations | None, note: str
) -> PicturedAnswer:
    """An answer with thumbnails and, where it is explained, heat maps over them."""
    with_pictures = []
    for hit in hits:
        thumbnail = gallery.thumbnail(hit.image_id)
        maps = _heat_maps(thumbnail, explanations[hit.image_id]) if explanations else []
        with_pictures.append(PicturedHit(hit, thumbnail, maps))
    return PicturedAnswer(query, with_pictures, note)


def draw_sheet(answer: PicturedAnswer, *, explained: bool) -> Image.Image:
    """One picture of an answer: a row of crops, or, explained, a row for each crop."""
    if explained:
        return explained_sheet(answer.query, answer.hits)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(len(answer.hits))]
        for path, found in zip(paths, answer.hits, strict=True):
            path.write_bytes(found.picture)
        return answer_sheet(Answer(answer.query, [found.hit for found in answer.hits], paths))


def _heat_maps(thumbnail: bytes, explanation: Explanation) -> list[tuple[str, bytes]]:
    crop = Image.fromarray(decode_image(thumbnail))
    maps = []
    for label, heat in (("whole sentence", explanation.sentence), *explanation.words):
        file = io.BytesIO()
        overlay(crop, heat, height=crop.height).convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY)
        maps.append((label, file.getvalue()))
    return maps
