from dataclasses import replace
from pathlib import Path

import pytest
from small_datasets import entry, write_dataset

from cskt.data.check import CheckReport, SplitReport, check_dataset
from cskt.data.datasets import DATASETS
from cskt.data.records import SPLIT_NAMES, SplitCounts


def report_of(report: CheckReport, name: str) -> SplitReport:
    return next(split for split in report.splits if split.name == name)


ENTRIES = [
    entry("train", 1, "a\\1.jpg", "A man，in black.He runs.", "a man in black"),
    entry("train", 8, "a/8.png", "a man in black", "👜 bag"),
    entry("val", 20, "20.jpg", "a man in black"),
    entry("test", 30, "30.jpg", "word " * 145),
    entry("test", 31, "31.jpg", "", "a woman"),
]


def test_sound_subset_has_no_errors(tmp_path: Path) -> None:
    write_dataset(tmp_path, "cuhk-pedes", ENTRIES)
    steps: list[tuple[int, int]] = []
    report = check_dataset("CUHK_PEDES", tmp_path, on_progress=lambda done, total: steps.append((done, total)))
    assert report.dataset == "cuhk-pedes" and report.root == tmp_path and report.errors == []
    assert steps == [(2, 5), (3, 5), (5, 5)]
    train, test = report_of(report, "train"), report_of(report, "test")
    assert train.counts == SplitCounts(2, 2, 4) and train.published == DATASETS["cuhk-pedes"].published_counts["train"]
    assert (train.num_shared_captions, train.num_id_gaps) == (1, 6)
    assert (test.num_shared_captions, test.num_id_gaps) == (0, 0)
    lengths = test.caption_lengths
    assert (lengths.shortest, lengths.median, lengths.longest, lengths.num_over_context) == (2, 4, 147, 1)
    assert lengths.mean == pytest.approx((2 + 4 + 147) / 3)
    assert [warning.split(":")[0] for warning in report.warnings] == ["train", "val", "test", "train", "test", "test"]
    text = "\n".join(report.warnings)
    assert "2 identities, 2 images, 4 captions where the paper has 11003 identities, 34054 images" in text
    assert "train: captions of more than one identity: 1" in text
    assert "test: blank captions: 1" in text
    assert "test: captions of more than 77 tokens, which lose their ends: 1" in text


def test_published_split_that_is_absent(tmp_path: Path) -> None:
    write_dataset(tmp_path, "icfg-pedes", [entry("train", 0, "0.jpg")])
    warnings = check_dataset("icfg-pedes", tmp_path).warnings
    assert any(warning.startswith("test: the published data set has this split") for warning in warnings)
    assert not any(warning.startswith("val") for warning in warnings), "it has none"


def test_missing_and_damaged_images_are_errors(tmp_path: Path) -> None:
    entries = [entry("train", pid, f"{pid}.jpg") for pid in range(10)]
    images = write_dataset(tmp_path, "rstpreid", entries) / "RSTPReid" / "imgs"
    (images / "0.jpg").unlink()
    (images / "1.jpg").write_bytes(b"")
    (images / "2.jpg").write_text("text")
    (images / "3.jpg").write_bytes((images / "3.jpg").read_bytes()[:-40])
    train = report_of(report := check_dataset("rstpreid", tmp_path), "train")
    assert train.missing_images == (images / "0.jpg",)
    assert [path.name for path, _ in train.damaged_images] == ["1.jpg", "2.jpg", "3.jpg"]
    reasons = [reason for _, reason in train.damaged_images]
    assert "empty" in reasons[0] and "known format" in reasons[1] and "Premature end" in reasons[2]
    missing, corrupt = report.errors
    assert missing.startswith("train: missing images: 1 of 10 (") and "0.jpg" in missing
    assert corrupt.startswith("train: corrupt images: 3 of 10 (") and "1.jpg: corrupt image" in corrupt

    quick = report_of(check_dataset("rstpreid", tmp_path, decode=False), "train")
    assert quick.missing_images == train.missing_images and quick.damaged_images == ()


def test_long_lists_are_cut(tmp_path: Path) -> None:
    write_dataset(tmp_path, "rstpreid", [entry("train", pid, f"{pid}.jpg") for pid in range(9)], images=False)
    (error,) = check_dataset("rstpreid", tmp_path).errors
    assert "missing images: 9 of 9" in error and "2.jpg and 6 more" in error and "3.jpg" not in error


def test_identities_in_two_splits_are_an_error(tmp_path: Path) -> None:
    entries = [entry(split, pid, f"{split}{pid}.jpg") for split, pid in (("train", 1), ("train", 2), ("test", 2))]
    errors = check_dataset("icfg-pedes", write_dataset(tmp_path, "icfg-pedes", entries)).errors
    assert errors == ["identities in both train and test: 1 (2); number people apart and keep each in one split"]


def test_image_with_two_records_is_a_warning(tmp_path: Path) -> None:
    write_dataset(tmp_path, "cuhk-pedes", [entry("train", 1, "a.jpg"), entry("train", 1, "a.jpg", "again")])
    report = check_dataset("cuhk-pedes", tmp_path)
    assert report.errors == []
    assert any(warning.startswith("images with more than one record: 1 (") for warning in report.warnings)


@pytest.mark.parametrize("withdrawn", [True, False])
def test_withdrawn_rstpreid_split_is_an_error(
    tmp_path: Path, withdrawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    rstpreid = DATASETS["rstpreid"]
    ids = [tuple(counts.num_ids for counts in rstpreid.withdrawn_counts.values())]
    ids.append(tuple(counts.num_ids for counts in rstpreid.published_counts.values()))
    assert ids == [(3901, 100, 100), (3701, 200, 200)]
    published, old = (
        {
            name: SplitCounts(num_ids, 5 * num_ids, 10 * num_ids)
            for name, num_ids in zip(SPLIT_NAMES, sizes, strict=True)
        }
        for sizes in ((7, 4, 4), (9, 3, 3))
    )
    small = replace(rstpreid, published_counts=published, withdrawn_counts=old)
    monkeypatch.setitem(DATASETS._entries, "rstpreid", small)
    entries, pid = [], 0
    for split, size in (old if withdrawn else published).items():
        for _ in range(size.num_ids):
            entries += [entry(split, pid, f"{pid}_{n}.jpg", f"a {pid} {n}", f"b {pid} {n}") for n in range(5)]
            pid += 1
    report = check_dataset("rstpreid", write_dataset(tmp_path, "rstpreid", entries, images=False), decode=False)
    found = [error for error in report.errors if "withdrawn split of RSTPReid (9 / 3 / 3 identities)" in error]
    assert len(found) == withdrawn and all("published results use 7 / 4 / 4" in error for error in found)
    assert any("where the paper has" in warning for warning in report.warnings) == withdrawn


def test_jsonl_has_no_published_counts(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"image": "a.jpg", "pid": 3, "captions": ["a man"]}')
    report = check_dataset("jsonl", tmp_path)
    assert report.splits[0].published is None and report.warnings == []
    assert "missing images: 1 of 1" in report.errors[0]
