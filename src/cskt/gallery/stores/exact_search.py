"""Which crops can be among the k best: all vectors in memory in bfloat16, with a proof that none is overlooked.

A `Matrix` never changes; rows are added and removed by making a new one that shares the memory of the old, so that
searches which run on the old one are not disturbed.

`products` says how far a computed score can be from the true one. Every row whose upper bound reaches the k-th largest
lower bound is a candidate; no other can be among the k best or tie with them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cskt.gallery.stores.products import LEAST, Queries, products

BLOCK_ROWS = 131_072
"""Rows that are multiplied at once; also the step in which memory is taken."""
LONGEST_GROUP = 64
"""Neighbouring rows of which only the best is looked at until the threshold is known."""
PANEL_SCORES = 2**21
"""Scores that are sifted at once, if they come from several blocks."""
GATHERED_SHARE = 0.25
"""Where fewer of a block's rows are searched, they are copied together first; else all are multiplied."""
MOST_COLLECTED = 4_000_000
"""Candidates of several queries held at once, 20 bytes each; beyond, the queries are searched in two halves."""

Selection: TypeAlias = Sequence[NDArray[np.bool_]]
"""Per block, which rows are searched."""


@dataclass(frozen=True)
class Candidates:
    """Rows that may be among the k best of one query, the most promising first."""

    keys: NDArray[np.int64]
    upper: NDArray[np.float32]
    """No inner product is larger than this."""


@dataclass(frozen=True)
class Block:
    """Rows under rising keys: the first `len(alive)` of two buffers."""

    row_buffer: Tensor
    """[block_rows, D] bfloat16; the system gives memory only to the part that has been written."""
    key_buffer: NDArray[np.int64]
    alive: NDArray[np.bool_]
    """Removed rows stay until they are half of the block."""
    rounding: float = 0.0
    """Largest distance of a vector from its rounded row."""
    norm: float = 0.0
    """Largest length of a rounded row."""

    @classmethod
    def empty(cls, block_rows: int, dim: int) -> Block:
        rows = torch.empty((block_rows, dim), dtype=torch.bfloat16)
        return cls(rows, np.empty(block_rows, np.int64), np.empty(0, bool))

    @property
    def rows(self) -> Tensor:
        return self.row_buffer[: len(self.alive)]

    @property
    def keys(self) -> NDArray[np.int64]:
        return self.key_buffer[: len(self.alive)]

    def filled(self, keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> Block:
        """With more rows, written into the unused part of the same buffers."""
        written = slice(len(self.alive), len(self.alive) + len(keys))
        self.key_buffer[written] = keys
        exact, rows = torch.tensor(vectors), self.row_buffer[written]
        rows.copy_(exact)
        rounded = rows.float()
        return replace(
            self,
            alive=np.concatenate([self.alive, np.ones(len(keys), bool)]),
            norm=max(self.norm, _longest(rounded)),
            rounding=max(self.rounding, _longest(rounded.sub_(exact))),
        )

    def rebuilt(self) -> Block:
        """Of the living rows only, in buffers of its own; the measured bounds still hold."""
        fresh = Block.empty(*self.row_buffer.shape)
        kept = np.flatnonzero(self.alive)
        fresh.row_buffer[: len(kept)] = self.rows[torch.from_numpy(kept)]
        fresh.key_buffer[: len(kept)] = self.keys[kept]
        return replace(fresh, alive=np.ones(len(kept), bool), rounding=self.rounding, norm=self.norm)


@dataclass(frozen=True)
class Matrix:
    """Vectors under rising keys; immutable.

    New rows go into the shared buffers of the last block: of several extensions of one matrix only the last is valid.
    """

    dim: int
    block_rows: int = BLOCK_ROWS
    blocks: tuple[Block, ...] = ()

    def __len__(self) -> int:
        return sum(int(block.alive.sum()) for block in self.blocks)

    def keys(self) -> NDArray[np.int64]:
        """Keys of all rows, rising."""
        return np.concatenate([np.empty(0, np.int64), *(block.keys[block.alive] for block in self.blocks)])

    @property
    def last_key(self) -> int:
        """No key is larger; -1 where there is none."""
        return int(self.blocks[-1].keys[-1]) if self.blocks else -1

    def extended(self, keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> Matrix:
        """This matrix with more rows at its end.

        Args:
            keys: [n], at least 0, rising, each above `last_key`.
            vectors: [n, D], finite.
        """
        assert vectors.shape == (len(keys), self.dim)
        assert (np.diff(keys, prepend=self.last_key) > 0).all(), "keys must rise"
        blocks = list(self.blocks)
        start = 0
        while start < len(keys):
            if not blocks or len(blocks[-1].alive) == self.block_rows:
                blocks.append(Block.empty(self.block_rows, self.dim))
            end = start + self.block_rows - len(blocks[-1].alive)
            blocks[-1] = blocks[-1].filled(keys[start:end], vectors[start:end])
            start = end
        return replace(self, blocks=tuple(blocks))

    def without(self, keys: NDArray[np.int64]) -> Matrix:
        """This matrix without some rows; `keys` rise, and those that it does not hold are passed over."""
        kept = []
        for block in self.blocks:
            left = replace(block, alive=block.alive & ~_is_among(block.keys, keys))
            if left.alive.any():
                kept.append(left.rebuilt() if 2 * left.alive.sum() <= len(left.alive) else left)
        return replace(self, blocks=tuple(kept))

    def select(self, keys: NDArray[np.int64]) -> Selection:
        """The rows with these keys, for searching only them; `keys` rise."""
        return [block.alive & _is_among(block.keys, keys) for block in self.blocks]

    def scores(self, query: Tensor, selection: Selection | None = None) -> Iterator[NDArray[np.float32]]:
        """Approximate inner products of a query [D] with the rows, a piece at a time."""
        for panel in self._panels(Queries.prepared(query[None]), selection):
            scores = panel.scores[0]
            yield scores[scores > -torch.inf].numpy()

    def candidates(self, queries: Tensor, k: int, selection: Selection | None = None) -> list[Candidates]:
        """Every row that may be among the k rows with the largest inner product, ties included.

        Args:
            queries: [Q, D] float32, finite.
            k: at least 1.
            selection: which rows to search; none for all.

        Returns:
            Per query, at least min(k, rows searched) rows.
        """
        prepared = Queries.prepared(queries)
        best = torch.full((len(queries), 0), -torch.inf)  # lower bounds of the most promising rows so far
        least = torch.full((len(queries), 1), -torch.inf)  # the k-th of them: what an upper bound must reach
        collected = []
        num_collected = 0
        for panel in self._panels(prepared, selection):
            slack = prepared.slack(panel.rounding, panel.norm)
            best = _best_bounds(best, panel.scores, k, slack, prepared.unit)
            if best.shape[1] == k:
                least = best[:, -1:]
            query, column = _reaching(panel.scores, prepared.least_score(least, slack))
            score = panel.scores[query, column]
            upper = score + slack[query, 0] + prepared.unit * score.abs()
            collected.append((query.numpy(), panel.keys_of(column.numpy()), upper.numpy()))
            num_collected += len(query)
            if len(queries) > 1 and num_collected > MOST_COLLECTED:
                half = len(queries) // 2
                return self.candidates(queries[:half], k, selection) + self.candidates(queries[half:], k, selection)
        return _by_query(collected, least[:, 0].numpy())

    def _panels(self, queries: Queries, selection: Selection | None) -> Iterator[_Panel]:
        """The scores of all blocks in which something is searched, as many at once as is sensible."""
        masks = [block.alive for block in self.blocks] if selection is None else selection
        parts: list[tuple[Tensor, NDArray[np.int64], Block]] = []
        size = 0
        for block, wanted in zip(self.blocks, masks, strict=True):
            if wanted.any():
                parts.append((*_scored(block, wanted, queries.multiplied), block))
                size += parts[-1][0].numel()
            if size >= PANEL_SCORES:
                yield _Panel.joined(parts)
                parts, size = [], 0
        if parts:
            yield _Panel.joined(parts)


@dataclass(frozen=True)
class _Panel:
    """Scores of some blocks side by side: each step that two processors share costs time of its own, however small."""

    scores: Tensor
    """[Q, n] float32; -inf for rows that are not searched."""
    keys: Sequence[NDArray[np.int64]]
    """Block by block."""
    rounding: float
    norm: float

    @classmethod
    def joined(cls, parts: Sequence[tuple[Tensor, NDArray[np.int64], Block]]) -> _Panel:
        scores, keys, blocks = zip(*parts, strict=True)
        together = scores[0] if len(scores) == 1 else torch.cat(scores, dim=1)
        return cls(together.float(), keys, max(b.rounding for b in blocks), max(b.norm for b in blocks))

    def keys_of(self, columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Keys of some columns, without laying those of all columns side by side."""
        found = np.empty(len(columns), np.int64)
        start = 0
        for keys in self.keys:
            inside = (columns >= start) & (columns < start + len(keys))
            found[inside] = keys[columns[inside] - start]
            start += len(keys)
        return found


def _scored(block: Block, wanted: NDArray[np.bool_], queries: Tensor) -> tuple[Tensor, NDArray[np.int64]]:
    """Scores [Q, n] of a block's rows and their keys [n]; rows that are not wanted are left out, or score -inf."""
    if wanted.sum() < GATHERED_SHARE * len(wanted):
        places = np.flatnonzero(wanted)
        return products(block.rows[torch.from_numpy(places)], queries), block.keys[places]
    scores = products(block.rows, queries)
    if not wanted.all():
        scores.masked_fill_(torch.from_numpy(~wanted), -torch.inf)
    return scores, block.keys


def _best_bounds(best: Tensor, scores: Tensor, k: int, slack: Tensor, unit: float) -> Tensor:
    """The k largest lower bounds that are known of each query, best first; fewer where fewer rows have been seen.

    The maxima of groups stand in for the rows: k groups with a bound are k rows with it.
    """
    group = LONGEST_GROUP
    while group > 1 and scores.shape[1] < 4 * k * group:
        group //= 2
    maxima = _group_maxima(scores, group)
    highest = maxima.topk(min(k, maxima.shape[1]), sorted=False).values.clamp(min=LEAST)  # 0 * inf has no value
    bounds = torch.cat([best, highest - slack - unit * highest.abs()], dim=1)
    return bounds.topk(min(k, bounds.shape[1])).values


def _reaching(scores: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the scores [Q, n] that reach their query's `least` [Q, 1]: numbers of query and column."""
    query, group = (_group_maxima(scores, LONGEST_GROUP) >= least).nonzero(as_tuple=True)
    column = group[:, None] * LONGEST_GROUP + torch.arange(LONGEST_GROUP)
    inside = column < scores.shape[1]
    column.clamp_(max=scores.shape[1] - 1)
    hit, place = (inside & (scores[query[:, None], column] >= least[query])).nonzero(as_tuple=True)
    return query[hit], column[hit, place]


def _group_maxima(scores: Tensor, group: int) -> Tensor:
    """Largest of every `group` neighbours in the rows of [Q, n]; [Q, n / group, rounded up]."""
    num_whole = scores.shape[1] // group
    maxima = scores[:, : num_whole * group].reshape(len(scores), num_whole, group).amax(2)
    rest = scores[:, num_whole * group :]
    return maxima if not rest.shape[1] else torch.cat([maxima, rest.amax(1, keepdim=True)], dim=1)


def _by_query(
    collected: Sequence[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]],
    least: NDArray[np.float32],
) -> list[Candidates]:
    """What was collected as (query, key, upper bound), per query, without what the last threshold excludes."""
    if not collected:
        return [Candidates(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in least]
    query, keys, upper = (np.concatenate(column) for column in zip(*collected, strict=True))
    reaching = upper >= least[query]
    query, keys, upper = query[reaching], keys[reaching], upper[reaching]
    order = np.lexsort((-upper, query))
    ends = np.searchsorted(query[order], np.arange(len(least) + 1))
    parts = [order[start:end] for start, end in itertools.pairwise(ends)]
    return [Candidates(keys[part], upper[part]) for part in parts]


def _is_among(keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of `keys` occur in `wanted`; both rise."""
    among = np.zeros(len(keys), bool)
    if len(keys):
        wanted = wanted[np.searchsorted(wanted, keys[0]) : np.searchsorted(wanted, keys[-1], side="right")]
        places = np.searchsorted(keys, wanted)
        among[places[keys[places] == wanted]] = True
    return among


def _longest(vectors: Tensor) -> float:
    return float(torch.linalg.vector_norm(vectors, dim=1).max())
