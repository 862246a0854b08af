"""Released folders of other methods than CSKT and IRRA, in the commands that take a model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from command_line import done, typed
from torch import Tensor

from cskt import load
from cskt.config import ClipArchitecture, load_config
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.native import save_backbone
from cskt.model.io.released.methods import METHODS
from cskt.model.io.released.reader import INCOMPLETE, read_released
from cskt.utils.modules import named_tensors
from documentation_files import FILES

pytestmark = pytest.mark.slow
TOWERS = ClipArchitecture(
    embed_dim=16, image_height=32, image_width=16, patch_size=8, stride=8, vision_width=64, vision_layers=2,
    vision_heads=1, text_width=64, text_layers=2, text_heads=1,
)  # fmt: skip
SQUARE = ClipArchitecture(**{**TOWERS.__dict__, "image_height": 16})
SETTINGS = {
    "irra": {}, "tbps_clip": {},
    "rde": {"tse": {"width": 8, "ratio": 0.5}},
    "up_person": {"up_person": {"prefix_length": 2, "rank": 2}},
    "dm_adapter": {"dm_adapter": {"num_experts": 3}},
}  # fmt: skip
OPTIONS = {
    "irra": {"loss_names": "sdm+id"},
    "rde": {"loss_names": "TAL", "select_ratio": 0.5},
    "up_person": {"loss_names": "sdm", "MLM": True, "prefix_length": 2},
    "dm_adapter": {"loss_names": "sdm+aux", "MLM": True, "num_experts": 3, "topk": 2},
}


def write(folder: Path, method: str, extra: dict[str, Tensor] | None = None) -> Path:
    """Write a released folder of a model that starts as the recipe does."""
    settings = load_config("clip", {"parts": SETTINGS[method]}, fit=False).method
    model = DualEncoder(SQUARE if method == "tbps_clip" else TOWERS, settings)
    generator = torch.Generator().manual_seed(3)
    model.initialise_backbone(generator)
    model.initialise_method(generator)
    tensors = {METHODS[method].name(name): value.detach() for name, value in named_tensors(model).items()}
    folder.mkdir()
    content = {"model": tensors | (extra or {}), "epoch": 7}
    if method == "tbps_clip":
        torch.save(content, folder / "checkpoint_best.pth")
        return folder
    common = {"img_size": [32, 16], "stride_size": 8, "dataset_name": "CUHK-PEDES", "root_dir": "/author"}
    (folder / "configs.yaml").write_text(yaml.safe_dump(common | OPTIONS[method]))
    torch.save(content, folder / "best.pth")
    return folder


@pytest.mark.parametrize("method", ["rde", "up_person", "dm_adapter", "tbps_clip"])
def test_evaluate_index_search_and_test_py(method: str, root: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "run", method)
    ours = typed(f"cskt evaluate {folder} --dataset cuhk-pedes --root {root} --device cpu --json").json()
    named = "checkpoint_best.pth" if method == "tbps_clip" else "configs.yaml"
    theirs = f"python test.py --config_file {folder}/{named} --dataset_name CUHK-PEDES --root_dir {root} --json"
    assert typed(theirs).json()["t2i"] == ours["t2i"]
    done(f"cskt index {tmp_path}/gallery --images {root}/CUHK-PEDES/imgs --model {folder} --device cpu")
    assert ".jpg" in done(f"cskt search {tmp_path}/gallery woman --device cpu")


@pytest.mark.parametrize("method", ["rde", "dm_adapter"])
def test_export(method: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = write(tmp_path / "run", method)
    done(f"cskt export {folder} --format onnx --output {tmp_path}/fast")
    assert (tmp_path / "fast" / "exported.json").is_file()


def test_unknown_heads(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "run", "irra", {"grab.fc.weight": torch.zeros(8, 16)})
    evaluate = f"cskt evaluate {folder} --dataset cuhk-pedes --root {root} --device cpu"
    assert "unknown tensor 'grab.fc.weight' [8, 16] (linear layers)" in typed(evaluate).refusal()
    result = typed(f"{evaluate} --ignore-extra --json --output {tmp_path}/results").json()
    assert result["t2i"] and result["note"] == INCOMPLETE
    (stored,) = (tmp_path / "results").rglob("*.json")
    assert json.loads(stored.read_text())["note"] == INCOMPLETE
    assert INCOMPLETE in " ".join(done(f"{evaluate} --ignore-extra").split())
    assert "no score is the full score of the method" in caplog.text
    index = f"cskt index {tmp_path}/gallery --images {root}/CUHK-PEDES/imgs --model {folder} --device cpu"
    assert "'grab.fc.weight'" in typed(index).refusal()
    done(f"{index} --ignore-extra")
    assert ".jpg" in done(f"cskt search {tmp_path}/gallery woman --device cpu"), "the gallery remembers the choice"


@pytest.mark.parametrize("form", ["onnx", "openvino", "saved", "merged"])
def test_exports_note_that_tensors_were_left_out(
    form: str, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, copy = write(tmp_path / "run", "irra", {"grab.fc.weight": torch.zeros(8, 16)}), tmp_path / "copy"
    if form == "saved":
        load(folder, device="cpu", ignore_extra=True).save(copy)
    elif form == "merged":
        copy = tmp_path / "copy.safetensors"
        assert "give --ignore-extra" in typed(f"cskt export {folder} --merge {copy}").refusal()
        assert done(f"cskt export {folder} --merge {copy} --ignore-extra").strip() == str(copy)
    else:
        pytest.importorskip({"onnx": "onnxruntime"}.get(form, form))
        data = f"--dataset cuhk-pedes --root {root} --split test"
        done(f"cskt export {folder} --format {form} --ignore-extra {data} --output {copy}")
    caplog.clear()
    evaluate = f"cskt evaluate {copy} --dataset cuhk-pedes --root {root} --device cpu"
    assert typed(f"{evaluate} --json --output {tmp_path}/results").json()["note"] == INCOMPLETE
    assert INCOMPLETE in " ".join(done(evaluate).split())
    assert f"{copy}: {INCOMPLETE}" in caplog.messages
    caplog.clear()
    done(f"cskt index {tmp_path}/gallery --images {root}/CUHK-PEDES/imgs --model {copy} --device cpu")
    assert f"{copy}: {INCOMPLETE}" in caplog.messages
    done(f"cskt push {copy} lab/cskt --dry-run {tmp_path}/shared")
    assert f"{INCOMPLETE.capitalize()}." in (tmp_path / "shared" / "README.md").read_text()
    assert load(tmp_path / "shared", device="cpu").note == INCOMPLETE


def test_a_run_over_a_pretrained_irra(root: Path, tmp_path: Path) -> None:
    best = write(tmp_path / "nam", "irra", {"classifier.weight": torch.zeros(8, 16)}) / "best.pth"
    sizes = "--backbone.image-height 32 --backbone.image-width 16"
    train = f"cskt train --config lora --dataset cuhk-pedes --root {root} --output-dir {tmp_path}/logs --device cpu"
    out = done(f"{train} --backbone.name {best} {sizes} --num-epochs 1 --batch-size 8")
    (run,) = (tmp_path / "logs").rglob("config.yaml")
    assert re.search(r"R1", out) and "quick_gelu" in run.read_text()
    done(f"cskt evaluate {run.parent} --device cpu")


CONTINUED = {
    "rde": "--config rde-released --parts.tse.width 8 --parts.tse.ratio 0.5 --hooks.noise-division.mixture none",
    "up_person": "--config up-person --parts.up-person.prefix-length 2 --parts.up-person.rank 2",
    "dm_adapter": "--config dm-adapter --parts.dm-adapter.num-experts 3",
    "tbps_clip": "--config tbps-clip-simple",
}
"""Method -> its recipe, with the settings of the folder."""


@pytest.mark.parametrize("method", CONTINUED)
def test_training_continues_from_a_released_folder(method: str, root: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "run", method)
    backbone, state = tmp_path / "clip.safetensors", read_released(folder).state
    towers = {name: value for name, value in state.items() if name.startswith(("vision.", "text."))}
    sizes = SQUARE if method == "tbps_clip" else TOWERS
    save_backbone(backbone, towers, sizes, facts={})
    file = folder / ("checkpoint_best.pth" if method == "tbps_clip" else "best.pth")
    content = torch.load(file)
    content["model"] = {
        name: value.half() if value.is_floating_point() else value for name, value in content["model"].items()
    }
    torch.save(content, file)
    train = f"cskt train {CONTINUED[method]} --root {root} --dataset cuhk-pedes --device cpu --backbone.name {backbone}"
    size = f"--image-height {sizes.image_height} --image-width 16"
    quick = f"--num-epochs 1 --batch-size 8 --lr 1e-9 --output {tmp_path}/again {size}"
    done(f"{train} {quick} --init-from {folder}")
    found, expected = (load(path, device="cpu", precision="fp32") for path in (tmp_path / "again", folder))
    torch.testing.assert_close(found.encode_text("a man"), expected.encode_text("a man"), rtol=1e-2, atol=1e-3)
    backbone.unlink()
    save_backbone(backbone, {name: value + 0.1 for name, value in towers.items()}, sizes, facts={})
    other = typed(f"{train} {quick} --init-from {folder}".replace("/again", "/other"))
    assert (other.code == 0) == (method == "rde"), "which trains the whole of CLIP"
    assert method == "rde" or "was trained there and is frozen here" in other.refusal()


@pytest.mark.parametrize("method", ["rde", "up_person", "dm_adapter", "tbps_clip"])
def test_adapt_names_the_recipe_of_a_released_folder_instead(method: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "run", method)
    for place in (folder, next(folder.glob("*.pth"))):
        line = typed(f"cskt train --config adapt --root {tmp_path} --init-from {place} --device cpu").refusal()
        assert line.startswith(f"init_from {place}: a released folder has no config.yaml") and "--config RECIPE" in line


def test_the_plugin_of_the_guide(root: Path, tmp_path: Path, forgets_plugins: None) -> None:
    for name in ("salient.py", "salient_released.py"):
        (tmp_path / name).write_text(FILES[name])
    head = {
        f"salient_{side}.{index}.{leaf}": torch.rand(shape)
        for side in ("vision", "text")
        for index, leaf, shape in (
            (0, "weight", (6, 16)), (0, "bias", (6,)), (1, "weight", (6,)), (1, "bias", (6,)),
            (1, "running_mean", (6,)), (1, "running_var", (6,)), (3, "weight", (6, 6)), (3, "bias", (6,)),
        )
    }  # fmt: skip
    head |= {f"salient_{side}.1.num_batches_tracked": torch.tensor(4) for side in ("vision", "text")}
    folder = write(tmp_path / "run", "irra", head)
    evaluate = f"cskt evaluate {folder} --dataset cuhk-pedes --root {root} --device cpu"
    assert "salient_text" in typed(evaluate).refusal()
    plugins = f"--plugin {tmp_path}/salient.py --plugin {tmp_path}/salient_released.py"
    assert typed(f"{evaluate} {plugins} --json").json()["t2i"]
