"""A stand-in for the Hugging Face Hub: the requests that `huggingface_hub` sends for one push and one load."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"
LARGE = (".safetensors", ".onnx", ".bin")
"""Files that the Hub stores by Git LFS."""
NO_BRANCH = "0" * 40


@dataclass
class Repository:
    """Commits, each a whole tree, and branches."""

    is_private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {NO_BRANCH: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": NO_BRANCH})

    def commit_of(self, revision: str) -> str | None:
        """Return the commit of a branch, or the commit itself; None if there is no such revision."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class Hub:
    """Repositories by name, uploaded large files by digest, and the requests as they came."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refused_status = 0
        """Status of every answer to a commit, if it is not 0."""

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a revision."""
        found = self.repositories[repository]
        return found.commits[found.commit_of(revision) or ""]

    def put(self, repository: str, files: dict[str, bytes], branch: str = "main", *, is_private: bool = False) -> str:
        """Store a commit with these files alone, and return its name."""
        found = self.repositories.setdefault(repository, Repository(is_private))
        name = hashlib.sha1(repr((repository, len(found.commits))).encode()).hexdigest()
        found.commits[name], found.branches[branch] = files, name
        return name


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Serve a hub on this machine, and yield its address."""

    class Bound(_Handler):
        pass

    Bound.hub = hub
    with ThreadingHTTPServer(("127.0.0.1", 0), Bound) as server:
        Bound.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Bound.address
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    address: str
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        match self._parts():
            case ["api", "models", owner, name, *rest] if found := self._readable(owner, name):
                revision = rest[1] if len(rest) > 1 else "main"
                commit = found.commit_of(revision)
                if commit is None:
                    self._answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
                elif rest[:1] == ["tree"]:
                    self._answer(200, [_entry(path, data) for path, data in found.commits[commit].items()])
                else:
                    self._answer(200, {"id": f"{owner}/{name}", "sha": commit, "private": found.is_private})
            case [owner, name, "resolve", revision, *path] if found := self._readable(owner, name):
                commit = found.commit_of(revision) or NO_BRANCH
                data = found.commits[commit]["/".join(path)]
                oid = _entry("/".join(path), data)["oid"]
                self._answer(200, data, {"ETag": f'"{oid}"', "X-Repo-Commit": commit})
            case _:
                self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:  # noqa: PLR0912  one case for each kind of request
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts, hub = self._parts(), self.hub
        if not self._has_token():
            self._answer(401, {"error": "Invalid username or password."})
            return
        match parts:
            case ["api", "validate-yaml"]:
                self._answer(200, {"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                if asked["organization"] == "not-mine":
                    self._answer(403, {"error": "You don't have the rights to create a model under this namespace"})
                elif name in hub.repositories:
                    self._answer(409, {"url": f"{self.address}/{name}"})
                else:
                    hub.repositories[name] = Repository(asked.get("visibility") == "private")
                    self._answer(200, {"url": f"{self.address}/{name}"})
            case ["api", "models", owner, name, "branch", branch]:
                found = hub.repositories[f"{owner}/{name}"]
                found.branches.setdefault(branch, found.branches["main"])
                self._answer(200, {})
            case ["api", "models", owner, name, "preupload", revision]:
                present = hub.files(f"{owner}/{name}", revision)
                self._answer(200, {"files": [_upload_mode(file, present) for file in json.loads(body)["files"]]})
            case [owner, name, "info", "lfs", "objects", "batch"]:
                self._answer(200, {"objects": [self._lfs_action(each) for each in json.loads(body)["objects"]]})
            case ["api", "models", owner, name, "commit", revision]:
                if hub.refused_status:
                    self._answer(hub.refused_status, {"error": "the disk is full"})
                else:
                    commit = self._commit(f"{owner}/{name}", revision, [json.loads(line) for line in body.splitlines()])
                    self._answer(
                        200, {"commitUrl": f"{self.address}/{owner}/{name}/commit/{commit}", "commitOid": commit}
                    )
            case _:
                self._answer(404, {"error": "not found"})

    def do_PUT(self) -> None:
        self.hub.large[self._parts()[-1]] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, {})

    def _commit(self, repository: str, branch: str, lines: list[dict[str, Any]]) -> str:
        files = dict(self.hub.files(repository, branch))
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        return self.hub.put(repository, files, branch)

    def _lfs_action(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return wanted | {"actions": {"upload": {"href": f"{self.address}/lfs/{wanted['oid']}"}}}

    def _readable(self, owner: str, name: str) -> Repository | None:
        found = self.hub.repositories.get(f"{owner}/{name}")
        return None if found is None or (found.is_private and not self._has_token()) else found

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _parts(self) -> list[str]:
        self.hub.requests.append(f"{self.command} {self.path}")
        path = urlsplit(self.path).path.replace(".git/info", "/info")
        return [unquote(part) for part in path.strip("/").split("/")]

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if path.endswith(LARGE):
        oid = hashlib.sha256(data).hexdigest()
        entry |= {"oid": oid, "lfs": {"oid": oid, "size": len(data), "pointerSize": 134}}
    return entry


def _upload_mode(file: dict[str, Any], present: dict[str, bytes]) -> dict[str, Any]:
    mode = "lfs" if file["path"].endswith(LARGE) else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
