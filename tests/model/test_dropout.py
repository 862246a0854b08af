"""Dropout of attention: against loops with hashes of Python's integers, its rate, and its independence of the batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from cskt.errors import CsktError
from cskt.model.blocks import quick_gelu
from cskt.model.clip import TextTower
from cskt.model.dropout import AttentionDropout, draw_seeds
from cskt.training.context import prepare
from tiny_run import ARCHITECTURE, plain_clip, quick_config

PROBABILITY = 0.3
END_ID = ARCHITECTURE.vocab_size - 1
CAPTIONS = torch.tensor([[END_ID - 1, 5, 77, 9, 300, END_ID], [END_ID - 1, 12, END_ID, 0, 0, 0]])


def hashed(number: int) -> int:
    """Wellons' lowbias32, on unsigned integers."""
    number &= 0xFFFFFFFF
    number = ((number ^ (number >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    number = ((number ^ (number >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return number ^ (number >> 16)


def is_kept(seed: int, block: int, head: int, query: int, key: int) -> bool:
    golden = 0x9E3779B9
    row = hashed(hashed(seed + golden * (block + 1)) + golden * (head * 2**16 + query))
    number = hashed(row + golden * key)
    return (number if number < 2**31 else number - 2**32) >= int(PROBABILITY * 2**32) - 2**31


def naive_end_token(tower: TextTower, ids: list[int], seed: int) -> Tensor:
    """The hidden end token of a caption, one head, query and key at a time."""
    x = tower.token_embedding.weight[ids] + tower.positional_embedding[: len(ids)]
    for index, block in enumerate(tower.blocks):
        query, key, value = block.attn.in_proj(block.ln_1(x)).chunk(3, dim=1)
        attended, width = torch.zeros_like(x), x.shape[1] // block.attn.heads
        for head in range(block.attn.heads):
            part = slice(head * width, (head + 1) * width)
            for place in range(len(ids)):
                weights = torch.softmax(key[: place + 1, part] @ query[place, part] / width**0.5, dim=0)
                for other in range(place + 1):
                    if is_kept(seed, index, head, place, other):
                        attended[place, part] += weights[other] * value[other, part] / (1 - PROBABILITY)
        x = x + block.attn.out_proj(attended)
        x = x + block.mlp.c_proj(quick_gelu(block.mlp.c_fc(block.ln_2(x))))
    return x[ids.index(END_ID)]


@pytest.fixture(scope="module")
def tower() -> TextTower:
    return plain_clip().text.requires_grad_(False)


def test_dropout_of_every_token_equals_naive_loops(tower: TextTower) -> None:
    seeds = torch.tensor([123456789, -987654321], dtype=torch.int32)
    dropout = AttentionDropout(PROBABILITY, seeds)
    found = tower.end_token(tower.place(CAPTIONS, 0), dropout=dropout)
    for row, ids, seed in zip(found, CAPTIONS.tolist(), seeds.tolist(), strict=True):
        torch.testing.assert_close(row, naive_end_token(tower, ids, seed), rtol=1e-4, atol=1e-5)
    # All tokens, from which the end tokens are picked, are the same.
    whole = tower(tower.place(CAPTIONS, 0), dropout=dropout)
    torch.testing.assert_close(torch.stack([whole[0, 5], whole[1, 2]]), found, rtol=1e-5, atol=1e-6)
    plain = tower.end_token(tower.place(CAPTIONS, 0))
    assert (plain - found).norm() > 0.05 * plain.norm()


def test_a_caption_depends_on_its_own_seed_alone(tower: TextTower) -> None:
    seeds = draw_seeds(2, torch.Generator().manual_seed(0))
    whole = tower.end_token(tower.place(CAPTIONS, 0), dropout=AttentionDropout(PROBABILITY, seeds))
    short = CAPTIONS[1:, :3]  # no padding
    alone = tower.end_token(tower.place(short, 0), dropout=AttentionDropout(PROBABILITY, seeds).of_rows(slice(1, 2)))
    torch.testing.assert_close(alone[0], whole[1], rtol=1e-5, atol=1e-6)
    other = tower.end_token(tower.place(short, 0), dropout=AttentionDropout(PROBABILITY, seeds[:1]))
    assert not torch.allclose(other, alone, atol=1e-3)


def test_weights_are_dropped_evenly_and_keep_their_mean() -> None:
    dropout = AttentionDropout(PROBABILITY, draw_seeds(64, torch.Generator().manual_seed(1)))
    weights = torch.ones(64, 4, 20, 25)
    dropped = [dropout.of_block(index).apply(weights, torch.arange(20), num_prefix=5) == 0 for index in range(3)]
    for each in dropped:
        assert abs(each.double().mean().item() - PROBABILITY) < 0.0065  # four standard deviations
        for dims in ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)):  # of sequences, heads, queries and keys
            shares = each.double().mean(dim=dims)
            deviation = (PROBABILITY * (1 - PROBABILITY) / (each.numel() / len(shares))) ** 0.5
            assert (shares - PROBABILITY).abs().max() < 4.5 * deviation
    for one, other in ((0, 1), (1, 2), (0, 2)):  # blocks are independent
        both = (dropped[one] & dropped[other]).double().mean().item()
        assert abs(both - PROBABILITY**2) < 0.004
    kept = dropout.apply(weights, torch.arange(20))
    assert kept.max().item() == pytest.approx(1 / (1 - PROBABILITY))


def test_columns_of_a_prefix_do_not_depend_on_the_number_of_tokens() -> None:
    dropout = AttentionDropout(PROBABILITY, draw_seeds(3, torch.Generator().manual_seed(2)))
    long = dropout.apply(torch.ones(3, 2, 6, 9), torch.arange(6), num_prefix=2)
    short = dropout.apply(torch.ones(3, 2, 4, 6), torch.arange(4), num_prefix=2)
    assert torch.equal(short[..., :4], long[:, :, :4, :4]) and torch.equal(short[..., 4:], long[:, :, :4, 7:])


def test_a_text_tower_with_prompts_is_refused(dolls, tiny_backbone) -> None:
    changes = {"augment.text_attention_dropout": 0.1}
    with pytest.raises(CsktError, match=r"text_attention_dropout 0\.1: the text tower has prompts"):
        prepare(quick_config(dolls, tiny_backbone, "cskt", changes))
    context = prepare(quick_config(dolls, tiny_backbone, "finetune", changes))
    assert dataclasses.asdict(context.config.augment)["text_attention_dropout"] == 0.1
