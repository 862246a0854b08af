"""Masked, hidden and dropped words: exact properties of every draw, and shares over many."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from cskt.config import AugmentConfig
from cskt.data.masking import MASK_ID, augment_captions, change_tokens, drop_tokens, mask_tokens, replace_by_mask
from cskt.data.tokenizer import END_ID, START_ID, Tokenizer

PROBABILITIES = (0.0, 0.15, 0.6, 1.0)
CAPTIONS = [
    "",
    "woman",
    "a man in a red shirt and a very long coat, walking.",
    "jekyll met jekyll",
    "a shirt that reads !% in white",
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def caption_ids() -> Tensor:
    """Captions with no word, one word, CLIP's mask word, and an id 0 (the "!" of "!%") before the end."""
    ids = Tokenizer()(CAPTIONS, pad_to_context=True)
    assert 0 in ids[4, : ids[4].argmax()]
    return ids


def many_words(num_captions: int = 400, num_words: int = 50) -> Tensor:
    words = torch.randint(1, 49_405, (num_captions, num_words), generator=generator(7))
    start, end = torch.full((num_captions, 1), START_ID), torch.full((num_captions, 1), END_ID)
    return torch.cat((start, words, end, torch.zeros(num_captions, 3, dtype=torch.int64)), dim=1)


def share(chosen: Tensor) -> float:
    return chosen.double().mean().item()


def test_the_mask_token_is_the_last_word_of_clip() -> None:
    assert Tokenizer().encode("jekyll") == [MASK_ID]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("probability", PROBABILITIES)
def test_masking_changes_words_only(caption_ids: Tensor, probability: float, seed: int) -> None:
    before = caption_ids.clone()
    ids, labels = mask_tokens(caption_ids, probability, generator(seed))
    assert torch.equal(caption_ids, before)
    assert ids.shape == labels.shape == caption_ids.shape and ids.dtype == labels.dtype == torch.int64
    asked = labels != 0
    assert torch.equal(labels[asked], caption_ids[asked])
    assert torch.equal(ids[~asked], caption_ids[~asked]), "start, end, padding and what is not asked for stay"
    assert ((labels[asked] >= 1) & (labels[asked] < MASK_ID)).all()
    assert ((ids[asked] >= 1) & (ids[asked] <= MASK_ID)).all()
    assert asked.any(dim=1)[[1, 2, 4]].all(), "every caption with words asks for something"
    assert not asked[0].any()
    if probability == 1:
        maskable = (caption_ids >= 1) & (caption_ids < MASK_ID)
        assert torch.equal(asked, maskable)


def test_where_no_word_is_chosen_the_first_is_masked(caption_ids: Tensor) -> None:
    ids, labels = mask_tokens(caption_ids, 0.0, generator())
    expected_ids, expected_labels = caption_ids.clone(), torch.zeros_like(caption_ids)
    for row in (1, 2, 4):  # row 0 has no word, row 3 starts with the mask word itself
        expected_ids[row, 1], expected_labels[row, 1] = MASK_ID, caption_ids[row, 1]
    assert torch.equal(ids, expected_ids) and torch.equal(labels, expected_labels)


def test_shares_are_those_of_bert() -> None:
    words = many_words()
    ids, labels = mask_tokens(words, 0.15, generator())
    asked = labels != 0
    assert share(asked[:, 1:-4]) == pytest.approx(0.15, abs=0.01)  # a standard deviation is 0.0025
    became = ids[asked]
    assert share(became == MASK_ID) == pytest.approx(0.8, abs=0.03)  # 0.007
    assert share(became == labels[asked]) == pytest.approx(0.1, abs=0.02)  # 0.0055
    random_ids = became[(became != MASK_ID) & (became != labels[asked])].double()
    assert len(random_ids) / len(became) == pytest.approx(0.1, abs=0.02)
    assert random_ids.mean().item() == pytest.approx(49_404 / 2, rel=0.1), "uniform over the words (0.034)"
    assert random_ids.std().item() == pytest.approx(49_404 / 12**0.5, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("probability", PROBABILITIES)
def test_hiding_changes_words_only(caption_ids: Tensor, probability: float, seed: int) -> None:
    before = caption_ids.clone()
    hidden = replace_by_mask(caption_ids, probability, generator(seed))
    assert torch.equal(caption_ids, before)
    changed = hidden != caption_ids
    assert (hidden[changed] == MASK_ID).all()
    maskable = (caption_ids >= 1) & (caption_ids < MASK_ID)
    assert not (changed & ~maskable).any()
    assert share(changed[maskable]) == probability or 0 < probability < 1


def test_hidden_share() -> None:
    words = many_words()
    replaced = replace_by_mask(words, 0.3, generator())
    assert share(replaced[:, 1:-4] == MASK_ID) == pytest.approx(0.3, abs=0.015)  # 0.0032


def words_of(row: Tensor) -> list[int]:
    """The ids between start and end; checks that these and the padding are whole."""
    end = int(row.argmax())
    assert row[0] == START_ID and row[end] == END_ID and not row[end + 1 :].any()
    return row[1:end].tolist()


def is_subsequence(part: list[int], whole: list[int]) -> bool:
    remaining = iter(whole)
    return all(word in remaining for word in part)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("probability", PROBABILITIES)
def test_dropping_keeps_the_order_and_one_word(caption_ids: Tensor, probability: float, seed: int) -> None:
    before = caption_ids.clone()
    rest = drop_tokens(caption_ids, probability, generator(seed))
    assert torch.equal(caption_ids, before)
    assert rest.dtype == torch.int64
    kept = [words_of(row) for row in rest]
    whole = [words_of(row) for row in caption_ids]
    assert rest.shape[1] == max(map(len, kept)) + 2, "trimmed to the longest"
    assert all(is_subsequence(part, words) for part, words in zip(kept, whole, strict=True))
    assert kept[0] == [] and kept[1] == whole[1], "no word, and the only one"
    assert all(len(part) >= 1 for part in kept[1:])
    if probability == 0:
        assert kept == whole
    if probability == 1:
        assert [len(part) for part in kept] == [0, 1, 1, 1, 1]


def test_dropped_share_and_which_word_stays() -> None:
    words = many_words()
    kept = sum(len(words_of(row)) for row in drop_tokens(words, 0.3, generator()))
    assert kept / (400 * 50) == pytest.approx(0.7, abs=0.015)  # 0.0032
    four = torch.tensor([[START_ID, 11, 12, 13, 14, END_ID]]).repeat(4000, 1)
    stays = Counter(drop_tokens(four, 1.0, generator())[:, 1].tolist())
    assert stays.keys() == {11, 12, 13, 14}
    assert all(count == pytest.approx(1000, abs=120) for count in stays.values()), "any word alike (27)"


@pytest.mark.parametrize("probability", PROBABILITIES)
def test_changed_captions_keep_start_end_and_order(caption_ids: Tensor, probability: float) -> None:
    before = caption_ids.clone()
    changed = change_tokens(caption_ids, probability, generator(3))
    assert torch.equal(caption_ids, before) and changed.dtype == torch.int64
    rows, whole = [words_of(row) for row in changed], [words_of(row) for row in caption_ids]
    assert changed.shape[1] == max(map(len, rows)) + 2, "trimmed to the longest"
    assert rows[0] == [] and all(len(row) <= len(words) for row, words in zip(rows, whole, strict=True))
    assert 0 in rows[4] and rows[3].count(MASK_ID) >= 2, "an id 0 and the mask word stay"
    if probability == 0:
        assert rows == whole


def test_shares_of_changed_words() -> None:
    words = many_words()
    changed = change_tokens(words, 0.2, generator())
    masked = int((changed == MASK_ID).sum())
    removed = sum(50 - len(words_of(row)) for row in changed)
    assert masked / (400 * 50) == pytest.approx(0.12, abs=0.01)  # 0.0023
    assert removed / (400 * 50) == pytest.approx(0.04, abs=0.006)  # 0.0014
    kept = sum(is_subsequence([word for word in row if word != MASK_ID], whole)
               for row, whole in zip(map(words_of, changed), map(words_of, words), strict=True))  # fmt: skip
    assert 20 < kept < 100, "captions without a random word: 0.96 ** 50 of 400, 52"
    alone = torch.tensor([[START_ID, 11, END_ID]]).repeat(4000, 1)
    gone = (change_tokens(alone, 1.0, generator())[:, 1] == END_ID).float().mean()
    assert gone == pytest.approx(0.2, abs=0.025), "the only word may go (0.0063)"


def test_every_function_follows_the_generator(caption_ids: Tensor) -> None:
    config = AugmentConfig(caption_drop_probability=0.3, caption_mask_probability=0.3)
    for draw in (
        lambda seed: mask_tokens(caption_ids, 0.5, generator(seed)).ids,
        lambda seed: replace_by_mask(caption_ids, 0.5, generator(seed)),
        lambda seed: drop_tokens(caption_ids, 0.5, generator(seed)),
        lambda seed: change_tokens(caption_ids, 0.5, generator(seed)),
        lambda seed: augment_captions(caption_ids, config, generator(seed)),
    ):
        assert torch.equal(draw(1), draw(1))
        assert any(not torch.equal(draw(1), draw(seed)) for seed in (2, 3))


def test_augmenting_drops_then_hides(caption_ids: Tensor) -> None:
    every = AugmentConfig(caption_change_probability=0.3, caption_drop_probability=0.4)
    shared = generator()
    expected = drop_tokens(change_tokens(caption_ids, 0.3, shared), 0.4, shared)
    assert torch.equal(augment_captions(caption_ids, every, generator()), expected)
    both = AugmentConfig(caption_drop_probability=0.4, caption_mask_probability=0.6)
    shared = generator()
    expected = replace_by_mask(drop_tokens(caption_ids, 0.4, shared), 0.6, shared)
    assert torch.equal(augment_captions(caption_ids, both, generator()), expected)
    only_hidden = augment_captions(caption_ids, AugmentConfig(caption_mask_probability=0.6), generator())
    assert torch.equal(only_hidden, replace_by_mask(caption_ids, 0.6, generator()))


def test_no_augmentation_draws_nothing(caption_ids: Tensor) -> None:
    shared = generator()
    before = shared.get_state()
    assert augment_captions(caption_ids, AugmentConfig(), shared) is caption_ids
    assert torch.equal(shared.get_state(), before)
