"""Exported folders against the models that they come from, in both formats and in int8."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from PIL import Image
from torch import Tensor

import cskt
from cskt.config import AdapterConfig, PromptConfig
from cskt.data.datasets import read_dataset
from cskt.data.images import ImageReader, normalise
from cskt.data.records import Split, find_split
from cskt.data.tokenizer import END_ID, START_ID, Tokenizer, clean
from cskt.embed import EXPORTED, EncodeOptions, Encoder
from cskt.embed.exported import ExportedEncoder, is_exported, load_exported, read_facts
from cskt.errors import CsktError
from cskt.explain import explain
from cskt.export.check import (
    Parity,
    TowerParity,
    first_images,
    generated_captions,
    parity_on_generated,
    parity_on_split,
)
from cskt.export.folder import atomic_folder, check_possible, write_folder, write_parity
from cskt.model.dual_encoder import DualEncoder
from tiny_run import ARCHITECTURE, HEIGHT, WIDTH

pytestmark = pytest.mark.slow

LONGEST = 77 - 4
"""Token positions beside two prompts of the tower's own and two coupled ones."""
FORMS = ("onnx", "openvino")


def encoder_with(seed: int, **settings: Any) -> Encoder:
    """CSKT over the tiny towers, nothing in it silent."""
    model = DualEncoder(
        ARCHITECTURE,
        {"prompts": PromptConfig(depth=2, length=2), "adapters": AdapterConfig(init="normal")},
        trainable="none",
    )
    generator = torch.Generator().manual_seed(seed)
    model.initialise_backbone(generator)
    model.initialise_method(generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adapters" in name:  # silent from the start, or nearly so
                parameter.normal_(0.5, 0.5, generator=generator)
    return Encoder(model, Tokenizer(LONGEST), device=torch.device("cpu"), num_workers=0, **settings)


def random_pixels(count: int, seed: int = 0) -> Tensor:
    shape = (count, 3, HEIGHT, WIDTH)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def random_ids(count: int, length: int) -> Tensor:
    """Captions up to `length` tokens; the first is the longest, the second has the end token twice."""
    ids = torch.randint(1, 49_000, (count, length), generator=torch.Generator().manual_seed(length))
    ids[:, 0], ids[:, -1], ids[1, length // 2] = START_ID, END_ID, END_ID
    return ids


@pytest.fixture(scope="module")
def source() -> Encoder:
    return encoder_with(1, templates=("{}", "a photo of {}"))


@pytest.fixture(scope="module")
def folders(source: Encoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One export per format, one with images in int8, and one with images and captions in int8."""
    made = {}
    inputs: dict[str, dict[str, Any]] = {
        "onnx": {},
        "openvino": {},
        "int8": {"calibration_images": list(random_pixels(12))},
        "int8 both": {"calibration_images": list(random_pixels(12)), "calibration_captions": generated_captions(12)},
    }
    for name, calibration in inputs.items():
        made[name] = tmp_path_factory.mktemp("exported") / name
        with atomic_folder(made[name]) as fresh:
            write_folder(source, fresh, "onnx" if name == "onnx" else "openvino", **calibration)
    return made


@pytest.fixture(params=FORMS)
def exported(request: pytest.FixtureRequest, folders: dict[str, Path]) -> ExportedEncoder:
    return load_exported(folders[request.param], EncodeOptions(num_workers=0))


@pytest.fixture(scope="module")
def test_split(dolls: Path) -> Split:
    return find_split(read_dataset("cuhk-pedes", dolls), "test")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_images_give_the_features_of_the_source(source: Encoder, exported: ExportedEncoder, count: int) -> None:
    pixels = random_pixels(count)
    torch.testing.assert_close(exported.encode_image(pixels), source.encode_image(normalise(pixels)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("length", [3, 12, 40, LONGEST - 1, LONGEST, 77])
def test_captions_of_any_length_give_the_features_of_the_source(
    source: Encoder, exported: ExportedEncoder, length: int
) -> None:
    ids = random_ids(3, length)
    features = source.encode_text(ids)
    torch.testing.assert_close(exported.encode_text(ids), features, rtol=0, atol=2e-6)
    torch.testing.assert_close(exported.encode_text(ids[:1]), features[:1], rtol=0, atol=2e-6)


def test_sentences_pass_templates_and_tokenizer_as_in_the_source(source: Encoder, exported: ExportedEncoder) -> None:
    sentences = ["", "a man", "A woman  in a caf&eacute;, wearing red", "long " * 90]
    torch.testing.assert_close(exported.encode_text(sentences), source.encode_text(sentences), rtol=0, atol=2e-6)
    assert exported.encode_text([]).shape == (0, ARCHITECTURE.embed_dim)


def test_paths_pictures_bytes_and_pixels_are_the_same(exported: ExportedEncoder, test_split: Split) -> None:
    path = test_split.image_paths[0]
    with Image.open(path) as picture:
        features = exported.encode_image([path, str(path), path.read_bytes(), picture])
    assert features.unique(dim=0).shape == (1, ARCHITECTURE.embed_dim)
    torch.testing.assert_close(features[:1], exported.encode_image(ImageReader(HEIGHT, WIDTH).read(path)[None]))


def test_normalised_images_are_refused(exported: ExportedEncoder) -> None:
    with pytest.raises(ValueError, match="expected uint8 pixels, found torch.float32; an exported model"):
        exported.encode_image(normalise(random_pixels(1)))
    with pytest.raises(ValueError, match=r"expected images \[B, 3, 32, 16\], found \[1, 3, 16, 32\]"):
        exported.encode_image(random_pixels(1).mT)
    with pytest.raises(ValueError, match=r"crop\.jpg: no such image"):
        exported.encode_image("crop.jpg")


def test_an_exported_encoder_is_an_encoder(exported: ExportedEncoder, tmp_path: Path) -> None:
    assert exported.encode_text("a man").shape == (ARCHITECTURE.embed_dim,)
    assert exported.encode_text(["a man"], convert_to="numpy").shape == (1, ARCHITECTURE.embed_dim)
    assert repr(exported).startswith(f"ExportedEncoder('{exported.folder}', {exported.facts.form}, ")
    assert exported.source is not None and exported.source.path == str(exported.folder)
    again = cskt.load(exported.save(tmp_path / "copy"))
    assert again.fingerprint == exported.fingerprint
    with pytest.raises(CsktError, match="exists already"):
        exported.save(tmp_path / "copy")


def test_threads_share_a_graph(exported: ExportedEncoder) -> None:
    batches = [random_pixels(4, seed) for seed in range(12)]
    alone = [exported.encode_image(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(exported.encode_image, batches))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_heat_maps_are_refused(exported: ExportedEncoder, test_split: Split) -> None:
    with pytest.raises(ValueError, match="heat maps need gradients, an exported model has none; use the run itself"):
        explain(exported, test_split.image_paths[0], "a man")


def test_float32_keeps_the_fingerprint_and_int8_has_its_own(source: Encoder, folders: dict[str, Path]) -> None:
    prints = {name: load_exported(folder).fingerprint for name, folder in folders.items()}
    assert prints["onnx"] == prints["openvino"] == source.fingerprint
    assert len({prints["onnx"], prints["int8"], prints["int8 both"]}) == 3
    assert load_exported(folders["onnx"], EncodeOptions(templates=["{}"])).fingerprint != source.fingerprint


def test_int8_is_near_and_small(source: Encoder, folders: dict[str, Path]) -> None:
    pixels = random_pixels(12)
    int8, exact = load_exported(folders["int8"]), source.encode_image(normalise(pixels))
    cosines = torch.cosine_similarity(int8.encode_image(pixels), exact)
    assert 0.98 < cosines.min() < 1 - 1e-6
    assert int8.precision == "int8"
    weights = {name: (folders[name] / "image.bin").stat().st_size for name in ("openvino", "int8")}
    assert weights["int8"] < 0.5 * weights["openvino"]
    ids = random_ids(2, 20)
    torch.testing.assert_close(int8.encode_text(ids), source.encode_text(ids), rtol=0, atol=2e-6)


def test_captions_in_int8_are_near_and_small(source: Encoder, folders: dict[str, Path]) -> None:
    captions = ["a man", *generated_captions(12)]
    int8 = load_exported(folders["int8 both"])
    cosines = torch.cosine_similarity(int8.encode_text(captions), source.encode_text(captions))
    assert 0.98 < cosines.min() < 1 - 1e-6
    assert (int8.facts.precision, int8.facts.text_precision) == ("int8", "int8")
    weights = {name: (folders[name] / "text.bin").stat().st_size for name in ("openvino", "int8 both")}
    assert weights["int8 both"] < weights["openvino"]


def test_the_portable_tokenizer_gives_the_same_ids(source: Encoder, folders: dict[str, Path]) -> None:
    portable = tokenizers.Tokenizer.from_file(str(folders["onnx"] / "tokenizer.json"))
    captions = ["A  Man\tin a t-shirt, it's 42!", "", "<|endoftext|> typed", "naïve 東京 \u00a0 x", "word " * 100]
    ids = torch.tensor([encoding.ids for encoding in portable.encode_batch(captions)])
    assert torch.equal(ids, source.tokenizer(captions))
    repaired = portable.encode(clean("caf&amp;eacute;")).ids
    assert repaired == source.tokenizer(["caf&amp;eacute;"])[0].tolist()


def test_parity_on_a_split(source: Encoder, exported: ExportedEncoder, test_split: Split) -> None:
    parity = parity_on_split(source, exported, test_split)
    assert (parity.images.count, parity.captions.count) == (len(test_split.records), len(test_split.captions))
    assert parity.source == pytest.approx(parity.exported)
    assert parity.r1_points == 0
    parity.check((), most_points=0.1)
    assert json.loads(json.dumps(parity.summary()))["data"] == "cuhk-pedes test"


def test_another_model_fails_the_check(exported: ExportedEncoder, test_split: Split) -> None:
    stranger = encoder_with(2, templates=exported.templates)
    for parity in (parity_on_generated(stranger, exported), parity_on_split(stranger, exported, test_split)):
        for int8 in ((), ("images",)):
            with pytest.raises(ValueError, match=r"features of captions differ by .* more than 1e-04: nothing is"):
                parity.check(int8, most_points=100)
        with pytest.raises(ValueError, match=r"vectors of captions: the smallest cosine .* less than 0.98: nothing is"):
            parity.check(("images", "captions"), most_points=100)


SAME = TowerParity(4, 1e-7, 1.0)
EQUAL = Parity("a split", SAME, SAME, {"r1": 0.5, "mean_ap": 0.4}, {"r1": 0.5, "mean_ap": 0.4})


@pytest.mark.parametrize(
    ("int8", "changes", "reason"),
    [
        ((), {"images": TowerParity(4, 2e-4, 1.0)}, "features of images differ by 2.0e-04"),
        ((), {"images": TowerParity(4, float("nan"), float("nan"))}, "features of images differ by nan"),
        (
            ("images",),
            {"images": TowerParity(4, 0.2, 0.97)},
            "vectors of images: the smallest cosine with the source's is 0.970",
        ),
        (("images",), {"images": TowerParity(4, float("nan"), float("nan"))}, "cosine with the source's is nan"),
        (("images",), {"captions": TowerParity(4, 2e-4, 1.0)}, "features of captions differ"),
        (("images", "captions"), {"captions": TowerParity(4, 0.2, 0.97)}, "vectors of captions: .*0.970.* --int8-text"),
        ((), {"exported": {"r1": 0.502, "mean_ap": 0.4}}, r"R1 differs by \+0.20 points on a split"),
        ((), {"exported": {"r1": 0.498, "mean_ap": 0.4}}, "R1 differs by -0.20 points"),
        (("images",), {"exported": {"r1": 0.498, "mean_ap": 0.4}}, "R1 differs by -0.20 points"),
    ],
)
def test_what_the_check_refuses(int8: tuple[str, ...], changes: dict[str, Any], reason: str) -> None:
    EQUAL.check(int8, most_points=0.1)
    with pytest.raises(ValueError, match=reason):
        dataclasses.replace(EQUAL, **changes).check(int8, most_points=0.1)


def test_int8_may_gain(source: Encoder) -> None:
    better = dataclasses.replace(EQUAL, images=TowerParity(4, 0.02, 0.99), exported={"r1": 0.6, "mean_ap": 0.4})
    better.check(("images",), most_points=0.1)


def test_facts_tell_other_programs_what_they_need(source: Encoder, folders: dict[str, Path]) -> None:
    facts = read_facts(folders["onnx"])
    assert facts.architecture == ARCHITECTURE
    assert facts.longest_caption == LONGEST
    assert facts.templates == source.templates
    assert facts.num_parameters == source.model.num_parameters()
    assert sorted(facts.sha256) == ["image.onnx", "text.onnx", "tokenizer.json"]
    assert "not normalised" in facts.usage["images"]


def test_parity_is_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["onnx"], tmp_path / "copy")
    write_parity(copy, EQUAL.summary())
    assert read_facts(copy).parity == json.loads(json.dumps(EQUAL.summary()))
    load_exported(copy)


def cut_short(folder: Path) -> None:
    path = folder / "image.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def other_version(folder: Path) -> None:
    content = json.loads((folder / EXPORTED).read_text(encoding="utf-8"))
    (folder / EXPORTED).write_text(json.dumps(content | {"format_version": 2}), encoding="utf-8")


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (cut_short, r"image\.onnx: missing, or changed since the export"),
    (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json: missing"),
    (lambda folder: (folder / EXPORTED).write_text("{"), r"exported\.json: not JSON: .* export again"),
    (lambda folder: (folder / EXPORTED).write_text("[]"), r"exported\.json: must be an object, got \[\]; export again"),
    (lambda folder: (folder / EXPORTED).unlink(), "not an exported model"),
    (other_version, r"made by a newer version of cskt \(format 2, this one reads 1\)"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_damage_is_found(
    folders: dict[str, Path], tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    copy = shutil.copytree(folders["onnx"], tmp_path / "copy")
    damage(copy)
    with pytest.raises(ValueError, match=reason):
        load_exported(copy)


def test_devices_and_precisions_that_it_does_not_have(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="computes on the CPU, not on cuda"):
        load_exported(folders["onnx"], EncodeOptions(device="cuda"))
    with pytest.raises(ValueError, match="exported as int8, not bf16; leave --precision out"):
        load_exported(folders["int8"], EncodeOptions(device="cpu", precision="bf16"))
    assert load_exported(folders["int8"], EncodeOptions("auto", "auto")).precision == "int8"


def test_a_failed_export_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for word in ("first", "second"):
        with atomic_folder(target) as fresh:
            (fresh / EXPORTED).write_text(word)
    with pytest.raises(ValueError, match="worse"), atomic_folder(target) as fresh:
        (fresh / EXPORTED).write_text("third")
        raise ValueError("worse")
    assert (target / EXPORTED).read_text() == "second"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", [".", "..", "../folder", "/"])
def test_the_working_directory_is_not_replaced(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    with pytest.raises(ValueError, match="is or contains the working directory; name a new folder with --output"):
        check_possible("onnx", Path(name), int8=False)
    with pytest.raises(ValueError, match="is or contains the working directory"), atomic_folder(Path(name)):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_an_impossible_export_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--int8 is made by OpenVINO and not with --format onnx"):
        check_possible("onnx", tmp_path / "new", int8=True)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds something else than an exported model; name another folder"):
        check_possible("onnx", tmp_path, int8=False)
    (tmp_path / EXPORTED).touch()
    assert is_exported(tmp_path)
    with pytest.raises(ValueError, match="holds something else"):
        check_possible("openvino", tmp_path, int8=True)  # a description alone makes nobody's thesis ours
    (tmp_path / "thesis.tex").unlink()
    (tmp_path / "image.onnx").touch()
    check_possible("openvino", tmp_path, int8=True)
    (tmp_path / "text.onnx").mkdir()
    with pytest.raises(ValueError, match="holds something else"):
        check_possible("openvino", tmp_path, int8=True)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="holds something else"):
        check_possible("openvino", tmp_path / "link", int8=True)


def test_what_comes_into_an_exported_folder_meanwhile_is_not_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "target"
    with atomic_folder(target) as fresh:
        (fresh / EXPORTED).write_text("first")
    with atomic_folder(target) as fresh:
        (fresh / EXPORTED).write_text("second")
        (target / "notes").mkdir()
        (target / "notes" / "a.txt").write_text("mine")
    assert (target / EXPORTED).read_text() == "second"
    [left] = tmp_path.rglob("a.txt")
    assert left.read_text() == "mine" and "the previous export could not be deleted" in caplog.text


def test_a_description_names_no_file_outside(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["onnx"], tmp_path / "copy")
    (tmp_path / "private").write_text("private")
    content = json.loads((copy / EXPORTED).read_text(encoding="utf-8"))
    for name in ("../private", str(tmp_path / "private"), "..", ""):
        changed = content | {"sha256": {**content["sha256"], name: "0" * 64}}
        (copy / EXPORTED).write_text(json.dumps(changed), encoding="utf-8")
        with pytest.raises(ValueError, match="which no export writes"):
            load_exported(copy)


def test_first_images_keep_their_captions(test_split: Split) -> None:
    cut = first_images(test_split, 2)
    assert cut.image_paths == test_split.image_paths[:2]
    assert cut.captions == [caption for record in test_split.records[:2] for caption in record.captions]
    assert first_images(test_split, 0) == test_split


SILENT = """
import socket, sys
def refuse(*address): raise AssertionError(f"a connection to {address}")
socket.socket.connect = socket.getaddrinfo = refuse
from cskt.embed.exported import import_silent
openvino, nncf = import_silent("openvino"), import_silent("nncf")
from nncf.telemetry import telemetry
from openvino.tools import ovc
print(sys.modules["openvino_telemetry"], type(ovc.telemetry).__module__, type(telemetry).__module__)
"""


def test_openvino_and_nncf_report_to_nobody() -> None:
    """In a process of its own: below pytest, NNCF is silent by itself."""
    done = subprocess.run([sys.executable, "-c", SILENT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["None", "openvino.tools.ovc.telemetry_stub", "unittest.mock"]


def test_graphs_name_no_folder_of_the_machine(folders: dict[str, Path]) -> None:
    for path in (path for folder in folders.values() for path in folder.iterdir()):
        data = path.read_bytes()
        assert b"stack_trace" not in data and b"site-packages" not in data and b"cskt/export" not in data, path
