"""`cskt gallery export` and `import`: a backup, restored at another place."""

from __future__ import annotations

import shutil
from pathlib import Path

from command_line import done, typed

import cskt


def test_a_backup_is_restored(dolls: Path, tmp_path: Path) -> None:
    (tmp_path / "crops").mkdir()
    for number, picture in enumerate(sorted(dolls.rglob("*.jpg"))[:3]):
        shutil.copyfile(picture, tmp_path / "crops" / f"{number}.jpg")
    with cskt.Gallery.create(tmp_path / "gallery", cskt.load("clip-tiny", device="cpu")) as gallery:
        gallery.index(tmp_path / "crops")
    archive, restored = tmp_path / "backup.tar", tmp_path / "elsewhere" / "restored"
    said = done(f"cskt gallery export {tmp_path / 'gallery'} {archive}")
    assert said.startswith(f"{archive}: 3 crops, ") and f"gallery import {archive} NEW_FOLDER" in said
    assert "exists already" in typed(f"cskt gallery export {tmp_path / 'gallery'} {archive}").refusal()
    shutil.rmtree(tmp_path / "gallery")
    assert done(f"cskt gallery import {archive} {restored}") == f"{restored}: 3 crops\n"
    assert typed(f"cskt search {restored} 'a man' -k 3 --device cpu").code == 0
    assert "exists already; name a new folder" in typed(f"cskt gallery import {archive} {restored}").refusal()
    shutil.rmtree(tmp_path / "crops")
    said = done(f"cskt gallery import {archive} {tmp_path / 'again'}")
    assert f"the indexed folder is not at {tmp_path / 'crops'}" in said
