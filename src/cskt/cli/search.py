"""`cskt search`: sentences or pictures in, the best crops of a gallery or of a split out."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cskt.cli.model_flags import FAST_PRECISION, add_model_flags, load_model_and_split, num_hits
from cskt.cli.parsing import Parser, check_suffix, command_line, given
from cskt.cli.quick_imports import quicken_lancedb, without_garbage_collection
from cskt.cli.search_output import QueryResult, draw_answers, jpeg, print_answers
from cskt.data.sentences import MAX_SENTENCE_CHARACTERS, check_sentence
from cskt.errors import CsktError, MissingFileError, out_of_memory_errors
from cskt.utils.console import bar
from cskt.utils.messages import one_line
from cskt.utils.terminal import printable

if TYPE_CHECKING:  # these need torch, or the extra `gallery`, and are imported when they are used
    from cskt.gallery.gallery import Gallery
    from cskt.gallery.query import Query
    from cskt.types import Hit

logger = logging.getLogger(__name__)

DEFAULT_K = 10
"""That of `SearchOptions`, which needs an extra; searching a split does not."""
MAX_QUERIES = 10_000
MAX_DRAWN = 100
"""Crops per sentence on a sheet, or with heat maps."""
QUERY_FLAGS = ("image", "like", "exclude", "text_weight", "image_weight", "exclude_weight")
OPTION_FLAGS = ("k", "offset", "where", "min_score", "group_by")
"""Flags that are fields of `Query` and `SearchOptions`."""

USAGE = """\
cskt search GALLERY [SENTENCE ...] [options]
       cskt search --model RUN [--split test] SENTENCE ... [options]"""
DESCRIPTION = f"""\
Search a gallery by sentence, by picture, or by both together; or, with --model, the split of a data set by sentence.
Scores are cosines: higher is better, and typical values differ between models. If `cskt calibrate` has set a threshold,
crops with a lower score are not returned. A sentence without hits is reported on stderr; the exit code is 0.
A sentence may have {MAX_SENTENCE_CHARACTERS:,} characters; the model reads the first 77 tokens, some 60 words, and
warns.
"""
EXAMPLES = """\
examples:
  cskt search my-gallery "a man in a grey hooded jacket with a black backpack"
  cskt search my-gallery "a woman in red" --where "camera = 'c3' and time > '2026-01-01'" --min-score 0.2
  cskt search my-gallery "a man in a suit" --exclude "with a hat" --group-by track --html answer.html
  cskt search my-gallery --like cam3/0001.jpg "now with a coat" --image-weight 2
  cskt search my-gallery --queries sentences.txt --json > answers.json
  cskt search my-gallery "a red bag" -k 5 --explain --sheet why.png
  cskt search --model logs/cuhk-pedes/... --split test "a woman in red" --sheet answer.png
filters (--where): =, !=, <, <=, >, >=, in (...), between ... and ...,
  like 'text with %' [escape 'c'], is null, and, or, not, ( )
  on the columns of the metadata and on image_id, width, height, num_bytes, sha256
"""


@out_of_memory_errors()
def main(argv: Sequence[str]) -> int:
    """See `cskt search --help`."""
    flags = _flags(argv)
    flags.sentences += _read_queries(flags.queries) if flags.queries else []
    if len(flags.sentences) > MAX_QUERIES:
        raise CsktError(f"{len(flags.sentences):,} sentences are more than {MAX_QUERIES:,}; search in several goes")
    if flags.model is not None:
        return print_split_hits(flags)
    return print_gallery_hits(flags)


def print_gallery_hits(flags: argparse.Namespace) -> int:
    """Search the gallery that the flags name and print its answers."""
    from cskt.gallery.options import SearchOptions  # noqa: PLC0415
    from cskt.gallery.query import Query  # noqa: PLC0415

    if flags.explain and not flags.sentences:
        raise CsktError("--explain shows where a sentence is seen; give a sentence as well")
    parts = given(flags, QUERY_FLAGS)
    queries = [Query(text, **parts) for text in flags.sentences or [None]]
    options = SearchOptions(**given(flags, OPTION_FLAGS))
    # torch, which is imported below, has threads that sleep when they wait: spinning gains nothing in so short a
    # process, and costs seconds if other programs run.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    quicken_lancedb()
    with without_garbage_collection():
        from cskt.gallery.gallery import Gallery  # noqa: PLC0415

        opened = Gallery.open(flags.gallery, device=flags.device)
    with opened as gallery:
        found = gallery.search_many(queries, options, once=True)
        _warn(gallery, queries)
        answers = [_query_result(gallery, flags, query, hits) for query, hits in zip(queries, found, strict=True)]
        print_answers(answers, list(gallery.columns), grouped=flags.group_by is not None, as_json=flags.json)
        heading = f"Answers of {flags.gallery.resolve().name}"
        draw_answers(answers, lambda hit: gallery.thumbnail(hit.image_id), flags.sheet, flags.html, heading)
    return 0


def print_split_hits(flags: argparse.Namespace) -> int:
    """Search the split that the flags of `add_model_flags` name and print its answers."""
    from cskt.evaluation.evaluate import search_split  # noqa: PLC0415

    check_suffix("--sheet", flags.sheet, [".png"])
    for sentence in flags.sentences:
        check_sentence(sentence)
    flags.precision = flags.precision or FAST_PRECISION
    encoder, split = load_model_and_split(flags, refuse_overlaps=False)  # hits are shown, no metric is computed
    k = num_hits(flags.k, DEFAULT_K, split)
    for line in encoder.text_warnings(flags.sentences):
        logger.warning("%s", line)
    found = search_split(encoder, split, flags.sentences, k)
    answers = [QueryResult(text, text, hits) for text, hits in zip(flags.sentences, found, strict=True)]
    print_answers(answers, ["pid"], grouped=False, as_json=flags.json)
    draw_answers(answers, _image_of_split, flags.sheet, flags.html, f"Answers of {split.dataset} {split.name}")
    return 0


def _flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="cskt search", usage=USAGE, description=DESCRIPTION, epilog=EXAMPLES)
    parser.renamed = {"--not-weight": "--exclude-weight"}
    add = parser.add_argument
    # fmt: off
    add("sentences", nargs="*", default=[], metavar="GALLERY SENTENCE",
        help="folder of the gallery, and one or more sentences, each in quotes; with --model sentences only")
    add("--queries", metavar="FILE", help="more sentences, one per line, UTF-8; - reads stdin")
    add("-k", type=int, help=f"most crops per sentence, to 10,000 (default: {DEFAULT_K})")
    add = parser.add_argument_group("which crops of a gallery").add_argument
    add("--offset", type=int, metavar="N", help="skip the N best crops")
    add("--where", metavar="FILTER", help="only crops whose metadata matches this filter; see below")
    add("--min-score", type=float, metavar="X",
        help="only crops that score at least X; -1 for all (default: the calibrated threshold, if there is one)")
    add("--group-by", metavar="COLUMN", help="only the best crop of each value of a column, such as track")
    pictures = parser.add_argument_group("pictures, and what to exclude; with sentences or without, in a gallery")
    add = pictures.add_argument
    add("--image", type=Path, metavar="FILE", help="more like this picture")
    add("--like", metavar="IMAGE_ID", help="more like this crop of the gallery")
    add("--exclude", "--not", action="append", metavar="SENTENCE", help="but not this")
    weights = (("text", "the sentence", 1), ("image", "--image and --like", 1), ("exclude", "each --exclude", 0.5))
    for name, what, default in weights:
        add(f"--{name}-weight", type=float, metavar="W", help=f"of {what} (default: {default})")
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help='[{"query": ..., "hits": [...]}, ...] instead of tables')
    add("--sheet", type=Path, metavar="FILE", help="also draw the crops, as PNG; numbered if there are more sentences")
    add("--html", type=Path, metavar="FILE", help="also one HTML file with the crops")
    add("--explain", action="store_true", default=None,
        help="where the model sees the sentence and each of its words in a crop of a gallery: heat maps in --sheet and"
        " --html, numbers in --json")
    # fmt: on
    num_others = len(parser._actions)
    add_model_flags(parser, FAST_PRECISION, positional=False)
    for_models = [action for action in parser._actions[num_others:] if action.dest != "device"]
    flags = parser.parse(argv, intermixed=True)
    check_suffix("--sheet", flags.sheet, [".png"])
    check_suffix("--html", flags.html, [".html", ".htm"])
    if (flags.explain or flags.sheet) and (flags.k or DEFAULT_K) > MAX_DRAWN:
        raise CsktError(f"-k {flags.k}: --sheet and --explain draw at most {MAX_DRAWN} crops; give less")
    if flags.model is not None:
        if for_galleries := list(given(flags, (*QUERY_FLAGS, *OPTION_FLAGS[1:], "explain"))):
            flag = for_galleries[0].replace("_", "-")
            raise CsktError(f"--{flag} is for galleries; leave it out, or leave out --model")
        if not flags.sentences and not flags.queries:
            parser.error("give one or more sentences, each in quotes")
        return flags
    if not flags.sentences:
        parser.error("name the folder of a gallery, or a model with --model")
    if stated := next((action for action in for_models if getattr(flags, action.dest) != action.default), None):
        raise CsktError(f"{stated.option_strings[0]} is for a model; leave it out, or name one with --model")
    # argparse cannot make GALLERY optional with --model, so the first word is the gallery.
    flags.gallery = Path(flags.sentences.pop(0))
    flags.exclude = tuple(flags.exclude or ())
    if flags.image and not flags.image.is_file():
        raise MissingFileError(f"--image {flags.image}: no such file")
    if flags.explain and not (flags.sheet or flags.html or flags.json):
        raise CsktError("--explain draws heat maps; say where to: --sheet why.png, --html why.html, or --json")
    return flags


def _read_queries(name: str) -> list[str]:
    """Return the sentences of a file, or of stdin for `-`, without empty lines."""
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        sentences = [line.strip() for line in content.decode("utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise CsktError(f"--queries {name}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except OSError as error:
        raise MissingFileError(f"--queries {name}: {error.strerror}; name a text file") from None
    if not sentences:
        raise CsktError(f"--queries {name}: holds no sentence; write one per line")
    return sentences


def _warn(gallery: Gallery, queries: Sequence[Query]) -> None:
    """Log what the model misses in the sentences: by line for a single query, in all for several."""
    if len(queries) == 1:
        lines = gallery.warnings(queries[0])
    else:
        sentences = [query.text for query in queries if query.text is not None]
        lines = gallery.encoder.text_warnings([*sentences, *queries[0].exclude])  # `--exclude` is the same for all
    for line in lines:
        logger.warning("%s", line)


def _query_result(gallery: Gallery, flags: argparse.Namespace, query: Query, hits: list[Hit]) -> QueryResult:
    parts = [query.text] if query.text else []
    parts += [f"like {name}" for name in (flags.image, flags.like) if name]
    parts += [f"not: {sentence}" for sentence in query.exclude]
    explanations = []
    if flags.explain and query.text:
        with bar("heat maps", len(hits)) as advance:
            for hit in hits:
                explanations.append(gallery.explain(hit.image_id, query.text))
                advance()
    note = "" if hits else _why_nothing(gallery, flags)
    return QueryResult(query.text, printable(one_line(", ".join(parts))), hits, note, explanations)


def _why_nothing(gallery: Gallery, flags: argparse.Namespace) -> str:
    if not gallery.count():
        return f"the gallery is empty; fill it: {command_line('index', flags.gallery, '--images', 'FOLDER')}"
    if flags.where and not gallery.count(flags.where):
        return f"no crop matches --where {printable(flags.where)}"
    further = "further " if flags.offset else ""
    if flags.min_score is not None:
        return f"no {further}crop scores at least {flags.min_score:g}"
    if gallery.min_score is None:
        return f"no {further}crop"
    threshold = f"{gallery.min_score:.3f}, the calibrated threshold (--min-score -1: show all)"
    return f"no {further}crop scores at least {threshold}"


def _image_of_split(hit: Hit) -> bytes:
    from PIL import Image  # noqa: PLC0415

    from cskt.image_files.decode import decode_image  # noqa: PLC0415

    return jpeg(Image.fromarray(decode_image(Path(hit.image_id), apply_orientation=True)))
