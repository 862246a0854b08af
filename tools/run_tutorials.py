"""Run the commands of docs/tutorials in order, in one temporary folder, and take the pictures of the pages.

    python tools/run_tutorials.py [--images docs/images] [--quick]

Commands are the lines `cskt ...` of shell blocks, but for `cskt serve`, which does not end. A Python block after a line
with the name of a file becomes that file. A command that fails ends the program. With `--quick` the same commands draw
few people and train for one epoch: enough to see that they run, not to see what the pages print.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
LESSONS = ("train", "compare", "search", "extend", "deploy")
PICTURES = {"people.png": "tutorial-people.png", "answer.png": "tutorial-answer.png"}
"""File that a lesson writes -> picture of the page."""
WIDEST = 1200
"""Pixels of a picture on a page."""


def files_in(text: str) -> dict[str, str]:
    """Return name -> content of the files that a page shows."""
    return dict(re.findall(r"^`([\w.]+)`:\n\n```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))


def commands_in(text: str) -> list[str]:
    """Return the commands of a page."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("cskt ") and not line.startswith("cskt serve")]


def quick(command: str) -> str:
    """Return a command with at most 10 people per split and one epoch of training."""
    command = re.sub(r"(--(?:train|val|test)-ids) \d+", r"\1 10", command)
    return command + " --loop.num-epochs 1" * command.startswith("cskt train")


def run(folder: Path, *, is_quick: bool) -> None:
    """Run all lessons in a folder."""
    for lesson in LESSONS:
        text = (ROOT / "docs" / "tutorials" / f"{lesson}.md").read_text(encoding="utf-8")
        for name, content in files_in(text).items():
            (folder / name).write_text(content, encoding="utf-8")
        for written in commands_in(text):
            command = quick(written) if is_quick else written
            print(f"$ {command}", flush=True)
            subprocess.run([sys.executable, "-m", *shlex.split(command)], cwd=folder, check=True)


def take_pictures(folder: Path, images: Path) -> None:
    """Write the pictures of the pages, not wider than a page, with 256 colours."""
    for name, picture in PICTURES.items():
        shown = Image.open(folder / name).convert("RGB")
        shown.thumbnail((WIDEST, shown.height))
        shown.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=4).save(images / picture, optimize=True)


def main() -> None:
    """Run the lessons and take their pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="folder of the pictures")
    parser.add_argument("--quick", action="store_true", help="few people and one epoch")
    arguments = parser.parse_args()
    images = arguments.images.resolve()
    images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), is_quick=arguments.quick)
        take_pictures(Path(folder), images)


if __name__ == "__main__":
    main()
