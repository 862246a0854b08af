"""Heat maps: the patches of a crop that raise its score for a sentence, and for each of its words.

The relevance of a patch is gradient times value, summed over the later two thirds of the vision tower's blocks b:

    relevance_i = sum_b sum_c  d cos(crop, sentence) / d V_b[i, c] * V_b[i, c]

with V_b[i] the value vectors of patch i over all heads. Since an attention block outputs sum_i A[q, i] V[i], this is
the sum over q of A[q, i] * d cos / d A[q, i]: the gradient-weighted attention of Chefer et al. 2021 (ICCV, arXiv
2103.15679, equation 5), which Grad-ECLIP (Zhao et al. 2024, ICML, arXiv 2502.18816) reads from the class token's row of
the last block. Departures: the rows and the later blocks are added instead of multiplied, the sign is kept until the
end, so that patches against a sentence cancel, and no attention matrix is built. Negative values are set to zero in the
end. On paper dolls the maps find the parts as often as Chefer's product does, with more contrast, and far more often
than the last block alone (`benchmarks/explain.py`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cskt.data.tokenizer import Tokenizer
from cskt.device import arithmetic
from cskt.embed import Encoder
from cskt.image_files.decode import Source
from cskt.image_files.formats import to_rgb
from cskt.model.dual_encoder import DualEncoder

PHRASE = "a person with {}"
"""Sentence around a word's phrase: the towers were trained on captions about persons."""
GRADIENT_SCALE = 1024.0
"""Factor on the cosine while its gradient is taken, so that fp16 does not round small gradients to zero. A map is
divided by its largest value, which takes the factor out again."""

JOINTS = frozenset({"and", "or"})
EMPTY_WORDS = JOINTS | frozenset({
    "a", "an", "the", "this", "that", "these", "those", "there", "one", "some", "of", "pair", "he", "she", "it",
    "they", "his", "her", "hers", "its", "their", "them", "him", "who", "whose", "which", "is", "are", "was", "were",
    "be", "been", "being", "am", "has", "have", "had", "having", "do", "does", "seems", "appears", "looks", "in",
    "on", "at", "with", "without", "over", "under", "above", "below", "by", "to", "from", "for", "into", "onto",
    "across", "along", "around", "near", "beside", "behind", "next", "between", "through", "up", "down", "off", "out",
    "as", "while", "but", "both", "also", "only", "very", "wearing", "wears", "wear", "worn", "dressed", "carrying",
    "carries", "carry", "holding", "holds", "hold", "photo", "picture", "image",
})  # fmt: skip
"""Words that name nothing visible at one place of a crop."""
MODIFIERS = frozenset({
    "black", "white", "grey", "gray", "red", "maroon", "burgundy", "orange", "yellow", "green", "blue", "navy",
    "purple", "violet", "pink", "brown", "beige", "tan", "khaki", "cream", "gold", "golden", "silver", "turquoise",
    "teal", "olive", "blond", "blonde", "dark", "light", "bright", "pale", "deep", "striped", "checked", "checkered",
    "plaid", "dotted", "patterned", "floral", "plain", "printed", "long", "short", "curly", "straight", "large",
    "big", "small", "tall", "little",
})  # fmt: skip
"""Words that need a noun: "red and white striped shirt" is one phrase."""

COLD_TO_HOT = ((0, 0, 0), (58, 12, 100), (150, 30, 110), (230, 80, 50), (252, 165, 30), (252, 250, 160))
"""RGB of equally spaced heats from 0 to 1, of rising lightness, so that the map is readable without colours."""
WIDEST = 4
"""Largest width of an overlay in units of its height: a picture of one row of pixels would fill the memory."""


@dataclass(frozen=True)
class Explanation:
    """Relevance of the patches of a crop for a sentence; rows and columns are those of the model's patches."""

    sentence: Tensor
    """[rows, columns] float32 in [0, 1], 1 = most relevant patch; all 0 if no patch raises the score."""
    words: tuple[tuple[str, Tensor], ...]
    """(word as written, [rows, columns] likewise) of the words with a meaning, in order. The words of one phrase
    ("red bag") share the phrase's map."""
    score: float
    """Cosine of crop and sentence."""


def explain(encoder: Encoder, image: Source, text: str, *, apply_orientation: bool | None = None) -> Explanation:
    """Compute heat maps of a sentence and of its words over a crop.

    A word's map is that of its phrase, encoded by itself in `PHRASE`: for "bag" in "a woman with a red bag and a blue
    cap", the map of "a person with red bag". On paper dolls this finds the part far more often than the word alone, and
    more often than the difference between the sentences with and without the word.

    It costs one forward pass of the image and one backward pass per phrase. Threads may share an encoder; the model is
    not changed. It works below `torch.no_grad` and `torch.inference_mode`.

    Args:
        encoder: of any model with gradients, frozen or not; not an exported one.
        image: a file, the bytes of one, or a PIL image, of any size.
        text: the sentence; words beyond the context length have no map.
        apply_orientation: turn the image as its EXIF orientation says; None: the encoder's own setting.

    Raises:
        CsktError: the image cannot be read.

    Example:
        >>> import cskt
        >>> encoder = cskt.load("clip-tiny", device="cpu")
        >>> explanation = explain(encoder, Image.new("RGB", (64, 128)), "a woman with a red bag")
        >>> [word for word, _ in explanation.words]
        ['woman', 'red', 'bag']
    """
    pixels = encoder.read_image(image, apply_orientation=apply_orientation)
    words = find_words(text, encoder.tokenizer)
    phrases = list(dict.fromkeys(phrase for _, phrase in words))
    sentences = [text, *(PHRASE.replace("{}", phrase) for phrase in phrases)]
    with torch.inference_mode(False):
        text_features = encoder.encode_text(sentences, keep_on_device=True)
        images = encoder.normalise(pixels[None])
        with arithmetic(encoder.device, encoder.precision):
            scores, relevance = patch_relevance(encoder.model, images, text_features)
    sentence, *heats = torch.stack([scaled(signed) for signed in relevance]).cpu()
    heat_by_phrase = dict(zip(phrases, heats, strict=True))
    return Explanation(sentence, tuple((word, heat_by_phrase[phrase]) for word, phrase in words), scores[0].item())


def patch_relevance(model: DualEncoder, images: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the signed relevance of every patch for the cosine of an image and each text; see the module.

    Args:
        model: its parameters are neither changed nor given a gradient.
        images: [1, 3, H, W] float, normalised with the model's mean and standard deviation.
        text_features: [T, D], unit vectors.

    Returns:
        The cosines, [T] float32, and the relevance, [T, rows, columns] float32, without a unit: positive raises the
        cosine with the text, negative lowers it.
    """
    rows, columns = model.architecture.grid
    num_blocks = model.architecture.vision_layers
    # The pixels require a gradient, because the weights may be frozen.
    with torch.enable_grad(), _AttendedValues() as attended:
        features = model.encode_image(images.detach().requires_grad_())
    assert len(attended.values) == num_blocks
    values = attended.values[num_blocks // 3 :]
    with torch.enable_grad():
        scores = text_features.float() @ F.normalize(features.float(), dim=-1)[0]
    relevance = []
    for score in scores:
        gradients = torch.autograd.grad(GRADIENT_SCALE * score, values, retain_graph=True)
        # Tokens are [class, patches, prompts, prefix]; the last two carry no patch, and may differ between blocks.
        by_block = [
            (gradient.float() * value.float()).sum(dim=(0, 1, 3))[1 : 1 + rows * columns]
            for gradient, value in zip(gradients, values, strict=True)
        ]
        relevance.append(torch.stack(by_block).sum(dim=0))
    return scores.detach(), torch.stack(relevance).detach().view(-1, rows, columns)


class _AttendedValues(TorchFunctionMode):
    """Stores the value vectors [B, heads, N, width / heads] of every attention computed in its `with`.

    Torch has such a mode per thread, unlike module hooks: simultaneous requests do not share it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            _, _, value = args
            self.values.append(value)
        return func(*args, **(kwargs or {}))


def scaled(relevance: Tensor) -> Tensor:
    """Return positive relevance divided by its largest value: in [0, 1], all 0 if none is positive."""
    heat = relevance.clamp_min(0)
    return heat / heat.max().clamp_min(torch.finfo(heat.dtype).tiny)


def find_words(text: str, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return the words of a sentence with a meaning, as written, each with its phrase.

    A phrase is a sequence of such words; empty words and punctuation end it. After a comma or an "and", modifiers alone
    continue it. Words beyond the model's context are left out.
    """
    tokens = _tokens_within_context(text, tokenizer)
    phrases: list[tuple[int, int]] = []
    for index, token in enumerate(tokens):
        if token.is_empty:
            continue
        if phrases and _belong_together(tokens[slice(*phrases[-1])], tokens[phrases[-1][1] : index]):
            phrases[-1] = phrases[-1][0], index + 1
        else:
            phrases.append((index, index + 1))
    found = []
    for start, stop in phrases:
        members = tokens[start:stop]
        phrase = " ".join([*(token.before + token.word + token.after for token in members[:-1]), members[-1].word])
        phrase = phrase.removeprefix(members[0].before)
        found += [(token.word, phrase) for token in members if not token.is_empty]
    return found


class _Token(NamedTuple):
    """Text between white space in three parts: "(red," is "(", "red" and ","."""

    before: str
    word: str
    after: str

    @property
    def is_empty(self) -> bool:
        return not self.word or self.word.casefold() in EMPTY_WORDS


def _tokens_within_context(text: str, tokenizer: Tokenizer) -> list[_Token]:
    num_left = tokenizer.context_length - 2  # start and end
    tokens: list[_Token] = []
    for written in text.split():
        num_left -= len(tokenizer.encode(written))
        if num_left < 0:
            break
        punctuation = "".join(character for character in written if unicodedata.category(character).startswith("P"))
        word = written.strip(punctuation)
        before, _, after = written.partition(word) if word else (written, "", "")
        tokens.append(_Token(before, word, after))
    return tokens


def _belong_together(phrase: Sequence[_Token], between: Sequence[_Token]) -> bool:
    """Return whether the next word continues a phrase, given the empty words between them."""
    if not between and not phrase[-1].after:
        return True
    needs_noun = all(token.word.casefold() in MODIFIERS | JOINTS for token in phrase)
    joined = all(token.word.casefold() in JOINTS for token in between)
    return needs_noun and joined and phrase[-1].after in ("", ",")


def overlay(image: Image.Image, heat: Tensor, *, height: int = 384) -> Image.Image:
    """Draw a heat map over its crop: cold places grey, hot ones coloured.

    Args:
        image: the crop.
        heat: [rows, columns] in [0, 1], interpolated over the whole crop.
        height: of the result in pixels; the crop's aspect ratio is kept.
    """
    crop = Image.fromarray(to_rgb(image))
    scale = min(height / crop.height, WIDEST * height / crop.width)
    width, height = max(1, round(scale * crop.width)), max(1, round(scale * crop.height))
    crop = crop.resize((width, height), Image.Resampling.BICUBIC)
    spread = F.interpolate(heat[None, None].float(), (height, width), mode="bilinear")[0, 0].numpy()
    stops = np.linspace(0, 1, len(COLD_TO_HOT))
    ramp = np.stack([np.interp(spread, stops, channel) for channel in zip(*COLD_TO_HOT, strict=True)], axis=-1)
    strength = 0.6 * np.sqrt(spread)[..., None]
    grey = np.asarray(crop.convert("L"), dtype=np.float64)[..., None]
    base = grey + (np.asarray(crop, dtype=np.float64) - grey) * spread[..., None]
    return Image.fromarray((base * (1 - strength) + ramp * strength).round().astype(np.uint8))
