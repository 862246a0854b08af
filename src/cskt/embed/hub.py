"""Models on the Hugging Face Hub, as `cskt push` writes them: `hf:owner/name` and `hf:owner/name@revision`.

A repository is somebody else's: only the files that a model consists of are fetched, none of which can hold code, and
they are checked like those of every run (SECURITY.md). They stay in the cache of `huggingface_hub`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from cskt.config.file_names import BEST, CONFIG
from cskt.embed.exported import EXPORT_FILES, EXPORTED
from cskt.errors import CsktError
from cskt.utils.messages import one_line
from cskt.utils.paths import expanded

PREFIX = "hf:"
"""Start of a model argument that names a repository."""
CARD = "README.md"
FILES = (BEST, CONFIG, CARD, *EXPORT_FILES)
"""Files of a repository that are fetched."""
NAME = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w][\w./-]*))?", re.ASCII)


class HubName(NamedTuple):
    """A repository and a branch, tag or commit of it; None is its main branch."""

    repository: str
    revision: str | None = None


def is_hub_name(path: str | Path) -> bool:
    """Return whether a model argument names a repository of the Hub, and not a file or folder."""
    return str(path).startswith(PREFIX)


def parse_hub_name(path: str | Path) -> HubName:
    """Return the repository and revision that a model argument names.

    Example:
        >>> parse_hub_name("hf:lab/cskt-cuhk@v1")
        HubName(repository='lab/cskt-cuhk', revision='v1')
    """
    found = NAME.fullmatch(_text(path).removeprefix(PREFIX))
    if found is None:
        raise CsktError(f"{_text(path)[:200]}: write hf:owner/name, or hf:owner/name@revision")
    return HubName(found["repository"], found["revision"])


def hub_folder(path: str | Path) -> Path:
    """Return the folder with the files of a repository, fetched unless they are in the cache.

    Without a network, the cached files of the revision are used. A branch is looked up once per process.

    Raises:
        CsktError: no such repository or revision, no access, no network and no cached files, or no model in it.
    """
    return _fetched(_text(path))


def pinned(path: str | Path) -> str:
    """Return a model argument that names the same commit whatever is pushed later: `hf:owner/name@<commit>`."""
    return f"{PREFIX}{parse_hub_name(path).repository}@{hub_folder(path).name}"


def local_path(model: str | Path) -> Path:
    """Return the path of a model argument, `~` expanded; a model on the Hub is fetched first, unless it is cached."""
    return hub_folder(model) if is_hub_name(model) else expanded(model)


@contextmanager
def hub_bars() -> Iterator[None]:
    """Let huggingface_hub draw its progress bars at a terminal only, as all bars of this package."""
    from huggingface_hub.utils.tqdm import (  # noqa: PLC0415  (slow to import)
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _text(path: str | Path) -> str:
    return str(path).replace("\\", "/")  # pathlib writes it so on Windows


@lru_cache(maxsize=64)
def _fetched(name: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415  (slow to import)
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from cskt.model.io.hub_repository import HUB_ERRORS  # noqa: PLC0415

    repository, revision = parse_hub_name(name)
    try:
        with hub_bars():
            folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    except GatedRepoError:
        raise CsktError(f"{name}: its owner must grant you access; ask on the page of the repository") from None
    except RevisionNotFoundError:
        raise CsktError(f"{name}: the repository has no revision '{revision or 'main'}'") from None
    except RepositoryNotFoundError:
        remedy = "check the name; for a private one log in with 'hf auth login', or set HF_TOKEN"
        raise CsktError(f"{name}: no such repository, or a private one: {remedy}") from None
    except LocalEntryNotFoundError as error:
        reason = one_line(error.__cause__ or error)[:200]
        problem = f"the Hub cannot be reached, and the files are not cached ({reason})"
        raise CsktError(f"{name}: {problem}; connect and try again, or load a local copy of the folder") from None
    except HUB_ERRORS as error:
        raise CsktError(f"{name}: cannot be fetched: {one_line(error)[:300]}") from None
    if not any((folder / required).is_file() for required in (BEST, EXPORTED)):
        problem = f"holds no model of cskt ({BEST} or {EXPORTED})"
        raise CsktError(f"{name}: {problem}; CLIP weights of a repository are named without {PREFIX}")
    return folder
