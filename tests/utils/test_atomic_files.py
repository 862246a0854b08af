"""Files written atomically: a write that fails leaves the file as it was and no temporary file."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cskt.errors import CsktError, FileSystemError
from cskt.utils.files import write_atomically


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), FileSystemError),
        (OSError("writer failed\nfor some reason"), FileSystemError),
        (CsktError("the text cannot be written"), CsktError),
        (RuntimeError("a bug"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_failed_write_leaves_the_old_file(tmp_path: Path, failure: BaseException, raised: type[BaseException]) -> None:
    path = tmp_path / "last.pt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise failure

    with pytest.raises(raised) as caught:
        write_atomically(path, write)
    if raised is FileSystemError:
        assert str(caught.value).startswith(f"{path}: cannot be written: ") and "\n" not in str(caught.value)
    else:
        assert caught.value is failure
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", [".", "..", "folder"])
def test_a_folder_in_place_of_a_file_is_an_error_that_names_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(FileSystemError, match="cannot be written: "):
        write_atomically(Path(name), lambda temporary: temporary.write_text("text"))
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "folder"]
