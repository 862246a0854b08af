"""Upload of a folder to a repository of the Hugging Face Hub, in one commit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from cskt.embed.hub import FILES, PREFIX, hub_bars, parse_hub_name
from cskt.errors import CsktError
from cskt.model.io.hub_repository import HUB_ERRORS
from cskt.utils.messages import one_line

LOG_IN = "log in with 'hf auth login', or set HF_TOKEN to a token that may write"


def check_repository(name: str) -> str:
    """Return `owner/name` of a REPO argument, which may begin with `hf:`."""
    found = parse_hub_name(name)
    if found.revision is not None:
        raise CsktError(f"{name}: a branch is named by --revision {found.revision}")
    return found.repository


def check_token() -> None:
    """Check that there is a token to upload with, in the environment or of `hf auth login`."""
    if get_token() is None:
        raise CsktError(f"no token of the Hugging Face Hub; {LOG_IN}")


def upload(
    folder: Path, repository: str, *, version: str, message: str, private: bool = False, revision: str | None = None
) -> str:
    """Upload the files of a folder, and delete files of an earlier model that it does not have.

    Args:
        folder: with files only.
        repository: `owner/name`; created if there is none.
        version: of cskt, for the log of the Hub.
        message: of the commit.
        private: create a private repository, and refuse a public one.
        revision: branch to commit to, created if there is none; None is the main branch.

    Returns:
        The model argument that loads exactly this commit: `hf:owner/name@<commit>`.

    Raises:
        CsktError: no access, no network, or `private` and a public repository.
    """
    api = HfApi(library_name="cskt", library_version=version)
    with _hub_errors(repository):
        api.create_repo(repository, private=private or None, exist_ok=True)
        is_public = private and not api.repo_info(repository).private  # create_repo does not change it
    if is_public:
        raise CsktError(f"{repository}: is public already; leave out --private, or choose another name")
    with _hub_errors(repository):
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        present = set(api.list_repo_files(repository, revision=revision))
        files = {path.name: path for path in sorted(folder.iterdir())}
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(name, path) for name, path in files.items()),
            *(CommitOperationDelete(name) for name in FILES if name in present - files.keys()),
        ]
        try:
            with hub_bars(), warnings.catch_warnings(action="ignore"):  # the Hub warns about metadata of the card
                commit = api.create_commit(repository, operations, commit_message=message, revision=revision)
        except (RuntimeError, ValueError) as error:  # huggingface_hub raises errors of large files as these
            raise _failed(repository, error.__cause__ or error) from None
    return f"{PREFIX}{repository}@{commit.oid}"


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Raise errors of the Hub and of the network as CsktErrors; all other errors are bugs."""
    try:
        yield
    except RepositoryNotFoundError:
        raise CsktError(f"{repository}: no such repository, or the token may not write to it; {LOG_IN}") from None
    except HfHubHTTPError as error:
        is_refused = error.response.status_code in (401, 403)
        reason = one_line(error.server_message or error)[:300]
        remedy = LOG_IN if is_refused else "no files were uploaded; try again"
        raise CsktError(f"{repository}: the Hub refused it: {reason}; {remedy}") from None
    except HUB_ERRORS as error:
        raise _failed(repository, error.__cause__ or error) from None


def _failed(repository: str, reason: BaseException) -> CsktError:
    return CsktError(f"{repository}: cannot be uploaded: {one_line(reason)[:300]}; try again")
