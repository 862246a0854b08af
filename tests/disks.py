"""Small file systems and folders without write permission."""

from __future__ import annotations

import encodings.utf_8_sig  # noqa: F401  (Python loads it on first use, for which another user lacks the rights)
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(place: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a file system of a size in kB; skip the test if mounting is not allowed."""
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    if not hasattr(os, "geteuid") or os.geteuid():
        pytest.skip("only root may mount a small disk")
    if subprocess.run(["mount", *options], check=False, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def enlarge(place: Path, megabytes: int) -> None:
    """Enlarge a mounted file system."""
    subprocess.run(["mount", "-o", f"remount,size={megabytes}m", str(place)], check=True)


@contextmanager
def another_user() -> Iterator[None]:
    """Run the block as the user `nobody` if this process is root, which has all rights."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@contextmanager
def without_rights(folder: Path) -> Iterator[None]:
    """Make everything below a folder read-only and run the block as another user than root."""
    everything = [folder, *folder.rglob("*")]
    modes = [path.stat().st_mode for path in everything]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with another_user():
            yield
    finally:
        for path, mode in zip(everything, modes, strict=True):
            path.chmod(mode)
