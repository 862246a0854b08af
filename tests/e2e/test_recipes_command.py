"""`cskt recipes`: every method with the parameters that it trains, as docs/methods.md has them."""

from __future__ import annotations

import re

from command_line import REPOSITORY, done, typed

from cskt.config import recipe_names


def test_the_documentation_has_the_counts_that_the_command_prints() -> None:
    sizes = {size["name"]: size for size in typed("cskt recipes --json").json()}
    assert sizes.keys() == set(recipe_names())
    page = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
    headings = ", ".join(re.findall(r"^## (.+)$", page, re.MULTILINE))
    named = set(re.findall(r"`([\w-]+)`", page)) | set(headings.split(", "))
    for name, size in sizes.items():
        assert name in named, name
        assert size["trained"] is None or f"{size['trained']:,}" in page, name
    with_heads = [name for name, size in sizes.items() if size["heads"]]
    assert with_heads == ["irra", "tbps-clip", "tbps-clip-simple"]
    assert all(f"{sizes[name]['heads']:,}" in page for name in with_heads[:2])
    assert sizes["tbps-clip-simple"]["heads"] == 1, "the factor of the similarities"


def test_heads_grow_with_the_identities_and_nothing_else_does() -> None:
    few, many = (typed(f"cskt recipes --json --identities {number}").json() for number in (10, 11))
    grown = {one["name"]: other["heads"] - one["heads"] for one, other in zip(few, many, strict=True) if one != other}
    assert grown == {"irra": 512 + 1}, "a row of the classifier and its bias"


def test_the_table_describes_every_recipe_in_a_sentence() -> None:
    table = done("cskt recipes")
    assert "12,117,888" in table and "7.49 %" in table
    for name in recipe_names():
        assert re.search(rf"│ {re.escape(name)} +│", table), name
