"""Files of version 0.1.0 keep working: a backbone, a run and a gallery that it made (see `make_fixture.py`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import cskt
from cskt.cli.main import main as cskt_command
from cskt.config import RunConfig, load_config
from cskt.evaluation.results import find_results
from cskt.gallery.gallery import Gallery
from cskt.training.events import read_events

FIXTURE = Path(__file__).parent / "v0_1_0"
EXPECTED: dict[str, Any] = json.loads((FIXTURE / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the files, with the path of the gallery's model changed to the copy."""
    copy = tmp_path / "v0_1_0"
    shutil.copytree(FIXTURE, copy)
    manifest = copy / "gallery" / "gallery.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["model"] |= {"path": str(copy / "run"), "backbone": str(copy / "backbone.safetensors")}
    manifest.write_text(json.dumps(content), encoding="utf-8")
    return copy


def test_fingerprints_are_unchanged() -> None:
    backbone = FIXTURE / "backbone.safetensors"
    run = cskt.load(FIXTURE / "run", backbone, device="cpu", precision="fp32")
    assert run.fingerprint == EXPECTED["fingerprint"]
    assert cskt.load(backbone, device="cpu").fingerprint == EXPECTED["backbone_fingerprint"]


def test_the_config_loads() -> None:
    config = load_config(FIXTURE / "run" / "config.yaml")
    assert isinstance(config, RunConfig)
    assert (config.prompts.depth, config.optim.lr, config.loop.num_epochs) == (2, 0.01, 2)


def test_events_and_results_load() -> None:
    kinds = [event["event"] for event in read_events(FIXTURE / "run")]
    assert (kinds[0], kinds[-1], kinds.count("evaluation")) == ("start", "end", 4)
    (result,) = find_results(FIXTURE / "run")
    assert (result.dataset, result.split) == ("cuhk-pedes", "test")


def test_the_gallery_answers_as_before(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cskt.device.native_bf16", lambda: False)  # the scores are those of float32
    with Gallery.open(old / "gallery", device="cpu") as gallery:
        for text, expected in EXPECTED["hits"].items():
            hits = gallery.search(text, k=7)
            assert [hit.image_id for hit in hits] == [image_id for image_id, _, _ in expected]
            assert [hit.score for hit in hits] == pytest.approx([score for _, score, _ in expected], abs=1e-5)
            assert [dict(hit.metadata) for hit in hits] == [metadata for _, _, metadata in expected]
        filtered = gallery.search(next(iter(EXPECTED["hits"])), where="camera = 'c1' AND size > 152")
        assert [hit.image_id for hit in filtered] == EXPECTED["filtered"]


def test_the_gallery_can_be_brought_up_to_date(old: Path) -> None:
    crops = old / "gallery" / "crops"
    shutil.copy(crops / "0.jpg", crops / "new.jpg")
    with Gallery.open(old / "gallery", device="cpu") as gallery:
        report = gallery.index(metadata={"new.jpg": {"camera": "c7", "shift": "night"}})
        assert (report.added, report.replaced, report.unchanged) == (1, 0, 6)
        assert gallery.remove(["handed/over.jpg"]) == 1
        assert gallery.count() == 7
        assert gallery.columns == {"camera": "text", "size": "number", "shift": "text"}


def test_commands_read_the_run(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = next(iter(EXPECTED["hits"]))
    assert cskt_command(["search", str(old / "gallery"), text, "--json", "--device", "cpu"]) == 0
    assert EXPECTED["hits"][text][0][0] in capsys.readouterr().out
    shutil.copytree(old / "run", old / "again")
    assert cskt_command(["compare", str(old / "run"), str(old / "again")]) == 0
    assert "33.33" in capsys.readouterr().out
