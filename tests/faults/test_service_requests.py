"""Ambiguous, oversized and pipelined requests, and the token in an address."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from attacked_service import SEARCH, ask, honest, metrics, unhurt
from raw_clients import HOST, JSON, WRITES, Raw, head, post
from service_process import TOKEN, Served

from fault_tries import record, tries

pytest.importorskip("fastapi")

TEST = "tests/faults/test_service_requests.py"
WRONG = "almost-the-right-token"
SMUGGLED = head("GET /api/crop?id=smuggled")
LENGTH, CHUNKED = f"Content-Length: {len(SMUGGLED)}\r\n", "Transfer-Encoding: chunked\r\n"
EMPTY = b"0\r\n\r\n"
MOST_BYTES = 48 * 2**20
"""Memory that the service may use for refused requests."""
AMBIGUOUS = {
    "two kinds of framing": head("POST /api/search", JSON, LENGTH, CHUNKED) + EMPTY,
    "two kinds, the other way round": head("POST /api/search", JSON, CHUNKED, LENGTH) + EMPTY,
    "two kinds, of a strange host": head("POST /", CHUNKED, LENGTH).replace(b"127.0.0.1", b"evil.example") + EMPTY,
    "two lengths": head("POST /api/search", JSON, LENGTH, "Content-Length: 2\r\n"),
    "two lengths in one": head("POST /api/search", JSON, "Content-Length: 2, 3\r\n"),
    "a signed length": head("POST /api/search", JSON, "Content-Length: +2\r\n"),
    "a negative length": head("POST /api/search", JSON, "Content-Length: -1\r\n"),
    "chunked twice": head("POST /api/search", JSON, CHUNKED, CHUNKED) + EMPTY,
    "chunked and more": head("POST /api/search", JSON, "Transfer-Encoding: identity, chunked\r\n") + EMPTY,
    "chunked in disguise": head("POST /api/search", JSON, "Transfer-Encoding: xchunked\r\n") + EMPTY,
    "a space before the colon": head("POST /api/search", JSON, "Transfer-Encoding : chunked\r\n") + EMPTY,
    "chunked in HTTP/1.0": head("POST /api/search", JSON, CHUNKED).replace(b"HTTP/1.1", b"HTTP/1.0") + EMPTY,
    "no chunk size": head("POST /api/search", JSON, CHUNKED) + b"ZZZ\r\n",
    "a negative chunk size": head("POST /api/search", JSON, CHUNKED) + b"-1\r\n",
    "a chunk longer than its size": head("POST /api/search", JSON, CHUNKED) + b"1\r\n{}\r\n",
    "two hosts": head("GET /healthz", HOST),
    "no host": head("GET /healthz").replace(HOST.encode(), b""),
    "a NUL": head("GET /healthz", "X-Nul: \0\r\n"),
    "a second line of a header that is none": head("GET /healthz", "Nothing\r\n"),
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no method": b"\r\n\r\n",
}


@pytest.fixture(autouse=True)
def _unhurt(attacked: Served) -> Iterator[None]:
    with unhurt(attacked):
        yield


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_requests_that_can_be_read_in_two_ways(kind: str, attacked: Served) -> None:
    """One error in the form of the service, then the end of the connection: what follows is not read as a request."""
    before = smuggled(attacked)
    with Raw(attacked) as client:
        client.send(AMBIGUOUS[kind] + SMUGGLED)
        answer = client.answer()
        assert answer.status in (400, 403) and answer.headers["x-content-type-options"] == "nosniff", answer
        assert json.loads(answer.body)["error"].keys() == {"code", "message", "request_id"}
        assert client.rest() == b""
    assert smuggled(attacked) == before
    record("a request is smuggled behind one that can be read in two ways", tried=1, test=TEST)


def smuggled(service: Served) -> list[str]:
    """The figures of the address that they are to reach."""
    return re.findall(r'cskt_requests_total\{.*route="/api/crop"\}.*', metrics(service))


def test_a_smuggled_request_would_be_noticed(attacked: Served) -> None:
    before = smuggled(attacked)
    assert ask(attacked, SMUGGLED).status == 404
    assert smuggled(attacked) != before


@pytest.mark.slow
def test_invalid_bytes_after_a_refusal(attacked: Served) -> None:
    """After an early answer, an invalid body closes the connection and logs no error."""
    number = tries(20, 500)
    for _ in range(number):
        with Raw(attacked) as client:
            client.send(head("POST /api/nothing", CHUNKED))
            assert client.answer().status == 404
            client.send(b"ZZZ\r\n")
            assert client.rest() == b""
    record("rubbish instead of the rest of a refused body", tried=number, test=TEST)


@pytest.mark.slow
def test_large_heads_and_bodies(attacked: Served) -> None:
    """They are refused by their length, or as soon as they are too large, and cost no memory."""
    before, blank = attacked.usage().rss, b" " * 2**16
    message = "Content-Length: 9999999999\r\n"
    endless = [
        (head("GET /healthz")[:-2] + b"X-Long: ", blank, 400), (head("POST /api/search", JSON, message), blank, 413),
        (head("POST /api/session", JSON, message), blank, 413), (head("POST /api/nothing", message), blank, 404),
        (head("POST /api/search", JSON, CHUNKED), b"10000\r\n" + blank + b"\r\n", 413),
    ]  # fmt: skip
    number = tries(2, 20)
    for begin, part, status in number * endless:
        with Raw(attacked) as client:
            client.send(begin)
            if status != 400 and CHUNKED.encode() not in begin:
                assert client.answer().status == status, "before a byte of it has come"
            num_sent = 0
            while client.send(part) and num_sent < MOST_BYTES:
                num_sent += len(part)
    assert attacked.usage().rss < before + MOST_BYTES
    record("bodies and heads of any size", tried=number * len(endless), test=TEST)


def flood(service: Served, requests: list[bytes]) -> list[int]:
    """The statuses of the answers to requests that are sent at once."""
    with Raw(service) as client:
        client.send(b"".join(requests))
        return [client.answer().status for _ in requests]


@pytest.mark.slow
def test_floods_of_requests(attacked: Served) -> None:
    """Hundreds of pipelined requests on each connection are answered in order and delay no other client."""
    kinds = [
        (head("GET /healthz"), 200), (head("GET /nothing"), 404), (post("/api/search", SEARCH), 200),
        (head("DELETE /healthz"), 405), (post("/api/search", {"text": ""}), 422),
    ]  # fmt: skip
    each, many, before = 150, 4, attacked.usage().rss
    asked = [[kinds[(number + which) % len(kinds)] for number in range(each)] for which in range(many)]
    for _ in range(rounds := tries(1, 30)):
        with ThreadPoolExecutor(many) as threads:
            floods = [threads.submit(flood, attacked, [request for request, _ in some]) for some in asked]
            while not all(done.done() for done in floods):
                honest(attacked)
        assert [done.result() for done in floods] == [[status for _, status in some] for some in asked]
    assert attacked.usage().rss < before + MOST_BYTES
    record("floods of requests on one connection", tried=rounds * each * many, test=TEST)


TOKEN_IN_ADDRESS = (
    ("GET", "/api/gallery"), ("GET", "/metrics"), ("POST", "/api/search"), ("POST", "/api/crops"),
    ("DELETE", "/api/crops"), ("GET", "/api/image"), ("POST", "/api/session"), ("GET", "/"), ("GET", "/nothing"),
)  # fmt: skip


def test_the_token_in_an_address(attacked: Served, filled_gallery: Path) -> None:
    """It gives no access there; neither it, nor a wrong one, nor a session is written to any log or metric."""
    crops, tried = honest(attacked), 0
    for method, path in TOKEN_IN_ADDRESS:
        for name in ("token", "access_token", "Authorization", "cskt_session"):
            for value in (TOKEN, f"Bearer%20{TOKEN}"):
                request = post(f"{path}?id={crops[0][0]}&{name}={value}", {"token": WRONG})
                request = request.replace(WRITES.encode(), b"").replace(b"POST ", f"{method} ".encode(), 1)
                status = ask(attacked, request).status
                assert status == (200 if path == "/" else 401), (method, path, status)
                tried += 1
    refused = post("/api/crops", {}).replace(TOKEN.encode(), WRONG.encode())
    assert ask(attacked, refused).status == 401 and ask(attacked, refused[:-2] + b"ZZ").status == 401
    assert ask(attacked, head("GET /healthz", "Nothing\r\n")).status == 400, "a head that bears it and is unreadable"
    signed_in = ask(attacked, post("/api/session", {"token": TOKEN}))
    session = signed_in.headers["set-cookie"].split(";")[0].partition("=")[2]
    cookie = post("/api/search", SEARCH).replace(WRITES.encode(), f"Cookie: cskt_session={session}\r\n".encode())
    assert len(session) > 20 and ask(attacked, cookie).status == 200

    audit = (filled_gallery / "audit.jsonl").read_text(encoding="ascii")
    assert '"refused-token"' in audit and SEARCH["text"] in audit
    command = " ".join(psutil.Process(attacked.process.pid).cmdline())
    written = audit + metrics(attacked) + attacked.errors.read_text(encoding="utf-8")
    for secret in (TOKEN, WRONG, session):
        assert secret not in written
    assert WRONG not in command and session not in command  # the token is in it: these tests hand their settings over
    record("the token is shown in an address", tried=tried, test=TEST)
