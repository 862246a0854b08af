"""Batches of captions: every caption once, at the least cost, with equal features."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import cskt
from cskt.embed.caption_batches import BATCH_TOKENS, caption_batches


def cost(lengths: Tensor, batches: list[Tensor], per_batch: int) -> int:
    return sum(len(batch) * int(lengths[batch].max()) + per_batch for batch in batches)


@given(st.lists(st.integers(3, 77), max_size=40), st.integers(1, 9), st.sampled_from(sorted(BATCH_TOKENS)))
def test_every_caption_is_in_one_batch(sizes: list[int], batch_size: int, device_type: str) -> None:
    lengths = torch.tensor(sizes, dtype=torch.int64)
    batches = caption_batches(lengths, batch_size, device_type)
    assert sorted(itertools.chain.from_iterable(batch.tolist() for batch in batches)) == list(range(len(sizes)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert [int(lengths[batch].max()) for batch in batches] == sorted(int(lengths[batch].max()) for batch in batches)


@given(st.lists(st.integers(3, 77), min_size=1, max_size=9))
def test_no_other_division_costs_less(sizes: list[int]) -> None:
    """Beside every division of the sorted captions between different lengths."""
    lengths, per_batch = torch.tensor(sizes), BATCH_TOKENS["cpu"]
    order = lengths.argsort(stable=True)
    steps = [place for place in range(1, len(sizes)) if lengths[order[place]] > lengths[order[place - 1]]]
    others = [
        cost(lengths, list(order.tensor_split(torch.tensor(chosen, dtype=torch.int64))), per_batch)
        for count in range(len(steps) + 1)
        for chosen in itertools.combinations(steps, count)
    ]
    assert cost(lengths, caption_batches(lengths, 64, "cpu"), per_batch) == min(others)


def test_a_gpu_computes_padding_rather_than_starting_kernels() -> None:
    lengths = torch.arange(10, 74)
    assert len(caption_batches(lengths, 64, "cuda")) == 1
    padded = cost(lengths, caption_batches(lengths, 64, "cpu"), 0)
    assert padded <= 1.2 * int(lengths.sum()) < len(lengths) * int(lengths.max())


def test_batches_change_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = cskt.load("clip-tiny", device="cpu")
    sentences = [" ".join(["a red coat"] * count) for count in (1, 9, 2, 20, 1, 5, 12)]
    features = encoder.encode_text(sentences)
    monkeypatch.setitem(BATCH_TOKENS, "cpu", 0)
    assert torch.allclose(encoder.encode_text(sentences), features, atol=1e-6)
    monkeypatch.setitem(BATCH_TOKENS, "cpu", 10**6)
    assert torch.allclose(encoder.encode_text(sentences), features, atol=1e-6)
    assert torch.allclose(torch.stack([encoder.encode_text(each) for each in sentences]), features, atol=1e-6)
