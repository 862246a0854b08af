"""Images and sentences to vectors: `Encoder`, `load`, which makes one of any model, and models ready to train."""

from cskt.embed.encoder import Encoder
from cskt.embed.exported import EXPORTED, is_exported
from cskt.embed.model_paths import load, load_source
from cskt.embed.models import Built, build, tokenizer_for
from cskt.embed.options import EncodeOptions, ModelSource

__all__ = [
    "EXPORTED",
    "Built",
    "EncodeOptions",
    "Encoder",
    "ModelSource",
    "build",
    "is_exported",
    "load",
    "load_source",
    "tokenizer_for",
]
