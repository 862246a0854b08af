"""`cskt reproduce` rehearsed from end to end on generated pedestrians, in the layouts of the licensed data sets."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import contents, done, typed

from cskt.config import load_config
from cskt.data.check import check_dataset
from cskt.data.datasets import DATASETS, read_dataset
from cskt.data.records import find_split
from cskt.embed import load
from cskt.evaluation.evaluate import evaluate
from cskt.evaluation.results import find_results
from cskt.training.events import read_events
from tiny_run import HEIGHT, WIDTH

QUICK = (
    f"--set backbone.image_height={HEIGHT} backbone.image_width={WIDTH} prompts.depth=2 prompts.length=2 optim.lr=1e-2"
    " optim.warmup_epochs=0 data.batch_size=8 data.num_workers=0 loop.num_epochs=1 loop.evaluate_before=false"
    " mlm.cmt_depth=1"
)
BOTH = ["epoch selected on val", "published protocol: epoch selected on test"]


def rehearsal(method: str, dataset: str, root: Path, backbone: Path, output: Path) -> str:
    return (
        f"cskt reproduce {method} --dataset {dataset} --root {root} --backbone {backbone} --seeds 1,2 --device cpu"
        f" --output {output} --rehearsal {QUICK}"
    )


@pytest.mark.parametrize(
    ("method", "dataset", "published"),
    [
        ("cskt", "icfg-pedes", {"r1": 0.5890}),
        pytest.param("irra", "CUHK-PEDES", {"r1": 0.7338, "mean_ap": 0.6613}, marks=pytest.mark.slow),
        pytest.param("tbps-clip", "RSTPReid", {"r1": 0.6195, "mean_ap": 0.4826}, marks=pytest.mark.slow),
    ],
)
def test_rehearsal(
    method: str, dataset: str, published: dict[str, float], *,
    root: Path, tiny_backbone: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    command = rehearsal(method, dataset, root, tiny_backbone, tmp_path)
    lines = typed(f"{command} --json").json()
    warnings = [message for message in caplog.messages if "published are" in message or "SHA-256" in message]
    assert len(warnings) == (2 if dataset == "icfg-pedes" else 3) + 1, "counts of each split, and the weights"
    assert [(line["protocol"], line["metric"]) for line in lines] == [(p, metric) for p in BOTH for metric in published]
    for line in lines:
        assert line["published"] == published[line["metric"]] and line["seeds"] == [1, 2]
        assert line["verdict"].startswith("rehearsal: ")
        folder = tmp_path / ("val" if line["protocol"] == BOTH[0] else "published")
        kept = [find_results(folder / f"seed-{seed}")[0] for seed in (1, 2)]
        means = [one.metrics["t2i"][line["metric"]] for one in kept]
        assert line["ours"] == pytest.approx(sum(means) / 2)
        assert line["deviation"] == pytest.approx(abs(means[0] - means[1]) / 2**0.5)
        assert line["low"] <= line["ours"] <= line["high"]
        assert {one.note for one in kept} == ({"selected on test"} if folder.name == "published" else {""})
        assert {(one.label, one.seed, one.split) for one in kept} == {(method, 1, "test"), (method, 2, "test")}

    split = find_split(read_dataset(dataset, root), "test")
    for protocol, selected_on in (("val", "val"), ("published", "test")):
        folder = tmp_path / protocol / "seed-2"
        events = read_events(folder)
        assert {event["split"] for event in events if event["event"] == "evaluation"} == {selected_on}
        config = load_config(folder / "config.yaml")
        assert (config.seed, config.data.select_on) == (2, selected_on)
        assert config.optim.eps == (1e-8 if method == "tbps-clip" else 1e-3)
        assert config.trainable == ("added" if method == "cskt" else "all")
        direct = evaluate(load(folder, device="cpu"), split).t2i.summary()
        assert find_results(folder)[0].metrics["t2i"] == direct
        assert not (folder / "last.pt").exists(), "gigabytes that nobody resumes from"

    before = contents(tmp_path)
    table = done(command)
    assert contents(tmp_path) == before, "nothing is done again"
    assert f"{100 * published['r1']:.2f}" in table and "95 % interval" in table and "published" in table
    for protocol in BOTH:
        assert f"{protocol}, R1: rehearsal: not the published data and weights" in table
    assert "agrees" not in table


@pytest.mark.slow
def test_one_protocol_and_another_seed_later(root: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    command = rehearsal("cskt", "rstpreid", root, tiny_backbone, tmp_path) + " --protocol val --json"
    first = typed(command.replace("--seeds 1,2", "--seeds 1")).json()
    assert [(line["seeds"], line["deviation"]) for line in first] == [([1], None)]
    before = contents(tmp_path)
    assert [line["seeds"] for line in typed(command).json()] == [[1, 2]]
    after = contents(tmp_path)
    assert {path: after[path] for path in before} == before
    assert {path.relative_to(tmp_path).parts[:2] for path in after} == {("val", "seed-1"), ("val", "seed-2")}
    refusal = typed(command.replace("optim.lr=1e-2", "optim.lr=1e-3")).refusal()
    assert "holds a run with another config (optim.lr: 0.01 -> 0.001)" in refusal


def test_other_data_and_other_weights_are_refused(root: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    dolls = f"cskt reproduce cskt --dataset cuhk-pedes --root {root} --backbone {tiny_backbone} --output {tmp_path}"
    assert typed(dolls).refusal() == (
        f"{root}: cuhk-pedes train has 8 identities, 16 images, 32 captions, published are 11,003 identities,"
        " 34,054 images, 68,126 captions; to go through the motions with other data or weights: --rehearsal"
    )
    assert contents(tmp_path) == {}


def test_other_weights_are_refused_with_both_digests(
    root: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the data the published ones, the weights would still be asked for their SHA-256."""
    counts = {split.name: split.counts for split in check_dataset("cuhk-pedes", root, decode=False).splits}
    monkeypatch.setitem(DATASETS._entries, "cuhk-pedes", replace(DATASETS["cuhk-pedes"], published_counts=counts))
    command = f"cskt reproduce irra --dataset cuhk-pedes --root {root} --backbone {tiny_backbone} --output {tmp_path}"
    found = hashlib.sha256(tiny_backbone.read_bytes()).hexdigest()
    expected = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"
    assert typed(command).refusal() == (
        f"{tiny_backbone}: SHA-256 {found}, that of CLIP's ViT-B/16 is {expected}; to go through the motions with other"
        " data or weights: --rehearsal"
    )
    assert contents(tmp_path) == {}


def test_broken_data_are_refused_even_for_a_rehearsal(root: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(root / "CUHK-PEDES", tmp_path / "data" / "CUHK-PEDES")).parent
    image = read_dataset("cuhk-pedes", broken)["test"].records[0].image_path
    image.unlink()
    for command in (
        f"cskt reproduce cskt --dataset cuhk-pedes --root {broken} --backbone {tiny_backbone} --output {tmp_path}/runs",
        rehearsal("cskt", "cuhk-pedes", broken, tiny_backbone, tmp_path / "runs"),
    ):
        assert typed(command).refusal().startswith(f"{broken}: test: missing images: 1 of 12 ({image})")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "cskt --dataset cuhk-pedes --set loop.num_epochs=1",
            "--set changes the recipe, which is then no reproduction",
        ),
        ("cskt --dataset jsonl", "--dataset jsonl: nothing is published on it; give one of cuhk-pedes, icfg-pedes"),
        ("cskt --dataset cuhk-pedse", "did you mean 'cuhk-pedes'?"),
        ("maple --dataset cuhk-pedes", "invalid choice: 'maple'"),
        ("cskt --dataset cuhk-pedes --seeds 1,1", "--seeds 1,1: give distinct whole numbers"),
        ("cskt --dataset cuhk-pedes --rehearsal --set loop.num_epoch=1", "did you mean 'loop.num_epochs'?"),
    ],
)
def test_bad_input(words: str, message: str, root: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    method, _, flags = words.partition(" ")
    command = f"cskt reproduce {method} --root {root} --backbone {tiny_backbone} --output {tmp_path} {flags}"
    assert message in typed(command).refusal()
    assert contents(tmp_path) == {}


def test_missing_weights_are_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **settings: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    refusal = typed(f"cskt reproduce cskt --dataset cuhk-pedes --root {root} --output {tmp_path} --rehearsal").refusal()
    assert refusal.startswith("backbone 'ViT-B/16': download https://") and "no network" in refusal
