"""YAML as plain data: no objects, no key twice, no unfolding without end, and every fault an error in one line."""

from __future__ import annotations

from typing import Any

import yaml

DAMAGE = (ValueError, LookupError, AttributeError, TypeError, RecursionError)
"""What PyYAML raises, beside errors of its own, on tags that promise what their values do not hold."""
MOST_LEVELS = 100
"""Of mappings and lists within each other; a text that opens thousands would keep the parser busy for minutes."""
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
        """Lay merged mappings (`<<`) under a mapping's own keys.

        Raises:
            yaml.constructor.ConstructorError: a key stands there twice.
        """
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"'{key.value[:80]}' stands there twice; keep one", key.start_mark
                    )
                seen.add((key.tag, key.value))
        super().flatten_mapping(node)
        # Merges of merges double the pairs at every level: a few lines would fill the memory.
        node.value = list({_identity(key): (key, value) for key, value in node.value}.values())


def plain_yaml(text: str, loader: type[PlainLoader] = PlainLoader) -> Any:
    """What a YAML text holds; nothing in it is ever executed.

    Raises:
        ValueError: it is not plain YAML; says why and where in one line, without naming the file.
    """
    try:
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:1000]) from None
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"a value does not fit what it is said to be ({reason})") from None


def _identity(key: yaml.Node) -> object:
    return (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
