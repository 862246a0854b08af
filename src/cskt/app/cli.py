"""The `cskt` command: verbs, one module each, loaded only when called.

Results go to stdout, progress and warnings to stderr. Bad input ends with one line and exit code 2.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TextIO

COMMANDS = {
    "demo": ("cskt.app.demo", "see CSKT learn and answer sentences, on generated pedestrians, in minutes"),
    "data make": ("cskt.app.data_make", "draw a data set of pedestrians with captions"),
    "data check": ("cskt.app.data_check", "check a data set: counts, images, captions"),
    "recipes": ("cskt.app.recipes", "the methods that ship with the package, and how much of CLIP each trains"),
    "train": ("cskt.app.train", "train a recipe"),
    "evaluate": ("cskt.app.evaluate", "retrieval metrics of a run, a released folder or plain CLIP on any split"),
    "compare": ("cskt.app.compare", "methods side by side: figures, intervals, corrected tests, sizes and times"),
    "matrix": ("cskt.app.matrix", "runs trained on one data set, tested on others"),
    "query": ("cskt.app.query", "answer sentences with the best crops of a split"),
    "index": ("cskt.app.index", "make a gallery of a folder of crops, or bring one up to date"),
    "reindex": ("cskt.app.reindex", "encode the crops of a gallery anew, with another model"),
    "search": ("cskt.app.search", "find people in a gallery by sentence, by picture, or by both"),
    "calibrate": ("cskt.app.calibrate", "set the score below which a crop is no answer"),
    "serve": ("cskt.app.serve", "serve a gallery on a local page and an HTTP API"),
    "report": ("cskt.app.report", "one page with the evidence behind one run or several, and its pictures"),
    "study": ("cskt.app.study", "train and compare every method of a study"),
    "reproduce": ("cskt.app.reproduce", "train a published result again and set it beside the paper's figure"),
    "export": ("cskt.app.export", "write a run as one self-contained file, or as a backbone"),
    "env": ("cskt.app.env", "versions, devices, extras and paths, for a bug report"),
}
"""Command -> (module with `main(argv) -> exit code`, one line on what it does)."""

REMEDIES: dict[int | None, str] = {
    errno.ENOSPC: "make room on the disk",
    errno.EACCES: "choose a place that you may read and write",
    errno.EROFS: "choose a place that you may write",
}
"""What helps against an error of the operating system."""

LESS_MEMORY = {
    "cskt train": "use --fit, a smaller --batch-size, --precision bf16 or --checkpoint-activations",
    "train.py": "use a smaller --batch_size, --precision bf16 or --checkpoint_activations",
    "cskt evaluate": "use a smaller --batch-size or --precision bf16",
    "cskt matrix": "use a smaller --batch-size or --precision bf16",
    "cskt query": "use a smaller --batch-size or --precision bf16",
    "cskt index": "use a smaller --batch-size or --precision bf16",
    "cskt reindex": "use a smaller --batch-size or --precision bf16",
    "cskt calibrate": "use a smaller --batch-size or --precision bf16",
    "cskt report": "use a smaller --batch-size or --precision bf16",
    "test.py": "use --precision bf16 or --device cpu",
}
"""Program -> what helps when the memory of the machine or of its accelerator is full."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0 done, 1 done with findings or nobody reads on, 2 bad input, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
    if command is None:
        return guarded(_without_command, words, "cskt")

    def run(rest: Sequence[str]) -> int:
        if command != "train" and "TORCHELASTIC_RUN_ID" in os.environ:
            from cskt.train.launch import check_alone  # noqa: PLC0415  (keeps --help quick)

            check_alone(command)
        code: int = importlib.import_module(COMMANDS[command][0]).main(rest)
        return code

    return guarded(run, words[len(command.split()) :], f"cskt {command}")


def guarded(run: Callable[[Sequence[str]], int], argv: Sequence[str], program: str) -> int:
    """Call `run` and turn what a user can mend into one line on stderr and exit code 2."""
    logging.basicConfig(handlers=[_StderrHandler()], format="%(message)s", level=logging.INFO)
    for chatty in ("httpx", "huggingface_hub", "fontTools", "matplotlib"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    for reader in ("PIL", "torch._weights_only_unpickler"):
        warnings.filterwarnings("ignore", module=reader)  # what is wrong with a file is told once, by our own errors
    try:
        try:
            return run(argv)
        finally:
            sys.stdout.flush()  # here, where a reader that has left (`| head -1`) can still be met in silence
    except ValueError as error:
        reason = " ".join(str(error).split())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still in the buffer goes nowhere
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = f"out of memory: {LESS_MEMORY.get(program, 'close other programs, or use --device cpu')}"
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        reason = f"{place}{error.strerror or error}; {REMEDIES.get(error.errno, 'choose another place')}"
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    print(f"{program}: {reason}", file=sys.stderr)
    return 2


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at that moment: a progress bar puts itself there, so that lines appear above it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self.stream = sys.stderr
        super().emit(record)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, CUDA, MPS or torch's CPU allocator found no room; the last two have no class of their own."""
    if isinstance(error, MemoryError):
        return True
    return "out of memory" in str(error) or "DefaultCPUAllocator" in str(error)


def _without_command(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if words[0] == "--version":
        from cskt import __version__  # noqa: PLC0415  (keeps --help quick)

        print(f"cskt {__version__}")
        return 0
    from cskt.config import nearest  # noqa: PLC0415  (keeps --help quick)

    asked = " ".join(words[:2]) if words[0] == "data" else words[0]
    raise ValueError(f"unknown command '{asked}': {nearest(asked, list(COMMANDS))}")


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(["usage: cskt COMMAND ...   (cskt COMMAND --help explains it)", "", *lines])
