"""Weights of a finished run: its training heads, and starting another run from it (`init_from`).

`best.heads.safetensors` belongs to one `best.safetensors` and contains its SHA-256. It is written second: if a run is
killed between the two, the older heads no longer fit, which is noticed, and `last.pt` has the heads of that very epoch.
With a moving average the weights are averaged; the heads are those that trained beside them, not averaged.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from cskt.config import RunConfig, as_trained, completed_like, flat_values, to_dict, validate
from cskt.config.file_names import BEST, HEADS, LAST, PREVIOUS
from cskt.embed.hub import local_path
from cskt.errors import CsktError
from cskt.model.dual_encoder import TOWERS, DualEncoder
from cskt.model.io.cache import label_of, sha256_of
from cskt.model.io.native import HeadsFile, MethodFile, kind_of, read_heads, read_method, save_weights
from cskt.model.io.released.reader import is_released, read_released, released_weights
from cskt.model.io.weights import gather_state
from cskt.plugins import of_section, required
from cskt.training.checkpoint import read_last
from cskt.training.context import TrainingContext
from cskt.utils.modules import named_tensors
from cskt.utils.paths import check_path

logger = logging.getLogger(__name__)

FUNCTION_SECTIONS = ("backbone.", "prompts.", "adapters.", "lora.", "parts.")
"""Sections of the config that change what the weights compute; a difference is logged."""
STARTING_KEYS = {
    "backbone.name", "prompts.init", "prompts.words", "prompts.init_std", "adapters.init", "adapters.init_std",
}  # fmt: skip
"""Keys of these sections that only say where initial values come from; a difference is not logged."""
HALF_PRECISION = 1e-3, 1e-5
"""Relative and absolute differences of frozen tensors of a released folder, in half precision, from the backbone."""


@dataclass(frozen=True)
class RunHeads:
    """Training heads of a run."""

    tensors: dict[str, Tensor]
    """By their names in `Objective`."""
    data_sha256: str
    """Digest of the training pairs, whose identities are the rows of the classifier."""
    note: str
    """Origin of the heads, if that is not the best epoch; empty otherwise."""


def save_best_heads(folder: Path, heads: dict[str, Tensor], *, data_sha256: str, epoch: int) -> None:
    """Write the heads that belong to the best.safetensors of a run folder; nothing if there are none."""
    if heads:
        file = HeadsFile(sha256_of(folder / BEST), data_sha256, facts={"epoch": str(epoch)}, tensors=heads)
        save_weights(folder / HEADS, file)


def read_run_heads(folder: Path) -> RunHeads | None:
    """Read the heads of the best epoch of a run, else those of its last checkpoint; None if it has none."""
    path = folder / HEADS
    reason = f"it has no {HEADS} (made by an earlier version)"
    if path.is_file():
        try:
            saved = read_heads(path)
        except CsktError as error:
            raise CsktError(f"{error}; delete the file to use the last epoch's heads instead") from None
        if saved.weights_sha256 == sha256_of(folder / BEST):
            return RunHeads(saved.tensors, saved.data_sha256, "")
        reason = f"{HEADS} belongs to another {BEST}"
    if not any((folder / name).is_file() for name in (LAST, PREVIOUS)):
        return None
    content, source = read_last(folder / LAST)
    if not content["objective"]:
        return None
    note = f"{folder}: {reason}, so the training heads are the last epoch's, from {source.name}"
    return RunHeads(content["objective"], content["data_sha256"], note)


@dataclass(frozen=True)
class InitialWeights:
    """Weights of another run, checked against the training that starts from them."""

    origin: str
    """Run folder or file, as in the config."""
    sha256: str
    """Digest of the weight file."""
    tensors: dict[str, Tensor]
    """By their names in the model."""
    heads: dict[str, Tensor]
    """By their names in the objective; missing ones stay as the recipe draws them."""

    def start_event(self) -> dict[str, Any]:
        """Return the fields that the start event of the new run records."""
        heads = sorted({name.partition(".")[0] for name in self.heads})
        return {"init_from": self.origin, "init_from_sha256": self.sha256, "init_from_heads": heads}

    @torch.no_grad()
    def apply(self, context: TrainingContext) -> None:
        """Copy the weights into a training before its first step; its moving average starts from them too."""
        state = context.state
        for module, tensors in ((state.model, self.tensors), (state.objective, self.heads)):
            own = named_tensors(module)
            for name, value in tensors.items():
                own[name].copy_(value)
        if state.ema is not None:
            state.ema.restart()


def read_initial_weights(context: TrainingContext) -> InitialWeights | None:
    """Read the weights of `init_from`, the same in every process; None if the config names none.

    They are the backbone of the other run with the tensors that it trained. They must be exactly the parameters of
    this model, and may differ from the backbone only where this run trains, for only that is saved.
    """
    named = context.config.init_from
    initial = None if named is None else _read_initial_weights(context, named)
    context.processes.check_equal({"the SHA-256 of init_from": None if initial is None else initial.sha256})
    return initial


def _read_initial_weights(context: TrainingContext, named: str) -> InitialWeights:
    config = context.config
    if not context.config.is_trainable:
        raise CsktError(f"init_from {named}: trainable none trains nothing; evaluate that run instead")
    path = _weight_file(named)
    file = _released_file(path, context) if is_released(path) else read_method(path)
    if file.backbone_sha256 != context.state.backbone_sha256:
        raise CsktError(
            f"{path}: trained over the backbone {file.backbone_name} ({label_of(file.backbone_sha256 or 'none')}), and"
            f" {context.backbone_name} is another; name the file of that backbone: --backbone.name FILE"
        )
    source = completed_like(as_trained(validate(RunConfig, file.config, f"{path}: config")), config)
    if source.backbone.weights != config.backbone.weights:
        raise CsktError(
            f"{path}: trained over the {source.backbone.weights} weights of its backbone, and backbone.weights is"
            f" {config.backbone.weights}; start from the same"
        )
    tensors = _fitting_tensors(file, source, context.state.model, path)
    own = flat_values(config)
    for key, before in flat_values(source).items():
        if key.startswith(FUNCTION_SECTIONS) and key not in STARTING_KEYS:
            now = own.get(key)
            if before != now:
                logger.warning("init_from %s: %s was %s, now %s", named, key, before, now)
    return InitialWeights(named, sha256_of(path), tensors, _fitting_heads(Path(named), context))


def initial_file(named: str) -> Path | None:
    """Return the weight file of the run or file that `init_from` names; None if it does not exist."""
    place = local_path(named)
    check_path(place)
    path = place / BEST if place.is_dir() else place
    if not path.is_file() and is_released(place):
        return released_weights(place)
    return path if path.is_file() else None


def _weight_file(named: str) -> Path:
    place, path = Path(named), initial_file(named)
    if path is None and place.is_dir():
        raise CsktError(f"init_from {place}: no {BEST} there; name a run that has completed an evaluation")
    if path is None:
        raise CsktError(f"init_from {place}: no such run folder or file")
    if not is_released(path) and (path.suffix != ".safetensors" or kind_of(path) != "method"):
        raise CsktError(
            f"init_from {place}: no run folder, released folder or file of 'cskt export --merge'; a CLIP is named by"
            " backbone.name"
        )
    return path


def _released_file(path: Path, context: TrainingContext) -> MethodFile:
    """Return the weights of a released folder, whose backbone is not known; frozen tensors are compared instead."""
    found = read_released(path)
    config, name, sha256 = to_dict(found.config), context.backbone_name, context.state.backbone_sha256
    if config["backbone"].get("stride") == found.architecture.patch_size:
        config["backbone"]["stride"] = None  # the same, as recipes write it
    return MethodFile(config, name, sha256, {}, found.architecture, tensors=found.state)


def _fitting_tensors(file: MethodFile, source: RunConfig, model: DualEncoder, path: Path) -> dict[str, Tensor]:
    own = named_tensors(model)
    with required(of_section(source.plugins, "parts")), torch.device("meta"):
        other = DualEncoder(model.architecture, source.method, source.trainable, source.frozen)
    expected = named_tensors(other, trainable_only=file.architecture is None)
    remedy = "start from a run of the same recipe"
    if unknown := next((name for name in [*expected, *file.tensors] if name not in own), None):
        raise CsktError(f"{path}: unknown tensor '{unknown}', which this recipe does not have; {remedy}")
    if missing := next((name for name in own if not name.startswith(TOWERS) and name not in expected), None):
        raise CsktError(f"{path}: tensor '{missing}' is missing, which this recipe has; {remedy}")
    tensors = gather_state(file.tensors, {name: own[name] for name in expected}, origin=str(path))
    rtol, atol = HALF_PRECISION if is_released(path) else (0.0, 0.0)
    frozen = [name for name in tensors if isinstance(own[name], Parameter) and not own[name].requires_grad]
    for name in frozen:
        if not torch.allclose(tensors[name], own[name].detach().cpu(), rtol=rtol, atol=atol):
            raise CsktError(
                f"{path}: '{name}' was trained there and is frozen here; set trainable as that run has it, or to all"
            )
    return {name: value for name, value in tensors.items() if name not in frozen}


def _fitting_heads(place: Path, context: TrainingContext) -> dict[str, Tensor]:
    """Return the heads of the other run that this one can use; log for each head whether it is used."""
    own = named_tensors(context.state.objective)
    if not own:
        return {}
    found = read_run_heads(place) if place.is_dir() else None
    if found is not None and found.note:
        logger.info("%s", found.note)
    used: dict[str, Tensor] = {}
    for head in sorted({name.partition(".")[0] for name in own}):
        shapes = {name: value.shape for name, value in own.items() if name.startswith(f"{head}.")}
        tensors = {} if found is None else {n: value for n, value in found.tensors.items() if n.startswith(f"{head}.")}
        if not tensors:
            reason = "that run has no such head"
        elif {name: value.shape for name, value in tensors.items()} != shapes:
            reason = "that run's has another shape"
        elif head == "classifier" and found is not None and found.data_sha256 != context.state.data_sha256:
            reason = "that run trained on other identities or captions"
        else:
            used |= tensors
            logger.info("init_from %s: the %s continues from that run", place, head)
            continue
        logger.info("init_from %s: the %s is initialised from the recipe: %s", place, head, reason)
    return used
