"""`cskt evaluate`: retrieval metrics of any model on any split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cskt.app.model_flags import add_model_flags, load_model_and_split, run_config
from cskt.app.parsing import Parser
from cskt.data.records import Split
from cskt.embed import Encoder
from cskt.evaluate import evaluate
from cskt.report.tables import ResultRow, result_table


def main(argv: Sequence[str]) -> int:
    """See `cskt evaluate --help`."""
    parser = Parser(prog="cskt evaluate", description="Retrieval metrics of a model on a split.")
    add_model_flags(parser)
    parser.add_argument("--json", action="store_true", help="fractions as JSON on stdout, instead of a table")
    flags = parser.parse(argv)
    encoder, split = load_model_and_split(flags)
    return report_metrics(encoder, split, Path(flags.model), as_json=flags.json)


def report_metrics(encoder: Encoder, split: Split, model: Path, *, as_json: bool) -> int:
    """Evaluate and print, as a table for people or as JSON."""
    result = evaluate(encoder, split)
    note = selection_note(model)
    if as_json:
        print(json.dumps({"model": str(model), "note": note, **result.summary()}))
        return 0
    total = encoder.model.num_parameters()
    rows = [
        ResultRow("text to image", result.t2i.summary(), total_parameters=total, note=note),
        ResultRow("image to text", result.i2t.summary(), total_parameters=total, note=note),
    ]
    sizes = f"{result.t2i.num_queries} captions, {result.t2i.num_gallery} images"
    Console().print(result_table(rows, f"{model} on {result.dataset} {result.split} ({sizes})"))
    return 0


def selection_note(model: Path) -> str:
    """`selected on test` where a run chose its epoch on the test split, for every result of it to carry."""
    config = run_config(model)
    return "selected on test" if config is not None and config.data.select_on == "test" else ""
