"""The identity samplers: the released one against a plain loop that follows its published description."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from cskt.config import DataConfig
from cskt.data.images import ImageReader
from cskt.data.loading import TrainingLoader
from cskt.data.records import Record, Split
from cskt.data.samplers import check_batch_size, identity_batches, released_identity_batches
from cskt.data.tokenizer import Tokenizer


def released_epoch(pids: list[int], batch_size: int, instances: int, seed: int) -> list[list[int]]:
    """The released sampler and loader, step by step: positions of pairs per batch."""
    random = np.random.default_rng(seed)
    pairs_of: dict[int, list[int]] = defaultdict(list)
    for position, pid in enumerate(pids):
        pairs_of[pid].append(position)
    waiting: dict[int, list[list[int]]] = {}
    for pid, pairs in pairs_of.items():
        pool = random.choice(pairs, instances).tolist() if len(pairs) < instances else list(pairs)
        random.shuffle(pool)
        waiting[pid] = [pool[start : start + instances] for start in range(0, len(pool), instances)]
        waiting[pid] = [group for group in waiting[pid] if len(group) == instances]
    people, sequence = list(pairs_of), []
    while len(people) >= batch_size // instances:
        for pid in random.choice(people, batch_size // instances, replace=False).tolist():
            sequence += waiting[pid].pop(0)
            if not waiting[pid]:
                people.remove(pid)
    return [sequence[start : start + batch_size] for start in range(0, len(sequence), batch_size)]


def ours(pids: list[int], batch_size: int, instances: int, seed: int) -> list[list[int]]:
    drawn = released_identity_batches(np.array(pids), batch_size, instances, np.random.default_rng(seed))
    return [batch.tolist() for batch in drawn]


def people_of(counts: list[int]) -> list[int]:
    """Identities of pairs, in a mixed order: person n has counts[n] pairs."""
    pids = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(3).permutation(pids).tolist()


UNEVEN = [1, 2, 3, 4, 5, 6, 7, 8, 9, 40]
EVEN = [4] * 12
CASES = [(UNEVEN, 12, 4), (UNEVEN, 8, 2), (UNEVEN, 10, 4), (UNEVEN, 6, 6), (EVEN, 12, 4), (EVEN, 16, 4), (EVEN, 48, 4)]


@pytest.mark.parametrize(("counts", "batch_size", "instances"), CASES)
def test_every_batch_is_one_that_the_released_sampler_can_draw(
    counts: list[int], batch_size: int, instances: int
) -> None:
    pids = people_of(counts)
    for seed in range(20):
        batches = ours(pids, batch_size, instances, seed)
        sequence = [pair for batch in batches for pair in batch]
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        groups = [sequence[start : start + instances] for start in range(0, len(sequence), instances)]
        per_draw = batch_size // instances
        used, drawn_pairs = Counter[int](), Counter[int]()
        for start in range(0, len(groups), per_draw):
            draw = groups[start : start + per_draw]
            people = [{pids[pair] for pair in group} for group in draw]
            assert all(len(one) == 1 for one in people), "a group is one person's"
            assert len(draw) == per_draw and len(set.union(*people)) == per_draw, "a draw is of distinct people"
            used.update(pid for one in people for pid in one)
            drawn_pairs.update(pair for group in draw for pair in group)
        for pid, count in enumerate(counts):
            assert used[pid] <= max(1, count // instances)
            if count >= instances:
                own = [drawn_pairs[pair] for pair, owner in enumerate(pids) if owner == pid]
                assert max(own) <= 1, "a pair comes once, unless its person has too few"
        left = sum(used[pid] < max(1, count // instances) for pid, count in enumerate(counts))
        assert left < per_draw, "an epoch ends only when too few people are left"


@pytest.mark.parametrize(("counts", "batch_size", "instances"), CASES)
def test_as_many_steps_and_the_same_people_as_the_released_sampler(
    counts: list[int], batch_size: int, instances: int
) -> None:
    """Over many epochs the distributions agree: steps per epoch, and how often each person is drawn."""
    pids, num_epochs = people_of(counts), 200
    found: list[dict[str, np.ndarray]] = []
    for sampler in (ours, released_epoch):
        epochs = [sampler(pids, batch_size, instances, seed) for seed in range(num_epochs)]
        people = [Counter(pids[pair] for batch in epoch for pair in batch) for epoch in epochs]
        found.append(
            {
                "steps": np.array([len(epoch) for epoch in epochs], dtype=float),
                "people": np.array([[one[pid] for pid in range(len(counts))] for one in people], dtype=float),
            }
        )
    for key in ("steps", "people"):
        mine, theirs = found[0][key], found[1][key]
        # Four standard errors of a difference of two means of so many epochs.
        error = 4 * np.sqrt((mine.var(axis=0) + theirs.var(axis=0)) / num_epochs)
        assert (np.abs(mine.mean(axis=0) - theirs.mean(axis=0)) <= error + 1e-12).all(), key


def test_people_with_equal_numbers_of_pairs_give_an_exact_number_of_steps() -> None:
    for pids, batch_size, instances, steps in ((people_of([4] * 12), 16, 4, 3), (people_of([5] * 6), 24, 4, 1)):
        for seed in range(5):
            assert len(ours(pids, batch_size, instances, seed)) == steps
            assert len(released_epoch(pids, batch_size, instances, seed)) == steps


def test_our_own_sampler_makes_more_steps() -> None:
    """The difference that made the published flag wrong: ours continues until every pair could have been drawn."""
    pids = people_of([7] * 8)
    released = ours(pids, 8, 4, seed=0)
    own = identity_batches(np.array(pids), 8, 4, num_batches=-(-56 // 8), random=np.random.default_rng(0))
    assert (len(released), len(own)) == (4, 7)


def make_loader(data: DataConfig, counts: list[int]) -> TrainingLoader:
    records = tuple(
        Record(pid=10 * pid + 3, image_path=Path(f"{pid}_{n}.jpg"), captions=(f"person {pid} {n}",), split="train")
        for pid, count in enumerate(counts)
        for n in range(count)
    )
    return TrainingLoader(Split("jsonl", "train", records), Tokenizer(), data, ImageReader(8, 8), seed=4)


def test_a_loader_counts_the_steps_of_each_epoch() -> None:
    loader = make_loader(DataConfig(batch_size=8, instances=2, sampler="identity-released"), UNEVEN)
    counts = [loader.num_steps(epoch) for epoch in range(30)]
    assert len(set(counts)) > 1, "epochs differ"
    assert counts == [loader.num_steps(epoch) for epoch in range(30)], "by seed and epoch alone"
    assert loader.steps_per_epoch == counts[0]
    even = make_loader(DataConfig(batch_size=8, instances=2, sampler="identity"), UNEVEN)
    assert {even.num_steps(epoch) for epoch in range(3)} == {-(-sum(UNEVEN) // 8)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            DataConfig(batch_size=3, instances=4, sampler="identity-released"),
            "batch_size 3 is less than data.instances",
        ),
        (
            DataConfig(batch_size=48, instances=4, sampler="identity-released"),
            "needs 12 identities, the training split",
        ),
    ],
)
def test_batches_that_the_released_sampler_cannot_draw(data: DataConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_batch_size(data, num_pairs=100, num_identities=10)
