"""Weight files, checkpoints and archives that lie or mean ill: one line, no code run, little memory."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import operator
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import in_a_process, run_commands, taken_or_refused
from hostile_images import encoded, picture
from hostile_weights import PICKLES, Call, lying, overlapping, rewritten
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import cskt
from cskt.config import load_config
from cskt.embed.exported import read_facts
from cskt.gallery.gallery import Gallery
from cskt.model.io.native import kind_of, read_backbone, read_method, read_safetensors, save_weights
from cskt.model.io.released.reader import read_released
from cskt.model.io.tensors import read_tensors
from cskt.training import checkpoint
from cskt.training.loop import train
from fault_tries import LONG, record
from pickled_trap import Trap
from tiny_run import quick_config

TEST = "tests/faults/test_hostile_weights.py"


@pytest.fixture(autouse=True)
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that hostile code would make; every test runs in a folder of its own, in which it would appear."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "here" / "canary"
    assert not list((tmp_path / "here").iterdir()), "no code is run"


@pytest.fixture(scope="session")
def run(dolls: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run."""
    return train(quick_config(dolls, tiny_backbone), tmp_path_factory.mktemp("runs") / "run").folder


def load(path: Path) -> object:
    return cskt.load(path, device="cpu")


# --- safetensors

HARMLESS = {"a tensor twice"}
"""The last of the two counts, and has another shape or not."""


def test_safetensors_that_lie(tmp_path: Path, tiny_backbone: Path) -> None:
    path = tmp_path / "clip.safetensors"
    forged = lying(tiny_backbone.read_bytes())
    for kind, content in forged.items():
        path.write_bytes(content)
        for read in (load, kind_of, read_tensors, read_backbone, read_method):
            message = taken_or_refused(partial(read, path))
            assert read is not load or message or kind in HARMLESS, f"{kind}: taken"
            assert not message or str(path) in message, message
    record("safetensors that lie", tried=len(forged), test=TEST)


@settings(
    max_examples=3000 if LONG else 100, derandomize=True, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(changes=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=4))
def test_safetensors_altered_anywhere(tmp_path: Path, tiny_backbone: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(tiny_backbone.read_bytes()[:200_000])
    for place, value in changes:
        data[place] = value
    (tmp_path / "clip.safetensors").write_bytes(data)
    assert taken_or_refused(lambda: read_safetensors(tmp_path / "clip.safetensors"))


WRONG_TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "NaN": lambda value: torch.full_like(value, torch.nan),
    "one NaN": lambda value: value.flatten().index_fill(0, torch.tensor([3]), torch.nan).view_as(value),
    "infinity": lambda value: torch.full_like(value, torch.inf),
    "whole numbers": lambda value: value.long(),
    "truth values": lambda value: value > 0,
    "complex numbers": lambda value: value.to(torch.complex64),
    "another shape": lambda value: value[..., :1].clone(),
    "no dimension": lambda value: torch.tensor(1.0),
    "nothing in it": lambda value: value[:0].clone(),
    "transposed": lambda value: value.flatten()[None].clone(),
}


def test_wrong_tensors(tmp_path: Path, run: Path, tiny_backbone: Path) -> None:
    """In a backbone and in a run: refused in a line that names the tensor, for one NaN makes every score NaN."""
    num_tried = 0
    for source in (tiny_backbone, run / "best.safetensors"):
        tensors, metadata = read_safetensors(source)
        name = max(name for name in tensors if tensors[name].ndim == 2)
        path = tmp_path / "x.safetensors"
        for kind, change in WRONG_TENSORS.items():
            save_file({**tensors, name: change(tensors[name])}, path, metadata=metadata)
            message = taken_or_refused(partial(load, path))
            assert name in message and str(path) in message, f"{kind}: {message or 'taken'}"
            num_tried += 1
        for kind, changed in {
            "one missing": {key: value for key, value in tensors.items() if key != name},
            "one more": {**tensors, "vision.extra": torch.zeros(1)},
            "none": {"x": torch.zeros(1)},
        }.items():
            save_file(changed, path, metadata=metadata)
            assert taken_or_refused(partial(load, path)), kind
            num_tried += 1
    record("weights of NaN, of a wrong type or shape, missing or too many", tried=num_tried, test=TEST)


# --- pickles and archives


def script(path: Path) -> Path:
    """A TorchScript archive."""

    class Root(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.weight

    with pytest.warns(DeprecationWarning):
        torch.jit.script(Root()).save(str(path))
    return path


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_pickles_run_nothing(tmp_path: Path, canary: Path) -> None:
    """Each as the description of a `torch.save` archive, of a TorchScript archive, and as a bare file."""
    plain, scripted = tmp_path / "plain.pt", script(tmp_path / "script.pt")
    torch.save({"x": torch.zeros(3)}, plain)
    path, num_tried = tmp_path / "x.pt", 0
    for kind, pickled in PICKLES.items():
        for archive in (plain, scripted, None):
            if archive is None:
                path.write_bytes(pickled)
            else:
                rewritten(archive, path, pickled)
            message = taken_or_refused(lambda: load(path))
            assert str(path) in message, f"{kind}: {message or 'taken'}"
            assert not canary.exists()
            num_tried += 1
    record("pickles and archives that would run code, unfold or lead out", tried=num_tried, test=TEST)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_canary_sings_only_where_code_runs(legacy: bool, tmp_path: Path, canary: Path, run: Path) -> None:
    trap = tmp_path / "trap.pt"
    torch.save({"x": torch.zeros(2), "y": Trap(canary)}, trap, _use_new_zipfile_serialization=not legacy)
    torch.load(trap, weights_only=False)
    canary.rmdir()  # it works where it is let
    released = tmp_path / "released"
    released.mkdir()
    (released / "configs.yaml").write_text("depth: 2\n", encoding="utf-8")
    shutil.copy(trap, released / "best.pth")
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.copy(trap, copy / "last.pt")
    (copy / "last.previous.pt").unlink(missing_ok=True)
    config = config_of(copy)
    for read in (
        lambda: load(trap),
        lambda: read_released(released),
        lambda: load(released),
        lambda: train(config, copy, resume=True),
    ):
        assert "nothing in it was executed" in taken_or_refused(read)
        assert not canary.exists()
    record("pickles and archives that would run code, unfold or lead out", tried=4, test=TEST)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_code_beside_the_tensors_is_not_run(legacy: bool, protocol: int, tmp_path: Path, canary: Path) -> None:
    """In every protocol, and however the function is named: refused, or passed over by name alone."""
    code = f"__import__('os').mkdir({str(canary)!r})"
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (os.mkdir, (str(canary),)), (os.system, (f"mkdir {canary}",)), (exec, (code,)), (eval, (code,)),
        (importlib.import_module, ("os",)), (subprocess.Popen, (["mkdir", str(canary)],)),
        (pickle.loads, (pickle.dumps(Trap(canary)),)), (shutil.copy, (str(tmp_path / "x.pt"), str(canary))),
        (operator.methodcaller, ("mkdir",)),
    ]  # fmt: skip
    path = tmp_path / "x.pt"
    for function, arguments in calls:
        content = {"state_dict": {"visual.proj": torch.zeros(2)}, "args": Call(function, arguments)}
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
        message = taken_or_refused(lambda: load(path))
        assert "nothing in it was executed" in message, f"{function}: {message or 'taken'}"
        assert not canary.exists()
    torch.save(
        {"state_dict": {"visual.proj": torch.zeros(2)}, "args": Call(taken_or_refused, (canary.mkdir,))},
        path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy,
    )  # fmt: skip
    assert "fetch" not in taken_or_refused(lambda: load(path)) and not canary.exists()
    record("pickles and archives that would run code, unfold or lead out", tried=len(calls), test=TEST)


def config_of(folder: Path) -> Any:
    return load_config(folder / "config.yaml")


def test_archives_that_unfold_or_lead_out(tmp_path: Path) -> None:
    plain, path = tmp_path / "plain.pt", tmp_path / "x.pt"
    torch.save({"x": torch.zeros(10)}, plain)
    scripted = script(tmp_path / "script.pt")
    for prefix in ("..", "../..", "/tmp", "C:", "a\\..\\b", "\u202e"):
        for archive in (plain, scripted):
            assert taken_or_refused(partial(load, rewritten(archive, path, None, prefix=prefix)))
    for make in (
        lambda: rewritten(plain, path, None, compress=True),
        lambda: rewritten(scripted, path, None, compress=True),
        lambda: overlapping(path, 1000),
    ):
        make()
        message = taken_or_refused(lambda: read_tensors(path))
        assert "compressed" in message or "more bytes than the file has" in message
    whole = plain.read_bytes()
    cuts = range(0, len(whole), max(1, len(whole) // (len(whole) if LONG else 40)))
    for length in cuts:
        path.write_bytes(whole[:length])
        assert taken_or_refused(lambda: read_tensors(path)), f"taken, though cut after {length} bytes"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "no weights")
    assert taken_or_refused(lambda: read_tensors(path))
    inside = sorted(found.name for found in tmp_path.iterdir())
    assert inside == ["here", "plain.pt", "script.pt", "x.pt"], "nothing is unpacked"
    record("pickles and archives that would run code, unfold or lead out", tried=16 + len(cuts), test=TEST)


TENSORS: dict[str, Callable[[], Any]] = {
    "unfolds to a terabyte": lambda: torch.zeros(1).expand(10**6, 10**6),
    "sparse": lambda: torch.zeros(3, 3).to_sparse(),
    "without memory": lambda: torch.zeros(3, 3, device="meta"),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(3, 3), 0.1, 0, torch.qint8),
    "a huge number": lambda: 10**100,
    "a text": lambda: "hello",
    "a list": lambda: [torch.zeros(1)],
    "a mapping": lambda: {"a": torch.zeros(1)},
    "bytes": lambda: b"hello",
    "a type": lambda: torch.float32,
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_checkpoints_of_odd_things(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for kind, make in TENSORS.items():
        for content in ({"visual.proj": make()}, {"state_dict": {"visual.proj": make()}}, make(), {1: make()}):
            torch.save(content, path)
            message = taken_or_refused(partial(load, path))
            assert str(path) in message, f"{kind}: {message or 'taken'}"
    record("checkpoints and model folders with wrong parts", tried=4 * len(TENSORS), test=TEST)


# --- runs, released and exported folders


def test_last_pt_of_wrong_parts(tmp_path: Path, run: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "last.previous.pt").unlink(missing_ok=True)
    content = torch.load(copy / "last.pt", weights_only=True)
    content["progress"]["epoch"] = 0
    config = config_of(copy)
    junk = (None, "x", {"a": 1}, *((1, [], {}, [1], torch.zeros(2)) if LONG else ()))
    assert content.keys() >= checkpoint.REQUIRED_ENTRIES
    num_tried = 0
    for part in sorted(checkpoint.REQUIRED_ENTRIES):
        for value in junk:
            torch.save({**content, part: value}, copy / "last.pt")
            message = taken_or_refused(lambda: train(config, copy, resume=True), seconds=60)
            # Without fp16 the scaler does nothing, and without heads there is no objective to restore.
            harmless = part == "scaler" or (part, value) == ("objective", {})
            assert harmless or str(copy / "last.pt") in message, f"{part} = {value!r}: {message or 'taken'}"
            num_tried += 1
    name = next(iter(content["model"]))
    broken = {**content["model"], name: torch.full_like(content["model"][name], torch.nan)}
    torch.save({**content, "model": broken}, copy / "last.pt")
    assert "NaN" in taken_or_refused(lambda: train(config, copy, resume=True))
    record("checkpoints and model folders with wrong parts", tried=num_tried + 1, test=TEST)


def test_method_files_of_wrong_notes(tmp_path: Path, run: Path) -> None:
    file = read_method(run / "best.safetensors")
    path = tmp_path / "best.safetensors"
    kinds: dict[str, dict[str, Any]] = {
        "no config": {},
        "an unknown key": {**file.config, "more": 1},
        "a section that is none": {**file.config, "prompts": 7},
        "a depth of 10^9": {**file.config, "prompts": {**file.config["prompts"], "depth": 10**9}},
        "a length of 10^9": {**file.config, "prompts": {**file.config["prompts"], "length": 10**9}},
        "a length of 10^5": {**file.config, "prompts": {**file.config["prompts"], "length": 10**5}},
        "a bottleneck of nothing": {**file.config, "adapters": {**file.config["adapters"], "reduction": 10**9}},
        "a rank of 10^9": {**file.config, "lora": {**file.config["lora"], "sides": "both", "rank": 10**9}},
        "a backbone far away": {**file.config, "backbone": {**file.config["backbone"], "name": "/etc/passwd"}},
    }
    for kind, config in kinds.items():
        save_weights(path, dataclasses.replace(file, config=config))
        assert str(path) in taken_or_refused(lambda: load(path)), kind
    record("checkpoints and model folders with wrong parts", tried=len(kinds), test=TEST)


def test_released_and_exported_folders(tmp_path: Path) -> None:
    released = tmp_path / "released"
    released.mkdir()
    torch.save({"model": {"base_model.visual.proj": torch.zeros(2, 2)}}, released / "best.pth")
    yamls = {
        "nothing": "", "a list": "- 1", "code": "a: !!python/object/apply:os.mkdir [canary]",
        "a tuple": "!!python/tuple [1]",
        "a size of text": "img_size: x", "a huge size": f"img_size: [{10**9}, {10**9}]\nstride_size: 1",
        "a key twice": "depth: 1\ndepth: 2", "NaN": "lr: .nan", "deep": "a: " + "[" * 5000,
        "a depth of text": "depth: x",
    }  # fmt: skip
    for kind, text in yamls.items():
        (released / "configs.yaml").write_text(text, encoding="utf-8")
        assert str(released) in taken_or_refused(lambda: load(released)), kind
    exported = tmp_path / "exported"
    exported.mkdir()
    facts = {
        "nothing": "", "a list": "[]", "null": "null", "no version": "{}", "a version alone": '{"format_version": 1}',
        "a newer one": '{"format_version": 99}', "a version of text": '{"format_version": "x"}', "deep": "[" * 100_000,
        "NaN": '{"format_version": NaN}', "a way out": json.dumps({"format_version": 1, "sha256": {"../x": "0"}}),
        "UTF-16": "\ufeff\ud7ff", "a number of 10^5 digits": '{"format_version": ' + "9" * 100_000 + "}",
    }  # fmt: skip
    for kind, text in facts.items():
        (exported / "exported.json").write_text(text, encoding="utf-16" if kind == "UTF-16" else "utf-8")
        assert str(exported) in taken_or_refused(lambda: read_facts(exported)), kind
        assert str(exported) in taken_or_refused(lambda: load(exported)), kind
    record("checkpoints and model folders with wrong parts", tried=len(yamls) + len(facts), test=TEST)


def test_folders_and_pipes_for_weights(tmp_path: Path) -> None:
    places = [tmp_path / "folder.pt", tmp_path / "folder.safetensors", tmp_path / "empty.pt", tmp_path / "loop.pt"]
    for folder in places[:2]:
        folder.mkdir()
    places[2].touch()
    if sys.platform != "win32":
        places[3].symlink_to("loop.pt")
        os.mkfifo(tmp_path / "pipe.pt")
        (tmp_path / "zero.pt").symlink_to("/dev/zero")
        places += [tmp_path / "pipe.pt", tmp_path / "zero.pt"]
    for path in places:
        assert taken_or_refused(partial(load, path)), path.name
    record("checkpoints and model folders with wrong parts", tried=len(places), test=TEST)


# --- archives of crops


OUTSIDE = ("../out.jpg", "/tmp/out.jpg", "a/../../out.jpg", "a\\out.jpg", "\u202egpj.jpg")
"""Names of crops that are paths to elsewhere, or read as something else."""


def archive_of(path: Path, image: bytes) -> Path:
    """Members that lead out, link out, or are no files; and one that is a crop."""
    with tarfile.open(path, "w") as archive:
        for name in (*OUTSIDE, "x" * 600 + ".jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(image)
            archive.addfile(member, io.BytesIO(image))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo(f"link{kind.decode()}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("good/1.jpg")
        member.size = len(image)
        archive.addfile(member, io.BytesIO(image))
    return path


def test_archives_of_crops(tmp_path: Path, tiny_backbone: Path) -> None:
    image = encoded(picture(), "JPEG")
    encoder = cskt.load(tiny_backbone, device="cpu", num_workers=0)
    whole = archive_of(tmp_path / "whole.tar", image)
    before = sorted(path.name for path in tmp_path.iterdir())
    with Gallery.create(tmp_path / "gallery", encoder) as gallery:
        report = gallery.add_shards([whole])
        assert report.added == gallery.count() == 1
        assert {name for name, _ in report.unreadable} >= {*OUTSIDE}
        data = whole.read_bytes()
        for length in range(0, len(data) - 11 * 512, len(data) // (200 if LONG else 12)):
            (tmp_path / "cut.tar").write_bytes(data[:length])
            taken_or_refused(lambda: gallery.add_shards([tmp_path / "cut.tar"]))
        for content in (b"", b"PAR1", bytes(10_000), b"PAR1" + bytes(1000) + b"\xff\xff\xff\x7fPAR1"):
            for name in ("x.parquet", "x.tar"):
                (tmp_path / name).write_bytes(content)
                taken_or_refused(partial(gallery.add_shards, [tmp_path / name]))
        assert gallery.count() == 1
    left = {path.name for path in tmp_path.iterdir()} - set(before)
    assert left == {"gallery", "cut.tar", "x.parquet", "x.tar"} and not Path("/tmp/out.jpg").exists()
    record("pickles and archives that would run code, unfold or lead out", tried=12 + 9 + 8, test=TEST)


# --- memory, and the commands


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="measures with the module resource")
def test_bombs_fill_no_memory(tmp_path: Path) -> None:
    """Two gigabytes of zeros, packed, are two megabytes; entries over each other are a thousand times their file."""
    packed, over, spaces = tmp_path / "packed.pt", tmp_path / "over.pt", tmp_path / "spaces.safetensors"
    torch.save({"x": torch.zeros(10)}, tmp_path / "plain.pt")
    num_bytes = 2 * 10**9 if LONG else 3 * 10**8
    with zipfile.ZipFile(tmp_path / "plain.pt") as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            with new.open(entry.filename, "w") as stream:
                if entry.filename.endswith("/data/0"):
                    for _ in range(num_bytes // 10**7):
                        stream.write(bytes(10**7))
                else:
                    stream.write(old.read(entry))
    overlapping(over, 1000)
    spaces.write_bytes(lying_spaces())
    readings = [f"load_backbone(BackboneConfig(name={str(path)!r}))" for path in (packed, over, spaces)]
    preparation = "from cskt.config import BackboneConfig\nfrom cskt.model.io.weights import load_backbone"
    for used in in_a_process(preparation, readings):
        assert used.reason and used.more_bytes < 250e6, f"{used.more_bytes / 1e6:.0f} MB"
    record("pickles and archives that would run code, unfold or lead out", tried=len(readings), test=TEST)


def lying_spaces() -> bytes:
    return (9 * 10**7 + 2).to_bytes(8, "little") + b"{" + b" " * (9 * 10**7) + b"}"


@pytest.mark.slow
def test_commands_end_in_one_line(tmp_path: Path, dolls: Path, tiny_backbone: Path) -> None:
    """The whole program: exit code 2, one line on stderr, no traceback, nothing from a library beside it."""
    bad_clip, bad_image = tmp_path / "clip.pt", tmp_path / "x.jpg"
    torch.save({"x": torch.zeros(2), "y": Trap(Path.cwd() / "canary")}, bad_clip)
    bad_image.write_bytes(b"\xff\xd8\xff\xe0" + bytes(1000))
    root = shutil.copytree(dolls, tmp_path / "data")
    next(iter(sorted(root.rglob("*.jpg")))).write_bytes(b"")
    corrupt = shutil.copytree(dolls, tmp_path / "corrupt")
    next(iter(corrupt.rglob("reid_raw.json"))).write_text("[" * 100_000, encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: !!python/object/apply:os.mkdir [canary]\n", encoding="utf-8")
    gallery = tmp_path / "gallery"
    Gallery.create(gallery, cskt.load(tiny_backbone, device="cpu")).close()
    commands: list[list[str | Path]] = [
        ["evaluate", bad_clip, "--dataset", "cuhk-pedes", "--root", dolls],
        ["evaluate", tiny_backbone, "--dataset", "cuhk-pedes", "--root", corrupt],
        ["train", "--config", recipe, "--root", dolls],
        ["search", gallery, "--image", bad_image],
    ]
    commands += [["index", tmp_path / "new", "--images", bad_image]]
    if LONG:
        commands += [
            ["train", "--config", "cskt", "--root", corrupt, "--output", tmp_path / "run"],
            ["train", "--config", "cskt", "--root", dolls, "--backbone.name", bad_clip, "--output", tmp_path / "run"],
            ["index", gallery, "--images", root, "--metadata", bad_image],
            ["evaluate", bad_image], ["report", bad_image], ["export", bad_clip, "--merge", tmp_path / "m.safetensors"],
        ]  # fmt: skip
    message = run_commands(commands)
    assert (
        "nothing in it was executed" in message[0] and "not plain YAML" in message[2] and str(bad_image) in message[3]
    )
    record("commands on hostile files", tried=len(commands), test=TEST)
