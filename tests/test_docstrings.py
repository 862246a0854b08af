"""The examples in the docstrings of everything exported from `cskt` run and give what they state."""

from __future__ import annotations

import doctest
import inspect
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

import cskt

NAMES = [name for name in cskt.__all__ if name != "__version__"]


def documented(name: str) -> Iterator[tuple[str, Any]]:
    """Yield an exported object, and if it is a module the functions and classes that it exports."""
    value = getattr(cskt, name)
    yield name, value
    if isinstance(value, ModuleType):
        for member, item in vars(value).items():
            is_public = not member.startswith("_") and (inspect.isfunction(item) or inspect.isclass(item))
            if is_public and item.__module__.startswith(value.__name__):
                yield f"{name}.{member}", item
    if inspect.isclass(value):
        yield from ((name, base) for base in value.__mro__[1:] if base.__module__.startswith("cskt."))
        cached = {member: item for member, item in vars(value).items() if isinstance(item, cached_property)}
        yield from ((f"{name}.{member}", item.func) for member, item in cached.items())


def examples(name: str) -> list[doctest.DocTest]:
    """Return the examples of a name and its members, with the globals of the module that defines each."""
    found = []
    for label, item in documented(name):
        module = inspect.getmodule(item)
        globs = (
            {"torch": torch, **vars(module), "cskt": cskt, "Image": Image, "Path": Path} if module else {"cskt": cskt}
        )
        tests = doctest.DocTestFinder(recurse=not isinstance(item, ModuleType)).find(item, label, globs=globs)
        found += [test for test in tests if test.examples]
    return found


def write_gallery(dolls: Path, folder: Path) -> None:
    """Write `crops`, `my-gallery` with these crops, and `new.jpg`, which the examples of `Gallery` use."""
    pictures = sorted(dolls.rglob("*.jpg"))[:4]
    (folder / "crops").mkdir()
    for number, picture in enumerate(pictures[:3]):
        shutil.copy(picture, folder / "crops" / f"{number}.jpg")
    shutil.copy(pictures[3], folder / "new.jpg")
    with cskt.Gallery.create(folder / "my-gallery", cskt.load("clip-tiny", device="cpu")) as gallery:
        gallery.index(folder / "crops", metadata={f"{number}.jpg": {"camera": "c1"} for number in range(3)})


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(
    name: str, dolls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "Gallery":
        write_gallery(dolls, tmp_path)
    (tmp_path / "data").symlink_to(dolls)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.FAIL_FAST
    runner = doctest.DocTestRunner(optionflags=flags)
    report: list[str] = []
    for test in examples(name):
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_everything_exported_has_an_example() -> None:
    assert [name for name in NAMES if not examples(name)] == []


@pytest.mark.parametrize("name", ["Encoder", "Gallery"])
def test_every_public_method_has_an_example(name: str) -> None:
    classes = [item for item in getattr(cskt, name).__mro__ if item.__module__.startswith("cskt.")]
    own = {member for item in classes for member in vars(item)}
    deprecated = {"cut_off", "kept"}
    shown = {test.name.removeprefix(f"{name}.") for test in examples(name)}
    assert {member for member in own - deprecated if not member.startswith("_")} - shown == set()


def test_every_loss_function_has_an_example() -> None:
    shown = {test.name.removeprefix("losses.") for test in examples("losses")}
    functions = {name for name in cskt.losses.__all__ if inspect.isfunction(getattr(cskt.losses, name))}
    assert len(functions) > 8 and functions - shown == set()


def test_the_example_of_the_package_runs() -> None:
    test = doctest.DocTestParser().get_doctest(cskt.__doc__ or "", {}, "cskt", cskt.__file__, 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0
