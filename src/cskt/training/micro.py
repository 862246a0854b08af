"""A batch that the memory cannot hold, in pieces, with the gradients of the whole batch.

A contrastive loss compares every pair of the batch with every other, so gradients that are summed over pieces would
belong to another loss. Here the features of all pieces are computed first, keeping nothing for a backward pass; the
loss of the whole batch is taken, and its gradient with respect to the features; then every piece is computed again,
and handed its share of that gradient. Gao, Zhang, Han and Callan 2021, "Scaling Deep Contrastive Learning Batch Size
under Memory Limited Setup" (arXiv 2101.06983).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from cskt.training.objective import Outputs, Views

Result = TypeVar("Result")
CARRIERS = ("image_features", "text_features", "image_tokens", "text_tokens")
"""Fields of `Outputs` through which gradients reach the model."""


def backward_in_pieces(
    pieces: Sequence[Views], encode: Callable[[Views], Outputs], backward: Callable[[Outputs], Result]
) -> Result:
    """Add the gradients of a loss over a whole batch to the parameters behind it.

    Args:
        pieces: the batch; nothing that `encode` does with one may be random, for it is done twice.
        encode: the model's outputs of a piece.
        backward: takes the outputs of the whole batch and calls backward on their loss.

    Returns:
        What `backward` returns.
    """
    with torch.no_grad():
        whole = joined([encode(piece) for piece in pieces])
    leaves = {name: value.requires_grad_() for name in CARRIERS if (value := getattr(whole, name)) is not None}
    result = backward(whole)
    first = 0
    for piece in pieces:
        outputs, rows = encode(piece), slice(first, first + len(piece.caption_ids))
        reached = [
            (tensor, leaf.grad[rows])
            for name, leaf in leaves.items()
            if leaf.grad is not None and (tensor := getattr(outputs, name)).requires_grad  # not of a frozen tower
        ]
        torch.autograd.backward([tensor for tensor, _ in reached], [gradient for _, gradient in reached])
        first = rows.stop
    return result


def joined(pieces: Sequence[Outputs]) -> Outputs:
    """The outputs of a batch from those of its pieces."""
    gathered: dict[str, Any] = {}
    for field in dataclasses.fields(Outputs):
        values = [value for piece in pieces if (value := getattr(piece, field.name)) is not None]
        gathered[field.name] = torch.cat(values) if values else None
    if pieces[0].text_tokens is not None:
        # A position counts the tokens before it: those of earlier pieces stand before it too.
        num_tokens = [piece.text_tokens.shape[:2].numel() for piece in pieces if piece.text_tokens is not None]
        starts = itertools.accumulate(num_tokens, initial=0)
        shifted = [
            piece.mlm_positions + start
            for piece, start in zip(pieces, starts, strict=False)
            if piece.mlm_positions is not None
        ]
        gathered["mlm_positions"] = torch.cat(shifted)
    return Outputs(**gathered)
