"""The service against its OpenAPI description: requests that fit are accepted, others are refused as described.

schemathesis makes the requests. It knows JSON schemas, but not the formats inside strings: for those it gets samples.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from doll_service import TOKEN, WRITER, client_of, fill
from hypothesis import strategies as st
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS
from starlette.types import Receive, Scope, Send

from cskt.embed import Encoder
from cskt.service.app import create_app
from cskt.service.settings import ServiceSettings

KEPT = [f"kept/{number}" for number in range(4)]
FILTERS = ["camera = 'c1'", "time > '2026-01-03' and not track in (1, 2)", "note LIKE 'p%' or sha256 is null"]
"""True and false of some crops."""
COLUMNS = ["camera", "track"]


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 32), colour).save(file, "PNG")
    return file.getvalue()


PICTURES = [base64.b64encode(picture(colour)).decode() for colour in ("red", "blue")]
PICTURES.append(f"data:image/png;base64,{PICTURES[0]}")
printable = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=60)
for name, strategy in {
    "sentence": printable.filter(str.strip),
    "filter": st.sampled_from(FILTERS),
    "image-id": st.sampled_from(KEPT) | printable,
    "image-file": st.sampled_from(PICTURES),
    "column": st.sampled_from(COLUMNS),
}.items():
    schemathesis.openapi.format(name, strategy)


@pytest.fixture(scope="module")
def described(
    tmp_path_factory: pytest.TempPathFactory, encoder: Encoder, tiny_backbone: Path, crops: Path
) -> Iterator[schemathesis.BaseSchema]:
    """OpenAPI description of a running service, whose operations all accept the token."""
    folder = tmp_path_factory.mktemp("fuzzed") / "gallery"
    # schemathesis asks under this name
    settings = ServiceSettings(token=TOKEN, allow_hosts=("testserver",), rate=1e6, max_k=30, max_offset=50)
    with fill(folder, encoder, tiny_backbone, crops) as gallery:
        gallery.add([picture("green")] * len(KEPT), KEPT)
        app = create_app(gallery, settings)

        async def already_running(scope: Scope, receive: Receive, send: Send) -> None:
            """schemathesis would stop the service after every test and cannot start it again."""
            assert scope["type"] == "http"
            await app(scope, receive, send)

        with client_of(app):
            yield schemathesis.openapi.from_asgi("/openapi.json", already_running)


OPERATIONS = [
    "DELETE /api/crops", "GET /api/crop", "GET /api/gallery", "GET /api/image", "GET /api/thumbnail", "GET /healthz",
    "GET /metrics", "POST /api/crops", "POST /api/explain", "POST /api/marks/export", "POST /api/search",
    "POST /api/session",
]  # fmt: skip
SAMPLE = ("GET /api/crop", "POST /api/search")
"""Tried by `make test`; the others by `make test-all`."""
WITHOUT_INPUT = ("GET /api/gallery", "GET /healthz", "GET /metrics")


def test_every_operation_is_tried(described: schemathesis.BaseSchema) -> None:
    assert sorted(found.ok().label for found in described.get_all_operations()) == OPERATIONS


def schema_says_all(case: schemathesis.Case) -> bool:
    """Return whether a body that fits its schema must be accepted."""
    if case.operation.label == "POST /api/crops":
        return False  # a value must also fit what its column holds by then
    if case.operation.label == "POST /api/search" and isinstance(case.body, dict):
        # schemathesis also tries words of its own, which are no pictures, filters or columns
        known = {"image": PICTURES, "where": FILTERS, "group_by": COLUMNS}
        return all(case.body.get(key) in (None, *values) for key, values in known.items())
    return True


@pytest.mark.parametrize(
    ("label", "mode"),
    [
        pytest.param(label, mode, marks=[] if label in SAMPLE else pytest.mark.slow)
        for label in OPERATIONS
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        if label not in WITHOUT_INPUT or mode is GenerationMode.POSITIVE
    ],
)
def test_requests_are_answered_as_described(
    label: str, mode: GenerationMode, described: schemathesis.BaseSchema
) -> None:
    method, _, path = label.partition(" ")
    operation = described[path][method]

    @hypothesis.given(operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(max_examples=10, deadline=None, derandomize=True, database=None)
    def answered_as_described(case: schemathesis.Case) -> None:
        unfair = [] if schema_says_all(case) else [CHECKS.get_one("positive_data_acceptance")]
        if label == "DELETE /api/crops":  # in an address ?id=5 is a list of one text, and other names are ignored
            unfair.append(CHECKS.get_one("negative_data_rejection"))
        case.call_and_validate(headers=WRITER, excluded_checks=unfair)

    answered_as_described()
