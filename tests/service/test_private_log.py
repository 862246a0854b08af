"""Client text is in the audit log, if there is one, and in no log line, traceback or metric."""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from doll_service import TOKEN, WRITER, Ask, name_of
from PIL import Image, PngImagePlugin

from cskt.errors import NoAnswerError, StoreError
from cskt.gallery.gallery import Gallery
from cskt.service.middleware import IncompleteAnswerError, RequestMiddleware
from cskt.service.monitoring import Metrics, private_logging, trace_of

SECRET = "zanzibarian"
CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "asyncio")
"""Loggers of the tests' own client."""


class Log(logging.Handler):
    """Formats every record as a stream would."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] not in CLIENTS:
            self.lines.append(logging.Formatter("%(levelname)s %(name)s %(message)s").format(record))

    def text(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def log() -> Iterator[Log]:
    handler, root = Log(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


def picture(text: str) -> str:
    """A PNG with a comment, in base64."""
    facts, file = PngImagePlugin.PngInfo(), io.BytesIO()
    facts.add_text("Comment", text)
    Image.new("RGB", (20, 40)).save(file, "PNG", pnginfo=facts)
    return base64.b64encode(file.getvalue()).decode()


def everything(client: Any) -> list[int]:
    """Send the word in every place of valid and invalid requests, and return the statuses."""
    sentence = f"a {SECRET} man " * 40
    crop = {
        "image_id": f"{SECRET}/1",
        "image": picture(SECRET),
        "metadata": {"note": SECRET, f"{SECRET}_column": SECRET},
    }
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/api/crops", {"json": {"crops": [crop]}}),
        ("POST", "/api/crops", {"json": {"crops": [crop | {"image": SECRET}]}}),
        ("POST", "/api/crops", {"json": {"crops": [crop | {"image": base64.b64encode(SECRET.encode()).decode()}]}}),
        ("POST", "/api/crops", {"json": {"crops": [crop | {"metadata": {"time": SECRET}}]}}),
        ("POST", "/api/search", {"json": {"text": sentence, "exclude": [SECRET], "image": picture(SECRET)}}),
        ("POST", "/api/search", {"json": {"like": SECRET}}),
        *[
            ("POST", "/api/search", {"json": {"text": "a man", "where": where}})
            for where in (
                f"camera = '{SECRET}'", f"note LIKE '%{SECRET}%'", f"{SECRET} = 1", f"SHOW {SECRET}", f"'{SECRET}",
                f"ALTER TABLE {SECRET}", f"camera = {SECRET}(1)", f"DESCRIBE {SECRET} AS {SECRET}", f"/* {SECRET} */",
                f"image_id = '{SECRET}'",
            )
        ],
        ("POST", "/api/search", {"json": {"text": "a man", "group_by": SECRET}}),
        ("POST", "/api/search", {"json": {"text": "a man", SECRET: SECRET}}),
        ("POST", "/api/search", {"json": {"text": [SECRET]}}),
        ("POST", "/api/search", {"content": f'{{"text": "{SECRET}"', "headers": {"Content-Type": "application/json"}}),
        ("POST", "/api/search", {"content": SECRET, "headers": {"Content-Type": SECRET}}),
        ("POST", "/api/explain", {"json": {"text": sentence, "image_id": name_of(0)}}),
        ("POST", "/api/explain", {"json": {"text": "a man", "image_id": SECRET}}),
        ("POST", "/api/marks/export", {
            "json": {"format": "jsonl", "marks": [{"text": SECRET, "image_id": SECRET, "right": True}]}
        }),
        ("POST", "/api/session", {"json": {"token": SECRET}}),
        *[("GET", path, {"params": {"id": f"{SECRET}/1"}}) for path in ("/api/crop", "/api/thumbnail", "/api/image")],
        ("GET", f"/{SECRET}", {"params": {"q": SECRET}}), ("GET", f"/page/{SECRET}.js", {}),
        ("GET", "/api/gallery", {"headers": {"Host": SECRET}}),
        ("POST", "/api/search", {"json": {"text": "a"}, "headers": {"Origin": f"https://{SECRET}"}}),
        ("GET", "/api/gallery", {"headers": {"Authorization": f"Bearer {SECRET}", "Cookie": f"cskt_session={SECRET}"}}),
        (SECRET.upper(), "/api/search", {}),
        ("DELETE", "/api/crops", {"params": {"id": f"{SECRET}/1"}}),
    ]  # fmt: skip
    return [
        client.request(method, path, **{**sent, "headers": WRITER | sent.get("headers", {})}).status_code
        for method, path, sent in requests
    ]


def test_no_text_of_a_request_is_logged(
    ask: Ask, own_gallery: Gallery, log: Log, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = own_gallery.encoder.tokenizer
    monkeypatch.setattr(tokenizer, "known_ids", frozenset(tokenizer.encode("a man")))
    client = ask(own_gallery, token=TOKEN, keep_audit_log=False)
    statuses = everything(client)
    assert statuses.count(200) >= 8 and not [status for status in statuses if status >= 500]
    assert SECRET not in log.text().lower()
    assert SECRET not in client.get("/metrics").text.lower()
    output = "".join(capfd.readouterr()).lower()
    assert SECRET not in output


def fail(error: Exception) -> Any:
    def failing(*_: Any, **__: Any) -> None:
        raise error

    return failing


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError(SECRET), "KeyError"),
        (RuntimeError(f"no field {SECRET}"), "RuntimeError"),
        (StoreError(f"lance error: cannot parse {SECRET}"), "it cannot be read or written"),
        (StoreError(f"/g: corrupt (LanceError(IO): {SECRET}); restore it"), "it is corrupt"),
        (StoreError(f"milvus:/g/crops.db: {SECRET}: [Errno 28] No space left on device"), "No space left on device"),
        (NoAnswerError(f"milvus://10.0.0.7: cannot parse {SECRET}"), "its server gives no answer"),
        (PermissionError(errno.EACCES, "Permission denied", f"/images/{SECRET}.jpg"), "Permission denied"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value[:10],
)
def test_no_text_of_a_failed_request_is_logged(
    ask: Ask, own_gallery: Gallery, log: Log, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    client = ask(own_gallery, token=TOKEN, keep_audit_log=False)
    client.app.state.service.worker.ready.result(300)  # type: ignore[attr-defined]
    for name in ("encode", "explain", "crop", "thumbnail", "add", "remove", "uploaded"):
        monkeypatch.setattr(own_gallery, name, fail(error))
    statuses = everything(client)
    assert len([status for status in statuses if status >= 500]) >= 8
    text = log.text()
    assert SECRET not in text.lower() and reason in text
    if isinstance(error, KeyError | RuntimeError):
        assert "POST /api/search failed" in text and "in failing" in text, "method, route and the place in the code"


def test_a_missing_original_is_logged_without_its_name(ask: Ask, own_gallery: Gallery, log: Log) -> None:
    (own_gallery.folder / "images" / name_of(0)).unlink()
    assert ask(own_gallery).get("/api/image", params={"id": name_of(0)}).status_code == 404
    assert "a requested original" in log.text() and name_of(0) not in log.text()


def test_an_error_in_the_middle_of_an_answer(log: Log) -> None:
    """The server may log the raised error: it contains neither the message nor the cause."""

    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError(SECRET)

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "method": SECRET, "path": f"/{SECRET}", "headers": []}
    with pytest.raises(IncompleteAnswerError) as caught:
        asyncio.run(RequestMiddleware(breaks, metrics=Metrics())(scope, None, send))  # type: ignore[arg-type]
    logging.getLogger("cskt.test").error("as a server logs it", exc_info=caught.value)
    assert "ValueError" in log.text() and SECRET not in log.text().lower()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_messages_of_other_packages_are_replaced_by_their_place(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> None:
        raise ValueError(SECRET)

    for name in ("uvicorn", "uvicorn.error"):  # a server of another test may have changed it
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    hook = threading.excepthook
    apart, stream = logging.getLogger("apart"), io.StringIO()
    apart.addHandler(logging.StreamHandler(stream))
    apart.propagate = False  # as pymilvus does
    with private_logging():
        apart.error("cannot parse %s", SECRET)
        logging.getLogger("another.client").error("cannot parse %s", SECRET)
        try:
            failing()
        except ValueError:
            logging.getLogger("uvicorn.error").exception("Exception in ASGI application for %s", SECRET)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(SECRET, UserWarning, stacklevel=1)
        thread = threading.Thread(target=failing)
        thread.start()
        thread.join()
        logging.getLogger("cskt.cli").info("kept as it is")
    text = log.text()
    assert SECRET not in text
    assert "another.client: error in test_private_log:" in text
    assert stream.getvalue().startswith("apart: error in test_private_log:") and SECRET not in stream.getvalue()
    assert "uvicorn.error: error in" in text and "py.warnings: warning in" in text
    assert "a thread failed" in text and text.count("in failing") == 2  # one traceback each
    assert "INFO cskt.cli kept as it is" in text
    assert threading.excepthook is hook
    logging.getLogger("other").error("free again: %s", SECRET)
    assert SECRET in log.text()


def test_a_trace_has_causes_and_places_but_no_messages() -> None:
    def inner() -> None:
        raise FileNotFoundError(errno.ENOENT, SECRET, SECRET)

    def outer() -> None:
        try:
            inner()
        except OSError as error:
            raise RuntimeError(SECRET) from error

    try:
        outer()
    except RuntimeError as error:
        text = trace_of(ExceptionGroup(SECRET, [error]))
    assert SECRET not in text
    assert text.index("FileNotFoundError: No such file or directory") < text.index("RuntimeError")
    assert "in inner" in text and "in outer" in text and "ExceptionGroup of 1" in text
