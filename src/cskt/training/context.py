"""Everything that a training needs before its first step, from its config alone."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cskt import __version__
from cskt.config import RECORDED, RunConfig, evaluation_interpolation, flat_values
from cskt.data.datasets import DATASETS
from cskt.data.images import ImageReader
from cskt.data.loading import TrainingLoader
from cskt.data.mixing import sources_of
from cskt.data.operations import OPERATIONS, check_operations, operation_names
from cskt.data.records import Split
from cskt.data.rewording import log_back_translations
from cskt.data.tokenizer import Tokenizer, log_caption_warnings
from cskt.device import pick_device, reset_peak_memory
from cskt.embed import Encoder, build, tokenizer_for
from cskt.losses import LOSSES, build_losses
from cskt.model.parts import PARTS, complete_parts
from cskt.plugins import Registry, Requirement, of_entries, required, requirements
from cskt.training.checkpoint import FREE_ON_RESUME
from cskt.training.checks import (
    check_captions_per_image,
    check_dropout,
    check_losses,
    check_negatives,
    check_views,
)
from cskt.training.data_size import read_fitted_data
from cskt.training.distributed import SINGLE_PROCESS, Processes
from cskt.training.hooks import HOOKS, check_hooks
from cskt.training.loggers import LOGGERS
from cskt.training.objective import Objective
from cskt.training.optim import build_optimizer
from cskt.training.state import ExponentialMovingAverage, TrainState
from cskt.utils.modules import named_tensors

MAX_COMPILED_FORMS = 64


@dataclass
class TrainingContext:
    """A training that is ready to run."""

    config: RunConfig
    """Completed with the values that the files of the backbone state (`RECORDED`)."""
    device: torch.device
    tokenizer: Tokenizer
    backbone_name: str
    loader: TrainingLoader
    train_split: Split
    val_split: Split
    """Split that picks the best epoch."""
    state: TrainState
    processes: Processes = SINGLE_PROCESS
    other_splits: Sequence[Split] = ()
    """Selection splits of the other data sets of a mix, which are evaluated, too."""

    @property
    def num_epochs_to_train(self) -> int:
        """Number of epochs after which this session ends; 0 if nothing trains."""
        loop = self.config.loop
        return min(loop.stop_after_epochs or loop.num_epochs, loop.num_epochs) if self.config.is_trainable else 0

    def encoder(self, *, bare: bool = False) -> Encoder:
        """Return an encoder of the model; `bare` leaves out the parts of the method (zero-shot CLIP)."""
        model, tokenizer = self.state.model, self.tokenizer
        if bare:
            model = model.bare()
            tokenizer = tokenizer_for(model, self.config.data, tokenizer.known_ids)
        return Encoder(
            model,
            tokenizer,
            device=self.device,
            precision=self.config.precision,
            templates=self.config.data.templates,
            interpolation=evaluation_interpolation(self.config),
            apply_orientation=self.config.data.apply_orientation,
            batch_size=self.config.data.eval_batch_size,
            num_workers=self.config.data.num_workers,
            cache_dir=None if self.config.data.cache_dir is None else Path(self.config.data.cache_dir),
        )

    def start_event(self) -> dict[str, Any]:
        """Return the fields that the start event of the run records."""
        return {
            "version": __version__,
            "torch": torch.__version__,
            "device": str(self.device),
            "backbone": self.backbone_name,
            "backbone_sha256": self.state.backbone_sha256,
            "data_sha256": self.state.data_sha256,
            "trainable_parameters": self.state.model.num_parameters(trainable_only=True),
            "total_parameters": self.state.model.num_parameters(),
            "select_on": self.config.data.select_on,
            "train_identities": self.loader.num_identities,
            "train_pairs": self.loader.num_pairs,
            "steps_per_epoch": self.loader.steps_per_epoch,
            "micro_batch_size": self.config.loop.micro_batch_size,
            "processes": self.processes.world_size,
        }

    def values_equal_on_all_ranks(self) -> dict[str, Any]:
        """Return the values that must be the same in every process of a training."""
        decisive = {key: value for key, value in flat_values(self.config).items() if key not in FREE_ON_RESUME}
        return {
            "version": __version__,
            "torch": torch.__version__,
            "the SHA-256 of the backbone": self.state.backbone_sha256,
            "the SHA-256 of the training data": self.state.data_sha256,
            "the kind of device": self.device.type,
            "loop.stop_after_epochs": self.config.loop.stop_after_epochs,
        } | decisive


def prepare(
    config: RunConfig, processes: Processes = SINGLE_PROCESS, *, refuse_overlaps: bool = True
) -> TrainingContext:
    """Read the data; build model, losses and optimizer. For `refuse_overlaps` see `read_separate_splits`."""
    with required(of_entries(config.plugins, _entries(config))):
        return _prepare(config, processes, refuse_overlaps)


def with_defaults(config: RunConfig) -> RunConfig:
    """Return a config as a run records it: with the defaults of its parts, and the constants of losses, operations and
    hooks as their types. Raise CsktError if one of these is unknown or invalid."""
    config = dataclasses.replace(
        config,
        loss=check_losses(config.loss, config.plugins),
        parts=complete_parts(config.parts),
        augment=check_operations(config.augment),
    )
    return check_hooks(config)


def _prepare(config: RunConfig, processes: Processes, refuse_overlaps: bool) -> TrainingContext:
    config = with_defaults(config)
    check_captions_per_image(config)
    for name in config.loop.loggers:
        LOGGERS[name].check()
    device = processes.device(pick_device(config.device))
    reset_peak_memory(device)
    config, (train_split, mix_parts, (val_split, *other_splits)) = read_fitted_data(
        config, refuse_overlaps=refuse_overlaps
    )
    if config.is_trainable:
        check_negatives(config, train_split)
    built = build(config)
    model, architecture = built.model.to(device), built.model.architecture
    model.checkpoint_activations(config.loop.checkpoint_activations)
    if config.loop.compile:
        # Blocks of both towers, first, middle and last, and a few lengths of captions: each compiled once.
        torch._dynamo.config.recompile_limit = MAX_COMPILED_FORMS
        for block in [*model.vision.blocks, *model.text.blocks]:
            block.compile(dynamic=False)
    data, height, width = config.data, architecture.image_height, architecture.image_width
    if not config.is_trainable:  # no batch is drawn, and a data set may be smaller than one
        data = dataclasses.replace(data, batch_size=1, captions_per_image=1, sampler="random")
    reader = ImageReader(height, width, config.backbone.interpolation, config.data.apply_orientation)
    loader = TrainingLoader(train_split, built.tokenizer, data, reader, seed=config.seed, mix_parts=mix_parts)
    log_caption_warnings(f"{val_split.dataset} {val_split.name}", built.tokenizer.warnings(val_split.captions))
    log_back_translations(train_split, config.augment)
    objective = Objective(config.loss, config.mlm, architecture, loader.num_identities)
    check_views(build_losses(config.loss.weights, config.loss), config.augment)
    check_dropout(model, config.augment)
    objective.initialise(torch.Generator().manual_seed(config.seed))
    objective.to(device)
    objective.share_gradients(processes.world_size, model.method_parts().values())
    named = itertools.chain(model.named_parameters(), objective.named_parameters())
    heads = [f"parts.{name}." for name in model.heads]
    decay = config.optim.ema_decay
    state = TrainState(
        model,
        objective,
        optimizer=build_optimizer(named if config.is_trainable else [], config.optim, heads),
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        ema=None if decay is None else ExponentialMovingAverage(named_tensors(model).items(), decay),
        backbone_sha256=built.backbone_sha256,
        data_sha256=data_digest(train_split),
    )
    backbone = dataclasses.replace(config.backbone, **{key: getattr(architecture, key) for key in RECORDED})
    return TrainingContext(
        config=dataclasses.replace(config, backbone=backbone, plugins=_plugins(config)),
        device=device,
        tokenizer=built.tokenizer,
        backbone_name=built.backbone_name,
        loader=loader,
        train_split=train_split,
        val_split=val_split,
        state=state,
        processes=processes,
        other_splits=other_splits,
    )


def _plugins(config: RunConfig) -> tuple[Requirement, ...]:
    """Return the plug-ins that losses, method parts, hooks, loggers and the data set of a config come from."""
    return requirements(_entries(config))


def _entries(config: RunConfig) -> list[tuple[Registry[Any], str]]:
    named: list[tuple[Registry[Any], str]] = [(LOSSES, name) for name in config.loss.weights]
    named += [(PARTS, name) for name in config.parts]
    named += [(OPERATIONS, name) for name in operation_names(config.augment)]
    named += [(HOOKS, name) for name in config.hooks]
    named += [(LOGGERS, name) for name in config.loop.loggers]
    return [*named, *((DATASETS, str(source.dataset)) for source in sources_of(config.data))]


def data_digest(split: Split) -> str:
    """Return the SHA-256 of identities, file names, captions and back-translations in order.

    It does not depend on the folder of the data set. Runs record it. `Split.sha256`, which evaluations record, has
    another format; neither can change, because files contain both.
    """
    content = [
        (record.pid, record.image_path.name, record.captions, *filter(None, [record.back_translations]))
        for record in split.records
    ]
    return hashlib.sha256(repr(content).encode()).hexdigest()
