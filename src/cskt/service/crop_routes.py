"""Single crops: facts and pictures; with the token, crops added and deleted."""

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
from cskt.service.bodies import StrictRoute
from cskt.service.dependencies import BODY_ERRORS, Parts, errors
from cskt.service.errors import ServiceError
from cskt.service.pictures import SIGNATURES, check_pixels, content_type, decode_base64, download_name
from cskt.service.schemas import (
    MOST_DELETED,
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

router = APIRouter(prefix="/api", tags=["crops"], route_class=StrictRoute)

SANDBOX = "sandbox; default-src 'none'"
"""A picture that is opened by itself gets no rights, whatever it may hold."""

log = logging.getLogger(__name__)

CropName = Annotated[ImageId, Query(alias="id", description="Name of a crop.")]


def _pictures(*types: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {name: {"schema": {"type": "string", "format": "binary"}} for name in types}}}


@router.get("/crop", responses=errors(404))
async def facts(image_id: CropName, service: Parts) -> CropAnswer:
    """What is known of a crop."""
    found = await service.engine.reading.run(service.engine.gallery.crop, image_id)
    columns = service.engine.gallery.columns
    return CropAnswer(
        image_id=found.image_id,
        width=found.width,
        height=found.height,
        num_bytes=found.num_bytes,
        sha256=found.sha256,
        metadata=with_zones(found.metadata, columns),
    )


@router.get(
    "/thumbnail",
    responses=errors(404) | _pictures("image/jpeg") | {304: {"description": "it has not changed"}},
    response_class=Response,
)
async def thumbnail(image_id: CropName, request: Request, service: Parts) -> Response:
    """A small JPEG of a crop."""
    data = await service.engine.reading.run(service.engine.gallery.thumbnail, image_id)
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "private, max-age=60", "Content-Security-Policy": SANDBOX}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="image/jpeg", headers=headers)


@router.get(
    "/image", responses=errors(404) | _pictures(*SIGNATURES, "application/octet-stream"), response_class=Response
)
async def image(image_id: CropName, request: Request, service: Parts) -> Response:
    """The file that a crop was indexed from."""
    with service.noting(request, "image", {"image_id": image_id}):
        data = await service.engine.reading.run(_original, service.engine.gallery, image_id)
    type_name = content_type(data)
    # what no browser shows as a picture is only to be saved
    shown = "inline" if type_name in SIGNATURES else "attachment"
    headers = {
        "Content-Security-Policy": SANDBOX,
        "Content-Disposition": f'{shown}; filename="{download_name(image_id, type_name)}"',
    }
    return Response(data, media_type=type_name, headers=headers)


@router.post("/crops", responses=errors(*BODY_ERRORS))
async def add(asked: AddRequest, request: Request, service: Parts) -> AddAnswer:
    """Add crops, or replace those of the same name. Needs the token in the header."""
    asked.check_limits(service.settings)
    gallery, names = service.engine.gallery, [crop.image_id for crop in asked.crops]
    facts = {"image_ids": names}
    with service.noting(request, "add", facts, changes=True, code="bad_crop") as noted:
        answer = await service.engine.writing.run(_add, gallery, asked.crops, service.settings)
        noted["added"], noted["replaced"] = answer.added, answer.replaced
    return answer


@router.delete("/crops", responses=errors(400))
async def remove(
    image_ids: Annotated[list[ImageId], Query(alias="id", min_length=1, max_length=MOST_DELETED)],
    request: Request,
    service: Parts,
) -> RemoveAnswer:
    """Remove crops; those that are not there are passed over. Needs the token in the header."""
    gallery, facts = service.engine.gallery, {"image_ids": image_ids}
    with service.noting(request, "delete", facts, changes=True, code="bad_crop") as noted:
        removed = await service.engine.writing.run(gallery.remove, image_ids)
        noted["removed"] = removed
    return RemoveAnswer(removed=removed)


def _original(gallery: Gallery, image_id: str) -> bytes:
    """The bytes that were indexed and no others: a gallery of somebody else may name any folder as its own."""
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
        log.warning("an original that was asked for is gone or was changed since it was indexed")
        message = "the original of this crop is gone or was changed; put it back, or index the gallery again"
        raise ServiceError(404, "no_original", message) from None


def _add(gallery: Gallery, crops: list[CropUpload], settings: ServiceSettings) -> AddAnswer:
    taken: list[tuple[CropUpload, bytes]] = []
    unreadable: list[Unreadable] = []
    for crop in crops:
        data = decode_base64(crop.image, settings)
        try:
            check_pixels(data, settings)
            taken.append((crop, data))
        except CsktError as error:
            unreadable.append(Unreadable(image_id=crop.image_id, reason=str(error)))
    metadata = [crop.metadata for crop, _ in taken]
    report = gallery.add([data for _, data in taken], [crop.image_id for crop, _ in taken], metadata)
    unreadable += [Unreadable(image_id=name, reason=reason) for name, reason in report.unreadable]
    return AddAnswer(added=report.added, replaced=report.replaced, unreadable=unreadable)
