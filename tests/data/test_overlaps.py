"""Images and identities that two splits or two people share: found by path at the start, by content in a check."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
from small_datasets import entry, write_dataset, write_image

from cskt.data.check import check_dataset
from cskt.data.overlaps import file_keys, read_separate_splits


def write_jsonl(root: Path, *lines: tuple[str, int, str]) -> Path:
    """A JSON-lines data set of (split, pid, image) records; an image is drawn unless it exists."""
    for seed, (split, pid, image) in enumerate(lines):
        path = root / image
        if not os.path.lexists(path):
            write_image(path, seed)
        with (root / f"{split}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"image": image, "pid": pid, "captions": [f"person {pid}"]}) + "\n")
    return root


def copy(root: Path, source: str, target: str) -> None:
    shutil.copyfile(write_image(root / source, seed=99), root / target)


def refusal_of(root: Path) -> str:
    with pytest.raises(ValueError, match=r"cskt data check .* lists all$") as caught:
        read_separate_splits("jsonl", root)
    message = str(caught.value)
    assert message.startswith(f"{root}: ") and "\n" not in message
    return message


def errors_of(root: Path) -> list[str]:
    return check_dataset("jsonl", root).errors


# --- what is refused at the start


def test_a_sound_data_set_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_jsonl(tmp_path, ("train", 1, "a.jpg"), ("train", 1, "a.jpg"), ("val", 2, "b.jpg"), ("test", 3, "c.jpg"))
    assert read_separate_splits("jsonl", tmp_path).keys() == {"train", "val", "test"}
    assert errors_of(tmp_path) == [] and caplog.records == [], "twice under one identity does no harm"


def test_a_caption_of_several_people_is_accepted(tmp_path: Path) -> None:
    for pid, split in enumerate(("train", "val", "test")):
        write_image(tmp_path / f"{pid}.jpg", pid)
        line = json.dumps({"image": f"{pid}.jpg", "pid": pid, "captions": ["the same words"]})
        (tmp_path / f"{split}.jsonl").write_text(line)
    assert len(read_separate_splits("jsonl", tmp_path)) == 3 and errors_of(tmp_path) == []


@pytest.mark.parametrize(("one", "other"), [("train", "test"), ("train", "val"), ("val", "test")])
def test_an_identity_in_two_splits(tmp_path: Path, one: str, other: str) -> None:
    write_jsonl(tmp_path, (one, 7, "a.jpg"), (other, 7, "b.jpg"), (other, 8, "c.jpg"))
    expected = f"identities in both {one} and {other}: 1 (7); number people apart and keep each in one split"
    assert expected in refusal_of(tmp_path)
    assert errors_of(tmp_path) == [expected]


@pytest.mark.parametrize("written", ["a.jpg", "./a.jpg", "imgs//a.jpg", "imgs\\a.jpg", "link/a.jpg"])
def test_a_path_in_two_splits_however_it_is_written(tmp_path: Path, written: str) -> None:
    first = "imgs/a.jpg" if "imgs" in written or "link" in written else "a.jpg"
    (tmp_path / "imgs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "imgs")
    write_jsonl(tmp_path, ("train", 1, first), ("test", 2, written))
    message = refusal_of(tmp_path)
    assert "images in both train and test: 1 (" in message and "keep each in one split" in message
    assert "(and 1 more findings)" in message, "it has two identities, too"
    assert len(errors_of(tmp_path)) == 2


def test_a_path_under_two_people(tmp_path: Path) -> None:
    write_jsonl(tmp_path, ("train", 4, "a.jpg"), ("train", 9, "a.jpg"), ("train", 5, "b.jpg"), ("val", 6, "c.jpg"))
    expected = f"images under more than one identity: 1 ({tmp_path / 'a.jpg'} of 4 and 9);"
    assert expected in refusal_of(tmp_path)
    assert errors_of(tmp_path) == [f"{expected} keep the record of the right person"]


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_links_to_the_same_file_are_recognised(tmp_path: Path, link: object) -> None:
    write_image(tmp_path / "a.jpg")
    link(tmp_path / "b.jpg", tmp_path / "a.jpg")  # type: ignore[operator]
    write_jsonl(tmp_path, ("train", 1, "a.jpg"), ("val", 2, "b.jpg"))
    assert f"{tmp_path / 'a.jpg'} = {tmp_path / 'b.jpg'}" in refusal_of(tmp_path)


def test_two_names_of_one_file_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where upper and lower case are the same: both names have the state of one file."""
    write_jsonl(tmp_path, ("train", 1, "a.jpg"), ("val", 2, "A.jpg"), ("test", 3, "c.jpg"))
    state = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **rest: state(path.with_name(path.name.lower()), **rest))
    assert "images in both train and val: 1 (" in refusal_of(tmp_path)


def test_files_without_an_inode_number_are_compared_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path, ("train", 1, "a.jpg"), ("val", 2, "b.jpg"))
    state = Path.stat

    def without_inodes(path: Path, **rest: bool) -> os.stat_result:
        found = state(path, **rest)
        return os.stat_result((found.st_mode, 0, *found[2:]))

    monkeypatch.setattr(Path, "stat", without_inodes)
    dataset = read_separate_splits("jsonl", tmp_path)
    assert len(set(file_keys(dataset).values())) == 2


def test_missing_images_are_compared_by_path(tmp_path: Path) -> None:
    write_jsonl(tmp_path, ("train", 1, "a.jpg"), ("val", 2, "b.jpg"), ("test", 3, "a.jpg"))
    for path in tmp_path.glob("*.jpg"):
        path.unlink()
    assert "images in both train and test" in refusal_of(tmp_path)


def test_many_findings_are_one_short_line(tmp_path: Path) -> None:
    lines = [(split, pid, f"{pid}.jpg") for split in ("train", "test") for pid in range(20)]
    message = refusal_of(write_jsonl(tmp_path, *lines))
    assert "identities in both train and test: 20 (0, 1, 2 and 17 more)" in message and len(message) < 400


# --- what is only warned of


@pytest.mark.parametrize("name", ["cuhk-pedes", "icfg-pedes", "rstpreid"])
def test_published_data_sets_are_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    write_dataset(tmp_path, name, [entry("train", 1, "a.jpg"), entry("test", 1, "a.jpg"), entry("val", 3, "c.jpg")])
    for _ in range(2):
        assert len(read_separate_splits(name, tmp_path)) == 3
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "identities in both train and test: 1 (1)" in record.message and "may be too high" in record.message
    assert any(error.startswith("images in both train and test") for error in check_dataset(name, tmp_path).errors)


def test_without_refuse_an_overlap_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_jsonl(tmp_path, ("train", 1, "a.jpg"), ("test", 1, "b.jpg"))
    assert len(read_separate_splits("jsonl", tmp_path, refuse=False)) == 2
    assert len(caplog.records) == 1


# --- what a check reads off the content


def test_the_same_content_in_two_splits(tmp_path: Path) -> None:
    copy(tmp_path, "a.jpg", "b.png")
    write_jsonl(tmp_path, ("train", 1, "a.jpg"), ("test", 2, "b.png"), ("train", 3, "c.jpg"))
    assert len(read_separate_splits("jsonl", tmp_path)) == 2, "at the start no file is read"
    in_both, of_two = errors_of(tmp_path)
    pair = f"{tmp_path / 'a.jpg'} = {tmp_path / 'b.png'}"
    assert in_both == f"images in both train and test: 1 ({pair}); keep each in one split"
    assert of_two.startswith(f"images under more than one identity: 1 ({pair} of 1 and 2)")
    assert check_dataset("jsonl", tmp_path, decode=False).errors == [], "without decoding only paths are compared"


def test_the_same_content_of_two_people_in_one_split(tmp_path: Path) -> None:
    copy(tmp_path, "a.jpg", "b.jpg")
    write_jsonl(tmp_path, ("train", 1, "a.jpg"), ("train", 2, "b.jpg"))
    (error,) = errors_of(tmp_path)
    assert error.startswith("images under more than one identity: 1 (")


def test_the_same_content_of_one_person_is_a_warning(tmp_path: Path) -> None:
    copy(tmp_path, "a.jpg", "b.jpg")
    report = check_dataset("jsonl", write_jsonl(tmp_path, ("train", 1, "a.jpg"), ("train", 1, "b.jpg")))
    assert report.errors == []
    assert report.warnings == [f"images with more than one record: 1 ({tmp_path / 'a.jpg'} = {tmp_path / 'b.jpg'})"]


def test_the_same_content_of_one_person_in_two_splits(tmp_path: Path) -> None:
    copy(tmp_path, "a.jpg", "b.jpg")
    write_jsonl(tmp_path, ("train", 1, "a.jpg"), ("val", 1, "b.jpg"))
    assert [error.split(":")[0] for error in errors_of(tmp_path)] == [
        "identities in both train and val", "images in both train and val",
    ]  # fmt: skip


def test_equal_sizes_are_no_equal_content(tmp_path: Path) -> None:
    for number, name in enumerate(("a.bmp", "b.bmp")):
        write_image(tmp_path / name, number)
    assert (tmp_path / "a.bmp").stat().st_size == (tmp_path / "b.bmp").stat().st_size
    assert errors_of(write_jsonl(tmp_path, ("train", 1, "a.bmp"), ("test", 2, "b.bmp"))) == []


def test_damaged_files_are_not_compared(tmp_path: Path) -> None:
    write_jsonl(tmp_path, ("train", 1, "a.jpg"), ("test", 2, "b.jpg"), ("test", 3, "c.jpg"))
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"")
    assert [error.split(":")[1].strip() for error in errors_of(tmp_path)] == ["corrupt images", "corrupt images"]
