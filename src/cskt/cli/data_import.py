"""`cskt data import`: a data set of one's own from a table, a folder per person, or a Hugging Face data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from cskt.cli.parsing import Parser, command_line
from cskt.data.importing import NONE, Columns, ImportOptions, import_dataset
from cskt.errors import CsktError
from cskt.utils.console import console, counting_bar, literal

DESCRIPTION = """\
Make a JSON-lines data set, a folder with train.jsonl, val.jsonl, test.jsonl and images/, of SOURCE:
  a table       .csv, .tsv, .jsonl, .json or .parquet with a row for each image or for each caption
  a folder      with a folder per person, which has images and captions.txt: a sentence about the person per line;
                'a.jpg', a tab and a sentence for a single image. Or with captions.csv or captions.json, in each
                person's folder or one for all: image, caption
  a data set    of Hugging Face: as save_to_disk writes it, or a folder of Parquet files downloaded from the Hub,
                data/train-00000-of-00001.parquet (Parquet and this need: pip install 'cskt[parquet]')
Columns are found by their usual names (image, pid, caption, caption_1, split, ...) or named by flags.
"""
EXAMPLES = """\
examples:
  cskt data import people.csv my-data
  cskt data import crops.tsv my-data --image file --person who --caption text_en --caption text_short --images crops
  cskt data import people/ my-data --val 0 --test 0.3 --seed 4
  cskt data import saved-dataset my-data --person label --link
"""


def main(argv: Sequence[str]) -> int:
    """See `cskt data import --help`."""
    parser = Parser(prog="cskt data import", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("source", metavar="SOURCE", type=Path, help="table, or folder")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="folder of the new data set, which does not exist")
    table = parser.add_argument_group("columns of a table")
    table.add_argument("--image", metavar="COLUMN", help="paths of images, or images")
    table.add_argument(
        "--person", metavar="COLUMN",
        help="identity, a number or a name; 'folder': the name of the image's folder; 'none': each image is a person",
    )  # fmt: skip
    table.add_argument("--caption", metavar="COLUMN", action="append", help="captions; may be given several times")
    table.add_argument("--split", metavar="COLUMN", help="train, val or test; 'none': people are drawn")
    table.add_argument("--attribute", metavar="COLUMN", action="append", help="kept as attribute; several times")
    parser.add_argument("--images", metavar="DIR", type=Path, help="folder that paths start at (default: the table's)")
    parser.add_argument(
        "--link", action="store_true", help="symbolic links instead of copies: saves space, and needs the originals"
    )
    drawn = parser.add_argument_group("people are drawn for splits, unless the source names splits")
    drawn.add_argument("--val", metavar="SHARE", type=float, help="share of the people for val (default: 0.1)")
    drawn.add_argument("--test", metavar="SHARE", type=float, help="share of the people for test (default: 0.2)")
    drawn.add_argument("--seed", metavar="N", type=int, default=0, help="another seed, another draw (%(default)s)")
    flags = parser.parse(argv)
    shares = {"val_fraction": flags.val, "test_fraction": flags.test}
    if flags.split not in (None, NONE) and any(share is not None for share in shares.values()):
        raise CsktError("--split takes the splits of the table; leave out --val and --test")
    options = ImportOptions(
        link=flags.link, seed=flags.seed, **{name: share for name, share in shares.items() if share is not None}
    )
    columns = Columns(flags.image, flags.person, tuple(flags.caption or ()), flags.split, tuple(flags.attribute or ()))
    with counting_bar("importing") as on_progress:
        splits = import_dataset(
            flags.source, flags.output, columns,
            images=flags.images, options=options, on_progress=lambda done: on_progress(done, None),
        )  # fmt: skip
    counts = Table("split", "people", "images", "captions", title=literal(str(flags.output)), title_justify="left")
    for name, split in splits.items():
        counts.add_row(name, *(f"{number:,}" for number in split.counts))
    console().print(counts)
    print("next:")
    print("  " + command_line("data", "check", flags.output))
    print("  " + command_line("data", "show", flags.output))
    if "train" in splits:
        print("  " + command_line("train", "--config", "demo", "--dataset", "jsonl", "--root", flags.output))
    return 0
