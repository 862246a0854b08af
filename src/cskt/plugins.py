"""Registries of everything that others can add to the package, and the loading of their code.

A plug-in is a Python file or module that registers data sets, losses, method parts, stores, hooks or loggers; the
package registers its own in the same way. Code is imported only where the user asks for it: `--plugin FILE_OR_MODULE`,
the environment variable CSKT_PLUGINS, `cskt.load(..., plugins=[...])`, or an installed package with an entry point. No
recipe, run or gallery imports code by itself.

Example:
    >>> from cskt.plugins import Registry
    >>> shapes = Registry("shape", "example.shapes")
    >>> @shapes.register("circle")
    ... class Circle: ...
    >>> shapes["circle"].__name__, "square" in shapes
    ('Circle', False)
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Generic, TypeVar, overload

from cskt.errors import CsktError, MissingFileError, file_system_errors
from cskt.utils.arguments import listed
from cskt.utils.messages import nearest, one_line
from cskt.utils.paths import expanded

logger = logging.getLogger(__name__)

ENVIRONMENT = "CSKT_PLUGINS"
"""Environment variable with plug-ins, separated as the folders in PATH are."""
FILES = "cskt_plugin_files"
"""Start of the module names of plug-ins that are loaded from a file."""
SHORT_DIGEST = 12
"""Digits of a digest in a message."""
Entry = TypeVar("Entry")
New = TypeVar("New")


@dataclass(frozen=True)
class Plugin:
    """Code that registers entries, as a run records it."""

    name: str
    """Name of the file, `my_loss.py`, or of the module, `package.module`."""
    sha256: str
    """Digest of the file; empty for a module without a file."""
    source: str = field(default="", compare=False)
    """Path of the file, or name of the module: loads it again."""
    file: str = field(default="", compare=False)
    """Path of its code; empty for a module without a file."""


@dataclass(frozen=True)
class Requirement:
    """A plug-in that a recipe or a run needs."""

    name: str
    """See `Plugin.name`."""
    sha256: str = ""
    """Digest of the file that a run was made with; empty in a recipe."""
    provides: tuple[str, ...] = ()
    """Entries that a run used of it, such as `losses.sce`."""


class UnknownEntryError(CsktError):
    """A registry has no entry of that name.

    Args:
        message: one line.
        key: section and name, such as `losses.sce`.
    """

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries of one kind by name.

    They come from the package, from loaded plug-ins and from entry points of installed packages; of equal names a
    loaded plug-in counts. An entry point is listed by its name, and imported when its entry is asked for.

    Args:
        kind: word for an entry in messages, such as `loss`.
        group: of the entry points, such as `cskt.losses`.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._entries: dict[str, Entry] = {}
        self._plugins: dict[str, Plugin | None] = {}
        REGISTRIES[group] = self

    @overload
    def register(self, name: str) -> Callable[[New], New]: ...
    @overload
    def register(self, name: str, entry: New) -> New: ...
    def register(self, name: str, entry: Any = None) -> Any:
        """Add an entry and return it; without `entry`, return a decorator that adds what it decorates.

        Raises:
            CsktError: the name is taken.
        """
        if entry is None:
            return lambda decorated: self.register(name, decorated)
        if name in self._entries:
            owner = self._plugins[name]
            by = f"the plug-in {owner.name}" if owner else "cskt"
            raise CsktError(f"{by} has a {self.kind} '{name}' already; choose another name")
        self._entries[name], self._plugins[name] = entry, _registering_plugin()
        return entry

    def key(self, name: str) -> str:
        """Return section and name of an entry, as `Requirement.provides` holds them: `losses.sce`."""
        return f"{self.group.rpartition('.')[2]}.{name}"

    def provider(self, name: str) -> Plugin | None:
        """Return the plug-in that registered an entry; None for an entry of the package."""
        self[name]  # imports an entry point
        return self._plugins[name]

    def forget(self, plugin: Plugin) -> None:
        """Remove the entries of a plug-in."""
        for name in [name for name, owner in self._plugins.items() if owner == plugin]:
            del self._entries[name], self._plugins[name]

    def __getitem__(self, name: str) -> Entry:
        """Return the entry of that name.

        Raises:
            CsktError: there is none; names the nearest.
        """
        if name not in self._entries:
            point = self._entry_points.get(name)
            if point is None:
                hint = nearest(name, list(self))
                if hint.startswith("known"):
                    hint += " (a plug-in can add others: --plugin FILE)"
                raise UnknownEntryError(f"unknown {self.kind} '{name}': {hint}", self.key(name))
            with _running(_plugin_of_module(point.module)) as plugin:
                entry = point.load()
                if name not in self._entries:  # the module may have registered it by itself
                    if isinstance(entry, ModuleType):
                        raise CsktError(f"its entry point names a module that registers no {self.kind} '{name}'")
                    self._entries[name], self._plugins[name] = entry, plugin
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._entry_points

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._entries, *self._entry_points]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    @cached_property
    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        return {point.name: point for point in importlib.metadata.entry_points(group=self.group)}


REGISTRIES: dict[str, Registry[Any]] = {}
"""Every registry by its group."""
_loaded: dict[Plugin, None] = {}
_loading: list[Plugin] = []


def load_plugins(sources: str | Path | Iterable[str | Path]) -> list[Plugin]:
    """Import plug-ins, each once; a file that has not changed since it was loaded is not run again.

    Args:
        sources: paths of Python files, which end in `.py`, and names of modules that can be imported; or one of them.

    Returns:
        The plug-ins, in that order.

    Raises:
        CsktError: there is no such file or module, its code raises, or a name that it registers is taken.
    """
    return [_load(str(source)) for source in listed(sources, (str, Path), "plugins")]


def environment_plugins() -> list[str]:
    """Return the plug-ins that the environment variable CSKT_PLUGINS names."""
    return [source for source in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if source]


def loaded_plugins() -> list[Plugin]:
    """Return all plug-ins whose code ran, the first loaded first."""
    return list(_loaded)


def requirements(used: Iterable[tuple[Registry[Any], str]]) -> tuple[Requirement, ...]:
    """Return the plug-ins that entries, given as registry and name, come from."""
    provided: dict[Plugin, list[str]] = {}
    for registry, name in used:
        if plugin := registry.provider(name):
            provided.setdefault(plugin, []).append(registry.key(name))
    return tuple(Requirement(plugin.name, plugin.sha256, tuple(keys)) for plugin, keys in provided.items())


@contextmanager
def required(plugins: Sequence[Requirement]) -> Iterator[None]:
    """Return a context in which an unknown entry that one of these plug-ins provides is an error that names them all.

    A loaded plug-in whose file has changed is logged.

    Raises:
        CsktError: a recipe names a plug-in that is not loaded.
    """
    loaded = {plugin.name: plugin for plugin in _loaded}
    if missing := [plugin for plugin in plugins if not plugin.provides and plugin.name not in loaded]:
        names = " and ".join(plugin.name for plugin in missing)
        raise CsktError(f"the config needs the plug-in{'s' * (len(missing) > 1)} {names}: {_remedy(missing)}")
    for plugin in plugins:
        found = loaded.get(plugin.name)
        if found is not None and plugin.sha256 and found.sha256 != plugin.sha256:
            logger.warning(
                "the plug-in %s has another content than that of the run (SHA-256 %s, was %s)",
                plugin.name, found.sha256[:SHORT_DIGEST], plugin.sha256[:SHORT_DIGEST],
            )  # fmt: skip
    try:
        yield
    except UnknownEntryError as error:
        if not any(error.key in plugin.provides for plugin in plugins):
            raise
        unknown = {plugin: _unknown_keys(plugin) for plugin in plugins}
        missing = [plugin for plugin, keys in unknown.items() if keys]
        origins = []
        for plugin in missing:
            kind, name = unknown[plugin][0].split(".", 1)
            origins.append(f"'{name}' ({kind}) comes from the plug-in {plugin.name}")
        raise CsktError(f"{', '.join(origins)}: {_remedy(missing)}") from error


def of_section(plugins: Iterable[Requirement], section: str) -> list[Requirement]:
    """Return the plug-ins that provide something of a section: for `parts`, those that inference needs."""
    return [plugin for plugin in plugins if any(key.startswith(f"{section}.") for key in plugin.provides)]


def of_entries(plugins: Iterable[Requirement], used: Iterable[tuple[Registry[Any], str]]) -> list[Requirement]:
    """Return the plug-ins that provide one of these entries, given as registry and name, or were named by a user."""
    keys = {registry.key(name) for registry, name in used}
    return [plugin for plugin in plugins if not plugin.provides or keys & set(plugin.provides)]


def _unknown_keys(plugin: Requirement) -> list[str]:
    """Return the entries of a plug-in that no registry has."""
    registries = {group.rpartition(".")[2]: registry for group, registry in REGISTRIES.items()}
    split = [(key, *key.split(".", 1)) for key in plugin.provides]
    return [key for key, kind, name in split if kind in registries and name not in registries[kind]]


def _remedy(missing: Sequence[Requirement]) -> str:
    digests = ", ".join(f"SHA-256 {plugin.sha256[:SHORT_DIGEST]}..." for plugin in missing if plugin.sha256)
    places = [_place(plugin.name) for plugin in missing]
    flags = " ".join(f"--plugin {place}" for place in places)
    it = "it" if len(missing) == 1 else "them"
    return f"load {it}{f' ({digests})' if digests else ''} with {flags}, or cskt.plugins.load_plugins in Python"


def _place(name: str) -> str:
    """Return what a user has to name: a file has a folder, which a run does not record and a recipe may state."""
    return f"PATH/{name}" if name.endswith(".py") and Path(name).name == name else name


def plugin_in(stack: TracebackType | None) -> Plugin | None:
    """Return the plug-in whose code raised an exception or called what raised it, given its traceback: of several the
    last called; None if no frame is a plug-in's."""
    by_file = {os.path.realpath(plugin.file): plugin for plugin in _loaded if plugin.file}
    files = [os.path.realpath(frame.filename) for frame in traceback.extract_tb(stack)]
    return next((by_file[file] for file in reversed(files) if file in by_file), None)


def _registering_plugin() -> Plugin | None:
    """Return the plug-in whose code calls `register`; None for a module of the package that a plug-in imports."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    module = "" if frame is None else str(frame.f_globals.get("__name__"))
    return _loading[-1] if _loading and module.partition(".")[0] != "cskt" else None


def _load(source: str) -> Plugin:
    if not source.endswith(".py"):
        plugin = _plugin_of_module(source)
        if plugin not in _loaded:
            with _running(plugin):
                importlib.import_module(source)
        return plugin
    path = expanded(source).resolve()
    if not path.is_file():
        raise MissingFileError(f"plug-in {source}: no such file")
    with file_system_errors(path):
        code = path.read_bytes()
    plugin = Plugin(path.name, hashlib.sha256(code).hexdigest(), str(path), str(path))
    if plugin not in _loaded:
        # In sys.modules, where dataclasses look for the module of a class; the digest keeps equal file names apart.
        name = f"{FILES}.{path.stem}_{plugin.sha256[:12]}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            with _running(plugin):
                spec.loader.exec_module(module)
        except CsktError:
            del sys.modules[name]
            raise
    return plugin


def _plugin_of_module(name: str) -> Plugin:
    """Return a module as a plug-in, without importing it (but for the packages around it)."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise CsktError(
            f"plug-in {name}: {one_line(error)}; name an installed module, or a file that ends in .py"
        ) from None
    if spec is None:
        raise CsktError(f"plug-in {name}: no such module; install it, or give a file that ends in .py")
    if not spec.origin or not Path(spec.origin).is_file():
        return Plugin(name, "", name)
    with file_system_errors(spec.origin):
        digest = hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
    return Plugin(name, digest, name, spec.origin)


@contextmanager
def _running(plugin: Plugin) -> Iterator[Plugin]:
    """Attribute what the block registers to a plug-in; an exception takes it all back.

    Raises:
        CsktError: the block raised an exception.
    """
    _loading.append(plugin)
    try:
        yield plugin
        _loaded.setdefault(plugin)
    except Exception as error:
        for registry in REGISTRIES.values():
            registry.forget(plugin)
        if isinstance(error, CsktError):
            raise CsktError(f"plug-in {plugin.name}: {error}") from error
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == plugin.file]
        line = f", line {frames[-1].lineno}" if frames else ""
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.filename == plugin.file else line
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise CsktError(f"plug-in {plugin.name}{line}: {reason} (--traceback shows where)") from error
    finally:
        _loading.pop()
