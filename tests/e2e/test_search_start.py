"""Modules that `cskt search` imports: nothing that one search of a gallery does not need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cskt.cli.demo_gallery import build_demo_gallery
from cskt.cli.quick_imports import CLIENT

SEARCH = """
import json, sys
from cskt.cli.main import main
code = main(["search", sys.argv[1], "a woman in a red coat", "--json"])
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
sys.exit(code)
"""
DEFERRED = f"""
import gc, json, sys
from cskt.cli.quick_imports import DeferredClass, quicken_lancedb, without_garbage_collection

quicken_lancedb()
with without_garbage_collection():
    assert not gc.isenabled()
    import lancedb
assert gc.isenabled()
import lance_namespace

table = lancedb.connect(sys.argv[1]).create_table("crops", [{{"vector": [1.0, 0.0], "name": "a"}}])
names = [row["name"] for row in table.search([1.0, 0.0]).limit(1).to_list()]
deferred = lance_namespace.ListTablesRequest
before = isinstance(deferred, DeferredClass), "{CLIENT}.api_client" in sys.modules
request = deferred(id=["demo"])
print(json.dumps([names, before, request.id, isinstance(request, deferred), isinstance(1, deferred)]))
print(type(request).__module__, sorted(deferred.model_fields)[:1], "{CLIENT}.api_client" in sys.modules)
"""

PANDAS = """
import sys
from cskt.cli.quick_imports import quicken_lancedb

quicken_lancedb()
import lancedb
import pyarrow

print("pandas" in sys.modules)
print(pyarrow.table({"name": ["a", None]}).to_pandas().shape)
import pandas

print(pyarrow.array(pandas.Series([1.0, float("nan")])).null_count)
"""


def run(code: str, argument: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, str(argument)], check=False, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_a_search_loads_no_client_of_a_network(tmp_path: Path) -> None:
    done = run(SEARCH, build_demo_gallery(tmp_path, num_people=4))
    assert len(json.loads(done.stdout)[0]["hits"]) == 10
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert {"torch", "lancedb"} <= loaded
    needless = {"huggingface_hub", "httpx", "ftfy", f"{CLIENT}.api_client", "onnxruntime", "openvino", "pandas"}
    assert not loaded & needless


def test_deferred_classes_are_those_of_the_client_once_used(tmp_path: Path) -> None:
    lines = run(DEFERRED, tmp_path / "database").stdout.splitlines()
    assert json.loads(lines[0]) == [["a"], [True, False], ["demo"], True, False]
    assert lines[1] == f"{CLIENT}.models.list_tables_request ['context'] True"


def test_pandas_is_imported_only_when_it_is_used(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    assert run(PANDAS, tmp_path).stdout.split("\n")[:3] == ["False", "(2, 1)", "1"]
