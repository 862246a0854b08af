"""`Query`, a sentence, a picture, a crop or several of these, encoded as one vector.

The unit vectors of the parts are added with their weights, and the sum is normalised. The score of a crop is its
cosine with that sum, which orders crops as the weighted sum of the cosines with the parts does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from cskt.data.sentences import check_sentence
from cskt.errors import SHORT, CsktError
from cskt.utils.arguments import expect, listed

if TYPE_CHECKING:
    from torch import Tensor

    from cskt.embed import Encoder
    from cskt.image_files.decode import Source

MIN_SUM = 1e-4
"""A shorter sum of the parts is only rounding."""


@dataclass(frozen=True)
class Query:
    """A query; at least one of text, image and like is needed.

    Raises:
        CsktError: nothing to look for, a sentence that is empty, too long or has control characters, or a weight out
            of range.

    Example:
        >>> cskt.Query("a woman in a red coat", exclude=("with a hat",)).exclude_weight
        0.5
    """

    text: str | None = None
    """Description of the person."""
    image: Source | Tensor | None = None
    """A picture from outside the gallery: a path, an opened image, the bytes of a file, or pixels [3, H, W] uint8 in
    the size of the model."""
    like: str | None = None
    """Name of a crop of the gallery to find more of."""
    exclude: str | Sequence[str] = ()
    """Sentences to move away from: "with a hat"; one string is one sentence. Stored as a tuple."""
    text_weight: float = 1.0
    image_weight: float = 1.0
    """Weight of `image` and of `like`."""
    exclude_weight: float = 0.5
    """Weight of each sentence of `exclude`. At 1 it would count as much as the rest, and move too far away."""

    def __post_init__(self) -> None:
        if self.text is None and self.image is None and self.like is None:
            raise CsktError("nothing to look for; give a sentence, an image, or a crop to find more of")
        object.__setattr__(self, "exclude", listed(self.exclude, str, "exclude"))
        expect(self.like, (str, type(None)), "like")
        for sentence in (*([] if self.text is None else [self.text]), *self.exclude):
            check_sentence(sentence)
        for weight in (self.text_weight, self.image_weight, self.exclude_weight):
            if not (isinstance(weight, Real) and 0 < weight <= 100):
                raise CsktError(f"a weight is {SHORT.repr(weight)}; give more than 0, at most 100")


def query_warnings(encoder: Encoder, query: Query) -> list[str]:
    """Describe in lines what the model misses in the sentences of a query; see `Encoder.text_warnings`."""
    lines = encoder.text_warnings([query.text]) if query.text is not None else []
    for number, sentence in enumerate(query.exclude, start=1):
        place = "excluded sentence" if len(query.exclude) == 1 else f"excluded sentence {number}"
        lines += [f"{place}: {line}" for line in encoder.text_warnings([sentence])]
    return lines


def encode_queries(encoder: Encoder, queries: Sequence[Query], vector_of: Callable[[str], Tensor]) -> Tensor:
    """Return unit vectors [Q, D] of queries; all sentences and all pictures are encoded together.

    Args:
        vector_of: name of a crop -> its vector [D].
    """
    import torch  # noqa: PLC0415  (slow to import, and `cskt search --help` needs Query)
    import torch.nn.functional as F  # noqa: PLC0415

    sentences: list[tuple[str, int, float]] = []
    images: list[tuple[Source, int, float]] = []
    pixels: list[tuple[Tensor, int, float]] = []
    vectors = torch.zeros(len(queries), encoder.embed_dim)
    for row, query in enumerate(queries):
        largest = _largest_weight(query)
        image_weight = query.image_weight / largest
        if query.text is not None:
            sentences.append((query.text, row, query.text_weight / largest))
        sentences += [(text, row, -query.exclude_weight / largest) for text in query.exclude]
        if isinstance(query.image, torch.Tensor):
            pixels.append((query.image, row, image_weight))
        elif query.image is not None:
            images.append((query.image, row, image_weight))
        if query.like is not None:
            vectors[row] += image_weight * vector_of(query.like)
    ways: list[tuple[Any, Callable[[list[Any]], Tensor]]] = [
        (sentences, encoder.encode_text),
        (images, functools.partial(encoder.encode_image, apply_orientation=True)),
        (pixels, lambda pictures: encoder.encode_image(torch.stack(pictures))),
    ]
    for parts, encode in ways:
        if parts:
            items, rows, weights = zip(*parts, strict=True)
            vectors.index_add_(0, torch.tensor(rows), torch.tensor(weights)[:, None] * encode(list(items)))
    if (vectors.norm(dim=1) < MIN_SUM).any():
        raise CsktError("what is looked for and what is excluded cancel each other out; say something else")
    return F.normalize(vectors, dim=-1)


def _largest_weight(query: Query) -> float:
    """Return the largest weight of a query's parts; divided by it, no sum is too small for float32."""
    weights = (
        (query.text, query.text_weight),
        (query.image, query.image_weight),
        (query.like, query.image_weight),
        (query.exclude or None, query.exclude_weight),
    )
    return max(weight for part, weight in weights if part is not None)
