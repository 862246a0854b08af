"""The `cskt` command: verbs, one module each, loaded only when called.

Results go to stdout, progress and warnings to stderr. An error that the user can correct is one line and exit code 2;
any other exception is a bug, with its traceback and exit code 70.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from cskt.errors import CsktError
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

TRACEBACK = "--traceback"
"""Flag of every command: print the traceback of an error that the user can correct, too."""
BUG = 70
"""Exit code for a bug of cskt: EX_SOFTWARE of sysexits.h."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0 done, 1 done with findings or the output has no reader, 2 bad input, 70 a bug of cskt,
        130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    first = next((place for place, word in enumerate(words) if word != TRACEBACK), len(words))
    flags, words = words[:first], words[first:]
    command = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
    if command is None:
        return guarded(_without_command, flags + words, "cskt")

    def run(rest: Sequence[str]) -> int:
        if command != "train" and "TORCHELASTIC_RUN_ID" in os.environ:
            from cskt.training.launch import check_single_process  # noqa: PLC0415  (keeps --help quick)

            check_single_process(command)
        code: int = importlib.import_module(COMMANDS[command][0]).main(rest)
        return code

    return guarded(run, flags + words[len(command.split()) :], f"cskt {command}")


def guarded(run: Callable[[Sequence[str]], int], argv: Sequence[str], program: str) -> int:
    """Call `run`; print a CsktError as one line on stderr, and any other exception as a bug.

    Args:
        run: the command; returns its exit code.
        argv: words after the command; `--traceback` among them is for this function.
        program: name of the command, for messages.

    Returns:
        The exit code of `run`; 2 after a CsktError, 1 if the reader of stdout has closed it, 130 when interrupted, 70
        after any other exception.
    """
    words, with_traceback = _without_traceback_flag(argv)
    with standard_streams():
        logging.basicConfig(handlers=[StderrHandler()], level=logging.INFO)
        for chatty in ("httpx", "huggingface_hub", "fontTools", "matplotlib"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        for reader in ("PIL", "torch._weights_only_unpickler"):
            warnings.filterwarnings("ignore", module=reader)  # our own errors say once what is wrong with a file
        try:
            _check_locale()
            _check_working_directory()
            return _run_and_flush(run, [_decoded(word) for word in words])
        except BrokenPipeError:  # `| head -1`
            return 1
        except KeyboardInterrupt:
            return _report(f"{program}: interrupted", 130)
        except CsktError as error:
            if with_traceback:
                traceback.print_exc()
            return _report(f"{program}: {printable(' '.join(str(error).split()))}", 2)
        except Exception:  # noqa: BLE001  a bug, which is reported as one
            traceback.print_exc()
            return _report(_bug_report(program, argv), BUG)
        finally:
            try:
                sys.stdout.flush()
            except (OSError, CsktError):
                discard(sys.stdout)  # or Python would try again when it ends, and report that


def _without_traceback_flag(argv: Sequence[str]) -> tuple[list[str], bool]:
    """Return the words without `--traceback`, and whether tracebacks of a CsktError are to be shown."""
    end = argv.index("--") if "--" in argv else len(argv)
    words = [word for word in argv[:end] if word != TRACEBACK] + list(argv[end:])
    return words, len(words) < len(argv) or os.environ.get("CSKT_TRACEBACK", "") not in ("", "0")


def _report(text: str, code: int) -> int:
    with contextlib.suppress(CsktError):  # stdout is full as well, for which another line is printed
        sys.stdout.flush()
    print(text, file=sys.stderr)
    return code


def _bug_report(program: str, argv: Sequence[str]) -> str:
    from cskt import __version__  # noqa: PLC0415  (keeps --help quick)

    return (
        f"{program}: this is a bug in cskt {__version__}; please report this, with the lines above, the output of 'cskt"
        f" env' and the command: {printable(shlex.join([*program.split(), *argv]))}"
    )


def _run_and_flush(run: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    try:
        code = run(argv)
    except SystemExit:  # --help
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code


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
