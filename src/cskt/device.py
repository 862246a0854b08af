"""Devices, the arithmetic on them, and their memory."""

from __future__ import annotations

import contextlib
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from cskt.errors import CsktError
from cskt.utils.messages import nearest

PROCESS_MEMORY = Path("/proc/self/status")
"""Linux's table of the memory that a process has and has had."""
MACHINE_MEMORY = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup")
"""Linux's limits of a container."""
KINDS = ("auto", "cpu", "cuda", "mps")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", "bf16", "fp16")
NATIVE_BF16 = ("avx512_bf16", "amx_bf16")
"""Instructions that multiply bfloat16 numbers, by torch's names."""


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """Return the device of a name; `auto` and None take CUDA, then Apple's MPS, then the CPU."""
    if isinstance(name, torch.device) and name.type not in ("cuda", "mps"):
        return name
    name = None if name is None else str(name)
    if name is None or name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, colon, index = name.partition(":")
    if kind not in KINDS or (colon and not (index.isdecimal() and len(index) < 5)):
        raise CsktError(f"unknown device '{name}': {nearest(kind, KINDS)}")
    available = {
        "cpu": not colon,
        "cuda": torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(kind, False):
        raise CsktError(f"device '{name}' is not available here; use --device auto or --device cpu")
    return torch.device(name)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device; from the host to CUDA through pinned memory, without waiting for running work."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    # Only contiguous memory is copied without an intermediate one. The pinned memory is kept until the copy is done.
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


def native_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 numbers in hardware; other CPUs are faster with float32."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in NATIVE_BF16)


def pick_precision(name: str, device: torch.device, exact: str = "fp32") -> str:
    """Return the precision of a name; `auto` is bf16 on a CPU with `native_bf16`, fp32 on others, elsewhere `exact`."""
    if name == "auto":
        return exact if device.type != "cpu" else "bf16" if native_bf16() else "fp32"
    if name not in PRECISIONS:
        raise CsktError(f"unknown precision '{name}': {nearest(name, ['auto', *PRECISIONS])}")
    return name


def arithmetic(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return a context that computes in one of `PRECISIONS`: autocast, or for fp32 torch's own default.

    Matrix products are then exact, unless the program has called `torch.set_float32_matmul_precision`, or the variable
    `TORCH_ALLOW_TF32_CUBLAS_OVERRIDE` is 1, as in some containers. The towers have no convolution (`VisionTower`),
    which torch would round to TF32 on CUDA.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def reset_peak_memory(device: torch.device) -> None:
    """Measure the peak from now on, where that is possible: on CUDA, and on Linux for the whole process."""
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]  # before it, `cuda:0` has no statistics
        torch.cuda.reset_peak_memory_stats(device)
    elif PROCESS_MEMORY.is_file():
        with contextlib.suppress(OSError):  # a container may forbid it; the peak then includes the past
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def held_memory_bytes(device: torch.device) -> int:
    """Return the memory held now by CUDA's allocator, else by the process; 0 where the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _table_bytes(PROCESS_MEMORY, "VmRSS:")


def free_cached_memory(device: torch.device) -> None:
    """Give memory that CUDA's allocator keeps for later back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def free_memory_bytes(device: torch.device) -> int:
    """Return the memory still available on the CUDA device, else on the machine; 0 where it is not reported."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return 0
    free = _table_bytes(MACHINE_MEMORY, "MemAvailable:")
    limit = CONTAINER / "memory.max"
    if limit.is_file() and (most := limit.read_text(encoding="ascii").strip()) != "max":
        used = int((CONTAINER / "memory.current").read_text(encoding="ascii"))
        # Cached files that are not in use are released when memory is needed.
        lines = (CONTAINER / "memory.stat").read_text(encoding="ascii").splitlines()
        releasable = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        free = min(free, int(most) - used + releasable)
    return max(free, 0)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory held since `reset_peak_memory`; see `held_memory_bytes`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if PROCESS_MEMORY.is_file():
        return _table_bytes(PROCESS_MEMORY, "VmHWM:")
    if sys.platform == "darwin":
        import resource  # noqa: PLC0415  (absent on Windows)

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS cannot reset it
    return 0


def _table_bytes(path: Path, name: str) -> int:
    """Return an entry of one of Linux's tables in bytes; 0 if there is none."""
    lines = path.read_text(encoding="ascii").splitlines() if path.is_file() else []
    line = next((line for line in lines if line.startswith(name)), None)
    return int(line.split()[1]) * 1024 if line else 0
