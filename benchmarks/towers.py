"""Encoding at ViT-B/16, 384 x 128: ours, as in search and evaluation, compared with the released code.

    python -m benchmarks.towers

Weights and inputs are random, because time does not depend on values; adapters are drawn from N(0, 0.02).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import Row
from benchmarks.naive import NaiveEncoder
from cskt.config import AdapterConfig, ClipArchitecture, PromptConfig
from cskt.data.tokenizer import END_ID, START_ID, Tokenizer
from cskt.embed import Encoder
from cskt.model.dual_encoder import DualEncoder

VIT_B_16 = ClipArchitecture(image_height=384, image_width=128)
THIN = ClipArchitecture(
    embed_dim=64, image_height=96, image_width=32, vision_width=64, vision_heads=2, text_width=64, text_heads=2
)
"""Sizes for --quick."""
BASELINE = "the released wiring, float32: 77 tokens, all tokens through all blocks, plain MultiheadAttention"
SHORTEST, MEAN, LONGEST, SPREAD = 20, 37, 60, 9
"""Tokens of a caption, including start and end: drawn from N(37, 9), clipped to 20 to 60."""
NUM_CAPTIONS, CAPTIONS_AT_ONCE = 256, 64
NUM_IMAGES = 8
REPEATS = 5


def cskt_model(architecture: ClipArchitecture) -> DualEncoder:
    """Return CSKT with random weights, none of them zero."""
    generator = torch.Generator().manual_seed(1)
    model = DualEncoder(architecture, {"prompts": PromptConfig(), "adapters": AdapterConfig(init="normal")})
    model.initialise_backbone(generator)
    model.initialise_method(generator)
    return model


def draw_captions(count: int, generator: torch.Generator) -> Tensor:
    """Return ids [count, longest] int64 of random words with lengths by `SPREAD`, zeros after the end tokens."""
    drawn = torch.randn(count, generator=generator) * SPREAD + MEAN
    lengths = drawn.round().long().clamp(SHORTEST, LONGEST)
    places = torch.arange(int(lengths.max()))
    ids = torch.randint(1, START_ID, (count, len(places)), generator=generator)
    ids[:, 0] = START_ID
    ids[places == lengths[:, None] - 1] = END_ID
    ids[places >= lengths[:, None]] = 0
    return ids


def encoder_of(model: DualEncoder, precision: str) -> Encoder:
    """Return an encoder as searches and evaluations use it."""
    tokenizer = Tokenizer(model.architecture.context_length - model.num_text_slots)
    return Encoder(model, tokenizer, device=measure.CPU, precision=precision, batch_size=CAPTIONS_AT_ONCE)


@torch.no_grad()
def encode_naively(encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Return unit vectors [N, D], in batches as large as ours."""
    return torch.cat([F.normalize(encode(batch), dim=-1) for batch in inputs.split(CAPTIONS_AT_ONCE)])


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest |ours - theirs| / |theirs| over the rows."""
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max())


def text_rows(model: DualEncoder, count: int) -> list[Row]:
    """Measure encoding captions."""
    naive = NaiveEncoder.of(model)
    exact, rounded = encoder_of(model, "fp32"), encoder_of(model, "bf16")
    ids = draw_captions(count, torch.Generator().manual_seed(2))
    features = encode_naively(naive.encode_text, ids)
    seconds = measure.medians(
        {
            "naive": lambda: encode_naively(naive.encode_text, ids),
            "fp32": lambda: exact.encode_text(ids),
            "bf16": lambda: rounded.encode_text(ids),
        },
        REPEATS,
    )
    work = f"text encode, {count} captions of {SHORTEST} to {LONGEST} tokens"
    shared: dict[str, float | int | str] = {
        "tokens per caption, mean": float((ids.argmax(dim=1) + 1).float().mean()),
        "captions per batch": CAPTIONS_AT_ONCE,
    }
    error = difference(exact.encode_text(ids), features)
    cosine = float(F.cosine_similarity(rounded.encode_text(ids), features).min())
    return [
        Row(
            work, "float32", BASELINE, seconds["naive"], seconds["fp32"], 2.5,
            shared | {"largest relative difference": error}, at_most={"largest relative difference": 1e-5},
        ),
        Row(work, "bf16", BASELINE, seconds["naive"], seconds["bf16"], None, shared | {"smallest cosine": cosine}),
    ]  # fmt: skip


def image_rows(model: DualEncoder, count: int) -> list[Row]:
    """Measure encoding normalised images."""
    naive = NaiveEncoder.of(model)
    exact, rounded = encoder_of(model, "fp32"), encoder_of(model, "bf16")
    size = model.architecture.image_height, model.architecture.image_width
    images = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(3))
    features = encode_naively(naive.encode_image, images)
    seconds = measure.medians(
        {
            "naive": lambda: encode_naively(naive.encode_image, images),
            "fp32": lambda: exact.encode_image(images),
            "bf16": lambda: rounded.encode_image(images),
        },
        REPEATS,
    )
    work = f"image encode, batch {count}, {size[0]} x {size[1]}"
    error = difference(exact.encode_image(images), features)
    cosine = float(F.cosine_similarity(rounded.encode_image(images), features).min())
    return [
        Row(
            work, "float32", BASELINE, seconds["naive"], seconds["fp32"], 1.08,
            {"largest relative difference": error}, at_most={"largest relative difference": 1e-5},
        ),
        Row(
            work, "bf16", BASELINE, seconds["naive"], seconds["bf16"], 1.8,
            {"smallest cosine": cosine}, at_least={"smallest cosine": 0.9995},
        ),
    ]  # fmt: skip


def rows(quick: bool = False) -> list[Row]:
    """Measure text and images in float32 and bf16."""
    model = cskt_model(THIN if quick else VIT_B_16)
    return text_rows(model, NUM_CAPTIONS // 4 if quick else NUM_CAPTIONS) + image_rows(model, NUM_IMAGES)


if __name__ == "__main__":
    measure.main(rows, __doc__)
