"""Check docstrings, comments, messages and documents for rules of plain English that a program can check.

    python tools/check_english.py [FILE ...]

Without files it checks src, tests, benchmarks, tools and the documents. Every finding is a line `FILE:LINE: reason`,
and the exit code is 1 if there are any. CONTRIBUTING.md has the rules in words.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ("src", "tests", "benchmarks", "tools")
DOCUMENTS = ("*.md", "docs/**/*.md", "docs/**/*.ipynb", "src/**/*.md", ".github/**/*.md")
FIXTURES = ROOT / "tests" / "compat"

FIRST_WORDS = {"What", "Whether", "Who", "Whose", "Which", "Those", "These", "Of", "How", "Where", "Why"}
"""A docstring starts with a verb or a noun phrase, so with none of these."""

PHRASES = {
    r"\b(?:is|are|was|were|be|been) told\b": "'logged', 'reported' or 'raised'",
    r"\bgo(?:es)? on\b(?! (?:in|at|to|a|the)\b)|\bgone on\b|\bwent on with\b": "'continue' or 'resume'",
    r"\blet(?:s)? go\b": "'release', 'close' or 'delete'",
    r"\bmend(?:s|ed|ing)?\b": "'fix' or 'repair'",
    r"\bhand(?:s|ed) over\b": "'upload' or 'pass'",
    r"\bwithstands?\b": "'tolerates', or name the test",
    r"\baffairs?\b": "the responsible person or module",
    r"\bwhoever\b|\bwhosoever\b": "the concrete subject",
    r"\bcut-offs?\b(?!-)(?<!#cut-off)": "'threshold'",
    r"\bsealed\b|\bunseal\w*": "'checksum'",
    r"\bat hand\b": "'available'",
    r"\bstands? (?:there|here|beside|in the way)\b|\blies? (?:there|here|beside)\b": "'is' or 'contains'",
    r"\blook(?:s|ed)? after\b": "'check'",
    r"\bwithout mercy\b|\bmerciless\w*": "the concrete rule",
    r"\bnot know(?:n)? any ?more\b|\bis known no more\b": "the concrete change",
    r"\brooms?\b": "'package' or 'module'; of disks: 'space'",
    r"\bdamaged\b": "'corrupt'",
    r"\b(?:un)?settled\b": "'committed' or 'pending'",
    r"\bstands\b(?! (?:for|out)\b)": "'is'",
    r"\b(?:who|which|what) asks\b": "'client' or 'request'",
    r"\btells?\b(?!\()(?! .{0,20}\bapart\b)": "'report', 'log' or 'show'",
    r"\blies\b(?! (?:within|below)\b)": "'is' or 'contains'",
    r"\bnoted in\b": "'logged in'",
}
"""Pattern in docstrings, comments, messages and documents -> the standard word to use instead.

Words of the table in the style guide with a plain meaning of their own are not here: asked (for), count, kept, seen.
"""

NAMES = {
    "add_up": "all_reduce",
    "from_leader": "broadcast",
    "is_leader": "is_main_process",
    "leader": "is_main_process",
    "leads": "is_main_process",
    "Feed": "Prefetcher",
    "Leaving": "ShutdownSignal",
    "Trainee": "TrainState",
    "Session": "Trainer",
    "Average": "ExponentialMovingAverage",
    "Additions": "BlockExtras",
    "Outermost": "RequestMiddleware",
    "Gate": "AccessControl",
    "Contents": "GalleryState",
    "told": "logged, message or output",
    "operators_affair": "an error class",
    "cut_off": "min_score",
    "noting": "audited or recorded",
    "asking": "query token",
    "settled": "committed",
    "unsettled": "pending",
    "sealed": "has_checksum",
    "mended": "repaired",
    "damaged": "corrupt",
}
"""Identifier, also of an attribute or a keyword argument -> the standard name."""

COMPATIBLE = {
    "cut_off": (
        ("src/cskt/service/", "src/cskt/gallery/gallery.py", "tests/gallery/test_gallery.py"),
        "HTTP field and attribute since 0.1",
    ),
}
"""Identifier -> where it stays, and the reason."""

COMPATIBLE_TEXT = {
    "last.damaged.pt": "file of a run folder since 0.1",
    "originals.unsettled": "file of a gallery since 0.1",
}
"""Text that stays in strings and documents, and the reason."""
COMPATIBLE_TEXT_PATTERN = re.compile("|".join(map(re.escape, COMPATIBLE_TEXT)))

LONGEST_LINE = 5_000
"""Characters of a line of a document; longer ones are pictures in notebooks."""
IGNORE = "english: ignore"
"""A comment with these words exempts its line."""


def prose(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line number and the text of every string and comment of a Python file."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in {tokenize.STRING, tokenize.COMMENT} or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line


def check_text(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield the line number and the reason for every phrase that is not standard English of the field."""
    for number, line in lines:
        checked = COMPATIBLE_TEXT_PATTERN.sub("", line)
        for pattern, better in PHRASES.items():
            if found := re.search(pattern, checked, re.IGNORECASE):
                yield number, f"'{found.group()}': write {better}"


def names_of(node: ast.AST) -> Iterator[str]:
    """Yield the identifiers of a node: of a definition, variable, argument, import or attribute."""
    for field in ("name", "id", "arg", "attr", "asname"):
        if isinstance(name := getattr(node, field, None), str):
            yield name.rpartition(".")[2]


def check_python(source: str, place: str = "") -> Iterator[tuple[int, str]]:
    """Yield the line number and the reason for every finding in a Python file; `place` is its path below the root."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            match statement:  # a docstring, also of a constant or a field
                case ast.Expr(value=ast.Constant(value=str(text))):
                    if (first := re.split(r"\W", text.strip(), maxsplit=1)[0]) in FIRST_WORDS:
                        yield statement.lineno, f"a docstring starts with '{first}': start with a verb or a noun phrase"
    for node in ast.walk(tree):
        for name in names_of(node):
            places, _ = COMPATIBLE.get(name, ((), ""))
            if name.lstrip("_") in NAMES and not place.startswith(places or "\0"):
                yield getattr(node, "lineno", 1), f"the name '{name}': use {NAMES[name.lstrip('_')]}"
    yield from check_text(prose(source))


def check_file(path: Path) -> list[str]:
    """Return the findings in a file as lines `FILE:LINE: reason`."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    place = path.relative_to(ROOT).as_posix()
    text = ((number, line) for number, line in enumerate(lines, 1) if len(line) < LONGEST_LINE)
    findings = check_python(source, place) if path.suffix == ".py" else check_text(text)
    kept = sorted({(number, reason) for number, reason in findings if IGNORE not in lines[number - 1]})
    return [f"{path.relative_to(ROOT)}:{number}: {reason}" for number, reason in kept]


def files() -> list[Path]:
    """Return the files of the repository that are checked."""
    python = [path for folder in PYTHON for path in (ROOT / folder).rglob("*.py")]
    documents = [path for pattern in DOCUMENTS for path in ROOT.glob(pattern)]
    return sorted(
        path for path in {*python, *documents} if FIXTURES not in path.parents and path != Path(__file__).resolve()
    )


def main(arguments: list[str]) -> int:
    """Print the findings and return the exit code."""
    findings = [line for path in [Path(name).resolve() for name in arguments] or files() for line in check_file(path)]
    print("\n".join(findings) or "plain English: no findings")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
