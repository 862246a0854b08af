"""Check every link of the built site, and that no page fetches anything from another host.

    python tools/site/check_site.py build/site

MkDocs checks links in Markdown only; this also checks those of docstrings, navigation and HTML. Links to other hosts
are not requested. Every finding is a line `PAGE: reason`, and the exit code is 1 if there are any.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {("img", "src"), ("script", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}
"""Tag and attribute whose address a browser requests by itself."""
NOT_FETCHED = {"canonical", "prev", "next", "alternate"}
"""Values of `rel` of links that a browser does not request."""


class Addresses(HTMLParser):
    """Addresses and anchors of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Collect the anchors and the addresses of a tag; the latter with True if a browser fetches them."""
        values = dict(attributes)
        self.anchors |= {value for name in ("id", "name") if (value := values.get(name))}
        for name in ("href", "src"):
            if value := values.get(name):
                is_fetched = (tag, name) in FETCHED and values.get("rel") not in NOT_FETCHED
                self.links.append((value, is_fetched))


@cache
def addresses_of(page: Path) -> Addresses:
    """Return the addresses of a page."""
    addresses = Addresses()
    addresses.feed(page.read_text(encoding="utf-8"))
    return addresses


def findings(site: Path) -> Iterator[str]:
    """Yield a line for every broken link."""
    for page in sorted(site.rglob("*.html")):
        place = page.relative_to(site)
        for address, is_fetched in addresses_of(page).links:
            parts = urlsplit(address)
            if parts.scheme in ("http", "https") or parts.netloc:
                if is_fetched:
                    yield f"{place}: fetches {address} from another host"
                continue
            if parts.scheme:  # mailto:, data:
                continue
            base = site if parts.path.startswith("/") else page.parent
            target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else page.resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{place}: {address}: no such file"
            elif target.suffix == ".html" and unquote(parts.fragment) not in {"", *addresses_of(target).anchors}:
                yield f"{place}: {address}: no such anchor"


def main(arguments: list[str]) -> int:
    """Print the findings and return the exit code."""
    site = Path(arguments[0])
    lines = list(findings(site))
    num_pages = len(list(site.rglob("*.html")))
    print("\n".join(lines) or f"{num_pages} pages, no broken link")
    return int(bool(lines) or not num_pages)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
