"""`cskt serve` as a user starts and stops it."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command_line import typed

from cskt.embed import load
from cskt.gallery.gallery import Gallery

TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path, dolls: Path) -> Path:
    """A gallery of paper dolls."""
    folder = tmp_path_factory.mktemp("served") / "gallery"
    with Gallery.create(folder, load(tiny_backbone, device="cpu")) as made:
        made.index(dolls)
    return folder


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN, encoding="utf-8")
    path.chmod(0o600)
    return path


class Running:
    """A service in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.first_line = process.stdout.readline()
        found = re.search(r"http://[^ ]*/$", self.first_line.strip())
        assert found, (self.first_line, process.communicate())
        self.address = found[0]

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and content of an answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json", **headers})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def wait_until_ready(self) -> list[str]:
        """Return the health of the service once it is well."""
        said = []
        while True:
            status, content = self.ask("healthz")
            said.append(content["status"] if status == 200 else content["error"]["code"])
            if status == 200:
                return said
            assert said[-1] == "loading"
            time.sleep(0.02)

    def stop(self, number: int) -> tuple[int, str]:
        """Exit code and what stood on stderr."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@contextmanager
def serving(command: str) -> Iterator[Running]:
    words = [sys.executable, "-m", *shlex.split(command)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=environment
    )  # fmt: skip
    try:
        yield Running(process)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_a_service_answers_and_stops_on_a_signal(gallery: Path) -> None:
    # A client has one request, whatever it says of its address.
    with serving(f"cskt serve {gallery} --port 0 --device cpu --rate 0.01") as service:
        assert service.first_line.startswith(f"Serving {gallery} (24 crops) at http://127.0.0.1:")
        service.wait_until_ready()
        claim, other_claim = ({"X-Forwarded-For": f"203.0.113.{number}"} for number in (1, 2))
        status, answer = service.ask("api/search", {"text": "a man in a red coat", "k": 5}, **claim)
        assert status == 200
        assert service.ask("api/search", {"text": "a man"}, **other_claim)[0] == 429
        with Gallery.open(gallery, device="cpu") as opened:
            expected = opened.search("a man in a red coat", 5)
        assert [hit["image_id"] for hit in answer["hits"]] == [hit.image_id for hit in expected]
        assert [hit["score"] for hit in answer["hits"]] == pytest.approx([hit.score for hit in expected], abs=1e-5)
        status, answer = service.ask("api/gallery", Origin="http://evil.example", Host="evil.example")
        assert status == 403 and answer["error"]["code"] == "wrong_host"
        code, err = service.stop(signal.SIGTERM)
    assert code == 0
    assert err.splitlines() == [
        "open to everybody who reaches the address: the page without crops, /docs, /openapi.json, /healthz",
        "searching, pictures and /metrics: everybody on this machine",
        "adding and deleting: nobody",
        f"requests are logged in {gallery / 'audit.jsonl'}",
    ]
    lines = [json.loads(line) for line in (gallery / "audit.jsonl").read_text().splitlines()]
    assert [(line["client"], line["text"], line["hits"]) for line in lines] == [("127.0.0.1", "a man in a red coat", 5)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_other_machines_need_the_token_and_requests_that_have_begun_are_finished(
    gallery: Path, token_file: Path
) -> None:
    token_file.chmod(0o644)
    flags = f"--host 0.0.0.0 --port 0 --token-file {token_file} --no-audit-log --rate 1000 --device cpu"
    with serving(f"cskt serve {gallery} {flags}") as service:
        service.address = service.address.replace("0.0.0.0", "127.0.0.1")
        # At once, while the model is still being loaded: they wait for it.
        answers: list[int] = []

        def ask() -> None:
            answers.append(service.ask("api/search", {"text": "a man"}, Authorization=f"Bearer {TOKEN}")[0])

        asked = [threading.Thread(target=ask) for _ in range(5)]
        for thread in asked:
            thread.start()
        assert service.ask("api/gallery")[0] == 401
        assert service.ask("api/gallery", Authorization="Bearer wrong")[0] == 401
        assert heads_and_bodies(service.address) == [(200, 0), (200, 1), (304, 0), (200, 1), (404, 0), (200, 1)]
        while _in_flight(service) < 6 and len(answers) < 5:
            time.sleep(0.01)
        code, err = service.stop(signal.SIGINT)
        for thread in asked:
            thread.join(30)
    assert code == 0 and answers == [200] * 5
    message = err.splitlines()
    assert len(message) == 6 and TOKEN not in err
    expected = (
        "chmod 600", "open to everybody", "and /metrics: only with a key, or signed in with one",
        "adding and deleting: only with a key", "other machines can reach this service", "audit log is off",
    )  # fmt: skip
    for line, part in zip(message, expected, strict=True):
        assert part in line


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_a_key_made_and_revoked_while_the_service_runs(gallery: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    first = typed(f"cskt keys {keys} --add alice").out.strip()
    with serving(f"cskt serve {gallery} --port 0 --key-file {keys} --require-token --no-audit-log") as service:
        second = typed(f"cskt keys {keys} --add detector --scope write").out.strip()
        asked = [service.ask("api/gallery", Authorization=f"Bearer {key}")[0] for key in (first, second, "wrong")]
        assert asked == [200, 200, 401] and service.ask("api/gallery")[0] == 401
        assert typed(f"cskt keys {keys} --revoke alice").out == "revoked: alice\n"
        asked = [service.ask("api/gallery", Authorization=f"Bearer {key}")[0] for key in (first, second)]
        assert asked == [401, 200]
        code, err = service.stop(signal.SIGTERM)
    assert code == 0 and f"keys: those in {keys}, which may change at any time" in err
    assert first not in err and second not in err
    [line] = typed(f"cskt keys {keys}").out.splitlines()
    assert line.split()[:2] == ["detector", "write"]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("", "no such file; to make one: cskt keys FILE --add NAME"),
        ("--revoke alice", "no such file"),
        ("--add token", "the name of a key must not be 'token'"),
        ("--scope write", "--scope is for a new key"),
        ("--add a --revoke b", "not allowed with argument"),
        ("--add a --scope admin", "invalid choice"),
    ],
)
def test_keys_that_are_refused(flags: str, reason: str, tmp_path: Path) -> None:
    assert reason in typed(f"cskt keys {tmp_path / 'keys.json'} {flags}").refusal()
    assert not list(tmp_path.iterdir())


def heads_and_bodies(address: str) -> list[tuple[int, int]]:
    """Status, and whether there was a body, of HEAD and GET in turn on one connection: none spoils the next."""
    found = []
    connection = http.client.HTTPConnection(address.removeprefix("http://").strip("/"), timeout=300)
    tag = ""
    for path, known in (("/page/app.js", False), ("/page/app.js", True), ("/page/nothing.js", False)):
        for method in ("HEAD", "GET"):
            place = path if method == "HEAD" else "/page/app.js"
            connection.request(method, place, headers={"If-None-Match": tag} if known and method == "HEAD" else {})
            answer = connection.getresponse()
            found.append((answer.status, int(bool(answer.read()))))
            assert answer.status == 304 or int(answer.headers["content-length"]) > 0
            tag = answer.headers["etag"] or tag
    connection.close()
    return found


def _in_flight(service: Running) -> float:
    """Requests that the service has on hand, the one that asks this included."""
    request = urllib.request.Request(service.address + "metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        found = re.search(r"^cskt_requests_in_flight (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found
    return float(found[1])


def test_a_port_in_use_is_one_line(gallery: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = typed(f"cskt serve {gallery} --port {port} --no-audit-log")
    assert outcome.refusal() == f"--port {port} is in use; choose another, or stop the program that has it"


def test_a_missing_model_ends_the_service(tmp_path: Path, tiny_backbone: Path) -> None:
    backbone = tmp_path / "gone.safetensors"
    backbone.write_bytes(tiny_backbone.read_bytes())
    Gallery.create(tmp_path / "own", load(backbone, device="cpu")).close()
    backbone.unlink()
    outcome = typed(f"cskt serve {tmp_path / 'own'} --port 0 --no-audit-log --device cpu")
    assert outcome.code == 2
    assert outcome.err.startswith("cskt serve: ") and "gone.safetensors" in outcome.err
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--host 0.0.0.0", "--host 0.0.0.0 lets other machines ask; give --token-file FILE"),
        ("--host ::", "give --token-file FILE"),
        ("--allow-host search.example.org", "--allow-host search.example.org lets other machines ask"),
        ("--host nowhere.invalid --token-file {token}", "--host nowhere.invalid: no such address"),
        ("--host 203.0.113.7 --token-file {token}", "no address of this machine"),
        ("--token-file nothing", "--token-file nothing: No such file"),
        ("--key-file nothing", "nothing: no such file; to make one: cskt keys FILE --add NAME"),
        ("--key-file {empty}", "to make one: cskt keys FILE --add NAME"),
        ("--require-token", "--require-token leaves nobody who can ask; give --token-file FILE"),
        ("--token-file {empty}", "the token has 0 characters; give it at least 16"),
        ("--port 70000", "port: input should be less than or equal to 65535, got 70000"),
        ("--proxy nginx", "--proxy: must be an address or a network, such as 127.0.0.1"),
        ("--rate 0", "rate: input should be greater than 0"),
        ("--max-k 20000", "more than the 10,000 best crops"),
        ("--audit-log /nowhere/audit.jsonl", "choose another place with --audit-log, or --no-audit-log"),
        ("--audit-log a --no-audit-log", "not allowed with argument"),
        ("--prot 8000", "did you mean --port?"),
        ("--demo dolls", "name the folder of a gallery, or give --demo FOLDER"),
    ],
)
def test_flags_that_are_refused(flags: str, reason: str, gallery: Path, token_file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    outcome = typed(f"cskt serve {gallery} {flags.format(token=token_file, empty=tmp_path / 'empty')}")
    assert reason in outcome.refusal()
    assert TOKEN not in outcome.err


def test_there_is_no_gallery(tmp_path: Path) -> None:
    assert "no gallery there; make one: cskt index" in typed(f"cskt serve {tmp_path}").refusal()
    assert "name the folder of a gallery" in typed("cskt serve").refusal()


def test_a_gallery_of_a_newer_version(gallery: Path, tmp_path: Path) -> None:
    content = json.loads((gallery / "gallery.json").read_text(encoding="utf-8"))
    (tmp_path / "gallery.json").write_text(json.dumps(content | {"format_version": 99}), encoding="utf-8")
    assert "made by a newer version of cskt" in typed(f"cskt serve {tmp_path}").refusal()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written(gallery: Path) -> None:
    log = gallery / "audit.jsonl"
    log.unlink(missing_ok=True)
    gallery.chmod(0o555)
    try:
        assert "--no-audit-log" in typed(f"cskt serve {gallery} --port 0").refusal()
    finally:
        gallery.chmod(0o755)
