"""Invalid queries, and independence of the queries in a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cskt.embed import Encoder
from cskt.gallery.query import Query, encode_queries


def no_crop(image_id: str) -> Tensor:
    raise AssertionError(f"nobody asked for {image_id}")


def test_an_empty_query_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to look for"):
        Query()
    with pytest.raises(ValueError, match="nothing to look for"):
        Query(exclude=("a hat",))


@pytest.mark.parametrize("query", [{"text": ""}, {"text": " \n"}, {"text": "a man", "exclude": ("a hat", "")}])
def test_empty_sentences_are_refused(query: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a sentence is empty"):
        Query(**query)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [0.0, -1.0, 101.0, float("nan"), float("inf")])
def test_weights_out_of_range_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="a weight is"):
        Query("a man", text_weight=weight)


def test_a_batch_equals_its_queries_one_by_one(encoder: Encoder, dolls: Path) -> None:
    first, second = sorted(dolls.rglob("*.jpg"))[:2]
    crop = encoder.encode_image([second])[0]
    queries = [
        Query("a man in a hat"),
        Query(image=first),
        Query("a woman", image=first, exclude=("a bag", "a hat")),
        Query(like="x", exclude=("a bag",)),
    ]
    together = encode_queries(encoder, queries, lambda _: crop)
    assert torch.allclose(together.norm(dim=1), torch.ones(4))
    for row, query in zip(together, queries, strict=True):
        assert torch.allclose(encode_queries(encoder, [query], lambda _: crop)[0], row, atol=1e-6)
    assert torch.allclose(together[0], encoder.encode_text(["a man in a hat"])[0], atol=1e-6)
    assert torch.allclose(encode_queries(encoder, queries[:2], no_crop), together[:2], atol=1e-6)


def test_an_unreadable_image_is_refused(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="not an image"):
        encode_queries(encoder, [Query(image=b"<svg/>")], no_crop)


@pytest.mark.parametrize("text", ["a man\x00", "a \x1b[31mman"])
def test_control_characters_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="holds control characters"):
        Query(text)
    assert Query("a man\nwith a hat\t").text
    with pytest.raises(ValueError, match="is not UTF-8"):
        Query("a \ud800")


def test_a_too_long_sentence_is_refused() -> None:
    with pytest.raises(ValueError, match="a sentence of 10,000,000 characters; give at most 2,000"):
        Query("a" * 10_000_000)


@pytest.mark.parametrize("weight", [5e-324, 1e-30, 1.0, 100.0])
def test_only_the_ratio_of_weights_counts(encoder: Encoder, weight: float) -> None:
    alone = encode_queries(encoder, [Query("a man")], no_crop)
    assert torch.allclose(encode_queries(encoder, [Query("a man", text_weight=weight)], no_crop), alone, atol=1e-6)
    both = Query("a man", exclude=("with a hat",), text_weight=weight, exclude_weight=weight)
    equal = Query("a man", exclude=("with a hat",), text_weight=1.0, exclude_weight=1.0)
    assert torch.allclose(*(encode_queries(encoder, [query], no_crop) for query in (both, equal)), atol=1e-6)


def test_one_string_is_one_excluded_sentence() -> None:
    assert Query("a man", exclude="a hat") == Query("a man", exclude=("a hat",)) == Query("a man", exclude=["a hat"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="each of exclude must be str, got int"):
        Query("a man", exclude=(5,))  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [{"like": 5}, {"text": b"a"}, {"text": "a", "exclude": 5}])
def test_parts_of_another_type_name_the_argument(values: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"{'a sentence' if values == {'text': b'a'} else [*values][-1]} must be str"):
        Query(**values)
