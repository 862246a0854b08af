"""`cskt push` and `hf:owner/name`: the shared folder, its model card, and a round trip through a stand-in hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import yaml
from command_line import Outcome, contents, done, typed
from hub_server import TOKEN, Hub, serving

import cskt
from cskt.config import RunConfig, load_config
from cskt.config.training_sections import MixedDataset
from cskt.embed.hub import HubName, parse_hub_name
from cskt.export.shared_folder import shown_name, without_places
from cskt.export.upload import upload

IN_ONE_PROCESS = """
import contextlib, io, json, sys
from cskt.cli.main import main
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(json.loads(line))
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def commands(lines: Sequence[str], folder: Path, environment: dict[str, str]) -> list[Outcome]:
    """Run commands one after the other in a process of their own, for huggingface_hub reads HF_ENDPOINT once."""
    finished = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS],
        input="".join(json.dumps(line.split()[1:]) + "\n" for line in lines),
        cwd=folder, env=os.environ | environment, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return [Outcome(*json.loads(line)) for line in finished.stdout.splitlines()]


@pytest.fixture(scope="module")
def evaluated(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run, with results on test alone."""
    folder = without_results(run, tmp_path_factory.mktemp("pushed"))
    done(f"cskt evaluate {folder}")
    return folder


def without_results(run: Path, parent: Path) -> Path:
    """Copy the run, which other tests may have evaluated, without its results."""
    return shutil.copytree(run, parent / "run", ignore=shutil.ignore_patterns("evaluations"))


def test_shared_folder_loads_and_names_no_place(
    evaluated: Path,
    tiny_backbone: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = tmp_path_factory.getbasetemp()  # above all paths in the config of the run
    monkeypatch.setenv("HOME", str(home))
    assert str(home).encode() in (evaluated / "config.yaml").read_bytes()
    before = contents(evaluated)
    done(f"cskt push {evaluated} lab/cskt --license mit --dry-run {tmp_path}/shared")
    assert contents(evaluated) == before
    files = {path.name: path.read_bytes() for path in (tmp_path / "shared").iterdir()}
    assert files.keys() == {"README.md", "best.safetensors", "config.yaml"}
    places = [str(evaluated.parent), str(tiny_backbone.parent), str(home), "paperdoll", "imgs"]
    assert not [(name, place) for name, data in files.items() for place in places if place.encode() in data]
    source = cskt.load(evaluated, device="cpu")
    assert cskt.load(tmp_path / "shared", tiny_backbone, "cpu").fingerprint == source.fingerprint
    with pytest.raises(cskt.errors.CsktError, match=r"trained over tiny.safetensors with SHA-256 .*; give that file"):
        cskt.load(tmp_path / "shared", device="cpu")
    assert load_config(tmp_path / "shared" / "config.yaml").data.root == "data"


def test_model_card(evaluated: Path, tmp_path: Path) -> None:
    done(f"cskt push {evaluated} hf:lab/cskt --license mit --dry-run {tmp_path}/shared")
    _, metadata, text = (tmp_path / "shared" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    facts = yaml.safe_load(metadata)
    assert (facts["library_name"], facts["license"], facts["language"]) == ("cskt", "mit", "en")
    [figures] = facts["model-index"][0]["results"]
    [result] = [json.loads(path.read_text()) for path in (evaluated / "evaluations").glob("*.json")]
    r1 = round(100 * result["metrics"]["t2i"]["r1"], 2)
    assert {"type": "r1", "value": r1, "name": "R1"} in figures["metrics"]
    assert f"| {r1:.2f} (" in text.split("cuhk-pedes test: ")[1]
    for line in (
        'encoder = cskt.load("hf:lab/cskt")', "backbone `tiny.safetensors` with SHA-256", "prompts, adapters",
        "| losses | sdm 1 |", "cuhk-pedes, 8 people", "selected on the val split", "These weights: `mit`",
    ):  # fmt: skip
        assert line in text
    assert "\n\n\n" not in text


def test_card_without_results_says_so(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    done(f"cskt push {without_results(run, tmp_path)} lab/cskt --dry-run {tmp_path}/shared")
    text = (tmp_path / "shared" / "README.md").read_text(encoding="utf-8")
    assert "None: the model was not evaluated" in text and "has not stated a licence" in text
    assert "no results for its model card; for figures type: " in caplog.text


def test_merged_file_is_shared_whole(run: Path, tmp_path: Path) -> None:
    done(f"cskt export {run} --merge {tmp_path}/whole.safetensors")
    done(f"cskt push {tmp_path}/whole.safetensors lab/cskt --dry-run {tmp_path}/shared")
    assert "It needs no other weights" in (tmp_path / "shared" / "README.md").read_text(encoding="utf-8")
    shared, whole = (cskt.load(tmp_path / name, device="cpu") for name in ("shared", "whole.safetensors"))
    assert shared.fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("{run} lab", "write hf:owner/name"),
        ("{run} lab/a/b", "write hf:owner/name"),
        ("{run} lab/cskt@v1", "--revision v1"),
        ("{tmp}/none lab/cskt", "no such run, file or export"),
        ("{backbone} lab/cskt --dry-run {tmp}/new", "no run with best.safetensors"),
        ("{run} lab/cskt --dry-run {run}", "holds something already"),
        ("{run} lab/cskt", "no token of the Hugging Face Hub; log in with 'hf auth login'"),
    ],
)
def test_refusals(
    words: str, reason: str, run: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cskt.export.upload.get_token", lambda: None)
    assert reason in typed(f"cskt push {words.format(run=run, tmp=tmp_path, backbone=tiny_backbone)}").refusal()


class FakeApi:
    """An `HfApi` of a public repository without files, whose calls raise the errors that a test sets."""

    errors: ClassVar[dict[str, Exception]] = {}

    def __init__(self, **_: str) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*_: object, **__: object) -> Any:
            if name in self.errors:
                raise self.errors[name]
            return SimpleNamespace(private=False, oid="0" * 40) if name != "list_repo_files" else []

        return call


@pytest.mark.parametrize(
    ("call", "error", "reason"),
    [
        ("create_repo", OSError("no route"), "lab/cskt: cannot be uploaded: no route; try again"),
        ("create_commit", RuntimeError("large file"), "lab/cskt: cannot be uploaded: large file; try again"),
        ("create_commit", ValueError("over quota"), "lab/cskt: cannot be uploaded: over quota; try again"),
        ("list_repo_files", RuntimeError("a bug"), None),
        ("list_repo_files", ValueError("a bug"), None),
    ],
)
def test_only_errors_of_the_hub_are_errors_of_the_user(
    call: str, error: Exception, reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cskt.export.upload.HfApi", FakeApi)
    assert upload(tmp_path, "lab/cskt", version="1", message="m") == f"hf:lab/cskt@{'0' * 40}"
    monkeypatch.setattr(FakeApi, "errors", {call: error})
    with pytest.raises(Exception) as raised:
        upload(tmp_path, "lab/cskt", version="1", message="m")
    if reason is None:
        assert raised.value is error
    else:
        assert type(raised.value) is cskt.errors.CsktError and str(raised.value) == reason


def test_names_of_the_hub() -> None:
    assert parse_hub_name("hf:lab/cskt.v1") == HubName("lab/cskt.v1")
    assert parse_hub_name("hf:lab/cskt@refs/pr/1") == HubName("lab/cskt", "refs/pr/1")
    for name in ("hf:", "hf:cskt", "hf:lab/cskt@", "hf:lab/../cskt", "hf:lab/cskt/more", "hf:../cskt", "hf:lab/c t"):
        with pytest.raises(cskt.errors.CsktError, match="write hf:owner/name"):
            cskt.load(name)


def test_configs_lose_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "clip").touch()
    names = {
        "ViT-B/16": "ViT-B/16", "clip-tiny": "clip-tiny", "openai/clip": "openai/clip",
        "hf:lab/cskt@v1": "hf:lab/cskt@v1",
        "weights/clip": "clip", "/home/me/clip.pt": "clip.pt", "~/clip.pt": "clip.pt", "C:\\me\\clip.pt": "clip.pt",
    }  # fmt: skip
    assert {name: shown_name(name) for name in names} == names
    config = load_config(
        "cskt",
        {"output_dir": "/home/me/logs", "init_from": "/home/me/run", "backbone.name": "/home/me/clip.pt",
         "data.root": "/home/me/data", "data.cache_dir": "/home/me/cache",
         "hooks.bank": {
             "path": "/home/me/bank.npy", "here": "weights/clip", "up": "../me/bank.npy", "kind": "mean/max",
             "list": ["/home/me/a.npy", "~/b.npy", ["weights/clip"], {"/home/me/c": "C:\\me\\c.npy"}, "plain", 3],
         },
         "data.mix": [{"root": "/home/me/more", "dataset": "jsonl"}]},
    )  # fmt: skip
    shared = without_places(config)
    assert "/home" not in repr(shared)
    assert shared.data.mix == (MixedDataset(dataset="jsonl"),)
    assert shared.init_from == "run"
    assert shared.hooks["bank"] == {
        "path": "bank.npy", "here": "clip", "up": "bank.npy", "kind": "mean/max",
        "list": ["a.npy", "b.npy", ["clip"], {"c": "c.npy"}, "plain", 3],
    }  # fmt: skip
    for init_from, shown in (("runs/first", "first"), ("hf:lab/cskt@v1", "hf:lab/cskt@v1"), ("~/run", "run")):
        assert without_places(RunConfig(init_from=init_from)).init_from == shown
    assert without_places(RunConfig()) == RunConfig()


@pytest.mark.slow
def test_round_trip(evaluated: Path, root: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    hub = Hub()
    hub.put("stranger/model", {"last.pt": b"pickle", "plugin.py": b"raise SystemExit", "README.md": b"hello"})
    hub.put("stranger/junk", {"best.safetensors": b"junk", "last.pt": b"pickle"})
    model = f"hf:lab/cskt --backbone {tiny_backbone}"
    with serving(hub) as address:
        environment = {"HF_ENDPOINT": address, "HF_TOKEN": TOKEN, "HF_HOME": f"{tmp_path}/hf"}
        environment |= {"HF_HUB_DISABLE_XET": "1"}  # the stand-in stores large files by Git LFS
        hub.put("lab/cskt", {"exported.json": b"of an earlier push", "notes.txt": b"mine"})
        pushed, metrics, index, private, again, of_branch, *refused = commands(
            [
                f"cskt push {evaluated} lab/cskt",
                f"cskt evaluate {model} --root {root} --json",
                f"cskt index gallery --images {root}/CUHK-PEDES/imgs --model {model}",
                f"cskt push {evaluated} lab/private --private --revision v1",
                f"cskt push {evaluated} lab/private --private --revision v1",
                f"cskt evaluate hf:lab/private@v1 --backbone {tiny_backbone} --root {root} --json",
                f"cskt push {evaluated} lab/cskt --private",
                f"cskt push {evaluated} not-mine/cskt",
                f"cskt evaluate {model.replace('cskt', 'cskt@none', 1)}",
                "cskt evaluate hf:lab/none",
                "cskt evaluate hf:stranger/model",
                "cskt evaluate hf:stranger/junk",
            ],
            tmp_path,
            environment,
        )
        stored = json.loads(next((evaluated / "evaluations").glob("*.json")).read_text())["metrics"]
        assert hub.files("lab/cskt").keys() == {"README.md", "best.safetensors", "config.yaml", "notes.txt"}
        assert pushed.out.startswith(f"hf:lab/cskt@{hub.repositories['lab/cskt'].branches['main']}\n")
        assert metrics.json()["t2i"] == stored["t2i"] == of_branch.json()["t2i"]
        assert private.code == again.code == 0 and hub.repositories["lab/private"].is_private
        assert not hub.files("lab/private")
        reasons = [
            "is public already", "the Hub refused it: You don't have the rights", "no revision 'none'",
            "no such repository, or a private one", "holds no model of cskt", "cannot be read as safetensors",
        ]  # fmt: skip
        for outcome, reason in zip(refused, reasons, strict=True):
            assert reason in outcome.refusal()
        assert not [request for request in hub.requests if "last.pt" in request or "plugin.py" in request]
        [denied] = commands(
            ["cskt evaluate hf:lab/private@v1"],
            tmp_path,
            environment | {"HF_TOKEN": "another", "HF_HOME": f"{tmp_path}/other"},
        )
        assert "no such repository, or a private one" in denied.refusal()
        assert index.code == 0
        source = json.loads((tmp_path / "gallery" / "gallery.json").read_text())["model"]["path"]
        assert source == pushed.out.splitlines()[0]
        hub.put("lab/cskt", {"best.safetensors": b"of a later push"})
        hub.refused_status = 507
        search, full = commands(["cskt search gallery red", f"cskt push {evaluated} lab/cskt"], tmp_path, environment)
        assert search.code == 0, search.err  # at the commit of the gallery
        reason = "lab/cskt: the Hub refused it: the disk is full; no files were uploaded; try again"
        assert full.refusal() == reason
        assert hub.files("lab/cskt") == {"best.safetensors": b"of a later push"}
        assert TOKEN not in repr([pushed, metrics, index, private, again, of_branch, *refused, denied, search, full])

    search, lost = commands(["cskt search gallery red", "cskt evaluate hf:lab/none"], tmp_path, environment)
    assert search.code == 0, search.err  # from the cache, at the commit of the gallery
    assert "the Hub cannot be reached, and the files are not cached" in lost.refusal()
