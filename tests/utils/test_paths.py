"""Names of strangers as paths: never outside the folder that they belong to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cskt.utils.paths import file_name, inside


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "private.txt").write_text("private")
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    return tmp_path / "folder"


@pytest.mark.parametrize("parts", [("a.jpg",), ("sub", "a.jpg"), ("sub/../a.jpg",), ("sub/./b",), ("..a",), ("a..",)])
def test_a_path_inside_the_folder_is_joined(folder: Path, parts: tuple[str, ...]) -> None:
    path = inside(folder, *parts)
    assert path == folder.joinpath(*parts).resolve()
    assert path.is_absolute() and ".." not in path.parts


@pytest.mark.parametrize(
    "name",
    [
        "..", "../outside", "../outside/private.txt", "sub/../../outside", "/etc/passwd", "", ".", "sub/..",
        "../folder", "../folderx", "a\0b", "x" * 10 + "\0", "\ud800",
    ],
)  # fmt: skip
def test_what_leads_outside_is_refused_in_one_line(folder: Path, name: str) -> None:
    with pytest.raises(ValueError) as caught:
        inside(folder, name)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_links_that_lead_outside_are_refused(folder: Path) -> None:
    (folder / "to-file").symlink_to(folder.parent / "outside" / "private.txt")
    (folder / "to-folder").symlink_to(folder.parent / "outside")
    (folder / "to-nothing").symlink_to("/no/such/place")
    (folder / "circle").symlink_to("circle")
    (folder / "sub" / "up").symlink_to("..")
    for name in ("to-file", "to-folder", "to-folder/private.txt", "to-folder/new.txt", "to-nothing", "sub/up"):
        with pytest.raises(ValueError, match="leads outside"):
            inside(folder, name)
    with pytest.raises(ValueError):
        inside(folder, "circle", "a.jpg")


def test_links_that_stay_inside_are_followed(folder: Path) -> None:
    (folder / "sub" / "a.txt").write_text("a")
    (folder / "link").symlink_to("sub/a.txt")
    assert inside(folder, "link") == (folder / "sub" / "a.txt").resolve()


def test_links_are_refused_where_none_is_followed(folder: Path) -> None:
    (folder / "sub" / "a.txt").write_text("a")
    (folder / "file").symlink_to("sub/a.txt")
    (folder / "to-sub").symlink_to("sub")
    (folder / "out").symlink_to(folder.parent / "outside")
    assert inside(folder, "sub", "a.txt", follow_links=False) == folder / "sub" / "a.txt"
    assert inside(folder, "new", follow_links=False) == folder / "new"
    for name in ("file", "to-sub", "to-sub/a.txt", "to-sub/new.txt", "out", "out/private.txt"):
        with pytest.raises(ValueError, match="a link|leads outside"):
            inside(folder, name, follow_links=False)
    (folder.parent / "link").symlink_to(folder)
    assert inside(folder.parent / "link", "new", follow_links=False) == folder.parent / "link" / "new"


def test_the_folder_may_be_a_link_itself(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert inside(link, "a.txt") == folder.resolve() / "a.txt"


def test_a_relative_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert inside(Path("folder"), "a.txt") == folder.resolve() / "a.txt"
    with pytest.raises(ValueError, match="leads outside"):
        inside(Path("folder"), "..", "outside")


def test_a_name_of_any_length_and_letters_is_refused_in_one_line(folder: Path) -> None:
    for name in ("../" + "x" * 10_000, "../a\nb\x1b[31m", "../\u202egpj"):
        with pytest.raises(ValueError) as caught:
            inside(folder, name)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cuhk-pedes", "cuhk-pedes"), ("a/b", "a_b"), ("../../x", "_._.._x"), ("..", "_."), (".", "_"), ("", "_"),
        ("a\\b:c*", "a_b_c_"), ("a\0b\n", "a_b_"), ("x" * 500, "x" * 200),
        ("\ud800", "_"), ("é" * 150, "é" * 100), ("my run", "my run"), ("query-expansion-5", "query-expansion-5"),
    ],
)  # fmt: skip
def test_text_as_part_of_a_file_name(text: str, name: str, tmp_path: Path) -> None:
    assert file_name(text) == name
    assert inside(tmp_path, file_name(text)).parent == tmp_path.resolve()
    assert os.sep not in file_name(text)
