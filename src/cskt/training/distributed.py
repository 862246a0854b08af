"""Several processes that train one model: which share of a batch each takes, and what passes between them.

Every process draws the same batches and the same augmentation from the same seed, so captions, identities and image
numbers are known everywhere, and images alone are shared out:

    own images and captions -> own features -> gathered -> the losses of the whole batch -> own gradients -> added up

A loss that compares pairs is computed in full by every process, and its gradient goes back into the process's own rows:
nothing is sent for it. What a loss gives to one row by itself (`losses.BY_ROW`) is computed where the row is, as its
share of the whole mean. Adding all gradients up then gives those of one process with the whole batch, and every process
makes the same step. `data.batch_size` is the batch of all processes together.

A single process is the case in which every share is the whole and nothing passes.
"""

from __future__ import annotations

import datetime
import itertools
import logging
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
from cskt.training.launch import launched_as, num_restarts, shares_store
from cskt.training.traffic import Traffic

Made = TypeVar("Made")

BUCKET_BYTES = 64 * 2**20
"""Of gradients that are added up in one exchange; as much memory is taken for it."""
PATIENCE = datetime.timedelta(minutes=30)
"""How long a process waits for the others: as long as the leader may rank the answers of a large split."""


@dataclass(frozen=True)
class Processes:
    """The processes of a training, as one of them sees them."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    """Among those of the same machine."""
    local_count: int = 1
    traffic: Traffic = field(default_factory=Traffic, compare=False, repr=False)

    def exchanged(self, num_steps: int, seconds: float) -> dict[str, float]:
        """What a process exchanged with others in a step: see `Traffic.take`; nothing where there are no others."""
        return {} if self.count == 1 else self.traffic.take(num_steps, seconds)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes, of which there is one."""
        return self.rank == 0

    def shares(self, num_rows: int) -> list[range]:
        """The rows of each process: in order, next to one another, and as even as can be; some may get none."""
        bounds = [num_rows * rank // self.count for rank in range(self.count + 1)]
        return [range(start, stop) for start, stop in itertools.pairwise(bounds)]

    def share(self, num_rows: int) -> range:
        """The rows that this process computes.

        Where there are fewer rows than processes, one without a row computes the first, which is counted elsewhere: so
        every process goes the same way.
        """
        return self.shares(num_rows)[self.rank] or range(1)

    def device(self, device: torch.device) -> torch.device:
        """Where this process computes: on a machine with several GPUs each process has one.

        Raises:
            CsktError: there are fewer GPUs than processes, or the device is not one that several can use.
        """
        if self.count == 1 or device.type == "cpu":
            return device
        if device.type != "cuda" or device.index is not None:
            raise CsktError(f"{self.count} processes cannot share device '{device}'; use --device cuda or cpu")
        if self.local_rank >= torch.cuda.device_count():
            raise CsktError(
                f"{self.local_count} processes on a machine with {torch.cuda.device_count()} GPUs; start torchrun with"
                f" --nproc-per-node {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def gather(self, own: Tensor, num_rows: int, width: int = 1) -> Tensor:
        """What each process has computed of its `share` -> all of it, in order and without gradient.

        Args:
            own: [b, D].
            num_rows: what was shared out; each counts `width` rows of D.

        Returns:
            [num_rows * width, D]
        """
        if self.count == 1:
            return own
        counts = [width * len(share) for share in self.shares(num_rows)]
        # All send as much as the one with the most; what is filled up is cut off again.
        own = own.detach()[: counts[self.rank]]
        padded = F.pad(own, (0, 0, 0, max(counts) - len(own)))
        received = [torch.empty_like(padded) for _ in counts]
        num_bytes = (self.count - 1) * padded.numel() * padded.element_size()
        with _in_contact(), self.traffic.measured("gathered", num_bytes, own.device):
            dist.all_gather(received, padded)
        return torch.cat([rows[:count] for rows, count in zip(received, counts, strict=True)])

    def add_up(self, parameters: Iterable[Parameter]) -> None:
        """Add the gradients of all processes up, so that each has the sum."""
        if self.count == 1:
            return
        with_gradient = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        while with_gradient:
            bucket, size = [with_gradient.pop()], 0
            while with_gradient and (size := size + bucket[-1][1].nbytes) < BUCKET_BYTES:
                bucket.append(with_gradient.pop())
            flat = torch.cat([gradient.flatten() for _, gradient in bucket])
            with _in_contact(), self.traffic.measured("added_up", flat.nbytes, flat.device):
                dist.all_reduce(flat)
            pieces = torch.split(flat, [gradient.numel() for _, gradient in bucket])
            for (parameter, gradient), piece in zip(bucket, pieces, strict=True):
                parameter.grad = piece.view_as(gradient)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes; the argument is left as it is."""
        if self.count == 1:
            return values
        total = values.clone()
        with _in_contact(), self.traffic.measured("added_up", values.nbytes, values.device):
            dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        return bool(self.sum(torch.tensor(int(flag))))

    def least(self, number: int) -> int:
        """The smallest of the processes' numbers."""
        return min(self._objects(number))

    def from_leader(self, make: Callable[[], Made]) -> Made:
        """What the leader makes, for all: whatever looks at files or the clock, or writes.

        Raises:
            Whatever `make` raises, in the leader. The others then end: one message is enough.
        """
        if self.count == 1:
            return make()
        outcome: list[Any] = [None, True]
        failure: ValueError | OSError | None = None
        if self.leads:
            try:
                outcome = [make(), False]
            except (ValueError, OSError) as error:
                failure = error
        with _in_contact():
            dist.broadcast_object_list(outcome)
        if failure is not None:
            raise failure
        made, failed = outcome
        if failed:
            raise SystemExit(2)
        return made

    def check_alike(self, facts: Mapping[str, object]) -> None:
        """See that all processes are about to do the same.

        Raises:
            CsktError: something differs, in every process; says what.
        """
        if self.count == 1:
            return
        for rank, other in enumerate(self._objects(dict(facts))):
            for name, value in facts.items():
                if other[name] != value:
                    raise CsktError(
                        f"process {self.rank} and process {rank} differ in {name}: {value}, {other[name]}; give every"
                        " machine the same command, version, data and weights"
                    )

    def _objects(self, own: Made) -> list[Made]:
        if self.count == 1:
            return [own]
        received: list[Any] = [None] * self.count
        with _in_contact():
            dist.all_gather_object(received, own)
        return received


ALONE = Processes()


@contextmanager
def joined() -> Generator[Processes, None, None]:
    """The processes that `torchrun` started, connected inside the `with` block; this one alone without it.

    All but the leader are quiet.

    Raises:
        CsktError: they do not find one another, or the environment is only half of torchrun's.
    """
    place = launched_as()
    if place.count == 1:
        yield Processes()
        return
    processes = Processes(place.rank, place.count, place.local_rank, place.local_count)
    log = logging.getLogger("cskt")
    level = log.level
    if not processes.leads:
        log.setLevel(logging.ERROR)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _in_contact():
        store, *_ = next(dist.rendezvous("env://", place.rank, place.count, timeout=PATIENCE))  # type: ignore[attr-defined]
        if shares_store():  # it still holds the addresses of processes that are no more
            store = dist.PrefixStore(f"attempt {num_restarts()}", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.count, timeout=PATIENCE)
    try:
        yield processes
    finally:
        log.setLevel(level)
    dist.destroy_process_group()  # not after an error: the others may never come to it


@contextmanager
def _in_contact() -> Generator[None, None, None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise CsktError(
            f"lost contact with another process of this training; its own message says why ({reason})"
        ) from None
