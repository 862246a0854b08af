"""The files of docs/extending.md, from outside the package."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from command_line import done, typed

import cskt
from cskt import plugins
from cskt.config import read_yaml
from cskt.data.datasets import read_dataset
from cskt.errors import CsktError
from cskt.losses import LossInputs
from cskt.model.io.native import read_method
from cskt.model.io.tensors import load_plain
from cskt.training.events import read_events
from documentation_files import FILES

QUICK = "--num-epochs 1 --batch-size 8 --num-workers 0 --device cpu --evaluate-before false"


@pytest.fixture
def folder(tmp_path: Path, forgets_plugins: None) -> Path:
    """A folder with the files of the page."""
    for name, code in FILES.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    return tmp_path


def test_the_page_has_the_files_that_are_tested() -> None:
    assert set(FILES) == {
        "smooth_itc.py", "people_folders.py", "sqlite_store.py", "shared_code.py", "salient.py", "drop_hardest.py",
        "losses_csv.py", "darken.py", "salient_released.py",
    }  # fmt: skip


def test_a_loss_trains(folder: Path, root: Path) -> None:
    done(
        f"cskt train --config demo --root {root} --output {folder}/run {QUICK} --plugin {folder}/smooth_itc.py"
        " --weights {smooth_itc:\\ 1} --loss.smooth-itc.smoothing 0.2"
    )
    (used,) = read_yaml(folder / "run" / "config.yaml")["plugins"]
    assert used["name"] == "smooth_itc.py" and used["provides"] == ["losses.smooth_itc"]
    steps = [event for event in read_events(folder / "run") if event["event"] == "step"]
    assert steps and all(event["losses"].keys() == {"smooth_itc"} for event in steps)


def test_an_operation_on_images_is_used(folder: Path, root: Path) -> None:
    ops = "{flip: {}, darken: {least: 0.3, probability: 0.5}}"
    done(
        f"cskt train --config demo --root {root} --output {folder}/run {QUICK} --plugin {folder}/darken.py"
        f" --augment.ops '{ops}'"
    )
    config = read_yaml(folder / "run" / "config.yaml")
    (used,) = config["plugins"]
    assert used["provides"] == ["operations.darken"]
    assert list(config["augment"]["ops"]) == ["flip", "darken"]


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
    shown = done(f"cskt index {gallery} --images {folder}/crops --store sqlite {flags}")
    assert shown.splitlines()[-1].endswith(f"--plugin {folder}/sqlite_store.py"), "the next command needs it, too"
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


def test_python_loads_plugins_where_it_evaluates(folder: Path, root: Path) -> None:
    images = {"train": folder / "my-people" / "train" / "anna", "test": folder / "my-people" / "test" / "ben"}
    for split, person in images.items():
        person.mkdir(parents=True)
        shutil.copy(read_dataset("cuhk-pedes", root)[split].records[0].image_path, person / "1.jpg")
        (person / "captions.txt").write_text("a person in a coat", encoding="utf-8")
    where = {"dataset": "people-folders", "root": str(folder / "my-people")}
    with pytest.raises(CsktError, match="people-folders"):
        cskt.evaluate("clip-tiny", "test", **where)
    evaluation = cskt.evaluate("clip-tiny", "test", plugins=folder / "people_folders.py", **where)
    assert (evaluation.dataset, evaluation.t2i.num_gallery) == ("people-folders", 1)


def test_a_hook_leaves_out_pairs_and_is_resumed(folder: Path, root: Path) -> None:
    command = f"cskt train --config demo --root {root} --output {folder}/run {QUICK} --num-epochs 2"
    flags = f"--plugin {folder}/drop_hardest.py"
    done(f"{command} {flags} --hooks.drop-hardest.share 0.25 --stop-after-epochs 1")
    assert not [event for event in read_events(folder / "run") if event["event"] == "hook"]
    done(f"cskt train --resume {folder}/run {flags}")
    events = read_events(folder / "run")
    num_pairs = events[0]["train_pairs"]
    (logged,) = (event for event in events if event["event"] == "hook")
    assert logged["epoch"] == 2 and 0 < logged["values"]["left_out"] <= 0.25 * num_pairs
    weights = load_plain(folder / "run" / "last.pt")["hooks"]["pair_weights"]
    assert weights.shape == (num_pairs,) and (weights == 0).sum() == logged["values"]["left_out"]


def test_a_logger_writes_a_line_per_step(folder: Path, root: Path) -> None:
    done(
        f"cskt train --config demo --root {root} --output {folder}/run {QUICK} --log-period-steps 1"
        f" --plugin {folder}/losses_csv.py --loggers losses_csv"
    )
    steps = [event for event in read_events(folder / "run") if event["event"] == "step"]
    lines = (folder / "run" / "losses.csv").read_text(encoding="utf-8").splitlines()
    assert len(steps) > 1
    assert lines == [f"{event['step']},{event['loss']},{event['lr']}" for event in steps]


@pytest.mark.parametrize(
    ("name", "flags", "tensor"),
    [
        ("shared_code", "--directions none --parts.shared-code.length 4", "parts.shared_code.codes.0"),
        (
            "salient",
            "--parts.salient.width 128 --weights {sdm:\\ 1,\\ salient_sdm:\\ 1}",
            "parts.salient.layers.text.1.running_mean",
        ),
    ],
)
def test_a_method_part_trains_and_searches(folder: Path, root: Path, name: str, flags: str, tensor: str) -> None:
    plugin, run = f"--plugin {folder}/{name}.py", folder / "run"
    done(f"cskt train --config demo --root {root} --output {run} {QUICK} {flags} {plugin}")
    config = read_yaml(run / "config.yaml")
    assert config["parts"].keys() == {name} and config["plugins"][0]["name"] == f"{name}.py"
    assert tensor in read_method(run / "best.safetensors").tensors
    images = root / "CUHK-PEDES" / "imgs"
    done(f"cskt index {folder}/gallery --images {images} --model {run} --device cpu {plugin}")
    assert ".jpg" in done(f"cskt search {folder}/gallery woman --device cpu {plugin}")


def test_the_page_names_every_field_of_loss_inputs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    assert [field.name for field in dataclasses.fields(LossInputs) if f"`{field.name}`" not in page] == []
