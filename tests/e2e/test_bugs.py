"""A bug is reported as a bug wherever it occurs: never as bad input of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import done, typed
from starlette.testclient import TestClient

from cskt.errors import CsktError
from cskt.gallery.gallery import Gallery
from cskt.service.app import create_app
from cskt.service.settings import ServiceSettings

PIXELS = "cskt.embed.encoder.Encoder._pixel_features"
SEARCH = "cskt.gallery.stores.exact_search.MatrixBlock.scores"


def broadcasting_bug(*_: Any, **__: Any) -> None:
    """Raise NumPy's own error for shapes that do not match."""
    np.ones(2) + np.ones(3)


@pytest.fixture(scope="module")
def gallery(root: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery with marks in `marks.csv`; the tests do not change it."""
    folder = tmp_path_factory.mktemp("bugs") / "gallery"
    done(f"cskt index {folder} --images {root}/CUHK-PEDES --model {tiny_backbone} --device cpu")
    with Gallery.open(folder, device="cpu") as opened:
        names = [hit.image_id for hit in opened.search("a man", k=4)]
    marks = [f"a man,{name},{number % 2}" for number, name in enumerate(names)]
    (folder / "marks.csv").write_text("\n".join(["text,image,right", *marks]))
    return folder


@pytest.mark.parametrize(
    ("command", "function"),
    [
        ("cskt evaluate {run}", "cskt.evaluation.evaluate._rank_images"),
        ("cskt query {run} 'a man'", "cskt.metrics.top_k"),
        ("cskt search --model {run} 'a man'", "cskt.metrics.top_k"),
        ("cskt search {gallery} 'a man' --device cpu", "cskt.gallery.stores.lance.lance_store.streamed_candidates"),
        ("cskt index {tmp}/g --images {root}/CUHK-PEDES --device cpu", PIXELS),
        ("cskt reindex {gallery} --model clip-tiny --device cpu", PIXELS),
        ("cskt calibrate {gallery} --labelled {gallery}/marks.csv --device cpu", "cskt.cli.calibrate.calibrate"),
        ("cskt compare {run} {tmp}", "cskt.evaluation.statistics._bootstrap"),
        ("{train} --output {tmp}/new", "cskt.training.trainer.forward_backward"),
        ("python train.py --root_dir {root}", "cskt.training.loop.prepare"),
        ("python test.py --config_file {run}/configs.yaml", "cskt.evaluation.evaluate._rank_images"),
        ("cskt env", "cskt.cli.env.environment"),
        ("cskt search {gallery} 'a man' --device cpu", "cskt.gallery.manifest.check_path_text"),
        ("cskt recipes", "cskt.config.plain_yaml.PlainLoader.flatten_mapping"),
    ],
)
def test_a_bug_in_a_command_is_reported_with_its_traceback(
    command: str,
    function: str,
    run: Path,
    root: Path,
    gallery: Path,
    train_command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = command.format(run=run, root=root, gallery=gallery, train=train_command, tmp=tmp_path)
    if "compare" in command:
        done(f"cskt evaluate {run} --device cpu")
        done(f"cskt evaluate clip-tiny --dataset cuhk-pedes --root {root} --device cpu --output {tmp_path}")
    monkeypatch.setattr(function, broadcasting_bug)
    outcome = typed(words)
    assert outcome.bug() == "ValueError: operands could not be broadcast together with shapes (2,) (3,) "
    assert "in broadcasting_bug" in outcome.err


def test_a_bug_in_the_gallery_is_no_cskt_error(gallery: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = next((root / "CUHK-PEDES").rglob("*.jpg"))
    with Gallery.open(gallery, device="cpu") as opened:
        monkeypatch.setattr(PIXELS, broadcasting_bug)
        with pytest.raises(ValueError, match="could not be broadcast") as caught:
            opened.add([image], ["new.jpg"])
        assert not isinstance(caught.value, CsktError)
        assert "new.jpg" not in opened


@pytest.mark.parametrize(
    ("path", "body", "function"),
    [
        ("/api/search", {"text": "a man"}, SEARCH),
        ("/api/explain", {"text": "a man"}, "cskt.explain.patch_relevance"),
    ],
)
def test_a_bug_in_the_service_is_a_500_with_a_request_id(
    path: str,
    body: dict[str, Any],
    function: str,
    gallery: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Gallery.open(gallery, device="cpu") as opened:
        if path == "/api/explain":
            body = body | {"image_id": opened.search("a man", k=1)[0].image_id}
        app = create_app(opened, ServiceSettings(audit_log=tmp_path / "audit.jsonl"))
        with TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False) as client:
            monkeypatch.setattr(function, broadcasting_bug)
            answer = client.post(path, json=body)
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["code"] == "internal"
    assert error["request_id"] == answer.headers["x-request-id"] != ""
    assert error["request_id"] in caplog.text and "in broadcasting_bug" in caplog.text


@pytest.mark.parametrize("form", ["flag", "flag before the command", "variable"])
def test_the_traceback_of_an_error_is_shown_on_request(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "variable":
        monkeypatch.setenv("CSKT_TRACEBACK", "1")
    before, behind = ("--traceback ", "") if "before" in form else ("", " --traceback" if form == "flag" else "")
    outcome = typed(f"cskt {before}data check nowhere{behind}")
    lines = outcome.err.splitlines()
    assert outcome.code == 2
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "cskt data check: nowhere: no such folder"
    monkeypatch.setenv("CSKT_TRACEBACK", "0")
    assert typed("cskt data check nowhere").refusal() == "nowhere: no such folder"
