"""The files of docs/extending.md, from outside the package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import done, typed

import cskt
from cskt import plugins
from cskt.config import read_yaml
from cskt.data.datasets import read_dataset
from cskt.training.events import read_events
from documentation_files import FILES

QUICK = "--num-epochs 1 --batch-size 8 --num-workers 0 --device cpu --evaluate-before false"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files of the page; what they register is forgotten afterwards."""
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setenv(plugins.ENVIRONMENT, "")
    for name, code in FILES.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    yield tmp_path
    for plugin in plugins.loaded_plugins():
        for registry in plugins.REGISTRIES.values():
            registry.forget(plugin)


def test_the_page_has_the_files_that_are_tested() -> None:
    assert set(FILES) == {"smooth_itc.py", "people_folders.py", "sqlite_store.py"}


def test_a_loss_trains(folder: Path, root: Path) -> None:
    done(
        f"cskt train --config demo --root {root} --output {folder}/run {QUICK} --plugin {folder}/smooth_itc.py"
        " --weights {smooth_itc:\\ 1} --loss.smooth-itc.smoothing 0.2"
    )
    (used,) = read_yaml(folder / "run" / "config.yaml")["plugins"]
    assert used["name"] == "smooth_itc.py" and used["provides"] == ["losses.smooth_itc"]
    steps = [event for event in read_events(folder / "run") if event["event"] == "step"]
    assert steps and all(event["losses"].keys() == {"smooth_itc"} for event in steps)


def test_a_data_set_is_checked_and_trained_on(folder: Path, root: Path) -> None:
    for split in ("train", "test"):
        for record in read_dataset("cuhk-pedes", root)[split].records:
            person = folder / "my-people" / split / f"p{record.pid}"
            person.mkdir(parents=True, exist_ok=True)
            shutil.copy(record.image_path, person)
            (person / "captions.txt").write_text("\n".join(record.captions), encoding="utf-8")
    flags = f"--dataset people-folders --plugin {folder}/people_folders.py"
    assert "people-folders" in done(f"cskt data check {folder}/my-people {flags}")
    done(f"cskt train --config demo --root {folder}/my-people --output {folder}/run {flags} {QUICK}")
    (used,) = read_yaml(folder / "run" / "config.yaml")["plugins"]
    assert used["provides"] == ["datasets.people-folders"]


@pytest.mark.slow
def test_a_store_is_used_by_all_commands_of_a_gallery(
    folder: Path, root: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lancedb")
    images = sorted((root / "CUHK-PEDES" / "imgs").rglob("*.jpg"))[:6]
    (folder / "crops").mkdir()
    for image in images:
        shutil.copy(image, folder / "crops")
    gallery, flags = folder / "gallery", f"--device cpu --plugin {folder}/sqlite_store.py"
    refused = typed(f"cskt index {gallery} --images {folder}/crops --store sqlite --device cpu").refusal()
    assert "unknown store 'sqlite'" in refused and "--plugin" in refused and not gallery.exists()
    done(f"cskt index {gallery} --images {folder}/crops --store sqlite {flags}")
    manifest = json.loads((gallery / "gallery.json").read_text(encoding="utf-8"))
    assert manifest["store"] == "sqlite"
    (needed,) = manifest["plugins"]
    assert needed["name"] == "sqlite_store.py" and needed["provides"] == ["stores.sqlite"]
    assert [path.name for path in (gallery / "vectors").rglob("*.*")] == ["crops.sqlite"]

    (folder / "crops" / images[0].name).unlink()
    done(f"cskt index {gallery} --prune {flags}")
    assert len(typed(f"cskt search {gallery} 'a red coat' -k 9 --json {flags}").json()[0]["hits"]) == 5
    done(f"cskt reindex {gallery} --model {run} {flags}")
    assert len(list(gallery.rglob("crops.sqlite"))) == 1  # the vectors of the model before are gone

    for plugin in plugins.loaded_plugins():
        plugins.REGISTRIES["cskt.stores"].forget(plugin)
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setenv(plugins.ENVIRONMENT, "")
    digest = needed["sha256"][:12]
    for command in (f"cskt search {gallery} 'a red coat'", f"cskt index {gallery}", f"cskt serve {gallery} --port 0"):
        refused = typed(f"{command} --device cpu").refusal()
        assert f"'sqlite' (stores) comes from the plug-in sqlite_store.py: load it (SHA-256 {digest}...)" in refused
    with cskt.Gallery.open(gallery, device="cpu", plugins=folder / "sqlite_store.py") as opened:
        assert opened.count("width > 0") == 5
