"""`Query`, a sentence, a picture, a crop or several of these, encoded as one vector.

The unit vectors of the parts are added with their weights, and the sum is normalised. The score of a crop is its
cosine with that sum, which orders crops as the weighted sum of the cosines with the parts does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from cskt.data.sentences import check_sentence
from cskt.errors import CsktError

if TYPE_CHECKING:
    from torch import Tensor

    from cskt.embed import Encoder
    from cskt.image_files.decode import Source

SHORTEST_SUM = 1e-4
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
    exclude: tuple[str, ...] = ()
    """Sentences to move away from: "with a hat"."""
    text_weight: float = 1.0
    image_weight: float = 1.0
    """Weight of `image` and of `like`."""
    exclude_weight: float = 0.5
    """Weight of each sentence of `exclude`. At 1 it would count as much as the rest, and move too far away."""

    def __post_init__(self) -> None:
        if self.text is None and self.image is None and self.like is None:
            raise CsktError("nothing to look for; give a sentence, an image, or a crop to find more of")
        for sentence in (*([] if self.text is None else [self.text]), *self.exclude):
            check_sentence(sentence)
        for weight in (self.text_weight, self.image_weight, self.exclude_weight):
            if not 0 < weight <= 100:
                raise CsktError(f"a weight is {weight}; give more than 0, at most 100")


def query_warnings(encoder: Encoder, query: Query) -> list[str]:
    """Describe in lines what the model misses in the sentences of a query; see `Encoder.text_warnings`."""
    lines = encoder.text_warnings([query.text]) if query.text is not None else []
    for number, sentence in enumerate(query.exclude, start=1):
        place = "excluded sentence" if len(query.exclude) == 1 else f"excluded sentence {number}"
        lines += [f"{place}: {line}" for line in encoder.text_warnings([sentence])]
    return lines


class _Part(NamedTuple):
    query: int
    """Row of its query."""
    weight: float


def encode_queries(encoder: Encoder, queries: Sequence[Query], vector_of: Callable[[str], Tensor]) -> Tensor:
    """Return unit vectors [Q, D] of queries; all sentences and all pictures are encoded together.

    Args:
        encoder: of the gallery.
        queries: Q of them.
        vector_of: name of a crop -> its vector [D].

    Raises:
        CsktError: an image cannot be read, no such crop, or the parts of a query cancel each other out.
    """
    import torch  # noqa: PLC0415  (slow to import, and `cskt search --help` needs Query)
    import torch.nn.functional as F  # noqa: PLC0415

    sentences: list[str] = []
    images: list[Source] = []
    pixels: list[Tensor] = []
    sentence_parts: list[_Part] = []
    image_parts: list[_Part] = []
    pixel_parts: list[_Part] = []
    vectors = torch.zeros(len(queries), encoder.model.architecture.embed_dim)
    for row, query in enumerate(queries):
        largest = _largest_weight(query)
        text_weight, image_weight, exclude_weight = (
            weight / largest for weight in (query.text_weight, query.image_weight, query.exclude_weight)
        )
        for text, weight in [(query.text, text_weight), *((no, -exclude_weight) for no in query.exclude)]:
            if text is not None:
                sentences.append(text)
                sentence_parts.append(_Part(row, weight))
        if isinstance(query.image, torch.Tensor):
            pixels.append(query.image)
            pixel_parts.append(_Part(row, image_weight))
        elif query.image is not None:
            images.append(query.image)
            image_parts.append(_Part(row, image_weight))
        if query.like is not None:
            vectors[row] += image_weight * vector_of(query.like)
    for features, parts in (
        (encoder.encode_text(sentences), sentence_parts) if sentences else (None, []),
        (encoder.encode_image(images, apply_orientation=True), image_parts) if images else (None, []),
        (encoder.encode_image(torch.stack(pixels)), pixel_parts) if pixels else (None, []),
    ):
        if features is not None:
            weights = torch.tensor([part.weight for part in parts])
            vectors.index_add_(0, torch.tensor([part.query for part in parts]), weights[:, None] * features)
    if (vectors.norm(dim=1) < SHORTEST_SUM).any():
        raise CsktError("what is looked for and what is excluded cancel each other out; say something else")
    return F.normalize(vectors, dim=-1)


def _largest_weight(query: Query) -> float:
    """Return the largest weight of a query's parts; divided by it, no sum is too small for float32."""
    used = [
        weight
        for part, weight in (
            (query.text, query.text_weight),
            (query.image, query.image_weight),
            (query.like, query.image_weight),
            (query.exclude or None, query.exclude_weight),
        )
        if part is not None
    ]
    return max(used, default=0.0) or 1.0
