"""RDE at ViT-B/16, 384 x 128: encoding and a training step with its selection heads, compared with the released wiring.

    python -m benchmarks.selection

The baseline is written as in the released code: captions padded to the whole context, all attention weights of every
block for all tokens, averaged over the heads, of which selection uses one row; the maximum over words caption by
caption. Both share their parameters, so they compute the same function. Weights and inputs are random.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.measure import Row
from benchmarks.towers import REPEATS, THIN, VIT_B_16, difference, draw_captions, encoder_of
from benchmarks.train_step import GIGABYTE, RATIO, Pairs, draw_batch
from cskt import losses
from cskt.config import ClipArchitecture, TokenSelectionConfig
from cskt.model.dual_encoder import DualEncoder
from cskt.model.heads import TowerOutputs, embed

BASELINE = "the released wiring of RDE, float32: all attention weights of all blocks, 77 tokens"
NUM_IMAGES, NUM_CAPTIONS, BATCH_SIZE = 8, 32, 8


def rde_model(architecture: ClipArchitecture) -> DualEncoder:
    """Return RDE with random weights."""
    generator = torch.Generator().manual_seed(1)
    model = DualEncoder(architecture, {"tse": TokenSelectionConfig()}, "all")
    model.initialise_backbone(generator)
    model.initialise_method(generator)
    return model


class NaiveRDE:
    """RDE computed as in its released code, with the parameters of a model."""

    def __init__(self, model: DualEncoder) -> None:
        self.model = model
        self.heads = model.heads["tse"]

    def encode_image(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> unit vectors [B, E], whose scalar products are the mean of both cosines."""
        return joint(*self.image(images))

    def encode_text(self, caption_ids: Tensor) -> Tensor:
        """[B, L] -> [B, E] likewise."""
        return joint(*self.text(caption_ids))

    def image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [B, D] and embeddings."""
        tower = self.model.vision
        patches = tower.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([tower.class_embedding.expand(len(images), 1, -1), patches], dim=1) + tower.positional_embedding
        x, weights = attend(tower.blocks, tower.ln_pre(x), None)
        tokens, row = tower.ln_post(x) @ tower.proj, weights[:, 0].detach().clone()
        row[:, 0] = -1
        selected, _ = self.selected(tokens, row, "vision")
        return tokens[:, 0], self.values(selected, self.heads.vision).amax(dim=1)

    def text(self, caption_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [B, D] and embeddings."""
        tower = self.model.text
        ids = F.pad(caption_ids, (0, tower.context_length - caption_ids.shape[1]))
        mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
        x, weights = attend(tower.blocks, tower.token_embedding(ids) + tower.positional_embedding, mask)
        tokens, every, ends = tower.ln_final(x) @ tower.proj, torch.arange(len(ids)), ids.argmax(dim=1)
        row = weights[every, ends].detach().clone()
        row[every, ends] = -1
        row[:, 0] = -1
        selected, number = self.selected(tokens, row * (ids != 0), "text")
        values, words = self.values(selected, self.heads.text), ((ids != 0).sum(dim=1) - 2).clamp(max=number)
        pooled = [values[caption, : int(words[caption])].amax(dim=0) for caption in range(len(ids))]
        return tokens[every, ends], torch.stack(pooled)

    def selected(self, tokens: Tensor, row: Tensor, side: str) -> tuple[Tensor, int]:
        """Return the tokens with the largest weights, divided by their lengths, and their number."""
        number = self.heads.num_selected[side]
        places = row.topk(number, dim=1).indices
        picked = tokens.gather(1, places[:, :, None].expand(-1, -1, tokens.shape[2]))
        return picked / (picked.norm(dim=2, keepdim=True) + 1e-8), number

    def values(self, selected: Tensor, head: nn.Module) -> Tensor:
        """Return the outputs of a head for all selected tokens."""
        return head(selected.flatten(0, 1)).unflatten(0, selected.shape[:2])


def attend(blocks: nn.ModuleList, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the tokens after all blocks, and the attention weights of the last one, the mean over its heads."""
    weights = x
    for block in blocks:
        attention, y = block.attn, block.ln_1(x)
        query, key, value = (
            part.unflatten(2, (attention.heads, -1)).transpose(1, 2) for part in attention.in_proj(y).chunk(3, dim=2)
        )
        scores = query @ key.transpose(2, 3) / key.shape[3] ** 0.5
        whole = (scores if mask is None else scores + mask).softmax(dim=3)
        weights = whole.mean(dim=1)
        x = x + attention.out_proj((whole @ value).transpose(1, 2).flatten(2))
        hidden = block.mlp.c_fc(block.ln_2(x))
        x = x + block.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))
    return x, weights


def joint(features: Tensor, embeddings: Tensor) -> Tensor:
    """Return the vector that ranks."""
    return torch.cat([F.normalize(features, dim=1), F.normalize(embeddings, dim=1)], dim=1) / 2**0.5


def naive_loss(model: DualEncoder, pairs: Pairs) -> Tensor:
    """Return the sum of both TAL of a batch, computed as in the released code."""
    naive, (images, caption_ids, pids) = NaiveRDE(model), pairs
    branches = zip(naive.image(images), naive.text(caption_ids), strict=True)
    return sum((losses.tal(image, text, pids) for image, text in branches), torch.zeros(()))


def our_loss(model: DualEncoder, pairs: Pairs) -> Tensor:
    """Return the same, computed as in a training step of ours."""
    images, caption_ids, pids = pairs
    padded = F.pad(caption_ids, (0, model.architecture.context_length - caption_ids.shape[1]))
    image, text = model.image_outputs(images), model.text_outputs(padded)

    def of_head(found: TowerOutputs, side: str) -> Tensor:
        head = model.heads["tse"]
        return embed("tse", head, side, tokens=found.tokens, mask=found.mask, attention=found.attention)  # type: ignore[arg-type]

    of_heads = losses.tal(of_head(image, "vision"), of_head(text, "text"), pids)
    return losses.tal(image.features, text.features, pids) + of_heads


FORMS: dict[str, Callable[[DualEncoder, Pairs], Tensor]] = {"baseline": naive_loss, "float32": our_loss}


def gradients(form: str, model: DualEncoder, pairs: Pairs) -> float:
    """Run forward and backward pass; return the loss."""
    loss = FORMS[form](model, pairs)
    loss.backward()
    model.zero_grad(set_to_none=True)
    return loss.item()


def memory_of_step(form: str, architecture: ClipArchitecture) -> int:
    """Return the bytes of model, gradients and activations of a step, in a process that does nothing else."""
    return measure.memory_above_start(
        lambda: gradients(form, rde_model(architecture).train(), draw_batch(BATCH_SIZE, architecture))
    )


@torch.no_grad()
def encode_rows(model: DualEncoder) -> list[Row]:
    """Measure encoding images and captions to the vectors that rank."""
    encoder, naive, generator = encoder_of(model, "fp32"), NaiveRDE(model.eval()), torch.Generator().manual_seed(3)
    size = model.architecture.image_height, model.architecture.image_width
    images, ids = torch.randn(NUM_IMAGES, 3, *size, generator=generator), draw_captions(NUM_CAPTIONS, generator)
    found = []
    for work, ours, theirs, given, bar in (
        (f"RDE: image encode, batch {NUM_IMAGES}", encoder.encode_image, naive.encode_image, images, 0.95),
        (f"RDE: text encode, {NUM_CAPTIONS} captions", encoder.encode_text, naive.encode_text, ids, 1.3),
    ):
        calls = {"naive": torch.no_grad()(lambda: theirs(given)), "ours": lambda: ours(given)}  # noqa: B023
        error = difference(ours(given), theirs(given))
        seconds = measure.medians(calls, REPEATS)
        found.append(
            Row(
                work, "float32", BASELINE, seconds["naive"], seconds["ours"], bar,
                {"largest relative difference": error}, at_most={"largest relative difference": 1e-4},
            )
        )  # fmt: skip
    return found


def rows(quick: bool = False) -> list[Row]:
    """Measure encoding and a training step in float32."""
    model = rde_model(THIN if quick else VIT_B_16)
    pairs = draw_batch(BATCH_SIZE, model.architecture)
    # In training the statistics depend on the order of equal attention, which the baseline leaves to `topk`.
    ours, theirs = (gradients(form, model.eval(), pairs) for form in ("float32", "baseline"))
    model.train()
    seconds = measure.medians({form: lambda form=form: gradients(form, model, pairs) for form in FORMS}, REPEATS)
    flags = ["--threads", str(torch.get_num_threads()), *(["--quick"] if quick else [])]
    peaks = {form: measure.peak_memory("benchmarks.selection", "--memory-of", form, *flags) for form in FORMS}
    step = Row(
        f"RDE: gradients of a training step, batch {BATCH_SIZE}", "float32", BASELINE, seconds["baseline"],
        seconds["float32"], 0.95,
        {
            "loss, relative difference": abs(ours / theirs - 1), RATIO: peaks["float32"] / peaks["baseline"],
            "peak GB": peaks["float32"] / GIGABYTE,
        },
        at_most={RATIO: 1.0, "loss, relative difference": 1e-4},
    )  # fmt: skip
    return [*encode_rows(model), step]


def main() -> None:
    """Print the table, or one memory value in a separate process."""
    parser = measure.parser(__doc__)
    parser.add_argument("--memory-of", choices=FORMS, help="print the peak bytes of one step in this form, no table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(memory_of_step(args.memory_of, THIN if args.quick else VIT_B_16))
        return
    before = measure.machine()
    measure.show(rows(args.quick), args, before)


if __name__ == "__main__":
    main()
