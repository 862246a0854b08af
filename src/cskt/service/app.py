"""`create_app`: a gallery as an HTTP service with a page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from cskt.utils.arguments import expect
from cskt.utils.messages import require

require("serve", "fastapi", "uvicorn", "prometheus_client")

from fastapi import FastAPI  # noqa: E402
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware  # noqa: E402

from cskt import __version__  # noqa: E402
from cskt.gallery.gallery import Gallery  # noqa: E402
from cskt.gallery.manifest import AUDIT_FILE  # noqa: E402
from cskt.gallery.stores.registry import split_store  # noqa: E402
from cskt.service.access.access_control import SESSION_COOKIE, AccessControl, needed_access  # noqa: E402
from cskt.service.access.tokens import Tokens  # noqa: E402
from cskt.service.audit import AuditLog  # noqa: E402
from cskt.service.http_errors import add_error_handlers  # noqa: E402
from cskt.service.middleware import RequestMiddleware  # noqa: E402
from cskt.service.monitoring import Metrics  # noqa: E402
from cskt.service.pages import page_files, page_router  # noqa: E402
from cskt.service.routes import crops, searching, status  # noqa: E402
from cskt.service.routes.base import Service  # noqa: E402
from cskt.service.settings import ServiceSettings  # noqa: E402
from cskt.service.uploads import MAX_DATA_URL_HEAD  # noqa: E402
from cskt.service.worker import GalleryWorker  # noqa: E402


def create_app(gallery: Gallery, settings: ServiceSettings | None = None) -> FastAPI:
    """Create the service over one gallery, for any ASGI server.

    Model and vectors are loaded in the background once the server has started; `/healthz` answers 503 until then.

    Args:
        gallery: open; the caller closes it after the server has stopped.
        settings: address, access and limits; local and read-only by default.

    Raises:
        CsktError: the audit log cannot be written.
    """
    expect(gallery, Gallery, "gallery", "cskt.Gallery.open opens one")
    expect(settings, (ServiceSettings, type(None)), "settings")
    settings = settings or ServiceSettings()
    metrics = Metrics()
    metrics.gallery.info(_facts(gallery))
    audit_path = (settings.audit_log or gallery.folder / AUDIT_FILE) if settings.keep_audit_log else None
    service = Service(
        settings=settings,
        worker=GalleryWorker(gallery, settings, metrics),
        metrics=metrics,
        tokens=Tokens(settings.token, settings.key_file),
        audit=AuditLog(audit_path, only_file=settings.audit_log is None),
    )

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        service.worker.warm_up()
        yield
        service.worker.close(settings.stop_seconds)
        service.audit.close()

    app = FastAPI(
        title="Person search",
        description="Search a gallery of person crops by sentence. Every address that takes GET takes HEAD as well.",
        lifespan=running,
        docs_url=None,  # FastAPI's pages fetch their scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.settings, app.state.service = settings, service
    for router in (status.router, searching.router, crops.router, page_router(page_files())):
        app.include_router(router)
    add_error_handlers(app)
    _complete_description(app.openapi(), settings)
    # The last one added is the outermost.
    app.add_middleware(AccessControl, settings=settings, tokens=service.tokens, audit=service.audit)
    app.add_middleware(RequestMiddleware, metrics=metrics)
    if settings.proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=list(settings.proxies))
    return app


def _facts(gallery: Gallery) -> dict[str, str]:
    """Return what the metrics say of a gallery; it does not change while the service runs."""
    manifest = gallery.manifest
    store, _ = split_store(manifest.store)  # the address of a server is for nobody else
    return {"model": manifest.model_name, "fingerprint": manifest.fingerprint, "store": store, "version": __version__}


def _complete_description(description: dict[str, Any], settings: ServiceSettings) -> None:
    """Add the limits, and what needs a key, to the OpenAPI description that FastAPI reads from the routes."""
    description["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer"},
        "session": {"type": "apiKey", "in": "cookie", "name": SESSION_COOKIE},
    }
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            needed = needed_access(method.upper(), path)
            if needed == "write":
                operation["security"] = [{"token": []}]
            elif needed == "read" and settings.reading_needs_token:
                operation["security"] = [{"token": []}, {"session": []}]
    schemas = description["components"]["schemas"]
    image_characters = settings.image_bytes * 4 // 3 + MAX_DATA_URL_HEAD
    search = schemas["SearchRequest"]["properties"]
    search["where"]["anyOf"][0]["maxLength"] = settings.where_characters
    search["image"]["anyOf"][0]["maxLength"] = image_characters
    search["exclude"]["maxItems"] = settings.max_exclude
    search["k"]["maximum"] = settings.max_k
    search["offset"]["maximum"] = settings.max_offset
    schemas["AddRequest"]["properties"]["crops"]["maxItems"] = settings.crops_per_request
    schemas["CropUpload"]["properties"]["image"]["maxLength"] = image_characters
