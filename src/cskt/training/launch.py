"""What `torchrun` says of this process, in the environment."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from cskt.errors import CsktError
from cskt.utils.paths import inside

REFUSED = ".refused"
"""File in a run's folder: the launch that was refused there last."""
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Place:
    """This process among those that were started together."""

    rank: int
    count: int
    local_rank: int
    """Among those of the same machine."""
    local_count: int


def launched_as() -> Place:
    """This process's place; the only one where there is no launcher.

    Raises:
        CsktError: the environment is only half of torchrun's, as on clusters that set some of it for other programs.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return Place(0, 1, 0, 1)
    if missing := [name for name in NAMES if not os.environ.get(name, "").isdecimal()]:
        raise CsktError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {missing[0]} is no number; start with torchrun, or unset"
            " WORLD_SIZE to train in one process"
        )
    return Place(*(int(os.environ[name]) for name in NAMES))


def is_leader() -> bool:
    """Whether this is the process of a launch that writes and prints."""
    return launched_as().rank == 0


def is_restart(folder: Path | None) -> bool:
    """Whether `torchrun` has started this training before, and lost a process.

    Raises:
        CsktError: it might, and would not find what it has begun.
    """
    if may_restart() and folder is None:
        raise CsktError(
            "torchrun --max-restarts starts a run again, which must find its folder: use cskt train --output FOLDER"
        )
    if may_restart() and _several_machines() and shares_store():
        raise CsktError(
            "torchrun --max-restarts over several machines: they count restarts each for itself and may not find one"
            " another again; set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on all of them"
        )
    return num_restarts() > 0


def may_restart() -> bool:
    """Whether `torchrun` starts all processes again when one ends with an error."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def note_refusal(folder: Path) -> None:
    """Where a folder is another's run, let restarts of this launch know that it is none of theirs to go on with."""
    if may_restart():
        inside(folder, REFUSED, follow_links=False).write_text(_launcher(), encoding="utf-8")


def was_refused(folder: Path) -> bool:
    """Whether this launch has been refused there before it was restarted."""
    path = folder / REFUSED
    return path.is_file() and path.read_text(encoding="utf-8", errors="replace") == _launcher()


def _launcher() -> str:
    """The agent of torchrun that has started this process, which is the same over its restarts."""
    return f"{socket.gethostname()} {os.getppid()}"


def shares_store() -> bool:
    """Whether the processes meet in a store of `torchrun`, which outlives them and their restarts."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _several_machines() -> bool:
    return int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1


def num_restarts() -> int:
    """How often `torchrun` has started all processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def check_alone(what: str) -> None:
    """See that nobody shares out what cannot be shared.

    Raises:
        CsktError: `torchrun` has started several processes.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and (count := launched_as().count) > 1:
        raise CsktError(f"{what}: {count} processes would all do the same; torchrun is for one training, leave it out")
