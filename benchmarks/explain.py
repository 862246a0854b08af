"""Location of heat maps: methods compared on generated pedestrians, whose masks contain every part.

    python -m benchmarks.explain                          # clip-tiny on the domain that it was trained on
    python -m benchmarks.explain --model RUN --domain target
    python -m benchmarks.explain --seconds                # one explanation at ViT-B/16, 384 x 128, random weights

The first table compares methods: which map of "a person with red bag" finds the bag. The second compares sentences:
which sentence or difference of sentences represents "bag" or "red" best in "a woman with a red bag, a blue cap and
black jeans". A map finds a part if its largest patch touches the mask of the part (pointing game). Its contrast is the
mean heat of the part's pixels divided by that of all others. Chance level is the share of patches that touch the part,
and a random map.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cskt.config import AdapterConfig, ClipArchitecture, PromptConfig
from cskt.data.images import ImageReader, normalise
from cskt.data.paperdoll import PART_LABELS, make_dataset
from cskt.data.paperdoll.attributes import NONE
from cskt.data.paperdoll.phrases import PLURAL, join, with_article
from cskt.data.tokenizer import Tokenizer
from cskt.embed import Encoder, load
from cskt.explain import PHRASE, explain, patch_relevance
from cskt.model.dual_encoder import DualEncoder

PARTS = ("upper", "lower", "shoes", "headwear", "bag", "held", "hair")
SMALLEST_SHARE = 0.012
"""Smallest share of the crop for a part to be used: about 100 of 64 x 128 pixels."""
OTHER_DOLLS = 7
"""Seed of the people, different from those of the demo and of clip-tiny."""


class Named(NamedTuple):
    """A part of a crop with its names."""

    part: str
    phrase: str
    """Colour and noun, "red bag"."""
    mask: Tensor
    """[H, W] bool at the input size of the model."""


class Crop(NamedTuple):
    """A test image with its visible parts."""

    path: Path
    gender: str
    images: Tensor
    """[1, 3, H, W], normalised."""
    parts: list[Named]


def crops(folder: Path, architecture: ClipArchitecture) -> Iterator[Crop]:
    """Return the crops of a folder of generated pedestrians."""
    height, width = architecture.image_height, architecture.image_width
    for record in json.loads((folder / "reid_raw.json").read_text(encoding="utf-8")):
        path, worn = folder / "imgs" / record["file_path"], record["attributes"]
        with Image.open((folder / "masks" / record["file_path"]).with_suffix(".png")) as picture:
            labels = np.array(picture.resize((width, height), Image.Resampling.NEAREST))
        parts = []
        for part in PARTS:
            kind, colour = worn[part], worn[f"{part}_colour"]
            mask = torch.from_numpy(labels == PART_LABELS.index(part))
            if NONE not in (kind, colour) and kind != "bald" and mask.float().mean() >= SMALLEST_SHARE:
                parts.append(Named(part, f"{colour} {'hair' if part == 'hair' else kind}", mask))
        yield Crop(path, worn["gender"], normalise(ImageReader(height, width).read(path)[None]), parts)


class Score(NamedTuple):
    """Scores of one map."""

    found: float
    contrast: float
    chance: float


def judge(heat: Tensor, mask: Tensor, architecture: ClipArchitecture) -> Score:
    """Compare a map [rows, columns] with the mask of the part that it should show."""
    spread = F.interpolate(heat[None, None], mask.shape, mode="nearest")[0, 0]
    touched = F.adaptive_max_pool2d(mask[None].float(), architecture.grid)[0].flatten() > 0
    inside, outside = spread[mask].mean().item(), spread[~mask].mean().item()
    chance = touched.float().mean().item()
    found = float(touched[heat.argmax()]) if heat.max() > 0 else chance
    return Score(found, inside / outside if outside > 0 else 1.0, chance)


class Tap(TorchFunctionMode):
    """Attention written out, storing its matrices, values and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.attention: list[Tensor] = []
        self.values: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.queries_keys: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args
        attention = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(dim=-1)
        self.attention.append(attention)
        self.values.append(value)
        self.outputs.append(attention @ value)
        self.queries_keys.append((query, key))
        return self.outputs[-1]


def maps_by_method(model: DualEncoder, images: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return the map [rows, columns] of every method for one image and one text feature [D]."""
    rows, columns = model.architecture.grid
    num_blocks, last = model.architecture.vision_layers, rows * columns + 1
    tap, pixels = Tap(), images.clone().requires_grad_()
    with tap:
        feature = F.normalize(model.encode_image(pixels), dim=-1)[0]
    wanted = [*tap.attention, *tap.values, *tap.outputs, pixels]
    gradients = torch.autograd.grad(feature @ target, wanted)
    by_attention, by_value = gradients[:num_blocks], gradients[num_blocks : 2 * num_blocks]
    by_output, by_pixel = gradients[2 * num_blocks : -1], gradients[-1]
    shares = [(a * g).detach() for a, g in zip(tap.attention, by_attention, strict=True)]

    def chefer(first: int) -> Tensor:
        """Chefer et al. 2021, equations 5 and 6: positive attention times gradient, multiplied through the blocks."""
        relevance = torch.eye(shares[0].shape[-1])
        for share in shares[first:]:
            relevance = relevance + share.clamp_min(0).mean(dim=1)[0] @ relevance
        return relevance[0, 1:last]

    def gradient_times_value(first: int) -> Tensor:
        products = [(v * g).sum((0, 1, 3)) for v, g in zip(tap.values[first:], by_value[first:], strict=True)]
        return torch.stack(products).sum(dim=0)[1:last]

    def grad_eclip() -> Tensor:
        """Zhao et al. 2024: channel weights from the class token's output, loosened attention, in the last block."""
        query, key = (tensor[0].transpose(0, 1).flatten(1) for tensor in tap.queries_keys[-1])
        likeness = F.cosine_similarity(query[:1], key[1:last], dim=-1)
        loosened = (likeness - likeness.min()) / (likeness.max() - likeness.min())
        return loosened * torch.einsum("hd,hpd->p", by_output[-1][0, :, 0], tap.values[-1][0, :, 1:last])

    third, half = num_blocks // 3, num_blocks // 2
    flat = {
        "gradient x value, all blocks": gradient_times_value(0),
        "gradient x value, later 2/3 (ours)": gradient_times_value(third),
        "gradient x value, later half": gradient_times_value(half),
        "gradient x value, last block": gradient_times_value(num_blocks - 1),
        "Chefer 2021, all blocks": chefer(0),
        "Chefer 2021, later 2/3": chefer(third),
        "Chefer 2021, last block": chefer(num_blocks - 1),
        "Grad-ECLIP 2024, last block": grad_eclip(),
        "gradient x pixel": F.adaptive_avg_pool2d((by_pixel * pixels).sum(1), (rows, columns)).flatten(),
        "random": torch.rand(rows * columns),
    }
    return {name: heat.detach().clamp_min(0).view(rows, columns) for name, heat in flat.items()}


def compare_methods(encoder: Encoder, folder: Path) -> dict[str, list[Score]]:
    """Score every method on every part."""
    scores: dict[str, list[Score]] = {}
    for crop in crops(folder, encoder.model.architecture):
        for named in crop.parts:
            target = encoder.encode_text([PHRASE.replace("{}", named.phrase)])[0]
            for method, heat in maps_by_method(encoder.model, crop.images, target).items():
                scores.setdefault(method, []).append(judge(heat, named.mask, encoder.model.architecture))
    return scores


def without_embedding(encoder: Encoder, sentence: str, word: str, share: float) -> Tensor:
    """Return the feature [D] of a sentence in which the token embeddings of a word are scaled down by a share."""
    caption_ids = encoder.tokenizer([sentence])
    ids = caption_ids[0].tolist()
    wanted = encoder.tokenizer.encode(word)
    start = next(at for at in range(len(ids)) if ids[at : at + len(wanted)] == wanted)

    class Shrink(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func is F.embedding:
                first = start + encoder.model.num_text_slots
                result[:, first : first + len(wanted)] *= 1 - share
            return result

    with torch.no_grad(), Shrink():
        return encoder.encode_text(caption_ids)[0]


def compare_words(encoder: Encoder, folder: Path) -> dict[str, list[Score]]:
    """Score each candidate for representing a word: its phrase, the word alone, or the difference that it makes."""
    rng, scores = random.Random(1), {}
    for crop in crops(folder, encoder.model.architecture):
        chosen = rng.sample(crop.parts, min(3, len(crop.parts)))
        things = [
            n.phrase if n.phrase.split(" ", 1)[1] in (*PLURAL, "hair") else with_article(n.phrase) for n in chosen
        ]
        sentence = f"a {crop.gender} with {join(things)}" if things else ""
        encode: Callable[[str], Tensor] = functools.cache(lambda text: encoder.encode_text([text])[0])
        for named in chosen:
            for role, word in (("noun", named.phrase.split()[-1]), ("colour", named.phrase.split()[0])):
                if sentence.replace(",", "").split().count(word) > 1:
                    continue  # of two, leaving out or shrinking one is not defined here
                left_out = " ".join(w for w in sentence.split() if w.strip(",") != word)
                targets = {
                    "phrase after a person with (ours)": encode(PHRASE.replace("{}", named.phrase)),
                    "phrase alone": encode(named.phrase),
                    "phrase left out": encode(sentence) - encode(sentence.replace(named.phrase, "").strip()),
                    "word after a person with": encode(PHRASE.replace("{}", word)),
                    "word alone": encode(word),
                    "word left out": encode(sentence) - encode(left_out),
                    "gradient through the word": encode(sentence) - without_embedding(encoder, sentence, word, 0.02),
                    "whole sentence": encode(sentence),
                }
                _, heats = patch_relevance(encoder.model, crop.images, torch.stack([*targets.values()]))
                for name, heat in zip(targets, heats.clamp_min(0), strict=True):
                    score = judge(heat, named.mask, encoder.model.architecture)
                    scores.setdefault(f"{name}: {role}", []).append(score)
    return scores


def show(title: str, scores: dict[str, list[Score]]) -> None:
    """Print one line per method, the best first."""
    print(f"\n{title:44} {'found':>6} {'chance':>6} {'contrast > 1':>12} {'median contrast':>15} {'maps':>5}")
    for name, rows in sorted(scores.items(), key=lambda item: -statistics.fmean(row.found for row in item[1])):
        found, chance = (statistics.fmean(getattr(row, key) for row in rows) for key in ("found", "chance"))
        share = statistics.fmean(row.contrast > 1 for row in rows)
        contrast = statistics.median(row.contrast for row in rows)
        print(f"{name:44} {found:6.3f} {chance:6.3f} {share:12.3f} {contrast:15.2f} {len(rows):5}")


def show_seconds(device: str) -> None:
    """Measure one explanation in seconds at the published size, with prompts and adapters."""
    generator = torch.Generator().manual_seed(1)
    model = DualEncoder(
        ClipArchitecture(image_height=384, image_width=128), {"prompts": PromptConfig(), "adapters": AdapterConfig()}
    )
    model.initialise_backbone(generator)
    model.initialise_method(generator)
    encoder = Encoder(model.requires_grad_(False), Tokenizer(73), device=torch.device(device))
    crop = Image.effect_noise((128, 384), 60).convert("RGB")
    sentences = {
        "1 phrase": "a woman",
        "4 phrases": "a woman with a red bag, a blue cap and black jeans",
        "8 phrases": "a tall man with short hair wearing a grey hooded jacket over a white t-shirt, blue jeans, black"
        " shoes and a red cap, carrying a brown backpack and a paper cup",
    }
    for name, sentence in sentences.items():
        seconds, processor_seconds = [], []
        for _ in range(4):
            started, started_processor = time.perf_counter(), time.process_time()
            explain(encoder, crop, sentence)
            seconds.append(time.perf_counter() - started)
            processor_seconds.append(time.process_time() - started_processor)
        print(f"{name:10} {min(seconds[1:]):.2f} s, {min(processor_seconds[1:]):.2f} s of processor time")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="clip-tiny", help="a run, a weight file or clip-tiny")
    parser.add_argument("--domain", default="source", choices=("source", "target"))
    parser.add_argument("--people", type=int, default=100, help="two crops of each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", action="store_true", help="measure the time instead")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # words that clip-tiny has never seen
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    if args.seconds:
        show_seconds(args.device)
        return
    encoder = load(args.model, device="cpu", precision="fp32")
    with tempfile.TemporaryDirectory() as root:
        folder = make_dataset(
            Path(root), domain=args.domain, ids={"test": args.people}, images_per_id=2, seed=OTHER_DOLLS, masks=True
        )
        show(f"method ({args.domain}, {args.model})", compare_methods(encoder, folder))
        show("what stands for a word", compare_words(encoder, folder))


if __name__ == "__main__":
    main()
