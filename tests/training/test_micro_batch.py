"""The largest piece that the memory holds: the arithmetic with figures of our own, and the figures of this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cskt.errors import CsktError
from cskt.training import micro_batch
from cskt.training.context import TrainingContext, prepare
from cskt.training.micro_batch import fit_micro_batch
from cskt.types import Batch
from tiny_run import Configure

HELD = 1000
"""Bytes held before the first step, in the pretended memory."""
PER_PAIR, FIXED = 10_000_000, 5_000_000


@pytest.fixture
def context(configure: Configure) -> TrainingContext:
    return prepare(configure({"data.batch_size": 12, "loop.fit": True}))


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, context: TrainingContext) -> Callable[..., None]:
    """Pretend that a step of n pairs holds FIXED + n * PER_PAIR bytes above HELD, and that `free_bytes` are free."""

    def pretended(free_bytes: int, of_whole_batch: int = 0) -> None:
        nonlocal rest
        rest = of_whole_batch
        moments = micro_batch.BYTES_OF_MOMENTS * context.state.model.num_parameters(trainable_only=True)
        monkeypatch.setattr(
            micro_batch, "free_memory_bytes", lambda _: (free_bytes + moments) / micro_batch.USABLE_SHARE
        )
        monkeypatch.setattr(micro_batch, "held_memory_bytes", lambda _: HELD)
        monkeypatch.setattr(micro_batch, "_peak_bytes", peak_bytes)

    def peak_bytes(tried: TrainingContext, num_pairs: int) -> int:
        num_at_once = min(num_pairs, tried.config.loop.micro_batch_size or num_pairs)
        return (
            HELD
            + FIXED
            + num_at_once * PER_PAIR
            + (num_pairs * rest if num_pairs == tried.config.data.batch_size else 0)
        )

    rest = 0
    return pretended


@pytest.mark.parametrize(("pairs", "expected"), [(1, 1), (5, 5), (11, 11), (12, 12), (500, 12)])
def test_the_largest_number_of_pairs_that_memory_holds_is_used(
    context: TrainingContext, pretend: Callable[..., None], pairs: int, expected: int
) -> None:
    pretend(FIXED + pairs * PER_PAIR + PER_PAIR // 2)
    assert fit_micro_batch(context).config.loop.micro_batch_size == expected


def test_memory_of_the_losses_of_the_whole_batch_makes_pieces_smaller(
    context: TrainingContext, pretend: Callable[..., None]
) -> None:
    pretend(FIXED + 7 * PER_PAIR + PER_PAIR // 2, of_whole_batch=PER_PAIR // 4)  # three pairs' worth
    assert fit_micro_batch(context).config.loop.micro_batch_size == 3


def test_the_configured_size_of_pieces_is_not_measured(context: TrainingContext, pretend: Callable[..., None]) -> None:
    pretend(FIXED + 7 * PER_PAIR + PER_PAIR // 2)
    assert fit_micro_batch(micro_batch.with_micro_batch(context, 2)).config.loop.micro_batch_size == 7


def test_pieces_that_run_out_of_memory_are_halved(context: TrainingContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA a step that does not fit raises an error instead of a high peak."""
    limit, step = 6, micro_batch.forward_backward

    def forward_backward(tried: TrainingContext, batch: Batch, *arguments: Any) -> Any:
        if min(len(batch.pids), tried.config.loop.micro_batch_size or len(batch.pids)) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(tried, batch, *arguments)

    monkeypatch.setattr(micro_batch, "forward_backward", forward_backward)
    monkeypatch.setattr(micro_batch, "SMALL", 2)
    assert fit_micro_batch(context).config.loop.micro_batch_size == 6
    limit = 3
    with pytest.raises(CsktError, match="4 pairs take more memory than cpu has free; use --checkpoint-activations"):
        fit_micro_batch(context)


def test_pieces_contain_whole_images_only(configure: Configure, pretend: Callable[..., None]) -> None:
    pretend(FIXED + 7 * PER_PAIR + PER_PAIR // 2)
    assert (
        fit_micro_batch(
            prepare(configure({"data.batch_size": 12, "data.captions_per_image": 2}))
        ).config.loop.micro_batch_size
        == 6
    )


def test_memory_that_holds_not_even_one_image_is_an_error(
    context: TrainingContext, pretend: Callable[..., None]
) -> None:
    pretend(FIXED)
    with pytest.raises(
        CsktError, match=r"a single image takes 0\.0 GB, more than cpu has free; use --checkpoint-activations"
    ):
        fit_micro_batch(context)


def test_unknown_free_memory_is_an_error(context: TrainingContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batch, "free_memory_bytes", lambda _: 0)
    with pytest.raises(CsktError, match=r"cannot be read here; set loop\.micro_batch_size"):
        fit_micro_batch(context)


def test_a_tiny_batch_fits_and_measuring_changes_nothing(context: TrainingContext) -> None:
    before = {name: parameter.detach().clone() for name, parameter in context.state.model.named_parameters()}
    found = fit_micro_batch(context)
    assert found.config.loop.micro_batch_size == 12
    for name, parameter in context.state.model.named_parameters():
        assert parameter.grad is None and torch.equal(parameter, before[name]), name
    assert not context.state.optimizer.state


def test_measuring_leaves_buffers_of_the_loss_as_they_are(context: TrainingContext) -> None:
    objective = context.state.objective
    objective.register_buffer("num_calls", torch.zeros(()))
    calls: list[int] = []

    def count(*_: object) -> None:
        calls.append(1)
        objective.num_calls += 1

    objective.register_forward_pre_hook(count)
    fit_micro_batch(context)
    assert len(calls) > 2 and objective.num_calls == 0
