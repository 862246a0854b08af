"""A gallery whose model or files were moved: together it still works, alone it says which command helps."""

from __future__ import annotations

import copy
import json
import os
import shlex
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import done, typed

import cskt
from cskt.config import to_dict
from cskt.embed import Encoder, ModelSource, build
from cskt.gallery.calibration import CALIBRATION_FILE, calibrate, save_calibration
from cskt.gallery.gallery import Gallery
from cskt.gallery.manifest import MANIFEST, read_manifest
from cskt.model.io.native import MethodFile, save_weights
from cskt.training.state import trainable_state
from tiny_run import quick_config, write_backbone

SENTENCE = "a woman in a red coat"


@pytest.fixture(scope="module")
def encoder(tiny_backbone: Path) -> Encoder:
    return cskt.load(tiny_backbone, device="cpu")


@pytest.fixture
def project(tmp_path: Path, dolls: Path) -> Path:
    """A folder with crops, a backbone and an adapter-only run over it, which names it by its absolute path."""
    folder = tmp_path / "project"
    for number, image in enumerate(sorted(dolls.rglob("*.jpg"))[:12]):
        target = folder / "crops" / f"cam{number % 3}" / f"{number:02}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, target)
    write_run(folder / "run", write_backbone(folder / "clip.safetensors"))
    return folder


def write_run(folder: Path, backbone: Path, seed: int = 7) -> None:
    """An untrained run whose weight file holds the prompts and adapters alone."""
    config = quick_config(Path("nowhere"), backbone, changes={"seed": seed})
    built = build(config)
    folder.mkdir()
    file = MethodFile(
        to_dict(config), built.backbone_name, built.backbone_sha256, facts={}, tensors=trainable_state(built.model)
    )
    save_weights(folder / "best.safetensors", file)


def index(project: Path, flags: str = "") -> Path:
    """The project's gallery."""
    done(f"cskt index {project}/g --images {project}/crops --model {project}/run --device cpu {flags}")
    return project / "g"


def answers(gallery: Path) -> list[tuple[str, float]]:
    (answer,) = typed(f"cskt search {gallery} '{SENTENCE}' --device cpu --json").json()
    return [(hit["image_id"], hit["score"]) for hit in answer["hits"]]


def content_of(gallery: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((gallery / MANIFEST).read_text(encoding="utf-8"))
    return content


def remedy_in(reason: str, **places: Path) -> str:
    """The command that an error ends with, its placeholders filled in."""
    command = reason[reason.index("cskt reindex") :]
    for name, place in places.items():
        assert name in command, command
        command = command.replace(name, str(place))
    return command


# --- together


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_gallery_moves_with_its_run_backbone_and_crops(project: Path, tmp_path: Path, how: str) -> None:
    gallery = index(project)
    content = content_of(gallery)
    assert (content["model"]["path"], content["model"]["backbone"], content["images"]) == (
        "../run", "../clip.safetensors", "../crops",
    )  # fmt: skip
    before = answers(gallery)
    new = tmp_path / "elsewhere" / "renamed"
    new.parent.mkdir()
    if how == "moved":
        project.rename(new)
    else:
        shutil.copytree(project, new)
        shutil.rmtree(project / "crops")
    assert answers(new / "g") == before
    shutil.copyfile(new / "crops" / "cam0" / "00.jpg", new / "crops" / "new.jpg")
    report = typed(f"cskt index {new}/g --device cpu --json").json()
    assert (report["added"], report["unchanged"], report["model_moved"]) == (1, 12, False)
    with Gallery.open(new / "g", device="cpu") as opened:
        assert opened.original("new.jpg") == new / "crops" / "new.jpg"


def test_a_gallery_that_is_moved_alone_still_finds_all(project: Path, tmp_path: Path) -> None:
    before = answers(index(project))
    (tmp_path / "far").mkdir()
    moved = (project / "g").rename(tmp_path / "far" / "g")
    assert answers(moved) == before
    assert typed(f"cskt index {moved} --device cpu --json").json()["unchanged"] == 12
    assert answers(moved) == before, "also once its manifest was written from its new place"
    assert content_of(moved)["images"] == str(project / "crops")


def test_a_list_and_shards_move_with_the_gallery(project: Path, tmp_path: Path) -> None:
    crops = project / "crops"
    names = sorted(path.relative_to(crops).as_posix() for path in crops.rglob("*.jpg"))
    (crops / "names.txt").write_text("\n".join(names[:3]), encoding="utf-8")
    with tarfile.open(project / "one.tar", "w") as archive:
        archive.add(crops, ".", filter=lambda member: None if member.name.endswith(".txt") else member)
    for folder, images in (("listed", "crops/names.txt"), ("sharded", "one*.tar")):
        done(f"cskt index {project / folder} --images '{project / images}' --model {project}/run --device cpu")
    new = project.rename(tmp_path / "renamed")
    for folder, count in (("listed", 3), ("sharded", 12)):
        report = typed(f"cskt index {new / folder} --device cpu --json").json()
        assert (report["unchanged"], report["crops"]) == (count, count)


def test_vectors_beside_the_gallery_move_with_it(project: Path, tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite")
    before = answers(index(project, f"--store milvus:{project}/crops.db?consistency=session"))
    assert content_of(project / "g")["store"] == "milvus:../crops.db?consistency=session"
    new = project.rename(tmp_path / "renamed")
    assert answers(new / "g") == before
    assert read_manifest(new / "g").store == f"milvus:{new}/crops.db?consistency=session"


def test_crops_inside_the_gallery_and_elsewhere(project: Path, encoder: Encoder, tmp_path: Path) -> None:
    """`./run` cannot be taken for a repository of Hugging Face, as `run/x` could."""
    weights = write_backbone(tmp_path / "far.safetensors")
    with Gallery.create(project / "g", cskt.load(weights, device="cpu")) as gallery:
        shutil.copytree(project / "crops", project / "g" / "crops")
        gallery.index(project / "g" / "crops")
        content = content_of(project / "g")
        assert (content["images"], content["model"]["path"]) == ("./crops", str(weights))
        shutil.copyfile(weights, project / "g" / "own.safetensors")
        assert gallery.remember_model(str(project / "g" / "own.safetensors"))
    assert content_of(project / "g")["model"]["path"] == "./own.safetensors"
    assert read_manifest(project / "g").model.path == str(project / "g" / "own.safetensors")


@pytest.mark.parametrize("name", ["clip-tiny", "ViT-B/16", "owner/name"])
def test_names_of_models_stay_names(encoder: Encoder, tmp_path: Path, name: str) -> None:
    named = copy.copy(encoder)
    named.source = ModelSource(name)
    with Gallery.create(tmp_path / "g", named):
        assert content_of(tmp_path / "g")["model"]["path"] == name
    assert read_manifest(tmp_path / "g").model.path == name


def test_format_1_is_read_and_becomes_format_2(project: Path, encoder: Encoder) -> None:
    content = content_of(index(project))
    old = {key: value for key, value in content.items() if key not in ("image_list", "ignore", "shards", "home")}
    old |= {"format_version": 1, "images": str(project / "crops")}
    old["model"] = {**content["model"], "path": str(project / "run"), "backbone": None}
    (project / "g" / MANIFEST).write_text(json.dumps(old), encoding="utf-8")
    assert typed(f"cskt index {project}/g --device cpu --json").json()["unchanged"] == 12
    assert {**content_of(project / "g"), "created": ""} == {**content, "created": ""}


# --- alone


@pytest.mark.parametrize("command", ["search {g} x", "serve {g} --port 0 --no-audit-log", "index {g}", "reindex {g}"])
def test_a_missing_model_is_named_with_the_remedy(project: Path, tmp_path: Path, command: str) -> None:
    gallery = index(project)
    (project / "run").rename(tmp_path / "moved")
    reason = typed(f"cskt {command.format(g=gallery)} --device cpu").refusal()
    assert reason.startswith(f"{gallery}: its model is no longer at {project}/run; ")
    assert "its path was updated" in done(f"{remedy_in(reason, PATH=tmp_path / 'moved')} --device cpu")
    assert len(answers(gallery)) == 10


def test_the_missing_backbone_of_a_run_is_named_with_the_remedy(project: Path, tmp_path: Path) -> None:
    gallery = index(project)
    before = answers(gallery)
    moved = (project / "clip.safetensors").rename(tmp_path / "moved clip.safetensors")
    reason = typed(f"cskt search {gallery} x --device cpu").refusal()
    assert reason.startswith(f"{gallery}: its model's backbone is no longer at {project}/clip.safetensors; ")
    done(f"{remedy_in(reason, FILE=Path(shlex.quote(str(moved))))} --device cpu")
    assert answers(gallery) == before


def test_a_backbone_that_only_the_run_names_is_named_with_the_remedy(project: Path, tmp_path: Path) -> None:
    gallery = index(project)
    content = content_of(gallery)
    content["model"]["backbone"] = None  # as format 1 has it
    (gallery / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    moved = (project / "clip.safetensors").rename(tmp_path / "moved.safetensors")
    reason = typed(f"cskt search {gallery} x --device cpu").refusal()
    assert reason.startswith(f"{gallery}: ") and "SHA-256" in reason
    done(f"{remedy_in(reason, FILE=moved)} --device cpu")
    assert len(answers(gallery)) == 10


@pytest.mark.parametrize("command", ["index", "reindex"])
def test_the_same_model_at_another_place_updates_its_path(project: Path, tmp_path: Path, command: str) -> None:
    gallery = index(project)
    before, manifest = answers(gallery), read_manifest(gallery)
    (project / "run").rename(tmp_path / "moved")
    out = done(f"cskt {command} {gallery} --model {tmp_path}/moved --device cpu")
    assert f"{gallery}: the same model; its path was updated" in out and "unchanged 12" in out
    assert answers(gallery) == before
    after = read_manifest(gallery)
    assert after.model == ModelSource(str(tmp_path / "moved"), str(project / "clip.safetensors"))
    assert (after.fingerprint, after.images) == (manifest.fingerprint, manifest.images)
    assert "updated:" not in done(f"cskt index {gallery} --device cpu")


def test_run_and_backbone_that_moved_apart(project: Path, tmp_path: Path) -> None:
    """The config of the run names a file that is gone; the gallery knows where it was last, or the user says it."""
    gallery = index(project)
    (project / "run").rename(tmp_path / "moved")
    moved = (project / "clip.safetensors").rename(tmp_path / "moved.safetensors")
    reason = typed(f"cskt index {gallery} --model {tmp_path}/moved --device cpu").refusal()
    assert "--backbone" in reason
    done(f"cskt index {gallery} --model {tmp_path}/moved --backbone {moved} --device cpu")
    (tmp_path / "moved").rename(tmp_path / "again")
    done(f"cskt reindex {gallery} --model {tmp_path}/again --device cpu")
    assert len(answers(gallery)) == 10
    assert read_manifest(gallery).model == ModelSource(str(tmp_path / "again"), str(moved))


def test_another_model_at_the_new_place_is_refused(project: Path, tmp_path: Path) -> None:
    gallery = index(project)
    write_run(tmp_path / "other", project / "clip.safetensors", seed=8)
    before = content_of(gallery)
    reason = typed(f"cskt index {gallery} --model {tmp_path}/other --device cpu").refusal()
    assert "was filled by another model" in reason
    assert content_of(gallery) == before
    with Gallery.open(gallery, device="cpu") as opened:
        other = cskt.load(tmp_path / "other", device="cpu")
        opened._encoder = other
        with pytest.raises(ValueError, match="was filled by another model"):
            opened.remember_model(str(tmp_path / "other"))


def test_image_sizes_hold_for_weights_that_moved(project: Path, tmp_path: Path) -> None:
    gallery, weights = project / "sized", project / "clip.safetensors"
    sizes = "--image-height 64 --image-width 32"
    done(f"cskt index {gallery} --images {project}/crops --model {weights} {sizes} --device cpu")
    moved = weights.rename(tmp_path / "moved.safetensors")
    reason = typed(f"cskt search {gallery} x --device cpu").refusal()
    done(f"{remedy_in(reason, PATH=moved)} --device cpu")
    again = moved.rename(tmp_path / "again.safetensors")
    assert "its path was updated" in done(f"cskt index {gallery} --model {again} --device cpu")
    assert read_manifest(gallery).model == ModelSource(str(again), image_height=64, image_width=32)
    other = write_backbone(tmp_path / "other.safetensors", seed=3)
    assert "added 12," in done(f"cskt reindex {gallery} --model {other} --device cpu")
    assert read_manifest(gallery).model == ModelSource(str(other)), "another model has its own image size"


def test_open_galleries_follow_a_path_that_another_process_updates(project: Path, tmp_path: Path) -> None:
    gallery = index(project)
    with Gallery.open(gallery, device="cpu") as reader, Gallery.open(gallery, device="cpu") as loaded:
        before = loaded.search(SENTENCE)
        (project / "run").rename(tmp_path / "moved")
        done(f"cskt reindex {gallery} --model {tmp_path}/moved --device cpu")
        assert reader.search(SENTENCE) == before
        assert loaded.search(SENTENCE) == before
        assert loaded.add([project / "crops" / "cam0" / "00.jpg"], ["live"]).added == 1
    assert read_manifest(gallery).model.path == str(tmp_path / "moved")


def test_missing_crops_are_named_with_the_remedy(project: Path, tmp_path: Path) -> None:
    gallery = index(project)
    (project / "crops").rename(tmp_path / "moved")
    write_run(tmp_path / "other", project / "clip.safetensors", seed=8)
    for flags in ("", "--prune"):
        reason = typed(f"cskt reindex {gallery} --model {tmp_path}/other --device cpu {flags}").refusal()
        assert "--images FOLDER" in reason or not flags
    reason = typed(f"cskt index {gallery} --prune --device cpu").refusal()
    assert reason.startswith(
        f"{project}/crops: no such folder of crops; put it back, or say where it is now: cskt index "
    )
    with Gallery.open(gallery, device="cpu") as opened:
        assert opened.count() == 12
        with pytest.raises(ValueError, match="the folder of crops is no longer at .*--images FOLDER"):
            opened.original("cam0/00.jpg")
    assert "unchanged 12" in done(f"cskt index {gallery} --images {tmp_path}/moved --device cpu")
    assert "12 crops; added 12" in done(f"cskt reindex {gallery} --model {tmp_path}/other --device cpu --prune")


def test_reindexing_drops_no_crop_of_a_folder_that_cannot_be_read(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = index(project)
    write_run(tmp_path / "other", project / "clip.safetensors", seed=8)
    stat = os.stat

    def refuse(path: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(f"{project}/crops/cam1/"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    (project / "crops" / "cam0" / "00.jpg").unlink()
    command = f"cskt reindex {gallery} --model {tmp_path}/other --device cpu --prune"
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refuse)
        patch.setattr(os, "lstat", lambda path: refuse(path, follow_symlinks=False))
        assert "Permission denied; make it readable: --prune drops no crop" in typed(command).refusal()
    assert "11 crops" in done(command)


def test_the_backbone_that_an_old_manifest_lacks_is_added_in_silence(project: Path) -> None:
    gallery = index(project)
    content = content_of(gallery)
    content["model"]["backbone"] = None
    (gallery / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    assert "its path was updated" not in done(f"cskt index {gallery} --device cpu")
    assert content_of(gallery)["model"]["backbone"] == "../clip.safetensors"
    assert typed(f"cskt reindex {gallery} --device cpu").refusal().endswith("nothing to do")


def test_a_calibrated_threshold_stays_with_the_same_model(project: Path, tmp_path: Path) -> None:
    gallery = index(project)
    fingerprint = read_manifest(gallery).fingerprint
    right, wrong = np.float32([0.5, 0.9]), np.linspace(0, 0.4, 20, dtype=np.float32)
    save_calibration(gallery, calibrate(right, wrong, 0.1), fingerprint=fingerprint, source="own")
    save_calibration(project / "run", calibrate(right, wrong, 0.2), fingerprint=fingerprint, source="run")
    before = (gallery / CALIBRATION_FILE).read_bytes()
    (project / "run").rename(tmp_path / "moved")
    done(f"cskt reindex {gallery} --model {tmp_path}/moved --device cpu")
    assert (gallery / CALIBRATION_FILE).read_bytes() == before
