"""A folder of crops, indexed, searched and encoded anew by the commands that a user would type."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shlex
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import done, typed
from PIL import Image

import cskt
from cskt.cli.main import main
from cskt.embed import Encoder
from cskt.gallery.gallery import Gallery
from cskt.gallery.options import SearchOptions
from cskt.gallery.query import Query
from tiny_run import write_backbone

RED = "a woman in a red coat"
SENTENCES = (RED, "a man with a black backpack", "somebody in blue jeans")
TABLE = "image;Camera;track;time\n" + "".join(
    f"cam{number % 3}\\{number:02}.jpg;c{number % 3};{number // 4};2026-01-{number + 1:02}\n" for number in range(12)
)


@pytest.fixture(scope="module")
def source(dolls: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve crops in three folders; tests that change any copy it."""
    folder = tmp_path_factory.mktemp("crops")
    for number, image in enumerate(sorted(dolls.rglob("*.jpg"))[:12]):
        target = folder / f"cam{number % 3}" / f"{number:02}.jpg"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(image, target)
    return folder


@pytest.fixture(scope="module")
def gallery(source: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of those crops with metadata; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("galleries")
    (folder / "table.csv").write_text(TABLE)
    done(f"cskt index {folder}/g --images {source} --model {tiny_backbone} --metadata {folder}/table.csv --device cpu")
    return folder / "g"


@pytest.fixture
def crops(source: Path, tmp_path: Path) -> Path:
    """A copy of the crops, to be changed at will."""
    return Path(shutil.copytree(source, tmp_path / "crops"))


@pytest.fixture
def indexed(crops: Path, tiny_backbone: Path, tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """Indexes those crops with further flags; what the command printed as JSON."""

    def run(flags: str = "") -> dict[str, Any]:
        command = f"cskt index {tmp_path}/g --images {crops} --model {tiny_backbone} --device cpu --json {flags}"
        report: dict[str, Any] = typed(command).json()
        return report

    return run


def answers(command: str) -> list[dict[str, Any]]:
    """Return the JSON that a search printed."""
    found: list[dict[str, Any]] = typed(f"{command} --device cpu --json").json()
    return found


def names(answer: dict[str, Any]) -> list[str]:
    return [hit["image_id"] for hit in answer["hits"]]


# --- index


def test_index_follows_the_folder(indexed: Callable[[str], dict[str, Any]], crops: Path) -> None:
    def counts(report: dict[str, Any]) -> list[int]:
        return [report[key] for key in ("crops", "added", "replaced", "unchanged", "vanished", "removed")]

    first = indexed("")
    assert counts(first) == [12, 12, 0, 0, 0, 0]
    assert first["images_per_second"] == pytest.approx(12 / first["seconds"])
    Image.new("RGB", (20, 50), (200, 0, 0)).save(crops / "cam0" / "00.jpg")
    (crops / "cam1" / "01.jpg").unlink()
    Image.new("RGB", (20, 50), (0, 200, 0)).save(crops / "new.png")
    assert counts(indexed("")) == [13, 1, 1, 10, 1, 0]
    assert counts(indexed("--prune")) == [12, 0, 0, 12, 0, 1]


def test_index_without_images_indexes_the_same_folder_again(
    indexed: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    indexed("")
    out = done(f"cskt index {tmp_path}/g --device cpu")
    assert "12 crops; added 0, replaced 0, updated 0, unchanged 12, vanished 0, removed 0, unreadable 0;" in out


def test_unreadable_images_are_listed_and_not_fatal(
    crops: Path, tiny_backbone: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(12):
        (crops / f"broken{number:02}.jpg").write_bytes(b"\xff\xd8\xff no picture")
    command = f"cskt index {tmp_path}/g --images {crops} --model {tiny_backbone} --device cpu"
    outcome = typed(command)
    assert outcome.code == 0 and "added 12," in outcome.out and "unreadable 12;" in outcome.out
    assert "broken00.jpg" in caplog.text and "broken09.jpg" in caplog.text and "broken10.jpg" not in caplog.text
    assert "and 2 more (--json lists all)" in caplog.text
    listed = typed(f"{command} --json").json()["unreadable"]
    assert [entry["image_id"] for entry in listed] == [f"broken{number:02}.jpg" for number in range(12)]
    assert all(entry["reason"] for entry in listed)


def test_index_reports_skipped_files(
    indexed: Callable[[str], dict[str, Any]], crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cskt.gallery.indexing import scanning

    monkeypatch.setattr(scanning, "SUFFIXES", scanning.SUFFIXES - {".heic", ".avif"})
    for name in ("a.heic", "b.heic", "c.avif", ".hidden.jpg", "notes.txt"):
        (crops / name).write_bytes(b"")
    (crops / "link.jpg").symlink_to(crops / "cam0" / "00.jpg")
    report = indexed("--ignore cam0/ --ignore '*/01.jpg'")
    assert report["passed_over"] == {".heic": 2, ".avif": 1, "hidden": 1, ".txt": 1, "links": 1, "ignored": 2}
    assert (report["added"], report["unreadable_folders"], report["outdated"]) == (7, [], [])
    out = done(f"cskt index {tmp_path}/g --device cpu")
    assert "unchanged 7" in out, "the patterns hold"
    assert (
        "passed over: .heic 2 (to read them: pip install 'cskt[heic]'), ignored 2, .avif 1 (to read them:"
        " pip install -U pillow), .txt 1, hidden 1, links 1\n"
    ) in out
    assert "added 5," in done(f"cskt index {tmp_path}/g --ignore '' --device cpu")
    assert typed(f"cskt index {tmp_path}/g --ignore ../x --device cpu").refusal().startswith("--ignore ../x: ")


def test_an_unreadable_folder_is_a_finding(
    indexed: Callable[[str], dict[str, Any]], crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    indexed("")
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path) == crops / "cam1":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    outcome = typed(f"cskt index {tmp_path}/g --prune --device cpu")
    assert outcome.code == 1 and "unchanged 8, vanished 0, removed 0" in outcome.out
    assert "not checked: 4 crops in folders or files that cannot be read" in outcome.out
    assert "folder cannot be read, its crops stay: cam1: Permission denied" in caplog.text
    outcome = typed(f"cskt index {tmp_path}/g --prune --device cpu --json")
    report = json.loads(outcome.out)
    assert (outcome.code, report["crops"], report["unchecked"]) == (1, 12, 4)
    assert report["unreadable_folders"] == [{"folder": "cam1", "reason": "Permission denied"}]


def test_the_old_version_of_an_unreadable_file_still_answers(
    indexed: Callable[[str], dict[str, Any]], crops: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    indexed("")
    (crops / "cam0" / "00.jpg").write_bytes(b"overwritten")
    assert "crops; added 0" in done(f"cskt index {tmp_path}/g --device cpu")
    assert "unreadable: cam0/00.jpg: " in caplog.text
    assert "; the old version still answers (--prune removes it)" in caplog.text
    assert "removed 1," in done(f"cskt index {tmp_path}/g --device cpu --prune")
    with Gallery.open(tmp_path / "g") as gallery:
        assert gallery.count() == 11


def test_index_repeats_a_list(crops: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    (crops / "names.txt").write_text("cam0/00.jpg\ncam1/01.jpg\n")
    (crops / "table.csv").write_text("image,camera\ncam0/00.jpg,c0\ncam1/01.jpg,c1\n")
    done(f"cskt index {tmp_path}/g --images {crops}/names.txt --model {tiny_backbone} --device cpu")
    out = done(f"cskt index {tmp_path}/g --metadata {crops}/table.csv --device cpu")
    assert "2 crops; added 0, replaced 0, updated 2," in out
    (crops / "names.txt").rename(tmp_path / "names.txt")
    reason = typed(f"cskt index {tmp_path}/g --device cpu").refusal()
    assert reason.startswith(f"{crops}/names.txt: no such list of paths; put it back, or say where it is now: ")
    assert "added 10," in done(f"cskt index {tmp_path}/g --images {crops} --device cpu")


def test_index_repeats_shards_where_there_is_no_folder(crops: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    for number in range(2):
        with tarfile.open(tmp_path / f"s-{number}.tar", "w") as archive:
            archive.add(crops / f"cam{number}", f"./cam{number}")
    done(f"cskt index {tmp_path}/g --images '{tmp_path}/s-*.tar' --model {tiny_backbone} --device cpu")
    with tarfile.open(tmp_path / "s-2.tar", "w") as archive:
        archive.add(crops / "cam2", "cam2")
    assert "added 4, replaced 0, updated 0, unchanged 8," in done(f"cskt index {tmp_path}/g --device cpu")
    assert "--prune is for a folder or a list" in typed(f"cskt index {tmp_path}/g --prune --device cpu").refusal()
    assert "added 0," in done(f"cskt index {tmp_path}/g --device cpu --ignore cam2")
    for path in tmp_path.glob("s-*.tar"):
        path.unlink()
    assert "s-*.tar: no such shard" in typed(f"cskt index {tmp_path}/g --device cpu").refusal()


def test_a_store_may_be_named_again(
    crops: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("milvus_lite")
    monkeypatch.chdir(tmp_path)
    command = f"cskt index g --images {crops} --model {tiny_backbone} --device cpu --store milvus:crops.db"
    assert "added 12," in done(command)
    assert "unchanged 12," in done(command)
    assert "leave --store out" in typed(command.replace("crops.db", "other.db")).refusal()


def test_index_of_a_new_gallery_prints_a_search_command(crops: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    out = done(f"cskt index {tmp_path}/g --images {crops} --model {tiny_backbone} --device cpu")
    command = out.splitlines()[-1].removeprefix("Search it: ")
    assert "0.0" in done(f"{command} --device cpu") or "-0.0" in done(f"{command} --device cpu")


def test_without_a_model_clip_tiny_warns_of_paper_dolls(
    crops: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done(f"cskt index {tmp_path}/g --images {crops} --device cpu")
    assert "paper dolls and not people" in caplog.text and "--model" in caplog.text
    with Gallery.open(tmp_path / "g") as gallery:
        assert gallery.manifest.model.path == "clip-tiny" and gallery.count() == 12
    caplog.clear()
    done(f"cskt index {tmp_path}/g --device cpu")
    assert "paper dolls" not in caplog.text


def test_another_model_than_the_gallery_was_filled_with_is_refused(
    indexed: Callable[[str], dict[str, Any]], crops: Path, tmp_path: Path
) -> None:
    indexed("")
    other = write_backbone(tmp_path / "other.safetensors", seed=1)
    reason = typed(f"cskt index {tmp_path}/g --images {crops} --model {other} --device cpu").refusal()
    assert "cskt reindex" in reason
    assert indexed("")["unchanged"] == 12


def interrupted_in_batch(last: int) -> Callable[[Encoder, Any], Iterator[Any]]:
    """`Encoder.encode_batches`, but for a Ctrl-C in its `last` batch."""
    encode = Encoder.encode_batches

    def interrupted(self: Encoder, batches: Any) -> Iterator[Any]:
        for number, encoded in enumerate(encode(self, batches), start=1):
            if number == last:
                raise KeyboardInterrupt
            yield encoded

    return interrupted


def test_an_interrupted_index_reports_stored_images_and_continues(
    crops: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"cskt index {tmp_path}/g --images {crops} --model {tiny_backbone} --device cpu --batch-size 4"
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode_batches", interrupted_in_batch(3))
        outcome = typed(command)
    assert outcome.code == 130 and outcome.out == ""
    assert outcome.err == ("cskt index: interrupted; 8 images are in the gallery; run the same command to continue\n")
    assert "added 4, replaced 0, updated 0, unchanged 8," in done(command)


def test_a_terminal_shows_images_per_second(
    crops: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    # Rich, which draws the bar, takes a wide console from the environment and asks what kind of terminal it is.
    for name, value in (("COLUMNS", "120"), ("TERM", "xterm"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr("cskt.gallery.indexing.commits.COMMIT_SECONDS", 0.0)
    words = f"index {tmp_path}/g --images {crops} --model {tiny_backbone} --device cpu --batch-size 2 --json"
    assert main(shlex.split(words)) == 0
    assert "12/12" in terminal.getvalue()
    assert re.search(r"[0-9,]+ images/s", terminal.getvalue())


# --- metadata


def test_metadata_is_matched_to_images_and_missing_ones_are_logged(
    indexed: Callable[[str], dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [line for line in TABLE.splitlines() if "02.jpg" not in line]
    (tmp_path / "table.csv").write_text("\ufeff" + "\n".join([*rows, "gone.jpg;c9;1;2026-01-01", ""]), "utf-8")
    assert indexed(f"--metadata {tmp_path}/table.csv")["added"] == 12
    assert "1 of 12 rows name no image in" in caplog.text and "gone.jpg" in caplog.text
    assert "1 of 12 images have no row" in caplog.text
    with Gallery.open(tmp_path / "g") as gallery:
        assert gallery.columns == {"camera": "text", "track": "number", "time": "time"}
        assert gallery.crop("cam1/04.jpg").metadata == {"camera": "c1", "track": 1, "time": "2026-01-05T00:00:00"}
        assert gallery.crop("cam2/02.jpg").metadata == {}


def test_json_lines_with_absolute_paths_under_another_key(
    indexed: Callable[[str], dict[str, Any]], crops: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [{"Crop": str(path), "indoors": path.stem < "06"} for path in sorted(crops.rglob("*.jpg"))]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    indexed(f"--metadata {tmp_path}/table.jsonl --key crop")
    assert caplog.text == ""
    with Gallery.open(tmp_path / "g") as gallery:
        assert gallery.columns == {"indoors": "boolean"}
        assert gallery.count("indoors = true") == 6


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("camera\nc1\n", "no column image or path or file or image_id; it has camera"),
        ("image,camera\n,c1\n", ":2: no path of an image under 'image'"),
        ("image,Track ID,track_id\na.jpg,1,2\n", "'Track ID' and 'track_id' are one name"),
        ("image,score\na.jpg,1\n", "reserved name"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_before_the_work(
    crops: Path, tiny_backbone: Path, tmp_path: Path, table: str, message: str
) -> None:
    (tmp_path / "t.csv").write_text(table)
    command = f"cskt index {tmp_path}/g --images {crops} --model {tiny_backbone} --metadata {tmp_path}/t.csv"
    assert message in typed(command).refusal()
    assert not (tmp_path / "g").exists()


def test_of_several_rows_for_one_image_the_last_counts(
    indexed: Callable[[str], dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "t.csv").write_text("path,camera\ncam0/00.jpg,old\n./cam0/00.jpg,new\n")
    indexed(f"--metadata {tmp_path}/t.csv")
    assert "1 images have several rows" in caplog.text
    with Gallery.open(tmp_path / "g") as gallery:
        assert gallery.crop("cam0/00.jpg").metadata == {"camera": "new"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "--images FOLDER"),
        ("--images {tmp}/nowhere", "nowhere: no such folder"),
        ("--images {crops} --model nothing.pt", "nothing.pt: no such run folder"),
        ("--images {crops} --key image", "--key names a column of a table"),
        ("--images {crops} --metadata {tmp}/none.csv", "none.csv: cannot be read: No such file"),
        ("--images {crops} --batch-size 0", "batch_size 0"),
        ("--images {tmp}/none.txt", "none.txt: no such list of paths"),
        ("--images '{tmp}/none-*.tar'", "none-*.tar: no such shard"),
        ("--images {tmp}/empty.tar --prune", "--prune is for a folder or a list"),
        ("--images {tmp}/empty.tar --metadata {tmp}/t.csv", "--metadata is for a folder or a list"),
        ("--images {crops} --workers 2", "add --engine ray"),
        ("--images {crops} --engine ray --workers 0", "--workers 0: give at least 1"),
        ("--images {crops} --engine ray --address here", "--address here: expected auto, or HOST:PORT"),
        ("--images {crops} --engine ray --address 127.0.0.1:1", "no Ray cluster at 127.0.0.1:1: "),
    ],
)
def test_index_refuses_in_one_line(tmp_path: Path, crops: Path, flags: str, message: str) -> None:
    (tmp_path / "empty.tar").touch()
    command = f"cskt index {tmp_path}/g {flags.format(tmp=tmp_path, crops=crops)} --device cpu"
    assert message in typed(command).refusal()
    assert not (tmp_path / "g").exists()


def test_a_list_and_a_pattern_of_shards_are_indexed(source: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "crops")
    for number in range(3):
        with tarfile.open(tmp_path / f"shard-{number}.tar", "w") as archive:
            archive.add(source / f"cam{number}", f"cam{number}")
    (tmp_path / "crops" / "names.txt").write_text("cam0/00.jpg\ncam1/01.jpg\n")
    for images, expected in ((f"{tmp_path}/crops/names.txt", 2), (f"'{tmp_path}/shard-*.tar'", 12)):
        command = f"cskt index {tmp_path}/of-{expected} --images {images} --model {tiny_backbone} --device cpu --json"
        for added, unchanged in ((expected, 0), (0, expected)):
            report = typed(command).json()
            assert (report["crops"], report["added"], report["unchanged"]) == (expected, added, unchanged)


def test_a_store_is_chosen_once(indexed: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    indexed("")
    reason = typed(f"cskt index {tmp_path}/g --store milvus:other.db --device cpu").refusal()
    assert "the gallery's store is lance" in reason


# --- search


def test_json_table_and_python_agree(gallery: Path) -> None:
    quoted = " ".join(shlex.quote(sentence) for sentence in SENTENCES)
    flags = "-k 4 --where \"camera in ('c0', 'c1') and track > 0\" --offset 1 --min-score -0.9"
    found = answers(f"cskt search {gallery} {quoted} {flags}")
    with Gallery.open(gallery, device="cpu") as opened:
        settings = {"where": "camera in ('c0', 'c1') and track > 0", "offset": 1, "min_score": -0.9}
        expected = opened.search_many([Query(sentence) for sentence in SENTENCES], SearchOptions(4, **settings))
        alone = [opened.search(sentence, 4, **settings) for sentence in SENTENCES]
    assert [answer["query"] for answer in found] == list(SENTENCES)
    for answer, together, one in zip(found, expected, alone, strict=True):
        assert [cskt.types.Hit(**hit) for hit in answer["hits"]] == together
        assert [hit.image_id for hit in one] == names(answer)
        assert [hit.score for hit in one] == pytest.approx([hit["score"] for hit in answer["hits"]], abs=1e-6)
        assert [hit["rank"] for hit in answer["hits"]] == [2, 3, 4, 5]
        assert {hit["metadata"]["camera"] for hit in answer["hits"]} <= {"c0", "c1"}
    table = done(f"cskt search {gallery} {quoted} {flags} --device cpu")
    positions = [table.index(sentence) for sentence in SENTENCES]
    assert positions == sorted(positions)
    for answer in found:
        for hit in answer["hits"]:
            assert re.search(rf"{hit['rank']} │ +{hit['score']:.3f} │ {hit['image_id']} │", table)
    assert "camera ┃ track ┃ time" in table


def test_grouped_answers_name_the_size_of_a_group(gallery: Path) -> None:
    (answer,) = answers(f"cskt search {gallery} '{RED}' --group-by track")
    assert sorted(hit["metadata"]["track"] for hit in answer["hits"]) == [0, 1, 2]
    assert [hit["group_size"] for hit in answer["hits"]] == [4, 4, 4]
    assert "in group" in done(f"cskt search {gallery} '{RED}' --group-by track --device cpu")


def test_pictures_and_words_are_weighed(gallery: Path, source: Path) -> None:
    like = f"cskt search {gallery} --like cam1/04.jpg -k 12"
    (by_name,) = answers(like)
    (by_file,) = answers(f"cskt search {gallery} --image {source}/cam1/04.jpg -k 12")
    assert by_name["query"] is None and names(by_name)[0] == "cam1/04.jpg"
    assert names(by_file) == names(by_name)
    assert by_name["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    with Gallery.open(gallery, device="cpu") as opened:
        query = Query(RED, like="cam1/04.jpg", exclude=("with a hat", "in blue"), text_weight=2, exclude_weight=0.25)
        expected = [hit.image_id for hit in opened.search_many([query], SearchOptions(12))[0]]
    flags = "--text-weight 2 --image-weight 1 --not 'with a hat' --not 'in blue' --not-weight 0.25"
    (both,) = answers(f"{like} '{RED}' {flags}")
    assert names(both) == expected
    assert both["query"] == RED


def test_sentences_from_a_file_and_from_stdin(gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\ufeff" + "\r\n\n".join(SENTENCES[1:])
    (tmp_path / "queries.txt").write_bytes(text.encode())
    found = answers(f"cskt search {gallery} '{RED}' --queries {tmp_path}/queries.txt -k 2")
    assert [answer["query"] for answer in found] == list(SENTENCES)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("ein Mann in größerem Mantel\n".encode())))
    (answer,) = answers(f"cskt search {gallery} --queries - -k 2")
    assert answer["query"] == "ein Mann in größerem Mantel"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--min-score 0.99", "no crop scores at least 0.99"),
        ("--where \"camera = 'c7'\"", "no crop matches --where camera = 'c7'"),
        ("--offset 12", "no further crop"),
    ],
)
def test_a_search_without_hits_gives_the_reason_and_exit_code_0(gallery: Path, flags: str, reason: str) -> None:
    for form, out in (("", ""), ("--json", json.dumps([{"query": RED, "hits": []}]) + "\n")):
        outcome = typed(f"cskt search {gallery} '{RED}' {flags} --device cpu {form}")
        assert outcome == (0, out, f"{RED}: {reason}\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "nothing to look for"),
        ("x --model clip-tiny --where 'a = 1'", "--where is for galleries"),
        ("''", "a sentence is empty"),
        ("x --not ' '", "a sentence is empty"),
        ("x -k 0", "k of at least 1"),
        ("x -k 10001", "at most 10000"),
        ("x -k 10 --offset -1", "offset -1"),
        ("x --text-weight 0", "a weight is 0"),
        ("x --image nowhere.jpg", "--image nowhere.jpg: no such file"),
        ("--like nobody.jpg", "nobody.jpg: no such crop"),
        ("--queries nowhere.txt", "--queries nowhere.txt: No such file"),
        ("x --group-by trak", "did you mean 'track'?"),
        ("x --where 'camra = 1'", "camera"),
        ("x --where \"camera = 'c1'; drop table crops\"", "--where"),
        ("x --sheet out.jpg", "ends in .png"),
        ("x --html out.pdf", "ends in .html"),
        ("x --explain", "--sheet why.png"),
        ("--like cam1/04.jpg --explain --json", "give a sentence as well"),
        ("x --sheet a.png -k 101", "draw at most 100"),
        ("x --min-scor 0.2", "did you mean --min-score?"),
        ("x --where ' '", "it is empty"),
        ("x --split foo", "--split is for a model; leave it out"),
        ("x --batch-size 0 --backbone nope", "--backbone is for a model; leave it out"),
    ],
)
def test_search_refuses_in_one_line(gallery: Path, flags: str, message: str) -> None:
    reason = typed(f"cskt search {gallery} {flags}").refusal()
    if message != "--where":
        assert message in reason


def test_the_old_names_of_options_work_and_warn_once(
    gallery: Path, tiny_backbone: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = "-k 2"
    expected = answers(f"cskt search {gallery} '{RED}' --exclude 'a hat' --exclude-weight 0.3 {flags}")
    with caplog.at_level(logging.WARNING):
        assert answers(f"cskt search {gallery} '{RED}' --not 'a hat' --not-weight 0.3 {flags}") == expected
        done(f"cskt index {gallery} --run {tiny_backbone} --device cpu")
    assert [record.getMessage() for record in caplog.records] == [
        "--not-weight is now --exclude-weight; the old name works until version 1.0",
        "--run is now --model; the old name works until version 1.0",
    ]
    assert "--run" not in done("cskt index --help") and "--not-weight" not in done("cskt search --help")


def test_the_defaults_of_the_help_are_those_of_python() -> None:
    text = " ".join(done("cskt search --help").split())
    assert f"to 10,000 (default: {SearchOptions().k})" in text
    weights = re.findall(r"--(\w+)-weight W of [-\w, ]+ \(default: ([\d.]+)\)", text)
    assert {name: float(weight) for name, weight in weights} == {
        name: getattr(Query("x"), f"{name}_weight") for name in ("text", "image", "exclude")
    }


@pytest.mark.parametrize("sentence", ["x\x00y", "\x1b[2Jclear", "word " * 2001, "x\ud800"], ids=range(4))
def test_control_characters_and_extreme_lengths_are_refused(gallery: Path, tmp_path: Path, sentence: str) -> None:
    (tmp_path / "queries.txt").write_bytes(sentence.encode(errors="surrogatepass"))
    reason = typed(f"cskt search {gallery} --queries {tmp_path}/queries.txt").refusal()
    assert "control characters" in reason or "10,004 characters" in reason or "not UTF-8" in reason
    assert reason.isprintable()


def test_the_longest_sentence_is_searched_for_with_a_warning_of_the_cut(
    gallery: Path, caplog: pytest.LogCaptureFixture
) -> None:
    longest = ("a red man " * 200)[:2000]
    caplog.set_level(logging.WARNING)
    cut = "the model reads 77 tokens of the sentence, which has 602; shorten it"
    found = answers(f"cskt search {gallery} '{longest}' --not '{longest}' -k 1 --exclude-weight 0.1")
    assert found[0]["hits"] and [record.getMessage() for record in caplog.records] == [cut, f"excluded sentence: {cut}"]
    caplog.clear()
    answers(f"cskt search {gallery} '{longest}' 'a man' -k 1")
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 2 captions have more than 77 tokens and are cut to it"
    ]
    for flags in (f"'{longest}x'", f"'a man' --not '{longest}x'"):
        reason = typed(f"cskt search {gallery} {flags}").refusal()
        assert reason == "a sentence of 2,001 characters; give at most 2,000"


def test_a_query_of_ten_megabytes_is_refused(gallery: Path, tmp_path: Path) -> None:
    (tmp_path / "queries.txt").write_text("a man in grey " * 750_000)
    reason = typed(f"cskt search {gallery} --queries {tmp_path}/queries.txt").refusal()
    assert reason == "a sentence of 10,499,999 characters; give at most 2,000"


def test_a_sentence_beyond_the_context_is_cut_with_a_warning(gallery: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        (answer,) = answers(f"cskt search {gallery} '{'a man in grey ' * 100}' -k 1")
    assert len(answer["hits"]) == 1 and "77 tokens" in caplog.text


def test_no_gallery_there_is_refused_with_the_remedy(tmp_path: Path) -> None:
    reason = typed(f"cskt search {tmp_path}/none '{RED}'").refusal()
    assert "cskt index" in reason


def test_indexing_an_empty_folder_does_not_offer_a_search(tmp_path: Path, tiny_backbone: Path) -> None:
    (tmp_path / "none").mkdir()
    out = done(f"cskt index {tmp_path}/gallery --images {tmp_path}/none --model {tiny_backbone} --device cpu")
    assert out.splitlines()[-1] == "The gallery is empty: no image was found that can be read; check --images"
    assert "Search it" not in out


def test_a_search_of_an_empty_gallery_names_the_reason(tmp_path: Path, tiny_backbone: Path) -> None:
    (tmp_path / "crops").mkdir()
    done(f"cskt index {tmp_path}/g --images {tmp_path}/crops --model {tiny_backbone} --device cpu")
    outcome = typed(f"cskt search {tmp_path}/g '{RED}' --device cpu")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err.startswith(f"{RED}: the gallery is empty; fill it: ")
    assert outcome.err.endswith(f"cskt index {tmp_path}/g --images FOLDER\n")


def test_metadata_cannot_drive_the_terminal(indexed: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    record = {"image": "cam0/00.jpg", "note": "\x1b]0;owned\x07\x1b[2J [/b] [red]x"}
    (tmp_path / "t.jsonl").write_text(json.dumps(record) + "\n")
    indexed(f"--metadata {tmp_path}/t.jsonl")
    out = done(f"cskt search {tmp_path}/g '{RED}' -k 12 --device cpu")
    assert "\x1b" not in out and "\x07" not in out and "[/b] [red]x" in out


def test_sheets_and_a_page_show_the_crops(gallery: Path, tmp_path: Path) -> None:
    done(
        f"cskt search {gallery} '{RED}' 'a man' -k 3 --device cpu --sheet {tmp_path}/new/s.png --html {tmp_path}/p.html"
    )
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 6 and RED in page and "camera" in page
    for number in (1, 2):
        with Image.open(tmp_path / "new" / f"s-{number}.png") as sheet:
            assert sheet.width > 3 * 100 and sheet.height > 256
    assert not (tmp_path / "new" / "s.png").exists()


def test_explanations_come_as_pictures_and_as_numbers(gallery: Path, tmp_path: Path) -> None:
    command = f"cskt search {gallery} '{RED}' -k 2"
    (plain,) = answers(command)
    (answer,) = answers(f"{command} --explain --sheet {tmp_path}/why.png --html {tmp_path}/why.html")
    assert names(answer) == names(plain)
    for hit in answer["hits"]:
        explanation = hit["explanation"]
        maps = [explanation["sentence"], *(word["heat"] for word in explanation["words"])]
        assert {(len(rows), len(row)) for rows in maps for row in rows} == {
            (explanation["rows"], explanation["columns"])
        }
        assert all(0 <= value <= 1 for rows in maps for row in rows for value in row)
        assert [word["word"] for word in explanation["words"]] == ["woman", "red", "coat"]
        assert explanation["score"] == pytest.approx(hit["score"], abs=1e-2), "either may be computed in bf16"
    page = (tmp_path / "why.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 2 * (1 + 1 + 3) and "Heat map of coat" in page
    with Image.open(tmp_path / "why.png") as sheet:
        assert sheet.height > 2 * 256 and sheet.width > 5 * 144


@pytest.mark.parametrize("form", ["", "--json"], ids=["table", "json"])
def test_a_closed_pipe_ends_a_command_without_a_message(
    gallery: Path, form: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as left_alone:
        monkeypatch.setattr(sys, "stdout", left_alone)
        try:
            code = main(shlex.split(f"search {gallery} '{RED}' -k 12 --device cpu {form}"))
        except SystemExit as end:  # how rich ends
            code = int(end.code or 0)
    assert code == 1
    assert capfd.readouterr().err == ""


# --- reindex


def test_reindex_changes_the_model_and_keeps_metadata(indexed: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(TABLE)
    indexed(f"--metadata {tmp_path}/table.csv")
    (before,) = answers(f"cskt search {tmp_path}/g '{RED}' -k 12")
    other = write_backbone(tmp_path / "other.safetensors", seed=1)
    report = typed(f"cskt reindex {tmp_path}/g --model {other} --device cpu --json").json()
    assert report["crops"] == 12 and report["added"] == 12
    (after,) = answers(f"cskt search {tmp_path}/g '{RED}' -k 12")
    encoder = cskt.load(other, device="cpu", precision="auto")
    crops = sorted((tmp_path / "crops").rglob("*.jpg"))
    scores = (encoder.encode_image(crops) @ encoder.encode_text([RED])[0]).tolist()
    expected = {
        path.relative_to(tmp_path / "crops").as_posix(): score for path, score in zip(crops, scores, strict=True)
    }
    assert {hit["image_id"]: hit["score"] for hit in after["hits"]} == pytest.approx(expected, abs=1e-5)
    assert {hit["image_id"]: hit["metadata"] for hit in after["hits"]} == {
        hit["image_id"]: hit["metadata"] for hit in before["hits"]
    }
    assert typed(f"cskt reindex {tmp_path}/g --device cpu").refusal().endswith("nothing to do")


def test_an_interrupted_reindex_answers_with_the_old_model_and_continues(
    indexed: Callable[[str], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed("")
    before = answers(f"cskt search {tmp_path}/g '{RED}'")
    other = write_backbone(tmp_path / "other.safetensors", seed=1)
    command = f"cskt reindex {tmp_path}/g --model {other} --device cpu --batch-size 4"
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode_batches", interrupted_in_batch(3))
        outcome = typed(command)
    assert outcome.code == 130 and "the gallery answers as before" in outcome.err
    assert answers(f"cskt search {tmp_path}/g '{RED}'") == before
    assert "added 4," in done(command)
    assert answers(f"cskt search {tmp_path}/g '{RED}'") != before
