"""Flags: argparse with one-line errors that name the nearest flag, and one flag per config key; commands to type."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib.metadata
import logging
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from cskt.config import (
    HOOK_FIELDS,
    LOSS_KEYS,
    PART_CONFIGS,
    RunConfig,
    flat_fields,
    load_config,
    recipe_names,
    value_of,
)
from cskt.config.plain_yaml import plain_yaml
from cskt.config.types import WeightsChoice
from cskt.errors import CsktError, MissingFileError
from cskt.plugins import loaded_plugins
from cskt.utils.messages import command_text, from_here
from cskt.utils.paths import check_path
from cskt.utils.terminal import printable

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

logger = logging.getLogger(__name__)

OVERRIDE = "override:"
ROOT, MIX = "data.root", "data.mix"
"""Keys of the first data set, whose flag may be given several times, and of further ones."""
DEFAULT_RECIPE = "cskt"
FIELDS = dict(flat_fields())
"""Config key -> its field."""
TEXTS = ("str", "Location", "DatasetName")
"""Annotations of keys whose values are text."""


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line and exit code 2, in which `-` and `_` in flags are the same.

    Args:
        separator: `-` or `_`, between the words of a flag where it is added, in the help and in messages.
        settings: arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, *, separator: str = "-", **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self.separator = separator
        self.renamed: dict[str, str] = {}
        """Old names of flags -> their present names."""

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with exit code 2."""
        print(f"{self.prog}: {printable(message)}", file=sys.stderr)
        raise SystemExit(2)

    def format_help(self) -> str:
        """Return the help, with the flags that `cskt.cli.main` reads for every command."""
        common = "--plugin FILE_OR_MODULE (your data sets, losses and methods), --traceback"
        return f"{super().format_help()}\nevery command: {common}\n"

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help; argparse itself ignores a full disk or a closed pipe."""
        (sys.stdout if file is None else file).write(self.format_help())
        sys.stdout.flush()

    def parse(self, argv: Sequence[str], *, intermixed: bool = False) -> argparse.Namespace:
        """Return the parsed flags; an unknown one ends the program with a line that names the nearest.

        `intermixed`: positional arguments may also come between and after flags.
        """
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete  # noqa: PLC0415  (only when a shell asks for completions)

            argcomplete.autocomplete(self)  # ends the process
        parse_known = self.parse_known_intermixed_args if intermixed else self.parse_known_args
        flags, unknown = parse_known([self._spelt(word) for word in argv])
        if unknown:
            word = unknown[0].split("=")[0]
            if word.startswith("-"):
                close = difflib.get_close_matches(word, self._option_string_actions, n=1)
                self.error(f"unknown flag {word}: {f'did you mean {close[0]}?' if close else '--help lists all'}")
            self.error(f"unexpected argument '{word}' (--help shows what is taken)")
        for value in vars(flags).values():
            if isinstance(value, Path):
                check_path(value)
        return flags

    def _spelt(self, word: str) -> str:
        """Return a word with the present spelling of its flag: `--batch_size=8` -> `--batch-size=8`."""
        flag, equals, value = word.partition("=")
        if not flag.startswith("--"):
            return word
        flag = "--" + re.sub("[-_]", self.separator, flag[2:])
        if flag in self.renamed:
            logger.warning("%s is now %s; the old name works until version 1.0", flag, self.renamed[flag])
        return self.renamed.get(flag, flag) + equals + value


def add_config_flags(parser: Parser) -> None:
    """Add `--config` and a flag per config key, also by its last part if that is unique (`--lr`)."""
    known = f"recipe: {', '.join(recipe_names())}, or a YAML file (default: {DEFAULT_RECIPE})"
    config: Any = parser.add_argument("--config", metavar="RECIPE", help=known)
    config.completer = lambda **_: recipe_names()  # for argcomplete
    recipe = load_config(DEFAULT_RECIPE)
    shared = Counter(key.split(".")[-1] for key in FIELDS)
    groups: dict[str, Any] = {}
    for key, field in FIELDS.items():
        section, _, leaf = key.rpartition(".")
        group = groups.setdefault(section, parser.add_argument_group(section or "run"))
        stands_alone = shared[leaf] == 1 or key == "loss.weights"
        spellings = [f"--{key}"] + ([f"--{leaf}"] if section and stands_alone else [])
        group.add_argument(
            *(spelling.replace("_", "-") for spelling in spellings),
            dest=OVERRIDE + key,
            default=argparse.SUPPRESS,
            metavar="VALUE",
            **({"nargs": "?", "const": "true"} if field.type == "bool" else {}),
            **({"action": "append"} if key == ROOT else {}),
            help=_help(key, recipe).replace("%", "%%"),
        )
    if hooks := _hook_keys():
        group = parser.add_argument_group("hooks")
        for key, text in hooks.items():
            optional: dict[str, Any] = {"nargs": "?", "const": "{}"} if key.count(".") == 1 else {}
            group.add_argument(
                f"--{key.replace('_', '-')}", dest=OVERRIDE + key, default=argparse.SUPPRESS, metavar="VALUE",
                help=text,
                **optional,
            )  # fmt: skip
    for key, text in _loss_keys().items():
        groups["loss"].add_argument(
            f"--{key.replace('_', '-')}", dest=OVERRIDE + key, default=argparse.SUPPRESS, metavar="VALUE", help=text
        )
    if keys := _part_keys():
        group = parser.add_argument_group("parts", "further method parts; any flag of a part adds it to the model")
        for key, text in keys.items():
            value: dict[str, Any] = {"metavar": "VALUE"}
            if key.count(".") == 1:
                value = {"action": "store_const", "const": "{}"}
            flag = f"--{key.replace('_', '-')}"
            group.add_argument(flag, dest=OVERRIDE + key, default=argparse.SUPPRESS, help=text, **value)


def _loss_keys() -> dict[str, str]:
    """Return the config keys of single losses, those of plug-ins included, with their help."""
    keys = {
        f"loss.{loss}.{field}": f"{field} of {loss} alone (default: that of loss.{key})"
        for key, users in LOSS_KEYS.items()
        for loss, field in users
    }
    if loaded_plugins() or importlib.metadata.entry_points(group="cskt.losses"):
        from cskt.losses import LOSSES  # noqa: PLC0415  (imports torch, which --help does not need)

        for name, kind in LOSSES.items():
            if LOSSES.provider(name):
                keys |= {
                    f"loss.{name}.{field.name}": f"{field.name} of {name} (default: {field.default})"
                    for field in dataclasses.fields(kind)  # type: ignore[arg-type]
                }
    return keys


def _part_keys() -> dict[str, str]:
    """Return the config keys `parts.<name>` and its fields, of the package and of plug-ins, with their help."""
    configs: dict[str, tuple[Any, str]] = {name: (config, name) for name, config in PART_CONFIGS.items()}
    if loaded_plugins() or importlib.metadata.entry_points(group="cskt.parts"):
        from cskt.model.parts import PARTS  # noqa: PLC0415  (imports torch, which --help does not need)

        for name in PARTS:
            if plugin := PARTS.provider(name):
                configs[name] = PARTS[name].Config, f"{name}, of {plugin.name},"
    keys = {}
    for name, (config, origin) in configs.items():
        keys[f"parts.{name}"] = f"add {origin} to the model"
        for field, about in config.__pydantic_fields__.items():
            text = " ".join((about.description or field).split())
            default = about.get_default(call_default_factory=True)
            keys[f"parts.{name}.{field}"] = f"{text} (default: {shown(default)})".replace("%", "%%")
    return keys


def _hook_keys() -> dict[str, str]:
    """Return the config keys of hooks, `hooks.<name>` and its fields, with their help."""
    kinds: dict[str, Any] = dict(HOOK_FIELDS)
    if loaded_plugins() or importlib.metadata.entry_points(group="cskt.hooks"):
        from cskt.training.hooks import HOOKS  # noqa: PLC0415  (imports torch, which --help does not need)

        kinds |= HOOKS
    keys: dict[str, str] = {}
    for name, kind in kinds.items():
        keys |= {f"hooks.{name}": f"use the hook {name}"} | {
            f"hooks.{name}.{field.name}": f"{field.name} of {name} (default: {shown(field.default)})"
            for field in dataclasses.fields(kind)
        }
    return keys


def config_from_flags(flags: argparse.Namespace) -> RunConfig:
    """Return the recipe of `--config` with the values of the flags."""
    return load_config(flags.config or DEFAULT_RECIPE, flag_overrides(flags))


def flag_overrides(flags: argparse.Namespace) -> dict[str, Any]:
    """Return config key -> value for the config flags that were given."""
    texts = {name.removeprefix(OVERRIDE): text for name, text in vars(flags).items() if name.startswith(OVERRIDE)}
    if texts.get("loss.weights") in get_args(WeightsChoice):  # as in other commands, --weights ema is the backbone's
        texts["backbone.weights"] = texts.pop("loss.weights")
    first, *others = texts.pop(ROOT, [None])
    if others and MIX in texts:
        raise CsktError("--root several times is a mix of data sets; leave out --mix, or give --root once")
    values = {key: config_value(key, text) for key, text in texts.items()}
    values |= {} if first is None else {ROOT: first}
    return values | ({MIX: [{"root": root} for root in others]} if others else {})


def flags_roots(flags: argparse.Namespace) -> list[str]:
    """Return the values of `--root`, in their order."""
    return getattr(flags, f"{OVERRIDE}{ROOT}", [])


def config_value(key: str, text: str) -> Any:
    """Return the text of a flag as the value of a config key: text, or its value in YAML (1e-4, true, [2, 3])."""
    field = FIELDS.get(key)
    kind, default = ("", None) if field is None else (str(field.type), field.default)
    if kind.endswith("| None") and text.lower() in ("none", "null"):
        return None
    if kind.removesuffix(" | None") in TEXTS:  # --name 2024 is a name and no number
        return text
    is_series = isinstance(default, tuple) or kind.startswith(("ChannelMeans", "ChannelStds"))
    try:
        return plain_yaml(f"[{text}]" if is_series and not text.startswith("[") else text)
    except CsktError:
        return text


def _help(key: str, recipe: RunConfig) -> str:
    """Return docstring and default of a config key, and its value in the recipe if that differs."""
    section, _, leaf = key.rpartition(".")  # a section contains no further one
    owner: Any = type(value_of(RunConfig(), section)) if section else RunConfig
    field = owner.__pydantic_fields__[leaf]
    description = " ".join((field.description or "").split())
    default, chosen = getattr(owner(), leaf), value_of(recipe, key)
    by_recipe = "" if chosen == default else f"recipe {recipe.name}: {shown(chosen)}; "
    return f"{description} ({by_recipe}default: {shown(default)})"


def shown(value: Any) -> str:
    """Return a value as its flag takes it."""
    if value is None:
        return "none"
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple | list) else str(value)


def existing_folder(text: str) -> Path:
    """Return a folder given as an argument."""
    path = Path(text)
    check_path(path)
    if not path.is_dir():
        raise MissingFileError(f"{path}: no such folder")
    return path


def given(flags: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return name -> value for those of the flags that were given."""
    return {name: value for name in names if (value := getattr(flags, name)) is not None}


def check_suffix(flag: str, path: Path | None, suffixes: Sequence[str]) -> None:
    """Check that a file that a flag names, if any, ends in one of the suffixes."""
    if path is not None and path.suffix.lower() not in suffixes:
        raise CsktError(f"{flag} {path}: name a file that ends in {suffixes[0]}")


def seeds_of(text: str) -> list[int]:
    """Return `1,2,3` as numbers."""
    words = text.split(",")
    are_numbers = all(word.strip().isdecimal() and len(word) < 20 for word in words)
    if not are_numbers or len({int(word) for word in words}) < len(words):
        raise CsktError(f"--seeds {text}: give distinct whole numbers joined by commas, as in --seeds 1,2,3")
    return [int(word) for word in words]


def overrides_of(pairs: Sequence[str]) -> dict[str, Any]:
    """Return `KEY=VALUE` words as config key -> value; keys and values are checked by `load_config`."""
    if wrong := next((pair for pair in pairs if "=" not in pair), None):
        raise CsktError(f"--set {wrong}: give KEY=VALUE, as in --set loop.num_epochs=3")
    split = [pair.partition("=") for pair in pairs]
    return {key: config_value(key, value) for key, _, value in split}


def command_line(*words: str | Path) -> str:
    """Return a `cskt` command to type next, quoted for a shell; it runs from here, also without its environment."""
    program = ["cskt"] if shutil.which("cskt") else [from_here(sys.executable), "-m", "cskt"]
    return command_text(*words, program=program)
