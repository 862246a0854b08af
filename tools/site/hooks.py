"""Hooks of MkDocs: pages that are made by code, documents beside README.md, links between both, and equations.

The documents are written for a forge, where links are paths of the repository: `../README.md` in docs/, `docs/tour.md`
in README.md. `on_page_markdown` changes them into links of the site.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

import commands
import config_keys
import http_api
import inventory
import notebook
import python_api
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
BESIDE_README = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "NOTICE": "NOTICE.txt",
}
"""Document of the repository -> its place in the site."""
STYLE = Path(__file__).with_name("site.css")
MOVED = BESIDE_README | {"docs/notebook.ipynb": notebook.PATH}
ORIGIN = {site: repository for repository, site in BESIDE_README.items()}
GENERATED = {"COMMANDS": commands.SECTION, "PYTHON": python_api.SECTION}
"""Word of the navigation in mkdocs.yml -> folder whose pages replace it."""
LINK = re.compile(r"\]\(([^)\s#:]+)(#[^)\s]*)?\)")
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([\[(])(.*?)\\[\])]</\1>', re.DOTALL)


def made_pages() -> dict[str, str | bytes]:
    """Return path -> content of everything that is made by code."""
    return {
        **commands.pages(),
        **config_keys.pages(),
        **http_api.pages(),
        **inventory.pages(),
        **python_api.pages(),
        **notebook.pages(ROOT / "docs" / "notebook.ipynb"),
    }


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the pages, and put those of commands and of Python into the navigation."""
    config.extra["made_pages"] = made = made_pages()

    def replaced(item: Any) -> Any:
        if isinstance(item, dict):
            return {title: replaced(below) for title, below in item.items()}
        if isinstance(item, list) and len(item) == 1 and item[0] in GENERATED:
            return [path for path in made if path.startswith(f"{GENERATED[item[0]]}/")]
        return [replaced(below) for below in item] if isinstance(item, list) else item

    config.nav = replaced(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents beside README.md and the made pages."""
    for source, place in BESIDE_README.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, STYLE.name, abs_src_path=str(STYLE)))
    for place, content in config.extra.pop("made_pages").items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Change links to files of the repository into links of the site."""
    folder = posixpath.dirname(page.file.src_uri)
    source = ORIGIN.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        if not (ROOT / target).is_file():
            return link[0]
        place = MOVED.get(target, target.removeprefix("docs/"))
        if source == "docs/notebook.md" and target.endswith(".ipynb"):  # the file itself
            place = "notebook.ipynb"
        return f"]({posixpath.relpath(place, folder or '.')}{link[2] or ''})"

    return LINK.sub(moved, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Show equations as MathML, which browsers draw without a script."""
    return EQUATION.sub(
        lambda found: convert(html.unescape(found[3]), display="inline" if found[2] == "(" else "block"), content
    )
