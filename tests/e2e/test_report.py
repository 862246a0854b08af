"""`cskt report`: one page and its pictures, for one run and for several; bad input ends in one line."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from command_line import done, typed
from PIL import Image

from cskt.cli.run_report import warnings_of
from cskt.config import load_config, save_config
from cskt.training.events import read_events

pytestmark = pytest.mark.usefixtures("nothing_is_lost")

FETCHING = {"src", "href", "srcset", "poster", "data", "action", "background"}
"""Attributes whose address a browser would fetch."""


class Page(HTMLParser):
    """Addresses, tags, headings and text of a page, as a browser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in FETCHING]

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags and self.tags[-1] == "h2" and data.strip():
            self.headings.append(data)


@pytest.fixture(scope="module")
def written(run: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The report of a run beside the plain backbone, and what the command printed."""
    page = tmp_path_factory.mktemp("report") / "new" / "both.html"
    return page, done(
        f"cskt report {run} {tiny_backbone} --backbone {tiny_backbone} --output {page} --lists 2 -k 4 --device cpu"
    )


def test_the_page_needs_nothing_but_itself_and_is_small(written: tuple[Path, str]) -> None:
    page, _ = written
    text = page.read_text(encoding="utf-8")
    seen = Page(text)
    assert page.stat().st_size < 10_000_000
    assert seen.addresses and all(address.startswith("data:") for address in seen.addresses)
    assert "script" not in seen.tags and "link" not in seen.tags
    assert not re.search(r"@import|url\(", text)
    assert "default-src 'none'" in text


def test_the_page_holds_all_the_evidence_of_both_models(written: tuple[Path, str], run: Path) -> None:
    seen = Page(written[0].read_text(encoding="utf-8"))
    warned = warnings_of(read_events(run))
    assert all(line in seen.text for line in warned)
    assert seen.headings == [
        "Results", *(["Warnings"] if warned else []), "Comparison with cskt", "Size and time",
        "Cumulative matching", "Similarities", "Hardest queries",
        "Best ranked lists of cskt", "Worst ranked lists of cskt", "Confusion by attribute", "Colours of clothing",
        "Learning curves", "How it was made", "Next", "Configuration",
    ]  # fmt: skip
    assert "cuhk-pedes test: 6 people, 12 images, 24 captions" in seen.text
    assert "not trained" in seen.text, "the plain backbone"
    assert seen.text.count("first right image at rank") == 6 + 2 + 2
    assert len(re.findall(r"person \d+: first right image", seen.text)) == 6
    assert f"root: {(run / 'config.yaml').read_text().split('root: ')[1].split()[0]}" in seen.text


def test_the_figures_are_those_of_evaluate(written: tuple[Path, str], run: Path) -> None:
    table = next(line for line in written[1].splitlines() if line.split()[:1] == ["cskt"])
    evaluated = typed(f"cskt evaluate {run} --device cpu --json").json()["t2i"]
    expected = [f"{100 * evaluated[name]:.2f}" for name in ("r1", "r5", "r10", "mean_ap", "mean_inp")]
    assert table.split()[1:6] == expected


def table_of(text: str, heading: str) -> list[list[str]]:
    """The cells of the table of a section, as text."""
    section = text.split(f">{heading}</h2>")[1].partition("</section>")[0]
    lines = re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)
    return [[unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line)] for line in lines]


@pytest.mark.slow
def test_the_comparison_is_that_of_compare(run: Path, tiny_backbone: Path, root: Path, tmp_path: Path) -> None:
    here, clip, page = Path(shutil.copytree(run, tmp_path / "run")), tmp_path / "clip", tmp_path / "page.html"
    shutil.rmtree(here / "evaluations", ignore_errors=True)
    command = f"cskt report {here} {tiny_backbone} --output {page} --lists 0 --device cpu"
    done(command)
    untimed = page.read_text(encoding="utf-8")
    assert f"evaluate {here} --dataset cuhk-pedes --split test" in untimed
    assert "Images/s" not in table_of(untimed, "Size and time")[0]

    done(f"cskt evaluate {here} --device cpu")
    done(f"cskt evaluate {tiny_backbone} --dataset cuhk-pedes --root {root} --output {clip} --device cpu")
    done(command)
    text = page.read_text(encoding="utf-8")
    headings, ours, plain = (
        differences + costs[1:]
        for differences, costs in zip(
            table_of(text, "Comparison with cskt"), table_of(text, "Size and time"), strict=True
        )
    )
    assert "Not timed" not in text and "Δ: difference from cskt in percentage points." in text
    printed = done(f"cskt compare {here} {clip} --format markdown").splitlines()
    expected = [
        dict(zip(*([cell.strip().replace("\\", "") for cell in line.split("|")[1:-1]] for line in pair), strict=True))
        for pair in ((printed[2], printed[4]), (printed[2], printed[5]))
    ]
    for cells, row in zip((ours, plain), expected, strict=True):
        shown = dict(zip(headings, cells, strict=True))
        same = row.keys() - {"Method", "Images/s", "Captions/s", "R1", "R5", "R10", "mAP", "mINP"}
        assert {"p people (R1)", "Δ mAP", "Parameters", "Training", "Peak memory", "Checkpoint", "Seeds"} <= same
        assert {key: shown[key] for key in same} == {key: row[key] for key in same}
    assert dict(zip(headings, ours, strict=True))["Images/s"] == expected[0]["Images/s"]


@pytest.mark.slow
def test_differing_settings_and_warnings_are_shown(run: Path, tmp_path: Path) -> None:
    """Two runs that differ in two settings; one found out that it cannot have learned."""
    other, page = Path(shutil.copytree(run, tmp_path / "other")), tmp_path / "page.html"
    config = load_config(other / "config.yaml", {"optim.lr": 0.125, "data.batch_size": 7, "name": "other", "seed": 9})
    save_config(config, other / "config.yaml")
    events = read_events(other)
    events[-1]["warnings"] = ["no epoch is better than <b>zero-shot</b>"]
    (other / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    done(f"cskt report {run} {other} --output {page} --lists 0 --device cpu")
    text = page.read_text(encoding="utf-8")
    assert table_of(text, "Settings that differ") == [
        ["Setting", "cskt", "other"], ["data.batch_size", "8", "7"], ["optim.lr", "0.01", "0.125"],
    ]  # fmt: skip
    assert "no epoch is better than &lt;b&gt;zero-shot&lt;/b&gt;" in text


@pytest.mark.slow
def test_a_folder_of_seeds_is_its_first_seed_and_a_single_run_shows_its_size(run: Path, tmp_path: Path) -> None:
    for seed in (2, 1):
        shutil.copytree(run, tmp_path / "cskt" / f"seed-{seed}")
    page = tmp_path / "page.html"
    done(f"cskt report {tmp_path}/cskt --output {page} --lists 0 --device cpu")
    seen = Page(page.read_text(encoding="utf-8"))
    assert "cskt (seed-1) on cuhk-pedes test" in seen.text and not any(
        "Comparison" in heading for heading in seen.headings
    )
    assert f"query {tmp_path}/cskt/seed-1" in seen.text
    assert re.search(r"[\d,]+ parameters, checkpoint [\d.]+ [kM]B", seen.text)


def test_pictures_are_in_a_folder_beside_the_page(written: tuple[Path, str]) -> None:
    page, printed = written
    folder = page.with_name("both_files")
    assert f"report:   {page}" in printed and f"pictures: {folder}" in printed
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "attributes.png", "best-1.png", "best-2.png", "cmc.png", "confusion-lower-colour.png",
        "confusion-upper-colour.png", "learning-curves-1.png", "similarities.png", "worst-1.png", "worst-2.png",
    ]  # fmt: skip
    for path in folder.iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG" and picture.width > 300


REFUSED = {
    "k above the gallery": ("{run} -k 13", ("-k 13: the split has 12 images; give 1 to 12",)),
    "no lists": ("{run} --lists -1", ("--lists -1: give 0 or more",)),
    "folder that is no run": ("{root}", ("it is no run folder, for it has no config.yaml",)),
    "no such run": ("{run}-absent", ("no such run folder",)),
    "no such split": ("{run} --split nine", ("no split 'nine'", "train, val, test")),
    "one run twice": ("{run} {run}", ("is named 2 times; once is enough",)),
    "output that is no page": ("{run} --output page.pdf", ("--output page.pdf: name a file that ends in .html",)),
    "too many runs": (" ".join(f"run-{n}" for n in range(9)), ("9 runs; a page shows up to 8",)),
    "weights alone": ("clip-tiny", ("say which to use: --dataset rstpreid --root DIR",)),
    "different splits": (
        "{run} {other}",
        ("cuhk-pedes test, 12 images, 24 captions", "rstpreid test, 12 images", "--dataset NAME --root DIR"),
    ),
    "mistyped flag": ("{run} --ouput x.html", ("did you mean --output?",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_ends_in_one_line_before_anything_is_encoded(
    case: str, run: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, expected = REFUSED[case]
    other = tmp_path / "other"
    other.mkdir()
    config = (run / "config.yaml").read_text().replace("dataset: cuhk-pedes", "dataset: rstpreid")
    (other / "config.yaml").write_text(config)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cskt.cli.report.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    reason = typed(f"cskt report {words.format(run=run, root=root, other=other)}").refusal()
    assert all(part in reason for part in expected), reason
    assert not list(tmp_path.glob("*.html"))
