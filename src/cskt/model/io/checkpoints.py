"""Tensors of a checkpoint by the names of its model, whatever wraps them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cskt.config.types import WeightsChoice
from cskt.errors import CsktError
from cskt.model.io.unpickling import StandIn

logger = logging.getLogger(__name__)

MODEL_KEYS = (
    "state_dict", "model", "model_state_dict", "model_state", "module", "net", "network", "params", "weights",
)  # fmt: skip
"""Entries under which checkpoints hold the weights of the model; the first that exists is taken."""
EMA_KEYS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model", "ema_model_state_dict",
    "model_ema_state_dict", "averaged_model", "swa_model", "params_ema", "shadow",
)  # fmt: skip
"""Entries under which they hold the moving average of the weights."""
MAX_WRAPPERS = 8
"""Entries within entries, and prefixes before prefixes, that are removed."""
COMPILED = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names that torch.compile and others insert at any place."""
ROOTS = frozenset({
    "visual", "transformer", "vision_model", "text_model", "vision", "text", "base_model", "prompt_learner",
})  # fmt: skip
"""First parts of the names of a CLIP, which are no prefixes of a wrapper."""
IRRA_ROOT = "base_model"
"""First part of the names of the towers in IRRA's code and in codes made from it."""
COUNTER = "n_averaged"
"""Tensor of torch's AveragedModel beside the weights."""
SIZES = ("input_resolution", "context_length", "vocab_size")
"""Entries without a dot in their names that may be plain numbers in state dicts of OpenAI's."""


def named_tensors(content: Any, path: Path, choice: WeightsChoice = "model") -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, or of a mapping within it, by the names of its model."""
    found, has_both = _unwrapped(content, path, choice)
    tensors: dict[str, Tensor] = {}
    for name, value in found.items():
        if not isinstance(name, str):
            raise CsktError(f"{path}: entry '{str(name)[:80]}' is no name of a tensor")
        if isinstance(value, int | float) and ("." in name or name in SIZES) and abs(value) < 2**31:
            value = torch.tensor(value)  # noqa: PLW2901
        if not isinstance(value, Tensor):
            continue  # epochs, arguments and the like beside the tensors; one that is missing is noticed later
        if not _is_plain(value):
            raise CsktError(f"{path}: entry '{name[:80]}' is sparse, quantised or unfolds to more than the file holds")
        tensors[name] = value
    if not tensors:
        raise CsktError(f"{path}: holds no named tensors{stand_in_note(content)}")
    tensors, has_both_by_name = _stripped(tensors, path, choice)
    if has_both or has_both_by_name:
        other = "the model's own weights" if choice == "ema" else "their moving average"
        logger.info("%s: holds a model and its moving average; --weights %s is taken, not %s", path, choice, other)
    return tensors


def _unwrapped(content: Any, path: Path, choice: WeightsChoice) -> tuple[Mapping[Any, Any], bool]:
    """Return the mapping that holds the chosen tensors, and whether the file has both kinds of weights."""
    average: Any = None
    has_both = False
    for _ in range(MAX_WRAPPERS):
        if not isinstance(content, Mapping):
            break
        model, ema = _entry(content, MODEL_KEYS), _entry(content, EMA_KEYS)
        is_model = model is None and any(isinstance(value, Tensor) for value in content.values())
        has_both = has_both or (ema is not None and (model is not None or is_model))
        if ema is not None and (choice == "ema" or (model is None and not is_model)):
            average = content = ema
        elif model is not None:
            content = model
        else:
            break
    if not isinstance(content, Mapping) or not content:
        raise CsktError(f"{path}: holds no named tensors{stand_in_note(content)}")
    if average is not None and choice == "model":
        raise CsktError(f"{path}: holds a moving average alone, no model; give --weights ema")
    names = [name for name in content if isinstance(name, str)]
    if choice == "ema" and average is None and not _prefixes(names) & set(EMA_KEYS):
        raise CsktError(f"{path}: holds no moving average of the weights; leave out --weights ema")
    return content, has_both


def _entry(content: Mapping[Any, Any], keys: Iterable[str]) -> Any:
    return next((content[key] for key in keys if isinstance(content.get(key), Mapping) and content[key]), None)


def _stripped(tensors: dict[str, Tensor], path: Path, choice: WeightsChoice) -> tuple[dict[str, Tensor], bool]:
    """Remove the prefixes of wrappers; also return whether two prefixes are a model and its moving average.

    All names share such a prefix, except in a checkpoint of IRRA's code, which may have other tensors too.
    """
    as_stored = tensors
    tensors = _renamed(tensors, lambda name: ".".join(part for part in name.split(".") if part not in COMPILED), path)
    has_both = False
    for _ in range(MAX_WRAPPERS):
        counted = {name: value for name, value in tensors.items() if name != COUNTER}
        first = _prefixes(counted)
        if len(first) == 2 and first & set(EMA_KEYS) and first & set(MODEL_KEYS):
            (chosen,) = first & set(EMA_KEYS if choice == "ema" else MODEL_KEYS)
            counted, has_both = {n: v for n, v in counted.items() if n.startswith(f"{chosen}.")}, True
        elif around_irra := [key for key in MODEL_KEYS if any(n.startswith(f"{key}.{IRRA_ROOT}.") for n in counted)]:
            chosen = around_irra[0]
        elif len(first) != 1 or first & ROOTS or not all("." in name for name in counted):
            break
        else:
            (chosen,) = first
        tensors = _renamed(counted, partial(_without, f"{chosen}."), path)
    return (tensors, has_both) if _prefixes(tensors) & ROOTS else (as_stored, False)  # else errors name what is stored


def _without(prefix: str, name: str) -> str:
    return name.removeprefix(prefix)


def _prefixes(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def _renamed(tensors: Mapping[str, Tensor], rename: Callable[[str], str], path: Path) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {rename(name): value for name, value in tensors.items()}
    if len(renamed) < len(tensors):
        raise CsktError(f"{path}: two tensors have one name once the prefixes of their wrappers are taken off")
    return renamed


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor has a number in memory for each of its elements."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def stand_in_note(content: Any) -> str:
    """Return a clause that names the object that a file holds instead of tensors, if it is one."""
    if isinstance(content, StandIn):
        return f", but an object of {content.origin}; save its tensors: torch.save(model.state_dict(), FILE)"
    return ""
