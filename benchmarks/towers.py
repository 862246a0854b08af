"""Encoding at ViT-B/16, 384 x 128: PyTorch, ONNX Runtime and OpenVINO, compared with the released code.

    python -m benchmarks.towers

Weights and pixels are random, because time does not depend on values; adapters are drawn from N(0, 0.02). Sentences are
captions of generated pedestrians, encoded in one call of an `Encoder` with the defaults of `cskt.load`; their
tokenization counts as ours. Rows of bf16 are measured only where the CPU has instructions for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import Row
from benchmarks.naive import NaiveEncoder
from cskt.config import AdapterConfig, ClipArchitecture, PromptConfig
from cskt.data.images import normalise
from cskt.data.paperdoll import draw_person, sample_attributes, stable_random, write_caption
from cskt.data.tokenizer import END_ID, START_ID, Tokenizer
from cskt.device import native_bf16
from cskt.embed import Encoder
from cskt.embed.caption_batches import caption_batches
from cskt.embed.exported import Form, load_exported
from cskt.export.folder import write_folder
from cskt.model.dual_encoder import DualEncoder

VIT_B_16 = ClipArchitecture(image_height=384, image_width=128)
THIN = ClipArchitecture(
    embed_dim=64, image_height=96, image_width=32, vision_width=64, vision_heads=2, text_width=64, text_heads=2
)
"""Sizes for --quick."""
BASELINE = "the released wiring, float32: 77 tokens, all tokens through all blocks, plain MultiheadAttention"
SHORTEST, MEAN, LONGEST, SPREAD = 20, 37, 60, 9
"""Tokens of a caption, including start and end: drawn from N(37, 9), clipped to 20 to 60."""
NUM_SENTENCES, NUM_IMAGES = (32, 64), 8
TEXT_RATIO, IMAGE_RATIO = 2.3, 1.08
"""Required ratios in float32."""
CAPTIONS_AT_ONCE = 64
"""Captions and images in a batch of the baseline."""
REPEATS = 3
FORMS: dict[str, Form] = {"float32, ONNX Runtime": "onnx", "float32, OpenVINO": "openvino"}
"""Variant of a row -> form of the export."""
DIFFERENCE, COSINE = "largest relative difference", "smallest cosine"
"""Names of facts."""


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
    return Encoder(model, tokenizer, device=measure.CPU, precision=precision)


@torch.no_grad()
def encode_naively(encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Return unit vectors [N, D]."""
    return torch.cat([F.normalize(encode(batch), dim=-1) for batch in inputs.split(CAPTIONS_AT_ONCE)])


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest |ours - theirs| / |theirs| over the rows."""
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max())


def draw_sentences(count: int) -> list[str]:
    """Return captions of generated pedestrians, written in the style of the annotators of CUHK-PEDES."""
    sentences = []
    for number in range(count):
        attributes = sample_attributes(stable_random("benchmark", number))
        drawing = draw_person(attributes, stable_random("benchmark", number, "drawing"), domain="target")
        sentences.append(
            write_caption(attributes, drawing, stable_random("benchmark", number, "caption"), domain="target")
        )
    return sentences


def encoders_of(model: DualEncoder, folder: Path, forms: Mapping[str, Form]) -> dict[str, Encoder]:
    """Return the encoders that are compared, by variant; exports are written to a folder."""
    encoders = {"float32": encoder_of(model, "fp32")}
    if native_bf16():
        encoders["bf16"] = encoder_of(model, "bf16")
    for variant, form in forms.items():
        (folder / form).mkdir()
        write_folder(encoders["float32"], folder / form, form)
        encoders[variant] = load_exported(folder / form)
    return encoders


def text_rows(naive: NaiveEncoder, encoders: Mapping[str, Encoder], count: int) -> list[Row]:
    """Measure encoding sentences."""
    sentences = draw_sentences(count)
    ids = encoders["float32"].tokenizer(sentences)
    lengths = ids.argmax(dim=1) + 1
    batches = caption_batches(lengths, encoders["float32"].batch_size, "cpu")
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return _rows(
        f"text encode, {count} sentences of {int(lengths.min())} to {int(lengths.max())} tokens",
        lambda: encode_naively(naive.encode_text, ids),
        {variant: partial(encoder.encode_text, sentences) for variant, encoder in encoders.items()},
        {"float32": TEXT_RATIO},
        {
            "tokens per sentence, mean": float(lengths.float().mean()),
            "batches": len(batches),
            "padding, share of the tokens that exports compute": 1 - int(lengths.sum()) / padded,
        },
    )


def image_rows(naive: NaiveEncoder, encoders: Mapping[str, Encoder], count: int) -> list[Row]:
    """Measure encoding pixels."""
    architecture = encoders["float32"].model.architecture
    height, width = architecture.image_height, architecture.image_width
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    return _rows(
        f"image encode, batch {count}, {height} x {width}",
        lambda: encode_naively(naive.encode_image, normalise(pixels)),
        {variant: partial(encoder.encode_image, pixels) for variant, encoder in encoders.items()},
        {"float32": IMAGE_RATIO, "bf16": 1.8},
        {},
    )


def _rows(
    work: str,
    naively: Callable[[], Tensor],
    ours: Mapping[str, Callable[[], Tensor]],
    bars: Mapping[str, float],
    shared: Mapping[str, float],
) -> list[Row]:
    seconds = measure.medians({"naive": naively, **ours}, REPEATS)
    features, rows = naively(), []
    for variant, encode in ours.items():
        found = encode()
        facts: dict[str, float | int | str] = {
            **shared,
            DIFFERENCE: difference(found, features),
            COSINE: float(F.cosine_similarity(found, features).min()),
        }
        exact = {DIFFERENCE: 1e-5} if variant.startswith("float32") else {}
        rows.append(
            Row(
                work, variant, BASELINE, seconds["naive"], seconds[variant], bars.get(variant), facts,
                at_most=exact, at_least={COSINE: 0.9995},
            )
        )  # fmt: skip
    return rows


def rows(quick: bool = False, tower: str | None = None, forms: Mapping[str, Form] = FORMS) -> list[Row]:
    """Measure texts and images, or one of the two, in PyTorch and in other runtimes."""
    model = cskt_model(THIN if quick else VIT_B_16).requires_grad_(False)
    naive = NaiveEncoder.of(model)
    with tempfile.TemporaryDirectory() as folder:
        encoders = encoders_of(model, Path(folder), forms)
        made = []
        if tower != "image":
            made += [row for count in NUM_SENTENCES for row in text_rows(naive, encoders, count)]
        if tower != "text":
            made += image_rows(naive, encoders, NUM_IMAGES)
        return made


def main() -> None:
    """Print the table, or a part of it."""
    parser = measure.parser(__doc__)
    parser.add_argument("--tower", choices=("text", "image"), help="measure this one alone")
    parser.add_argument("--pytorch", action="store_true", help="measure PyTorch alone, without exports")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    before = measure.machine()
    measure.show(rows(args.quick, args.tower, {} if args.pytorch else FORMS), args, before)


if __name__ == "__main__":
    main()
