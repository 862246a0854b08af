"""Heat maps: against finite differences, on a model that sees one patch only, and on paper dolls' own masks."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cskt.config import AdapterConfig, LoraConfig, PromptConfig
from cskt.data.paperdoll import PART_LABELS, draw_person, sample_attributes, stable_random
from cskt.data.paperdoll.attributes import NONE
from cskt.data.tokenizer import Tokenizer
from cskt.embed import Encoder, load
from cskt.explain import Explanation, explain, find_words, overlay, patch_relevance, scaled
from cskt.model.dual_encoder import DualEncoder
from tiny_run import ARCHITECTURE

SENTENCE = "A woman with a red bag, and blue jeans"
THREE_BLOCKS = replace(ARCHITECTURE, vision_layers=3)
ROWS, COLUMNS = ARCHITECTURE.grid


def random_model(method: str = "plain", trainable: str = "none") -> DualEncoder:
    """Three thin vision blocks, with or without everything that a method adds; nothing of it silent."""
    generator = torch.Generator().manual_seed(3)
    if method == "plain":
        model = DualEncoder(THREE_BLOCKS, trainable=trainable)
    else:
        lora = LoraConfig(sides="both", rank=2, targets=("query", "value", "fc"))
        prompts = PromptConfig(directions="both", depth=2, length=2, init="random", init_std=0.5)
        model = DualEncoder(
            THREE_BLOCKS,
            {"prompts": prompts, "adapters": AdapterConfig(init="normal", init_std=0.2), "lora": lora},
            trainable=trainable,
        )
    model.initialise_backbone(generator)
    model.initialise_method(generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("lora."):
                parameter.normal_(std=0.2, generator=generator)
    return model


def random_encoder(method: str = "plain", trainable: str = "none", **options: Any) -> Encoder:
    model = random_model(method, trainable)
    room = model.architecture.context_length - model.num_text_slots
    return Encoder(model, Tokenizer(room), device=torch.device("cpu"), **options)


def picture(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 20, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def assert_same(first: Explanation, second: Explanation, tolerance: float = 1e-5) -> None:
    assert first.score == pytest.approx(second.score, abs=tolerance)
    torch.testing.assert_close(first.sentence, second.sentence, atol=tolerance, rtol=0)
    assert [word for word, _ in first.words] == [word for word, _ in second.words]
    for (_, one), (_, other) in zip(first.words, second.words, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


class ScaledValue(TorchFunctionMode):
    """Multiplies the value vectors of one token in one attention."""

    def __init__(self, block: int, token: int, factor: float) -> None:
        super().__init__()
        self.block, self.token, self.factor = block, token, factor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            if self.block == 0:
                value = args[2].clone()
                value[:, :, self.token] *= self.factor
                args = (*args[:2], value)
            self.block -= 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["plain", "everything added"])
def test_relevance_is_what_the_cosine_gains_when_a_patch_speaks_louder(method: str) -> None:
    """Oracle: central differences, one token of one block at a time, in float64; the first third of blocks is out."""
    model = random_model(method).double()
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(1, 3, 32, 16, generator=generator, dtype=torch.float64)
    text_features = F.normalize(torch.randn(2, 16, generator=generator, dtype=torch.float64), dim=-1)

    def cosines(block: int, token: int, factor: float) -> Tensor:
        with torch.no_grad(), ScaledValue(block, token, factor):
            return text_features @ F.normalize(model.encode_image(images), dim=-1)[0]

    step = 1e-4
    expected = torch.zeros(2, ROWS * COLUMNS, dtype=torch.float64)
    for patch in range(ROWS * COLUMNS):
        for block in (1, 2):
            louder, quieter = (cosines(block, 1 + patch, 1 + sign * step) for sign in (1, -1))
            expected[:, patch] += (louder - quieter) / (2 * step)
    scores, patches = patch_relevance(model, images, text_features)
    torch.testing.assert_close(scores.double(), cosines(-1, 0, 1.0), atol=1e-6, rtol=0)
    assert patches.shape == (2, ROWS, COLUMNS) and expected.abs().max() > 1e-3
    torch.testing.assert_close(patches.flatten(1).double() / 1024, expected, atol=1e-6, rtol=1e-4)


def test_only_the_patch_that_the_feature_depends_on_is_warm() -> None:
    """Without positions and biases an empty patch has no value vector, whatever attends to it."""
    model = random_model()
    with torch.no_grad():
        model.vision.positional_embedding.zero_()
    images = torch.zeros(1, 3, 32, 16)
    images[:, :, 16:24, 8:16] = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1))
    feature = F.normalize(model.encode_image(images), dim=-1)
    empty = F.normalize(model.encode_image(torch.zeros_like(images)), dim=-1)
    _, patches = patch_relevance(model, images, F.normalize(feature - empty, dim=-1))
    heat = scaled(patches[0])
    assert heat[2, 1] == 1 and heat.count_nonzero() == 1


def test_shapes_and_range() -> None:
    encoder = random_encoder("everything added")
    explanation = explain(encoder, picture(), SENTENCE)
    maps = [explanation.sentence, *(heat for _, heat in explanation.words)]
    assert [word for word, _ in explanation.words] == ["woman", "red", "bag", "blue", "jeans"]
    for heat in maps:
        assert heat.shape == (ROWS, COLUMNS) and heat.dtype == torch.float32 and not heat.requires_grad
        assert heat.min() >= 0 and heat.max() in (0, 1)
    vectors = encoder.encode_image([picture()]), encoder.encode_text([SENTENCE])
    assert explanation.score == pytest.approx((vectors[0] @ vectors[1].T).item(), abs=1e-6)


def test_nothing_speaks_for_the_opposite_of_a_patch() -> None:
    assert scaled(torch.tensor([[-2.0, -1.0]])).tolist() == [[0, 0]]
    assert scaled(torch.tensor([[-2.0, 1.0, 4.0]])).tolist() == [[0, 0.25, 1]]


@pytest.mark.parametrize("trainable", ["none", "added", "all"])
def test_nothing_stays_behind(trainable: str) -> None:
    encoder = random_encoder("everything added", trainable)
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in encoder.model.named_parameters()}
    explain(encoder, picture(), SENTENCE)
    gc.collect()
    kept = [item for item in gc.get_objects() if type(item) is Tensor and item.grad_fn is not None]
    assert kept == []
    for name, parameter in encoder.model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name][0]) and parameter.requires_grad == before[name][1]
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in encoder.model.modules())


@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode])
def test_callers_without_gradients(surroundings: Callable[[], Any], one_thread: None) -> None:
    encoder = random_encoder("everything added")
    expected = explain(encoder, picture(), SENTENCE)
    with surroundings():
        found = explain(encoder, picture(), SENTENCE)
        assert not torch.is_grad_enabled()
    assert_same(found, expected)


def test_recomputed_activations_and_trained_parameters_change_nothing(one_thread: None) -> None:
    expected = explain(random_encoder("everything added"), picture(), SENTENCE)
    trained = random_encoder("everything added", "all")
    trained.model.checkpoint_activations(True)
    assert_same(explain(trained, picture(), SENTENCE), expected)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_finds_the_same_places(precision: str) -> None:
    expected = explain(random_encoder("everything added"), picture(), SENTENCE)
    found = explain(random_encoder("everything added", precision=precision), picture(), SENTENCE)
    assert_same(found, expected, tolerance=0.1)


def test_threads_do_not_meet(one_thread: None) -> None:
    encoder = random_encoder("everything added")
    jobs = [(picture(seed), sentence) for seed in range(6) for sentence in (SENTENCE, "green shoes", "with a")]
    expected = [explain(encoder, *job) for job in jobs]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda job: explain(encoder, *job), jobs))
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("a woman with a red bag", ["woman", "red bag"]),
        ("A man wearing Blue jeans, white sneakers.", ["man", "Blue jeans", "white sneakers"]),
        ("a red and white striped t-shirt and jeans", ["red and white striped t-shirt", "jeans"]),
        ("(long, curly) black hair", ["long, curly", "black hair"]),
        ("long, curly black hair", ["long, curly black hair"]),
        ("red, white and blue scarf", ["red, white and blue scarf"]),
        ("her bag is red. Jeans", ["bag", "red", "Jeans"]),
        ("a shirt and trousers", ["shirt", "trousers"]),
        ("ein Mädchen im 红色 外套 👜", ["ein Mädchen im 红色 外套 👜"]),
        ("with a , and -- !", []),
        ("", []),
    ],
)
def test_phrases(text: str, phrases: list[str]) -> None:
    words = find_words(text, Tokenizer())
    assert list(dict.fromkeys(phrase for _, phrase in words)) == phrases
    for word, phrase in words:
        assert word in text and word in phrase


def test_the_same_word_twice_has_the_map_of_its_own_phrase() -> None:
    words = find_words("a red bag and a red cap", Tokenizer())
    assert words == [("red", "red bag"), ("bag", "red bag"), ("red", "red cap"), ("cap", "red cap")]


def test_a_sentence_of_empty_words_has_a_map_and_no_words() -> None:
    explanation = explain(random_encoder(), picture(), "with a")
    assert explanation.words == () and explanation.sentence.shape == (ROWS, COLUMNS)


def test_words_that_the_model_never_reads_have_no_map() -> None:
    text = " ".join(f"word{number % 1000}" for number in range(100_000))
    encoder = random_encoder("everything added")
    words = find_words(text, encoder.tokenizer)
    reached = encoder.tokenizer([text])[0]
    ids = encoder.tokenizer.encode(" ".join(word for word, _ in words))
    assert reached[1 : 1 + len(ids)].tolist() == ids  # all of them are read, and the next one is cut
    assert len(ids) + len(encoder.tokenizer.encode(f"word{len(words)}")) > len(reached) - 2
    assert len(explain(encoder, picture(), text).words) == len(words)


def test_an_unreadable_image_is_named(tmp_path: Any) -> None:
    (tmp_path / "crop.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"crop\.jpg: not an image of a known format"):
        explain(random_encoder(), tmp_path / "crop.jpg", "a man")


class Doll(NamedTuple):
    image: Image.Image
    mask: Image.Image
    sentence: str
    bag: str
    lower: str


def dolls_with_bags(count: int) -> list[Doll]:
    """People of the studio whose bag and trousers can both be seen, drawn for this test."""
    found: list[Doll] = []
    for number in range(1000):
        worn = sample_attributes(stable_random("explain", number))
        if NONE in (worn.bag, worn.lower) or worn.bag_colour == worn.lower_colour:
            continue
        drawing = draw_person(worn, stable_random("explain", number, "image"), domain="source")
        labels = np.asarray(drawing.mask)
        if min((labels == PART_LABELS.index(part)).mean() for part in ("bag", "lower")) < 0.012:
            continue
        sentence = f"a {worn.gender} with a {worn.bag_colour} {worn.bag} and {worn.lower_colour} {worn.lower}"
        found.append(Doll(drawing.image, drawing.mask, sentence, worn.bag.split()[-1], worn.lower.split()[-1]))
        if len(found) == count:
            return found
    raise AssertionError("too few people with bags")


def test_the_word_for_the_bag_falls_on_the_bag() -> None:
    """With the packaged model; figures of many more crops are what `benchmarks/explain.py` prints."""
    encoder = load("clip-tiny", device="cpu")
    brighter, found, touched_shares, bag_not_trousers = [], [], [], []
    for doll in dolls_with_bags(24):
        heats = dict(explain(encoder, doll.image, doll.sentence).words)
        bag, lower = heats[doll.bag], heats[doll.lower]
        labels = np.asarray(doll.mask.resize((64, 128), Image.Resampling.NEAREST))
        mask = torch.from_numpy(labels == PART_LABELS.index("bag"))
        spread, spread_lower = (F.interpolate(heat[None, None], (128, 64))[0, 0] for heat in (bag, lower))
        touched = F.max_pool2d(mask[None].float(), 16)[0].flatten() > 0
        brighter.append(bool(spread[mask].mean() > spread[~mask].mean()))
        found.append(bool(touched[bag.argmax()]))
        touched_shares.append(touched.float().mean().item())
        bag_not_trousers.append(bool(spread[mask].mean() > spread_lower[mask].mean()))
    chance = float(np.mean(touched_shares))
    assert chance < 0.3, "the question would be too easy"
    assert np.mean(brighter) >= 0.8
    assert np.mean(found) >= 0.65 > 2 * chance
    assert np.mean(bag_not_trousers) >= 0.8


def test_an_overlay_is_hot_where_the_map_is() -> None:
    heat = torch.zeros(4, 2)
    heat[3, 1] = 1
    crop = Image.new("RGB", (50, 100), (0, 0, 200))
    pixels = np.asarray(overlay(crop, heat, height=384)).astype(int)
    assert pixels.shape == (384, 192, 3)
    cold, hot = pixels[10, 10], pixels[-10, -10]
    assert cold.max() - cold.min() == 0, "grey"
    assert (hot > cold + 100).all(), "bright and yellow over its own blue"
    assert np.asarray(overlay(crop, torch.zeros(4, 2))).std(axis=-1).max() == 0


@pytest.mark.parametrize(("mode", "size"), [("L", (3, 1000)), ("I;16", (30, 60)), ("P", (1, 1)), ("RGBA", (5000, 1))])
def test_an_overlay_of_any_picture(mode: str, size: tuple[int, int]) -> None:
    result = overlay(Image.new(mode, size), torch.rand(3, 3, generator=torch.Generator().manual_seed(0)), height=100)
    assert result.mode == "RGB" and 1 <= result.height <= 100 and 1 <= result.width <= 400


def test_random_sentences_never_fail() -> None:
    encoder, rng = random_encoder(), random.Random(4)
    alphabet = "ab ,.-'\"&<>{}%\\\0\n\t红é👜 a and red of "
    for _ in range(30):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(40)))
        assert explain(encoder, picture(), text).sentence.isfinite().all()
