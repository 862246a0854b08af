"""Named keys: scopes, revocation while the service runs, names in the audit log, files that are refused."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doll_service import TOKEN, WRITER, Ask, name_of, refusal

from cskt.gallery.gallery import Gallery
from cskt.service.access.keys import MAX_KEYS, KeyFile, add_key, key_digest, revoke_key
from cskt.service.access.tokens import Tokens
from cskt.service.settings import ServiceSettings

SEARCH = {"text": "a man in a red coat", "k": 2}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_does_what_its_scope_says(
    ask: Ask, own_gallery: Gallery, key_file: Path, noted: Callable[[], Any]
) -> None:
    reader, writer = add_key(key_file, "alice", "read"), add_key(key_file, "detector", "write")
    client = ask(own_gallery, key_file=key_file, require_token=True)
    delete: Any = {"method": "DELETE", "url": "/api/crops", "params": {"id": name_of(0)}}
    for key in (reader, writer):
        assert client.post("/api/search", json=SEARCH, headers=bearer(key)).status_code == 200
    assert refusal(client.post("/api/search", json=SEARCH))[:2] == (401, "token_needed")
    assert refusal(client.request(**delete))[:2] == (401, "token_needed")
    status, code, message = refusal(client.request(**delete, headers=bearer(reader)))
    assert (status, code) == (403, "read_key") and "'alice' may only read" in message
    assert own_gallery.count() == 4
    assert client.request(**delete, headers=bearer(writer)).json() == {"removed": 1}
    assert refusal(client.get("/api/gallery", headers=bearer(key_digest(reader))))[:2] == (401, "wrong_token")
    lines = [(line["action"], line.get("key"), line.get("stage")) for line in noted()]
    assert lines == [
        ("search", "alice", None), ("search", "detector", None), ("refused-scope", "alice", None),
        ("delete", "detector", "asked"), ("delete", "detector", "ended"), ("refused-token", None, None),
    ]  # fmt: skip
    assert not any(secret in json.dumps(noted()) for secret in (reader, writer))


def test_a_revoked_key_and_its_sessions_end_at_once(
    ask: Ask, gallery: Gallery, key_file: Path, noted: Callable[[], Any]
) -> None:
    alice, _ = add_key(key_file, "alice", "read"), add_key(key_file, "bob", "read")
    client = ask(gallery, key_file=key_file, require_token=True)
    client.post("/api/session", json={"token": alice}).raise_for_status()
    assert client.post("/api/search", json=SEARCH).status_code == 200
    revoke_key(key_file, "bob")
    assert client.post("/api/search", json=SEARCH).status_code == 200, "another key was revoked"
    revoke_key(key_file, "alice")
    assert refusal(client.post("/api/search", json=SEARCH))[:2] == (401, "token_needed")
    assert refusal(client.post("/api/search", json=SEARCH, headers=bearer(alice)))[:2] == (401, "wrong_token")
    again = add_key(key_file, "alice", "read")
    assert client.post("/api/search", json=SEARCH).status_code == 401, "a new key does not revive a session"
    assert client.post("/api/search", json=SEARCH, headers=bearer(again)).status_code == 200
    lines = [(line["action"], line.get("key")) for line in noted()]
    assert lines == [
        ("session", "alice"), ("search", "alice"), ("search", "alice"), ("refused-token", None), ("search", "alice"),
    ]  # fmt: skip


def test_a_session_of_a_key_that_may_write_only_reads(ask: Ask, own_gallery: Gallery, key_file: Path) -> None:
    writer = add_key(key_file, "boss", "write")
    client = ask(own_gallery, key_file=key_file)
    client.post("/api/session", json={"token": writer}).raise_for_status()
    assert refusal(client.delete("/api/crops", params={"id": name_of(0)}))[:2] == (401, "token_needed")
    assert own_gallery.count() == 4


def test_the_token_is_one_more_key(ask: Ask, own_gallery: Gallery, key_file: Path, noted: Callable[[], Any]) -> None:
    reader = add_key(key_file, "alice", "read")
    client = ask(own_gallery, token=TOKEN, key_file=key_file)
    assert client.delete("/api/crops", params={"id": name_of(0)}, headers=WRITER).json() == {"removed": 1}
    assert client.post("/api/search", json=SEARCH).status_code == 200, "reading is open on this machine"
    assert client.post("/api/search", json=SEARCH, headers=bearer(reader)).status_code == 200
    assert [line.get("key") for line in noted()] == ["token", "token", None, "alice"]


def test_a_corrupt_key_file_lets_nobody_in_until_it_is_repaired(
    ask: Ask, gallery: Gallery, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alice = add_key(key_file, "alice", "read")
    client = ask(gallery, key_file=key_file, require_token=True)
    client.post("/api/session", json={"token": alice}).raise_for_status()
    text = key_file.read_text(encoding="utf-8")
    for broken in (None, "", "{}", text[:-4], text.replace('"read"', '"admin"')):
        key_file.unlink() if broken is None else key_file.write_text(broken, encoding="utf-8")
        caplog.clear()
        for headers in ({}, bearer(alice), bearer("wrong")):  # the first with the session
            status, code, message = refusal(client.post("/api/search", json=SEARCH, headers=headers))
            assert (status, code) == (503, "no_keys") and str(key_file) not in message
        assert str(key_file) in caplog.text and alice not in caplog.text
        assert client.get("/healthz").status_code in (200, 503)
    key_file.write_text(text, encoding="utf-8")
    assert client.post("/api/search", json=SEARCH).status_code == 200


def test_each_key_has_a_rate_of_its_own(ask: Ask, gallery: Gallery, key_file: Path) -> None:
    alice, bob = add_key(key_file, "alice", "read"), add_key(key_file, "bob", "read")
    client = ask(gallery, key_file=key_file, rate=1e-6, burst_seconds=2e6)
    client.post("/api/session", json={"token": alice}).raise_for_status()  # without a key so far: from the address

    def search(key: str | None = None) -> int:
        return client.post("/api/search", json=SEARCH, headers=bearer(key) if key else {}).status_code

    assert [search(alice), search(), search(alice), search()] == [200, 200, 429, 429], "a session uses its key's rate"
    assert [search(bob), search(bob), search(bob)] == [200, 200, 429], "all from one address"
    assert search("wrong") == 429, "a guess counts double, for its address"
    client.cookies.clear()
    assert [search(), search()] == [200, 429]


def test_reading_on_this_machine_can_need_a_key() -> None:
    assert not ServiceSettings(token=TOKEN).reading_needs_token
    assert ServiceSettings(token=TOKEN, require_token=True).reading_needs_token
    with pytest.raises(ValueError, match="--require-token leaves nobody .* --key-file"):
        ServiceSettings(require_token=True)
    assert ServiceSettings(host="0.0.0.0", key_file=Path("keys.json")).reading_needs_token


def test_the_file_holds_no_key(key_file: Path) -> None:
    secrets = [add_key(key_file, name, "read") for name in ("a", "b")]
    assert len({*secrets}) == 2 and all(len(secret) >= 43 for secret in secrets)
    text = key_file.read_text(encoding="utf-8")
    assert not any(secret in text for secret in secrets) and key_digest(secrets[0]) in text
    assert [(key.name, key.scope) for key in KeyFile(key_file).read()] == [("a", "read"), ("b", "read")]
    found = Tokens(None, key_file).find(secrets[1])
    assert found is not None and found.name == "b"
    assert Tokens(None, key_file).find(key_digest(secrets[1])) is None


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_warning_where_others_could_add_a_key(key_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    mask = os.umask(0)
    try:
        add_key(key_file, "alice", "read")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o644
    key_file.parent.chmod(0o755)
    Tokens(None, key_file)
    assert caplog.text == ""
    for path, mode in ((key_file, 0o664), (key_file.parent, 0o775), (key_file.parent, 0o757)):
        before = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode)
        Tokens(None, key_file)
        assert f"who can add keys; type: chmod go-w {path}" in caplog.text
        path.chmod(before)
        caplog.clear()
    key_file.parent.chmod(0o1777)  # in such a folder, like /tmp, only the owner can replace a file
    Tokens(None, key_file)
    assert caplog.text == ""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_change_keeps_the_permissions_of_the_file(key_file: Path) -> None:
    """Otherwise a service that runs as another user could not read it any more, and would accept no key."""
    add_key(key_file, "alice", "read")
    if os.getuid() == 0:
        os.chown(key_file, 0, 12345)
    key_file.chmod(0o640)
    before = key_file.stat()
    for mask in (0o077, 0o022):
        old_mask = os.umask(mask)
        try:
            add_key(key_file, "bob", "read")
            revoke_key(key_file, "bob")
        finally:
            os.umask(old_mask)
        after = key_file.stat()
        assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


@pytest.mark.parametrize("name", ["", "token", "a b", "ä", "-a", ".a", "a" * 65, "a\n", "a/b"])
def test_names_that_are_refused(key_file: Path, name: str) -> None:
    with pytest.raises(ValueError, match="the name of a key must"):
        add_key(key_file, name, "read")
    assert not key_file.exists()


def test_changes_that_are_refused(key_file: Path) -> None:
    with pytest.raises(ValueError, match="no such file; to make one: cskt keys"):
        revoke_key(key_file, "alice")
    assert not list(key_file.parent.iterdir())
    add_key(key_file, "alice", "read")
    before = key_file.read_bytes()
    with pytest.raises(ValueError, match="has a key 'alice' already; revoke it first"):
        add_key(key_file, "alice", "write")
    with pytest.raises(ValueError, match="has no key 'bob'"):
        revoke_key(key_file, "bob")
    assert key_file.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "token"}, "must not be 'token'"),
        ({"scope": "admin"}, "'keys.0.scope'"),
        ({"sha256": "ab"}, "64 hexadecimal digits"),
        ({"secret": "x"}, "the field 'keys.0.secret' is unknown"),
    ],
)
def test_key_files_that_are_refused(key_file: Path, changes: dict[str, str], reason: str) -> None:
    add_key(key_file, "alice", "read")
    content = json.loads(key_file.read_text(encoding="utf-8"))
    content["keys"][0] |= changes
    key_file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=reason):
        KeyFile(key_file)


def test_names_and_digests_are_unique_and_their_number_is_limited(key_file: Path) -> None:
    add_key(key_file, "alice", "read")
    content = json.loads(key_file.read_text(encoding="utf-8"))
    [key] = content["keys"]
    for other in (key | {"sha256": "0" * 64}, key | {"name": "bob"}):
        key_file.write_text(json.dumps({"format_version": 1, "keys": [key, other]}), encoding="utf-8")
        with pytest.raises(ValueError, match="keys with different values of"):
            KeyFile(key_file)
    many = [key | {"name": f"n{number}", "sha256": f"{number:064x}"} for number in range(MAX_KEYS)]
    key_file.write_text(json.dumps({"format_version": 1, "keys": many}), encoding="utf-8")
    with pytest.raises(ValueError, match="cannot hold more"):
        add_key(key_file, "alice", "read")
