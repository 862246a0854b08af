import errno
import json
import logging
from pathlib import Path

import pytest
from small_datasets import LAYOUTS, entry, write_dataset

from cskt.config import DataConfig
from cskt.data.datasets import DATASETS, DatasetFormat, folders, read_dataset, register
from cskt.data.records import Record, Split, SplitCounts, find_split, select_splits
from cskt.errors import CsktError, FileSystemError

THREE_SPLITS = [
    entry("train", 1, "cam_a/1.jpg", "A man.", "He walks."),
    entry("test", 9, "cam_b/9.jpg", "A woman."),
    entry("train", 4, "cam_a/4.jpg", *[f"caption {n}" for n in range(10)]),
    entry("val", 7, "cam_a/7.jpg", "A child."),
    entry("train", 1, "cam_b/1.jpg", "The same man."),
]


@pytest.mark.parametrize("name", LAYOUTS)
def test_reads_the_published_layouts(tmp_path: Path, name: str) -> None:
    root = write_dataset(tmp_path, name, THREE_SPLITS, images=False)
    dataset = read_dataset(name, root)
    assert list(dataset) == ["train", "val", "test"]
    train = dataset["train"]
    images = root / LAYOUTS[name][0] / "imgs"
    assert train.dataset == name and train.name == "train"
    assert train.image_paths == [images / "cam_a/1.jpg", images / "cam_a/4.jpg", images / "cam_b/1.jpg"]
    assert train.image_pids == [1, 4, 1]
    assert train.captions == ["A man.", "He walks.", *[f"caption {n}" for n in range(10)], "The same man."]
    assert train.caption_image_ids == [0, 0, *[1] * 10, 2]
    assert train.caption_pids == [1, 1, *[4] * 10, 1]
    assert train.counts == SplitCounts(num_ids=2, num_images=3, num_captions=13)
    assert read_dataset(name, root / LAYOUTS[name][0]) == dataset, "the data set's own folder is a root too"


@pytest.mark.parametrize("name", ["CUHK-PEDES", "cuhk_pedes", " Cuhk-Pedes "])
def test_names_ignore_case_and_underscore(tmp_path: Path, name: str) -> None:
    assert len(read_dataset(name, write_dataset(tmp_path, "cuhk-pedes", THREE_SPLITS, images=False))) == 3


def test_an_unknown_name_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown data set 'cuhk-peds': did you mean 'cuhk-pedes'"):
        read_dataset("CUHK-PEDS", tmp_path)


def test_both_icfg_file_names(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, "icfg-pedes", THREE_SPLITS, images=False)
    with_hyphen = read_dataset("icfg-pedes", root)
    (root / "ICFG-PEDES" / "ICFG-PEDES.json").rename(root / "ICFG-PEDES" / "ICFG_PEDES.json")
    assert read_dataset("icfg-pedes", root) == with_hyphen


def test_peculiarities_of_real_files(tmp_path: Path) -> None:
    long_caption = "word " * 145
    root = write_dataset(
        tmp_path,
        "cuhk-pedes",
        [
            entry("train", 3, "Market\\0003_c1.png", "A man，in black．He runs.", processed_tokens=[["a", "man"]]),
            entry("train", 900, "b.jpg", long_caption, "the same", attributes={"camera": "c3"}),
            entry("train", 5, "c.jpg", "the same", "👜 bag", attributes="not a mapping"),
        ],
        images=False,
    )
    path = root / "CUHK-PEDES" / "reid_raw.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    train = read_dataset("cuhk-pedes", root)["train"]
    assert train.image_paths[0] == root / "CUHK-PEDES" / "imgs" / "Market" / "0003_c1.png"
    assert train.captions == ["A man，in black．He runs.", long_caption, "the same", "the same", "👜 bag"]
    assert [record.attributes for record in train.records] == [None, {"camera": "c3"}, None]
    assert len({hash(record) for record in train.records}) == 3


GOOD = {"split": "train", "id": 1, "file_path": "a.jpg", "captions": ["a man"]}


def without(key: str) -> dict[str, object]:
    return {name: value for name, value in GOOD.items() if name != key}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (without("id"), "record 1 has no 'id'; expected a whole number from 0"),
        (without("captions"), "record 1 has no 'captions'; expected a non-empty list of strings"),
        (without("file_path"), "record 1 has no 'file_path'; expected the path of an image"),
        (without("split"), "record 1 has no 'split'; expected one of train, val, test"),
        ({**GOOD, "split": "Train"}, "record 1 has 'split' 'Train'; expected one of"),
        ({**GOOD, "split": []}, r"record 1 has 'split' \[\]; expected one of"),
        ({**GOOD, "id": True}, "'id' True"),
        ({**GOOD, "id": float("nan")}, "'id' nan"),
        ({**GOOD, "id": 1.0}, "'id' 1.0"),
        ({**GOOD, "id": "7"}, "'id' '7'"),
        ({**GOOD, "id": -1}, "'id' -1"),
        ({**GOOD, "id": 2**63}, "'id' 9223372036854775808"),
        ({**GOOD, "captions": []}, r"'captions' \[\]"),
        ({**GOOD, "captions": "a man"}, "'captions' 'a man'"),
        ({**GOOD, "captions": ["a", 3]}, r"'captions' \['a', 3\]"),
        ({**GOOD, "captions": ["x" * 500, None]}, r"'captions' \['x+\.\.\.; expected"),
        ({**GOOD, "file_path": " "}, "'file_path' ' '"),
        ({**GOOD, "file_path": 3}, "'file_path' 3"),
        ({**GOOD, "file_path": "../../etc/passwd"}, "expected a path inside .*imgs"),
        ({**GOOD, "file_path": "a\\..\\..\\b.jpg"}, "expected a path inside"),
        ({**GOOD, "file_path": "/etc/passwd"}, "expected a path inside"),
        ({**GOOD, "file_path": "C:\\data\\a.jpg"}, "expected a path inside"),
        ({**GOOD, "file_path": "\\\\server\\share\\a.jpg"}, "expected a path inside"),
        ({**GOOD, "file_path": "a\0.jpg"}, "expected a path inside"),
        (["a"], "record 1 is a list; expected an object"),
        (None, "record 1 is null; expected an object"),
        (7, "record 1 is a number; expected an object"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, bad: object, message: str) -> None:
    path = tmp_path / "reid_raw.json"
    path.write_text(json.dumps([GOOD, bad]))
    with pytest.raises(ValueError, match=message) as caught:
        read_dataset("cuhk-pedes", tmp_path)
    assert str(caught.value).startswith(f"{path}: record 1") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n{"id": 1,\n]', "not JSON: .* at line 3, column 1; is the file complete"),
        ("", "not JSON: .* at column 1; is the file complete"),
        ('{"id": 1}', "expected a list of records at the top level, found an object"),
        ('"text"', "found a string"),
        ("[]", "holds no records; data.root must hold CUHK-PEDES; request the data at https://github.com/Shuang"),
        ("[" * 100_000, "not JSON that can be read: nested too deep"),
        ("[" + "9" * 5000 + "]", "not JSON that can be read"),
        (b"[\xff\xfe]", "not UTF-8 at byte 1; save the file as UTF-8"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "reid_raw.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        read_dataset("cuhk-pedes", tmp_path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", LAYOUTS)
def test_missing_data_names_the_place_to_request_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(CsktError, match=r"no such folder.*request the data at https://github\.com/"):
        read_dataset(name, tmp_path / "nowhere")
    with pytest.raises(CsktError, match=f"{LAYOUTS[name][1]}: no such file; {DATASETS[name].remedy}"):
        read_dataset(name, tmp_path)


def test_another_data_set_in_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(CsktError, match=r": does not hold cuhk-pedes, but jsonl; did you mean --dataset jsonl\?$"):
        read_dataset("cuhk-pedes", tmp_path)
    (tmp_path / "ICFG-PEDES").mkdir()
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(CsktError, match=r": does not hold jsonl, but icfg-pedes; did you mean --dataset icfg-pedes\?$"):
        read_dataset("jsonl", tmp_path)


def test_data_that_was_moved_is_asked_for_by_its_folder(tmp_path: Path) -> None:
    with pytest.raises(CsktError, match=r"nowhere: no such folder; say where the data is: --root DIR \(data\.root\)$"):
        read_dataset("jsonl", tmp_path / "nowhere")


def test_registered_data_sets() -> None:
    assert DATASETS.keys() == {"cuhk-pedes", "icfg-pedes", "rstpreid", "jsonl"}
    assert folders() == {name: folder for name, (folder, *_) in LAYOUTS.items()}
    assert all(bool(dataset.published_counts) == (name in folders()) for name, dataset in DATASETS.items())
    assert "val" not in DATASETS["icfg-pedes"].published_counts


def test_a_registered_format_is_read_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OneRecord(DatasetFormat):
        def read(self, folder: Path) -> list[Record]:
            return [Record(1, folder / "a.jpg", ("a man",), "test")]

    monkeypatch.delitem(DATASETS._entries, "jsonl")
    register(OneRecord("jsonl", remedy=""))
    (record,) = read_dataset("JSONL", tmp_path)["test"].records
    assert record.image_path == tmp_path / "a.jpg"


def test_a_file_without_read_permission_is_a_file_system_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path, **_: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "train.jsonl").write_text("")
    monkeypatch.setattr(Path, "read_text", deny)
    with pytest.raises(FileSystemError, match="train.jsonl: Permission denied; choose a place"):
        read_dataset("jsonl", tmp_path)


def jsonl(*lines: object) -> str:
    return "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)


LINE = {"image": "a/b.jpg", "pid": 7, "captions": ["a man"]}


def test_jsonl(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(
        jsonl(LINE, "", {**LINE, "image": "a\\c.jpg", "captions": ["x\u2028y", "z"]}), encoding="utf-8-sig"
    )
    (tmp_path / "test.jsonl").write_text(jsonl({**LINE, "pid": 0, "attributes": {"age": 3}}) + "\r\n")
    dataset = read_dataset("jsonl", tmp_path)
    assert dataset["train"].records == (
        Record(7, tmp_path / "a" / "b.jpg", ("a man",), "train"),
        Record(7, tmp_path / "a" / "c.jpg", ("x\u2028y", "z"), "train"),
    )
    assert list(dataset) == ["train", "test"]
    assert dataset["test"].records[0].attributes == {"age": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (jsonl(LINE, LINE, '{"image"'), r"train.jsonl:3: not JSON: .* at column \d+"),
        (jsonl("", {**LINE, "pid": True}), r"train.jsonl:2 has 'pid' True"),
        (jsonl({**LINE, "pid": " "}), r"'pid' ' '; expected a whole number from 0, or a string of 1 to 200 characters"),
        (jsonl({**LINE, "pid": "a" * 201}), "'pid' 'a+...; expected a whole number"),
        (jsonl({**LINE, "pid": "\ud800"}), r"'pid' '.ud800'; expected"),
        (jsonl(LINE, {**LINE, "pid": "7"}), r"the identity 7 is also written as '7'; write one person in one way"),
        (jsonl({**LINE, "pid": 0}, {**LINE, "pid": "0"}), r"the identity 0 is also written as '0'"),
        (jsonl([LINE]), "train.jsonl:1 is a list"),
        ('{"image": "a.jpg", "pid": 1, "pid": 2, "captions": ["a man"]}', "train.jsonl:1: .* 'pid' is there twice"),
        (jsonl({**LINE, "image": "../b.jpg"}), "train.jsonl:1 .* expected a path inside"),
        ("\n  \n", "train.jsonl: empty; delete the file or add a record per line"),
    ],
)
def test_bad_jsonl_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_dataset("jsonl", tmp_path)


def write_lines(folder: Path, **splits: list[str | int | None]) -> Path:
    """A JSON-lines data set with one image for each of the identities of a split."""
    for split, pids in splits.items():
        lines = [
            {"image": f"{split}/{number}.jpg", "captions": ["a", "b"], **({} if pid is None else {"pid": pid})}
            for number, pid in enumerate(pids)
        ]
        (folder / f"{split}.jsonl").write_text(jsonl(*lines))
    return folder


def test_identities_may_be_strings(tmp_path: Path) -> None:
    dataset = read_dataset("jsonl", write_lines(tmp_path, train=["ben", "0007", "ben"], test=["anna"]))
    train, test = dataset["train"], dataset["test"]
    assert [record.pid for record in train.records] == ["ben", "0007", "ben"]
    assert (train.image_pids, train.caption_pids) == ([2, 0, 2], [2, 2, 0, 0, 2, 2])
    assert (test.image_pids, train.num_ids) == ([1], 2), "numbered over all splits of the data set"
    assert train.pids == {2: "ben", 0: "0007"}
    assert train.sha256 != read_dataset("jsonl", write_lines(tmp_path, train=["a", "b", "a"]))["train"].sha256
    train, val = select_splits(read_dataset("jsonl", write_lines(tmp_path, train=list("abcde"))), DataConfig())
    assert (train.num_ids, val.num_ids) == (4, 1)
    assert not set(train.image_pids) & set(val.image_pids)


def test_an_image_without_identity_is_a_person_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    dataset = read_dataset("jsonl", write_lines(tmp_path, train=[None, None, 7], test=[8]))
    assert [record.pid for record in dataset["train"].records] == ["train/0.jpg", "train/1.jpg", 7]
    assert dataset["train"].num_ids == 3
    assert dataset["train"].image_pids + dataset["test"].image_pids == [2, 3, 0, 1]
    assert "train.jsonl: 2 images without a pid count as a person each" in caplog.text


def test_jsonl_without_files_shows_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'none of train\.jsonl.*found; write lines \{"image"'):
        read_dataset("jsonl", tmp_path)


def make_split(name: str, pids: list[int]) -> Split:
    return Split(
        "icfg-pedes", name, tuple(Record(pid, Path(f"{pid}-{n}.jpg"), ("a",), name) for n, pid in enumerate(pids))
    )


def test_find_split_lists_the_splits_of_the_data_set() -> None:
    dataset = {"train": make_split("train", [1]), "test": make_split("test", [2])}
    assert find_split(dataset, "test") is dataset["test"]
    with pytest.raises(ValueError, match="the data set has no split 'val'; it has train, test"):
        find_split(dataset, "val")


def test_selection_uses_val_and_test_only_when_asked() -> None:
    dataset = {name: make_split(name, pids) for name, pids in (("train", [1, 2]), ("val", [3]), ("test", [4]))}
    assert select_splits(dataset, DataConfig()) == (dataset["train"], dataset["val"])
    assert select_splits(dataset, DataConfig(select_on="test")) == (dataset["train"], dataset["test"])


def test_without_val_identities_are_held_out() -> None:
    pids = [pid for pid in range(0, 200, 2) for _ in range(1 + pid % 3)]
    dataset = {"train": make_split("train", pids), "test": make_split("test", [1000])}
    train, val = select_splits(dataset, DataConfig(holdout_fraction=0.1))
    assert (train.num_ids, val.num_ids, val.name) == (90, 10, "val")
    assert not set(train.image_pids) & set(val.image_pids)
    assert sorted(train.image_paths + val.image_paths) == sorted(dataset["train"].image_paths)
    assert select_splits(dataset, DataConfig(holdout_fraction=0.1)) == (train, val)
    _, other = select_splits(dataset, DataConfig(holdout_fraction=0.1, holdout_seed=1))
    assert set(other.image_pids) != set(val.image_pids)
    _, larger = select_splits(dataset, DataConfig(holdout_fraction=0.3))
    assert set(val.image_pids) < set(larger.image_pids), "nested"


def test_train_fraction_keeps_identities_whole() -> None:
    train = make_split("train", [pid for pid in range(100) for _ in range(3)])
    dataset = {"train": train, "val": make_split("val", [500])}
    small, _ = select_splits(dataset, DataConfig(train_fraction=0.1))
    half, val = select_splits(dataset, DataConfig(train_fraction=0.5))
    assert small.counts == SplitCounts(10, 30, 30)
    assert set(small.image_pids) < set(half.image_pids)
    assert val == dataset["val"]
    one, _ = select_splits(dataset, DataConfig(train_fraction=1e-6))
    assert one.num_ids == 1


def test_selection_without_the_needed_split_is_an_error() -> None:
    with pytest.raises(ValueError, match="no split 'train'"):
        select_splits({"test": make_split("test", [1])}, DataConfig())
    with pytest.raises(ValueError, match="only 1 training identity to hold out from; add a val split"):
        select_splits({"train": make_split("train", [1, 1])}, DataConfig())
    with pytest.raises(ValueError, match="no split 'test'"):
        select_splits({"train": make_split("train", [1])}, DataConfig(select_on="test"))
