"""Access control: addresses, host names, origins, the token, a browser's session, the rate."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from doll_service import ADDRESS, TOKEN, WRITER, Ask, name_of, refusal
from starlette.testclient import TestClient

from cskt.config import validate
from cskt.errors import CsktError
from cskt.gallery.gallery import Gallery
from cskt.service.access.access_control import MAX_CLIENTS, RateLimiter
from cskt.service.access.tokens import MAX_SESSIONS, SESSION_SECONDS, Tokens, read_token
from cskt.service.app import create_app
from cskt.service.audit import AuditLog
from cskt.service.http_errors import ServiceError
from cskt.service.settings import ServiceSettings, is_loopback
from disks import enlarge, mounted

SEARCH = {"text": "a man in a red coat", "k": 2}
FAR = {"host": "0.0.0.0", "token": TOKEN}
FAR_ADDRESS = "http://192.168.1.7:8000"
READS = (
    ("GET", "/api/gallery", {}), ("POST", "/api/search", {"json": SEARCH}),
    ("POST", "/api/explain", {"json": {"text": "a man", "image_id": name_of(0)}}),
    ("GET", "/api/crop", {"params": {"id": name_of(0)}}), ("GET", "/api/thumbnail", {"params": {"id": name_of(0)}}),
    ("GET", "/api/image", {"params": {"id": name_of(0)}}),
    ("POST", "/api/marks/export", {"json": {"format": "csv", "marks": []}}), ("GET", "/metrics", {}),
)  # fmt: skip


def writes(crops: Path) -> list[tuple[str, str, dict[str, Any]]]:
    picture = base64.b64encode((crops / name_of(9)).read_bytes()).decode()
    return [
        ("POST", "/api/crops", {"json": {"crops": [{"image_id": "new", "image": picture}]}}),
        ("DELETE", "/api/crops", {"params": {"id": "new"}}),
    ]


def test_local_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.9.1", "localhost", "LocalHost", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "", "fe80::1")))


@pytest.mark.parametrize("changes", [{"host": "0.0.0.0"}, {"host": "::"}, {"allow_hosts": ("search.example.org",)}])
def test_other_machines_need_a_token(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="--token-file FILE"):
        ServiceSettings(**changes)
    assert ServiceSettings(**changes, token=TOKEN).reading_needs_token


def test_settings_never_show_the_token() -> None:
    for settings in ({"token": "too-short-secret"[:-1]}, {"token": TOKEN, "rate": 0}, {"token": TOKEN, "kolour": 1}):
        with pytest.raises(ValueError) as caught:
            ServiceSettings(**settings)
        assert str(settings["token"]) not in str(caught.value)
    assert TOKEN not in repr(ServiceSettings(token=TOKEN))


def test_reading_from_elsewhere_needs_the_token(ask: Ask, gallery: Gallery, noted: Callable[[], Any]) -> None:
    client = ask(gallery, FAR_ADDRESS, **FAR)
    for method, path, sent in READS:
        answer = client.request(method, path, **sent)
        assert refusal(answer)[:2] == (401, "token_needed"), path
        assert answer.headers["www-authenticate"] == "Bearer"
        assert client.request(method, path, **sent, headers=WRITER).status_code == 200, path
        wrong = client.request(method, path, **sent, headers={"Authorization": f"Bearer {TOKEN}x"})
        assert refusal(wrong)[:2] == (401, "wrong_token"), path
    refused = [line["path"] for line in noted() if line["action"] == "refused-token"]
    assert refused == [path for _, path, _ in READS]
    assert TOKEN not in json.dumps(noted())
    for path in ("/", "/docs", "/openapi.json", "/healthz", "/page/app.js"):
        assert client.get(path).status_code in (200, 503), path
    assert client.get("/api/gallery", headers=WRITER).json()["token_needed"] is True


def test_reading_from_this_machine_needs_no_token(ask: Ask, gallery: Gallery) -> None:
    client = ask(gallery, token=TOKEN)
    for method, path, sent in READS:
        assert client.request(method, path, **sent).status_code == 200, path
    wrong = client.get("/api/gallery", headers={"Authorization": "Bearer wrong"})
    assert refusal(wrong)[:2] == (401, "wrong_token"), "a wrong token is never passed over"


def test_writing_without_a_token_file_is_refused_with_the_remedy(ask: Ask, gallery: Gallery, crops: Path) -> None:
    client = ask(gallery)
    for method, path, sent in writes(crops):
        status, code, message = refusal(client.request(method, path, **sent))
        assert (status, code) == (403, "read_only") and "--token-file" in message
        assert client.request(method, path, **sent, headers=WRITER).status_code == 401, "no token is the right one"
    assert gallery.count() == 40


def test_writing_from_this_machine_needs_the_token(ask: Ask, own_gallery: Gallery, crops: Path) -> None:
    client = ask(own_gallery, token=TOKEN)
    for method, path, sent in writes(crops):
        assert refusal(client.request(method, path, **sent))[:2] == (401, "token_needed")
        for wrong in (f"Bearer {TOKEN[:-1]}", "Bearer", "Bearer  ", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN} x"):
            answer = client.request(method, path, **sent, headers={"Authorization": wrong})
            assert refusal(answer)[:2] == (401, "wrong_token"), wrong
    assert own_gallery.count() == 4


def test_a_session_reads_and_does_not_write(ask: Ask, own_gallery: Gallery, crops: Path) -> None:
    client = ask(own_gallery, FAR_ADDRESS, **FAR)
    answer = client.post("/api/session", json={"token": TOKEN}).raise_for_status()
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
    assert "Path" not in cookie, "the browser takes the folder of /api/session, with the prefix of a proxy"
    assert "Secure" not in cookie
    assert client.post("/api/search", json=SEARCH).status_code == 200
    for method, path, sent in writes(crops):
        assert refusal(client.request(method, path, **sent))[:2] == (401, "token_needed")
    assert own_gallery.count() == 4
    client.cookies.clear()
    client.cookies.set("cskt_session", "made-up")
    assert client.post("/api/search", json=SEARCH).status_code == 401
    encrypted = {"Origin": FAR_ADDRESS.replace("http:", "https:")}
    through_tls = client.post("/api/session", json={"token": TOKEN}, headers=encrypted).raise_for_status()
    assert "Secure" in through_tls.headers["set-cookie"]


def test_a_wrong_token_opens_no_session(ask: Ask, gallery: Gallery, noted: Callable[[], Any]) -> None:
    client = ask(gallery, FAR_ADDRESS, **FAR)
    answer = client.post("/api/session", json={"token": "wrong"})
    assert refusal(answer)[:2] == (401, "wrong_token") and "set-cookie" not in answer.headers
    assert [line["action"] for line in noted()] == ["refused-token"]
    assert refusal(ask(gallery).post("/api/session", json={"token": TOKEN}))[:2] == (403, "no_token")


def test_sessions_end_and_their_number_is_limited() -> None:
    now = 0.0
    tokens = Tokens(TOKEN, clock=lambda: now)
    [key] = tokens.valid_keys()
    first = tokens.new_session(key)
    now = SESSION_SECONDS - 1
    assert tokens.key_of_session(first) == key
    now = SESSION_SECONDS
    assert tokens.key_of_session(first) is None
    sessions = [tokens.new_session(key) for _ in range(MAX_SESSIONS + 1)]
    found = [tokens.key_of_session(session) for session in (sessions[0], sessions[1], sessions[-1])]
    assert found == [None, key, key]


def test_unknown_host_names_are_refused(ask: Ask, gallery: Gallery) -> None:
    client = ask(gallery)
    for host in (
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "",
        "[::1",
        "1/2",
    ):
        assert refusal(client.get("/api/gallery", headers={"Host": host}))[:2] == (403, "wrong_host"), host
    for host in ("localhost", "localhost:8000", "127.0.0.1:9", "[::1]:8000", "LOCALHOST:8000"):
        assert client.get("/api/gallery", headers={"Host": host}).status_code == 200, host


def test_host_names_of_a_service_for_other_machines(ask: Ask, gallery: Gallery) -> None:
    client = ask(gallery, FAR_ADDRESS, **FAR, allow_hosts=("search.example.org",))
    for host in ("search.example.org", "Search.Example.org:443", "192.168.1.7:8000", "[fe80::1]:8000"):
        assert client.get("/healthz", headers={"Host": host}).status_code in (200, 503), host
    assert refusal(client.get("/healthz", headers={"Host": "evil.example"}))[1] == "wrong_host"
    one = ask(gallery, FAR_ADDRESS, host="192.168.1.7", token=TOKEN)
    assert one.get("/docs").status_code == 200
    assert refusal(one.get("/docs", headers={"Host": "192.168.1.8"}))[1] == "wrong_host"


def test_pages_of_other_sites_are_refused(ask: Ask, own_gallery: Gallery, crops: Path) -> None:
    client = ask(own_gallery, token=TOKEN)
    for origin in ("https://evil.example", "null", "http://127.0.0.1:9000", "http://[", "https://127.0.0.1:8000.evil"):
        headers = WRITER | {"Origin": origin}
        for method, path, sent in (*writes(crops), ("POST", "/api/search", {"json": SEARCH})):
            assert refusal(client.request(method, path, **sent, headers=headers))[:2] == (403, "wrong_origin"), origin
    assert own_gallery.count() == 4
    own = client.post("/api/search", json=SEARCH, headers={"Origin": "http://127.0.0.1:8000"})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers


@pytest.mark.parametrize(
    ("headers", "asked"),
    [
        ({"X-Forwarded-Host": "search.example.org"}, "'search.example.org', the name that the browser asked for"),
        ({"X-Forwarded-Host": "search.example.org, inner"}, "'search.example.org', the name"),
        ({"Forwarded": 'for=192.0.2.1;proto=https;Host="search.example.org"'}, "'search.example.org', the name"),
        ({"Forwarded": "for=192.0.2.1"}, "the browser's name"),
        ({"Via": "1.1 proxy"}, "the browser's name"),
        ({"X-Forwarded-For": "192.0.2.1"}, "the browser's name"),
    ],
)
def test_a_proxy_that_sends_its_own_host_name_gets_the_remedy(
    ask: Ask, gallery: Gallery, headers: dict[str, str], asked: str
) -> None:
    client = ask(gallery)
    status, code, message = refusal(client.get("/api/gallery", headers={"Host": "backend:8000", **headers}))
    assert (status, code) == (403, "wrong_host")
    assert "'backend', which a proxy has sent as Host" in message and asked in message
    assert "proxy_set_header Host $host" in message and "--allow-host" in message
    assert client.get("/api/gallery", headers=headers).status_code == 200, "such headers decide nothing"
    plain = refusal(client.get("/api/gallery", headers={"Host": "backend:8000"}))[2]
    assert plain == "the service does not answer under 'backend'; start it with --allow-host and that name"


def test_a_proxy_that_rewrites_the_host_alone_gets_the_remedy(ask: Ask, gallery: Gallery) -> None:
    """Its requests look like those of another site: the address of the service as Host, that of the page as Origin."""
    headers = {"Host": "127.0.0.1:8000", "Origin": "https://search.example.org"}
    status, code, message = refusal(ask(gallery).post("/api/search", json=SEARCH, headers=headers))
    assert (status, code) == (403, "wrong_origin")
    assert "the proxy has sent Host: 127.0.0.1:8000 instead of search.example.org" in message
    assert "proxy_set_header Host $host" in message and "--allow-host search.example.org" in message
    named = ask(gallery, allow_hosts=("search.example.org",), token=TOKEN)
    message = refusal(named.post("/api/search", json=SEARCH, headers=headers | WRITER))[2]
    assert "proxy_set_header Host $host" in message and "--allow-host" not in message, "it has been named"
    passed_on = WRITER | headers
    for host in ("search.example.org", "search.example.org:443", "Search.Example.org"):
        assert named.post("/api/search", json=SEARCH, headers=passed_on | {"Host": host}).status_code == 200, host
    for host in ("search.example.org:80", "search.example.org:8443"):
        assert refusal(named.post("/api/search", json=SEARCH, headers=passed_on | {"Host": host}))[1] == "wrong_origin"


def test_a_client_over_the_rate_gets_the_seconds_to_wait(ask: Ask, gallery: Gallery) -> None:
    client = ask(gallery, rate=0.5, burst_seconds=6.0)
    assert [client.post("/api/search", json=SEARCH).status_code for _ in range(4)] == [200, 200, 200, 429]
    answer = client.post("/api/search", json=SEARCH)
    assert refusal(answer)[1] == "too_many_requests"
    assert 1 <= int(answer.headers["retry-after"]) <= 2
    assert all(client.get("/healthz").status_code != 429 for _ in range(5))


def test_thumbnails_cost_little(ask: Ask, gallery: Gallery) -> None:
    client = ask(gallery, rate=0.01, burst_seconds=100.0)
    found = [client.get("/api/thumbnail", params={"id": name_of(number)}).status_code for number in range(40)]
    assert found == [200] * 40
    assert client.get("/api/gallery").status_code == 429, "40 thumbnails leave less than a whole request"


def test_each_client_has_a_bucket_that_fills_at_its_rate() -> None:
    now = 0.0
    rates = RateLimiter(2.0, 4.0, clock=lambda: now)
    for _ in range(4):
        rates.spend("a", 1.0)
    with pytest.raises(ServiceError, match="try again in 1 s"):
        rates.spend("a", 1.0)
    rates.spend("b", 1.0)
    now = 0.5
    rates.spend("a", 1.0)
    with pytest.raises(ServiceError):
        rates.spend("a", 1.0)
    now = 1e6
    for _ in range(4):
        rates.spend("a", 1.0)
    with pytest.raises(ServiceError):
        rates.spend("a", 1.0)
    for number in range(MAX_CLIENTS):
        rates.spend(f"client {number}", 1.0)
    rates.spend("a", 1.0)  # forgotten among so many


@pytest.mark.parametrize(
    "content", ["", "   \n", "short", "fifteen-letters", "with a space in it!", "schlüssel-mit-umlaut"]
)
def test_token_files_that_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="--token-file") as caught:
        read_token(path)
    assert not content.strip() or content.strip() not in str(caught.value)


def test_token_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff" * 40)
    for path in (tmp_path / "none", tmp_path, tmp_path / "binary"):
        with pytest.raises(ValueError, match="name a file with a secret"):
            read_token(path)


def test_a_token_file_that_others_can_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n", encoding="utf-8")
    path.chmod(0o600)
    assert read_token(path) == TOKEN and not caplog.records
    path.chmod(0o640)
    with monkeypatch.context() as patch:
        patch.setattr("cskt.service.access.tokens.os", SimpleNamespace(name="nt"))
        assert read_token(path) == TOKEN and not caplog.records, "Windows keeps no such bits"
    assert read_token(path) == TOKEN and "chmod 600" in caplog.text


def test_the_audit_log_is_private_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    before = os.umask(0)
    try:
        logs = [AuditLog(path), AuditLog(path)]
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for number in range(6):
        logs[number % 2].record("::1", "search", text=f'"{number}"\n\r\x1b\u2028{{}}')
    lines = path.read_bytes().split(b"\n")
    assert [json.loads(line)["text"][1] for line in lines[:-1]] == list("012345") and lines[-1] == b""
    assert not any(byte < 32 or byte > 126 for line in lines for byte in line)
    for log in logs:
        log.close()


def test_the_audit_log_is_in_the_gallery_unless_switched_off(own_gallery: Gallery) -> None:
    for settings, kept in ((ServiceSettings(keep_audit_log=False), False), (ServiceSettings(), True)):
        app = create_app(own_gallery, settings)
        app.state.service.audit.record("::1", "search")
        app.state.service.audit.close()
        assert (own_gallery.folder / "audit.jsonl").exists() is kept


def test_an_audit_log_that_cannot_be_written_stops_the_service(gallery: Gallery, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--audit-log, or --no-audit-log"):
        create_app(gallery, ServiceSettings(audit_log=tmp_path / "nowhere" / "audit.jsonl"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_request_that_cannot_be_logged_is_not_answered(ask: Ask, gallery: Gallery) -> None:
    client = ask(gallery, audit_log=Path("/dev/full"))
    assert refusal(client.post("/api/search", json=SEARCH))[:2] == (503, "no_audit_log")
    assert refusal(client.get("/api/image", params={"id": name_of(0)}))[:2] == (503, "no_audit_log")
    assert client.get("/api/gallery").status_code == 200


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_change_that_cannot_be_logged_is_not_made(ask: Ask, own_gallery: Gallery, crops: Path) -> None:
    client = ask(own_gallery, audit_log=Path("/dev/full"), token=TOKEN)
    added, _ = writes(crops)
    for method, path, sent in (added, ("DELETE", "/api/crops", {"params": {"id": name_of(0)}})):
        assert refusal(client.request(method, path, **sent, headers=WRITER))[:2] == (503, "no_audit_log")
    assert own_gallery.count() == 4 and own_gallery.crop(name_of(0)).image_id == name_of(0)


def test_an_incomplete_line_stays_a_line_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with mounted(tmp_path / "disk", 4) as disk:
        log, numbers = AuditLog(disk / "audit.jsonl"), iter(range(10**6))
        for _ in range(2):  # after the first partial line there is no space for a line break
            with pytest.raises(ServiceError, match="cannot be written"):
                while True:
                    log.record("::1", "search", number=next(numbers))
        whole = next(numbers) - 2
        enlarge(disk, 1)
        log.record("::1", "search", number=-1)
        log.close()
        lines = (disk / "audit.jsonl").read_text(encoding="ascii").splitlines()
    assert [json.loads(line)["number"] for line in lines[:-2]] == list(range(whole))
    assert json.loads(lines[-1])["number"] == -1
    with pytest.raises(json.JSONDecodeError):
        json.loads(lines[-2])
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
        "no space for a whole line", "No space left on device",
    ]  # fmt: skip


def test_an_incomplete_line_stays_one_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('{"number": 0}\n{"numb', encoding="ascii")
    for number in (1, 2):
        log = AuditLog(path)
        log.record("::1", "search", number=number)
        log.close()
    lines = path.read_text(encoding="ascii").splitlines()
    assert [json.loads(lines[place])["number"] for place in (0, 2, 3)] == [0, 1, 2] and lines[1] == '{"numb'


def test_a_cancelled_request_is_logged(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")

    async def work() -> None:
        with log.audited("::1", "delete", {"image_ids": ["a"]}, changes=True):
            await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["action"], line["stage"], line.get("error")) for line in lines] == [
        ("delete", "asked", None), ("delete", "ended", "broken-off"),
    ]  # fmt: skip


def test_no_header_changes_the_address_of_a_client(ask: Ask, gallery: Gallery, noted: Callable[[], Any]) -> None:
    client = ask(gallery, rate=0.01, burst_seconds=100.0)
    claims = [
        {"X-Forwarded-For": "203.0.113.9"}, {"Forwarded": "for=203.0.113.9"}, {"X-Real-IP": "203.0.113.9"},
    ]  # fmt: skip
    assert [client.post("/api/search", json=SEARCH, headers=claim).status_code for claim in claims] == [200, 429, 429]
    assert [line["client"] for line in noted()] == ["testclient"]


def test_a_proxy_states_the_address_of_a_client(gallery: Gallery, tmp_path: Path, noted: Callable[[], Any]) -> None:
    settings = ServiceSettings(
        audit_log=tmp_path / "audit.jsonl", rate=0.01, burst_seconds=100.0, proxies=("10.0.0.0/8", "::1")
    )
    app = create_app(gallery, settings)

    def search(sender: str, forwarded: str) -> int:
        client = TestClient(app, base_url=ADDRESS, client=(sender, 4000))
        return client.post("/api/search", json=SEARCH, headers={"X-Forwarded-For": forwarded}).status_code

    with TestClient(app, base_url=ADDRESS):
        assert search("10.0.0.2", "192.0.2.1") == 200
        assert search("10.0.0.2", "192.0.2.1") == 429
        assert search("::1", "192.0.2.2") == 200
        assert search("10.0.0.2", "198.51.100.7, 192.0.2.2") == 429, (
            "what the client itself has written counts for nothing"
        )
        assert search("10.0.0.2", "192.0.2.3, 10.0.0.3") == 200, "two proxies in a row"
        assert search("192.0.2.4", "203.0.113.1") == 200
        assert search("192.0.2.4", "203.0.113.2") == 429, "no proxy"
    assert [line["client"] for line in noted()] == ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]


@pytest.mark.parametrize("text", ["nginx", "10.0.0.1/8", "", "*"])
def test_a_proxy_is_named_by_its_address(text: str) -> None:
    with pytest.raises(CsktError, match="must be an address or a network"):
        validate(ServiceSettings, {"proxies": (text,)}, "")
