"""Patterns of files that are not indexed."""

from __future__ import annotations

import pytest

from cskt.gallery.indexing.ignoring import IgnorePatterns


@pytest.mark.parametrize(
    ("pattern", "ignored", "kept"),
    [
        ("*.png", ["a.png", "cam1/b.png"], ["a.PNG", "png", "a.jpg"]),
        ("old", ["old", "old/a.jpg", "cam1/old/b/c.jpg"], ["older/a.jpg", "cam1/a-old.jpg"]),
        ("old/", ["old/a.jpg", "cam1/old/a.jpg"], ["old", "cam1/old"]),
        ("/old", ["old/a.jpg"], ["cam1/old/a.jpg"]),
        ("cam1/*.jpg", ["cam1/a.jpg"], ["cam1/b/a.jpg", "x/cam1/a.jpg", "cam2/a.jpg"]),
        ("cam?/[ab].jpg", ["cam1/a.jpg", "cam2/b.jpg"], ["cam1/c.jpg", "cam10/a.jpg"]),
        ("**/old/*.jpg", ["old/a.jpg", "x/y/old/a.jpg"], ["old/x/a.jpg"]),
        ("cam1/**/a.jpg", ["cam1/a.jpg", "cam1/x/y/a.jpg"], ["a.jpg", "cam1/x/b.jpg"]),
        ("cam1/**", ["cam1/a.jpg", "cam1/x/a.jpg"], ["cam2/a.jpg"]),
        ("größe.jpg", ["größe.jpg"], ["groesse.jpg"]),
    ],
)
def test_matches(pattern: str, ignored: list[str], kept: list[str]) -> None:
    patterns = IgnorePatterns([pattern])
    assert [path for path in [*ignored, *kept] if patterns.match_file(path)] == ignored


def test_any_of_several_patterns_is_enough() -> None:
    patterns = IgnorePatterns(["*.png", "old/"])
    assert patterns.match_file("a.png") and patterns.match_file("old/a.jpg") and not patterns.match_file("a.jpg")
    assert patterns.match("old", is_folder=True) and not patterns.match("old")
    assert not IgnorePatterns().match_file("a.jpg")


@pytest.mark.parametrize(
    "pattern", ["", "/", "a//b", "../a", "a/..", "./a", "!a.jpg", "a\\b", "a\nb", "a\x1b[2J", "a" * 513]
)
def test_patterns_that_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="--ignore") as caught:
        IgnorePatterns([pattern])
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


def test_too_many_patterns_are_refused() -> None:
    with pytest.raises(ValueError, match="101 patterns; give at most 100"):
        IgnorePatterns(map(str, range(101)))


def test_no_pattern_takes_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ways to place several `**` multiply; only the last one is tried again."""
    from cskt.gallery.indexing import ignoring

    compared = 0

    def compare(name: str, pattern: str) -> bool:
        nonlocal compared
        compared += 1
        return name == pattern

    monkeypatch.setattr(ignoring.fnmatch, "fnmatchcase", compare)
    patterns = IgnorePatterns(["/".join(["**", "a"] * 40) + "/b"])
    assert not patterns.match("/".join(["a"] * 200))
    assert compared <= 200 * 81
