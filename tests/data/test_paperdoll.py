"""Paper dolls: the same bytes from the same seed, captions that fit, masks that agree, files as the readers expect."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cskt.data.datasets import read_dataset
from cskt.data.paperdoll import (
    CAPTION_WORDS,
    PART_LABELS,
    Attributes,
    Domain,
    Drawing,
    draw_person,
    make_dataset,
    sample_attributes,
    stable_random,
    write_caption,
)
from cskt.data.paperdoll.attributes import COLOURS, NONE
from cskt.data.paperdoll.doll import View
from cskt.data.paperdoll.phrases import SOURCE_WORDS, TARGET_WORDS, with_article

DOMAINS: tuple[Domain, ...] = ("source", "target")
IDS = {"train": 3, "val": 1, "test": 2}

PLAIN = Attributes(
    gender="man", age="adult", build="average", skin=1, hair="short", hair_colour="brown", headwear=NONE,
    headwear_colour=NONE, eyewear=NONE, upper="t-shirt", upper_colour="red", pattern=NONE, pattern_colour=NONE,
    inner_colour=NONE, lower="trousers", lower_colour="blue", shoes="sneakers", shoes_colour="black", bag=NONE,
    bag_colour=NONE, held=NONE, held_colour=NONE,
)  # fmt: skip


def digest(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def drawings(domain: Domain, number: int) -> Iterator[tuple[Attributes, Drawing]]:
    for index in range(number):
        attributes = sample_attributes(stable_random("test", domain, index))
        yield attributes, draw_person(attributes, stable_random("image", index), domain=domain, size_pixels=(32, 64))


def draw(attributes: Attributes, view: View = "front") -> Drawing:
    return draw_person(attributes, stable_random("fixed"), domain="source", view=view, size_pixels=(64, 128))


def seen_parts(drawing: Drawing) -> set[str]:
    return {PART_LABELS[index] for index in np.unique(np.asarray(drawing.mask))}


# -- determinism -------------------------------------------------------------------------------------------------------


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"ids": IDS, "images_per_id": 2, "masks": True}
    alone = make_dataset(tmp_path / "one", **arguments)
    together = make_dataset(tmp_path / "two", **arguments, num_processes=2)
    assert digest(alone) == digest(together)
    assert len(digest(alone)) == 6 * 2 * 2 + 2  # an image and a mask each, the annotation and the marker


def test_a_larger_data_set_extends_a_smaller_one(tmp_path: Path) -> None:
    small = make_dataset(tmp_path / "small", ids={"train": 2}, images_per_id=1, captions_per_image=2)
    large = make_dataset(tmp_path / "large", ids={"train": 4}, images_per_id=2, captions_per_image=10)
    images, more_images = digest(small / "imgs"), digest(large / "imgs")
    assert images.items() <= more_images.items()
    captions = read_dataset("cuhk-pedes", small)["train"].records[0].captions
    assert read_dataset("cuhk-pedes", large)["train"].records[0].captions[:2] == captions


def test_domains_and_seeds_draw_different_people(tmp_path: Path) -> None:
    people = []
    for domain in DOMAINS:
        for seed in (1, 2):
            made = make_dataset(
                tmp_path / f"{domain}{seed}", domain=domain, ids={"train": 6}, images_per_id=1, seed=seed
            )
            people.append([record.attributes for record in read_dataset("cuhk-pedes", made)["train"].records])
    assert all(first != second for group, other in itertools.combinations(people, 2)
               for first, second in zip(group, other, strict=True))  # fmt: skip


def test_images_of_one_person_differ() -> None:
    pixels = [draw_person(PLAIN, stable_random(number), size_pixels=(32, 64)).image.tobytes() for number in range(4)]
    assert len(set(pixels)) == 4


def test_a_source_image_is_calmer_than_a_target_image() -> None:
    def mean_edge(domain: Domain) -> float:
        rows = [np.asarray(drawing.image.convert("L"), dtype=float)[:, :4] for _, drawing in drawings(domain, 12)]
        return float(np.mean([np.abs(np.diff(row, axis=0)).mean() for row in rows]))

    assert mean_edge("source") < 0.6 * mean_edge("target")


# -- captions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_captions_have_the_stated_length_and_vary(domain: Domain) -> None:
    fewest, most = CAPTION_WORDS[domain]
    lengths, texts = set(), set()
    for index, (attributes, drawing) in enumerate(drawings(domain, 150)):
        for turn in range(4):
            text = write_caption(attributes, drawing, stable_random(index, turn), domain=domain)
            lengths.add(len(text.split()))
            texts.add(text)
    assert min(lengths) >= fewest
    assert max(lengths) <= most
    assert len(lengths) > 10
    assert len(texts) > 590


@pytest.mark.parametrize("domain", DOMAINS)
def test_captions_are_clean_english(domain: Domain) -> None:
    wrong = re.compile(
        r"\ba [aeiou]|\ban [^aeiou]|  | ,|\.\.|\bnone\b|\ba (?:\w+ )?(?:jeans|shorts|boots|sandals|sneakers|trousers)\b"
        r"|\b(\w+) \1\b|\bis (?:has|wears|carries|holds|is)\b|\{|\}"
    )
    for index, (attributes, drawing) in enumerate(drawings(domain, 300)):
        text = write_caption(attributes, drawing, stable_random(index), domain=domain)
        assert not wrong.search(text.lower()), text
        if domain == "target":
            assert all(sentence[0].isupper() for sentence in text.rstrip(".").split(". ")), text
            assert text.endswith("."), text


def test_captions_name_only_what_is_there_and_seen() -> None:
    bare = {"backpack", "bag", "suitcase", "umbrella", "phone", "cup", "hat", "cap", "glasses", "skirt", "coat", "long"}
    for number in range(200):
        drawing = draw_person(PLAIN, stable_random(number), domain="source", size_pixels=(32, 64))
        words = set(write_caption(PLAIN, drawing, stable_random(number), domain="source").split())
        assert not words & bare, words
    printed = dataclasses.replace(PLAIN, upper="hoodie", pattern="printed", pattern_colour="white")
    text = {view: " ".join(write_caption(printed, draw(printed, view), stable_random(turn), domain="source")
                           for turn in range(60)) for view in ("front", "back")}  # fmt: skip
    assert "white print" in text["front"]
    assert "white" not in text["back"]


def test_an_occluded_part_is_not_named() -> None:
    drawing = draw(PLAIN)
    without_shoes = dataclasses.replace(drawing, visible_parts=drawing.visible_parts - {"shoes"})
    texts = [" ".join(write_caption(PLAIN, seen, stable_random(turn), domain="target") for turn in range(60))
             for seen in (drawing, without_shoes)]  # fmt: skip
    assert "shoes" in texts[0]
    assert "shoes" not in texts[1]
    assert "sneakers" not in texts[1]


def test_the_source_captions_contain_every_core_word_and_no_target_word() -> None:
    texts = " | ".join(
        write_caption(attributes, drawing, stable_random(index, turn), domain="source").lower()
        for index, (attributes, drawing) in enumerate(drawings("source", 400))
        for turn in range(8)
    )
    missing = [key for key, (core, *_) in SOURCE_WORDS.items() if not re.search(rf"\b{core}\b", texts)]
    assert not missing
    assert {"black", "t-shirt", "jeans", "backpack", *COLOURS} <= set(SOURCE_WORDS)
    for key, words in TARGET_WORDS.items():
        for word in set(words) - set(SOURCE_WORDS[key]):
            assert not re.search(rf"\b{word}\b", texts), word


def test_articles() -> None:
    assert [with_article(phrase) for phrase in ("orange hat", "red hat", "umbrella")] == [
        "an orange hat", "a red hat", "an umbrella",
    ]  # fmt: skip


# -- drawing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_masks_agree_with_their_images(domain: Domain) -> None:
    for attributes, drawing in drawings(domain, 40):
        labels = np.asarray(drawing.mask)
        assert drawing.mask.size == drawing.image.size == (32, 64)
        assert drawing.mask.mode == "P"
        assert labels.max() < len(PART_LABELS)
        parts = seen_parts(drawing)
        assert "upper" in parts
        assert drawing.visible_parts <= parts
        for part in ("headwear", "eyewear", "bag", "held"):
            assert part not in parts or getattr(attributes, part) != NONE


@pytest.mark.parametrize("mirror_seed", range(6))
def test_a_part_is_where_the_mask_says(mirror_seed: int) -> None:
    colourful = dataclasses.replace(PLAIN, upper_colour="yellow", lower_colour="blue", bag="suitcase", bag_colour="red")
    drawing = draw_person(
        colourful, stable_random(mirror_seed), domain="source", view="front", size_pixels=(64, 128)
    )  # fmt: skip
    pixels, labels = np.asarray(drawing.image, dtype=float), np.asarray(drawing.mask)
    mean = {part: pixels[labels == PART_LABELS.index(part)].mean(axis=0) for part in ("upper", "lower", "bag")}
    assert mean["upper"][:2].min() > 1.5 * mean["upper"][2]  # yellow: red and green over blue
    assert mean["lower"][2] > 1.5 * mean["lower"][0]
    assert mean["bag"][0] > 1.5 * mean["bag"][2]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"headwear": "cap", "headwear_colour": "blue"}, "headwear"),
        ({"headwear": "hat", "headwear_colour": "red"}, "headwear"),
        ({"eyewear": "sunglasses"}, "eyewear"),
        ({"upper": "jacket", "inner_colour": "white"}, "inner"),
        *[({"bag": bag, "bag_colour": "green"}, "bag") for bag in ("backpack", "shoulder bag", "handbag", "suitcase")],
        *[({"held": held, "held_colour": "pink"}, "held") for held in ("umbrella", "book", "shopping bag")],
        *[({"held": held}, "held") for held in ("phone", "bottle", "cup")],
    ],
)
def test_an_attribute_shows_in_the_mask(change: dict[str, str], part: str) -> None:
    assert part not in seen_parts(draw(PLAIN))
    for view in ("front", "side") if part not in ("headwear",) else ("front", "back", "side"):
        if (change.get("bag"), view) == ("handbag", "side"):
            continue  # on the far side of the body
        assert part in draw(dataclasses.replace(PLAIN, **change), view).visible_parts, view  # type: ignore[arg-type]


def test_the_view_hides_parts() -> None:
    dressed = dataclasses.replace(
        PLAIN, eyewear="glasses", upper="coat", inner_colour="white", bag="backpack", bag_colour="blue"
    )
    area = {
        view: int((np.asarray(draw(dressed, view).mask) == PART_LABELS.index("bag")).sum())
        for view in ("front", "back")
    }
    assert area["back"] > 2 * area["front"] > 0  # from the front, straps only
    assert not {"eyewear", "inner"} & seen_parts(draw(dressed, "back"))
    assert {"eyewear", "inner"} <= seen_parts(draw(dressed, "front"))


@pytest.mark.parametrize(
    "change",
    [
        {"pattern": "striped", "pattern_colour": "white"},
        {"lower": "shorts"},
        {"shoes": "boots"},
        {"hair": "long"},
        {"build": "heavy"},
        {"upper_colour": "green"},
    ],
)
def test_each_attribute_changes_the_picture(change: dict[str, str]) -> None:
    changed = draw(dataclasses.replace(PLAIN, **change)).image  # type: ignore[arg-type]
    assert np.abs(np.asarray(changed, dtype=float) - np.asarray(draw(PLAIN).image, dtype=float)).max() > 60


# -- layouts -----------------------------------------------------------------------------------------------------------


def test_cuhk_pedes_layout(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, layout="cuhk-pedes", ids=IDS, images_per_id=2)
    assert folder == tmp_path / "CUHK-PEDES"
    records = json.loads((folder / "reid_raw.json").read_text(encoding="utf-8"))
    assert [record["id"] for record in records] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert [record["split"] for record in records[::2]] == ["train"] * 3 + ["val"] + ["test"] * 2
    assert records[0]["file_path"] == "paperdoll/0001/0001_0.jpg"
    assert all(len(record["captions"]) == 2 for record in records)
    assert 0 < sum("processed_tokens" in record for record in records) < len(records)
    for split in read_dataset("cuhk-pedes", tmp_path).values():
        for record in split.records:
            with Image.open(record.image_path) as image:
                assert 110 <= image.height <= 190
            assert record.attributes is not None
            assert record.attributes["upper"]


def test_icfg_pedes_layout_has_one_caption_and_no_val(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, layout="icfg-pedes", ids=IDS, images_per_id=1)
    records = json.loads((folder / "ICFG-PEDES.json").read_text(encoding="utf-8"))
    assert [(record["id"], record["split"], len(record["captions"])) for record in records] == [
        (0, "train", 1), (1, "train", 1), (2, "train", 1), (3, "train", 1), (4, "test", 1), (5, "test", 1),
    ]  # fmt: skip
    assert {name: split.counts for name, split in read_dataset("icfg-pedes", tmp_path).items()} == {
        "train": (4, 4, 4), "test": (2, 2, 2),
    }  # fmt: skip


def test_rstpreid_layout(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, layout="rstpreid", ids=IDS, images_per_id=1)
    records = json.loads((folder / "data_captions.json").read_text(encoding="utf-8"))
    assert [record["id"] for record in records] == list(range(6))
    assert all((folder / "imgs" / record["img_path"]).is_file() and "file_path" not in record for record in records)
    assert read_dataset("rstpreid", tmp_path)["test"].counts == (2, 2, 4)


def test_jsonl_layout_is_in_the_root(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, layout="jsonl", ids={"train": 2, "test": 1}, images_per_id=1)
    assert folder == tmp_path
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [set(line) for line in lines] == [{"image", "pid", "captions", "attributes"}] * 2
    assert all((folder / line["image"]).is_file() for line in lines)
    assert not (folder / "val.jsonl").exists()
    assert {name: split.counts for name, split in read_dataset("jsonl", tmp_path).items()} == {
        "train": (2, 2, 4), "test": (1, 1, 2),
    }  # fmt: skip


@pytest.mark.parametrize("number", [1, 10])
def test_captions_per_image(tmp_path: Path, number: int) -> None:
    make_dataset(tmp_path, ids={"train": 2}, images_per_id=1, captions_per_image=number)
    for record in read_dataset("cuhk-pedes", tmp_path)["train"].records:
        assert len(record.captions) == number
        assert len(set(record.captions)) == number


def test_masks_have_the_names_of_the_images(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, ids={"train": 2}, images_per_id=2, masks=True)
    images = sorted((folder / "imgs").rglob("*.jpg"))
    assert len(images) == 4
    for path in images:
        mask_path = folder / "masks" / path.relative_to(folder / "imgs").with_suffix(".png")
        with Image.open(path) as image, Image.open(mask_path) as mask:
            assert image.size == mask.size
            assert mask.mode == "P"
            assert np.asarray(mask).max() < len(PART_LABELS)


def test_progress_is_reported_in_images(tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    make_dataset(
        tmp_path, ids={"train": 3}, images_per_id=2, on_progress=lambda done, total: reported.append((done, total))
    )
    assert reported == [(2, 6), (4, 6), (6, 6)]


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "cuhk"}, "unknown layout 'cuhk'"),
        ({"domain": "targets"}, "did you mean 'target'"),
        ({"ids": {"training": 2}}, "unknown split 'training'"),
        ({"ids": {"train": -1}}, "-1 identities for train"),
        ({"ids": {}}, "names no identity"),
        ({"images_per_id": 0}, "images_per_id is 0; expected 1 or more"),
        ({"captions_per_image": 0}, "captions_per_image is 0; expected 1 to 10"),
        ({"captions_per_image": 11}, "captions_per_image is 11; expected 1 to 10"),
        ({"num_processes": 0}, "num_processes is 0; expected 1 or more"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        make_dataset(tmp_path, **{"ids": {"train": 1}, **arguments})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_finished_data_set_is_not_redrawn_and_another_not_overwritten(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"ids": {"train": 2}, "images_per_id": 1}
    folder = make_dataset(tmp_path, **arguments)
    image = next(folder.rglob("*.jpg"))
    image.write_bytes(b"touched")
    make_dataset(tmp_path, **arguments, num_processes=2)
    assert image.read_bytes() == b"touched"
    with pytest.raises(ValueError, match="made with other ids, seed; choose another root"):
        make_dataset(tmp_path, ids={"train": 3}, images_per_id=1, seed=7)
    assert image.read_bytes() == b"touched"


def test_an_interrupted_data_set_is_drawn_to_its_end(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    arguments: dict[str, Any] = {"ids": {"train": 3}, "images_per_id": 1}
    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path / "cut", **arguments, on_progress=interrupt)
    assert digest(make_dataset(tmp_path / "cut", **arguments)) == digest(make_dataset(tmp_path / "whole", **arguments))


def test_a_folder_with_real_data_is_refused(tmp_path: Path) -> None:
    real = tmp_path / "CUHK-PEDES"
    real.mkdir()
    (real / "reid_raw.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="already has another data set"):
        make_dataset(tmp_path, ids={"train": 1})
    assert digest(real) == {"reid_raw.json": b"[]"}
