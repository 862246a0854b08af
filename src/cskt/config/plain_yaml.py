"""YAML as plain data: no objects, no key twice, bounded size, and every fault a CsktError of one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cskt.errors import CsktError, FileSystemError, MissingFileError
from cskt.utils.messages import one_line
from cskt.utils.terminal import printable

MISFITS = (ValueError, LookupError, AttributeError, TypeError)
"""Exceptions that PyYAML raises, beside its own, for a scalar that does not fit its tag."""
MAX_LEVELS = 100
"""Nesting of mappings and lists; a text with thousands of levels would take minutes to parse."""
MAX_CHARACTERS = 200_000
"""Length of a text, a hundred times that of a config; parsing a million takes some 15 seconds."""
MERGE = "tag:yaml.org,2002:merge"


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with errors for a key that appears twice and for a scalar that does not fit its tag."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a value with everything inside it, unless it is nested too deep."""
        self.depth += 1
        if self.depth > MAX_LEVELS:
            raise yaml.composer.ComposerError(problem=f"nested deeper than {MAX_LEVELS} levels")
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Check that a mapping has each key once, and no `<<`, with which a few lines could fill the memory."""
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            problem = "'<<' is not taken; write the keys" if key.tag == MERGE else ""
            if name in seen:
                problem = f"'{key.value[:80]}' is there twice; delete one"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if name is not None:
                seen.add(name)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value of a node."""
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep)
        try:
            return super().construct_object(node)  # of a scalar, PyYAML alone makes the value
        except MISFITS as error:
            reason = one_line(error)[:200] or type(error).__name__
            problem = f"a value does not fit what it is said to be ({reason})"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


def plain_yaml(text: str, loader: type[PlainLoader] = PlainLoader) -> Any:
    """Parse a YAML text as plain data; nothing in it is executed.

    Raises:
        CsktError: it is not plain YAML; one line with reason and position, without the file.
    """
    if len(text) > MAX_CHARACTERS:
        raise CsktError(f"{len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    try:
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        raise CsktError(one_line(error)[:1000]) from None
    except RecursionError:
        raise CsktError("nested too deep") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping of plain data from a file.

    Raises:
        CsktError: the file is missing, is not YAML, has a key twice, or is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except OSError as error:
        raise FileSystemError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CsktError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    try:
        content = plain_yaml(text)
    except CsktError as error:
        raise CsktError(f"{path}: not plain YAML: {printable(str(error))}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise CsktError(f"{path}: expected 'key: value' lines, found {type(content).__name__}")
    return content
