"""`cskt env`: versions, devices, extras and paths, for a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import cskt
from cskt.cli.parsing import Parser
from cskt.device import native_bf16
from cskt.model.io.cache import cache_folder
from cskt.utils.terminal import json_text, printable

DEVELOPMENT = "dev"
"""The extra of contributors; it names other extras and tools that no command needs."""


def main(argv: Sequence[str]) -> int:
    """See `cskt env --help`."""
    parser = Parser(
        prog="cskt env",
        description="Print the versions, devices, extras and paths that cskt uses. Paste the output into a bug report.",
    )
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of lines")
    flags = parser.parse(argv)
    facts = environment()
    if flags.json:
        print(json_text(facts, indent=1))
        return 0
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, each in value.items():
                print(printable(f"  {key}: {each}"))
        else:
            print(printable(f"{name}: {value}"))
    return 0


def environment() -> dict[str, Any]:
    """Return what a bug report needs: text, or a mapping of names to text, by heading."""
    return {
        "cskt": f"{cskt.__version__} ({Path(cskt.__file__).parent})",
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "devices": _devices(),
        "packages": {name: _version(name) for name in _requirements().get("", ())},
        "extras": {
            extra: ", ".join(f"{name} {_version(name)}" for name in names)
            for extra, names in sorted(_requirements().items())
            if extra not in ("", DEVELOPMENT)
        },
        "paths": {"weights cache": str(cache_folder()), "working folder": str(Path.cwd())},
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith("CSKT_")},
    }


def _devices() -> dict[str, str]:
    found = {
        "cpu": f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
        f"{', native bfloat16' if native_bf16() else ''}"
    }
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        found[f"cuda:{index}"] = (
            f"{properties.name}, {memory:.0f} GiB, capability {properties.major}.{properties.minor},"
            f" CUDA {torch.version.cuda}"
        )
    if torch.backends.mps.is_available():
        found["mps"] = "available"
    return found


def _requirements() -> dict[str, list[str]]:
    """Return extra -> packages that it installs; the empty extra is the core."""
    try:
        lines = importlib.metadata.requires("cskt") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return {}
    found: dict[str, list[str]] = {}
    for line in lines:
        extra = re.search(r"""extra == ["']([\w-]+)["']""", line)
        name = re.split(r"[^\w.\[\]-]", line, maxsplit=1)[0]
        if not name.startswith("cskt["):  # an extra that includes another
            found.setdefault(extra[1] if extra else "", []).append(name)
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
