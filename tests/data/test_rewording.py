"""Back-translation and deletion of words, cleaning of captions, and the annotations with back-translations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cskt.config import AugmentConfig
from cskt.data.datasets import read_dataset
from cskt.data.rewording import reworded
from cskt.data.tokenizer import Tokenizer, without_punctuation
from cskt.errors import CsktError

TOKENIZER = Tokenizer(clean_captions=True)
FEW = 2000


def ids_of(captions: list[str], back: list[str] | None = None, seed: int = 0, **changes: float) -> list[list[int]]:
    """Words of each caption after rewording, as ids without start, end and padding."""
    generator = torch.Generator().manual_seed(seed)
    found = reworded(captions, back or [""] * len(captions), AugmentConfig(**changes), TOKENIZER, generator)
    return [row[1 : row.argmax()].tolist() for row in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Man.", "a man"),
        ('a . ! " ( ) * # : ; ~ b', "a b"),
        ("keeps & , ' - ? / [x]", "keeps & , ' - ? / [x]"),
        (" ... ", ""),
        (" ".join(str(number) for number in range(100)), " ".join(str(number) for number in range(77))),
    ],
)
def test_punctuation_is_taken_out(text: str, expected: str) -> None:
    assert without_punctuation(text) == expected
    assert TOKENIZER.clean(text) == expected
    assert without_punctuation(expected) == expected


def test_nothing_changes_at_probability_zero() -> None:
    captions = ["a man in a red coat.", "she: blue bag"]
    assert ids_of(captions) == [TOKENIZER.encode(caption) for caption in captions]


def test_words_are_left_out_whole_with_their_probability() -> None:
    words = ["unbelievably", "high-heeled", "shoes", "t-shirt", "greyish"]  # of several tokens each but one
    encoded = {tuple(TOKENIZER.encode(word)): word for word in words}
    assert max(map(len, encoded)) > 1
    counts = dict.fromkeys(words, 0)
    for row in ids_of([" ".join(words)] * FEW, word_drop_probability=0.3):
        rest = tuple(row)
        while rest:
            start = next(ids for ids in encoded if rest[: len(ids)] == ids)  # in the order of the sentence
            counts[encoded[start]] += 1
            rest = rest[len(start) :]
    for word, count in counts.items():
        assert abs(count / FEW - 0.7) < 0.045, word


def test_words_are_left_out_before_the_caption_is_cut() -> None:
    long = " ".join(f"word{number}" for number in range(77))
    full = TOKENIZER([long])
    assert full.shape[1] == 77, "it is cut"
    assert all(len(row) == 75 for row in ids_of([long] * 20, word_drop_probability=0.05))


def test_one_word_always_stays() -> None:
    rows = ids_of(["red coat bag"] * FEW + ["hat", "..."], word_drop_probability=1.0)
    ids = {word: TOKENIZER.encode(word) for word in ("red", "coat", "bag")}
    for word in ids.values():
        assert abs(rows[:FEW].count(word) / FEW - 1 / 3) < 0.045
    assert rows[FEW:] == [TOKENIZER.encode("hat"), []], "a caption without words stays one"


def test_captions_are_translated_back_with_their_probability_where_they_can_be() -> None:
    captions, back = ["a man"] * FEW + ["a woman"] * 50, ["The person."] * FEW + [""] * 25 + ["  "] * 25
    rows = ids_of(captions, back, back_translation_probability=0.2)
    translated = rows[:FEW].count(TOKENIZER.encode("the person"))
    assert abs(translated / FEW - 0.2) < 0.036
    assert rows[:FEW].count(TOKENIZER.encode("a man")) == FEW - translated
    assert rows[FEW:] == [TOKENIZER.encode("a woman")] * 50


def test_choices_are_those_of_the_generator() -> None:
    captions = ["a man in a red coat with a bag"] * 30
    one, two, other = (ids_of(captions, seed=seed, word_drop_probability=0.4) for seed in (3, 3, 4))
    assert one == two != other


# --- annotations


def entry(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_path": f"a/{number}.jpg", "captions": ["one", "two"], **changes}


def write(folder: Path, **splits: Any) -> Path:
    (folder / "CUHK-PEDES").mkdir()
    for split, records in splits.items():
        (folder / "CUHK-PEDES" / f"{split}_reid.json").write_text(json.dumps(records))
    return folder


@pytest.mark.parametrize("name", ["cuhk-pedes", "rstpreid"])
def test_files_of_single_splits_are_read(tmp_path: Path, name: str) -> None:
    root = write(tmp_path, train=[entry(1, captions_bt=["eins", ""]), entry(2)], test=[entry(7)])
    splits = read_dataset(name, root / "CUHK-PEDES")
    assert list(splits) == ["train", "test"]
    assert splits["train"].back_translations == ["eins", "", "", ""]
    assert splits["train"].records[0].back_translations == ("eins", "")
    assert splits["test"].image_paths == [root / "CUHK-PEDES" / "imgs" / "a" / "7.jpg"]
    assert splits["test"].records[0].back_translations is None


def test_the_usual_file_counts_before_files_of_single_splits(tmp_path: Path) -> None:
    root = write(tmp_path, train=[entry(1)])
    (root / "CUHK-PEDES" / "reid_raw.json").write_text(json.dumps([entry(5, split="train")]))
    assert read_dataset("cuhk-pedes", root)["train"].image_pids == [5]


@pytest.mark.parametrize("wrong", ["eins", ["eins"], ["eins", 2], {}])
def test_wrong_back_translations_are_refused(tmp_path: Path, wrong: Any) -> None:
    root = write(tmp_path, train=[entry(1), entry(2, captions_bt=wrong)])
    with pytest.raises(
        CsktError, match=r"train_reid\.json: record 1 has 'captions_bt' .*; expected a list of 2 strings"
    ):
        read_dataset("cuhk-pedes", root)


@pytest.mark.parametrize(("content", "message"), [({}, "expected a list of records"), ([], "holds no records")])
def test_wrong_files_of_splits_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CsktError, match=rf"val_reid\.json: {message}"):
        read_dataset("cuhk-pedes", write(tmp_path, train=[entry(1)], val=content))
