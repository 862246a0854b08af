"""Disks that fill up soon, and folders that close."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(place: Path, kilobytes: int) -> Iterator[Path]:
    """A disk of that size at a place, for the `with` block; without it the test is skipped where nobody may mount."""
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
    """Make room on such a disk while it is in use."""
    subprocess.run(["mount", "-o", f"remount,size={megabytes}m", str(place)], check=True)


@contextmanager
def another_user() -> Iterator[None]:
    """Let this process be nobody in particular where it is root, who may do all."""
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
    """Let nobody write below a folder, not even root: this process is another user meanwhile."""
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
