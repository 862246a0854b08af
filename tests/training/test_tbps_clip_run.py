"""A run of TBPS-CLIP: what it logs, and how its model reads captions afterwards."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import cskt
from cskt.config import load_config
from cskt.errors import CsktError
from cskt.model.io.native import read_method
from cskt.training.context import prepare
from cskt.training.events import read_events
from cskt.training.loop import train
from cskt.training.step import forward_backward, generator_of
from tiny_run import Configure

CHANGES: dict[str, Any] = {"optim.warmup_epochs": 1, "loop.num_epochs": 2, "optim.lr": 1e-3}


def test_a_run_learns_by_step_and_its_model_cleans_captions(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        folder = train(configure(CHANGES, "tbps-clip"), tmp_path / "run").folder
    assert "cuhk-pedes train: no text in captions_bt of the annotation, so back-translation is off" in caplog.messages
    steps = [event for event in read_events(folder) if event["event"] == "step"]
    assert len(steps) == 6, "32 pairs in batches of 8, of which two people are held out"
    assert [event["lr"] for event in steps[:3]] == pytest.approx([1e-5, 5.05e-4, 1e-3])
    assert steps[3]["lr"] == pytest.approx(1e-3) and steps[5]["lr"] < steps[4]["lr"] < 1e-3
    assert all(event["losses"].keys() == {"nitc", "ritc", "citc", "simclr"} for event in steps)
    assert "vision.conv1.weight" not in read_method(folder / "best.safetensors").tensors, "it is frozen"

    encoder = cskt.load(folder, device="cpu")
    assert encoder.tokenizer.clean_captions and encoder.interpolation == "bicubic"
    spelt = encoder.encode_text(["A man (tall): black coat!", "a man tall black coat"])
    torch.testing.assert_close(spelt[0], spelt[1])
    plain = cskt.load(folder, device="cpu")
    plain.tokenizer.clean_captions = False
    assert plain.fingerprint != encoder.fingerprint
    assert not torch.allclose(plain.encode_text("A man (tall): black coat!"), spelt[0], atol=1e-3)
    again = cskt.load(encoder.save(tmp_path / "copy.safetensors"), device="cpu")
    assert again.fingerprint == encoder.fingerprint and again.tokenizer.clean_captions


def test_back_translations_of_a_part_of_the_captions_are_counted(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configure({}, "tbps-clip")
    source = Path(config.data.root) / "CUHK-PEDES"
    records = json.loads((source / "reid_raw.json").read_text())
    first = next(record for record in records if record["split"] == "train")
    first["captions_bt"] = ["a translated person", *[""] * (len(first["captions"]) - 1)]
    target = tmp_path / "CUHK-PEDES"
    target.mkdir()
    (target / "imgs").symlink_to(source / "imgs")
    (target / "reid_raw.json").write_text(json.dumps(records))
    plain = prepare(config).state.data_sha256
    with caplog.at_level(logging.WARNING):
        context = prepare(load_config(config, {"data.root": str(tmp_path)}))
    num_captions = len(context.train_split.captions)
    assert f"cuhk-pedes train: {num_captions - 1} of {num_captions} captions have no captions_bt" in caplog.messages
    assert context.state.data_sha256 != plain, "a run is not resumed with other back-translations"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.nitc_view": "third"}, r"loss 'nitc' compares with a further view 'third' .* add augment\.views\.third"),
        ({"augment.views": {"second": {}}}, r"loss 'simclr' compares .* 'simclr_1' .*, and augment\.views has second"),
        ({"frozen": ["vision.conv9"]}, "frozen: no parameter name starts with 'vision.conv9'"),
        ({"data.captions_per_image": 2}, "simclr takes other pairs of an image for negatives"),
        ({"augment.ops": {"flop": {}}}, "unknown operation on images 'flop'"),
    ],
)
def test_wrong_settings_are_refused(configure: Configure, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CsktError, match=message):
        prepare(configure(changes, "tbps-clip"))


@pytest.mark.parametrize(("drop_last", "num_steps"), [(True, 4), (False, 5)])
def test_a_short_last_batch_is_left_out_on_request(configure: Configure, drop_last: bool, num_steps: int) -> None:
    loader = prepare(configure({"data.batch_size": 5, "data.drop_last": drop_last})).loader
    sizes = [len(batch.pids) for batch in loader.epoch(0)]
    assert loader.steps_per_epoch == len(sizes) == num_steps
    assert sizes[:4] == [5] * 4 and sizes[4:] == ([] if drop_last else [4])


def test_soft_targets_are_computed_last(configure: Configure) -> None:
    """Autocast of torch 2.10 keeps weights that were cast without gradient, and uses them in passes with gradient."""
    context = prepare(configure({"precision": "bf16"}, "tbps-clip"))
    passes: list[bool] = []
    context.state.model.text.blocks[0].register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    forward_backward(context, next(context.loader.epoch(0)), 0, generator_of(0, 0))
    assert passes == [True, False]
