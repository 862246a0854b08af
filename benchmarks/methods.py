"""Training step and encoding of UP-Person, DM-Adapter and TBPS-CLIP at ViT-B/16, compared with a naive writing of each.

    python -m benchmarks.methods

Weights, images and captions are random, with the losses of the recipe; without masks, augmentation and dropout. Images
have the size of the recipe, and TBPS-CLIP gets four views of each. Both implementations share parameters. Memory is
that of model, optimizer and step, measured in separate processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import Row
from benchmarks.naive_methods import NAIVE, NaiveTowers
from benchmarks.towers import REPEATS, THIN, VIT_B_16, difference, draw_captions, encode_naively, encoder_of
from benchmarks.train_step import GIGABYTE, LOSS, RATIO, Pairs, draw_batch, stepper
from cskt import losses
from cskt.config import ClipArchitecture, RunConfig, load_config
from cskt.model.dual_encoder import DualEncoder
from cskt.training.distributed import SINGLE_PROCESS_ROWS
from cskt.training.objective import NO_HEADS, ModelInputs, ModelOutputs, Objective, encode

BASELINE = "as in the released code, float32: 77 tokens, all tokens through all blocks, all attention weights"
BATCH_SIZE, NUM_IMAGES, NUM_CAPTIONS = 2, 4, 16
BARS = {"step": 0.95, "text": 1.3, "image": 0.95}
"""Required ratio of speed by work, that of RDE (`benchmarks.selection`)."""
MEMORY = 1.0
"""Largest ratio of the memory of a step."""
FORMS = ("baseline", "ours")


def architecture_of(config: RunConfig, quick: bool) -> ClipArchitecture:
    """Return ViT-B/16 for the images of a recipe, or thin towers."""
    size = config.backbone.image_height, config.backbone.image_width
    assert all(size), "the recipe has a size"
    return THIN if quick else replace(VIT_B_16, image_height=size[0], image_width=size[1])


def model_of(config: RunConfig, architecture: ClipArchitecture) -> DualEncoder:
    """Return the model of a recipe with random weights, none of the method's zero."""
    generator = torch.Generator().manual_seed(1)
    model = DualEncoder(architecture, config.method, config.trainable, config.frozen)
    model.initialise_backbone(generator)
    model.initialise_method(generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("parts.") and not parameter.any():
                parameter.normal_(std=0.02, generator=generator)
    return model


@dataclass(frozen=True)
class Method:
    """A recipe with its model, and both ways to compute its loss."""

    config: RunConfig
    model: DualEncoder
    naive: NaiveTowers
    objective: Objective

    @classmethod
    def of(cls, recipe: str, architecture: ClipArchitecture) -> Method:
        """Return a recipe over towers of an architecture."""
        config = load_config(recipe)
        model = model_of(config, architecture)
        objective = Objective(config.loss, config.mlm, architecture, 1)
        objective.initialise(torch.Generator().manual_seed(2))
        return cls(config, model, NAIVE[recipe](model), objective)

    def loss(self, form: str, pairs: Pairs) -> Tensor:
        """Return the weighted loss of a batch, [], in a form: `ours` or `baseline`."""
        images, caption_ids, pids = pairs
        generator = torch.Generator().manual_seed(3)
        views = {name: images + torch.randn(images.shape, generator=generator) / 2 for name in self.objective.views}
        if form == "ours":
            if self.model.needs_tokens:  # as training does: the balance counts padding
                caption_ids = F.pad(caption_ids, (0, self.model.architecture.context_length - caption_ids.shape[1]))
            outputs = encode(self.model, ModelInputs(images, caption_ids, views=views), masked_for_all=False)
            return losses.weighted_total(self.objective(outputs, pids, pids), self.config.loss.weights)
        self.naive.balance.clear()
        of_views = {name: self.naive.encode_image(view) for name, view in views.items()}
        outputs = ModelOutputs(self.naive.encode_image(images), self.naive.encode_text(caption_ids), views=of_views)
        weights = self.config.loss.weights
        inputs = self.objective.inputs(outputs, pids, pids, SINGLE_PROCESS_ROWS, NO_HEADS)
        total = sum(weights[name] * loss(inputs) for name, loss in self.objective.losses.items() if name != "balance")
        return total + sum(weights["balance"] * value for value in self.naive.balance)

    def stepper(self, form: str) -> Callable[[Pairs], None]:
        """Return a training step in a form."""
        return stepper(self.model, lambda pairs: torch.autograd.backward(self.loss(form, pairs)))


def memory_of_step(recipe: str, form: str, quick: bool) -> int:
    """Return the bytes of model, optimizer and a step, in a process that does nothing else."""
    architecture = architecture_of(load_config(recipe), quick)

    def work() -> None:
        step = Method.of(recipe, architecture).stepper(form)
        step(draw_batch(2, architecture))  # the optimiser makes its state at its first step
        step(draw_batch(BATCH_SIZE, architecture))

    return measure.memory_above_start(work)


def step_row(recipe: str, method: Method, quick: bool) -> Row:
    """Measure a training step."""
    flags = ["--threads", str(torch.get_num_threads()), *(["--quick"] if quick else [])]
    peaks = {
        form: measure.peak_memory("benchmarks.methods", "--memory-of", recipe, form, *flags) / GIGABYTE
        for form in FORMS
    }
    pairs = draw_batch(BATCH_SIZE, method.model.architecture)
    with torch.no_grad():
        ours, theirs = (method.loss(form, pairs).item() for form in ("ours", "baseline"))
    seconds = measure.medians({form: partial(method.stepper(form), pairs) for form in FORMS}, REPEATS)
    facts: dict[str, float | int | str] = {
        LOSS: abs(ours / theirs - 1), "peak GB": peaks["ours"], "baseline's peak GB": peaks["baseline"],
        RATIO: peaks["ours"] / peaks["baseline"],
    }  # fmt: skip
    return Row(
        f"{recipe}: train step, batch {BATCH_SIZE}", "float32", BASELINE, seconds["baseline"], seconds["ours"],
        BARS["step"], facts, at_most={LOSS: 1e-4, RATIO: MEMORY},
    )  # fmt: skip


def encode_rows(recipe: str, method: Method) -> list[Row]:
    """Measure encoding captions and images."""
    architecture, generator = method.model.architecture, torch.Generator().manual_seed(2)
    encoder, size = encoder_of(method.model, "fp32"), (architecture.image_height, architecture.image_width)
    ids, images = draw_captions(NUM_CAPTIONS, generator), torch.randn(NUM_IMAGES, 3, *size, generator=generator)
    found = []
    for kind, work, naively, ours, given in (
        ("text", f"text encode, {NUM_CAPTIONS} captions", method.naive.encode_text, encoder.encode_text, ids),
        ("image", f"image encode, batch {NUM_IMAGES}", method.naive.encode_image, encoder.encode_image, images),
    ):
        calls = {"baseline": partial(encode_naively, naively, given), "ours": partial(ours, given)}
        error = {"largest relative difference": difference(calls["ours"](), calls["baseline"]())}
        seconds = measure.medians(calls, REPEATS)
        found.append(
            Row(
                f"{recipe}: {work}", "float32", BASELINE, seconds["baseline"], seconds["ours"], BARS[kind],
                dict(error), at_most=dict.fromkeys(error, 1e-4),
            )
        )  # fmt: skip
    return found


def rows_of(recipe: str, quick: bool) -> list[Row]:
    """Measure one method."""
    method = Method.of(recipe, architecture_of(load_config(recipe), quick))
    return [step_row(recipe, method, quick), *encode_rows(recipe, method)]


def rows(quick: bool = False) -> list[Row]:
    """Measure every method that has a baseline."""
    return [row for recipe in NAIVE for row in rows_of(recipe, quick)]


def main() -> None:
    """Print the table, or one memory value in a separate process."""
    parser = measure.parser(__doc__)
    parser.add_argument("--only", choices=NAIVE, help="measure one recipe")
    parser.add_argument(
        "--memory-of", nargs=2, metavar=("RECIPE", "FORM"), help="print the peak bytes of one step, ours or baseline"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(memory_of_step(*args.memory_of, args.quick))
        return
    before = measure.machine()
    measure.show(rows_of(args.only, args.quick) if args.only else rows(args.quick), args, before)


if __name__ == "__main__":
    main()
