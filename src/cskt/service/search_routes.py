"""Searching, explaining, and taking marked hits home."""

from __future__ import annotations

import json
import time
from collections.abc import Set

from fastapi import APIRouter, Request, Response

from cskt.errors import CsktError
from cskt.gallery.marks import Mark, marks_csv, marks_jsonl
from cskt.gallery.options import EVERY_SCORE, SearchOptions
from cskt.gallery.query import Query
from cskt.service.bodies import StrictRoute
from cskt.service.dependencies import BODY_ERRORS, Parts, errors
from cskt.service.errors import refusal
from cskt.service.pictures import decode_base64, read_query
from cskt.service.schemas import (
    ExplainAnswer,
    ExplainRequest,
    ExportRequest,
    HistogramAnswer,
    HitAnswer,
    SearchAnswer,
    SearchRequest,
    WordHeat,
    with_zones,
)

router = APIRouter(prefix="/api", tags=["search"], route_class=StrictRoute)
HEAT_DIGITS = 4
LEFT_OUT = "X-Left-Out"
"""Header of an export: how many crops are not in it because no file of the indexed folder shows them."""


@router.post("/search", responses=errors(404, *BODY_ERRORS))
async def search(asked: SearchRequest, request: Request, service: Parts) -> SearchAnswer:
    """The best crops for a sentence, a picture, a crop, or several of these together."""
    begun = time.perf_counter()
    asked.check_limits(service.settings)
    facts = {
        "text": asked.text,
        "image": True if asked.image is not None else None,
        "like": asked.like,
        "exclude": asked.exclude,
        "where": asked.where,
        "k": asked.k,
        "offset": asked.offset or None,
    }
    gallery = service.engine.gallery
    with service.noting(request, "search", facts) as noted:
        try:  # before anything is encoded
            where = gallery.parse_filter(asked.where)
        except CsktError as error:
            raise refusal(error, gallery, "bad_filter") from None
        image = None
        if asked.image is not None:
            data = decode_base64(asked.image, service.settings)
            image = await service.engine.decoding.run(read_query, data, gallery, service.settings)
        # read once, so that the answer names the one it was made with: `cskt calibrate` may change it at any time
        min_score = gallery.min_score if asked.min_score is None else asked.min_score
        query = Query(
            text=asked.text,
            image=image,
            like=asked.like,
            exclude=tuple(asked.exclude),
            text_weight=asked.text_weight,
            image_weight=asked.image_weight,
            exclude_weight=asked.exclude_weight,
        )
        lowest = EVERY_SCORE if min_score is None else min_score
        options = SearchOptions(asked.k, asked.offset, where, lowest, asked.group_by)
        hits, histogram = await service.engine.search(query, options, histogram=asked.histogram)
        warnings, columns = gallery.warnings(query), gallery.manifest.columns
        noted["hits"] = len(hits)
    return SearchAnswer(
        hits=[
            HitAnswer(
                image_id=hit.image_id,
                score=hit.score,
                rank=hit.rank,
                group_size=hit.group_size,
                metadata=with_zones(hit.metadata, columns),
            )
            for hit in hits
        ],
        cut_off=min_score,
        histogram=histogram and HistogramAnswer(edges=list(histogram.edges), counts=list(histogram.counts)),
        warnings=warnings,
        seconds=time.perf_counter() - begun,
    )


@router.post("/explain", responses=errors(404, *BODY_ERRORS))
async def explain(asked: ExplainRequest, request: Request, service: Parts) -> ExplainAnswer:
    """Where on a crop the sentence, and each of its words, is to be seen."""
    asked.check_limits()
    engine, facts = service.engine, {"text": asked.text, "image_id": asked.image_id}
    with service.noting(request, "explain", facts):
        explanation = await engine.explaining.run(engine.gallery.explain, asked.image_id, asked.text)
        warnings = engine.gallery.warnings(Query(asked.text))
    rows, columns = explanation.sentence.shape
    return ExplainAnswer(
        score=explanation.score,
        rows=rows,
        columns=columns,
        sentence=explanation.sentence.round(decimals=HEAT_DIGITS).tolist(),
        words=[WordHeat(word=word, heat=heat.round(decimals=HEAT_DIGITS).tolist()) for word, heat in explanation.words],
        warnings=warnings,
    )


@router.post(
    "/marks/export",
    responses=errors(*BODY_ERRORS)
    | {
        200: {
            "content": {kind: {"schema": {"type": "string"}} for kind in ("text/csv", "application/x-ndjson")},
            "headers": {LEFT_OUT: {"description": "Crops that training cannot read.", "schema": {"type": "integer"}}},
        }
    },
    response_class=Response,
)
async def export(asked: ExportRequest, request: Request, service: Parts) -> Response:
    """Judged hits as a table, or as records that training reads, which crops that were handed over are left out of."""
    asked.check_limits()
    marks, gallery = [Mark(mark.text, mark.image_id, mark.right) for mark in asked.marks], service.engine.gallery
    facts = {"format": asked.format, "marks": len(marks)}
    with service.noting(request, "export", facts):
        kept = await service.engine.reading.run(gallery.uploaded, [mark.image_id for mark in marks])
        if asked.format == "csv":
            text, num_left_out, media_type = marks_csv(marks), 0, "text/csv"
        else:
            text, num_left_out = _without(kept, marks_jsonl(marks))
            media_type = "application/x-ndjson"
    name = f'attachment; filename="marks.{asked.format}"'
    return Response(
        text, media_type=media_type, headers={"Content-Disposition": name, LEFT_OUT: str(num_left_out)}
    )  # fmt: skip


def _without(kept: Set[str], records: str) -> tuple[str, int]:
    """Training records less those of some crops, and how many these were.

    The crops go after the people have been told apart: two sentences for one of them still describe one person.
    """
    lines = records.split("\n")[:-1]  # not `splitlines`: a caption may hold U+2028
    stay = [line for line in lines if json.loads(line)["image"] not in kept]
    return "".join(f"{line}\n" for line in stay), len(lines) - len(stay)
