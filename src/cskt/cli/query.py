"""`cskt query`: sentences in, the best crops of a split out, as a table, JSON or pictures."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from cskt.cli.model_flags import FAST_PRECISION, add_model_flags, load_model_and_split
from cskt.cli.parsing import Parser
from cskt.data.sentences import LONGEST_SENTENCE, check_length
from cskt.errors import CsktError, file_system_errors
from cskt.evaluation.evaluate import answer
from cskt.report.answers import Answer, PicturedHit, answer_sheet
from cskt.types import Hit
from cskt.utils.console import console, literal
from cskt.utils.terminal import json_text

logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """See `cskt query --help`."""
    parser = Parser(prog="cskt query", description="Rank the crops of a split for each sentence.")
    add_model_flags(parser, FAST_PRECISION)
    parser.add_argument(
        "sentences", nargs="+",
        help=f"one or more sentences, each in quotes and of at most {LONGEST_SENTENCE:,} characters",
    )  # fmt: skip
    parser.add_argument("-k", type=int, default=5, help="crops per sentence (default: %(default)s)")
    parser.add_argument("--sheet", type=Path, help="also draw the crops, as PNG; numbered if there are more sentences")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of a table")
    flags = parser.parse(argv)
    if flags.sheet and flags.sheet.suffix.lower() != ".png":
        raise CsktError(f"--sheet {flags.sheet}: name a file that ends in .png")
    for sentence in flags.sentences:
        check_length(sentence)
    flags.precision = flags.precision or FAST_PRECISION
    encoder, split = load_model_and_split(flags, refuse_overlaps=False)  # hits are shown, no figure is computed
    if not 1 <= flags.k <= len(split.records):
        raise CsktError(f"-k {flags.k}: the split has {len(split.records)} images; give 1 to {len(split.records)}")
    for line in encoder.text_warnings(flags.sentences):
        logger.warning("%s", line)
    answers = answer(encoder, split, flags.sentences, flags.k)
    if flags.json:
        found = [
            {"query": query, "hits": [dataclasses.asdict(hit) for hit in hits]}
            for query, hits in zip(flags.sentences, answers, strict=True)
        ]
        print(json_text(found))
    for number, (query, hits) in enumerate(zip(flags.sentences, answers, strict=True), start=1):
        if not flags.json:
            console().print(_table(query, hits))
        if flags.sheet:
            path = flags.sheet if len(answers) == 1 else flags.sheet.with_stem(f"{flags.sheet.stem}-{number}")
            with file_system_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                answer_sheet(Answer(query, [PicturedHit(hit, Path(hit.image_id)) for hit in hits])).save(path)
    return 0


def _table(query: str, hits: Sequence[Hit]) -> Table:
    table = Table("rank", "score", "pid", "image", title=literal(query), title_justify="left")
    for hit in hits:
        table.add_row(str(hit.rank), f"{hit.score:.3f}", str(hit.metadata["pid"]), literal(hit.image_id))
    return table
