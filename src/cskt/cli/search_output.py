"""Answers of a search as tables, JSON, pictures and pages, for galleries and splits alike."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.table import Table

from cskt.errors import file_system_errors
from cskt.utils.console import console, literal
from cskt.utils.terminal import json_text, printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from cskt.explain import Explanation
    from cskt.report.pictured_results import PicturedHit
    from cskt.types import Hit

JPEG_QUALITY = 85


@dataclass(frozen=True)
class QueryResult:
    """A query with its hits."""

    query: str | None
    """Its sentence."""
    title: str
    """Everything that was looked for, on one line."""
    hits: Sequence[Hit]
    note: str = ""
    """Reason for an empty answer; empty if there are hits."""
    explanations: Sequence[Explanation] = ()
    """Heat maps of each hit, or none."""


def print_answers(answers: Sequence[QueryResult], columns: Sequence[str], *, grouped: bool, as_json: bool) -> None:
    """Print hits on stdout, and on stderr why a query has none.

    `columns` are those of the metadata, for tables; `grouped`: each hit stands for a group, whose size is shown.
    """
    if as_json:
        print(json_text([_record(answer) for answer in answers]))
    for answer in answers:
        if answer.note:
            print(f"{answer.title[:200]}: {answer.note}", file=sys.stderr)
        elif not as_json:
            console().print(_table(answer, columns, grouped=grouped))


def _record(answer: QueryResult) -> dict[str, Any]:
    hits = [dataclasses.asdict(hit) for hit in answer.hits]
    for hit, explanation in zip(hits, answer.explanations, strict=False):
        rows, columns = explanation.sentence.shape
        hit["explanation"] = {  # grids of patches in [0, 1], rows from top to bottom
            "score": explanation.score,
            "rows": rows,
            "columns": columns,
            "sentence": explanation.sentence.tolist(),
            "words": [{"word": word, "heat": heat.tolist()} for word, heat in explanation.words],
        }
    return {"query": answer.query, "hits": hits}


def _table(answer: QueryResult, columns: Sequence[str], *, grouped: bool) -> Table:
    known = [column for column in columns if any(column in hit.metadata for hit in answer.hits)]
    table = Table(title=literal(printable(answer.title)), title_justify="left")
    for number in ("rank", "score"):
        table.add_column(number, justify="right", no_wrap=True)
    for heading in ["image", *known, *(["in group"] if grouped else [])]:
        # Folded, because a path that is cut short names no file.
        table.add_column(literal(heading), overflow="fold", min_width=cell_len(heading))
    for hit in answer.hits:
        values = [str(hit.metadata.get(column, "")) for column in known]
        cells = [hit.image_id, *values, *([str(hit.group_size)] if grouped else [])]
        table.add_row(str(hit.rank), f"{hit.score:.3f}", *map(literal, cells))
    return table


def draw_answers(
    answers: Sequence[QueryResult],
    picture_of: Callable[[Hit], bytes],
    sheet: Path | None,
    page: Path | None,
    heading: str,
) -> None:
    """Write hits as pictures: a PNG file for each answer, numbered if there are several, and one HTML page, or neither.

    `picture_of` returns the crop of a hit as JPEG; `heading` is the title of the page.
    """
    if sheet is None and page is None:
        return
    # matplotlib, whose fonts they use, takes a second to import.
    from cskt.report.pages import write_answer_page  # noqa: PLC0415
    from cskt.report.pictured_results import PicturedResult, answer_sheet  # noqa: PLC0415

    drawn = [PicturedResult(answer.title, _pictured(answer, picture_of), answer.note) for answer in answers]
    if page is not None:
        write_answer_page(page, heading, drawn)
    if sheet is not None:
        several = [sheet.with_stem(f"{sheet.stem}-{number}") for number in range(1, len(drawn) + 1)]
        for path, answer in zip(several if len(drawn) > 1 else [sheet], drawn, strict=True):
            with file_system_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                answer_sheet(answer).save(path)


def _pictured(answer: QueryResult, picture_of: Callable[[Hit], bytes]) -> list[PicturedHit]:
    from cskt.explain import overlay  # noqa: PLC0415  (torch)
    from cskt.report.pictured_results import PicturedHit, load_crop  # noqa: PLC0415

    pictured = []
    for position, hit in enumerate(answer.hits):
        picture, maps = picture_of(hit), []
        crop = load_crop(picture) if answer.explanations else None
        if crop is not None:
            explanation = answer.explanations[position]
            for label, heat in (("whole sentence", explanation.sentence), *explanation.words):
                maps.append((label, jpeg(overlay(crop, heat, height=crop.height))))
        pictured.append(PicturedHit(hit, picture, heat_maps=maps))
    return pictured


def jpeg(image: Image) -> bytes:
    """Return an image as the bytes of a JPEG file."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
