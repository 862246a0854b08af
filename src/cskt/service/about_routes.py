"""The service itself: what it holds, whether it is well, and how a browser signs in."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from cskt.data.sentences import LONGEST_SENTENCE
from cskt.errors import CsktError
from cskt.gallery.gallery import Gallery
from cskt.service.access_control import SESSION_COOKIE, client_of, wrong_token
from cskt.service.bodies import StrictRoute
from cskt.service.dependencies import BODY_ERRORS, Parts, errors
from cskt.service.errors import ServiceError, refusal
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
from cskt.service.tokens import SESSION_SECONDS

router = APIRouter(tags=["service"], route_class=StrictRoute)

METRICS_TYPE = "text/plain; version=0.0.4"
"""Of the text format of Prometheus."""


@router.get("/api/gallery", responses=errors())
async def gallery(service: Parts) -> GalleryAnswer:
    """What a page needs to know before the first search."""
    settings, opened = service.settings, service.engine.gallery
    count, columns = await service.engine.reading.run(_overview, opened)
    return GalleryAnswer(
        name=opened.folder.resolve().name,
        count=count,
        model=ModelAnswer(name=opened.manifest.model_name, warning=opened.manifest.warning),
        columns=columns,
        cut_off=opened.min_score,
        limits=Limits(k=settings.max_k, sentence_characters=LONGEST_SENTENCE, image_bytes=settings.image_bytes),
        writable=settings.token is not None,
        token_needed=settings.reading_needs_token,
    )


@router.post("/api/session", responses=errors(*BODY_ERRORS))
async def sign_in(asked: SessionRequest, request: Request, response: Response, service: Parts) -> SessionAnswer:
    """Show the token once; the browser then reads by a cookie, which allows no writing."""
    if service.settings.token is None:
        raise ServiceError(403, "no_token", "this service has no token; searching needs none")
    if not service.tokens.is_right(asked.token):
        service.audit.note(client_of(request), "refused-token", path=request.scope["path"])
        raise wrong_token()
    service.audit.note(client_of(request), "session")
    response.set_cookie(
        SESSION_COOKIE,
        service.tokens.new_session(),
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return SessionAnswer(seconds=SESSION_SECONDS)


@router.get("/healthz", responses={503: errors()[503]})
async def health(service: Parts) -> HealthAnswer:
    """Whether queries are answered at once."""
    await service.engine.count()
    ready = service.engine.ready
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
async def metrics(service: Parts) -> Response:
    """Figures for Prometheus; where the gallery cannot be asked, the number of crops is the last one known."""
    try:
        service.metrics.crops.set(await service.engine.count())
        service.metrics.gallery_up.set(1)
    except CsktError as error:
        refusal(error, service.engine.gallery)  # logs it
        service.metrics.gallery_up.set(0)
    except ServiceError:
        service.metrics.gallery_up.set(0)
    return Response(service.metrics.text(), media_type=METRICS_TYPE)


def _overview(gallery: Gallery) -> tuple[int, list[ColumnAnswer]]:
    columns = [
        ColumnAnswer(
            name=name,
            kind=facet.kind,
            values=[ValueCount(value=with_zone(value, facet.kind), count=count) for value, count in facet.values],
            minimum=None if facet.minimum is None else with_zone(facet.minimum, facet.kind),
            maximum=None if facet.maximum is None else with_zone(facet.maximum, facet.kind),
        )
        for name, facet in gallery.facets().items()
    ]
    return gallery.count(), columns
