"""`cskt gallery info`, `check` and `repair`: a gallery is looked at, checked, and repaired."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from command_line import done, typed

import cskt


def test_a_gallery_is_checked_and_repaired(dolls: Path, tmp_path: Path) -> None:
    folder, crops = tmp_path / "gallery", tmp_path / "crops"
    crops.mkdir()
    for number, picture in enumerate(sorted(dolls.rglob("*.jpg"))[:2]):
        shutil.copyfile(picture, crops / f"{number}.jpg")
    with cskt.Gallery.create(folder, cskt.load("clip-tiny", device="cpu")) as gallery:
        gallery.index(crops, metadata={"0.jpg": {"camera": "c1"}})
        gallery.add([crops / "1.jpg"], ["live/1"])
    said = done(f"cskt gallery info {folder}")
    assert "crops      3, 1 of them uploads\n" in said and "columns    camera (text)\n" in said
    assert typed(f"cskt gallery info {folder} --json").json()["crops"] == 3
    assert done(f"cskt gallery check {folder}") == f"{folder}: 3 crops, 1 uploads; findings: no\n"
    (folder / ".gallery.json.1.2.tmp").write_text("half")
    (crops / "0.jpg").unlink()
    outcome = typed(f"cskt gallery check {folder}")
    assert outcome.code == 1 and "findings: 2\n" in outcome.out and "\n  0.jpg\n" in outcome.out
    facts = json.loads(typed(f"cskt gallery check {folder} --json").out)
    assert [finding["place"] for finding in facts["findings"]] == ["0.jpg", ".gallery.json.1.2.tmp"]
    outcome = typed(f"cskt gallery repair {folder}")
    assert outcome.code == 1 and "to repair: 1\n" in outcome.out
    assert outcome.out.endswith("\nnothing was changed; to delete, give --yes\n")
    assert (folder / ".gallery.json.1.2.tmp").is_file()
    outcome = typed(f"cskt gallery repair {folder} --yes")
    assert outcome.code == 1 and outcome.out.startswith("deleted: 0 rows, 1 files") and "\n  0.jpg\n" in outcome.out
    typed(f"cskt index {folder} --prune")
    assert "findings: no" in done(f"cskt gallery check {folder}")
    assert done(f"cskt gallery repair {folder}").endswith("\nnothing was changed\n")


def test_a_folder_that_is_no_gallery_is_refused(tmp_path: Path) -> None:
    for command in ("info", "check", "repair"):
        assert "no gallery there" in typed(f"cskt gallery {command} {tmp_path}").refusal()
