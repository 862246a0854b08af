"""`docs/notebook.ipynb` runs, and its stored outputs are of the kinds that its cells give."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import REPOSITORY

PATH = REPOSITORY / "docs" / "notebook.ipynb"
spec = importlib.util.spec_from_file_location("run_notebook", REPOSITORY / "tools" / "run_notebook.py")
assert spec is not None and spec.loader is not None
run_notebook = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run_notebook)


@pytest.fixture
def logs_again() -> Iterator[None]:
    """The notebook hides warnings; other tests read them."""
    yield
    logging.disable(logging.NOTSET)


def kinds(notebook: dict[str, Any]) -> list[list[tuple[str, ...]]]:
    """Return the kinds of the outputs of each code cell."""
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [[(one["output_type"], *sorted(one.get("data", ()))) for one in cell["outputs"]] for cell in code]


def test_a_cell_gives_what_it_prints_and_its_last_value() -> None:
    code: dict[str, Any] = {"cell_type": "code", "source": ["print(1)\n", "x = 2\n", "x + 1"]}
    notebook: dict[str, Any] = {"cells": [code, {"cell_type": "markdown"}]}
    run_notebook.run_cells(notebook)
    printed, value = code["outputs"]
    assert (printed["text"], value["data"]) == (["1\n"], {"text/plain": ["3"]})
    with pytest.raises(ZeroDivisionError):
        run_notebook.run_cells({"cells": [{"cell_type": "code", "source": ["1 / 0"]}]})


def test_stored_outputs_are_small_and_name_no_machine() -> None:
    text = PATH.read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert "/tmp" not in text and "/home" not in text
    notebook = json.loads(text)
    assert notebook["nbformat"] == 4 and all(kinds(notebook)[1:3])


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs_again: None) -> None:
    pytest.importorskip("lancedb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    notebook = json.loads(PATH.read_text(encoding="utf-8"))
    stored = kinds(notebook)
    run_notebook.run_cells(notebook)
    assert kinds(notebook) == stored
