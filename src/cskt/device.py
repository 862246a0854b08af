"""Which device computes, and in which arithmetic."""

from __future__ import annotations

import contextlib
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from cskt.errors import CsktError
from cskt.utils.messages import nearest

MEMORY_OF_PROCESS = Path("/proc/self/status")
"""Where Linux tells how much memory a process holds and has held."""
MEMORY_OF_MACHINE = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup")
"""Where Linux tells how much a container may hold."""
KINDS = ("auto", "cpu", "cuda", "mps")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", "bf16", "fp16")
NATIVE_BF16 = ("avx512_bf16", "amx_bf16")
"""Instructions with which a CPU multiplies bfloat16 numbers, in torch's words."""


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The device of that name; `auto` or none takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        CsktError: no such device here.
    """
    if isinstance(name, torch.device):
        return name
    if name is None or name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, colon, index = name.partition(":")
    if kind not in KINDS or (colon and not index.isdigit()):
        raise CsktError(f"unknown device '{name}': {nearest(kind, KINDS)}")
    available = {
        "cpu": not colon,
        "cuda": torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(kind, False):
        raise CsktError(f"device '{name}' is not available here; use --device auto or --device cpu")
    return torch.device(name)


def native_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 numbers by itself; others are slower with them than with float32."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in NATIVE_BF16)


def pick_precision(name: str, device: torch.device, exact: str = "fp32") -> str:
    """The precision of that name; `auto` takes bf16 on a CPU that multiplies it by itself, fp32 on others.

    On an accelerator `auto` is `exact`.

    Raises:
        CsktError: no such precision.
    """
    if name == "auto":
        return exact if device.type != "cpu" else "bf16" if native_bf16() else "fp32"
    if name not in PRECISIONS:
        raise CsktError(f"unknown precision '{name}': {nearest(name, ['auto', *PRECISIONS])}")
    return name


def arithmetic(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Autocast to bf16 or fp16 on `device`; float32 needs no context.

    Raises:
        CsktError: no such precision.
    """
    if precision == "fp32":
        return exact_convolutions(device)
    if precision not in DTYPES:
        raise CsktError(f"unknown precision '{precision}': {nearest(precision, PRECISIONS)}")
    return torch.autocast(device.type, dtype=DTYPES[precision])


def exact_convolutions(device: torch.device) -> AbstractContextManager[object]:
    """Float32 stays float32: cuDNN would round the patch convolution to TF32 by default."""
    if device.type != "cuda":
        return nullcontext()
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=True, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    )  # left out, each would be off


def reset_peak_memory(device: torch.device) -> None:
    """Let the peak be counted from now on, where that is possible: on CUDA, and on Linux for the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif MEMORY_OF_PROCESS.is_file():
        with contextlib.suppress(OSError):  # a container may forbid it; the peak is then that of the process so far
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def held_memory_bytes(device: torch.device) -> int:
    """Memory held now: CUDA's allocator's, else the process's; 0 where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _of_process("VmRSS:")


def free_memory_bytes(device: torch.device) -> int:
    """Memory that could be taken in addition: of the CUDA device, else of the machine; 0 where nobody counts."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu" or not MEMORY_OF_MACHINE.is_file():
        return 0
    free = _kilobytes(MEMORY_OF_MACHINE, "MemAvailable:")
    limit = CONTAINER / "memory.max"
    if limit.is_file() and (most := limit.read_text(encoding="ascii").strip()) != "max":
        used = int((CONTAINER / "memory.current").read_text(encoding="ascii"))
        # Of the files that were read, those not in use are given up as soon as memory is asked for.
        lines = (CONTAINER / "memory.stat").read_text(encoding="ascii").splitlines()
        given_up = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        free = min(free, int(most) - used + given_up)
    return max(free, 0)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held since `reset_peak_memory`: CUDA's allocator's, else the process's; 0 where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if MEMORY_OF_PROCESS.is_file():
        return _of_process("VmHWM:")
    if sys.platform == "darwin":
        import resource  # noqa: PLC0415  (absent on Windows)

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of the process so far: macOS cannot forget it
    return 0


def _of_process(name: str) -> int:
    return _kilobytes(MEMORY_OF_PROCESS, name) if MEMORY_OF_PROCESS.is_file() else 0


def _kilobytes(path: Path, name: str) -> int:
    """The figure of that name in one of Linux's tables, in bytes; 0 if it is not there."""
    lines = path.read_text(encoding="ascii").splitlines()
    line = next((line for line in lines if line.startswith(name)), None)
    return int(line.split()[1]) * 1024 if line else 0
