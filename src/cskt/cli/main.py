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
from functools import partial
from pathlib import Path

from cskt.errors import CsktError
from cskt.utils.messages import nearest, one_line
from cskt.utils.terminal import StderrHandler, discard, printable, standard_streams

logger = logging.getLogger(__name__)

COMMANDS = {
    "demo": "see CSKT learn and answer sentences, on generated pedestrians, in minutes",
    "data make": "draw a data set of pedestrians with captions",
    "data import": "make a data set of a CSV, TSV or Parquet table, of folders, or of a Hugging Face data set",
    "data show": "look at people of a data set: pictures with captions",
    "data check": "check a data set: counts, images, captions",
    "recipes": "the methods that ship with the package, and how much of CLIP each trains",
    "train": "train a recipe",
    "evaluate": "retrieval metrics of a run, a released folder or plain CLIP on any split",
    "compare": "methods side by side: figures, intervals, corrected tests, sizes and times",
    "matrix": "runs trained on one data set, tested on others",
    "query": "older name of cskt search --model, with 5 hits per sentence",
    "index": "make a gallery of a folder of crops, or bring one up to date",
    "reindex": "encode the crops of a gallery anew, with another model",
    "search": "find people in a gallery or a split by sentence, by picture, or by both",
    "gallery info": "what a gallery contains: crops, columns, model, sizes",
    "gallery check": "check that a gallery is intact, uploads and leftovers included",
    "gallery repair": "delete unreadable rows and files that nothing needs",
    "gallery export": "write a gallery to one archive with checksums",
    "gallery import": "make a gallery of such an archive",
    "gallery erase": "delete everything about crops, and search all files for what is left",
    "gallery expire": "erase the crops that are older than a time",
    "calibrate": "set the score below which a crop is no answer",
    "serve": "serve a gallery on a local page and an HTTP API",
    "keys": "named keys of a service: add, list, revoke",
    "report": "one page with the evidence behind one run or several, and its pictures",
    "study": "train and compare every method of a study",
    "reproduce": "train a published result again and set it beside the paper's figure",
    "export": "write a run as one self-contained file, or as a backbone",
    "push": "share a run or an export on the Hugging Face Hub, with a model card",
    "env": "versions, devices, extras and paths, for a bug report",
    "completion": "completion of commands, flags and files in your shell",
}
"""Command -> summary. Its module in `cskt.cli` has `main(argv) -> exit code`."""

TRACEBACK = "--traceback"
"""Flag of every command: print the traceback of an error that the user can correct, too."""
PLUGIN = "--plugin"
"""Flag of every command, with a value: Python file or module whose code adds data sets, losses or methods."""
ABOUT_COMMON_FLAGS = """\
Every command takes --plugin FILE_OR_MODULE, which adds data sets, losses and methods of yours, and --traceback,
which shows where an error was raised."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0 done, 1 done with findings or the output has no reader, 2 bad input, 70 a bug of cskt,
        130 interrupted.
    """
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions
        from cskt.cli.completion import complete  # noqa: PLC0415  (keeps --help quick)

        complete()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    first = 0  # of the words that are no flag of every command
    while first < len(words) and words[first].startswith((TRACEBACK, PLUGIN)):
        first += 2 if words[first] == PLUGIN else 1
    command = next((name for name in COMMANDS if words[first:][: len(name.split())] == name.split()), None)
    if command is None:
        return guarded(_without_command, words, "cskt")
    rest = words[:first] + words[first + len(command.split()) :]
    return guarded(partial(_run_module, module_of(command)), rest, f"cskt {command}")


def module_of(command: str) -> str:
    """Return the name of the module of a command."""
    return f"cskt.cli.{command.replace(' ', '_')}"


def _run_module(module: str, words: Sequence[str]) -> int:
    """Import the module of a command and run it: inside `guarded`, since the import may fail."""
    code: int = importlib.import_module(module).main(words)
    return code


def guarded(run: Callable[[Sequence[str]], int], argv: Sequence[str], program: str) -> int:
    """Run a program; print a CsktError as one line on stderr, and any other exception as a bug.

    Args:
        run: function that takes words and returns the exit code.
        argv: words after the command; `--traceback` and `--plugin` among them are for this function.
        program: name of the command, for messages.

    Returns:
        The exit code of `run`, or another that `main` lists.
    """
    words, with_traceback, plugins = _common_flags(argv)
    with standard_streams():
        logging.basicConfig(handlers=[StderrHandler()], level=logging.INFO)
        for chatty in ("httpx", "httpx2", "huggingface_hub", "fontTools", "matplotlib"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        for reader in ("PIL", "torch._weights_only_unpickler"):
            warnings.filterwarnings("ignore", module=reader)  # our own errors say once what is wrong with a file
        try:
            _check_surroundings(program)
            _load_plugins(plugins)

            code = run([_decoded(word) for word in words])
            sys.stdout.flush()  # here, where a full disk is reported
            return code
        except BrokenPipeError:  # `| head -1`
            return 1
        except KeyboardInterrupt as interrupt:  # its text says how to continue
            return _report("; ".join([f"{program}: interrupted", *map(str, interrupt.args)]), 130)
        except CsktError as error:
            if with_traceback:
                traceback.print_exc()
            return _report(f"{program}: {printable(one_line(error))}", 2)
        except Exception as error:  # noqa: BLE001  a bug, which is reported as one
            traceback.print_exc()
            return _report(_bug_report(program, argv, error), 70)  # EX_SOFTWARE of sysexits.h
        finally:
            try:
                sys.stdout.flush()
            except (OSError, CsktError):
                discard(sys.stdout)  # or Python would try again when it ends, and report that


def _common_flags(argv: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    """Return the words without the flags of every command, whether a CsktError has a traceback, and the plug-ins.

    An empty name stands for a missing plug-in.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    with_traceback = os.environ.get("CSKT_TRACEBACK", "") not in ("", "0")
    words, plugins = [], []
    remaining = iter(argv[:end])
    for word in remaining:
        if word == TRACEBACK:
            with_traceback = True
        elif word == PLUGIN:
            plugins.append(next(remaining, ""))
        elif word.startswith(f"{PLUGIN}="):
            plugins.append(word.partition("=")[2])
        else:
            words.append(word)
    return [*words, *argv[end:]], with_traceback, plugins


def _load_plugins(given: Sequence[str]) -> None:
    """Load the plug-ins of the flags and of CSKT_PLUGINS; the processes that this one starts load them too."""
    if "" in given:
        raise CsktError(f"{PLUGIN} names no plug-in; give a Python file, or the name of a module")
    if not given and not os.environ.get("CSKT_PLUGINS"):
        return
    from cskt import plugins  # noqa: PLC0415  (keeps --help quick)

    loaded = plugins.load_plugins([*plugins.environment_plugins(), *given])
    os.environ[plugins.ENVIRONMENT] = os.pathsep.join(dict.fromkeys(plugin.source for plugin in loaded))


def _report(text: str, code: int) -> int:
    with contextlib.suppress(OSError, CsktError):  # stdout may be full as well
        sys.stdout.flush()
    print(text, file=sys.stderr)
    return code


def _bug_report(program: str, argv: Sequence[str], error: Exception) -> str:
    from cskt import __version__  # noqa: PLC0415  (keeps --help quick)
    from cskt.plugins import loaded_plugins, plugin_in  # noqa: PLC0415

    command = printable(shlex.join([*program.split(), *argv]))
    if plugin := plugin_in(error.__traceback__):
        return f"{program}: the plug-in {plugin.name} raised this exception; the command was: {command}"
    # Its code may have returned what cannot be used, without being on the stack.
    names = ", ".join(plugin.name for plugin in loaded_plugins())
    unless = f", unless it is one in a plug-in ({names})" if names else ""
    return (
        f"{program}: this is a bug in cskt {__version__}{unless}; please report this, with the lines above, the"
        f" output of 'cskt env' and the command: {command}"
    )


def _decoded(word: str) -> str:
    """Return an argument in UTF-8 that a locale without UTF-8 has left undecoded; names of files stay as they are."""
    if word.isascii() or sys.getfilesystemencoding().lower() == "utf-8" or os.path.lexists(word):
        return word
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeError:
        return word


def _check_surroundings(program: str) -> None:
    """Check locale, working directory and launcher.

    In a deleted working directory MKL, which torch uses, would end the process. torchrun starts several processes of a
    command, which only `cskt train` may be.
    """
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        lost = "files with other characters in their names are not found; set LC_ALL=C.UTF-8"
        logger.warning("the encoding of the locale is %s: %s", encoding, lost)
    try:
        Path.cwd()
    except FileNotFoundError:
        raise CsktError("the working directory no longer exists; change to another with 'cd'") from None
    if program.startswith("cskt ") and program != "cskt train" and "TORCHELASTIC_RUN_ID" in os.environ:
        from cskt.training.launch import check_single_process  # noqa: PLC0415  (keeps --help quick)

        check_single_process(program.removeprefix("cskt "))


def _without_command(words: Sequence[str]) -> int:
    """Answer `cskt`, `cskt --help`, `cskt data --help`, `cskt --version`; refuse a word that is no command."""
    if words[:1] == ["--version"]:
        from cskt import __version__  # noqa: PLC0415  (keeps --help quick)

        print(f"cskt {__version__}")
        return 0
    group = " ".join(word for word in words if word not in ("-h", "--help"))
    commands = {name: summary for name, summary in COMMANDS.items() if not group or name.startswith(f"{group} ")}
    if not commands:
        asked = " ".join(words[: 2 if any(name.startswith(f"{words[0]} ") for name in COMMANDS) else 1])
        raise CsktError(f"unknown command '{asked}': {nearest(asked, list(COMMANDS))}")
    width = max(map(len, commands))
    print(f"usage: cskt {group or 'COMMAND'} ...   (cskt COMMAND --help explains it)\n")
    print("\n".join(f"  {name:<{width}}  {summary}" for name, summary in commands.items()))
    print(f"\n{ABOUT_COMMON_FLAGS}")
    return 0
