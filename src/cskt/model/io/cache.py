"""Locate the weight file of a backbone: in the package, in the cache, at a path, or on the network."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import urllib.request
from http.client import HTTPException
from importlib import resources
from pathlib import Path

from cskt.config.file_names import RELEASED_WEIGHTS
from cskt.errors import CsktError, FileSystemError, file_system_errors
from cskt.model.io.json_configs import OPEN_CLIP_CONFIG
from cskt.model.io.tensors import is_index, shard_paths
from cskt.utils.files import write_atomically
from cskt.utils.messages import nearest, one_line
from cskt.utils.paths import expanded

log = logging.getLogger(__name__)

_OPENAI = "https://openaipublic.azureedge.net/clip/models"
PUBLISHED = {
    "ViT-B/32": f"{_OPENAI}/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
    "ViT-B/16": f"{_OPENAI}/5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
    "ViT-L/14": f"{_OPENAI}/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
    "ViT-L/14@336px": f"{_OPENAI}/3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
}
"""OpenAI's vision transformers by name; the last folder of an address is the file's SHA-256."""

CLIP_TINY = "clip-tiny"
FORMER_CLIP_TINY = {"4e2dcf6fe536d5285795a8ed881d50707f174a924fc2a326cc3a79c9ace01ada": "0.1.0"}
"""SHA-256 of the files that earlier versions had under this name -> the last of these versions."""
WEIGHT_FILES = {
    "model.safetensors": "config.json",
    "model.safetensors.index.json": "config.json",
    "pytorch_model.bin": "config.json",
    "pytorch_model.bin.index.json": "config.json",
    "open_clip_model.safetensors": OPEN_CLIP_CONFIG,
    "open_clip_pytorch_model.bin": OPEN_CLIP_CONFIG,
}
"""Weight files, or indices of shards, of a folder or a Hugging Face repository, best first -> the config of each."""

SUFFIXES = {".pt", ".pth", ".bin", ".safetensors"}
TIMEOUT_SECONDS = 30


def cache_folder() -> Path:
    """Return the folder of downloaded weight files: `$CSKT_CACHE`, else `.cache/cskt` in the home folder."""
    return expanded(os.environ.get("CSKT_CACHE") or "~/.cache/cskt")


def locate(name: str) -> Path:
    """Return the file of clip-tiny, a published name, a path or a Hugging Face repository, downloaded if necessary.

    Raises:
        CsktError: not found, or no network; names the file to download and its place.
    """
    if name == CLIP_TINY:
        return Path(str(resources.files("cskt"))) / "assets" / "clip-tiny.safetensors"
    if name in PUBLISHED:
        return _fetch_published(name)
    path = expanded(name)
    if path.is_dir():
        names = (*WEIGHT_FILES, *RELEASED_WEIGHTS)
        found = next((path / weights for weights in names if (path / weights).is_file()), None)
        if found is None:
            raise CsktError(f"{path}: no weight file; expected one of {', '.join(names)}")
        return found
    if path.is_file():
        return path
    if path.exists():
        raise CsktError(f"{path}: a pipe or device, not a weight file; name a file or its folder")
    if is_repository_name(name):
        from cskt.model.io.hub_repository import fetch_repository  # noqa: PLC0415  (slow to import)

        return fetch_repository(name)
    raise CsktError(f"backbone '{name}': no such file; {nearest(name, [CLIP_TINY, *PUBLISHED])}")


def is_repository_name(name: str) -> bool:
    """Return whether a name has the form of a Hugging Face repository, `owner/name`, and not of a weight file."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)) and Path(name).suffix not in SUFFIXES


def published_sha256(name: str) -> str | None:
    """Return the SHA-256 of the file of a published name; None for any other name."""
    return PUBLISHED[name].split("/")[-2] if name in PUBLISHED else None


def label_of(sha256: str) -> str:
    """Return how messages name a weight file that they know by its digest."""
    version = FORMER_CLIP_TINY.get(sha256)
    return f"SHA-256 {sha256}" if version is None else f"{CLIP_TINY} of version {version}, SHA-256 {sha256}"


def is_openais(sha256: str) -> bool:
    """Return whether a digest is that of a weight file which OpenAI published."""
    return sha256 in {published_sha256(name) for name in PUBLISHED}


def weights_sha256(path: Path) -> str:
    """Return the SHA-256 of a weight file; of an index of shards, one over the digests of all shards."""
    if not is_index(path):
        return sha256_of(path)
    digests = sorted(sha256_of(shard) for shard in shard_paths(path))
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of the content of a file, in hexadecimal."""
    with file_system_errors(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def find_in_cache(sha256: str) -> Path | None:
    """Return the cached file with this content, whatever its name."""
    files = sorted(path for path in cache_folder().glob("*") if path.is_file() and not path.name.startswith("."))
    return next((path for path in files if sha256_of(path) == sha256), None)


def _fetch_published(name: str) -> Path:
    url = PUBLISHED[name]
    target = cache_folder() / url.split("/")[-1]
    if not target.is_file():
        log.info("downloading %s to %s", url, target)
        try:
            write_atomically(target, lambda temporary: _download(url, temporary, url.split("/")[-2]))
        except FileSystemError as error:
            reason = one_line(error.__cause__ or error)
            raise CsktError(f"backbone '{name}': download {url} and save it as {target} ({reason})") from None
    return target


def _download(url: str, path: Path, sha256: str) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer, path.open("wb") as stream:
            shutil.copyfileobj(answer, stream, length=1 << 20)
    except HTTPException as error:
        raise OSError(f"the connection was lost: {error!r}") from None
    if sha256_of(path) != sha256:
        raise OSError(f"the download from {url} does not have the published SHA-256")
