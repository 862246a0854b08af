"""The training step of `benchmarks.gpu` in each form that may be the fastest, and the batches that it is fed.

The step is the package's own: `DualEncoder`, `losses.sdm`, `build_optimizer`. A form says only how it is run.

Captions are as long as those of CUHK-PEDES, of which is published (Li et al., CVPR 2017, section 3.1): 1,893,118 words
in 80,412 captions, 23.5 on average, 96 in the longest. Words are drawn from the one log-normal distribution of that
mean which exceeds 96 once in 80,412 draws; a word is taken for 1.5 tokens, since punctuation counts and misspelt words
are several: 37 tokens on average, start and end included.
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
"""Of the training split of CUHK-PEDES."""
STEP_OF_LENGTHS = 8
"""Captions are padded to a multiple of it: few shapes, and rows that tensor cores and attention's masks like."""
WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Form:
    """One way to run the training step."""

    name: str
    precision: Literal["fp32", "bf16"] = "bf16"
    released: bool = False
    """The released wiring of `benchmarks.naive` in place of ours."""
    fused: bool = True
    """AdamW in one kernel; otherwise one for each operation on all tensors together."""
    parts: int = 1
    """Captions are encoded in so many groups by length, each padded to its own longest."""
    frozen_bf16: bool = False
    """Frozen layers are kept in bfloat16, to which autocast would round them anew in every step: the same numbers."""
    compiled: Literal["", "blocks", "towers"] = ""
    """Compiled by torch.compile, block by block or tower by tower."""
    graph: bool = False
    """The whole step, optimiser included, is recorded once as a CUDA graph and played back."""
    checkpointed: bool = False
    """Activations are computed again in the backward pass."""
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
"""In the order in which they are measured; all but the first in bfloat16."""


def draw_lengths(count: int, longest: int, generator: torch.Generator) -> Tensor:
    """[count] int64, tokens of captions as the module's text says, start and end included; longer ones are cut."""
    furthest = NormalDist().inv_cdf(1 - 1 / NUM_CAPTIONS)
    # mean * exp(furthest * spread - spread**2 / 2) = most, solved for the spread
    spread = furthest - math.sqrt(furthest**2 - 2 * math.log(MOST_WORDS / MEAN_WORDS))
    words = MEAN_WORDS * torch.exp(spread * torch.randn(count, generator=generator) - spread**2 / 2)
    return (2 + TOKENS_PER_WORD * words).round().long().clamp(3, longest)


def draw_batches(
    architecture: ClipArchitecture, batch_size: int, longest: int, count: int, generator: torch.Generator
) -> list[Batch]:
    """`count` batches of noise and random words; within a batch, which has no order, by length of their captions."""
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
    """Tokens of its captions, start and end included."""
    return [int(end) + 1 for end in batch.caption_ids.argmax(dim=1)]


def part_lengths(batches: Sequence[Batch], parts: int) -> tuple[int, ...]:
    """The length that serves each part of every batch: one shape for the whole run."""
    longest = batches[0].caption_ids.shape[1]
    pieces = [
        [int(ids.argmax(dim=1).max()) + 1 for ids in batch.caption_ids.chunk(parts)] for batch in batches
    ]  # a part's longest caption in each batch
    return tuple(
        min(STEP_OF_LENGTHS * -(-max(lengths) // STEP_OF_LENGTHS), longest) for lengths in zip(*pieces, strict=True)
    )


class TrainingStep:
    """One form of the step with a model of its own: forward, loss, backward, optimiser.

    Args:
        model: copied; the same start for every form.
        form: how the step is run.
        lengths: of the parts that captions are encoded in.
        device: where.
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
        """(image features, text features), each [B, D], in the form's arithmetic."""
        with arithmetic(self.device, self.form.precision):
            if self.naive is not None:
                with self.device:  # where it makes its masks
                    return self.naive(images, caption_ids)
            parts = zip(caption_ids.chunk(len(self.lengths)), self.lengths, strict=True)
            text_features = [self.model.encode_text(ids[:, :length]) for ids, length in parts]
            return self.model.encode_image(images), torch.cat(text_features)

    def warm_up(self, images: Tensor, caption_ids: Tensor, pids: Tensor) -> None:
        """Compile and record what the form asks for, then go back to the start."""
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
        """Trained parameters and the optimiser's state as they were at the start, in place."""
        for parameter, value in self._start:
            parameter.copy_(value)
        for state in self.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()

    def first_gradients(self) -> Tensor:
        """[trained numbers] on the CPU, after one step from the start: Adam's first moment is then a share of them."""
        share = 1 - self.optimizer.param_groups[0]["betas"][0]
        moments = [self.optimizer.state[parameter]["exp_avg"].flatten() for parameter, _ in self._start]
        return torch.cat(moments).cpu() / share

    def __call__(self, images: Tensor, caption_ids: Tensor, pids: Tensor) -> Tensor:
        """The loss before the step, a scalar that nobody has waited for.

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
    """A step as a CUDA graph: it reads and writes the same memory each time."""

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
    """Convert the linear layers and convolutions that do not train."""
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
