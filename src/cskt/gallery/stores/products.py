"""Inner products in bfloat16, and how far from the true ones they can be.

**The bound.** Let v be a float32 vector, v' its bfloat16 rounding, q a query and q' the query as it is multiplied.
The computed inner product is a = (1 + e) (q'.v' + f), where f comes from summing in float32 in whatever order,
|f| <= D 2^-24 |q'| |v'| to first order (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), and e
from rounding the result to nearest: |e| <= 2^-8 in bfloat16, 0 where float32 is kept. With

    |q.v - q'.v'| <= |q.(v - v')| + |(q - q').v'| <= |q| |v - v'| + |q - q'| |v'|         (Cauchy-Schwarz)

q.v lies within `slack` + `unit` |a| of a, where slack = |q| r + |q - q'| n + (D + 8) 2^-23 |q'| n, r is the largest
|v - v'| of the rows in a block and n the largest |v'|, both measured when the block is filled, and unit is 2^-8 and a
little. (Doubling D covers the second order; the 8 the rounding of bounds and final scores to float32.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cskt.device import native_bf16

PIECE_ROWS = 2048
"""Rows widened to float32 at once where bfloat16 is not multiplied itself: they stay in the processor's cache."""
LEAST = torch.finfo(torch.float32).min
"""Below every score, above the -inf of rows that are not searched."""
SUBNORMAL = 1e-30
"""Covers what is lost where a processor takes subnormal numbers for zero."""


@dataclass(frozen=True)
class Queries:
    """Queries as they are multiplied, and what is needed to bound the error; lengths are [Q, 1]."""

    multiplied: Tensor
    """[Q, D] bfloat16 or float32: the arithmetic of the product."""
    norm: Tensor
    multiplied_norm: Tensor
    rounding: Tensor
    unit: float

    @classmethod
    def prepared(cls, queries: Tensor) -> Queries:
        queries = queries.float()
        native = native_bf16()
        multiplied = queries.bfloat16() if native else queries
        norm, multiplied_norm, rounding = (
            torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
            for vectors in (queries, multiplied.float(), queries - multiplied.float())
        )
        return cls(multiplied, norm, multiplied_norm, rounding, unit=1.01 * 2**-8 if native else 0.0)

    def slack(self, row_rounding: float, row_norm: float) -> Tensor:
        """[Q, 1]; see the head of the module."""
        summing = (self.multiplied.shape[1] + 8) * 2**-23 * self.multiplied_norm * row_norm
        return 1.001 * (self.norm * row_rounding + self.rounding * row_norm + summing) + SUBNORMAL

    def least_score(self, bound: Tensor, slack: Tensor) -> Tensor:
        """The smallest computed score whose upper bound reaches `bound`, and a little less; [Q, 1]."""
        score = bound - slack
        score = torch.where(score > 0, score / (1 + self.unit), score / (1 - self.unit))
        return (score - 1e-6 * score.abs()).clamp(min=LEAST)


def products(rows: Tensor, queries: Tensor) -> Tensor:
    """Inner products [Q, n] of bfloat16 rows [n, D] with queries [Q, D], in the arithmetic of the queries."""
    if queries.dtype == torch.bfloat16:
        return queries @ rows.T
    starts = range(0, len(rows), PIECE_ROWS)
    return torch.cat([queries @ rows[start : start + PIECE_ROWS].float().T for start in starts], dim=1)
