"""YAML as plain data: no objects, no key twice, no unfolding without end, and every fault an error in one line."""

from __future__ import annotations

from typing import Any

import yaml

from cskt.errors import CsktError

DAMAGE = (ValueError, LookupError, AttributeError, TypeError, RecursionError)
"""What PyYAML raises, beside errors of its own, on tags that promise what their values do not hold."""
MOST_LEVELS = 100
"""Of mappings and lists within each other; a text that opens thousands would keep the parser busy for minutes."""
MOST_CHARACTERS = 200_000
"""Of a text, a hundred times what a config has; the parser takes some 15 seconds for a million."""
MERGE = "tag:yaml.org,2002:merge"


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which by itself lets the last of two equal keys win and says nothing."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A value with all that is in it.

        Raises:
            yaml.composer.ComposerError: it is nested too deep.
        """
        self.depth += 1
        if self.depth > MOST_LEVELS:
            raise yaml.composer.ComposerError(problem=f"nested deeper than {MOST_LEVELS} levels")
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """See that a mapping has each key once, and merges no others (`<<`), which a few lines let fill the memory.

        Raises:
            yaml.constructor.ConstructorError: it does not.
        """
        seen = set()
        for key, _ in node.value:
            if key.tag == MERGE:
                raise yaml.constructor.ConstructorError(None, None, "'<<' is not taken; write the keys", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"'{key.value[:80]}' stands there twice; keep one", key.start_mark
                    )
                seen.add((key.tag, key.value))


def plain_yaml(text: str, loader: type[PlainLoader] = PlainLoader) -> Any:
    """What a YAML text holds; nothing in it is ever executed.

    Raises:
        CsktError: it is not plain YAML; says why and where in one line, without naming the file.
    """
    if len(text) > MOST_CHARACTERS:
        raise CsktError(f"{len(text):,} characters; at most {MOST_CHARACTERS:,} are read")
    try:
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        raise CsktError(" ".join(str(error).split())[:1000]) from None
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CsktError(f"a value does not fit what it is said to be ({reason})") from None
