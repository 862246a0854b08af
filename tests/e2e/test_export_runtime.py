"""`cskt export --format`, and what a user does with the folder that it writes."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import contents, done, typed

from cskt import load
from cskt.data.datasets import read_dataset
from cskt.export import folder as export_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def onnx(run: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of all tests, exported and checked on its own val split."""
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    found = typed(f"cskt export {run} --format onnx --output {folder} --json").json()
    assert found["folder"] == str(folder)
    assert (found["format"], found["precision"]) == ("onnx", "fp32")
    parity = found["parity"]
    val = read_dataset("cuhk-pedes", root)["val"]
    assert parity["data"] == "cuhk-pedes val"
    assert (parity["images"]["count"], parity["captions"]["count"]) == (len(val.records), len(val.captions))
    assert parity["images"]["largest_difference"] < 1e-5
    assert parity["source"] == pytest.approx(parity["exported"])
    return folder


def test_an_exported_folder_is_evaluated_as_its_run(onnx: Path, run: Path) -> None:
    ours, theirs = (typed(f"cskt evaluate {model} --device cpu --json").json() for model in (onnx, run))
    for direction in ("t2i", "i2t"):
        assert ours[direction] == pytest.approx(theirs[direction])


def test_an_exported_folder_fills_a_gallery_that_the_run_searches(
    onnx: Path, run: Path, root: Path, tmp_path: Path
) -> None:
    gallery = tmp_path / "gallery"
    done(f"cskt index {gallery} --images {root}/CUHK-PEDES/imgs --model {onnx} --device cpu")
    answers = typed(f"cskt search {gallery} 'a man in a red coat' --device cpu --json").json()
    assert answers
    manifest = json.loads((gallery / "gallery.json").read_text(encoding="utf-8"))
    assert manifest["fingerprint"] == load(run, device="cpu", precision="fp32").fingerprint


def test_an_export_is_not_exported_again(onnx: Path, tmp_path: Path) -> None:
    refusal = typed(f"cskt export {onnx} --format openvino --output {tmp_path}/again").refusal()
    assert "is an exported model already; export the run that it was made from" in refusal


def test_int8_on_the_crops_of_a_gallery(run: Path, root: Path, tmp_path: Path) -> None:
    gallery, folder = tmp_path / "gallery", tmp_path / "int8"
    done(f"cskt index {gallery} --images {root}/CUHK-PEDES/imgs --model {run} --device cpu")
    flags = (
        f"--format openvino --int8 --int8-text --calibrate-on {gallery} --tolerance 100 --split test --check-images 6"
    )
    found = typed(f"cskt export {run} {flags} --output {folder} --json").json()
    num_crops = len(list((root / "CUHK-PEDES" / "imgs").rglob("*.jpg")))
    assert found["calibration_images"] == num_crops
    assert found["calibration_captions"] > 0 and found["parity"]["captions"]["smallest_cosine"] > 0.98
    assert found["parity"]["images"]["count"] == 6
    assert found["parity"]["images"]["smallest_cosine"] > 0.98
    refusal = typed(f"cskt index {gallery} --model {folder} --device cpu").refusal()
    assert "reindex" in refusal, "vectors of int8 are not mixed with those of float32"


def test_a_model_without_data_is_checked_on_generated_pedestrians(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    merged = tmp_path / "merged.safetensors"
    done(f"cskt export {run} --merge {merged}")
    alone = tmp_path / "alone"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cskt.cli.export_runtime.run_config", lambda model: None)  # its data set is on another machine
        table = done(f"cskt export {merged} --format openvino --output {alone}")
    assert "checked on 24 generated pedestrians" in table
    assert "R1" not in table
    assert "features only; for R1 give --dataset and --root" in caplog.text
    torch.testing.assert_close(
        load(alone).encode_text(["a man"]), load(run, device="cpu", precision="fp32").encode_text(["a man"])
    )


def test_a_graph_that_fails_its_check_replaces_nothing(
    run: Path, onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = shutil.copytree(onnx, tmp_path / "onnx")
    before = contents(target)
    write = export_folder.write_graphs

    def wrong(encoder: Any, *rest: Any) -> None:
        other = copy.copy(encoder)
        other.model = copy.deepcopy(encoder.model)
        other.model.vision.positional_embedding.data *= 1.5
        write(other, *rest)

    monkeypatch.setattr(export_folder, "write_graphs", wrong)
    refusal = typed(f"cskt export {run} --format onnx --output {target}").refusal()
    assert "features of images differ by" in refusal and "nothing is written" in refusal
    assert contents(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--format tflite", "invalid choice: 'tflite'"),
        ("--format onnx --int8", "--int8 is made by OpenVINO and not with --format onnx"),
        ("--format openvino --int8-text", "--int8-text changes nothing without --int8"),
        ("--format openvino --calibrate-on {root}", "--calibrate-on changes nothing without --int8"),
        ("--format onnx --half", "give them with --as-backbone"),
        ("--format onnx --tolerance -1", "--tolerance -1: give points of R1, from 0 to 100"),
        ("--format onnx --check-images -1", "--check-images -1: give a number of images"),
        ("--format onnx --output {root}", "holds something else than an exported model"),
        ("--format openvino --int8 --calibrate-on {tmp} --output {tmp}/new", "--calibrate-on {tmp}: holds no images"),
        ("--format openvino --int8 --calibrate-on {tmp}/no --output {tmp}/new", "{tmp}/no: no such folder of crops"),
        ("--format onnx --root {tmp}/no --output {tmp}/new", "no such folder"),
        ("--merge {tmp}/m.safetensors --int8", "--int8 belongs to --format"),
        ("--as-backbone {tmp}/m.safetensors --check-images 0", "--check-images belongs to --format"),
    ],
)
def test_what_is_refused(run: Path, root: Path, tmp_path: Path, flags: str, reason: str) -> None:
    places = {"root": root, "tmp": tmp_path}
    assert reason.format(**places) in typed(f"cskt export {run} {flags.format(**places)}").refusal()
    assert list(tmp_path.iterdir()) == []
