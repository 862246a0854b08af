"""Text-based person retrieval with CLIP: CSKT and its rivals under one harness.

>>> import cskt
>>> encoder = cskt.load("clip-tiny", device="cpu")  # or a run, a released folder, CLIP weights such as "ViT-B/16"
>>> texts = encoder.encode_text(["a woman in a red coat", "a man with a blue bag"])
>>> texts.shape  # [B, D], rows of length 1
torch.Size([2, 256])

`train` trains a configuration (`load_config`, `RunConfig`) on a data set (`read_dataset`), `evaluate` measures an
encoder on a split, `metrics` and `losses` are functions of tensors, `Gallery` searches crops by sentence (extra
[gallery]). For a training loop of your own, `build` makes a model (`DualEncoder`) with its tokenizer, and `PairDataset`
is a data set for PyTorch's DataLoader. A wrong value, shape or file is raised as a `cskt.errors.CsktError`, a wrong
type of argument as a TypeError.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cskt import errors, losses, metrics, plugins
    from cskt.config import RunConfig, load_config
    from cskt.data.datasets import read_dataset
    from cskt.data.pairs import PairDataset
    from cskt.embed import Encoder, build, load
    from cskt.evaluation.evaluate import evaluate
    from cskt.gallery.gallery import Gallery
    from cskt.gallery.options import SearchOptions
    from cskt.gallery.query import Query
    from cskt.model.dual_encoder import DualEncoder
    from cskt.training.loop import train

__version__ = "0.2.0"
__all__ = [
    "DualEncoder",
    "Encoder",
    "Gallery",
    "PairDataset",
    "Query",
    "RunConfig",
    "SearchOptions",
    "__version__",
    "build",
    "errors",
    "evaluate",
    "load",
    "load_config",
    "losses",
    "metrics",
    "plugins",
    "read_dataset",
    "train",
]

_MODULES = {
    "DualEncoder": "cskt.model.dual_encoder",
    "Encoder": "cskt.embed",
    "Gallery": "cskt.gallery.gallery",
    "PairDataset": "cskt.data.pairs",
    "Query": "cskt.gallery.query",
    "RunConfig": "cskt.config",
    "SearchOptions": "cskt.gallery.options",
    "build": "cskt.embed",
    "errors": None,
    "evaluate": "cskt.evaluation.evaluate",
    "load": "cskt.embed",
    "load_config": "cskt.config",
    "losses": None,
    "metrics": None,
    "plugins": None,
    "read_dataset": "cskt.data.datasets",
    "train": "cskt.training.loop",
}
"""Public name -> the module that defines it; None for a module of this package. Each is imported when it is first used,
so that `import cskt` and `cskt --help` do not wait for torch."""
_NEED_GALLERY = ("Gallery", "Query", "SearchOptions")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'cskt' has no attribute '{name}'")
    module = _MODULES[name]
    return importlib.import_module(f"cskt.{name}") if module is None else getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    is_gallery_installed = importlib.util.find_spec("lancedb") is not None
    return [name for name in __all__ if is_gallery_installed or name not in _NEED_GALLERY]
