"""Everything that a training needs before its first step, from the config alone."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cskt import __version__
from cskt.config import RECORDED, RunConfig, evaluation_interpolation, flat_fields, value_of
from cskt.data.images import ImageReader
from cskt.data.loading import TrainingLoader
from cskt.data.overlaps import read_separate_splits
from cskt.data.records import Split, select_splits
from cskt.data.tokenizer import log_caption_warnings
from cskt.device import pick_device, reset_peak_memory
from cskt.embed import Built, Encoder, build, tokenizer_for
from cskt.training.checkpoint import FREE_ON_RESUME, Trainee
from cskt.training.distributed import ALONE, Processes
from cskt.training.ema import Average
from cskt.training.negatives import check_captions_per_image, check_negatives
from cskt.training.objective import Objective
from cskt.training.optim import build_optimizer

COMPILED_FORMS = 64


@dataclass(frozen=True)
class Session:
    """A training ready to run."""

    config: RunConfig
    """With what the config left open and the backbone's files state (`RECORDED`)."""
    device: torch.device
    built: Built
    loader: TrainingLoader
    val_split: Split
    """The split that picks the best epoch."""
    trainee: Trainee
    processes: Processes = ALONE

    @property
    def trains(self) -> bool:
        """Whether there is anything to train; zero-shot CLIP is only evaluated and kept."""
        return self.config.trainable != "none"

    @property
    def last_epoch(self) -> int:
        """Epochs after which this session ends; 0 where nothing trains."""
        loop = self.config.loop
        return min(loop.stop_after_epochs or loop.num_epochs, loop.num_epochs) if self.trains else 0

    def encoder(self, *, bare: bool = False) -> Encoder:
        """The model as evaluation sees it; `bare` leaves prompts and adapters out (zero-shot CLIP)."""
        model, tokenizer = self.built.model, self.built.tokenizer
        if bare:
            model = model.bare()
            tokenizer = tokenizer_for(model, self.config.data.caption_length, tokenizer.known_ids)
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

    def facts(self) -> dict[str, Any]:
        """What a reader of the run wants to know of its start."""
        return {
            "version": __version__,
            "torch": torch.__version__,
            "device": str(self.device),
            "backbone": self.built.backbone_name,
            "backbone_sha256": self.built.backbone_sha256,
            "data_sha256": self.trainee.data_sha256,
            "trainable_parameters": self.built.model.num_parameters(trainable_only=True),
            "total_parameters": self.built.model.num_parameters(),
            "select_on": self.config.data.select_on,
            "train_identities": self.loader.num_identities,
            "train_pairs": self.loader.num_pairs,
            "steps_per_epoch": self.loader.steps_per_epoch,
            "micro_batch_size": self.config.loop.micro_batch_size,
            "processes": self.processes.count,
        }

    def essentials(self) -> dict[str, Any]:
        """What must be the same in every process of a training."""
        result_deciding = [key for key, _ in flat_fields() if key not in FREE_ON_RESUME]
        return {
            "version": __version__,
            "torch": torch.__version__,
            "the SHA-256 of the backbone": self.built.backbone_sha256,
            "the SHA-256 of the training data": self.trainee.data_sha256,
            "the kind of device": self.device.type,
            "loop.stop_after_epochs": self.config.loop.stop_after_epochs,
        } | {key: value_of(self.config, key) for key in result_deciding}


def prepare(config: RunConfig, processes: Processes = ALONE, *, refuse_overlaps: bool = True) -> Session:
    """Read the data, build model, losses and optimiser.

    Args:
        config: the recipe.
        processes: that train together.
        refuse_overlaps: see `read_separate_splits`.

    Raises:
        CsktError: anything in the config, the data or the weights that cannot be; one line, with the remedy.
    """
    check_captions_per_image(config)
    device = processes.device(pick_device(config.device))
    reset_peak_memory(device)
    dataset = read_separate_splits(config.data.dataset, Path(config.data.root), refuse=refuse_overlaps)
    train_split, val_split = select_splits(dataset, config.data)
    if config.trainable != "none":
        check_negatives(config, train_split)
    built = build(config)
    model, architecture = built.model.to(device), built.model.architecture
    model.checkpoint_activations(config.loop.checkpoint_activations)
    if config.loop.compile:
        # Blocks of both towers, first, middle and last, and a few lengths of captions: each compiled once.
        torch._dynamo.config.recompile_limit = COMPILED_FORMS
        for block in [*model.vision.blocks, *model.text.blocks]:
            block.compile(dynamic=False)
    height, width = architecture.image_height, architecture.image_width
    drawn = config.data
    if config.trainable == "none":  # no batch is ever drawn, and a data set may be smaller than one
        drawn = dataclasses.replace(drawn, batch_size=1, captions_per_image=1, sampler="random")
    reader = ImageReader(height, width, config.backbone.interpolation, config.data.apply_orientation)
    loader = TrainingLoader(train_split, built.tokenizer, drawn, reader, seed=config.seed)
    log_caption_warnings(f"{val_split.dataset} {val_split.name}", built.tokenizer.warnings(val_split.captions))
    objective = Objective(config.loss, config.mlm, architecture, loader.num_identities)
    objective.initialise(torch.Generator().manual_seed(config.seed))
    objective.to(device)
    named = itertools.chain(model.named_parameters(), objective.named_parameters())
    optimizer = build_optimizer([] if config.trainable == "none" else named, config.optim)
    decay = config.optim.ema_decay
    average = None if decay is None else Average(model.named_parameters(), decay)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    found = {key: getattr(architecture, key) for key in RECORDED}
    backbone = dataclasses.replace(config.backbone, **found)
    return Session(
        config=dataclasses.replace(config, backbone=backbone),
        device=device,
        built=built,
        loader=loader,
        val_split=val_split,
        trainee=Trainee(model, objective, optimizer, scaler, average, built.backbone_sha256, digest(train_split)),
        processes=processes,
    )


def digest(split: Split) -> str:
    """SHA-256 of identities, file names and captions, in order; the same wherever the data set lies."""
    content = [(record.pid, record.image_path.name, record.captions) for record in split.records]
    return hashlib.sha256(repr(content).encode()).hexdigest()
