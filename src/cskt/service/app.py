"""`create_app`: a gallery as an HTTP service with a page. The parts meet here, and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from cskt.utils.extras import require

require("serve", "fastapi", "prometheus_client")

from fastapi import FastAPI  # noqa: E402

from cskt.gallery.gallery import Gallery  # noqa: E402
from cskt.service import about_routes, crop_routes, search_routes  # noqa: E402
from cskt.service.access_control import Gate  # noqa: E402
from cskt.service.audit import AUDIT_FILE, AuditLog  # noqa: E402
from cskt.service.dependencies import Service  # noqa: E402
from cskt.service.engine import Engine  # noqa: E402
from cskt.service.errors import add_error_handlers  # noqa: E402
from cskt.service.metrics import Metrics  # noqa: E402
from cskt.service.openapi import describe  # noqa: E402
from cskt.service.pages import page_files, page_router  # noqa: E402
from cskt.service.rate import RateLimiter  # noqa: E402
from cskt.service.security_headers import Outermost  # noqa: E402
from cskt.service.settings import ServiceSettings  # noqa: E402
from cskt.service.tokens import Tokens  # noqa: E402


def create_app(gallery: Gallery, settings: ServiceSettings | None = None) -> FastAPI:
    """The service over one gallery, for any ASGI server.

    Model and vectors are loaded in the background once the server has started; `/healthz` says when they are.

    Args:
        gallery: open; it stays open, whoever opened it closes it after the server has stopped.
        settings: address, access and limits; local and read-only if empty.

    Raises:
        CsktError: the audit log cannot be written.
    """
    settings = settings or ServiceSettings()
    metrics = Metrics()
    path = (settings.audit_log or gallery.folder / AUDIT_FILE) if settings.keep_audit_log else None
    service = Service(
        settings=settings,
        engine=Engine(gallery, settings, metrics),
        metrics=metrics,
        tokens=Tokens(settings.token),
        audit=AuditLog(path, only_file=settings.audit_log is None),
    )

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        service.engine.warm_up()
        yield
        service.engine.close(settings.stop_seconds)
        service.audit.close()

    app = _App(
        title="Person search",
        description="Search a gallery of person crops by sentence. Every address that takes GET takes HEAD as well.",
        lifespan=running,
        docs_url=None,  # FastAPI's pages fetch their scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.settings, app.state.service = settings, service
    for router in (about_routes.router, search_routes.router, crop_routes.router, page_router(page_files())):
        app.include_router(router)
    add_error_handlers(app)
    rates = RateLimiter(settings.rate, settings.rate * settings.burst_seconds)
    # the one added last is the outermost
    app.add_middleware(Gate, settings=settings, tokens=service.tokens, rates=rates, audit=service.audit)
    app.add_middleware(Outermost, metrics=metrics)
    return app


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The description, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = describe(self, self.state.settings)
        return self.openapi_schema
