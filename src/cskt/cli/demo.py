"""`cskt demo`: CSKT learns and answers sentences on generated pedestrians, from nothing but the package."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from cskt.cli.parsing import Parser, command_line
from cskt.cli.run_report import write_run_report
from cskt.config import load_config
from cskt.config.file_names import REPORT
from cskt.data.datasets import read_dataset
from cskt.data.paperdoll import make_dataset
from cskt.data.records import Split
from cskt.embed import Encoder, load
from cskt.errors import CsktError, file_system_errors, out_of_memory_errors
from cskt.evaluation.comparison import MethodResults
from cskt.evaluation.evaluate import (
    ModelDescription,
    SplitFeatures,
    as_result,
    encode_split,
    evaluate,
    search_split,
)
from cskt.evaluation.results import Result
from cskt.model.io.cache import CLIP_TINY
from cskt.report.pictured_results import PicturedHit, PicturedResult, answer_sheet
from cskt.report.tables import ResultRow, result_table
from cskt.training.loop import train
from cskt.utils.console import console, counting_bar

logger = logging.getLogger(__name__)

NUM_SENTENCES = 3
NUM_CROPS = 5
MIN_IDS = 10
"""Fewer people to train on do not fill a batch of the recipe; fewer to search among are no search."""


@out_of_memory_errors()
def main(argv: Sequence[str]) -> int:
    """See `cskt demo --help`."""
    parser = Parser(prog="cskt demo", description="Draw pedestrians, train CSKT on them, answer three sentences.")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for all files (%(default)s)")
    parser.add_argument("--train-ids", type=int, default=500, help="training identities (%(default)s)")
    parser.add_argument("--test-ids", type=int, default=100, help="unseen identities to search among (%(default)s)")
    parser.add_argument("--epochs", type=int, help="epochs (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=1, help="seed of people and of training (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (%(default)s)")
    flags = parser.parse(argv)
    if min(flags.train_ids, flags.test_ids) < MIN_IDS:
        raise CsktError(f"--train-ids and --test-ids: give at least {MIN_IDS} each")

    root = flags.output / "data"
    overrides = {"data.root": str(root), "seed": flags.seed, "device": flags.device, "output_dir": str(flags.output)}
    if flags.epochs is not None:
        overrides["loop.num_epochs"] = flags.epochs
    config = load_config("demo", overrides)
    draw(root, flags.train_ids, flags.test_ids, flags.seed)
    logger.info("training CSKT over %s (frozen)", config.backbone.name)
    folder = train(config).folder

    test = read_dataset(config.data.dataset, root)["test"]
    zero_shot, cskt = load(config.backbone.name, device=flags.device), load(folder, device=flags.device)
    features = encode_split(cskt, test)
    rows = compare(zero_shot, cskt, test, features)
    answers = answer_test_sentences(cskt, test, features)
    with file_system_errors(flags.output):
        sheets = [flags.output / f"answer-{number}.png" for number in range(1, len(answers) + 1)]
        for path, found in zip(sheets, answers, strict=True):  # right crops framed green, wrong ones red
            answer_sheet(found).save(path)
    commands = next_commands(folder, root, answers[0].query)
    report = write_run_report(
        folder, title="CSKT on generated pedestrians", extra_rows=rows, answers=answers, next_commands=commands
    )
    with file_system_errors(flags.output):
        shutil.copyfile(report, flags.output / REPORT)

    console().print(result_table(rows, f"{flags.test_ids} unseen people, {len(test.records)} images (percent)"))
    print("\nanswers: " + "  ".join(str(sheet) for sheet in sheets))
    print(f"report:  {flags.output / REPORT}  (open it in a browser)\n\nnext:")
    print("\n".join(f"  {command}" for command in commands[:-1]))
    print(f"with a licensed data set and CLIP's weights (see README.md):\n  {commands[-1]}")
    return 0


def draw(root: Path, train_ids: int, test_ids: int, seed: int) -> None:
    """Draw pedestrians of the `target` domain in the layout of CUHK-PEDES, unless they exist."""
    ids = {"train": train_ids, "val": max(train_ids // 10, 10), "test": test_ids}
    with counting_bar("drawing pedestrians") as on_progress:
        try:
            make_dataset(root, layout="cuhk-pedes", domain="target", ids=ids, seed=seed, on_progress=on_progress)
        except CsktError as error:
            raise CsktError(f"{error}: --output FOLDER") from None


def compare(zero_shot: Encoder, cskt: Encoder, test: Split, features: SplitFeatures) -> list[ResultRow]:
    """Evaluate zero-shot CLIP and trained CSKT, which trains only what it adds, on unseen people."""
    frozen, total = zero_shot.model.num_parameters(), cskt.model.num_parameters()
    before, after = (
        as_result(evaluation, encoder, test, ModelDescription(label))
        for label, evaluation, encoder in (
            ("clip-tiny, zero-shot", evaluate(zero_shot, test), zero_shot),
            ("CSKT", evaluate(cskt, test, features), cskt),
        )
    )
    reference = before.metrics["t2i"]["r1"]
    return [
        ResultRow(
            result.label, result.metrics["t2i"], trained, size, "on test", intervals(result), zero_shot_r1=zero_shot_r1
        )
        for result, trained, size, zero_shot_r1 in (
            (before, 0, frozen, None),
            (after, total - frozen, total, reference),
        )
    ]


def intervals(result: Result) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of every metric, people resampled."""
    estimates = MethodResults(result.label, (result,)).estimates()
    return {metric: estimate.interval for metric, estimate in estimates.items()}


def answer_test_sentences(encoder: Encoder, test: Split, features: SplitFeatures) -> list[PicturedResult]:
    """Search for the captions of three people spread over the split."""
    spread = [index * len(test.captions) // NUM_SENTENCES for index in range(NUM_SENTENCES)]
    queries, pids = [test.captions[index] for index in spread], [test.caption_pids[index] for index in spread]
    return [
        PicturedResult(query, [PicturedHit(hit, Path(hit.image_id), hit.metadata["pid"] == pid) for hit in hits])
        for query, pid, hits in zip(
            queries, pids, search_split(encoder, test, queries, NUM_CROPS, features), strict=True
        )
    ]


def next_commands(folder: Path, root: Path, query: str) -> list[str]:
    """Return commands to try after the demo; the last one needs files that the package cannot ship."""
    return [
        command_line("query", folder, query, "--sheet", "answer.png"),
        command_line("evaluate", folder),
        command_line("train", "--config", "finetune", "--backbone.name", CLIP_TINY, "--root", root),
        command_line("data", "make", "my-data", "--layout", "rstpreid", "--train-ids", "500"),
        command_line("train", "--config", "cskt", "--root", "DIR"),
    ]
