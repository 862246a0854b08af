"""`cskt query`: the older name of `cskt search --model`, with its own flags and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cskt.cli.model_flags import FAST_PRECISION, add_model_flags
from cskt.cli.parsing import Parser
from cskt.cli.search import print_split_hits
from cskt.data.sentences import MAX_SENTENCE_CHARACTERS


def main(argv: Sequence[str]) -> int:
    """See `cskt query --help`."""
    parser = Parser(prog="cskt query", description="Rank the crops of a split for each sentence.")
    add_model_flags(parser, FAST_PRECISION)
    parser.add_argument(
        "sentences", nargs="+",
        help=f"one or more sentences, each in quotes and of at most {MAX_SENTENCE_CHARACTERS:,} characters",
    )  # fmt: skip
    parser.add_argument("-k", type=int, default=5, help="crops per sentence (default: %(default)s)")
    parser.add_argument("--sheet", type=Path, help="also draw the crops, as PNG; numbered if there are more sentences")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of a table")
    parser.set_defaults(html=None)
    return print_split_hits(parser.parse(argv))
