"""Why a gallery found its crops: heat maps of a sentence over every hit, as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cskt.explain import Explanation
from cskt.gallery.gallery import Gallery
from cskt.types import Hit
from cskt.utils.progress import bar

Explanations = dict[str, Explanation]
"""Image id -> why it was found."""


def explain_hits(gallery: Gallery, text: str, hits: Sequence[Hit]) -> Explanations:
    """Heat maps of a sentence over every hit.

    Raises:
        CsktError: the original of a crop is gone.
    """
    explanations = {}
    with bar("heat maps", len(hits)) as advance:
        for hit in hits:
            explanations[hit.image_id] = gallery.explain(hit.image_id, text)
            advance()
    return explanations


def explanation_record(explanation: Explanation) -> dict[str, Any]:
    """Heat maps as plain values: grids of patches in [0, 1], the rows from top to bottom."""
    rows, columns = explanation.sentence.shape
    return {
        "score": explanation.score,
        "rows": rows,
        "columns": columns,
        "sentence": explanation.sentence.tolist(),
        "words": [{"word": word, "heat": heat.tolist()} for word, heat in explanation.words],
    }
