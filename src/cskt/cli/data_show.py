"""`cskt data show`: people of a split with their images and captions, as a page and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten

from cskt.cli.data_check import import_hint
from cskt.cli.parsing import Parser, check_suffix, existing_folder
from cskt.data.datasets import DATASETS, present, read_dataset
from cskt.data.records import Pid, Split, find_split, shuffled_pids
from cskt.errors import CsktError, file_system_errors
from cskt.report.pages import write_people_page
from cskt.report.people import ShownImage, ShownPerson, people_sheet
from cskt.utils.messages import nearest

MAX_PEOPLE, MAX_IMAGES = 50, 20
MAX_ATTRIBUTES = 120
"""Characters of a person's attributes."""


def main(argv: Sequence[str]) -> int:
    """See `cskt data show --help`."""
    parser = Parser(
        prog="cskt data show",
        description="Show people of a data set: one HTML page, and beside it the same as a picture (.png).",
    )
    parser.add_argument("root", help="folder of the data set, or of several; as for cskt data check")
    parser.add_argument("--dataset", help=f"which of several: {', '.join(DATASETS)}")
    parser.add_argument("--split", help="train, val or test (default: the first)")
    parser.add_argument("--pid", action="append", metavar="PID", help="show this person; may be given several times")
    parser.add_argument("--people", type=int, default=6, help="people that are drawn (default: %(default)s)")
    parser.add_argument("--images", type=int, default=4, help="most images of a person (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other people (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("people.html"), help="the page (default: %(default)s)")
    flags = parser.parse(argv)
    for name, number, most in (("people", flags.people, MAX_PEOPLE), ("images", flags.images, MAX_IMAGES)):
        if not 1 <= number <= most:
            raise CsktError(f"--{name} {number}: give 1 to {most}")
    check_suffix("--output", flags.output, [".html", ".htm"])
    root = existing_folder(flags.root)
    dataset = read_dataset(flags.dataset or _only_one(root), root)
    split = find_split(dataset, flags.split or next(iter(dataset), "train"))
    pids = _named(dataset, split, flags.pid) if flags.pid else shuffled_pids(split.pids.values(), f"show {flags.seed}")
    people = [_shown(split, pid, flags.images) for pid in (pids if flags.pid else pids[: flags.people])]
    name = root.resolve().name if split.dataset == "jsonl" else split.dataset
    title = f"{name} {split.name}: {len(people):,} of {split.num_ids:,} people"
    write_people_page(flags.output, title, people)
    sheet = flags.output.with_suffix(".png")
    with file_system_errors(sheet):
        people_sheet(title, people).save(sheet)
    print(f"{title}\npage:    {flags.output}  (open it in a browser)\npicture: {sheet}")
    return 0


def _only_one(root: Path) -> str:
    names = present(root)
    if len(names) != 1:
        found = f"{', '.join(names)}; name one with --dataset" if names else f"no data set; {import_hint(root)}"
        raise CsktError(f"{root}: holds {found}")
    return names[0]


def _named(dataset: Mapping[str, Split], split: Split, names: Sequence[str]) -> list[Pid]:
    known = {str(pid): pid for pid in split.pids.values()}
    for name in names:
        if name not in known:
            other = next((each.name for each in dataset.values() if name in map(str, each.pids.values())), None)
            if other is not None:
                raise CsktError(f"--pid {name}: is in {other} and not in {split.name}; use --split {other}")
            close = nearest(name, known) if len(known) < 1000 else "leave out --pid to draw some"
            raise CsktError(f"--pid {name}: nobody in {split.name} has this identity; {close[:300]}")
    return [known[name] for name in dict.fromkeys(names)]


def _shown(split: Split, pid: Pid, most_images: int) -> ShownPerson:
    records = [record for record in split.records if record.pid == pid]
    images = [ShownImage(record.image_path, record.captions) for record in records[:most_images]]
    number = f"{len(images)} of {len(records)}" if len(images) < len(records) else str(len(records))
    values: dict[str, dict[str, None]] = {}
    for record in records:
        for name, value in (record.attributes or {}).items():
            values.setdefault(name, {})[str(value)] = None
    attributes = "; ".join(f"{name}: {', '.join(each)}" for name, each in values.items())
    note = f"{number} images, {sum(len(record.captions) for record in records)} captions"
    note += f"; {shorten(attributes, MAX_ATTRIBUTES, placeholder=' ...')}" if attributes else ""
    return ShownPerson(str(pid), note, images)
