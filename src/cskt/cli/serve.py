"""`cskt serve`: a gallery on a page in the browser, and as an HTTP API."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cskt.cli.parsing import Parser, given
from cskt.config import validate
from cskt.errors import CsktError, out_of_memory_errors
from cskt.utils.messages import require

if TYPE_CHECKING:
    from cskt.service.settings import ServiceSettings

DESCRIPTION = """\
Serve a gallery on a page, and to programs by HTTP, until Ctrl-C. By default only this machine has access, and nothing
can be written; the first lines say what is open. Requests are logged in GALLERY/audit.jsonl, with the name of the key
and sentences, without pictures.
"""
EXAMPLES = """\
examples:
  cskt serve --demo dolls                                  a gallery to try it on
  cskt serve my-gallery                                    then open http://127.0.0.1:8000/
  openssl rand -hex 32 > token && chmod 600 token
  cskt serve my-gallery --token-file token                 crops can be added and deleted by those who know the token
  cskt serve my-gallery --token-file token --host 0.0.0.0  other machines can ask, with the token
  cskt keys keys.json --add alice --scope read             a key for each person or program; --revoke alice ends it
  cskt serve my-gallery --key-file keys.json --require-token  nobody searches without a key, on this machine either
addresses:
  /  the page     /docs  the operations     /openapi.json  the same for programs     /healthz     /metrics
"""

log = logging.getLogger(__name__)


@out_of_memory_errors()
def main(argv: Sequence[str]) -> int:
    """See `cskt serve --help`."""
    flags = _flags(argv)
    require("serve", "fastapi", "uvicorn", "prometheus_client")
    # Imported here: they take seconds, and are an extra.
    from cskt.gallery.gallery import Gallery  # noqa: PLC0415
    from cskt.gallery.opening import check_place  # noqa: PLC0415
    from cskt.service.app import create_app  # noqa: PLC0415
    from cskt.service.server import address_of, listen, serve  # noqa: PLC0415

    settings = _settings(flags)
    folder = flags.gallery
    if flags.demo is not None:
        from cskt.cli.demo_gallery import build_demo_gallery  # noqa: PLC0415

        folder = build_demo_gallery(flags.demo, device=flags.device)
    with Gallery.open(folder, device=flags.device) as gallery, listen(settings.host, settings.port) as listener:
        check_place(gallery.folder, gallery.manifest.model)
        app = create_app(gallery, settings)
        _log_settings(settings, app.state.service.audit.path)
        print(f"Serving {gallery.folder} ({gallery.count():,} crops) at {address_of(listener)}", flush=True)
        serve(app, listener, settings)
    return 0


def _settings(flags: argparse.Namespace) -> ServiceSettings:
    from cskt.service.access.tokens import read_token  # noqa: PLC0415
    from cskt.service.settings import ServiceSettings  # noqa: PLC0415

    stated = given(flags, ("host", "port", "key_file", "require_token", "audit_log", "rate", "max_k"))
    if flags.allow_host:
        stated["allow_hosts"] = tuple(flags.allow_host)
    if flags.proxy:
        stated["proxies"] = tuple(flags.proxy)
    if flags.token_file:
        stated["token"] = read_token(flags.token_file)
    return validate(ServiceSettings, {**stated, "keep_audit_log": not flags.no_audit_log}, "", spelled=_as_flag)


def _as_flag(key: str) -> str:
    field = key.partition(".")[0]
    return {"proxies": "--proxy", "allow_hosts": "--allow-host"}.get(field, f"--{field.replace('_', '-')}")


def _log_settings(settings: ServiceSettings, audit_log: Path | None) -> None:
    """Log what is open to whom."""
    with_key = "only with a key in the header" if settings.has_keys else "nobody"
    reading = "only with a key, or signed in with one" if settings.reading_needs_token else "everybody on this machine"
    log.info("open to everybody who reaches the address: the page without crops, /docs, /openapi.json, /healthz")
    log.info("searching, pictures and /metrics: %s", reading)
    log.info("adding and deleting: %s", with_key)
    if settings.key_file is not None:
        log.info("keys: those in %s, which may change at any time", settings.key_file)
    if settings.for_other_machines:
        log.warning(
            "other machines can reach this service, with a key; it goes over the network unencrypted unless a reverse"
            " proxy provides TLS"
        )
    if audit_log is None:
        log.warning("the audit log is off")
    else:
        log.info("requests are logged in %s", audit_log)


def _flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="cskt serve", description=DESCRIPTION, epilog=EXAMPLES)
    add = parser.add_argument
    # fmt: off
    add("gallery", type=Path, nargs="?", metavar="GALLERY", help="folder of the gallery")
    add("--demo", type=Path, metavar="FOLDER",
        help="draw paper dolls into this folder, if they are not there, and serve them")
    add("--host", help="address to listen on (default: 127.0.0.1); any other needs --token-file or --key-file")
    add("--port", type=int, help="port to listen on (default: 8000); 0 lets the system choose")
    add("--allow-host", nargs="+", metavar="NAME",
        help="further names under which browsers reach the service, through a proxy for example; needs keys, too")
    add("--proxy", nargs="+", metavar="ADDRESS",
        help="addresses or networks of reverse proxies, whose X-Forwarded-For states the client's address")
    add("--token-file", type=Path, metavar="FILE",
        help="file with a secret of 16 characters or more: one key with full rights; writing always needs a key")
    add("--key-file", type=Path, metavar="FILE",
        help="file of named keys that read, or read and write, made by 'cskt keys'; changes hold at once")
    add("--require-token", action="store_true", default=None,
        help="let nobody search without a key, on this machine either")
    audit = parser.add_mutually_exclusive_group()
    audit.add_argument("--audit-log", type=Path, metavar="FILE",
        help="file of the audit log, one line per request (default: audit.jsonl in the gallery)")
    audit.add_argument("--no-audit-log", action="store_true", help="switch the audit log off")
    add("--rate", type=float, help="requests per second and client in the long run (default: 20)")
    add("--max-k", type=int, help="most hits of one search (default: 500)")
    add("--device", help="cpu, cuda, mps (default: the best one here)")
    # fmt: on
    flags = parser.parse(argv)
    if (flags.gallery is None) == (flags.demo is None):
        raise CsktError("name the folder of a gallery, or give --demo FOLDER for one of paper dolls")
    return flags
