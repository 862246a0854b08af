"""Where models meet images and sentences: `Encoder`, what loads one (`load`), and exported ones (`exported`)."""

from cskt.embed.encoder import Encoder
from cskt.embed.exported import EXPORTED, is_exported
from cskt.embed.models import Built, build, load, tokenizer_for

__all__ = ["EXPORTED", "Built", "Encoder", "build", "is_exported", "load", "tokenizer_for"]
