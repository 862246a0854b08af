"""Annotations, captions, configs and tables that are corrupt or hostile."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import in_a_process, limited, taken_or_refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cskt.cli.metadata_table import read_metadata
from cskt.config import load_config
from cskt.config.recipes import read_yaml
from cskt.data.datasets import read_dataset
from cskt.data.tokenizer import Tokenizer
from cskt.evaluation.results import load_result
from cskt.gallery.calibration import load_calibration
from cskt.gallery.manifest import read_manifest
from cskt.gallery.marks import read_pairs
from fault_tries import LONG, record

TEST = "tests/faults/test_hostile_text.py"
GOOD = {"split": "train", "captions": ["a man in a red coat"], "file_path": "a/1.jpg", "id": 1}
DEEP = 100_000

JSON_FILES: dict[str, bytes] = {
    "empty": b"",
    "spaces": b" \n\t ",
    "null": b"null",
    "a number": b"7",
    "a string": b'"text"',
    "an empty list": b"[]",
    "an empty object": b"{}",
    "a list of numbers": b"[1, 2]",
    "a list of nothing": b"[null]",
    "a list of lists": b"[[]]",
    "NaN": b"NaN",
    "a list of NaN": b"[NaN, Infinity, -Infinity]",
    "zeros": bytes(1000),
    "noise": bytes(range(256)) * 8,
    "UTF-16": json.dumps([GOOD]).encode("utf-16"),
    "UTF-32": json.dumps([GOOD]).encode("utf-32"),
    "Latin-1": '[{"split": "caf\xe9"}]'.encode("latin-1"),
    "brackets": b"[" * DEEP,
    "brackets that close": b"[" * DEEP + b"]" * DEEP,
    "nested objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "a number of 10^5 digits": b"[" + b"9" * 100_000 + b"]",
    "an exponent beyond all": b"[1e999999]",
    "a key twice": b'[{"split": "train", "split": "test", "id": 1, "captions": ["a"], "file_path": "a.jpg"}]',
    "a raw control character": b'["a\x01b"]',
    "half a surrogate": b'[{"split": "\\ud800", "captions": ["\\udfff"], "file_path": "\\ud800.jpg", "id": 1}]',
    "a key of a megabyte": b'[{"' + b"k" * 10**6 + b'": 1}]',
    "a trailing comma": b"[1,]",
    "two documents": b"[] []",
    "HTML": b"<html><body>404</body></html>",
    "a zip": b"PK\x03\x04" + bytes(100),
    "a BOM alone": b"\xef\xbb\xbf",
    "a hundred thousand objects": b"[" + b",".join([b"{}"] * 100_000) + b"]",
}
for length in range(5, 90, 12):
    JSON_FILES[f"cut after {length} bytes"] = json.dumps([GOOD]).encode()[:length]

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "annotation": ("reid_raw.json", lambda path: read_dataset("cuhk-pedes", path.parent)),
    "JSON lines": ("train.jsonl", lambda path: read_dataset("jsonl", path.parent)),
    "gallery": ("gallery.json", lambda path: read_manifest(path.parent)),
    "calibration": ("calibration.json", lambda path: load_calibration(path.parent, "0" * 64)),
    "result": ("cuhk-pedes_test_00000000.json", load_result),
    "metadata": ("table.jsonl", lambda path: read_metadata(path, path.parent)),
    "marks": ("marks.jsonl", read_pairs),
}


@pytest.mark.parametrize("reader", READERS)
def test_files_that_should_be_json(reader: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    for kind, content in JSON_FILES.items():
        (tmp_path / name).write_bytes(content)
        message = taken_or_refused(lambda: read(tmp_path / name))
        assert message or kind in {
            "empty", "spaces", "an empty list", "an empty object", "a BOM alone", "a key twice",
            "a hundred thousand objects",
        }, f"{kind} was taken"  # fmt: skip
        assert not message or name in message or str(tmp_path) in message, f"{kind}: does not say where: {message}"
    record("JSON and annotations, corrupt or hostile", tried=len(JSON_FILES), test=TEST)


VALUES: dict[str, Any] = {
    "nothing": None, "true": True, "a negative number": -1, "NaN": math.nan, "infinity": math.inf, "a fraction": 1.5,
    "a huge number": 10**40, "an empty string": "", "a space": " ", "a word": "x", "a list": [], "an object": {},
    "a list of nothing": [None], "a list of numbers": [1], "a list of empty strings": [""], "spaces": ["  "],
    "NUL": ["a\x00b"], "a NUL": "a\x00b", "half a surrogate": "\ud800", "a nested list": [["a"]],
    "the way out": "../../etc/passwd", "an absolute path": "/etc/passwd", "a Windows path": "C:\\windows\\x.jpg",
    "two lines": "a\nb", "a long string": "x" * 10**6, "turned writing": "\u202egpj.exe",
}  # fmt: skip


@pytest.mark.parametrize("key", GOOD)
def test_records_with_wrong_values(key: str, tmp_path: Path) -> None:
    for kind, value in VALUES.items():
        text = json.dumps([GOOD, {**GOOD, key: value}])
        (tmp_path / "reid_raw.json").write_text(text, encoding="utf-8")

        def read(kind: str = kind) -> None:
            for split in read_dataset("cuhk-pedes", tmp_path).values():
                for found in split.records:
                    assert isinstance(found.pid, int) and all(isinstance(one, str) for one in found.captions)
                    inside = (tmp_path / "imgs").resolve()
                    assert inside in found.image_path.resolve().parents, f"{kind}: leaves the folder"

        message = taken_or_refused(read)
        assert not message or "record 1" in message, message[:200]
    record("JSON and annotations, corrupt or hostile", tried=len(VALUES), test=TEST)


CAPTIONS = {
    "empty": "", "spaces": " " * 1000, "NUL": "a\x00man", "control characters": "".join(map(chr, range(32))),
    "delete and C1": "a \x7f\x80\x9f man", "a million letters": "a" * 10**6, "a million words": "a " * 500_000,
    "right to left": "\u05d0\u05d9\u05e9 \u05d1\u05de\u05e2\u05d9\u05dc",
    "bidi overrides": "a \u202enam\u202c \u2066x\u2069",
    "half a surrogate": "a \ud800 man", "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467" * 200,
    "combining marks": "a" + "\u0301" * 100_000, "zero width": "m\u200ba\u200bn" * 500, "a BOM": "\ufeffa man",
    "special tokens": "<|startoftext|> a man <|endoftext|>" * 20, "entities": "&amp;" * 20_000,
    "nested entities": "&" + "amp;" * 20_000, "full width": "\uff41 \uff4d\uff41\uff4e\uff0c",
    "no space": "\u4eba" * 50_000, "unassigned": "\U000e0fff\uffff\ufdd0",
    "HTML": "<script>alert(1)</script>" * 1000, "newlines": "a\r\n\u2028\u2029man",
}  # fmt: skip


def test_captions() -> None:
    tokenizer = Tokenizer(77)
    for kind, caption in CAPTIONS.items():
        with limited(20):
            ids = tokenizer([caption])
        assert ids.shape[0] == 1 and 2 <= ids.shape[1] <= 77, kind
        row = ids[0].tolist()
        end = row.index(49_407)
        assert row[0] == 49_406 and row.count(49_406) == row.count(49_407) == 1, (
            f"{kind}: a caption makes no control tokens"
        )
        assert not any(row[end + 1 :]), kind
    record("hostile captions", tried=len(CAPTIONS), test=TEST)


@settings(max_examples=2000 if LONG else 150, derandomize=True, deadline=None)
@given(st.text())
def test_any_text_has_one_start_and_one_end(text: str) -> None:
    row = Tokenizer(77)([text])[0].tolist()
    assert row[0] == 49_406 and row.count(49_406) == row.count(49_407) == 1


NESTED_ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGES = "a0: &a0 {x: 1, y: 2}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60))
ALIASES = ["&a0 [x, x]", *(f"&a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
CONFIGS = {
    "aliases of aliases": NESTED_ALIASES.encode(),
    "an anchor in itself": b"a: &a [*a]\n",
    "a Python object": b"!!python/object/apply:os.system ['touch canary']\n",
    "a Python name": b"name: !!python/name:os.system\n",
    "a Python module": b"name: !!python/module:os\n",
    "an unknown tag": b"name: !thing x\n",
    "binary": b"name: !!binary aGVsbG8=\n",
    "a date": b"seed: 2024-01-01\n",
    "NaN": b"optim: {lr: .nan}\n",
    "infinity": b"optim: {lr: .inf}\n",
    "beyond all numbers": b"optim: {lr: 1e999}\n",
    "a huge number": b"seed: " + b"9" * 5000 + b"\n",
    "a key twice": b"seed: 1\nseed: 2\n",
    "a list for a mapping": b"- 1\n- 2\n",
    "a string": b"hello\n",
    "tabs": b"optim:\n\tlr: 1\n",
    "NUL": b"name: a\x00b\n",
    "noise": bytes(range(256)),
    "UTF-16": "seed: 1\n".encode("utf-16"),
    "brackets": b"[" * 5000,
    "nested mappings": b"".join(b" " * n + b"a:\n" for n in range(900)),
    "two documents": b"seed: 1\n---\nseed: 2\n",
    "a merge of something": b"<<: 1\n",
    "a number as a key": b"1: 2\n",
    "a list as a key": b"? [1, 2]\n: 3\n",
    "nothing as a key": b"~: 3\n",
    "a base in itself": b"base: config.yaml\n",
    "a base far away": b"base: ../../../../etc/passwd\n",
    "a base that is none": b"base: [1]\n",
    "a section that is none": b"optim: 7\n",
    "a long value": b"name: " + b"x" * 10**6 + b"\n",
    "octal, sexagesimal": b"seed: 0o17\nname: 1:30\n",
    "a value of aliases": b"seed: [" + ", ".join(ALIASES).encode() + b"]\n",
    "merges of merges": MERGES.encode(),
    "a merge of many": (
        "a: &a {" + ", ".join(f"k{n}: 1" for n in range(2000)) + "}\nb: {<<: [" + ", ".join(["*a"] * 2000) + "]}\n"
    ).encode(),
    "a megabyte of keys": "".join(f"k{n}: 1\n" for n in range(100_000)).encode(),
    "an anchor in itself as a value": b"seed: &a [*a]\n",
    "a key of a megabyte": b"? " + b"k" * 10**6 + b"\n: 1\n",
    "a nested key of a megabyte": b"optim:\n  ? " + b"k" * 10**6 + b"\n  : 1\n",
    "a truth value that is none": b"seed: !!bool x\n",
    "a number without digits": b"seed: !!int ''\n",
    "a time that is none": b"seed: !!timestamp x\n",
    "a day that is none": b"seed: 2024-99-99\n",
    "a set that is none": b"seed: !!set [1]\n",
    "pairs that are none": b"seed: !!omap {a: 1}\n",
}


def test_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    for kind, content in CONFIGS.items():
        path.write_bytes(content)
        message = taken_or_refused(lambda: load_config(path))
        assert message or kind in {"a long value", "octal, sexagesimal", "binary"}, f"{kind} was taken"
        assert not message or "config.yaml" in message, f"{kind}: does not say where: {message[:200]}"
        assert not (tmp_path / "canary").exists(), "no code is run"
    record("YAML and tables, corrupt or hostile", tried=len(CONFIGS), test=TEST)


TABLES = {
    "empty": b"",
    "a heading alone": b"path,camera\n",
    "NUL": b"path,camera\na.jpg,\x00\n",
    "a quote that never closes": b'path,camera\na.jpg,"open\nb.jpg,c2\n',
    "quotes within": b'path,camera\na.jpg,"c""1"\n',
    "ten thousand columns": (
        ",".join(["path", *(f"c{n}" for n in range(10_000))]) + "\na.jpg" + ",1" * 10_000 + "\n"
    ).encode(),
    "a column twice": b"path,camera,camera\na.jpg,1,2\n",
    "a nameless column": b"path,\na.jpg,1\n",
    "too few cells": b"path,camera\na.jpg\n",
    "too many cells": b"path,camera\na.jpg,1,2,3\n",
    "a cell of a megabyte": b"path,camera\na.jpg," + b"x" * 10**6 + b"\n",
    "UTF-16": "path,camera\na.jpg,1\n".encode("utf-16"),
    "Latin-1": "path,camera\na.jpg,caf\xe9\n".encode("latin-1"),
    "a BOM": b"\xef\xbb\xbfpath,camera\na.jpg,1\n",
    "old line ends": b"path,camera\ra.jpg,1\r",
    "a formula": b"path,camera\na.jpg,=cmd|' /C calc'!A0\n",
    "the way out": b"path,camera\n../../etc/passwd,1\n",
    "a reserved name": b"path,vector\na.jpg,1\n",
    "SQL for a name": b"path,a); DROP TABLE x; --\na.jpg,1\n",
    "noise": bytes(range(256)) * 4,
    "a zip": b"PK\x03\x04" + bytes(100),
    "numbers of all kinds": b"path,n\na.jpg,1\nb.jpg,1e999\nc.jpg,nan\nd.jpg,0x10\n",
}


TAKEN = {
    "NUL", "quotes within", "ten thousand columns", "too few cells", "a BOM", "old line ends", "a formula",
    "the way out", "numbers of all kinds", "UTF-16",
}  # fmt: skip
"""As metadata: values are only ever data, and names of images that are not there mean nothing."""


@pytest.mark.parametrize("reader", ["metadata", "marks"])
def test_tables(reader: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    path = tmp_path / "table.csv"
    for kind, content in TABLES.items():
        path.write_bytes(content)
        message = taken_or_refused(lambda: read_metadata(path, tmp_path) if reader == "metadata" else read_pairs(path))
        assert bool(message) != (reader == "metadata" and kind in TAKEN), f"{kind}: {message}"
        assert not message or "table.csv" in message, f"{kind}: {message}"
    record("YAML and tables, corrupt or hostile", tried=len(TABLES), test=TEST)


@settings(
    max_examples=1000 if LONG else 60, derandomize=True, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.sampled_from(list(GOOD)), inner, max_size=5)
        ),
        max_leaves=12,
    )
)
def test_any_json_as_annotation_and_config(tmp_path: Path, content: Any) -> None:
    (tmp_path / "reid_raw.json").write_text(json.dumps(content), encoding="utf-8")
    taken_or_refused(lambda: read_dataset("cuhk-pedes", tmp_path))
    (tmp_path / "config.yaml").write_text(json.dumps(content), encoding="utf-8")
    taken_or_refused(lambda: read_yaml(tmp_path / "config.yaml"))


@pytest.mark.slow
def test_a_large_annotation(tmp_path: Path) -> None:
    """20 MB here, 200 MB in the long part: read in bounded time and memory."""
    most_bytes = (200 if LONG else 20) * 10**6
    one = json.dumps({**GOOD, "captions": ["a man in a red coat " * 10] * 2, "processed_tokens": [["a", "man"] * 60]})
    path = tmp_path / "reid_raw.json"
    with path.open("w", encoding="utf-8") as stream:
        stream.write("[" + one)
        for number in range(1, most_bytes // (len(one) + 10)):
            stream.write("," + one.replace("a/1.jpg", f"a/{number}.jpg"))
        stream.write("]")
    reading = f"read_dataset('cuhk-pedes', Path({str(tmp_path)!r}))"
    (used,) = in_a_process("from cskt.data.datasets import read_dataset", [reading])
    assert used.reason == ""
    assert used.more_bytes < 15 * path.stat().st_size, f"{used.more_bytes / 1e6:.0f} MB"
    with path.open("r+b") as stream:
        stream.seek(-1, 2)
        stream.truncate()
    assert "not JSON" in taken_or_refused(lambda: read_dataset("cuhk-pedes", tmp_path), seconds=90)
    record("JSON and annotations, corrupt or hostile", tried=2, test=TEST)
