"""Samplers: the pairs of each batch, as a function of a random generator.

`random`: every pair once per epoch; the last batch may be smaller. `identity` and `identity-released`: `instances`
pairs of each of several people, ours and the one of the released CSKT and IRRA programs; see `identity_batches` and
`released_identity_batches`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cskt.config import DataConfig
from cskt.errors import CsktError


def draw_batches(
    pids: NDArray[np.int64], data: DataConfig, num_batches: int, random: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Draw the batches of an epoch by `data.sampler`: arrays of positions of units.

    Args:
        pids: [U] identity of each unit (a pair, or an image with some of its captions), numbered from 0 without gaps.
        data: sampler, batch size and instances, both in pairs.
        num_batches: batches per epoch of `identity`; the other samplers determine their own number.
    """
    batch_size, instances = data.batch_size // data.captions_per_image, data.instances // data.captions_per_image
    if data.sampler == "random":
        order = random.permutation(len(pids))
        num_drawn = len(order) // batch_size * batch_size if data.drop_last else len(order)
        return [order[start : start + batch_size] for start in range(0, num_drawn, batch_size)]
    if data.sampler == "identity":
        return identity_batches(pids, batch_size, instances, num_batches, random)
    return released_identity_batches(pids, batch_size, instances, random)


def draw_units(image_ids: NDArray[np.int64], per_image: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return the pairs in units of one image with `per_image` of its captions, image by image, [U, per_image].

    Every caption is in a unit: an image with c captions has ceil(c / per_image) units, which take its captions in
    random order and start again from the first. So the last unit is filled up with captions of the others; it repeats a
    caption only if c is below `per_image`. Units of one caption are the pairs in their order, and draw nothing.

    Args:
        image_ids: [N] image of each pair, numbered from 0 without gaps.
    """
    if per_image == 1:
        return np.arange(len(image_ids))[:, None]
    return np.concatenate(
        [
            np.resize(random.permutation(pairs), (-(-len(pairs) // per_image), per_image))  # repeats to fill
            for pairs in _positions_by_id(image_ids)
        ]
    )


def identity_batches(
    pids: NDArray[np.int64], batch_size: int, instances: int, num_batches: int, random: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Draw batches of batch_size / instances distinct identities with `instances` units each (Hermans et al. 2017).

    Identities come in rounds, each once per round, so all are drawn about equally often however many units they
    have. An identity's units are a deck that is shuffled again when too few are left; one with fewer units than
    `instances` is drawn with replacement. An epoch has as many batches as one of the sampler `random`.

    Args:
        pids: [U] identity of each unit, numbered from 0 without gaps; the other sizes are counted in units.
    """
    by_identity = _positions_by_id(pids)
    decks: list[NDArray[np.int64]] = [units[:0] for units in by_identity]
    per_batch = batch_size // instances
    batches: list[NDArray[np.int64]] = []
    while len(batches) < num_batches:
        round_of_identities = random.permutation(len(by_identity))
        for start in range(0, len(round_of_identities) - per_batch + 1, per_batch):
            drawn = []
            for identity in round_of_identities[start : start + per_batch]:
                units, deck = by_identity[identity], decks[identity]
                if len(units) < instances:
                    drawn.append(random.choice(units, instances))
                    continue
                if len(deck) < instances:
                    deck = random.permutation(units)
                drawn.append(deck[:instances])
                decks[identity] = deck[instances:]
            batches.append(np.concatenate(drawn))
    return batches[:num_batches]


def released_identity_batches(
    pids: NDArray[np.int64], batch_size: int, instances: int, random: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Draw batches as `RandomIdentitySampler` of the released CSKT and IRRA programs does; see `identity_batches`.

    The units of an identity are shuffled and cut into groups of `instances`; those left over are not used in this
    epoch, and an identity with fewer units than `instances` gets one group drawn with replacement. Then
    batch_size // instances distinct identities are drawn again and again, each gives its next group, and an identity
    without groups is drawn no more. The epoch ends when too few identities are left for another draw, so the number of
    batches differs from epoch to epoch, and identities with many units lose some of their groups. If batch_size is no
    multiple of instances, batches are cut from the stream of groups, and the last may be smaller. The released
    distributed variant never trains (its program builds no loader for it), so several processes share these batches.
    """
    groups: list[list[NDArray[np.int64]]] = []
    for units in _positions_by_id(pids):
        members = random.choice(units, instances) if len(units) < instances else random.permutation(units)
        num_left_over = len(members) % instances
        groups.append(list(members[: len(members) - num_left_over].reshape(-1, instances)))
    available, per_draw = list(range(len(groups))), batch_size // instances
    stream: list[NDArray[np.int64]] = []
    while len(available) >= per_draw:
        places = random.choice(len(available), per_draw, replace=False).tolist()
        exhausted = []
        for place in places:
            identity = available[place]
            stream.append(groups[identity].pop())  # they are shuffled: the last is as good as the first
            if not groups[identity]:
                exhausted.append(place)
        for place in sorted(exhausted, reverse=True):  # from behind: the places before it stay valid
            available[place] = available[-1]
            available.pop()
    order = np.concatenate(stream)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _positions_by_id(ids: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the positions of each of the ids 0, 1, ..., in order."""
    return np.split(np.argsort(ids, kind="stable"), np.cumsum(np.bincount(ids))[:-1])


def draw_mixed_batches(
    pids: NDArray[np.int64],
    parts: NDArray[np.int64],
    weights: Sequence[float],
    data: DataConfig,
    random: np.random.Generator,
) -> list[NDArray[np.int64]]:
    """Draw the batches of an epoch from several data sets, by `data.sampler` and `data.mix_batches`.

    Args:
        pids: [U] identity of each unit, distinct between data sets.
        parts: [U] data set of each unit, numbered from 0.
        weights: how often each unit of a data set is in an epoch; a fraction of them, chosen at random, once more. For
            an identity sampler it is a fraction of the groups of `instances` units of one person.
        data: sampler, batch size, instances, and whether a batch is of all data sets or of one.
        random: makes every choice.

    Returns:
        Positions of units, one array per batch; the batches of different data sets in random order.

    Raises:
        CsktError: what a batch is drawn from does not fill one; see `check_batch_size`.
    """
    people, group_size = np.arange(len(pids)), 1
    if data.sampler != "random":
        people, group_size = pids, max(1, data.instances // data.captions_per_image)
    chosen = [
        _repeated(np.flatnonzero(parts == part), people, weight, group_size, random)
        for part, weight in enumerate(weights)
    ]
    groups = chosen if data.mix_batches == "one" else [np.concatenate(chosen)]
    batches = []
    for group in groups:
        num_batches = -(-len(group) * data.captions_per_image // data.batch_size)
        distinct, numbered = np.unique(pids[group], return_inverse=True)
        check_batch_size(data, len(group) * data.captions_per_image, len(distinct))
        batches += [group[batch] for batch in draw_batches(numbered, data, num_batches, random)]
    return [batches[place] for place in random.permutation(len(batches))] if len(groups) > 1 else batches


def _repeated(
    units: NDArray[np.int64], people: NDArray[np.int64], weight: float, group_size: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Return units `weight` times: all of them as often as its whole number, and a fraction of their groups.

    A group has `group_size` units of one person, or what is left of them. All people have a first group before one has
    a second, so the number of people is the same in every epoch. At least one group is returned.

    Args:
        people: [U] the person of each unit.
    """
    times, order = int(weight), random.permutation(units)
    first_places: dict[int, int] = {}
    seen: Counter[int] = Counter()
    keys = []  # the same for the units of a group; all first groups before all second ones
    for place, person in enumerate(people[order].tolist()):
        first = first_places.setdefault(person, place)
        keys.append(seen[person] // group_size * len(order) + first)
        seen[person] += 1
    groups = np.unique(keys, return_inverse=True)[1]
    num_chosen = max(round((weight - times) * (groups.max() + 1)), 0 if times else 1)
    by_group = np.argsort(groups, kind="stable")
    chosen = by_group[groups[by_group] < num_chosen]
    return np.concatenate([*[units] * times, order[chosen]])


def check_batch_size(data: DataConfig, num_pairs: int, num_identities: int) -> None:
    """Raise a CsktError that names the config keys if the sampler cannot draw batches of the configured size."""
    size, instances, num_groups = data.batch_size, data.instances, data.batch_size // data.instances
    batch, group = f"data.batch_size {size}", f"data.instances {instances}"
    problem = ""
    if size > num_pairs:
        problem = f"{batch} is more than the {num_pairs} training pairs; lower data.batch_size"
    elif data.sampler == "random":
        return
    elif data.sampler == "identity" and size % instances:
        problem = f"{batch} is not divisible by {group}; the identity sampler needs whole groups"
    elif size < instances:
        problem = f"{batch} is less than {group}; raise data.batch_size"
    elif instances % data.captions_per_image:
        images = f"data.captions_per_image {data.captions_per_image}"
        problem = f"{group} is not divisible by {images}; the identity sampler counts pairs and draws whole images"
    elif num_groups > num_identities:
        needs = f"needs {num_groups} identities, the training split has {num_identities}"
        problem = f"{batch} with {group} {needs}; lower data.batch_size or raise data.instances"
    if problem:
        raise CsktError(problem)
