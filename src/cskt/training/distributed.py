"""Several processes that train one model: the rows that each computes, and what they exchange.

All processes draw the same batches and the same augmentation from the same seed, so captions, identities and image ids
are known everywhere, and only images are divided:

    own images and captions -> own features -> gathered -> losses of the whole batch -> own gradients -> all-reduced

Every process computes a loss that compares pairs in full, and its gradient goes back into the rows of the process:
nothing is sent for it. A by-row loss (`Loss.by_row`) is computed where its rows are, as a share of the whole mean. The
sum of the gradients of all processes is then the gradient of one process with the whole batch, and all make the same
step. `data.batch_size` is the batch of all processes together. A single process has all rows and exchanges nothing.
"""

from __future__ import annotations

import datetime
import itertools
import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from cskt.errors import CsktError
from cskt.training.launch import Ranks, has_agent_store, num_restarts, read_ranks
from cskt.training.shutdown import CommonExit
from cskt.types import Batch
from cskt.utils.messages import one_line

T = TypeVar("T")

BUCKET_BYTES = 64 * 2**20
"""Gradients that are summed in one exchange; this much memory is taken for it."""
TIMEOUT = datetime.timedelta(minutes=30)
"""Time that a process waits for the others: rank 0 may rank the gallery of a large split meanwhile."""


class Traffic:
    """Bytes and seconds of the exchanges since the last `take`."""

    def __init__(self) -> None:
        self.clear()

    @contextmanager
    def measured(self, kind: str, num_bytes: int, device: torch.device) -> Generator[None, None, None]:
        """Measure an exchange; on CUDA by events in the stream, for which the host does not wait."""
        self._bytes[kind] += num_bytes
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
            return
        started = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - started

    def take(self, num_steps: int, seconds: float) -> dict[str, float]:
        """Return the bytes received in a step by kind, and the share of `seconds` spent in exchanges; then clear."""
        if not any(self._bytes.values()):
            return {}
        for begin, end in self._events:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1e3
        found = {f"{kind}_bytes": num_bytes / num_steps for kind, num_bytes in self._bytes.items()}
        found["exchange_share"] = self._seconds / seconds
        self.clear()
        return found

    def clear(self) -> None:
        """Start to measure from zero, by kinds of exchange as `metrics.jsonl` has named them since version 0.1.0."""
        self._bytes = dict.fromkeys(("gathered", "added_up"), 0)
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []


@dataclass(frozen=True)
class Processes(Ranks):
    """Processes of a training, as one of them sees them."""

    traffic: Traffic = field(default_factory=Traffic, compare=False, repr=False)

    def shares(self, num_rows: int) -> list[range]:
        """Return the rows of each process: consecutive, as even as possible, some perhaps empty."""
        bounds = [num_rows * rank // self.world_size for rank in range(self.world_size + 1)]
        return [range(start, stop) for start, stop in itertools.pairwise(bounds)]

    def share(self, num_rows: int) -> range:
        """Return the rows that this process computes.

        With fewer rows than processes, a process without a row computes the first row, which does not count: so all
        processes call the same functions.
        """
        return self.shares(num_rows)[self.rank] or range(1)

    def device(self, device: torch.device) -> torch.device:
        """Return the device of this process: on a machine with several GPUs each process has one."""
        if self.world_size == 1 or device.type == "cpu":
            return device
        if device.type != "cuda" or device.index is not None:
            raise CsktError(f"{self.world_size} processes cannot share device '{device}'; use --device cuda or cpu")
        if self.local_rank >= torch.cuda.device_count():
            raise CsktError(
                f"{self.local_world_size} processes on a machine with {torch.cuda.device_count()} GPUs; start torchrun"
                f" with --nproc-per-node {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def gather(self, own: Tensor, num_rows: int, width: int = 1) -> Tensor:
        """Return [num_rows * width, D] of all processes, in order and without gradient, from [b, D] of this one.

        `num_rows` were divided with `share`; each stands for `width` rows of D.
        """
        if self.world_size == 1:
            return own
        sizes = [width * len(share) for share in self.shares(num_rows)]
        own = own.detach()[: sizes[self.rank]]
        padded = F.pad(own, (0, 0, 0, max(sizes) - len(own)))  # all processes must send the same number of rows
        received = [torch.empty_like(padded) for _ in sizes]
        num_bytes = (self.world_size - 1) * padded.numel() * padded.element_size()
        with self.traffic.measured("gathered", num_bytes, own.device), _connection_errors():
            dist.all_gather(received, padded)
        return torch.cat([rows[:size] for rows, size in zip(received, sizes, strict=True)])

    def all_reduce_gradients(self, parameters: Iterable[Parameter], *, uneven: bool = False) -> None:
        """Replace the gradients by their sums over the processes.

        `uneven`: a parameter may have a gradient in some processes only, as an expert that no other process chose has;
        it is zero in the others. Otherwise all processes must have the same gradients.
        """
        if self.world_size == 1:
            return
        if uneven:
            parameters = list(parameters)
            held = self.all_reduce(torch.tensor([int(parameter.grad is not None) for parameter in parameters]))
            for parameter, number in zip(parameters, held.tolist(), strict=True):
                if number and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        with_gradient = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        while with_gradient:
            bucket, size = [with_gradient.pop()], 0
            while with_gradient and (size := size + bucket[-1][1].nbytes) < BUCKET_BYTES:
                bucket.append(with_gradient.pop())
            total = self._all_reduce_(torch.cat([gradient.flatten() for _, gradient in bucket]))
            pieces = torch.split(total, [gradient.numel() for _, gradient in bucket])
            for (parameter, gradient), piece in zip(bucket, pieces, strict=True):
                parameter.grad = piece.view_as(gradient)

    def all_reduce(self, values: Tensor) -> Tensor:
        """Return the sum over the processes; the argument is unchanged."""
        return values if self.world_size == 1 else self._all_reduce_(values.clone())

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return bool(self.all_reduce(torch.tensor(int(flag))))

    def min(self, number: int) -> int:
        """Return the smallest of the numbers of the processes."""
        return min(self._gather_objects(number))

    def run_on_rank0(self, make: Callable[[], T]) -> T:
        """Call a function in rank 0 only and return its result in all processes; if it fails, the others exit.

        Collective: every process must call it.
        """
        if self.world_size == 1:
            return make()
        outcome: list[Any] = [None, True]
        error: Exception | None = None
        if self.is_main_process:
            try:
                outcome = [make(), False]
            except Exception as caught:  # noqa: BLE001  (raised again below, after the others know of it)
                error = caught
        with _connection_errors():
            dist.broadcast_object_list(outcome)
        if error is not None:
            raise error
        result, failed = outcome
        if failed:
            raise SystemExit(2)
        return result

    def check_equal(self, facts: Mapping[str, object]) -> None:
        """Raise CsktError in every process if a fact differs between processes; the message names it."""
        own = dict(facts)
        for rank, other in enumerate(self._gather_objects(own)):
            for name in own | other:
                if own.get(name) != other.get(name):
                    raise CsktError(
                        f"process {self.rank} and process {rank} differ in {name}: {own.get(name)}, {other.get(name)};"
                        " give every machine the same command, version, data and weights"
                    )

    def _all_reduce_(self, values: Tensor) -> Tensor:
        """Sum in place."""
        with self.traffic.measured("added_up", values.nbytes, values.device), _connection_errors():
            dist.all_reduce(values)
        return values

    def _gather_objects(self, own: T) -> list[T]:
        if self.world_size == 1:
            return [own]
        received: list[Any] = [None] * self.world_size
        with _connection_errors():
            dist.all_gather_object(received, own)
        return received


SINGLE_PROCESS = Processes()


@dataclass(frozen=True)
class Rows:
    """Pairs of a batch that this process computes."""

    processes: Processes
    own: slice
    num_images: int
    """Images of the whole batch."""
    captions_per_image: int

    @classmethod
    def of(cls, batch: Batch, processes: Processes) -> Rows:
        """Return the rows of a batch that has the images of this process's share."""
        num_images = len(batch.image_ids)
        per_image = len(batch.pids) // num_images
        own = slice(per_image * batch.first_image, per_image * (batch.first_image + len(batch.images)))
        return cls(processes, own, num_images, per_image)

    @property
    def without_padding(self) -> range:
        """Own rows that count: all or none; see `Processes.share`."""
        images = self.processes.shares(self.num_images)[self.processes.rank]
        return range(self.captions_per_image * images.start, self.captions_per_image * images.stop)

    def gather(self, own: Tensor) -> Tensor:
        """Return [B, ...] of all processes from [b, ...]; the gradient of the whole goes into the own rows."""
        if self.processes.world_size == 1:
            return own
        kept = own[: len(self.without_padding)]
        flat = kept.reshape(len(kept), math.prod(own.shape[1:]))  # `flatten` refuses [b]
        flat = flat.to(torch.uint8) if own.dtype == torch.bool else flat
        whole = _Gather.apply(flat, self)  # type: ignore[no-untyped-call]
        return whole.view(len(whole), *own.shape[1:]).to(own.dtype)

    def share_of_mean(self, mean: Tensor, num_terms: int | Tensor | None = None) -> Tensor:
        """Return the share of the own mean in the mean of all, a scalar; it has `num_terms` terms, or one per row.

        If terms have weights, `num_terms` is the sum of the own weights. A tensor is not read: the host would wait for
        the device.

        Collective: every process must call it.
        """
        if self.processes.world_size == 1:
            return mean
        if num_terms is None:
            return mean * (len(self.without_padding) / (self.num_images * self.captions_per_image))
        own = torch.as_tensor(num_terms, dtype=torch.float64).detach() * bool(self.without_padding)
        total = self.processes.all_reduce(own)
        return mean * (own / total.where(total > 0, 1.0)).to(mean.dtype)


SINGLE_PROCESS_ROWS = Rows(SINGLE_PROCESS, slice(None), num_images=0, captions_per_image=1)
"""Rows of a single process."""


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: Rows) -> Tensor:
        ctx.own = slice(rows.without_padding.start, rows.without_padding.stop)
        return rows.processes.gather(own, rows.num_images, rows.captions_per_image)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.own], None


@contextmanager
def process_group() -> Generator[Processes, None, None]:
    """Connect the processes that `torchrun` started; all but rank 0 log errors only."""
    ranks = read_ranks()
    processes = Processes(**vars(ranks))
    if ranks.world_size == 1:
        yield processes
        return
    if dist.is_initialized():
        raise CsktError("torch.distributed is initialised already; cskt.train initialises it by itself")
    log = logging.getLogger("cskt")
    level = log.level
    # Before the group exists: a default argument there is the group at the time of the import, and keeps it alive.
    import torch.distributed.nn.functional  # noqa: PLC0415  (later, the first optimizer would import it)

    has_nccl = torch.cuda.is_available() and dist.is_nccl_available()
    ends_together = False
    try:
        if not ranks.is_main_process:
            log.setLevel(logging.ERROR)
        _connect(ranks, "cpu:gloo,cuda:nccl" if has_nccl else "gloo")
        yield processes
        ends_together = True
    except CommonExit:
        ends_together = True
        raise
    finally:
        log.setLevel(level)
        # This ends the threads of Gloo. A thread that frees a tensor while Python exits would abort the process.
        if dist.is_initialized() and (ends_together or not has_nccl):  # NCCL would wait for processes that failed
            dist.destroy_process_group()


def _connect(ranks: Ranks, backend: str) -> None:
    try:
        with _connection_errors():
            store, *_ = next(dist.rendezvous("env://", ranks.rank, ranks.world_size, timeout=TIMEOUT))  # type: ignore[attr-defined]
    except CsktError:
        raise
    except ValueError as error:  # of torch: no MASTER_ADDR or MASTER_PORT
        raise CsktError(f"{one_line(error)}; start with torchrun, or unset WORLD_SIZE") from None
    if has_agent_store():  # it still has the addresses of processes that ended before a restart
        store = dist.PrefixStore(f"attempt {num_restarts()}", store)  # type: ignore[attr-defined]
    with _connection_errors():
        dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world_size, timeout=TIMEOUT)


@contextmanager
def _connection_errors() -> Generator[None, None, None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise CsktError(
            f"lost contact with another process of this training; its own message says why ({reason})"
        ) from None
