"""Text-based person retrieval with CLIP: CSKT and its rivals under one harness.

encoder = cskt.load("logs/cuhk-pedes/...")              # a run, a released folder, CLIP weights, "clip-tiny"
images = encoder.encode_image(["a.jpg", "b.jpg"])       # [B, D], unit norm
texts = encoder.encode_text(["a woman in a red coat"])  # [Q, D], unit norm
cskt.metrics.from_features(texts, images, query_ids, gallery_ids)
gallery = cskt.Gallery.open("my-gallery")               # made by `cskt index`; needs the extra [gallery]
gallery.search("a woman in a red coat", k=10, where="camera = 'c3'")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cskt import metrics
    from cskt.embed import Encoder, load
    from cskt.gallery.gallery import Gallery
    from cskt.gallery.query import Query

__version__ = "0.1.0"
__all__ = ["Encoder", "Gallery", "Query", "__version__", "load", "metrics"]

_HOMES = {
    "Encoder": "cskt.embed",
    "load": "cskt.embed",
    "Gallery": "cskt.gallery.gallery",
    "Query": "cskt.gallery.query",
}


def __getattr__(name: str) -> Any:
    """Public names load what they need when first used: `import cskt` alone does not wait for torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "metrics":
        return importlib.import_module("cskt.metrics")
    raise AttributeError(f"module 'cskt' has no attribute '{name}'")
