"""CLIP weights of a Hugging Face repository, in the cache of `huggingface_hub`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from huggingface_hub import hf_hub_download, model_info
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from cskt.errors import CsktError
from cskt.model.io.cache import PUBLISHED, WEIGHT_FILES
from cskt.model.io.json_configs import PROCESSOR_CONFIGS
from cskt.model.io.tensors import is_index, shard_names

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10
HUB_ERRORS: tuple[type[Exception], ...] = (OSError, HFValidationError, HfHubHTTPError.__mro__[1])
"""Errors of huggingface_hub; the last one is the base of those of its HTTP library, which depends on its version."""


def fetch_repository(name: str) -> Path:
    """Return the weight file of a repository, downloaded with what belongs to it unless it is cached.

    Raises:
        CsktError: no such repository, no weight file in it, or no network.
    """
    problem = "it holds none of " + ", ".join(WEIGHT_FILES)
    unreachable = _reason_unreachable(name)
    fetch = partial(hf_hub_download, name, local_files_only=bool(unreachable))
    for weights, config in WEIGHT_FILES.items():
        try:
            fetch(config)
            path = Path(fetch(weights))
            for shard in shard_names(path) if is_index(path) else ():
                fetch(shard)
        except LocalEntryNotFoundError as error:  # no network; another name may still be in the hub's cache
            problem = unreachable or _first_line(error)
        except EntryNotFoundError:
            continue
        except HUB_ERRORS as error:
            problem = _first_line(error)
            break
        else:
            _fetch_processor(name, fetch)
            return path
    raise CsktError(
        f"backbone '{name}': neither a path, nor a published name ({', '.join(PUBLISHED)}),"
        f" nor a Hugging Face repository that can be reached; download its files and give their folder ({problem})"
    )


def _reason_unreachable(name: str) -> str:
    """Return why the Hub cannot be reached; empty if it answers.

    It is asked once. To fetch a file, huggingface_hub tries for minutes without a network.
    """
    try:
        model_info(name, timeout=TIMEOUT_SECONDS)
    except (HfHubHTTPError, HFValidationError):  # an answer; the fetch reports it
        return ""
    except HUB_ERRORS as error:
        return _first_line(error) or type(error).__name__
    return ""


def _fetch_processor(name: str, fetch: Callable[[str], str]) -> None:
    """Fetch the files of a repository that state the normalisation of its images, if it has any."""
    for file in PROCESSOR_CONFIGS:
        try:
            fetch(file)
        except LocalEntryNotFoundError:  # also where the repository has none and no cache says so
            log.info(
                "backbone '%s': no network, and no %s in the cache; if the repository has one, fetch it", name, file
            )
        except EntryNotFoundError:
            continue
        except HUB_ERRORS as error:
            reason = _first_line(error)
            raise CsktError(f"backbone '{name}': {file} cannot be fetched: {reason}; try again") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
