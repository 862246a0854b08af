"""Measurements: the baseline computes the same function, and the numbers are right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as bench
from benchmarks import growth, measure, methods, selection, towers, train_step
from benchmarks.measure import Row
from benchmarks.naive import NaiveEncoder
from cskt.config import AdapterConfig, PromptConfig, TokenSelectionConfig
from cskt.data.tokenizer import END_ID, START_ID
from cskt.model.dual_encoder import DualEncoder
from tiny_run import ARCHITECTURE, HEIGHT, WIDTH

REPOSITORY = Path(bench.__file__).parents[1]
PROMPTS = PromptConfig(depth=2, length=2)


def tiny_model(trainable: str = "added") -> DualEncoder:
    generator = torch.Generator().manual_seed(3)
    model = DualEncoder(
        ARCHITECTURE, {"prompts": PROMPTS, "adapters": AdapterConfig(init="normal")}, trainable=trainable
    )
    model.initialise_backbone(generator)
    model.initialise_method(generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # what starts at 0 or 1 would hide a mix-up
            if name.endswith("bias") or ".ln_" in name or ".norm." in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def pairs(count: int) -> train_step.Pairs:
    """Captions of several lengths: one loses words to the prompts, one has all 77 tokens."""
    generator = torch.Generator().manual_seed(4)
    caption_ids = torch.randint(1, START_ID, (count, 77), generator=generator)
    caption_ids[:, 0] = START_ID
    for row, length in enumerate((5, 40, 75, 77)[:count]):
        caption_ids[row, length - 1] = END_ID
        caption_ids[row, length:] = 0
    images = torch.randn(count, 3, HEIGHT, WIDTH, generator=generator)
    return images, caption_ids, torch.tensor([0, 1, 1, 2])[:count]


def gradients(model: DualEncoder) -> dict[str, Tensor]:
    """Return the gradients of all trained parameters and clear them."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest relative difference of a parameter's gradients, without gradients that are only rounding."""
    assert found.keys() == expected.keys()
    least = 1e-6 * max(gradient.norm() for gradient in expected.values())
    return max(float((found[name] - e).norm() / e.norm().clamp_min(least)) for name, e in expected.items())


def test_baseline_computes_our_features() -> None:
    model, (images, caption_ids, _) = tiny_model(), pairs(4)
    naive = NaiveEncoder.of(model)
    with torch.no_grad():
        for ours, theirs in zip(model(images, caption_ids), naive(images, caption_ids), strict=True):
            assert towers.difference(ours, theirs) < 1e-5


def test_baseline_of_selection_computes_our_loss_gradients_and_vectors() -> None:
    generator = torch.Generator().manual_seed(3)
    model = DualEncoder(ARCHITECTURE, {"tse": TokenSelectionConfig(width=16)}, trainable="all")
    model.initialise_backbone(generator)
    model.initialise_method(generator)
    found = {}
    for form, loss_of in selection.FORMS.items():
        loss_of(model.eval(), pairs(4)).backward()
        found[form] = gradients(model)
    assert largest_difference(found["float32"], found["baseline"]) < 1e-4
    (images, caption_ids, _), naive = pairs(4), selection.NaiveRDE(model)
    with torch.no_grad():
        assert towers.difference(model.encode_image(images), naive.encode_image(images)) < 1e-4
        assert towers.difference(model.encode_text(caption_ids), naive.encode_text(caption_ids)) < 1e-4


@pytest.mark.parametrize("recipe", methods.NAIVE)
def test_baseline_of_a_method_computes_our_loss_gradients_and_features(recipe: str) -> None:
    method = methods.Method.of(recipe, towers.THIN)
    method.model.double()
    images, caption_ids, pids = train_step.draw_batch(4, towers.THIN)
    batch, found = (images.double(), caption_ids, pids), {}
    for form in methods.FORMS:
        method.loss(form, batch).backward()
        found[form] = gradients(method.model)
    assert found["ours"].keys() == set(method.model.trainable_names())
    assert largest_difference(found["ours"], found["baseline"]) < 1e-4, "losses and routers compute in float32"
    with torch.no_grad():
        ours, theirs = method.model.encode_text(caption_ids), method.naive.encode_text(caption_ids)
        assert towers.difference(ours, theirs) < 1e-10
        ours, theirs = method.model.encode_image(batch[0]), method.naive.encode_image(batch[0])
        assert towers.difference(ours, theirs) < 1e-10


@pytest.mark.parametrize("trainable", ["added", "all"])
def test_baseline_computes_our_gradients(trainable: str) -> None:
    model, (images, caption_ids, _) = tiny_model(trainable).double(), pairs(4)
    weights = torch.randn(2, 4, ARCHITECTURE.embed_dim, generator=torch.Generator().manual_seed(6)).double()
    found = {}
    for name, encoder in (("naive", NaiveEncoder.of(model)), ("ours", model)):
        image_features, text_features = encoder(images.double(), caption_ids)
        torch.autograd.backward((torch.stack([image_features, text_features]) * weights).sum())
        found[name] = gradients(model)
    assert found["ours"].keys() == set(model.trainable_names())
    assert largest_difference(found["ours"], found["naive"]) < 1e-10


def test_baseline_shares_parameters_and_refuses_other_methods() -> None:
    model = tiny_model()
    ours = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in NaiveEncoder.of(model).parameters()} == ours
    with pytest.raises(AssertionError, match="another method"):
        NaiveEncoder.of(model.bare())


def test_all_measured_steps_have_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_step, "PIECE", 2)
    model, batch = tiny_model(), pairs(4)
    train_step.FORMS["float32"](model)(batch)
    expected = gradients(model)
    for form in ("baseline", "pieces"):
        train_step.FORMS[form](model)(batch)
        assert largest_difference(gradients(model), expected) < 1e-3


def test_a_step_trains() -> None:
    model, batch = tiny_model(), pairs(4)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train_step.stepper(model, train_step.FORMS["bf16"](model))(batch)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(model.trainable_names())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_random_captions_have_the_stated_lengths() -> None:
    ids = towers.draw_captions(2000, torch.Generator().manual_seed(5))
    lengths = ids.argmax(dim=1) + 1
    assert (int(lengths.min()), int(lengths.max())) == (20, 60) and ids.shape[1] == 60
    assert abs(float(lengths.float().mean()) - 37) < 0.5
    after = torch.arange(60) >= lengths[:, None]
    assert (ids[after] == 0).all() and (ids[~after] > 0).all()
    assert (ids[:, 0] == START_ID).all() and ((ids == END_ID).sum(dim=1) == 1).all()


def test_a_row_meets_its_target_if_ratio_and_facts_do() -> None:
    facts: dict[str, float | int | str] = {"difference": 1e-6, "cosine": 0.9999}
    row = Row("work", "bf16", "naive", 3.0, 2.0, 1.5, facts, {"difference": 1e-5}, {"cosine": 0.999})
    assert row.ratio == 1.5 and row.met is True
    for missed in (
        Row("work", "bf16", "naive", 3.0, 2.1, 1.5),
        Row("work", "bf16", "naive", 3.0, 2.0, 1.5, facts, at_most={"difference": 1e-7}),
        Row("work", "bf16", "naive", 3.0, 2.0, 1.5, facts, at_least={"cosine": 1.0}),
        Row("work", "bf16", "naive", 3.0, 2.0, None, {"loss": float("nan")}, at_most={"loss": 1.0}),
    ):
        assert missed.met is False
    assert Row("work", "fp32", "naive", 1.0, 2.0).met is None
    with pytest.raises(AssertionError, match="one of the facts"):
        Row("work", "fp32", "naive", 1.0, 2.0, at_most={"differense": 1.0})


def test_calls_alternate_after_a_warm_up_round() -> None:
    made: list[str] = []
    seconds = measure.alternate({"a": lambda: made.append("a"), "b": lambda: made.append("b")}, repeats=2)
    assert made == ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_processor_time_includes_that_of_other_processes() -> None:
    before = measure.processor_seconds()
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    assert measure.processor_seconds() - before >= 0.02, "starting Python alone takes as much"


def test_sentences_are_the_same_in_every_run() -> None:
    sentences = towers.draw_sentences(3)
    assert sentences == towers.draw_sentences(3) and len(set(sentences)) == 3
    assert all(len(sentence.split()) > 10 for sentence in sentences)


@pytest.mark.slow
def test_towers_are_those_of_the_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "REPEATS", 1)
    rows = [row for row in towers.rows(quick=True, forms={}) if row.variant == "float32"]
    assert [row.work.split(",")[0] for row in rows] == ["text encode", "text encode", "image encode"]
    for row in rows:
        assert row.baseline == towers.BASELINE
        assert float(row.facts[towers.DIFFERENCE]) < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_memory_is_the_peak_above_the_start() -> None:
    held = torch.ones(10_000_000)  # of the start, not of the work

    def work() -> None:
        torch.ones(100_000_000)  # freed before the end
        torch.ones(5_000_000)

    assert 340e6 < measure.memory_above_start(work) < 460e6, "400 MB; the process gives back a little of its own"
    assert held.sum() > 0


def test_memory_of_another_process_is_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weighs.py").write_text("import sys\nprint('a word')\nprint(7 * int(sys.argv[1]))\n")
    monkeypatch.chdir(tmp_path)
    assert measure.peak_memory("weighs", "6") == 42


@pytest.mark.slow
def test_table_is_made_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "given_table.py").write_text(
        "import os, torch\nfrom benchmarks.measure import Row\n"
        "def rows(quick):\n"
        "    facts = {'process': os.getpid(), 'threads': torch.get_num_threads(), 'quick': quick}\n"
        "    return [Row('work', 'float32', 'naive', 2.0, 1.0, facts=facts)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (row,) = measure.in_own_process("given_table", quick=True, threads=1)
    assert row.ratio == 2.0 and row.facts.pop("process") != os.getpid()
    assert row.facts == {"threads": 1, "quick": True}


def test_memory_is_extrapolated_linearly() -> None:
    assert train_step.line_at((8, 16, 32), [3.0, 4.0, 6.0], 128) == pytest.approx(18.0)


def test_exponent_is_1_where_time_is_proportional() -> None:
    assert growth.exponent({250: 0.5, 500: 1.0, 1000: 2.0}) == pytest.approx(1.0)
    assert growth.exponent({10: 1.0, 20: 4.0, 40: 16.0}) == pytest.approx(2.0)


def test_growth_is_judged_by_its_exponent() -> None:
    found = {"linear": {10: 1.0, 20: 2.0, 40: 4.0}, "square": {10: 1.0, 20: 4.0, 40: 16.0}}
    rows = growth.to_rows(found)
    assert [row.met for row in rows] == [True, False]
    assert [row.ratio for row in rows] == pytest.approx([1.0, 0.25])
    legend = growth.plot(found).axes[0].get_legend()
    assert legend is not None
    written = [text.get_text() for text in legend.get_texts()]
    assert written[1:] == ["linear, 10 to 40: exponent 1.00", "square, 10 to 40: exponent 2.00"]


def run_tables(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """Run `python -m benchmarks` with one given row per table and return the names of the measured tables."""
    asked: list[str] = []

    def given(name: str, quick: bool, threads: int) -> list[Row]:
        asked.append(name)
        return [Row(name, "float32", "naive", 4.0, 1.0, 5.0, {"size": 3})]

    monkeypatch.setattr(bench, "measured", given)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--threads", str(torch.get_num_threads()), *words])
    bench.main()
    return asked


def test_all_tables_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    assert run_tables(monkeypatch, "--json", str(file)) == list(bench.TABLES)
    document = json.loads(file.read_text())
    assert [row["work"] for row in document["rows"]] == list(bench.TABLES)
    assert {(row["ratio"], row["bar"], row["met"], row["facts"]["size"]) for row in document["rows"]} == {
        (4.0, 5.0, False, 3)
    }
    assert document["machine"]["torch"] == torch.__version__
    shown = capsys.readouterr().out.splitlines()
    assert [line.split() for line in shown if line.startswith("towers")] == [
        ["towers", "float32", "4.000", "1.000", "4.00", "5", "NO"]
    ]
    assert "    size: 3" in shown


def test_chosen_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tables(monkeypatch, "--only", "metrics,towers", "--quick") == ["metrics", "towers"]
    assert "NO" not in capsys.readouterr().out  # no bar is for the small sizes
    with pytest.raises(SystemExit):
        run_tables(monkeypatch, "--only", "towerz")
    assert "towerz: no such table" in capsys.readouterr().err


@pytest.mark.slow
def test_the_quick_tables_are_made(tmp_path: Path) -> None:
    """The modules as they are: none has fallen behind the code that it measures."""
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "metrics,data,growth,startup", "--json"]
    subprocess.run([*command, str(file)], check=True, cwd=REPOSITORY)
    works = [row["work"] for row in json.loads(file.read_text())["rows"]]
    for beginning in ("metrics, ", "16 crops from JPEG", "growth of text encode", "growth of index", "cskt search, "):
        assert any(work.startswith(beginning) for work in works), beginning
