"""The largest piece that the memory holds: the arithmetic with figures of our own, and the figures of this machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cskt.training import fit
from cskt.training.fit import fitted
from cskt.training.setup import Session, prepare
from tiny_run import Configure

HELD = 1000
"""Bytes held before the first step, in the pretended memory."""
PER_PAIR, FIXED = 10_000_000, 5_000_000


@pytest.fixture
def session(configure: Configure) -> Session:
    return prepare(configure({"data.batch_size": 12, "loop.fit": True}))


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, session: Session) -> Callable[..., None]:
    """A memory in which a step of n pairs holds FIXED + n * PER_PAIR bytes above HELD, and in which `room` are free."""

    def pretended(room: int, of_whole_batch: int = 0) -> None:
        nonlocal rest
        rest = of_whole_batch
        moments = fit.BYTES_OF_MOMENTS * session.built.model.num_parameters(trainable_only=True)
        monkeypatch.setattr(fit, "free_memory_bytes", lambda _: (room + moments) / fit.SHARE)
        monkeypatch.setattr(fit, "held_memory_bytes", lambda _: HELD)
        monkeypatch.setattr(fit, "_peak_bytes", peak_bytes)

    def peak_bytes(tried: Session, num_pairs: int) -> int:
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
def test_as_many_pairs_as_the_memory_holds(
    session: Session, pretend: Callable[..., None], pairs: int, expected: int
) -> None:
    pretend(FIXED + pairs * PER_PAIR + PER_PAIR // 2)
    assert fitted(session).config.loop.micro_batch_size == expected


def test_what_the_losses_of_the_whole_batch_hold_makes_pieces_smaller(
    session: Session, pretend: Callable[..., None]
) -> None:
    pretend(FIXED + 7 * PER_PAIR + PER_PAIR // 2, of_whole_batch=PER_PAIR // 4)  # three pairs' worth
    assert fitted(session).config.loop.micro_batch_size == 3


def test_pieces_that_were_asked_for_are_not_what_is_measured(session: Session, pretend: Callable[..., None]) -> None:
    pretend(FIXED + 7 * PER_PAIR + PER_PAIR // 2)
    assert fitted(fit.in_pieces_of(session, 2)).config.loop.micro_batch_size == 7


def test_whole_images_only(configure: Configure, pretend: Callable[..., None]) -> None:
    pretend(FIXED + 7 * PER_PAIR + PER_PAIR // 2)
    assert (
        fitted(prepare(configure({"data.batch_size": 12, "data.captions_per_image": 2}))).config.loop.micro_batch_size
        == 6
    )


def test_not_even_one(session: Session, pretend: Callable[..., None]) -> None:
    pretend(FIXED)
    with pytest.raises(
        ValueError, match=r"a single image takes 0\.0 GB, more than cpu has free; use --checkpoint-activations"
    ):
        fitted(session)


def test_where_nobody_says_how_much_is_free(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "free_memory_bytes", lambda _: 0)
    with pytest.raises(ValueError, match=r"cannot be told here; set loop\.micro_batch_size"):
        fitted(session)


def test_on_this_machine_a_tiny_batch_fits_whole_and_nothing_is_left_behind(session: Session) -> None:
    before = {name: parameter.detach().clone() for name, parameter in session.built.model.named_parameters()}
    found = fitted(session)
    assert found.config.loop.micro_batch_size == 12
    for name, parameter in session.built.model.named_parameters():
        assert parameter.grad is None and torch.equal(parameter, before[name]), name
    assert not session.trainee.optimizer.state
