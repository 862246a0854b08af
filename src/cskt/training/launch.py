"""Environment of this process as `torchrun` set it up: its rank, and how often the launch was restarted."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from cskt.errors import CsktError, file_system_errors
from cskt.utils.paths import inside

REFUSED = ".refused"
"""File of a run folder that names the launch that was last refused there."""
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Ranks:
    """Position of this process among the processes of a launch."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Rank among the processes of this machine."""
    local_world_size: int = 1

    @property
    def is_main_process(self) -> bool:
        """True in the one process that writes and prints, which has rank 0."""
        return self.rank == 0


def read_ranks() -> Ranks:
    """Return the ranks from the environment; those of a single process without a launcher."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return Ranks()
    if missing := [name for name in NAMES if not os.environ.get(name, "").isdecimal()]:
        raise CsktError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {missing[0]} is no number; start with torchrun, or unset"
            " WORLD_SIZE to train in one process"
        )
    return Ranks(*(int(os.environ[name]) for name in NAMES))


def check_single_process(command: str) -> None:
    """Raise CsktError if `torchrun` started several processes for a command that one process must run."""
    if "TORCHELASTIC_RUN_ID" in os.environ and (world_size := read_ranks().world_size) > 1:
        raise CsktError(
            f"{command}: {world_size} processes would all do the same; torchrun is for one training, leave it out"
        )


def num_restarts() -> int:
    """Return how often `torchrun` restarted all processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def check_restart_supported(folder: Path | None) -> None:
    """Raise CsktError if `torchrun` may restart this training, and the restart could not find the run again."""
    if _may_restart() and folder is None:
        raise CsktError(
            "torchrun --max-restarts starts a run again, which must find its folder: use cskt train --output FOLDER"
        )
    if _may_restart() and int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1 and has_agent_store():
        raise CsktError(
            "torchrun --max-restarts over several machines: they count restarts each for itself and may not find one"
            " another again; set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on all of them"
        )


def has_agent_store() -> bool:
    """Return whether the processes use the store of `torchrun`, which outlives them and their restarts."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def record_refusal(folder: Path) -> None:
    """Record that this launch was refused in a folder, so that its restarts do not resume the run of another."""
    if _may_restart():
        with file_system_errors(folder):
            inside(folder, REFUSED, follow_links=False).write_text(_launch_id(), encoding="utf-8")


def was_refused(folder: Path) -> bool:
    """Return whether this launch was refused in a folder before it was restarted."""
    path = folder / REFUSED
    with file_system_errors(path):
        return path.is_file() and path.read_text(encoding="utf-8", errors="replace") == _launch_id()


def _may_restart() -> bool:
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def _launch_id() -> str:
    """Return a name of the agent of torchrun that started this process; it is the same after a restart."""
    return f"{socket.gethostname()} {os.getppid()}"
