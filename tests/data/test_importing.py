"""Import of tables and folders into a JSON-lines data set."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_datasets import write_image

from cskt.cli.data_check import import_hint
from cskt.data.importing import Columns, ImportOptions, import_dataset
from cskt.data.records import Split
from cskt.errors import CsktError

PEOPLE = ("anna", "ben", "cem", "dana", "eva", "finn", "gül", "hana", "ivo", "jo")


def write_table(folder: Path, text: str, name: str = "people.csv", images: int = 10) -> Path:
    """A table, beside images `0.jpg`, `1.jpg`, ..."""
    for number in range(images):
        write_image(folder / f"{number}.jpg", number)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def rows_of(folder: Path, separator: str = ",", person: str = "person") -> str:
    lines = [f"image,{person},caption".replace(",", separator)]
    lines += [separator.join((f"{number}.jpg", name, f"A man {number}.")) for number, name in enumerate(PEOPLE)]
    return "\n".join(lines)


def summary(splits: dict[str, Split]) -> dict[str, list[tuple[Any, str, tuple[str, ...]]]]:
    return {
        name: [(record.pid, record.image_path.name, record.captions) for record in split.records]
        for name, split in splits.items()
    }


def refusal(source: Path, columns: Columns | None = None, **options: Any) -> str:
    output = source.parent / "refused"
    before = sorted(source.parent.iterdir())
    with pytest.raises(CsktError) as caught:
        import_dataset(source, output, columns, **options)
    assert sorted(source.parent.iterdir()) == before, "nothing is left"
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_whose_people_are_drawn(tmp_path: Path, separator: str) -> None:
    table = write_table(tmp_path, rows_of(tmp_path, separator))
    splits = import_dataset(table, tmp_path / "data")
    assert {name: split.counts for name, split in splits.items()} == {
        "train": (7, 7, 7), "val": (1, 1, 1), "test": (2, 2, 2),
    }  # fmt: skip
    assert {record.pid for split in splits.values() for record in split.records} == set(PEOPLE)
    copied = tmp_path / "data" / "images" / "anna" / "0.jpg"
    assert copied.read_bytes() == (tmp_path / "0.jpg").read_bytes() and not copied.is_symlink()
    assert summary(import_dataset(table, tmp_path / "again")) == summary(splits)
    other = import_dataset(table, tmp_path / "other", options=ImportOptions(seed=1))
    assert set(other["test"].pids.values()) != set(splits["test"].pids.values())
    fewer = import_dataset(table, tmp_path / "fewer", options=ImportOptions(val_fraction=0, test_fraction=0.1))
    assert fewer.keys() == {"train", "test"}
    assert set(fewer["test"].pids.values()) <= {*splits["val"].pids.values(), *splits["test"].pids.values()}


def test_named_columns_given_splits_links_and_attributes(tmp_path: Path) -> None:
    table = write_table(
        tmp_path,
        "Bild;wer;s1;s2;Teil;camera\nimgs\\0.jpg;7;ein Mann; ;Training;c1\nimgs/1.jpg;7;eine Frau;rot;training;\n"
        "imgs/2.jpg;0;ein Kind;;dev;c2\nimgs/0.jpg;7;ein Mann;noch einer;train;c1\n",
        images=0,
    )
    for number in range(3):
        write_image(tmp_path / "all" / "imgs" / f"{number}.jpg", number)
    columns = Columns("bild", "wer", ("s1", "s2"), "Teil", ("camera",))
    options = ImportOptions(link=True)
    splits = import_dataset(table, tmp_path / "data", columns, images=tmp_path / "all", options=options)
    assert summary(splits) == {
        "train": [(7, "0.jpg", ("ein Mann", "noch einer")), (7, "1.jpg", ("eine Frau", "rot"))],
        "val": [(0, "2.jpg", ("ein Kind",))],
    }
    assert [record.attributes for record in splits["train"].records] == [{"camera": "c1"}, None]
    link = splits["train"].records[0].image_path
    assert link.is_symlink() and link.samefile(tmp_path / "all" / "imgs" / "0.jpg")


def test_numbered_captions_and_identities_with_leading_zeros(tmp_path: Path) -> None:
    table = write_table(tmp_path, "file,pid,caption_1,caption_2,text\n0.jpg,007,a,b,no\n1.jpg,8,c,,no", images=2)
    splits = import_dataset(table, tmp_path / "data", options=ImportOptions(val_fraction=0, test_fraction=0))
    assert summary(splits)["train"] == [("007", "0.jpg", ("a", "b")), ("8", "1.jpg", ("c",))]


def test_names_are_made_safe(tmp_path: Path) -> None:
    people = ("a/b", "..", "a:b", "-x")
    lines = [f"{number}.jpg,{person},A man." for number, person in enumerate(people)]
    table = write_table(tmp_path, "\n".join(["image,person,caption", *lines]), images=4)
    write_image(tmp_path / "x" / "0.JPG", 9)
    table.write_text(table.read_text() + "\nx/0.JPG,a/b,A woman.")
    splits = import_dataset(table, tmp_path / "data", options=ImportOptions(val_fraction=0, test_fraction=0))
    names = [record.image_path.relative_to(tmp_path / "data").as_posix() for record in splits["train"].records]
    assert names == [
        "images/a_b/0.jpg", "images/_./1.jpg", "images/a_b/2.jpg", "images/-x/3.jpg", "images/a_b/0-2.jpg"
    ]  # fmt: skip
    assert [record.pid for record in splits["train"].records] == [*people, "a/b"]


def test_images_without_a_person_or_a_caption(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = write_table(tmp_path, "image,person,caption\n0.jpg,anna,a\n1.jpg,,b\n2.jpg,ben,\n3.jpg,,c", images=4)
    none = ImportOptions(val_fraction=0, test_fraction=0)
    splits = import_dataset(table, tmp_path / "data", options=none)
    pids = [record.pid for record in splits["train"].records]
    assert pids == ["anna", "images/unknown/1.jpg", "images/unknown/3.jpg"]
    assert "1 images without a caption are left out" in caplog.text
    assert not (tmp_path / "data" / "images" / "ben" / "2.jpg").exists()
    alone = import_dataset(table, tmp_path / "alone", Columns(person="none"), options=none)
    assert alone["train"].num_ids == 3


def test_a_folder_per_person(tmp_path: Path) -> None:
    for person in ("anna", "ben", "cem"):
        for name in ("1.jpg", "cam/2.jpg"):
            write_image(tmp_path / "people" / person / name)
        text = f"This is {person}.\n\ncam/2.jpg\t {person} from behind. \n"
        (tmp_path / "people" / person / "captions.txt").write_text(text)
    (tmp_path / "people" / ".cache").mkdir()
    options = ImportOptions(val_fraction=0, test_fraction=0.3)
    splits = import_dataset(tmp_path / "people", tmp_path / "data", options=options)
    assert splits["train"].counts == (2, 4, 6) and splits["test"].counts == (1, 2, 3)
    (person,) = splits["test"].pids.values()
    assert splits["test"].captions == [f"This is {person}.", f"{person} from behind.", f"This is {person}."]

    (tmp_path / "people" / "ben" / "captions.txt").write_text("3.jpg\tBen")
    assert "captions.txt:1: '3.jpg' is no image of" in refusal(tmp_path / "people", options=options)
    (tmp_path / "people" / "ben" / "captions.txt").unlink()
    assert "captions.txt: no such file; write a sentence" in refusal(tmp_path / "people", options=options)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.csv", "image;caption_1;caption_2\n1.jpg;One.;\n;All.;Both.\n"),
        ("captions.tsv", "caption\timage\nOne.\t1.jpg\nAll.\t\nBoth.\t\n"),
        ("captions.json", '[{"image": "1.jpg", "caption": "One."}, {"image": null, "caption": ["All.", "Both."]}]'),
        ("captions.jsonl", '{"image": "1.jpg", "text": "One."}\n{"image": "", "text": ["All.", "Both."]}\n'),
    ],
)
def test_a_folder_per_person_with_a_table_in_each(tmp_path: Path, name: str, content: str) -> None:
    for person in ("Émile Ö", "ben"):
        write_table(tmp_path / "people" / person, content, name, images=2)
    options = ImportOptions(val_fraction=0, test_fraction=0)
    splits = import_dataset(tmp_path / "people", tmp_path / "data", options=options)
    rows = [("0.jpg", ("All.", "Both.")), ("1.jpg", ("One.", "All.", "Both."))]
    assert summary(splits)["train"] == [(person, *row) for person in ("ben", "Émile Ö") for row in rows]


def test_json_of_images_or_of_sentences(tmp_path: Path) -> None:
    options = ImportOptions(val_fraction=0, test_fraction=0)
    for person in ("anna", "ben"):
        write_table(tmp_path / "people" / person, '["A sentence."]', "captions.json", images=1)
    splits = import_dataset(tmp_path / "people", tmp_path / "data", options=options)
    assert summary(splits)["train"] == [(person, "0.jpg", ("A sentence.",)) for person in ("anna", "ben")]
    content = {"anna/0.jpg": "One.", "ben/0.jpg": ["Two.", "Three."]}
    (tmp_path / "people" / "captions.json").write_text(json.dumps(content))
    splits = import_dataset(tmp_path / "people", tmp_path / "named", options=options)
    assert [record.captions for record in splits["train"].records] == [("One.",), ("Two.", "Three.")]
    for text, message in (("{}", "has no row"), ("[3]", "entry 1: neither an object nor a sentence"), ("[", "JSON")):
        (tmp_path / "people" / "captions.json").write_text(text)
        assert message in refusal(tmp_path / "people")


def test_a_person_in_two_splits_is_refused(tmp_path: Path) -> None:
    lines = ["image,person,caption,split"]
    lines += [f"{number}.jpg,p{number % 5},A man.,{'train' if number < 5 else 'test'}" for number in range(10)]
    table = write_table(tmp_path, "\n".join(lines))
    message = (
        "people.csv:2: the person p0 is in train and test, as are 4 others; put each person into one split, or draw"
    )
    assert message in refusal(table)
    assert "names its splits itself; leave out --val and --test" in refusal(
        table, options=ImportOptions(val_fraction=0)
    )
    splits = import_dataset(table, tmp_path / "data", Columns(split="none"), options=ImportOptions(val_fraction=0))
    assert {name: split.num_ids for name, split in splits.items()} == {"train": 4, "test": 1}
    for number in range(4):
        write_table(tmp_path / "people" / ("train" if number else "test") / f"p{number}", "A man.", "captions.txt", 1)
    splits = import_dataset(tmp_path / "people", tmp_path / "drawn", Columns(split="none"))
    assert {name: split.num_ids for name, split in splits.items()} == {"train": 2, "val": 1, "test": 1}


def test_unicode_text_of_a_spreadsheet(tmp_path: Path) -> None:
    text = "Datei\tPerson\tCaption\nö.jpg\tÉmile\tA man.\n1.jpg\tZoë\tA woman.\n"
    (tmp_path / "t.txt").write_bytes(text.encode("utf-16"))
    write_table(tmp_path, "", images=2)
    (tmp_path / "0.jpg").rename(tmp_path / "ö.jpg")
    options = ImportOptions(val_fraction=0, test_fraction=0)
    splits = import_dataset(tmp_path / "t.txt", tmp_path / "data", Columns(image="datei"), options=options)
    assert splits["train"].records[0].pid == "Émile"
    (tmp_path / "t.txt").write_bytes(text.encode("latin-1"))
    assert "save the table as UTF-8 (in a spreadsheet: CSV UTF-8)" in refusal(tmp_path / "t.txt")


def test_a_folder_per_split_and_person(tmp_path: Path) -> None:
    for place in ("train/anna", "test/ben"):
        write_image(tmp_path / "people" / place / "1.jpg")
        (tmp_path / "people" / place / "captions.txt").write_text(place)
    splits = import_dataset(tmp_path / "people", tmp_path / "data")
    assert summary(splits) == {
        "train": [("anna", "1.jpg", ("train/anna",))], "test": [("ben", "1.jpg", ("test/ben",))]
    }  # fmt: skip


def test_a_folder_with_one_table_of_captions(tmp_path: Path) -> None:
    root = tmp_path / "people"
    for person in ("anna", "ben"):
        write_image(root / person / "1.jpg")
    (root / "captions.csv").write_text("image,caption\nanna/1.jpg,A woman.\nben/1.jpg,A man.\n")
    splits = import_dataset(root, tmp_path / "data", options=ImportOptions(val_fraction=0, test_fraction=0))
    assert summary(splits)["train"] == [("anna", "1.jpg", ("A woman.",)), ("ben", "1.jpg", ("A man.",))]


def image_bytes(number: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 32), (number, 90, 120)).save(file, kind)
    return file.getvalue()


def arrow_table(numbers: list[int], **changes: Any) -> pa.Table:
    """Return a table as `datasets` stores the features Image, ClassLabel and List."""
    columns = {
        "image": [{"bytes": image_bytes(number), "path": f"x/{number}.png"} for number in numbers],
        "label": [number % 3 for number in numbers],
        "captions": [[f"caption {number}", " "] for number in numbers],
    }
    features = {"image": {"_type": "Image"}, "label": {"names": ["anna", "ben", "cem"], "_type": "ClassLabel"}}
    table = pa.table({**columns, **changes})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def save_to_disk(folder: Path, table: pa.Table) -> Path:
    folder.mkdir(parents=True)
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table, max_chunksize=2)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "0", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def test_a_dataset_dict_of_hugging_face(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "saved" / "train", arrow_table([0, 1, 3]))
    save_to_disk(tmp_path / "saved" / "validation", arrow_table([2]))
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    splits = import_dataset(tmp_path / "saved", tmp_path / "data")
    assert summary(splits) == {
        "train": [
            ("anna", "0.png", ("caption 0",)),
            ("ben", "1.png", ("caption 1",)),
            ("anna", "3.png", ("caption 3",)),
        ],
        "val": [("cem", "2.png", ("caption 2",))],
    }
    assert splits["val"].records[0].image_path.read_bytes() == image_bytes(2)


def test_parquet_with_images_or_paths(tmp_path: Path) -> None:
    none = ImportOptions(val_fraction=0, test_fraction=0)
    pq.write_table(arrow_table([0, 1, 1]), tmp_path / "images.parquet")
    splits = import_dataset(tmp_path / "images.parquet", tmp_path / "data", options=none)
    assert splits["train"].counts == (2, 2, 2), "the same content is the same image"
    table = pa.table({"path": ["0.jpg", "1.jpg"], "pid": [7.0, None], "text": ["a", "b"]})
    write_table(tmp_path, "", images=2)
    pq.write_table(table, tmp_path / "paths.parquet")
    splits = import_dataset(tmp_path / "paths.parquet", tmp_path / "paths", options=none)
    assert [record.pid for record in splits["train"].records] == [7, "images/unknown/1.jpg"]


def write_shards(folder: Path, tables: dict[str, pa.Table]) -> Path:
    for name, table in tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / name)
    return folder


@pytest.mark.parametrize("pattern", ["data/{}-00000-of-0000{}.parquet", "default/{}/0000{}.parquet", "{}{}.parquet"])
def test_a_snapshot_of_the_hub(tmp_path: Path, pattern: str) -> None:
    names = [pattern.format("train", 2), pattern.format("train", 2).replace("00000-of", "00001-of")]
    if len(set(names)) == 1:
        names[1] = pattern.format("train", 3)
    hidden = arrow_table([4], label=[-1], captions=["caption 4"])
    tables = {names[0]: arrow_table([0, 1]), names[1]: arrow_table([3]), pattern.format("test", 1): hidden}
    folder = write_shards(tmp_path / "snapshot", tables)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.parquet").write_bytes(b"")
    splits = import_dataset(folder, tmp_path / "data")
    assert summary(splits) == {
        "train": [
            ("anna", "0.png", ("caption 0",)),
            ("ben", "1.png", ("caption 1",)),
            ("anna", "3.png", ("caption 3",)),
        ],
        "test": [("images/unknown/4.png", "4.png", ("caption 4",))],
    }


def test_incomplete_or_ambiguous_snapshots_are_refused(tmp_path: Path) -> None:
    one = arrow_table([0, 1])
    folder = write_shards(tmp_path / "a", {"data/train-00000-of-00003.parquet": one})
    assert "shard 2 of 3 of train-00000-of-00003.parquet is missing; download the whole" in refusal(folder)
    folder = write_shards(tmp_path / "b", {"en/train/0.parquet": one, "de/train/0.parquet": one})
    assert "holds several data sets; import one of these folders: " in refusal(folder) and "b/de" in refusal(folder)
    folder = write_shards(tmp_path / "c", {"train.parquet": one, "more.parquet": one})
    assert "more.parquet: its name states no split as others do; name it train" in refusal(folder)
    folder = write_shards(tmp_path / "d", {"train-0.parquet": one, "train-1.parquet": one.drop_columns(["label"])})
    assert "train-1.parquet: has other columns than " in refusal(folder)
    folder = write_shards(tmp_path / "e", {"train.parquet": one})
    (folder / "train.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "train.parquet: a pointer of Git LFS instead of the file; fetch it: git lfs pull" in refusal(folder)
    outside = pa.table({"image": ["../secret.png"], "pid": ["a"], "caption": ["b"]})
    folder = write_shards(tmp_path / "f", {"train.parquet": outside})
    assert "row 1: the image '../secret.png' is outside" in refusal(folder)


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        (
            "image,who,caption\n0.jpg,a,b",
            Columns(),
            "no column 'pid' or .*it has image, who, caption: name what you mean with --person COLUMN; or --person f",
        ),
        ("image,person\n0.jpg,a", Columns(), "no column 'caption' or .*: name what you mean with --caption COLUMN$"),
        ("a,b\n0.jpg,c", Columns(), "no column .*, no column .*--image COLUMN --person COLUMN --caption COLUMN;"),
        ("image,person,caption\n0.jpg,a,b", Columns(split="part"), "no column 'part' \\(--split\\); it has"),
        ("image,person,caption\n0.jpg,a,b\n1.jpg,a,b", Columns(person="folder"), "'0.jpg' is in no folder that names"),
        ("image,person,caption\n../0.jpg,a,b", Columns(), "people.csv:2: the image '../0.jpg' is outside"),
        ("image,person,caption\n/etc/passwd,a,b", Columns(), "the image '/etc/passwd' is outside"),
        ("image,person,caption\n,a,b", Columns(), "people.csv:2: no image; name a file"),
        ("image,person,caption\n8.jpg,a,b\n9.jpg,a,b", Columns(), "people.csv:2: .*8.jpg: no such image and 1 more"),
        ("image,person,caption\npeople.csv,a,b", Columns(), "'people.csv' is no image; known are .avif, .bmp"),
        (
            "image,person,caption\n0.jpg,a,b\n0.jpg,c,d",
            Columns(),
            "csv:3: the person of 0.jpg is c here and a at .*csv:2",
        ),
        ("image,person,caption\n0.jpg,a,b\n1.jpg,c,d", Columns(), "2 people are too few for 1 in val, 1 in test and 2"),
        ("image,person,caption\n0.jpg,a,\n", Columns(), "no image has a caption"),
        ("image,person,caption,split\n0.jpg,a,b,other", Columns(), "csv:2: the split is 'other'; use train, val or"),
        ("image,person,caption,split\n0.jpg,a,b,", Columns(), "csv:2: no split under 'split'"),
        (f"image,person,caption\n0.jpg,{'a' * 201},b", Columns(), "the person is 'aaa"),
        ('{"image": "0.jpg", "pid": true, "caption": "a"}', Columns(), "the person is 'True'"),
        ('{"image": "0.jpg", "pid": 1, "caption": {}}', Columns(), "the caption is '{}'; expected a sentence"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, text: str, columns: Columns, message: str) -> None:
    with pytest.raises(CsktError, match=message):
        raise CsktError(refusal(write_table(tmp_path, text, images=2), columns))


def test_a_text_file_named_jpg_is_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path, "image,person,caption\n0.jpg,a,b", images=1)
    (tmp_path / "0.jpg").write_text("not an image")
    assert "people.csv:2: " in refusal(table) and "0.jpg: not an image of a known format" in refusal(table)


def test_bad_sources_and_outputs_are_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path, rows_of(tmp_path))
    assert "no such file or folder; name a table" in refusal(tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    assert "no folder per person with captions.txt or captions.csv" in refusal(tmp_path / "empty")
    write_table(tmp_path / "empty", "", images=1)
    assert f"to import a table, name it: {tmp_path}/empty/people.csv" in refusal(tmp_path / "empty")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "people.parquet").touch()
    assert import_hint(tmp_path / "one").endswith("people.parquet NEW_FOLDER"), "what `data check` says"
    with pytest.raises(CsktError, match="empty: already exists; name a new folder"):
        import_dataset(table, tmp_path / "empty")
    with pytest.raises(CsktError, match="val_fraction is 1.5; give a fraction"):
        ImportOptions(val_fraction=1.5)


def test_damaged_arrow_files_are_refused(tmp_path: Path) -> None:
    folder = save_to_disk(tmp_path / "saved", arrow_table([0, 1, 2]))
    file = folder / "data-00000-of-00001.arrow"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert "arrow: cannot be read: " in refusal(folder)
    file.write_bytes(b"")
    assert "arrow: " in refusal(folder)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../../x"}]}')
    assert "leads outside" in refusal(folder)
    (folder / "state.json").write_text("{}")
    assert "'_data_files' must list the files" in refusal(folder)
    (folder / "dataset_dict.json").write_text('{"splits": [1]}')
    assert "'splits' must be a list of names" in refusal(folder)
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    assert "x.parquet: cannot be read: " in refusal(tmp_path / "x.parquet")
    table = arrow_table([0], image=[{"bytes": b"no image", "path": None}])
    pq.write_table(table, tmp_path / "y.parquet")
    assert "y.parquet: row 1: not an image of a known format" in refusal(tmp_path / "y.parquet")


def test_parquet_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refusal(tmp_path / "x.parquet") == "pyarrow not installed; type: pip install 'cskt[parquet]'"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_a_file_system_error(tmp_path: Path) -> None:
    table = write_table(tmp_path, rows_of(tmp_path))
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(CsktError, match="Permission denied"):
        import_dataset(table, tmp_path / "locked" / "data")
