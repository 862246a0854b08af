"""Exact search over vectors in memory in bfloat16, or read once: the rows that can be among the k best, with a proof.

**The bound.** Let v be a float32 vector, v' its bfloat16 rounding, q a query and q' the query as it is multiplied.
The computed inner product is a = (1 + e) (q'.v' + f), where f comes from summing in float32 in any order,
|f| <= D 2^-24 |q'| |v'| to first order (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), and e
from rounding the result to nearest: |e| <= 2^-8 in bfloat16, 0 in float32. With

    |q.v - q'.v'| <= |q.(v - v')| + |(q - q').v'| <= |q| |v - v'| + |q - q'| |v'|         (Cauchy-Schwarz)

q.v lies within `slack` + `unit` |a| of a, where slack = |q| r + |q - q'| n + (D + 8) 2^-23 |q'| n, r is the largest
|v - v'| of the rows in a block and n the largest |v'|, both measured when the block is filled, and unit is slightly
above 2^-8. (Doubling D covers the second order; the 8 the rounding of bounds and final scores to float32.)

Every row whose upper bound reaches the k-th largest lower bound is a candidate; no other row can be among the k best
or tie with them. For float32 vectors that are read once (`streamed_candidates`), v' = v and q' = q.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cskt.device import native_bf16

BLOCK_ROWS = 131_072
"""Rows that are multiplied at once; memory is allocated in the same step."""
GROUP_LENGTH = 64
"""Neighbouring rows whose scores are represented by their maximum until the threshold is known."""
PANEL_SCORES = 2**21
"""Scores of several blocks that are filtered at once."""
GATHERED_SHARE = 0.25
"""If a smaller share of a block's rows is searched, they are copied before they are multiplied."""
MAX_COLLECTED = 4_000_000
"""Candidates of several queries in memory, 20 bytes each; above that, the queries are searched in two halves."""
PIECE_ROWS = 2048
"""Rows that are converted from or to float32 at once; they fit into the cache of a CPU."""
LOWEST_SCORE = torch.finfo(torch.float32).min
"""Below every score, above the -inf of rows that are not searched."""
SUBNORMAL = 1e-30
"""Covers the loss on processors that flush subnormal numbers to zero."""

Selection: TypeAlias = Sequence[NDArray[np.bool_]]
"""Mask of the searched rows, per block."""


@dataclass(frozen=True)
class Candidates:
    """Rows that may be among the k best of one query, the largest upper bound first."""

    keys: NDArray[np.int64]
    upper: NDArray[np.float32]
    """Upper bounds of their inner products."""


@dataclass(frozen=True)
class MatrixBlock:
    """Rows under rising keys: the first `len(alive)` of two buffers."""

    row_buffer: Tensor
    """[block_rows, D] bfloat16; the operating system allocates only the part that has been written."""
    key_buffer: NDArray[np.int64]
    alive: NDArray[np.bool_]
    """Removed rows stay in the buffers until they are half of the block."""
    rounding: float = 0.0
    """Largest distance of a vector from its rounded row."""
    norm: float = 0.0
    """Largest length of a rounded row."""

    @classmethod
    def empty(cls, block_rows: int, dim: int) -> MatrixBlock:
        rows = torch.empty((block_rows, dim), dtype=torch.bfloat16)
        return cls(rows, np.empty(block_rows, np.int64), np.empty(0, bool))

    @property
    def rows(self) -> Tensor:
        return self.row_buffer[: len(self.alive)]

    @property
    def keys(self) -> NDArray[np.int64]:
        return self.key_buffer[: len(self.alive)]

    def filled(self, keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> MatrixBlock:
        """Return this block with more rows, written into the unused part of the same buffers."""
        written = slice(len(self.alive), len(self.alive) + len(keys))
        self.key_buffer[written] = keys
        exact, rows = torch.tensor(vectors), self.row_buffer[written]
        rows.copy_(exact)
        rounded = rows.float()
        norm = torch.linalg.vector_norm(rounded, dim=1).max().item()
        rounding = torch.linalg.vector_norm(rounded.sub_(exact), dim=1).max().item()
        return replace(
            self,
            alive=np.concatenate([self.alive, np.ones(len(keys), bool)]),
            norm=max(self.norm, norm),
            rounding=max(self.rounding, rounding),
        )

    def rebuilt(self) -> MatrixBlock:
        """Copy the rows that are not removed into new buffers; the measured bounds still hold."""
        fresh = MatrixBlock.empty(*self.row_buffer.shape)
        alive = np.flatnonzero(self.alive)
        fresh.row_buffer[: len(alive)] = self.rows[torch.from_numpy(alive)]
        fresh.key_buffer[: len(alive)] = self.keys[alive]
        return replace(fresh, alive=np.ones(len(alive), bool), rounding=self.rounding, norm=self.norm)

    def scores(self, wanted: NDArray[np.bool_], queries: Tensor) -> tuple[Tensor, NDArray[np.int64]]:
        """Return scores [Q, n] and keys [n]; rows that are not wanted are missing, or score -inf."""
        if wanted.sum() < GATHERED_SHARE * len(wanted):
            places = np.flatnonzero(wanted)
            return _products(self.rows[torch.from_numpy(places)], queries), self.keys[places]
        scores = _products(self.rows, queries)
        if not wanted.all():
            scores.masked_fill_(torch.from_numpy(~wanted), -torch.inf)
        return scores, self.keys


@dataclass(frozen=True)
class Matrix:
    """Immutable vectors under rising keys.

    A change makes a new matrix that shares the memory of the old one, so that running searches are not disturbed. New
    rows are written into the shared buffers of the last block: of several extensions of one matrix only the last is
    valid.
    """

    dim: int
    block_rows: int = BLOCK_ROWS
    blocks: tuple[MatrixBlock, ...] = ()

    def __len__(self) -> int:
        return sum(int(block.alive.sum()) for block in self.blocks)

    def keys(self) -> NDArray[np.int64]:
        """Return the keys of all rows, rising."""
        return np.concatenate([np.empty(0, np.int64), *(block.keys[block.alive] for block in self.blocks)])

    @property
    def last_key(self) -> int:
        """An upper bound of the keys; -1 if there is none."""
        return int(self.blocks[-1].keys[-1]) if self.blocks else -1

    def extended(self, keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> Matrix:
        """Return this matrix with more rows at its end.

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
                blocks.append(MatrixBlock.empty(self.block_rows, self.dim))
            end = start + min(PIECE_ROWS, self.block_rows - len(blocks[-1].alive))
            blocks[-1] = blocks[-1].filled(keys[start:end], vectors[start:end])
            start = end
        return replace(self, blocks=tuple(blocks))

    def without(self, keys: NDArray[np.int64]) -> Matrix:
        """Return this matrix without some rows; `keys` rise, unknown ones are ignored."""
        blocks = []
        for block in self.blocks:
            left = replace(block, alive=block.alive & ~_is_among(block.keys, keys))
            if left.alive.any():
                blocks.append(left.rebuilt() if 2 * left.alive.sum() <= len(left.alive) else left)
        return replace(self, blocks=tuple(blocks))

    def select(self, keys: NDArray[np.int64]) -> Selection:
        """Return the mask of the rows with these keys; `keys` rise."""
        return [block.alive & _is_among(block.keys, keys) for block in self.blocks]

    def scores(self, query: Tensor, selection: Selection | None = None) -> Iterator[NDArray[np.float32]]:
        """Yield approximate inner products of a query [D] with the rows, in pieces."""
        for panel in self._panels(_PreparedQueries.of(query[None], native_bf16()), selection):
            scores = panel.scores[0]
            yield scores[scores > -torch.inf].numpy()

    def candidates(self, queries: Tensor, k: int, selection: Selection | None = None) -> list[Candidates]:
        """Return every row that may be among the k rows with the largest inner product, ties included, per query.

        Args:
            queries: [Q, D] float32, finite.
            k: at least 1.
            selection: which rows to search; all if None.
        """
        prepared = _PreparedQueries.of(queries, native_bf16())
        found = _candidates(self._panels(prepared, selection), prepared, k)
        if found is None:
            half = len(queries) // 2
            return self.candidates(queries[:half], k, selection) + self.candidates(queries[half:], k, selection)
        return found

    def _panels(self, queries: _PreparedQueries, selection: Selection | None) -> Iterator[_Panel]:
        """Yield the scores of all blocks with searched rows, of several small blocks at once."""
        masks = [block.alive for block in self.blocks] if selection is None else selection
        searched = [(block, wanted) for block, wanted in zip(self.blocks, masks, strict=True) if wanted.any()]
        parts: list[_Panel] = []
        for number, (block, wanted) in enumerate(searched, start=1):
            parts.append(_Panel(*block.scores(wanted, queries.multiplied), block.rounding, block.norm))
            if number == len(searched) or sum(part.scores.numel() for part in parts) >= PANEL_SCORES:
                scores, keys, roundings, norms = zip(*parts, strict=True)
                joined = torch.cat(scores, dim=1) if len(parts) > 1 else scores[0]
                yield _Panel(joined.float(), np.concatenate(keys), max(roundings), max(norms))
                parts = []


@dataclass(frozen=True)
class _PreparedQueries:
    """Queries as they are multiplied, and the quantities of the error bound; lengths are [Q, 1]."""

    multiplied: Tensor
    """[Q, D] bfloat16 or float32: the arithmetic of the product."""
    norm: Tensor
    multiplied_norm: Tensor
    rounding: Tensor
    unit: float

    @classmethod
    def of(cls, queries: Tensor, in_bf16: bool) -> _PreparedQueries:
        queries = queries.float()
        multiplied = queries.bfloat16() if in_bf16 else queries
        norm, multiplied_norm, rounding = (
            torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
            for vectors in (queries, multiplied.float(), queries - multiplied.float())
        )
        return cls(multiplied, norm, multiplied_norm, rounding, unit=1.01 * 2**-8 if in_bf16 else 0.0)

    def slack(self, row_rounding: float, row_norm: float) -> Tensor:
        """Return the constant part of the error bound, [Q, 1]; see the module."""
        summing = (self.multiplied.shape[1] + 8) * 2**-23 * self.multiplied_norm * row_norm
        return 1.001 * (self.norm * row_rounding + self.rounding * row_norm + summing) + SUBNORMAL

    def lowest_score(self, bound: Tensor, slack: Tensor) -> Tensor:
        """Return a score [Q, 1] slightly below the smallest computed one whose upper bound reaches `bound`."""
        score = bound - slack
        score = torch.where(score > 0, score / (1 + self.unit), score / (1 - self.unit))
        return (score - 1e-6 * score.abs()).clamp(min=LOWEST_SCORE)


class _Panel(NamedTuple):
    """Scores of some blocks side by side: each parallel step has a fixed cost, however few scores it handles."""

    scores: Tensor
    """[Q, n] float32; -inf for rows that are not searched."""
    keys: NDArray[np.int64]
    rounding: float
    norm: float


def streamed_candidates(
    batches: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]], query: Tensor, k: int
) -> Candidates:
    """Return every row that may be among the k rows with the largest inner product, ties included.

    Args:
        batches: keys [n] and finite vectors [n, D], read once and not stored.
        query: [D] float32, finite.
        k: at least 1.
    """
    prepared = _PreparedQueries.of(query[None], in_bf16=False)

    def panel(keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> _Panel:
        squares = np.einsum("nd,nd->n", vectors, vectors).max(initial=0)
        norm = math.sqrt(squares + vectors.shape[1] * np.finfo(np.float32).tiny)  # squares may have become 0
        return _Panel(torch.from_numpy(vectors @ prepared.multiplied[0].numpy())[None], keys, 0.0, norm)

    found = _candidates((panel(*batch) for batch in batches), prepared, k)
    assert found is not None
    return found[0]


def _candidates(panels: Iterable[_Panel], queries: _PreparedQueries, k: int) -> list[Candidates] | None:
    """Return the candidates of each query; None if several queries have more than `MAX_COLLECTED`."""
    num_queries = len(queries.norm)
    best = torch.full((num_queries, 0), -torch.inf)  # the k largest lower bounds so far
    threshold = torch.full((num_queries, 1), -torch.inf)  # the k-th of them, which upper bounds must reach
    collected = []
    num_collected = 0
    for panel in panels:
        slack = queries.slack(panel.rounding, panel.norm)
        best = _best_bounds(best, panel.scores, k, slack, queries.unit)
        if best.shape[1] == k:
            threshold = best[:, -1:]
        query, column = _reaching(panel.scores, queries.lowest_score(threshold, slack))
        score = panel.scores[query, column]
        upper = score + slack[query, 0] + queries.unit * score.abs()
        collected.append((query.numpy(), panel.keys[column.numpy()], upper.numpy()))
        num_collected += len(query)
        if num_queries > 1 and num_collected > MAX_COLLECTED:
            return None
    return _by_query(collected, threshold[:, 0].numpy())


def _products(rows: Tensor, queries: Tensor) -> Tensor:
    """Return inner products [Q, n] of bfloat16 rows [n, D] with queries [Q, D], in the arithmetic of the queries."""
    if queries.dtype == torch.bfloat16:
        return queries @ rows.T
    starts = range(0, len(rows), PIECE_ROWS)
    return torch.cat([queries @ rows[start : start + PIECE_ROWS].float().T for start in starts], dim=1)


def _best_bounds(best: Tensor, scores: Tensor, k: int, slack: Tensor, unit: float) -> Tensor:
    """Return the k largest known lower bounds of each query, best first; fewer if fewer rows were scored.

    The maxima of groups represent the rows: k groups with a bound are k rows with it.
    """
    group = GROUP_LENGTH
    while group > 1 and scores.shape[1] < 4 * k * group:
        group //= 2
    maxima = _group_maxima(scores, group)
    highest = maxima.topk(min(k, maxima.shape[1]), sorted=False).values.clamp(min=LOWEST_SCORE)  # 0 * inf is NaN
    bounds = torch.cat([best, highest - slack - unit * highest.abs()], dim=1)
    return bounds.topk(min(k, bounds.shape[1])).values


def _reaching(scores: Tensor, lowest: Tensor) -> tuple[Tensor, Tensor]:
    """Return (query, column) of the scores [Q, n] that reach their query's `lowest` [Q, 1]."""
    query, group = (_group_maxima(scores, GROUP_LENGTH) >= lowest).nonzero(as_tuple=True)
    column = group[:, None] * GROUP_LENGTH + torch.arange(GROUP_LENGTH)
    inside = column < scores.shape[1]
    column.clamp_(max=scores.shape[1] - 1)
    hit, place = (inside & (scores[query[:, None], column] >= lowest[query])).nonzero(as_tuple=True)
    return query[hit], column[hit, place]


def _group_maxima(scores: Tensor, group: int) -> Tensor:
    """Return the maximum of every `group` neighbours in the rows of [Q, n]: [Q, n / group, rounded up]."""
    num_whole = scores.shape[1] // group
    maxima = scores[:, : num_whole * group].reshape(len(scores), num_whole, group).amax(2)
    rest = scores[:, num_whole * group :]
    return maxima if not rest.shape[1] else torch.cat([maxima, rest.amax(1, keepdim=True)], dim=1)


def _by_query(
    collected: Sequence[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]],
    threshold: NDArray[np.float32],
) -> list[Candidates]:
    """Group (query, key, upper bound) by query, without those below the final threshold."""
    if not collected:
        return [Candidates(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in threshold]
    query, keys, upper = (np.concatenate(column) for column in zip(*collected, strict=True))
    reaching = upper >= threshold[query]
    query, keys, upper = query[reaching], keys[reaching], upper[reaching]
    order = np.lexsort((-upper, query))
    ends = np.searchsorted(query[order], np.arange(len(threshold) + 1))
    parts = [order[start:end] for start, end in itertools.pairwise(ends)]
    return [Candidates(keys[part], upper[part]) for part in parts]


def _is_among(keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of `keys` occur in `wanted`; both rise."""
    among = np.zeros(len(keys), bool)
    if len(keys):
        wanted = wanted[np.searchsorted(wanted, keys[0]) : np.searchsorted(wanted, keys[-1], side="right")]
        places = np.searchsorted(keys, wanted)
        among[places[keys[places] == wanted]] = True
    return among
