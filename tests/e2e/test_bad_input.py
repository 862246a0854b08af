"""Wrong data, words and configs: one line that says the remedy, exit code 2, no traceback, and nothing lost."""

from __future__ import annotations

import json
import logging
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import done, typed
from PIL import Image

from cskt.image_files.limits import MAX_PIXELS

Change = Callable[[Path], object]


pytestmark = pytest.mark.usefixtures("nothing_is_lost")


# --- data sets


def annotation(folder: Path) -> Path:
    return folder / "CUHK-PEDES" / "reid_raw.json"


def records(change: Callable[[list[dict[str, Any]]], object]) -> Change:
    """A change of the annotation's records; those of test stand last."""

    def apply(folder: Path) -> None:
        content = json.loads(annotation(folder).read_text())
        change(content)
        annotation(folder).write_text(json.dumps(content))

    return apply


def last_image(change: Change) -> Change:
    """A change of the last image of test."""
    return lambda folder: change(max((folder / "CUHK-PEDES" / "imgs").rglob("*.jpg")))


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises an image of that size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


DATA: dict[str, tuple[Change, tuple[str, ...]]] = {
    "root missing": (shutil.rmtree, ("no such folder", "data.root must hold CUHK-PEDES; request the data at https://")),
    "annotation missing": (
        lambda folder: annotation(folder).unlink(),
        ("reid_raw.json: no such file", "request the data at https://"),
    ),
    "malformed JSON": (
        lambda folder: annotation(folder).write_text(annotation(folder).read_text()[:-40]),
        ("reid_raw.json: not JSON", " at line 36, column ", "is the file complete?"),
    ),
    "no records": (records(lambda content: content.clear()), ("holds no records", "request the data")),
    "no id": (records(lambda content: content[3].pop("id")), ("record 3 has no 'id'; expected a whole number",)),
    "no captions": (
        records(lambda content: content[3].pop("captions")),
        ("record 3 has no 'captions'; expected a non-empty list of strings",),
    ),
    "no path": (
        records(lambda content: content[3].pop("file_path")),
        ("record 3 has no 'file_path'; expected the path",),
    ),
    "empty caption list": (
        records(lambda content: content[3].update(captions=[])),
        ("record 3 has 'captions' []; expected a non-empty list of strings",),
    ),
    "caption that is no string": (
        records(lambda content: content[3].update(captions=["a man", 7])),
        ("record 3 has 'captions' ['a man', 7]; expected a non-empty list of strings",),
    ),
    "path out of the folder": (
        records(lambda content: content[3].update(file_path="../../secret.jpg")),
        ("record 3 has 'file_path' '../../secret.jpg'; expected a path inside",),
    ),
    "split empty": (
        records(lambda content: [record.update(split="train") for record in content]),
        ("no split 'test'; it has train",),
    ),
    "image missing": (last_image(Path.unlink), ("_1.jpg: no such image; ", "leave it out")),
    "image truncated": (
        last_image(lambda image: image.write_bytes(image.read_bytes()[:-100])),
        ("_1.jpg: corrupt image: Premature end", "leave it out"),
    ),
    "image of zero bytes": (
        last_image(lambda image: image.write_bytes(b"")),
        ("_1.jpg: corrupt image: the file is empty", "leave it out"),
    ),
    "not an image": (
        last_image(lambda image: image.write_text("<html>404</html>")),
        ("_1.jpg: not an image of a known format (JPEG, PNG,", "leave it out"),
    ),
    "bomb": (
        last_image(lambda image: image.write_bytes(png_claiming(20_000, 20_000))),
        ("_1.jpg: ", "scale it down"),
    ),
    "large JPEG": (
        last_image(lambda image: Image.new("L", (20_000, MAX_PIXELS // 20_000 + 1)).save(image, quality=1)),
        ("_1.jpg: ", f"limit of {MAX_PIXELS}", "scale it down"),
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_data_set(case: str, run: Path, root: Path, tmp_path: Path) -> None:
    change, reasons = DATA[case]
    copy = tmp_path / "copy"
    shutil.copytree(root / "CUHK-PEDES", copy / "CUHK-PEDES")
    change(copy)
    refusal = typed(f"cskt evaluate {run} --root {copy}").refusal()
    assert str(copy) in refusal or "split" in refusal
    for reason in reasons:
        assert reason in refusal


def test_image_that_fails_in_training(train_command: str, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "CUHK-PEDES", tmp_path / "CUHK-PEDES")
    broken = min((tmp_path / "CUHK-PEDES" / "imgs").rglob("*.jpg"))
    broken.write_bytes(b"")
    command = train_command.replace(f"--root {root}", f"--root {tmp_path}")
    refusal = typed(f"{command} --output {tmp_path / 'run'}").refusal()
    assert refusal.startswith(f"{broken}: corrupt image: the file is empty")


def test_json_line_that_is_broken(run: Path, own_data: Path, tmp_path: Path) -> None:
    shutil.copytree(own_data, tmp_path / "own")
    lines = (tmp_path / "own" / "test.jsonl").read_text().splitlines()
    lines[4] = lines[4][:30]
    (tmp_path / "own" / "test.jsonl").write_text("\n".join(lines))
    refusal = typed(f"cskt evaluate {run} --dataset jsonl --root {tmp_path / 'own'}").refusal()
    assert f"{tmp_path / 'own' / 'test.jsonl'}:5: not JSON" in refusal


def test_batch_larger_than_the_data_set(train_command: str, tmp_path: Path) -> None:
    refusal = typed(f"{train_command} --data.batch_size 33 --output {tmp_path / 'run'}").refusal()
    assert refusal == "data.batch_size 33 is more than the 32 training pairs; lower data.batch_size"
    assert not (tmp_path / "run").exists()


def test_captions_that_are_too_long_work_and_warn_once_with_the_count(
    run: Path, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(root / "CUHK-PEDES", tmp_path / "CUHK-PEDES")
    long = " and a bag" * 60  # CLIP takes 77 tokens, of which 2 prompts and 2 projected ones take 4
    lengthen = records(lambda content: [record.update(captions=[record["captions"][0] + long]) for record in content])
    lengthen(tmp_path)
    caplog.set_level(logging.WARNING)
    result = typed(f"cskt evaluate {run} --root {tmp_path} --json --batch-size 4").json()
    assert result["t2i"]["num_queries"] == 12
    assert [record.getMessage() for record in caplog.records] == [
        "cuhk-pedes test: 12 of 12 captions have more than 73 tokens and are cut to it"
    ]


# --- words

WORDS = [
    ("cskt trian", "unknown command 'trian': did you mean 'train'?"),
    ("cskt data chekc", "unknown command 'data chekc': did you mean 'data check'?"),
    ("cskt evaluate {run} --dataset cuhk-pedse", "unknown data set 'cuhk-pedse': did you mean 'cuhk-pedes'?"),
    ("cskt evaluate {run} --split vall", "no split 'vall'; it has train, val, test"),
    ("cskt evaluate {run} --devise cpu", "unknown flag --devise: did you mean --device?"),
    ("cskt evaluate {run} --device cpv", "unknown device 'cpv': did you mean 'cpu'?"),
    ("cskt evaluate {run} --batch-size 0", "batch_size 0"),
    ("cskt evaluate {run} --num-workers -1", "num_workers -1"),
    ("cskt evaluate {run} --num-workers many", "invalid int value: 'many'"),
    ("cskt evaluate {run} {run}", "unexpected argument '{run}'"),
    (
        "cskt evaluate nowhere",
        "no such run folder, weight file or published name; published names: clip-tiny, ViT",
    ),
    ("cskt evaluate {run}-1", "no such run folder, weight file or published name; did you mean '{run}'?"),
    ("cskt evaluate clip-tinny", "no such run folder, weight file or published name; did you mean 'clip-tiny'?"),
    ("cskt query {root}/clip.pt 'a man'", "clip.pt: no such run folder, weight file or published name; "),
    ("cskt evaluate {root}", "{root}: no weight file; expected one of "),
    ("cskt evaluate {root}", "it is no run folder, for it has no config.yaml"),
    ("cskt evaluate clip-tiny", "clip-tiny is no run that names its data; say which to use: --dataset rstpreid --root"),
    ("cskt evaluate openai/clip-vit-base-patch16", "is no run that names its data; say which to use"),
    ("cskt evaluate clip-tiny --dataset cuhk-pedes", "is no run that names its data; say which to use: --root DIR"),
    ("cskt evaluate {run} --precision fp64", "invalid choice: 'fp64'"),
    ("cskt evaluate ViT-B16 --dataset cuhk-pedes --root {root}", "did you mean 'ViT-B/16'?"),
    ("cskt query {run} 'a man' -k 13", "-k 13: the split has 12 images; give 1 to 12"),
    ("cskt query {run} 'a man' --sheet answer", "--sheet answer: name a file that ends in .png"),
    ("cskt query {run}", "the following arguments are required: sentences"),
    ("cskt data check {run}", "holds none of CUHK-PEDES, ICFG-PEDES, RSTPReid"),
    ("cskt data check {root}/nowhere", "nowhere: no such folder"),
    ("cskt data check {root} --dataset rstpried", "unknown data set 'rstpried': did you mean 'rstpreid'?"),
    ("cskt data make {tmp} --layout cuhk", "invalid choice: 'cuhk' (choose from "),
    ("cskt data make {tmp} --train-ids -1", "-1 identities for train; expected 0 or more"),
    ("cskt data make {tmp} --captions-per-image 11", "captions_per_image is 11; expected 1 to 10"),
    ("cskt data make {root} --seed 9", "made with other ids, images_per_id, seed; choose another root"),
    ("cskt demo --output {dolls} --train-ids 11", "made with other ids; choose another root: --output FOLDER"),
    ("cskt demo --output {tmp} --train-ids 3", "--train-ids and --test-ids: give at least 10 each"),
    (
        "cskt demo --output {tmp} --train-ids 10 --test-ids 10 --epochs 0",
        "loop.num_epochs: input should be greater than 0",
    ),
    ("{train} --config cskt-refrence", "unknown recipe 'cskt-refrence': did you mean 'cskt-reference'?"),
    ("{train} --config {tmp}/nowhere.yaml", "nowhere.yaml: no such file"),
    ("{train} --loss.weights '{{sdmm: 1}}'", "unknown loss 'sdmm': did you mean 'sdm'?"),
    ("{train} --loss.weights '{{}}'", "loss.weights: "),
    ("{train} --optim.learning-rate 1", "unknown flag --optim.learning-rate: "),
    ("{train} --optm.lr 1", "unknown flag --optm.lr: did you mean --optim.lr?"),
    ("{train} --lr fast", "optim.lr: input should be a valid number"),
    ("{train} --lr -1", "overrides: optim.lr: input should be greater than 0, got -1"),
    ("{train} --num-epochs 1.5", "loop.num_epochs: input should be a valid integer"),
    ("{train} --flip-probability 2", "augment.flip_probability: input should be less than or equal to 1"),
    ("{train} --erase-area 0.5,0.1", "erase_area (0.5, 0.1) is not a range"),
    ("{train} --erase-area 0.5", "augment.erase_area"),
    ("{train} --milestones 10,often", "optim.milestones.1: input should be a valid integer"),
    ("{train} --lr none", "optim.lr: input should be a valid number"),
    ("{train} --directions sideways", "prompts.directions: input should be 'none', 'text', 'vision'"),
    ("{train} --dataset cuhk-pedse", "unknown data set 'cuhk-pedse': did you mean 'cuhk-pedes'?"),
    ("{train} --depth 13", "depth"),
    ("{train} --parts.up-person.prefix-length 0", "parts.up_person: prefix_length: input should be greater than 0"),
    ("{train} --parts.dm-adapter.num-experts 1", "parts.dm_adapter: topk 2 is above num_experts 1"),
    ("{train} --data.noise-file {root}/n.npy", "n.npy: no such file"),
    ("{train} --length 40", "prompt"),
    ("{train} --image-height 4", "holds no patch of 8"),
    ("{train} --backbone.name {root}/clip.pt", "clip.pt': no such file"),
    ("{train} --output {run}", "already holds a run; resume it (--resume {run}) or name another folder"),
    ("cskt train --resume {tmp}/nowhere", "nowhere: no such folder"),
    ("cskt train --resume {tmp}", "config.yaml: no such file"),
    ("cskt train --resume {run} --config demo", "leave out --config and --output"),
    ("cskt train --resume {run} --output {tmp}/new", "leave out --config and --output"),
    (
        "cskt train --resume {run} --lr 0.5",
        "made with another config (optim.lr: 0.01 -> 0.5); use the same or start a new",
    ),
    ("cskt train --resume {run} --num-epochs 9", "loop.num_epochs: 2 -> 9"),
    ("cskt export {run}", "one of the arguments --merge --as-backbone --format is required"),
    ("cskt export {run} --as-backbone {tmp}/b.safetensors", "has method parts (prompts.text.0, ...)"),
    ("cskt export {run} --merge {tmp}/m.safetensors --half", "give them with --as-backbone"),
    ("cskt export {run} --merge {tmp}/m.pt", "m.pt: name a file that ends in .safetensors"),
    ("cskt export {run} --as-backbone {tmp}", "--as-backbone {tmp}: name a file that ends in .safetensors"),
    ("cskt export {root} --merge {tmp}/m.safetensors", "no weight file; expected one of"),
    ("cskt export {root} --format released", "no run folder (it has no config.yaml), which --format released takes"),
    ("cskt export {root} --as-backbone {tmp}/m.safetensors", "which --as-backbone takes; --merge and --format onnx or"),
    ("python test.py", "the following arguments are required: --config_file"),
    *(
        (command.format(long="x" * 300), "File name too long")
        for command in (
            "cskt evaluate {long}",
            "cskt data check {long}",
            "cskt calibrate {long}",
            "cskt train --config {long}.yaml",
            "{{train}} --init-from {long}",
            "cskt evaluate clip-tiny --dataset jsonl --root {long}",
            "python train.py --pretrain_choice {long}",
            "python test.py --config_file {long}",
        )
    ),
    ("python test.py --config_file {tmp}/configs.yaml", "configs.yaml: no such file"),
    ("python test.py --config_file {run}/configs.yaml --dataset_name RSTPried", "did you mean 'rstpreid'?"),
]


@pytest.fixture(scope="module")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a demo has drawn other people."""
    folder = tmp_path_factory.mktemp("demo")
    done(f"cskt data make {folder / 'data'} --train-ids 2 --val-ids 1 --test-ids 1")
    return folder


@pytest.fixture
def places(run: Path, root: Path, demo_data: Path, train_command: str, tmp_path: Path) -> dict[str, str]:
    """Values for the braces in `WORDS`."""
    new = f"{train_command} --output {tmp_path / 'new'}"
    return {"run": str(run), "root": str(root), "tmp": str(tmp_path), "train": new, "dolls": str(demo_data)}


@pytest.mark.parametrize(("command", "reason"), WORDS, ids=[command for command, _ in WORDS])
def test_words(command: str, reason: str, places: dict[str, str], tmp_path: Path) -> None:
    assert reason.format(**places) in typed(command.format(**places)).refusal()
    assert not (tmp_path / "new").exists()


CONFIGS = [
    ("optim: {lr: 1e-4}\noptm: {eps: 1}", "unknown key 'optm': did you mean 'optim'?"),
    ("optim: {learning_rate: 1}", "unknown key 'optim.learning_rate': "),
    ("lr: 1", "unknown key 'lr': did you mean 'optim.lr'?"),
    ("optim: {lr: quick}", "optim.lr: input should be a valid number"),
    ("optim: {beta1: 1.0}", "optim.beta1: input should be less than 1, got 1.0"),
    ("data: {batch_size: yes}", "data.batch_size: "),
    ("prompts: 4", "prompts: "),
    ("- a\n- b", "expected 'key: value' lines, found list"),
    ("optim: {lr: [", "not plain YAML"),
    ("name: \x00", "not plain YAML"),
]


@pytest.mark.parametrize(("text", "reason"), CONFIGS)
def test_config_file(text: str, reason: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text)
    refusal = typed(f"cskt train --config {recipe} --output {tmp_path / 'run'}").refusal()
    assert refusal.startswith(f"{recipe}: ") and reason in refusal
