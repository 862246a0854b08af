"""Starting a run from the weights of another (`init_from`): read strictly, then copied into a session."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cskt.config import RunConfig, as_trained, completed_like, flat_fields, validate, value_of
from cskt.errors import CsktError
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.cache import sha256_of
from cskt.model.io.files import MethodFile, kind_of, read_method
from cskt.model.io.layouts import OURS
from cskt.model.io.weights import gather
from cskt.training.heads import read_run_heads
from cskt.training.run_folder import BEST
from cskt.training.setup import Session

logger = logging.getLogger(__name__)

TOWERS = ("vision.", "text.")
FUNCTION_SECTIONS = ("backbone.", "prompts.", "adapters.", "lora.")
"""Sections of the config that say which function the weights compute ..."""
STARTING_KEYS = {
    "backbone.name",
    "prompts.init",
    "prompts.words",
    "prompts.init_std",
    "adapters.init",
    "adapters.init_std",
}
"""... but for these, which say where weights come from."""


@dataclass(frozen=True)
class InitialWeights:
    """Weights of another run, checked against the session that is to start from them."""

    origin: str
    """The run folder or file, as the config names it."""
    sha256: str
    """Digest of the weight file."""
    tensors: dict[str, Tensor]
    """By the model's names."""
    heads: dict[str, Tensor]
    """By the objective's names; those that are missing start as the recipe draws them."""

    def facts(self) -> dict[str, Any]:
        """Facts that the start event of the new run records."""
        heads = sorted({name.partition(".")[0] for name in self.heads})
        return {"init_from": self.origin, "init_from_sha256": self.sha256, "init_from_heads": heads}

    @torch.no_grad()
    def apply(self, session: Session) -> None:
        """Copy the weights into a session that has not made a step yet; its moving average starts from them too."""
        for module, tensors in ((session.built.model, self.tensors), (session.trainee.objective, self.heads)):
            parameters = dict(module.named_parameters())
            for name, value in tensors.items():
                parameters[name].copy_(value)
        if session.trainee.average is not None:
            session.trainee.average.restart()


def read_initial(session: Session) -> InitialWeights | None:
    """Read the weights that a config starts from, and check that they fit; None if it names none.

    The model is that of the other run: its backbone with the tensors that it trained. It must have exactly the
    parameters of this session's model, and may differ from the backbone only where this session trains, for only that
    is saved.

    Raises:
        CsktError: no such run or file, another backbone, a tensor that is missing, unknown or misshapen, or one that
            was trained there and is frozen here; one line that names it.
    """
    config, named = session.config, session.config.init_from
    if named is None:
        return None
    if not session.trains:
        raise CsktError(f"init_from {named}: trainable none trains nothing; evaluate that run instead")
    path = _weight_file(named)
    file = read_method(path)
    if file.backbone_sha256 != session.built.backbone_sha256:
        raise CsktError(
            f"{path}: trained over the backbone {file.backbone_name} (SHA-256 {file.backbone_sha256 or 'none'}), and"
            f" backbone.name {session.built.backbone_name} is another; start from the same backbone"
        )
    source = completed_like(as_trained(validate(RunConfig, file.config, f"{path}: config")), config)
    if source.backbone.weights != config.backbone.weights:
        raise CsktError(
            f"{path}: trained over the {source.backbone.weights} weights of its backbone, and backbone.weights is"
            f" {config.backbone.weights}; start from the same"
        )
    tensors = _fitting(file, source, session, path)
    for key, _ in flat_fields():
        if key.startswith(FUNCTION_SECTIONS) and key not in STARTING_KEYS:
            before, now = value_of(source, key), value_of(config, key)
            if before != now:
                logger.warning("init_from %s: %s is %s there and %s here", named, key, before, now)
    heads = _fitting_heads(Path(named), session)
    return InitialWeights(named, sha256_of(path), tensors, heads)


def initial_file(named: str) -> Path | None:
    """The weight file of the run or file that `init_from` names; None if there is none any more."""
    place = Path(named)
    path = place / BEST if place.is_dir() else place
    return path if path.is_file() else None


def _weight_file(named: str) -> Path:
    place, path = Path(named), initial_file(named)
    if path is None and place.is_dir():
        raise CsktError(f"init_from {place}: no {BEST} there; name a run that has completed an evaluation")
    if path is None:
        raise CsktError(f"init_from {place}: no such run folder or file")
    if path.suffix != ".safetensors" or kind_of(path) != "method":
        raise CsktError(
            f"init_from {place}: no run folder and no file of 'cskt export --merge'; a CLIP is named by backbone.name"
        )
    return path


def _fitting(file: MethodFile, source: RunConfig, session: Session, path: Path) -> dict[str, Tensor]:
    own = dict(session.built.model.named_parameters())
    with torch.device("meta"):
        model = DualEncoder(
            session.built.model.architecture, source.prompts, source.adapters, source.lora, source.trainable
        )
    expected = model.trainable_names() if file.architecture is None else [name for name, _ in model.named_parameters()]
    advice = "start from a run of the same recipe"
    if unknown := next((name for name in [*expected, *file.tensors] if name not in own), None):
        raise CsktError(f"{path}: unknown tensor '{unknown}', which this recipe does not have; {advice}")
    if missing := next((name for name in own if not name.startswith(TOWERS) and name not in expected), None):
        raise CsktError(f"{path}: tensor '{missing}' is missing, which this recipe has; {advice}")
    tensors = gather(file.tensors, {name: own[name].shape for name in expected}, OURS, origin=str(path))
    for name, value in tensors.items():
        if not own[name].requires_grad and not torch.equal(value, own[name].detach().cpu()):
            raise CsktError(
                f"{path}: '{name}' was trained there and is frozen here; set trainable as that run has it, or to all"
            )
    return tensors


def _fitting_heads(place: Path, session: Session) -> dict[str, Tensor]:
    """The heads of the other run that this one can use; the log says of each head which."""
    own = dict(session.trainee.objective.named_parameters())
    if not own:
        return {}
    found = read_run_heads(place) if place.is_dir() else None
    if found is not None and found.note:
        logger.info("%s", found.note)
    taken: dict[str, Tensor] = {}
    for head in sorted({name.partition(".")[0] for name in own}):
        shapes = {name: value.shape for name, value in own.items() if name.startswith(f"{head}.")}
        tensors = {} if found is None else {n: value for n, value in found.tensors.items() if n.startswith(f"{head}.")}
        if not tensors:
            reason = "that run kept none"
        elif {name: value.shape for name, value in tensors.items()} != shapes:
            reason = "that run's has another shape"
        elif head == "classifier" and found is not None and found.data_sha256 != session.trainee.data_sha256:
            reason = "that run trained on other identities or captions"
        else:
            taken |= tensors
            logger.info("init_from %s: the %s continues from that run", place, head)
            continue
        logger.info("init_from %s: the %s is drawn anew: %s", place, head, reason)
    return taken
