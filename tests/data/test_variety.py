"""The varied domain of the generator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cskt.data.datasets import read_dataset
from cskt.data.paperdoll import Attributes, Drawing, draw_person, make_dataset, sample_attributes, stable_random
from cskt.data.paperdoll import drawing as drawing_module
from cskt.data.paperdoll.captions import CAPTION_WORDS, write_caption
from cskt.data.paperdoll.paraphrases import MORE_WORDS, _neutral_words
from cskt.data.paperdoll.phrases import SOURCE_WORDS, TARGET_WORDS
from cskt.errors import CsktError


def varied(number: int) -> Iterator[tuple[Attributes, Drawing]]:
    for index in range(number):
        attributes = sample_attributes(stable_random("varied", index))
        yield attributes, draw_person(attributes, stable_random("image", index), domain="varied", size_pixels=(32, 64))


def test_bytes_depend_on_the_arguments_alone(tmp_path: Path) -> None:
    folders = [
        make_dataset(tmp_path / str(number), domain="varied", ids={"train": 3}, images_per_id=2, num_processes=number)
        for number in (1, 2)
    ]
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in folders
    )
    assert first == second
    assert len(read_dataset("cuhk-pedes", folders[0])["train"].records) == 6


def test_captions_of_another_domain_are_of_the_same_pictures(tmp_path: Path) -> None:
    plain, other = (
        make_dataset(tmp_path / str(captions), domain="source", captions=captions, layout="jsonl", ids={"test": 4})
        for captions in (None, "varied")
    )
    for path in (plain / "imgs").rglob("*.jpg"):
        assert path.read_bytes() == (other / path.relative_to(plain)).read_bytes()
    texts = [[r.captions for r in read_dataset("jsonl", folder)["test"].records] for folder in (plain, other)]
    assert all(one != two for one, two in zip(*texts, strict=True))
    with pytest.raises(CsktError, match=r"unknown domain 'street': did you mean 'target'"):
        make_dataset(tmp_path / "x", captions="street", ids={"test": 1})  # type: ignore[arg-type]


def test_a_folder_with_other_captions_is_not_taken_for_the_same(tmp_path: Path) -> None:
    make_dataset(tmp_path, ids={"test": 1})
    make_dataset(tmp_path, captions="target", ids={"test": 1})  # the same
    with pytest.raises(CsktError, match="has paper dolls made with other captions; choose another root"):
        make_dataset(tmp_path, captions="source", ids={"test": 1})
    make_dataset(tmp_path / "other", captions="source", ids={"test": 1})
    with pytest.raises(CsktError, match="has paper dolls made with other captions; choose another root"):
        make_dataset(tmp_path / "other", ids={"test": 1})


def test_nothing_of_the_street_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("drawn for the target domain only")

    for name in ("draw_street", "draw_occluder", "_photograph", "_place"):
        monkeypatch.setattr(drawing_module, name, refuse)
    assert len(list(varied(200))) == 200


def test_pictures_vary_in_size_light_and_surroundings() -> None:
    drawings = [drawing for _, drawing in varied(150)]
    corners = np.array([np.asarray(drawing.image, float)[:4, :4].mean((0, 1)) for drawing in drawings])
    assert (corners.std(axis=0) > 40).all()  # the backdrop has any colour
    shares = [float((np.asarray(drawing.mask) > 0).mean()) for drawing in drawings]
    assert min(shares) < 0.2 and max(shares) > 0.4
    assert len({drawing.jpeg_quality for drawing in drawings}) > 30


def test_captions_have_the_stated_length_and_every_word() -> None:
    fewest, most = CAPTION_WORDS["varied"]
    texts = [
        write_caption(attributes, drawing, stable_random(index, turn), domain="varied").lower()
        for index, (attributes, drawing) in enumerate(varied(500))
        for turn in range(10)
    ]
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) >= fewest and max(lengths) <= most and len(set(lengths)) > 30
    assert len(set(texts)) > 4900
    everything = " | ".join(texts)
    words = {word for table in (SOURCE_WORDS, TARGET_WORDS, MORE_WORDS) for key in table for word in table[key]}
    missing = sorted(word for word in words if not re.search(rf"\b{re.escape(word)}\b", everything))
    assert len(missing) < 0.02 * len(words), missing
    assert not re.search(r"\bnone\b|\{|\}", everything)


def test_asides_name_no_colour_and_no_garment() -> None:
    words = set(_neutral_words())
    assert len(words) > 4000
    assert not words & {"red", "coat", "woman", "bag", "striped", "dark", "blond", "wool"}


def test_every_key_of_the_further_words_is_a_value_of_the_grammar() -> None:
    assert set(MORE_WORDS) <= set(SOURCE_WORDS)
