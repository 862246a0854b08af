"""Routes of single crops: facts and pictures; with a key, adding and deleting."""

from __future__ import annotations

import hashlib
import logging
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from cskt.errors import (
    CsktError,
    FileSystemError,
    GalleryChangedError,
    MissingFileError,
    StoreError,
    UnknownCropError,
    file_system_errors,
)
from cskt.gallery.gallery import Gallery
from cskt.service.http_errors import ServiceError
from cskt.service.pages import cached_response
from cskt.service.routes.base import BODY_ERRORS, ServiceParts, StrictRoute, errors
from cskt.service.schemas import (
    MAX_DELETED,
    AddAnswer,
    AddRequest,
    CropAnswer,
    CropUpload,
    ImageId,
    RemoveAnswer,
    Unreadable,
    with_zones,
)
from cskt.service.settings import ServiceSettings
from cskt.service.uploads import SIGNATURES, check_pixels, content_type, decode_base64, download_name

router = APIRouter(prefix="/api", tags=["crops"], route_class=StrictRoute)

SANDBOX = "sandbox; default-src 'none'"
"""Content policy of a picture that is opened by itself: no rights, whatever the file contains."""

log = logging.getLogger(__name__)

CropName = Annotated[ImageId, Query(alias="id", description="Name of a crop.")]


def _pictures(*types: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {name: {"schema": {"type": "string", "format": "binary"}} for name in types}}}


@router.get("/crop", responses=errors(404))
async def facts(image_id: CropName, service: ServiceParts) -> CropAnswer:
    """Return what is known of a crop."""
    found = await service.worker.reading.run(service.worker.gallery.crop, image_id)
    metadata = with_zones(found.metadata, service.worker.gallery.columns)
    return CropAnswer(**(vars(found) | {"metadata": metadata}))


@router.get(
    "/thumbnail",
    responses=errors(404) | _pictures("image/jpeg") | {304: {"description": "it has not changed"}},
    response_class=Response,
)
async def thumbnail(image_id: CropName, request: Request, service: ServiceParts) -> Response:
    """Return a small JPEG of a crop."""
    data = await service.worker.reading.run(service.worker.gallery.thumbnail, image_id)
    headers = {"Cache-Control": "private, max-age=60", "Content-Security-Policy": SANDBOX}
    return cached_response(request, data, "image/jpeg", headers)


@router.get(
    "/image", responses=errors(404) | _pictures(*SIGNATURES, "application/octet-stream"), response_class=Response
)
async def image(image_id: CropName, request: Request, service: ServiceParts) -> Response:
    """Return the file that a crop was indexed from."""
    with service.audited(request, "image", {"image_id": image_id}):
        data = await service.worker.reading.run(_original, service.worker.gallery, image_id)
    type_name = content_type(data)
    # A file that no browser shows as a picture can only be saved.
    disposition = "inline" if type_name in SIGNATURES else "attachment"
    headers = {
        "Content-Security-Policy": SANDBOX,
        "Content-Disposition": f'{disposition}; filename="{download_name(image_id, type_name)}"',
    }
    return Response(data, media_type=type_name, headers=headers)


@router.post("/crops", responses=errors(*BODY_ERRORS))
async def add(body: AddRequest, request: Request, service: ServiceParts) -> AddAnswer:
    """Add crops, or replace those of the same name. Needs a key in the header."""
    body.check_limits(service.settings)
    facts = {"image_ids": [crop.image_id for crop in body.crops]}
    with service.audited(request, "add", facts, changes=True, code="bad_crop") as entry:
        answer = await service.worker.writing.run(_add, service.worker.gallery, body.crops, service.settings)
        entry["added"], entry["replaced"] = answer.added, answer.replaced
    return answer


@router.delete("/crops", responses=errors(400))
async def remove(
    image_ids: Annotated[list[ImageId], Query(alias="id", min_length=1, max_length=MAX_DELETED)],
    request: Request,
    service: ServiceParts,
) -> RemoveAnswer:
    """Remove crops; unknown names are ignored. Needs a key in the header."""
    with service.audited(request, "delete", {"image_ids": image_ids}, changes=True, code="bad_crop") as entry:
        removed = await service.worker.writing.run(service.worker.gallery.remove, image_ids)
        entry["removed"] = removed
    return RemoveAnswer(removed=removed)


def _original(gallery: Gallery, image_id: str) -> bytes:
    """Return the bytes that were indexed and no others: a stranger's gallery may name any folder as its own."""
    try:
        facts, path = gallery.crop(image_id), gallery.original(image_id)
        with file_system_errors(path):
            data = path.read_bytes() if path.stat().st_size == facts.num_bytes else b""
        if hashlib.sha256(data).hexdigest() != facts.sha256:
            raise CsktError("the file is not the one that was indexed")
        return data
    except (UnknownCropError, GalleryChangedError, StoreError):
        raise
    except CsktError as error:  # its message names folders of this machine
        if isinstance(error, FileSystemError) and not isinstance(error, MissingFileError):
            raise
        log.warning("a requested original is gone or was changed since it was indexed")
        message = "the original of this crop is gone or was changed; put it back, or index the gallery again"
        raise ServiceError(404, "no_original", message) from None


def _add(gallery: Gallery, crops: list[CropUpload], settings: ServiceSettings) -> AddAnswer:
    taken: list[tuple[CropUpload, bytes]] = []
    unreadable: list[tuple[str, str]] = []
    for crop in crops:
        data = decode_base64(crop.image, settings)
        try:
            check_pixels(data, settings)
            taken.append((crop, data))
        except CsktError as error:
            unreadable.append((crop.image_id, str(error)))
    names, metadata = [crop.image_id for crop, _ in taken], [crop.metadata for crop, _ in taken]
    report = gallery.add([data for _, data in taken], names, metadata)
    refused = [Unreadable(image_id=name, reason=reason) for name, reason in (*unreadable, *report.unreadable)]
    return AddAnswer(added=report.added, replaced=report.replaced, unreadable=refused)
