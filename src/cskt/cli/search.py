"""`cskt search`: sentences or pictures in, the best crops of a gallery out, as a table, JSON, a page or a picture."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.table import Table

from cskt.cli.parsing import Parser
from cskt.data.sentences import LONGEST_SENTENCE
from cskt.errors import CsktError, file_system_errors, out_of_memory_errors
from cskt.gallery.options import SearchOptions
from cskt.gallery.query import Query
from cskt.utils.console import console, literal
from cskt.utils.terminal import json_text, printable

if TYPE_CHECKING:  # what needs torch is imported when it is used: --help and wrong flags do not wait for it
    from cskt.cli.explanations import Explanations
    from cskt.gallery.gallery import Gallery
    from cskt.types import Hit

logger = logging.getLogger(__name__)

MOST_QUERIES = 10_000
MOST_DRAWN = 100
"""Crops per sentence on a sheet, or with heat maps."""

DESCRIPTION = f"""\
Search a gallery by sentence, by picture, or by both together. Scores are cosines: higher is better, and what is good
differs from model to model. Where `cskt calibrate` has set a cut-off, crops below it do not answer. A sentence that
nothing matches gives no hits, a line on stderr that says so, and exit code 0 like any other.
A sentence may hold {LONGEST_SENTENCE:,} characters; the model reads the first 77 tokens, some 60 words, and warns.
"""
EXAMPLES = """\
examples:
  cskt search my-gallery "a man in a grey hooded jacket with a black backpack"
  cskt search my-gallery "a woman in red" --where "camera = 'c3' and time > '2026-01-01'" --min-score 0.2
  cskt search my-gallery "a man in a suit" --not "with a hat" --group-by track --html answer.html
  cskt search my-gallery --like cam3/0001.jpg "now with a coat" --image-weight 2
  cskt search my-gallery --queries sentences.txt --json > answers.json
  cskt search my-gallery "a red bag" -k 5 --explain --sheet why.png
filters (--where): =, !=, <, <=, >, >=, in (...), between ... and ...,
  like 'text with %' [escape 'c'], is null, and, or, not, ( )
  on the columns of the metadata and on image_id, width, height, num_bytes, sha256
"""


@dataclasses.dataclass(frozen=True)
class Answered:
    """A query and what became of it."""

    query: Query
    title: str
    hits: list[Hit]
    explanations: Explanations | None
    """None where they were not asked for."""
    note: str
    """Why there are no hits; empty where there are."""


@out_of_memory_errors()
def main(argv: Sequence[str]) -> int:
    """See `cskt search --help`."""
    flags = _flags(argv)
    sentences = [*flags.sentences, *(_read_queries(flags.queries) if flags.queries else [])]
    queries = _queries(flags, sentences)
    options = SearchOptions(flags.k, flags.offset, flags.where, flags.min_score, flags.group_by)
    # Threads of torch, which is loaded below, sleep when they wait: a process that is over so soon gains nothing where
    # they spin, and beside other programs loses seconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from cskt.gallery.gallery import Gallery  # noqa: PLC0415

    with Gallery.open(flags.gallery, device=flags.device) as gallery:
        found = gallery.search_many(queries, options)
        _warn(gallery, queries)
        answers = [_answered(gallery, flags, query, hits) for query, hits in zip(queries, found, strict=True)]
        if flags.json:
            print(json_text([_record(answer) for answer in answers]))
        for answer in answers:
            if answer.note:
                print(f"{answer.title[:200]}: {answer.note}", file=sys.stderr)
            elif not flags.json:
                console().print(_table(answer, list(gallery.columns), grouped=flags.group_by is not None))
        if flags.sheet or flags.html:
            _draw(gallery, flags, answers)
    return 0


def _flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="cskt search", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("gallery", type=Path, metavar="GALLERY", help="folder of the gallery")
    parser.add_argument(
        "sentences", nargs="*", default=[], metavar="SENTENCE", help="one or more sentences, each in quotes"
    )
    parser.add_argument("--queries", metavar="FILE", help="more sentences, one per line, UTF-8; - reads stdin")
    parser.add_argument(
        "-k", type=int, default=SearchOptions.k, help="most crops per sentence, to 10,000 (default: %(default)s)"
    )
    parser.add_argument("--offset", type=int, default=0, metavar="N", help="pass over the N best crops")
    parser.add_argument("--where", metavar="FILTER", help="only crops whose metadata fulfils this; see below")
    parser.add_argument(
        "--min-score", type=float, metavar="X",
        help="only crops that score at least X; -1 for all (default: the calibrated cut-off, where there is one)",
    )  # fmt: skip
    parser.add_argument(
        "--group-by", metavar="COLUMN", help="only the best crop of each value of a column, such as track"
    )
    group = parser.add_argument_group("pictures, and what not to find; together with the sentences, or by themselves")
    group.add_argument("--image", type=Path, metavar="FILE", help="more like this picture")
    group.add_argument("--like", metavar="IMAGE_ID", help="more like this crop of the gallery")
    group.add_argument("--not", action="append", default=[], metavar="SENTENCE", dest="exclude", help="but not this")
    for name, what in (("text", "the sentence"), ("image", "--image and --like"), ("not", "each --not")):
        default = getattr(Query, f"{'exclude' if name == 'not' else name}_weight")
        group.add_argument(
            f"--{name}-weight", type=float, default=default, metavar="W", help=f"of {what} (default: %(default)s)"
        )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help='[{"query": ..., "hits": [...]}, ...] instead of tables')
    output.add_argument("--html", type=Path, metavar="FILE", help="also one HTML file with the crops")
    output.add_argument(
        "--sheet", type=Path, metavar="FILE", help="also draw the crops, as PNG; numbered if there are more sentences"
    )
    output.add_argument(
        "--explain", action="store_true",
        help="where the model sees the sentence and each of its words in a crop: heat maps in --sheet and --html,"
        " numbers in --json",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
    flags = parser.parse(argv, intermixed=True)
    for name, suffixes in (("sheet", (".png",)), ("html", (".html", ".htm"))):
        path = getattr(flags, name)
        if path and path.suffix.lower() not in suffixes:
            raise CsktError(f"--{name} {path}: name a file that ends in {suffixes[0]}")
    if flags.image and not flags.image.is_file():
        raise CsktError(f"--image {flags.image}: no such file")
    if flags.explain and not (flags.sheet or flags.html or flags.json):
        raise CsktError("--explain draws heat maps; say where to: --sheet why.png, --html why.html, or --json")
    if (flags.explain or flags.sheet) and flags.k > MOST_DRAWN:
        raise CsktError(f"-k {flags.k}: --sheet and --explain draw at most {MOST_DRAWN} crops; give less")
    return flags


def _read_queries(name: str) -> list[str]:
    """The sentences of a file, or of stdin for `-`; empty lines are passed over."""
    try:
        with file_system_errors(f"--queries {name}"):
            content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        sentences = [line.strip() for line in content.decode("utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise CsktError(f"--queries {name}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    if not sentences:
        raise CsktError(f"--queries {name}: holds no sentence; write one per line")
    return sentences


def _queries(flags: argparse.Namespace, sentences: Sequence[str]) -> list[Query]:
    """One query per sentence, or a single one without a sentence for a picture alone."""
    if len(sentences) > MOST_QUERIES:
        raise CsktError(f"{len(sentences):,} sentences are more than {MOST_QUERIES:,}; search in several goes")
    if flags.explain and not sentences:
        raise CsktError("--explain shows where a sentence is seen; give a sentence as well")
    texts: Sequence[str | None] = sentences or [None]
    return [
        Query(
            text, flags.image, flags.like, tuple(flags.exclude), flags.text_weight, flags.image_weight, flags.not_weight
        )
        for text in texts
    ]


def _warn(gallery: Gallery, queries: Sequence[Query]) -> None:
    """Say on stderr what the model misses in the sentences: line by line of a single query, in all of several."""
    if len(queries) == 1:
        lines = gallery.warnings(queries[0])
    else:
        sentences = [query.text for query in queries if query.text is not None]
        lines = gallery.encoder.text_warnings([*sentences, *queries[0].exclude])  # `--not` is the same for all
    for line in lines:
        logger.warning("%s", line)


def _answered(gallery: Gallery, flags: argparse.Namespace, query: Query, hits: list[Hit]) -> Answered:
    from cskt.cli.explanations import explain_hits  # noqa: PLC0415

    parts = [query.text] if query.text else []
    parts += [f"like {name}" for name in (flags.image, flags.like) if name]
    parts += [f"not: {sentence}" for sentence in query.exclude]
    return Answered(
        query=query,
        title=printable(" ".join(", ".join(parts).split())),
        hits=hits,
        explanations=explain_hits(gallery, query.text, hits) if flags.explain and query.text else None,
        note="" if hits else _why_nothing(gallery, flags),
    )


def _why_nothing(gallery: Gallery, flags: argparse.Namespace) -> str:
    if not gallery.count():
        return "the gallery is empty; fill it: cskt index"
    if flags.where and not gallery.count(flags.where):
        return f"no crop fulfils --where {printable(flags.where)}"
    further = "further " if flags.offset else ""
    if flags.min_score is not None:
        return f"no {further}crop scores at least {flags.min_score:g}"
    if gallery.min_score is not None:
        threshold = f"{gallery.min_score:.3f}, the calibrated cut-off (--min-score -1: show all)"
        return f"no {further}crop scores at least {threshold}"
    return f"no {further}crop"


def _record(answer: Answered) -> dict[str, Any]:
    from cskt.cli.explanations import explanation_record  # noqa: PLC0415

    hits = [dataclasses.asdict(hit) for hit in answer.hits]
    if answer.explanations is not None:
        hits = [{**hit, "explanation": explanation_record(answer.explanations[hit["image_id"]])} for hit in hits]
    return {"query": answer.query.text, "hits": hits}


def _table(answer: Answered, columns: Sequence[str], *, grouped: bool) -> Table:
    known = [column for column in columns if any(column in hit.metadata for hit in answer.hits)]
    table = Table(title=literal(answer.title), title_justify="left")
    for number in ("rank", "score"):
        table.add_column(number, justify="right", no_wrap=True)
    for heading in ["image", *known, *(["in group"] if grouped else [])]:
        # Folded, for a path that is cut short names nothing.
        table.add_column(literal(heading), overflow="fold", min_width=cell_len(heading))
    for hit in answer.hits:
        values = [str(hit.metadata.get(column, "")) for column in known]
        cells = [hit.image_id, *values, *([str(hit.group_size)] if grouped else [])]
        table.add_row(str(hit.rank), f"{hit.score:.3f}", *map(literal, cells))
    return table


def _draw(gallery: Gallery, flags: argparse.Namespace, answers: Sequence[Answered]) -> None:
    """Write the sheets and the page that were asked for."""
    # matplotlib, whose fonts they use, would let every search wait for a second.
    from cskt.cli.search_pictures import pictured  # noqa: PLC0415
    from cskt.report.answers import answer_sheet  # noqa: PLC0415
    from cskt.report.pages import write_answer_page  # noqa: PLC0415

    drawn = [pictured(gallery, answer.title, answer.hits, answer.explanations, answer.note) for answer in answers]
    if flags.html:
        write_answer_page(flags.html, f"Answers of {flags.gallery.resolve().name}", drawn)
    for number, answer in enumerate(drawn if flags.sheet else [], start=1):
        path = flags.sheet if len(drawn) == 1 else flags.sheet.with_stem(f"{flags.sheet.stem}-{number}")
        with file_system_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            answer_sheet(answer).save(path)
