"""`cskt serve` behind nginx with deploy/nginx, as processes of this machine."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
HOST = "localhost"
OUTER = """\
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/conf.d/*.conf;
}}
"""
"""The part of nginx.conf around conf.d, with folders of the test."""


@dataclass
class Site:
    """A service behind nginx."""

    service_port: int
    port: int
    plain_port: int
    prefix: str
    """Path in front of the service, without a slash at its end."""
    folder: Path

    @property
    def address(self) -> str:
        """Address of the page."""
        return f"https://{HOST}:{self.port}{self.prefix}/"

    def ask(
        self, method: str, path: str, body: Any = None, *, sender: str = "127.0.0.1", **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Return status, headers and body of an answer to a client with this address."""
        trusted = ssl.create_default_context(cafile=str(self.folder / "cert.pem"))
        connection = http.client.HTTPSConnection(
            HOST, self.port, timeout=60, context=trusted, source_address=(sender, 0)
        )
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        data = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, self.prefix + path, data, {"Content-Type": "application/json", **named})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def write_configuration(site: Site) -> Path:
    """Write the shipped files with the ports and places of a site, and return the file for `nginx -c`."""
    shipped = REPOSITORY / "deploy" / "nginx"
    text = (shipped / "cskt.conf").read_text(encoding="utf-8")
    changes = {
        "listen 80 ": f"listen 127.0.0.1:{site.plain_port} ",
        "listen 443 ": f"listen 127.0.0.1:{site.port} ",
        "/etc/cskt/tls/": f"{site.folder}/",
        "/var/log/nginx/": f"{site.folder}/",
    }
    if site.prefix:  # as the comment in the file says
        changes |= {
            "location / {": f"location {site.prefix}/ {{",
            "location = /metrics {": f"location = {site.prefix}/metrics {{",
            "proxy_pass http://cskt;": "proxy_pass http://cskt/;",
        }
    for shipped_text, own_text in changes.items():
        assert shipped_text in text
        text = text.replace(shipped_text, own_text)
    upstream = (shipped / "upstream.conf").read_text(encoding="utf-8")
    assert "127.0.0.1:8000" in upstream
    (site.folder / "conf.d").mkdir()
    (site.folder / "conf.d" / "cskt.conf").write_text(text, encoding="utf-8")
    (site.folder / "conf.d" / "upstream.conf").write_text(
        upstream.replace("127.0.0.1:8000", f"127.0.0.1:{site.service_port}"), encoding="utf-8"
    )
    outer = site.folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # others cannot enter the folder of a test
    outer.write_text(OUTER.format(folder=site.folder, user=user), encoding="utf-8")
    return outer


def make_certificate(folder: Path) -> None:
    """Make a certificate as docs/deployment.md does, for `HOST`."""
    page = (REPOSITORY / "docs" / "deployment.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^openssl req -x509 .*$", page, re.MULTILINE)
    assert "search.example.org" in command
    words = command.replace("search.example.org", HOST).split()
    subprocess.run(words, cwd=folder, check=True, capture_output=True)


@contextmanager
def serving(command: list[str]) -> Iterator[int]:
    """Run `cskt serve` and yield its port."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "cskt", "serve", *command]
    with subprocess.Popen(words, stdout=subprocess.PIPE, encoding="utf-8", env=environment) as process:
        try:
            assert process.stdout is not None
            found = re.search(r":(\d+)/$", process.stdout.readline().strip())
            assert found
            yield int(found[1])
        finally:
            process.terminate()


@contextmanager
def proxying(site: Site) -> Iterator[Site]:
    """Run nginx in front of a service; its logs are complete afterwards."""
    assert NGINX is not None
    configuration = write_configuration(site)
    # -e: without it, nginx opens the log of the distribution first.
    words = [NGINX, "-e", str(site.folder / "error.log"), "-c", str(configuration)]
    with subprocess.Popen(words) as process:
        try:
            while True:
                try:
                    socket.create_connection((HOST, site.port)).close()
                    break
                except ConnectionRefusedError:
                    assert process.poll() is None, (site.folder / "error.log").read_text(encoding="utf-8")
                    time.sleep(0.02)
            yield site
        finally:
            process.terminate()
