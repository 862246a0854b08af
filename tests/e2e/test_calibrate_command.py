"""`cskt calibrate`: on a run's val split, on marks of a gallery, on files; and what a search makes of the threshold."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import done, typed

import cskt
from cskt.data.datasets import read_dataset
from cskt.gallery.calibration import CALIBRATION_FILE, load_calibration
from cskt.gallery.gallery import Gallery

SENTENCES = [
    f"{who} in {colour}" for who in ("a man", "a woman") for colour in ("red", "blue", "green", "grey", "pink")
]


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to store a threshold in."""
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture
def gallery(root: Path, own_run: Path, tmp_path: Path) -> Path:
    """Twelve crops, indexed with that run before anything was calibrated."""
    images = sorted((root / "CUHK-PEDES").rglob("*.jpg"))[:12]
    (tmp_path / "crops" / "a").mkdir(parents=True)
    for number, image in enumerate(images):
        shutil.copyfile(image, tmp_path / "crops" / "a" / f"{number:02}.jpg")
    done(f"cskt index {tmp_path}/g --images {tmp_path}/crops --model {own_run} --device cpu")
    return tmp_path / "g"


def write_marks(path: Path, prefix: str = "a/") -> Path:
    """Ten sentences with twelve crops each: the crop of the sentence's number is right, all others are wrong."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "image", "right"))
        for number, sentence in enumerate(SENTENCES):
            writer.writerows((sentence, f"{prefix}{crop:02}.jpg", int(crop == number)) for crop in range(12))
    return path


def expected_scores(own_run: Path, crops: Path) -> tuple[np.ndarray, np.ndarray]:
    """Right and wrong scores of `write_marks`."""
    encoder = cskt.load(own_run, device="cpu", precision="auto")
    images = encoder.encode_image([crops / "a" / f"{number:02}.jpg" for number in range(12)])
    scores = (encoder.encode_text(SENTENCES) @ images.T).numpy()
    is_right = np.eye(10, 12, dtype=bool)
    return scores[is_right], scores[~is_right]


def test_a_run_is_calibrated_on_val_and_never_on_test(own_run: Path, root: Path) -> None:
    found = typed(f"cskt calibrate {own_run} --false-match-rate 0.05 --device cpu --json").json()
    val = read_dataset("cuhk-pedes", root)["val"]
    encoder = cskt.load(own_run, device="cpu", precision="auto")
    scores = (encoder.encode_text(val.captions) @ encoder.encode_image(val.image_paths).T).numpy()
    same = np.equal.outer(val.caption_pids, val.image_pids)
    wrong = np.sort(scores[~same])[::-1]
    assert found["source"] == "cuhk-pedes val"
    assert (found["num_right"], found["num_wrong"]) == (same.sum(), (~same).sum())
    assert wrong[int(0.05 * len(wrong))] < found["cut_off"] <= wrong[int(0.05 * len(wrong)) - 1]
    assert found["false_match_rate"] == int(0.05 * len(wrong)) / len(wrong)
    assert found["match_rate"] == pytest.approx((scores[same] >= found["cut_off"]).mean())
    low, high = found["interval"]
    assert low < found["false_match_rate"] < high
    assert found["file"] == str(own_run / CALIBRATION_FILE)
    kept = load_calibration(own_run, encoder.fingerprint)
    assert kept is not None and kept.min_score == found["cut_off"]


def test_another_split_than_val_warns(own_run: Path, caplog: pytest.LogCaptureFixture) -> None:
    done(f"cskt calibrate {own_run} --split test --false-match-rate 0.05 --device cpu")
    assert "metrics on it are then no test any more" in caplog.text


def test_a_gallery_is_calibrated_on_marks_and_searched_with_the_threshold(
    gallery: Path, own_run: Path, tmp_path: Path
) -> None:
    marks = write_marks(tmp_path / "marks.csv")
    command = f"cskt calibrate {gallery} --labelled {marks} --false-match-rate 0.1 --device cpu"
    found = typed(f"{command} --json").json()
    right, wrong = expected_scores(own_run, tmp_path / "crops")
    assert (found["num_right"], found["num_wrong"]) == (10, 110)
    assert found["cut_off"] == pytest.approx(np.sort(wrong)[::-1][11], abs=1e-5)
    assert found["match_rate"] == pytest.approx((right >= found["cut_off"]).mean())

    search = f"cskt search {gallery} '{SENTENCES[0]}' -k 12 --device cpu --json"
    every = typed(f"{search} --min-score -1").json()[0]["hits"]
    assert len(every) == 12
    assert typed(search).json()[0]["hits"] == [hit for hit in every if hit["score"] >= found["cut_off"]]
    assert "stored in" in done(command) and "of 110 (95 % interval" in done(command)


def test_a_search_without_hits_above_the_threshold_names_it(gallery: Path, tmp_path: Path) -> None:
    marks = write_marks(tmp_path / "marks.csv")
    found = typed(f"cskt calibrate {gallery} --labelled {marks} --false-match-rate 0.01 --device cpu --json").json()
    with Gallery.open(gallery, device="cpu") as opened:
        assert opened.min_score == found["cut_off"]
        unlike = next(text for text in (*SENTENCES, *(f"{number}" for number in range(100))) if not opened.search(text))
    outcome = typed(f"cskt search {gallery} '{unlike}' --device cpu")
    assert outcome.code == 0 and outcome.out == ""
    assert f"no crop scores at least {found['cut_off']:.3f}, the calibrated threshold (--min-score -1" in outcome.err


def test_a_gallery_of_a_calibrated_run_takes_its_threshold_over(own_run: Path, root: Path, tmp_path: Path) -> None:
    found = typed(f"cskt calibrate {own_run} --false-match-rate 0.05 --device cpu --json").json()
    done(f"cskt index {tmp_path}/g --images {root}/CUHK-PEDES --model {own_run} --device cpu")
    with Gallery.open(tmp_path / "g") as gallery:
        assert gallery.min_score == found["cut_off"]


def test_files_beside_a_table_calibrate_a_run(gallery: Path, own_run: Path, tmp_path: Path) -> None:
    marks = write_marks(tmp_path / "crops" / "marks.csv", prefix="a\\")
    found = typed(f"cskt calibrate {own_run} --labelled {marks} --false-match-rate 0.1 --device cpu --json").json()
    _, wrong = expected_scores(own_run, tmp_path / "crops")
    assert found["cut_off"] == pytest.approx(np.sort(wrong)[::-1][11], abs=1e-5)
    assert (own_run / CALIBRATION_FILE).is_file() and not (gallery / CALIBRATION_FILE).exists()


def test_pairs_of_missing_crops_are_logged_and_absolute_paths_found(
    gallery: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marks = write_marks(tmp_path / "marks.csv", prefix=f"{tmp_path}/crops/a/")
    with marks.open("a", encoding="utf-8") as file:
        file.write("a man,nobody.jpg,0\n")
    command = f"cskt calibrate {gallery} --labelled {marks} --false-match-rate 0.1 --device cpu --json"
    assert typed(command).json()["num_wrong"] == 110
    assert "1 of 121 pairs name no crop of the gallery (the first: 'nobody.jpg')" in caplog.text


def test_of_two_marks_for_one_pair_the_later_counts(gallery: Path, tmp_path: Path) -> None:
    marks = write_marks(tmp_path / "marks.csv")
    with marks.open("a", encoding="utf-8") as file:
        file.write(f"{SENTENCES[0]},a/00.jpg,0\n")
    found = typed(f"cskt calibrate {gallery} --labelled {marks} --false-match-rate 0.1 --device cpu --json").json()
    assert (found["num_right"], found["num_wrong"]) == (9, 111)


@pytest.mark.parametrize(
    ("target", "flags", "message"),
    [
        ("{gallery}", "", "--labelled marks.csv"),
        (
            "{gallery}",
            "--labelled {tmp}/marks.csv",
            "too few for a false-match rate of 0.001, which needs at least 1,000",
        ),
        ("{gallery}", "--labelled {tmp}/marks.csv --split val", "leave one out"),
        ("{gallery}", "--labelled {tmp}/none.csv", "No such file"),
        ("{run}", "--false-match-rate 0", "between 0 and 1"),
        ("{run}", "--false-match-rate 1e-9", "too few"),
        ("{run}", "--split nowhere", "no split 'nowhere'"),
        ("clip-tiny", "", "a threshold is stored in a folder"),
        ("{tmp}", "", "no run folder"),
        ("nowhere", "", "nowhere: no such run folder"),
    ],
)
def test_calibrate_refuses_in_one_line(
    gallery: Path, own_run: Path, tmp_path: Path, target: str, flags: str, message: str
) -> None:
    write_marks(tmp_path / "marks.csv")
    command = f"cskt calibrate {target} {flags} --device cpu".format(gallery=gallery, run=own_run, tmp=tmp_path)
    assert message in typed(command).refusal()
    assert not list(tmp_path.rglob(CALIBRATION_FILE))


def test_the_file_is_for_people_too(gallery: Path, tmp_path: Path) -> None:
    marks = write_marks(tmp_path / "marks.csv")
    done(f"cskt calibrate {gallery} --labelled {marks} --false-match-rate 0.1 --device cpu")
    content = json.loads((gallery / CALIBRATION_FILE).read_text(encoding="utf-8"))
    assert content["source"] == str(marks) and content["calibration"]["asked_rate"] == 0.1


def test_reindex_prints_the_command_that_calibrates_again(gallery: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    marks = write_marks(tmp_path / "my marks.csv")
    done(f"cskt calibrate {gallery} --labelled '{marks}' --false-match-rate 0.1 --device cpu")
    lines = done(f"cskt reindex {gallery} --model {tiny_backbone} --device cpu").splitlines()
    why, _, again = lines[-1].partition(": ")
    assert "threshold belongs to the old model" in why
    assert again.endswith(f"calibrate {gallery} --labelled '{marks}' --false-match-rate 0.1")
    assert "stored in" in done(f"{again} --device cpu")
    with Gallery.open(gallery, device="cpu") as opened:
        assert opened.min_score is not None
