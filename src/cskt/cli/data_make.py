"""`cskt data make`: a data set of generated pedestrians, in the layout of a published one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from cskt.cli.parsing import Parser
from cskt.data.paperdoll import Domain, Layout, make_dataset
from cskt.utils.console import counting_bar


def main(argv: Sequence[str]) -> int:
    """See `cskt data make --help`."""
    parser = Parser(prog="cskt data make", description="Draw pedestrians with captions; the same seed, the same bytes.")
    parser.add_argument("root", type=Path, help="folder that receives the data set's folder")
    parser.add_argument("--layout", choices=get_args(Layout), default="cuhk-pedes", help="whose format (%(default)s)")
    parser.add_argument("--domain", choices=get_args(Domain), default="target", help="%(default)s is the harder one")
    parser.add_argument("--captions", choices=get_args(Domain), help="domain of the captions (that of the pictures)")
    parser.add_argument("--train-ids", type=int, default=250, help="training identities (%(default)s)")
    parser.add_argument("--val-ids", type=int, default=50, help="identities of val (%(default)s)")
    parser.add_argument("--test-ids", type=int, default=100, help="identities of test (%(default)s)")
    parser.add_argument("--images-per-id", type=int, default=4, help="images of each identity (%(default)s)")
    parser.add_argument("--captions-per-image", type=int, default=2, help="1 to 10 (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other people (%(default)s)")
    parser.add_argument("--masks", action="store_true", help="also write a mask of the parts for each image")
    parser.add_argument("--num-processes", type=int, default=1, help="processes that draw (%(default)s)")
    flags = parser.parse(argv)
    options = vars(flags)
    ids = {split: options.pop(f"{split}_ids") for split in ("train", "val", "test")}
    with counting_bar("drawing") as on_progress:
        folder = make_dataset(**options, ids=ids, on_progress=on_progress)
    print(folder)
    return 0
