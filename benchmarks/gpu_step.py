"""The variants of the training step that `benchmarks.gpu` measures, and their batches.

The step is that of the package: `DualEncoder`, `losses.sdm`, `build_optimizer`. A variant defines how it is run.

Captions have the lengths of CUHK-PEDES (Li et al., CVPR 2017, section 3.1): 1,893,118 words in 80,412 captions, 23.5 on
average, 96 in the longest. Numbers of words are drawn from the log-normal distribution with that mean that exceeds 96
once in 80,412 draws. A word counts as 1.5 tokens, because of punctuation and misspelt words: 37 tokens on average,
including start and end.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.naive import NaiveEncoder
from cskt import losses
from cskt.config import ClipArchitecture, OptimConfig
from cskt.device import arithmetic
from cskt.model.dual_encoder import DualEncoder
from cskt.training.optim import build_optimizer
from cskt.types import Batch

NUM_CAPTIONS, MEAN_WORDS, MOST_WORDS = 80_412, 23.5, 96
TOKENS_PER_WORD = 1.5
NUM_IDENTITIES = 11_003
"""Captions of the training split of CUHK-PEDES."""
STEP_OF_LENGTHS = 8
"""Captions are padded to a multiple of this, which gives few shapes and suits tensor cores and attention masks."""
WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Form:
    """One way to run the training step."""

    name: str
    precision: Literal["fp32", "bf16"] = "bf16"
    released: bool = False
    """Compute as the released code (`benchmarks.naive`)."""
    fused: bool = True
    """Use fused AdamW instead of the foreach implementation."""
    parts: int = 1
    """Number of groups of captions by length, each padded to its longest caption."""
    frozen_bf16: bool = False
    """Store frozen layers in bfloat16, to which autocast would round them in every step."""
    compiled: Literal["", "blocks", "towers"] = ""
    """Use torch.compile, per block or per tower."""
    graph: bool = False
    """Record the whole step with its optimizer as a CUDA graph and replay it."""
    checkpointed: bool = False
    """Recompute activations in the backward pass."""
    times_pairs: int = 1
    """Pairs per step, in units of --batch-size."""


FORMS = (
    Form("float32", precision="fp32"),
    Form("released wiring", released=True, fused=False),
    Form("eager", fused=False),
    Form("fused AdamW"),
    Form("captions in 2 parts", parts=2),
    Form("frozen layers in bf16", parts=2, frozen_bf16=True),
    Form("activations recomputed", checkpointed=True),
    Form("blocks compiled", parts=2, frozen_bf16=True, compiled="blocks"),
    Form("blocks compiled, graph", parts=2, frozen_bf16=True, compiled="blocks", graph=True),
    Form("eager kernels, graph", parts=2, frozen_bf16=True, graph=True),
    Form("towers compiled, graph", parts=2, frozen_bf16=True, compiled="towers", graph=True),
    Form("blocks compiled, graph, 4 parts", parts=4, frozen_bf16=True, compiled="blocks", graph=True),
    Form("blocks compiled, graph, twice the pairs", parts=2, frozen_bf16=True, compiled="blocks", graph=True,
         times_pairs=2),
)  # fmt: skip
"""Variants in the order of measurement; all but the first in bfloat16."""


def draw_lengths(count: int, longest: int, generator: torch.Generator) -> Tensor:
    """Return the numbers of tokens [count] int64 of captions, as described above; longer captions are cut."""
    furthest = NormalDist().inv_cdf(1 - 1 / NUM_CAPTIONS)
    # mean * exp(furthest * spread - spread**2 / 2) = most, solved for the spread
    spread = furthest - math.sqrt(furthest**2 - 2 * math.log(MOST_WORDS / MEAN_WORDS))
    words = MEAN_WORDS * torch.exp(spread * torch.randn(count, generator=generator) - spread**2 / 2)
    return (2 + TOKENS_PER_WORD * words).round().long().clamp(3, longest)


def draw_batches(
    architecture: ClipArchitecture, batch_size: int, longest: int, count: int, generator: torch.Generator
) -> list[Batch]:
    """Return `count` batches of noise and random words, sorted by caption length within a batch."""
    start_id, end_id = architecture.vocab_size - 2, architecture.vocab_size - 1
    places = torch.arange(longest)
    batches = []
    for _ in range(count):
        ends = draw_lengths(batch_size, longest, generator).sort().values[:, None] - 1
        ids = torch.randint(1, start_id, (batch_size, longest), generator=generator)
        ids[:, 0] = start_id
        ids = ids.masked_fill(places == ends, end_id).masked_fill(places > ends, 0)
        shape = (batch_size, 3, architecture.image_height, architecture.image_width)
        images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        pids = torch.randint(NUM_IDENTITIES, (batch_size,), generator=generator)
        batches.append(Batch(images, ids, pids, torch.arange(batch_size)))
    return batches


def lengths_of(batch: Batch) -> list[int]:
    """Number of tokens of each caption, including start and end."""
    return [int(end) + 1 for end in batch.caption_ids.argmax(dim=1)]


def part_lengths(batches: Sequence[Batch], parts: int) -> tuple[int, ...]:
    """Return the padded length of each part of all batches, one shape for the whole run."""
    longest = batches[0].caption_ids.shape[1]
    pieces = [
        [int(ids.argmax(dim=1).max()) + 1 for ids in batch.caption_ids.chunk(parts)] for batch in batches
    ]  # a part's longest caption in each batch
    return tuple(
        min(STEP_OF_LENGTHS * -(-max(lengths) // STEP_OF_LENGTHS), longest) for lengths in zip(*pieces, strict=True)
    )


class TrainingStep:
    """A variant of the step with its own model: forward, loss, backward, optimizer.

    Args:
        model: copied, so that every variant starts alike.
        form: the variant.
        lengths: padded lengths of the groups of captions.
        device: the device to run on.
    """

    def __init__(self, model: DualEncoder, form: Form, lengths: Sequence[int], device: torch.device) -> None:
        self.form, self.lengths, self.device = form, lengths, device
        self.model = copy.deepcopy(model).to(device)
        self.model.checkpoint_activations(form.checkpointed)
        if form.frozen_bf16:
            hold_frozen(self.model, torch.bfloat16)
        self.naive = NaiveEncoder.of(self.model) if form.released else None
        self.optimizer = build_optimizer(self.model.named_parameters(), OptimConfig())
        for group in self.optimizer.param_groups:
            group.update(fused=form.fused, foreach=not form.fused, capturable=form.graph)
        _compile(self.model, form)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._start = [(parameter, parameter.detach().clone()) for parameter in trained]
        self._recorded: _Recorded | None = None

    def features(self, images: Tensor, caption_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return (image features, text features), each [B, D], in the arithmetic of the variant."""
        with arithmetic(self.device, self.form.precision):
            if self.naive is not None:
                with self.device:  # where it makes its masks
                    return self.naive(images, caption_ids)
            parts = zip(caption_ids.chunk(len(self.lengths)), self.lengths, strict=True)
            text_features = [self.model.encode_text(ids[:, :length]) for ids, length in parts]
            return self.model.encode_image(images), torch.cat(text_features)

    def warm_up(self, images: Tensor, caption_ids: Tensor, pids: Tensor) -> None:
        """Compile and record the variant, then restore the initial state."""
        stream = torch.cuda.Stream(self.device) if self.form.graph else None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):  # recording asks for it; none changes nothing
            for _ in range(WARM_UP_STEPS):
                self._run(images, caption_ids, pids)
        if stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(stream)
            self._recorded = _Recorded(self, images, caption_ids, pids)
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """Restore the initial trained parameters and optimizer state, in place."""
        for parameter, value in self._start:
            parameter.copy_(value)
        for state in self.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()

    def first_gradients(self) -> Tensor:
        """Return the gradients [trained numbers] of the first step on the CPU, from Adam's first moment after it."""
        share = 1 - self.optimizer.param_groups[0]["betas"][0]
        moments = [self.optimizer.state[parameter]["exp_avg"].flatten() for parameter, _ in self._start]
        return torch.cat(moments).cpu() / share

    def __call__(self, images: Tensor, caption_ids: Tensor, pids: Tensor) -> Tensor:
        """Run a step and return the loss before it, without waiting for the device.

        Args:
            images: [B, 3, H, W], augmented and normalised.
            caption_ids: [B, L] int64, by length.
            pids: [B].
        """
        if self._recorded is not None:
            return self._recorded.play(images, caption_ids, pids)
        return self._run(images, caption_ids, pids)

    def _run(self, images: Tensor, caption_ids: Tensor, pids: Tensor) -> Tensor:
        loss = losses.sdm(*self.features(images, caption_ids), pids)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


class _Recorded:
    """A step as a CUDA graph, which reads and writes the same memory in each replay."""

    def __init__(self, step: TrainingStep, *inputs: Tensor) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = step._run(*self.inputs)

    def play(self, *inputs: Tensor) -> Tensor:
        for mine, tensor in zip(self.inputs, inputs, strict=True):
            mine.copy_(tensor)
        self.graph.replay()
        return self.loss.clone()


def hold_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert linear layers and convolutions that are not trained."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not any(p.requires_grad for p in module.parameters()):
            module.to(dtype)


def _compile(model: DualEncoder, form: Form) -> None:
    if not form.compiled:
        return
    # One compiled form for each shape and each pattern of what learns: more than the default allows.
    torch._dynamo.config.recompile_limit = 64
    if form.compiled == "towers":
        model.encode_image = torch.compile(model.encode_image, dynamic=False)
        model.encode_text = torch.compile(model.encode_text, dynamic=False)
        return
    for block in (*model.vision.blocks, *model.text.blocks):
        block.compile(dynamic=False)
