"""The `cskt` command: verbs, one module each, loaded only when called.

Results go to stdout, progress and warnings to stderr. Bad input ends with one line and exit code 2.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from cskt.errors import CsktError, from_os_error
from cskt.utils.terminal import StderrHandler, discard, printable, standard_streams

logger = logging.getLogger(__name__)

COMMANDS = {
    "demo": ("cskt.cli.demo", "see CSKT learn and answer sentences, on generated pedestrians, in minutes"),
    "data make": ("cskt.cli.data_make", "draw a data set of pedestrians with captions"),
    "data check": ("cskt.cli.data_check", "check a data set: counts, images, captions"),
    "recipes": ("cskt.cli.recipes", "the methods that ship with the package, and how much of CLIP each trains"),
    "train": ("cskt.cli.train", "train a recipe"),
    "evaluate": ("cskt.cli.evaluate", "retrieval metrics of a run, a released folder or plain CLIP on any split"),
    "compare": ("cskt.cli.compare", "methods side by side: figures, intervals, corrected tests, sizes and times"),
    "matrix": ("cskt.cli.matrix", "runs trained on one data set, tested on others"),
    "query": ("cskt.cli.query", "answer sentences with the best crops of a split"),
    "index": ("cskt.cli.index", "make a gallery of a folder of crops, or bring one up to date"),
    "reindex": ("cskt.cli.reindex", "encode the crops of a gallery anew, with another model"),
    "search": ("cskt.cli.search", "find people in a gallery by sentence, by picture, or by both"),
    "calibrate": ("cskt.cli.calibrate", "set the score below which a crop is no answer"),
    "serve": ("cskt.cli.serve", "serve a gallery on a local page and an HTTP API"),
    "report": ("cskt.cli.report", "one page with the evidence behind one run or several, and its pictures"),
    "study": ("cskt.cli.study", "train and compare every method of a study"),
    "reproduce": ("cskt.cli.reproduce", "train a published result again and set it beside the paper's figure"),
    "export": ("cskt.cli.export", "write a run as one self-contained file, or as a backbone"),
    "env": ("cskt.cli.env", "versions, devices, extras and paths, for a bug report"),
}
"""Command -> (module with `main(argv) -> exit code`, one line on what it does)."""

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
            from cskt.training.launch import check_alone  # noqa: PLC0415  (keeps --help quick)

            check_alone(command)
        code: int = importlib.import_module(COMMANDS[command][0]).main(rest)
        return code

    return guarded(run, words[len(command.split()) :], f"cskt {command}")


def guarded(run: Callable[[Sequence[str]], int], argv: Sequence[str], program: str) -> int:
    """Call `run` and turn every error that a user can correct into one line on stderr and exit code 2.

    Args:
        run: the command; returns its exit code.
        argv: words after the command.
        program: name of the command, for messages.

    Returns:
        The exit code of `run`; 2 after an error, 1 when the reader of stdout has closed it, 130 when interrupted.
    """
    with standard_streams():
        logging.basicConfig(handlers=[StderrHandler()], level=logging.INFO)
        for chatty in ("httpx", "huggingface_hub", "fontTools", "matplotlib"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        for reader in ("PIL", "torch._weights_only_unpickler"):
            warnings.filterwarnings("ignore", module=reader)  # our own errors say once what is wrong with a file
        try:
            _check_locale()
            _check_working_directory()
            return _run_and_flush(run, [_decoded(word) for word in argv])
        except BrokenPipeError:  # `| head -1`
            return 1
        except KeyboardInterrupt:
            reason, code = "interrupted", 130
        except Exception as error:
            found = _reason(error, program)
            if found is None:
                raise
            reason, code = found, 2
        finally:
            try:
                sys.stdout.flush()
            except OSError:
                discard(sys.stdout)  # or Python would try again when it ends, and report that
        print(f"{program}: {printable(reason)}", file=sys.stderr)
        return code


def _run_and_flush(run: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    try:
        code = run(argv)
    except SystemExit:  # --help
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code


def _reason(error: Exception, program: str) -> str | None:
    """Return what is wrong and how to correct it, on one line; None for an error that no user can correct."""
    if isinstance(error, UnicodeEncodeError):
        return _unwritable(error)
    if isinstance(error, CsktError):
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        return str(from_os_error(error))
    if is_out_of_memory(error):
        return f"out of memory: {LESS_MEMORY.get(program, 'close other programs, or use --device cpu')}"
    if str(error).startswith("Could not determine home directory"):  # a RuntimeError of pathlib
        return "the home folder is not known; set HOME"
    return None


def _unwritable(error: UnicodeEncodeError) -> str:
    text = error.object[:200]
    if error.encoding.lower().replace("-", "") == "utf8":
        return f"{text}: is not UTF-8; rename it, or write it as UTF-8"
    return f"{text}: cannot be written in the encoding of the locale, {error.encoding}; set LC_ALL=C.UTF-8"


def _decoded(word: str) -> str:
    """Return an argument in UTF-8 that a locale without UTF-8 has left undecoded; names of files stay as they are."""
    if word.isascii() or sys.getfilesystemencoding().lower() == "utf-8" or os.path.lexists(word):
        return word
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeError:
        return word


def _check_locale() -> None:
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        logger.warning(
            "the encoding of the locale is %s: files with other characters in their names are not found; set"
            " LC_ALL=C.UTF-8", encoding,
        )  # fmt: skip


def _check_working_directory() -> None:
    """Raise CsktError where the working directory was deleted: MKL, beneath torch, would end the process."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise CsktError("the working directory no longer exists; change to another with 'cd'") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, CUDA, MPS or torch's CPU allocator is out of memory; the last two have no class for it."""
    if isinstance(error, RuntimeError):
        return "out of memory" in str(error) or "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError)


def _without_command(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if words[0] == "--version":
        from cskt import __version__  # noqa: PLC0415  (keeps --help quick)

        print(f"cskt {__version__}")
        return 0
    from cskt.utils.messages import nearest  # noqa: PLC0415  (difflib takes 5 ms to import)

    asked = " ".join(words[:2]) if words[0] == "data" else words[0]
    raise CsktError(f"unknown command '{asked}': {nearest(asked, list(COMMANDS))}")


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(["usage: cskt COMMAND ...   (cskt COMMAND --help explains it)", "", *lines])
