"""From trained runs to evidence: per-query results, `cskt compare` and `cskt matrix`."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import contents, done, typed

from cskt.cli import run_results
from cskt.config import load_config, save_config
from cskt.evaluation.results import METRICS, Result, find_results, load_result
from tiny_run import HEIGHT, WIDTH

FILE = re.compile(r"per-query results: (.*\.json)$")


@pytest.fixture(scope="module")
def runs(
    run: Path, train_command: str, tiny_backbone: Path, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with `cskt` (seed 1), two seeds of another method in `slow`, and zero-shot CLIP in `clip`, evaluated."""
    folder = tmp_path_factory.mktemp("compared")
    shutil.copytree(run, folder / "cskt", ignore=shutil.ignore_patterns("evaluations"))  # other tests leave some there
    for seed in (1, 2):
        done(f"{train_command} --name slow --lr 1e-4 --num-epochs 1 --select-on test --seed {seed}"
             f" --output {folder}/slow/seed-{seed}")  # fmt: skip
        done(f"cskt evaluate {folder}/slow/seed-{seed}")
    done(f"cskt evaluate {folder}/cskt")
    done(
        f"cskt evaluate {tiny_backbone} --dataset cuhk-pedes --root {root} --output {folder}/clip --label 'CLIP & co_'"
    )
    return folder


# --- evaluate


def test_evaluate_stores_every_query(runs: Path, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    printed = typed(f"cskt evaluate {runs}/cskt --json").json()
    (logged,) = (found[1] for message in caplog.messages if (found := FILE.match(message)))
    result = load_result(Path(logged))
    assert Path(logged).parent == runs / "cskt" / "evaluations"
    assert (result.label, result.seed, result.note, result.facts.trained_on) == ("cskt", 1, "", "cuhk-pedes")
    assert result.metrics == {"t2i": printed["t2i"], "i2t": printed["i2t"]}
    assert len(result.query_pids) == printed["t2i"]["num_queries"] == 24
    events = [json.loads(line) for line in (runs / "cskt" / "metrics.jsonl").read_text().splitlines()]
    facts = result.facts
    assert facts.trainable_parameters == events[0]["trainable_parameters"]
    assert facts.training_seconds == events[-1]["seconds"]
    assert facts.checkpoint_bytes == (runs / "cskt" / "best.safetensors").stat().st_size
    assert facts.device == "cpu" and facts.images_per_second and facts.captions_per_second


def test_results_of_other_models_are_stored_only_in_the_output_folder(
    runs: Path, tiny_backbone: Path, root: Path, tmp_path: Path
) -> None:
    (clip,) = find_results(runs / "clip")
    assert (clip.label, clip.seed, clip.facts.trainable_parameters, clip.facts.trained_on) == (
        "CLIP & co_",
        None,
        0,
        None,
    )
    assert clip.facts.total_parameters and clip.facts.checkpoint_bytes == 0
    weights = shutil.copy(tiny_backbone, tmp_path)
    done(f"cskt evaluate {weights} --dataset cuhk-pedes --root {root}")
    assert [path.name for path in tmp_path.iterdir()] == [tiny_backbone.name]
    (tmp_path / "file").touch()
    assert "file" in typed(f"cskt evaluate {runs}/cskt --output {tmp_path}/file").refusal()


def test_a_run_folder_that_cannot_be_written_is_evaluated_all_the_same(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluations")))
    (folder / "evaluations").touch()
    assert typed(f"cskt evaluate {folder} --json").json()["split"] == "test"
    assert any("no per-query results are stored" in message and "--output" in message for message in caplog.messages)


def test_ranking_options_are_noted_and_stored_separately(runs: Path, tmp_path: Path) -> None:
    command = f"cskt evaluate {runs}/cskt --output {tmp_path}"
    plain = typed(f"{command} --json").json()
    expanded = typed(f"{command} --query-expansion 5 --json").json()
    assert expanded["note"] == "query expansion 5: uses the other queries"
    assert expanded["t2i"] != plain["t2i"] and expanded["i2t"] == plain["i2t"]
    reranked = done(f"{command} --rerank --rerank-k1 6 --rerank-k2 2 --rerank-weight 0.5")
    assert "text to image: re-ranked (k1 6, k2 2, weight 0.5)" in " ".join(reranked.split())
    assert "image to text: re-ranked" not in " ".join(reranked.split())
    unchanged = typed(f"{command} --rerank --rerank-k1 6 --rerank-k2 2 --rerank-weight 1 --json").json()
    assert unchanged["t2i"] == plain["t2i"], "all weight on the cosine"
    assert sorted(result.options for result in find_results(tmp_path)) == [
        "", "query-expansion-5", "rerank-6-2-0.5", "rerank-6-2-1",
    ]  # fmt: skip
    rows = typed(f"cskt compare {tmp_path} --format json").json()["rows"]
    assert [row["label"] for row in rows][1] == "cskt + query expansion 5"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--query-expansion 24", "query expansion by 24 of 24 captions; give 1 to 23"),
        ("--query-expansion -1", "query expansion by -1 of 24 captions; give 1 to 23"),
        ("--rerank", "re-ranking with k1 20, k2 6 of 12 images; give a k1 of 1 to 12 and a k2 of 1 to k1"),
        ("--rerank --rerank-k1 6 --rerank-weight 2", "re-ranking with weight 2.0; give a fraction from 0 to 1"),
        ("--rerank-k1 6", "--rerank-k1 changes nothing without --rerank"),
    ],
)
def test_invalid_ranking_options_are_refused(flags: str, reason: str, run: Path, tmp_path: Path) -> None:
    assert typed(f"cskt evaluate {run} --output {tmp_path} {flags}").refusal() == reason
    assert contents(tmp_path) == {}


# --- compare


def test_compare_as_json(runs: Path) -> None:
    result = typed(f"cskt compare {runs}/clip {runs}/cskt {runs}/slow --format json").json()
    assert (result["dataset"], result["split"], result["num_queries"], result["num_gallery"]) == (
        "cuhk-pedes",
        "test",
        24,
        12,
    )
    assert (result["baseline"], result["num_tests"]) == ("CLIP & co_", 4)
    clip, cskt, slow = result["rows"]
    assert [row["label"] for row in result["rows"]] == ["CLIP & co_", "cskt", "slow"]
    assert (slow["seeds"], slow["num_seeds"], slow["note"]) == ("1 2", 2, "selected on test")
    kept = [find_results(runs / "slow" / seed)[0] for seed in ("seed-1", "seed-2")]
    for metric in METRICS:
        assert slow[metric] == pytest.approx(sum(one.metrics["t2i"][metric] for one in kept) / 2)
        for row in result["rows"]:
            assert row[f"{metric}_low"] <= row[metric] <= row[f"{metric}_high"]
        assert cskt[f"{metric}_difference"] == pytest.approx(cskt[metric] - clip[metric])
        assert clip[f"{metric}_difference"] is None and clip[f"{metric}_p_value"] is None
        assert (slow[f"{metric}_deviation"] is None, cskt[f"{metric}_deviation"] is None) == (False, True)
        assert (cskt[f"{metric}_p_value"] is None) == (metric not in ("r1", "mean_ap"))
    assert cskt["training_seconds"] > 0 and clip["training_seconds"] is None


def test_compare_lists_differing_settings_and_marks_methods_no_better_than_zero_shot(
    runs: Path, tmp_path: Path
) -> None:
    """The random backbone knows nothing: which run beats it is chance, but every form says the same of it."""
    command = f"cskt compare {runs}/clip {runs}/cskt {runs}/slow"
    result = typed(f"{command} --format json").json()
    assert result["differing_settings"] == {
        "data.select_on": {"cskt": "val", "slow": "test"},
        "optim.lr": {"cskt": 0.01, "slow": 0.0001},
        "loop.num_epochs": {"cskt": 2, "slow": 1},
    }
    clip, *trained = result["rows"]
    assert (clip["zero_shot_r1"], clip["better_than_zero_shot"]) == (None, None)
    for row in trained:
        assert row["zero_shot_r1"] == clip["r1"]
        assert row["better_than_zero_shot"] == (row["r1"] > clip["r1"])
    for form in ("terminal", "markdown", "latex"):
        text = done(f"{command} --format {form}")
        lines = [line.replace("\\", "").strip(" %") for line in text.splitlines()]
        assert "- optim.lr: cskt 0.01, slow 0.0001" in lines and "- loop.num_epochs: cskt 2, slow 1" in lines
        assert text.count("no better than zero-shot") == sum(not row["better_than_zero_shot"] for row in trained)
    (_, cskt, slow) = csv.DictReader(io.StringIO(done(f"{command} --format csv")))
    assert (cskt["optim.lr"], slow["optim.lr"], slow["data.select_on"]) == ("0.01", "0.0001", "test")
    alone = typed(f"cskt compare {runs}/clip {runs}/cskt --format json").json()
    assert alone["differing_settings"] == {}


@pytest.mark.slow
def test_a_run_is_compared_with_the_zero_shot_r1_that_it_recorded(train_command: str, tmp_path: Path) -> None:
    """On the split that picked its epoch, where it evaluated both; on another nothing is known."""
    for name, rate in (("one", "1e-12"), ("other", "1e-2")):
        short = f"--name {name} --lr {rate} --num-epochs 1 --evaluate-before true"
        done(f"{train_command} {short} --output {tmp_path}/{name}")
        for split in ("val", "test"):
            done(f"cskt evaluate {tmp_path}/{name} --split {split}")
    events = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    (zero_shot,) = (event["t2i"]["r1"] for event in events if event.get("stage") == "zero-shot")
    command = f"cskt compare {tmp_path}/one {tmp_path}/other --format json"
    for row in typed(f"{command} --split val").json()["rows"]:
        assert row["zero_shot_r1"] == zero_shot and row["better_than_zero_shot"] == (row["r1"] > zero_shot)
    assert [row["zero_shot_r1"] for row in typed(command).json()["rows"]] == [None, None]


def test_baseline_is_any_of_the_runs(runs: Path) -> None:
    command = f"cskt compare {runs}/clip {runs}/cskt --format json"
    usual, other = typed(command).json(), typed(f"{command} --baseline {runs}/cskt/").json()
    assert other["baseline"] == "cskt"
    assert other["rows"][0]["r1_difference"] == pytest.approx(-usual["rows"][1]["r1_difference"])
    assert other["rows"][0]["r1_p_value"] == usual["rows"][1]["r1_p_value"]
    refusal = typed(f"{command} --baseline {runs}/slow").refusal()
    assert refusal == f"--baseline {runs}/slow is none of the runs; give one of {runs}/clip, {runs}/cskt"


def test_other_forms_hold_the_same(runs: Path, tmp_path: Path) -> None:
    command = f"cskt compare {runs}/clip {runs}/cskt {runs}/slow"
    rows = typed(f"{command} --format json").json()["rows"]
    as_csv = list(csv.DictReader(io.StringIO(done(f"{command} --format csv"))))
    assert [row["label"] for row in as_csv] == ["CLIP & co_", "cskt", "slow"]
    assert [float(row["r1_low"]) for row in as_csv] == [row["r1_low"] for row in rows]
    assert as_csv[0]["training_seconds"] == ""

    done(f"{command} --output {tmp_path}/table.md")
    lines = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 5 and len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert lines[2].startswith("| CLIP & co\\_ |") and "selected on test" in lines[4]

    done(f"{command} --output {tmp_path}/table.tex")
    source = (tmp_path / "table.tex").read_text()
    begin, body = source.index(r"\toprule"), source[source.index(r"\toprule") : source.index(r"\bottomrule")]
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", source[:begin])
    assert columns is not None
    cells = [re.split(r"(?<!\\)&", line) for line in body.splitlines() if line.endswith(r"\\")]
    assert {len(line) for line in cells} == {len(columns[1])} and len(cells) == 4
    assert cells[1][0].strip() == r"CLIP \& co\_"
    for row, line in zip(rows, cells[1:], strict=True):
        assert any(f"{100 * row['r1']:.2f}" in cell for cell in line)


@pytest.mark.parametrize("columns", [80, 140])
def test_a_terminal_shows_every_number_whole(runs: Path, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    command = f"cskt compare {runs}/clip {runs}/cskt {runs}/slow"
    table, rows = done(command), typed(f"{command} --format json").json()["rows"]
    assert max(map(len, table.splitlines())) <= columns
    for row in rows:
        for name in ("r1", "mean_ap"):
            assert f"{100 * row[name]:.2f}" in table
            assert f"{100 * row[f'{name}_low']:.2f}–{100 * row[f'{name}_high']:.2f}" in table
    assert "slow: selected on test" in table
    assert ("Training" in table.splitlines()[2]) == (columns == 140)


def test_one_run_by_its_result_file_and_names_that_two_share(runs: Path, tmp_path: Path) -> None:
    (file,) = (runs / "cskt" / "evaluations").glob("*_test_*.json")
    done(f"cskt evaluate {runs}/cskt --output {tmp_path}/again")
    result = typed(f"cskt compare {file} {tmp_path}/again --format json").json()
    assert [row["label"] for row in result["rows"]] == [f"cskt ({file.name})", "cskt (again)"]
    assert result["rows"][1]["r1_difference"] == 0 and result["rows"][1]["r1_p_value"] == 1


@pytest.mark.usefixtures("nothing_is_lost")
def test_invalid_comparisons_are_refused_in_one_line(
    runs: Path, train_command: str, root: Path, tmp_path: Path
) -> None:
    empty = Path(shutil.copytree(runs / "cskt", tmp_path / "empty", ignore=shutil.ignore_patterns("evaluations")))
    before = contents(runs)
    refusal = typed(f"cskt compare {runs}/clip {empty}").refusal()
    assert refusal == f"{empty}: holds no per-query results; make them: cskt evaluate {empty} --split test"
    assert "1 to compare; give at least two" in typed(f"cskt compare {runs}/clip").refusal()
    assert "no such folder" in typed(f"cskt compare {runs}/clip {runs}/clop").refusal()
    for command in (
        "compare {0} {0}",
        "report {0}",
        "evaluate {0}",
        "report a --output {0}.html",
        "matrix {0} --datasets jsonl",
    ):
        assert "File name too long" in typed(f"cskt {command.format('a' * 300)}").refusal()
    assert "none on any data set val" in typed(f"cskt compare {runs}/clip {runs}/cskt --split val").refusal()
    refusal = typed(f"cskt compare {runs}/clip {runs}/cskt --output {tmp_path}/table.html").refusal()
    assert refusal == f"--output {tmp_path}/table.html: end it in .md, .tex, .csv, .json, or say the --format"
    assert "invalid choice: 'html'" in typed(f"cskt compare {runs}/clip {runs}/cskt --format html").refusal()
    assert contents(runs) == before

    done(f"cskt evaluate {empty} --dataset rstpreid --root {root}")
    refusal = typed(f"cskt compare {runs}/clip {empty}").refusal()
    assert "different queries or galleries cannot be compared" in refusal
    assert f"{runs}/clip: cuhk-pedes test, 24 queries" in refusal and f"{empty}: rstpreid test" in refusal


@pytest.mark.slow
def test_runs_that_share_several_splits_ask_for_one(runs: Path, root: Path, tmp_path: Path) -> None:
    for name in ("cskt", "slow/seed-1"):
        for dataset in ("cuhk-pedes", "icfg-pedes"):
            done(f"cskt evaluate {runs}/{name} --dataset {dataset} --root {root} --output {tmp_path}/{Path(name).name}")
    command = f"cskt compare {tmp_path}/cskt {tmp_path}/seed-1"
    refusal = typed(command).refusal()
    assert refusal == ("the runs share results on 2 splits (cuhk-pedes, icfg-pedes); choose one: --dataset cuhk-pedes")
    assert typed(f"{command} --dataset icfg-pedes --format json").json()["dataset"] == "icfg-pedes"


def test_results_of_other_weights_are_not_compared(runs: Path, tmp_path: Path) -> None:
    stale = Path(shutil.copytree(runs / "cskt", tmp_path / "stale"))
    shutil.copy(runs / "slow" / "seed-1" / "best.safetensors", stale)
    refusal = typed(f"cskt compare {runs}/clip {stale}").refusal()
    assert f"{stale}: its result on cuhk-pedes test is of other weights than it holds now" in refusal


def test_all_seeds_or_none(runs: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs / "slow", tmp_path / "slow"))
    done(f"cskt evaluate {folder}/seed-2 --query-expansion 2")
    refusal = typed(f"cskt compare {runs}/clip {folder}").refusal()
    assert f"{folder}: 1 of 2 seeds have a result on cuhk-pedes test with query-expansion-2" in refusal


# --- matrix


@pytest.mark.slow
def test_matrix_computes_missing_results_and_marks_the_own_domain(
    runs: Path, root: Path, own_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(runs / "cskt", tmp_path / "cskt")
    shutil.copytree(runs / "slow", tmp_path / "slow")
    command = (
        f"cskt matrix {tmp_path}/cskt {tmp_path}/slow --datasets cuhk-pedes RSTPReid jsonl@{own_data} --root {root}"
    )
    caplog.set_level(logging.INFO)
    cells = typed(f"{command} --format json").json()["cells"]
    assert sum("per-query results" in message for message in caplog.messages) == 6, "that on cuhk-pedes is stored"
    assert [cell["tested_on"] for cell in cells[:3]] == ["cuhk-pedes", "rstpreid", f"jsonl ({own_data.name})"]
    assert [cell["in_domain"] for cell in cells] == [True, False, False] * 2
    assert {(cell["label"], cell["trained_on"]) for cell in cells} == {("cskt", "cuhk-pedes"), ("slow", "cuhk-pedes")}
    assert cells[0]["r1"] == find_results(runs / "cskt")[0].metrics["t2i"]["r1"]
    assert cells[3]["r1_deviation"] is not None and cells[3]["note"] == "selected on test"

    caplog.clear()
    table = done(command)
    assert caplog.messages == [], "nothing is evaluated twice"
    for cell in cells:
        assert f"{100 * cell['r1']:.2f}" + (" *" if cell["in_domain"] else "") in table
        assert cell["r1_deviation"] is None or f"± {100 * cell['r1_deviation']:.2f}" in table
    markdown, latex = (done(f"{command} --format {form}") for form in ("markdown", "latex"))
    assert len([line for line in markdown.splitlines() if line.startswith("|")]) == 4 and r"\*" in markdown
    assert r"\begin{tabular}{llrrrl}" in latex

    shutil.copy(runs / "slow" / "seed-1" / "best.safetensors", tmp_path / "cskt")
    fresh = typed(f"{command} --format json").json()["cells"]
    assert sum("per-query results" in message for message in caplog.messages) == 3, "other weights, other results"
    assert fresh[1]["r1"] == find_results(tmp_path / "slow" / "seed-1", dataset="rstpreid")[0].metrics["t2i"]["r1"]


def test_a_public_name_in_another_folder_is_another_domain(runs: Path, root: Path, tmp_path: Path) -> None:
    run, moved = Path(shutil.copytree(runs / "cskt", tmp_path / "cskt")), tmp_path / "moved"
    shutil.copytree(root / "CUHK-PEDES", moved / "CUHK-PEDES")
    command = f"cskt matrix {run} --format json --datasets cuhk-pedes@{root} cuhk-pedes@{moved}"
    assert [cell["in_domain"] for cell in typed(command).json()["cells"]] == [True, False]
    columns = [cell["tested_on"] for cell in typed(command).json()["cells"]]
    assert columns == [f"cuhk-pedes ({folder.name})" for folder in (root, moved)]
    save_config(load_config(run / "config.yaml", {"data.root": "/trained/elsewhere"}), run / "config.yaml")
    cells = typed(f"{command} rstpreid@{root}").json()["cells"]
    assert [cell["in_domain"] for cell in cells] == [True, True, False], "by its name, for the folder is not here"


def test_columns_have_distinct_names_and_no_duplicates(runs: Path, root: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs / "cskt", tmp_path / "cskt"))
    places = [tmp_path / name / "data" for name in "ab"]
    for place in places:
        shutil.copytree(root / "CUHK-PEDES", place / "CUHK-PEDES")
    command = f"cskt matrix {run} --format json --datasets rstpreid@{root} cuhk-pedes@{places[0]}"
    cells = typed(f"{command} cuhk-pedes@{places[1]}").json()["cells"]
    assert [cell["tested_on"] for cell in cells] == ["rstpreid", *(f"cuhk-pedes ({place})" for place in places)]
    refusal = typed(f"{command} cuhk-pedes@{places[0]}").refusal()
    assert refusal == "--datasets: cuhk-pedes is named 2 times; once is enough"


@pytest.mark.slow
def test_a_run_that_trains_nothing_is_trained_on_nothing(
    runs: Path, tiny_backbone: Path, root: Path, tmp_path: Path
) -> None:
    """Nor does its data set have to fill a batch."""
    clip = tmp_path / "clip"
    size = f"--image-height {HEIGHT} --image-width {WIDTH} --data.batch_size 1000"
    done(f"cskt train --config clip --root {root} --backbone.name {tiny_backbone} {size} --device cpu --output {clip}")
    done(f"cskt evaluate {clip} --device cpu")
    row, other = typed(f"cskt compare {clip} {runs}/cskt --format json").json()["rows"]
    facts = ("trained_on", "training_seconds", "training_peak_memory_bytes", "trainable_parameters")
    assert [row[key] for key in facts] == [None, None, None, 0]
    assert other["trained_on"] == "cuhk-pedes" and other["training_peak_memory_bytes"] > 0
    (cell,) = typed(f"cskt matrix {clip} --datasets cuhk-pedes --root {root} --format json").json()["cells"]
    assert (cell["trained_on"], cell["in_domain"]) == (None, False)
    page = tmp_path / "page.html"
    done(f"cskt report {clip} --output {page} --lists 0 --device cpu")
    assert "not trained" in page.read_text(encoding="utf-8")


def test_matrix_of_plain_weights_and_of_missing_runs(runs: Path, tiny_backbone: Path, root: Path) -> None:
    before = contents(runs)
    cells = typed(f"cskt matrix {tiny_backbone} --datasets icfg-pedes --root {root} --format json").json()["cells"]
    assert (cells[0]["trained_on"], cells[0]["in_domain"]) == (None, False)
    refusal = typed(f"cskt matrix {runs}/cskt --datasets cuhk-pedse --root {root}").refusal()
    assert refusal == "unknown data set 'cuhk-pedse': did you mean 'cuhk-pedes'?"
    assert "no such run folder" in typed(f"cskt matrix {runs}/csk --datasets rstpreid --root {root}").refusal()
    assert "--datasets" in typed(f"cskt matrix {runs}/cskt").refusal()
    assert contents(runs) == before


@pytest.mark.slow
def test_matrix_refuses_columns_of_different_people(runs: Path, root: Path, tmp_path: Path) -> None:
    for seed in (1, 2):  # people held out from ICFG-PEDES, which has no val split
        folder = Path(shutil.copytree(runs / "cskt", tmp_path / str(seed)))
        overrides = {"data.dataset": "icfg-pedes", "data.holdout_fraction": 0.5, "data.holdout_seed": seed}
        save_config(load_config(folder / "config.yaml", overrides), folder / "config.yaml")
    refusal = typed(f"cskt matrix {tmp_path}/1 {tmp_path}/2 --datasets icfg-pedes --split val").refusal()
    assert "different queries or galleries cannot be compared" in refusal


def test_a_run_folder_that_is_deleted_while_it_is_evaluated(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The means are known and printed; nothing is made anew in its place."""
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    result_of = run_results.result_of

    def evaluate_and_lose(*arguments: Any, **options: Any) -> Result:
        result = result_of(*arguments, **options)
        shutil.rmtree(folder)
        return result

    monkeypatch.setattr(run_results, "result_of", evaluate_and_lose)
    assert typed(f"cskt evaluate {folder} --json").json()["split"] == "test"
    assert any("the run folder was deleted or moved" in message for message in caplog.messages)
    assert not folder.exists()


def test_a_split_of_one_identity_is_noted(tiny_backbone: Path, tmp_path: Path) -> None:
    done(f"cskt data make {tmp_path} --layout jsonl --train-ids 2 --val-ids 1 --test-ids 1 --images-per-id 2 --seed 9")
    result = typed(f"cskt evaluate {tiny_backbone} --dataset jsonl --root {tmp_path} --json").json()
    assert (result["t2i"]["r1"], result["note"]) == (1.0, "one identity: every answer is right, whatever the model")


def test_the_backbone_of_a_matrix_is_for_models_that_contain_none(
    runs: Path, tiny_backbone: Path, root: Path, tmp_path: Path
) -> None:
    run, moved = shutil.copytree(runs / "cskt", tmp_path / "run"), tmp_path / "clip.safetensors"
    shutil.copy(tiny_backbone, moved)
    save_config(load_config(run / "config.yaml", {"backbone.name": "not-here.safetensors"}), run / "config.yaml")
    flags = f"--backbone {moved} --datasets icfg-pedes --root {root} --device cpu --format json"
    cells = typed(f"cskt matrix {run} {moved} {flags}").json()["cells"]
    assert [cell["trained_on"] for cell in cells] == ["cuhk-pedes", None]
    assert "contains its backbone; leave out --backbone" in typed(f"cskt matrix {moved} {flags}").refusal()
