"""`cskt gallery erase` and `cskt gallery expire`: a dry run first, then a deletion with proof."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import done, typed

import cskt
from cskt.cli.gallery_expire import age_of

ROWS = {"1.jpg": {"time": "2020-01-31", "camera": "c1"}, "2.jpg": {"time": "2020-01-31", "camera": "c2"}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, dolls: Path) -> Path:
    place = tmp_path_factory.mktemp("erased")
    crops = place / "crops"
    crops.mkdir()
    for number, picture in enumerate(sorted(dolls.rglob("*.jpg"))[:3], start=1):
        shutil.copyfile(picture, crops / f"{number}.jpg")
    with cskt.Gallery.create(place / "gallery", cskt.load("clip-tiny", device="cpu")) as gallery:
        gallery.index(crops, metadata=ROWS)
        gallery.add([crops / "1.jpg"], ["live/uploaded"])
    return place


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "own")
    return tmp_path / "own" / "gallery"


def count(folder: Path) -> int:
    with cskt.Gallery.open(folder, device="cpu") as gallery:
        return gallery.count()


def test_erase(folder: Path) -> None:
    said = done(f"cskt gallery erase {folder} 2.jpg nobody")
    assert said.startswith("would erase: 1 crops\n  2.jpg\nnot in the gallery: 1\n  nobody\n")
    assert "nothing was changed; to delete, give --yes" in said and count(folder) == 4
    said = done(f"cskt gallery erase {folder} 2.jpg --yes")
    assert "not searched for: the name 2.jpg: it is short" in said
    assert "of the gallery folder: nothing was found" in said
    assert f"  {folder.parent / 'crops' / '2.jpg'}\n" in said, "the file of the indexed folder is named"
    assert "not touched: backups" in said and count(folder) == 3


def test_the_report_claims_no_more_than_was_searched_for(folder: Path) -> None:
    said = done(f"cskt gallery erase {folder} nobody/of-that-name --yes")
    assert "not searched for: the vector and the pictures of nobody/of-that-name: it is not in the gallery" in said
    assert "nothing was found" in said and "is left" not in said
    assert "nothing of these crops is left" in done(f"cskt gallery erase {folder} --yes")


def test_what_is_left_is_reported_by_the_exit_code(folder: Path) -> None:
    outcome = typed(f"cskt gallery erase {folder} 1.jpg --yes")
    assert outcome.code == 1 and "the picture of 1.jpg" in outcome.out, "the upload shows the same picture"
    facts = typed(f"cskt gallery erase {folder} live/uploaded --json").json()
    assert facts["erased"] == ["live/uploaded"] and facts["dry_run"] is True


def test_expire(folder: Path) -> None:
    outcome = typed(f"cskt gallery expire {folder} --older-than 30d --where \"camera = 'c2'\"")
    assert outcome.code == 0 and outcome.out.startswith("would erase: 1 crops\n  2.jpg\n") and count(folder) == 4
    outcome = typed(f"cskt gallery expire {folder} --older-than 30d --where \"camera = 'c2'\" --yes")
    assert outcome.code == 0 and outcome.out.startswith("erased: 1 crops\n") and count(folder) == 3
    outcome = typed(f"cskt gallery expire {folder} --older-than 30d")
    assert outcome.err == "crops without a time, which stay: 2\n"


@pytest.mark.parametrize("age", ["", "30", "d", "0d", "-1d", "1.5d", "30m", "30d ", "999999d"])
def test_ages_that_are_refused(age: str) -> None:
    with pytest.raises(ValueError, match="give a number of days, hours or weeks"):
        age_of(age)
    assert (age_of("30d").days, age_of("2w").days, age_of("36h").total_seconds()) == (30, 14, 36 * 3600)
