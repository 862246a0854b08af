"""Which device computes, and in which arithmetic."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

import torch

from cskt.config import nearest

KINDS = ("auto", "cpu", "cuda", "mps")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The device of that name; `auto` or none takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ValueError: no such device here.
    """
    if isinstance(name, torch.device):
        return name
    if name is None or name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, colon, index = name.partition(":")
    if kind not in KINDS or (colon and not index.isdigit()):
        raise ValueError(f"unknown device '{name}': {nearest(kind, KINDS)}")
    available = {
        "cpu": not colon,
        "cuda": torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(kind, False):
        raise ValueError(f"device '{name}' is not available here; use --device auto or --device cpu")
    return torch.device(name)


def arithmetic(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Autocast to bf16 or fp16 on `device`; float32 needs no context.

    Raises:
        ValueError: no such precision.
    """
    if precision == "fp32":
        # cuDNN would round the patch convolution to TF32 by default.
        return torch.backends.cudnn.flags(allow_tf32=False) if device.type == "cuda" else nullcontext()
    if precision not in DTYPES:
        raise ValueError(f"unknown precision '{precision}': {nearest(precision, ['fp32', *DTYPES])}")
    return torch.autocast(device.type, dtype=DTYPES[precision])


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far: the allocator's on CUDA, else the process's resident set; 0 where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource  # noqa: PLC0415  (absent on Windows)

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
