"""Routes for searching, explaining a hit, and exporting marked hits."""

from __future__ import annotations

import json
import time

from fastapi import APIRouter, Request, Response
from torch import Tensor

from cskt.errors import CsktError
from cskt.gallery.gallery import Gallery
from cskt.gallery.marks import Mark, marks_csv, training_records
from cskt.gallery.options import EVERY_SCORE, SearchOptions
from cskt.gallery.query import Query
from cskt.service.http_errors import refusal
from cskt.service.routes.base import BODY_ERRORS, ServiceParts, StrictRoute, errors
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
from cskt.service.settings import ServiceSettings
from cskt.service.uploads import decode_base64, decode_query

router = APIRouter(prefix="/api", tags=["search"], route_class=StrictRoute)
HEAT_DIGITS = 4
LEFT_OUT = "X-Left-Out"
"""Header of an export: number of crops that are not in it because no file of the indexed folder shows them."""


@router.post("/search", responses=errors(404, *BODY_ERRORS))
async def search(body: SearchRequest, request: Request, service: ServiceParts) -> SearchAnswer:
    """Return the best crops for a sentence, a picture, a crop, or several of these together."""
    begun = time.perf_counter()
    body.check_limits(service.settings)
    gallery = service.worker.gallery
    with service.audited(request, "search", body.audit_fields()) as entry:
        try:  # before anything is encoded; a filter is short, so parsing it here delays no other request
            where = gallery.parse_filter(body.where)
        except CsktError as error:
            raise refusal(error, gallery, "bad_filter") from None
        image = None
        if body.image is not None:
            image = await service.worker.decoding.run(_decoded, gallery, body.image, service.settings)
        # Read once, so that the answer names the one that was used: `cskt calibrate` may change it at any time.
        min_score = gallery.min_score if body.min_score is None else body.min_score
        threshold = EVERY_SCORE if min_score is None else min_score
        options = SearchOptions(body.k, body.offset, where, threshold, body.group_by)
        query = body.query(image)
        hits, histogram = await service.worker.search(query, options, histogram=body.histogram)
        warnings, columns = gallery.warnings(query), gallery.manifest.columns  # tokenized here: well under 1 ms
        entry["hits"] = len(hits)
    return SearchAnswer(
        hits=[HitAnswer(**(vars(hit) | {"metadata": with_zones(hit.metadata, columns)})) for hit in hits],
        cut_off=min_score,
        histogram=histogram and HistogramAnswer(edges=list(histogram.edges), counts=list(histogram.counts)),
        warnings=warnings,
        seconds=time.perf_counter() - begun,
    )


def _decoded(gallery: Gallery, image: str, settings: ServiceSettings) -> Tensor:
    """Return the pixels of a picture in base64, megabytes of text, in the size of the model."""
    return gallery.resize(decode_query(decode_base64(image, settings), settings))


@router.post("/explain", responses=errors(404, *BODY_ERRORS))
async def explain(body: ExplainRequest, request: Request, service: ServiceParts) -> ExplainAnswer:
    """Return heat maps of a sentence, and of each of its words, over a crop."""
    worker, facts = service.worker, {"text": body.text, "image_id": body.image_id}
    with service.audited(request, "explain", facts):
        explanation = await worker.explaining.run(worker.gallery.explain, body.image_id, body.text)
        warnings = worker.gallery.warnings(Query(body.text))
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
async def export(body: ExportRequest, request: Request, service: ServiceParts) -> Response:
    """Return judged hits as a table, or as records for training, in which crops added by the API are left out."""
    marks, gallery = [Mark(mark.text, mark.image_id, mark.right) for mark in body.marks], service.worker.gallery
    with service.audited(request, "export", {"format": body.format, "marks": len(marks)}):
        uploaded = await service.worker.reading.run(gallery.uploaded, [mark.image_id for mark in marks])
        # Persons are numbered before crops are left out: two sentences for an uploaded crop still describe one person.
        records = training_records(marks)
        trainable = [record for record in records if record["image"] not in uploaded]
    if body.format == "csv":
        text, num_left_out, media_type = marks_csv(marks), 0, "text/csv"
    else:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in trainable)
        num_left_out, media_type = len(records) - len(trainable), "application/x-ndjson"
    headers = {"Content-Disposition": f'attachment; filename="marks.{body.format}"', LEFT_OUT: str(num_left_out)}
    return Response(text, media_type=media_type, headers=headers)
