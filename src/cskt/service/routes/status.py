"""Routes about the service: facts of the gallery, health, metrics, and the sign-in of a browser."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from cskt.data.sentences import MAX_SENTENCE_CHARACTERS
from cskt.errors import CsktError
from cskt.gallery.gallery import Gallery
from cskt.service.access.access_control import SESSION_COOKIE, client_of, token_error
from cskt.service.access.tokens import SESSION_SECONDS
from cskt.service.http_errors import ServiceError, refusal
from cskt.service.routes.base import BODY_ERRORS, ServiceParts, StrictRoute, errors
from cskt.service.schemas import (
    ColumnAnswer,
    GalleryAnswer,
    HealthAnswer,
    Limits,
    ModelAnswer,
    SessionAnswer,
    SessionRequest,
    ValueCount,
    with_zone,
)

router = APIRouter(tags=["service"], route_class=StrictRoute)

METRICS_TYPE = "text/plain; version=0.0.4"
"""Text format of Prometheus."""


@router.get("/api/gallery", responses=errors())
async def gallery(service: ServiceParts) -> GalleryAnswer:
    """Return what a page needs before the first search."""
    settings, opened = service.settings, service.worker.gallery
    count, columns = await service.worker.reading.run(_overview, opened)
    return GalleryAnswer(
        name=opened.folder.resolve().name,
        count=count,
        model=ModelAnswer(name=opened.manifest.model_name, warning=opened.manifest.warning),
        columns=columns,
        cut_off=opened.min_score,
        limits=Limits(k=settings.max_k, sentence_characters=MAX_SENTENCE_CHARACTERS, image_bytes=settings.image_bytes),
        writable=settings.has_keys,
        token_needed=settings.reading_needs_token,
    )


@router.post("/api/session", responses=errors(*BODY_ERRORS))
async def sign_in(body: SessionRequest, request: Request, response: Response, service: ServiceParts) -> SessionAnswer:
    """Exchange a key for a cookie, with which a browser may read but not write."""
    if not service.settings.has_keys:
        raise ServiceError(403, "no_token", "this service has no token; searching needs none")
    key = service.tokens.find(body.token)
    if key is None:
        service.audit.record(client_of(request), "refused-token", path=request.scope["path"])
        raise token_error()
    service.audit.record(client_of(request), "session", key=key.name)
    response.set_cookie(
        SESSION_COOKIE,
        service.tokens.new_session(key),
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        # Without a path, a browser sends it to this /api alone, also if a proxy serves several galleries on one host.
        path=None,
        # Behind a proxy, the browser's scheme is in Origin only; it has been compared with Host.
        secure="https" in (request.url.scheme, request.headers.get("origin", "").partition(":")[0]),
    )
    return SessionAnswer(seconds=SESSION_SECONDS)


@router.get("/healthz", responses={503: errors()[503]})
async def health(service: ServiceParts) -> HealthAnswer:
    """Return a 200 once searches are answered, and a 503 until then."""
    await service.worker.size()
    ready = service.worker.ready
    if not ready.done():
        raise ServiceError(503, "loading", "the model and the vectors are being loaded", {"Retry-After": "1"})
    if ready.exception() is not None:
        raise ServiceError(503, "broken", "the gallery cannot be searched; the service's log says why")
    return HealthAnswer(status="ok")


@router.get(
    "/metrics",
    responses=errors() | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    response_class=Response,
)
async def metrics(service: ServiceParts) -> Response:
    """Return metrics for Prometheus; if the gallery gives no answer, its size is the last known one."""
    try:
        size = await service.worker.size()
        service.metrics.crops.set(size.num_crops)
        service.metrics.index_bytes.set(size.index_bytes)
        service.metrics.disk_free_bytes.set(size.disk_free_bytes)
        service.metrics.gallery_up.set(1)
    except (CsktError, ServiceError) as error:
        service.metrics.gallery_up.set(0)
        if isinstance(error, CsktError):
            refusal(error, service.worker.gallery)  # logs the cause
    return Response(service.metrics.text(), media_type=METRICS_TYPE)


def _overview(gallery: Gallery) -> tuple[int, list[ColumnAnswer]]:
    columns = [
        ColumnAnswer(
            name=name,
            kind=facet.kind,
            values=[ValueCount(value=with_zone(value, facet.kind), count=count) for value, count in facet.values],
            minimum=with_zone(facet.minimum, facet.kind),
            maximum=with_zone(facet.maximum, facet.kind),
        )
        for name, facet in gallery.facets().items()
    ]
    return gallery.count(), columns
