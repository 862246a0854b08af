"""Files that name the version agree, a rebuilt sdist is the same, and licences are found."""

from __future__ import annotations

import io
import re
import runpy
import tarfile
import tomllib
from email.message import Message
from pathlib import Path

import pytest
import yaml

import cskt

ROOT = Path(__file__).resolve().parents[1]


def test_files_name_the_same_version_and_date() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    dates = dict(re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\S+)$", changelog, flags=re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == citation["version"] == cskt.__version__
    assert dates[cskt.__version__] == str(citation.get("date-released", "unreleased"))


def test_an_sdist_does_not_depend_on_the_time_and_the_user() -> None:
    repacked = runpy.run_path(str(ROOT / "tools" / "make_dist.py"))["repacked"]

    def sdist(names: list[str], time: int, owner: str) -> bytes:
        written = io.BytesIO()
        with tarfile.open(fileobj=written, mode="w:gz") as tar:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size, member.mtime, member.uname = 3, time, owner
                tar.addfile(member, io.BytesIO(b"abc"))
        return written.getvalue()

    first, second = (repacked(one, 1_000_000) for one in (sdist(["a", "b"], 1, "x"), sdist(["b", "a"], 2, "y")))
    assert first == second
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        assert [(one.name, one.mtime, one.uname) for one in tar] == [("a", 1_000_000, ""), ("b", 1_000_000, "")]


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License-Expression": "MIT", "License": "old text"}, "MIT"),
        ({"Classifier": "License :: OSI Approved :: BSD License", "License": "text"}, "BSD License"),
        ({"License": "Apache 2.0\nand the whole text"}, "Apache 2.0"),
        ({}, ""),
    ],
)
def test_the_licence_of_a_package(fields: dict[str, str], licence: str) -> None:
    licence_of = runpy.run_path(str(ROOT / "tools" / "licences.py"))["licence_of"]
    about = Message()
    for name, value in fields.items():
        about[name] = value
    assert licence_of(about) == licence
