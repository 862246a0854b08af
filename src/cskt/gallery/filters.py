"""Filters such as `camera = 'c3' AND time > '2026-01-01'`: text in, a small tree of conditions out.

    column = | != | <> | < | <= | > | >=  literal          column [NOT] IN (literal, ...)
    column [NOT] BETWEEN literal AND literal               column [NOT] LIKE 'text with %' [ESCAPE 'c']
    column IS [NOT] NULL                                   AND   OR   NOT   ( )

The text never reaches a store. It is split into tokens, of which only those above are accepted; sqlglot parses them;
its tree is converted to ours, and any other node is refused. A store compiles our tree to its own language.

A crop without a value in a column fulfils no condition on that column but IS NULL, not even a negated one: NOT is
moved to the leaves here, so that no store has to negate.

`%` in a LIKE pattern is any text; `_` is the letter itself. With ESCAPE, the character before `%`, `_` or itself
makes it a letter. Names and text compare in NFC: of a text with several normal forms, each is searched, as older
galleries contain text as it was given. Order (<, >, BETWEEN) uses NFC only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from unicodedata import normalize

from sqlglot import Token, TokenType, exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import SqlglotError

from cskt.errors import SHORT, CsktError
from cskt.gallery.columns import FORMS, Kind, Value, convert, find_column, forms
from cskt.gallery.conditions import (
    MAX_ENTRIES,
    MAX_FILTER_CHARACTERS,
    MAX_JOINED,
    All,
    Any_,
    Comparison,
    Condition,
    Membership,
    Missing,
    Operator,
    Pattern,
)

DEEPEST = 20
"""Nested parentheses and NOTs."""

_WORDS = frozenset(["AND", "OR", "NOT", "IN", "BETWEEN", "LIKE", "IS", "NULL", "TRUE", "FALSE"])
_SYMBOLS = frozenset(["=", "!=", "<>", "<", "<=", ">", ">=", "(", ")", ",", "-"])
_LITERALS = (TokenType.STRING, TokenType.NUMBER)
_OPERATORS: dict[type[exp.Expr], Operator] = {
    exp.EQ: "=", exp.NEQ: "!=", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">=",
}  # fmt: skip
_PARTS = frozenset(["this", "expression", "expressions", "low", "high", "negate"])
"""Arguments of sqlglot's leaves that are converted; others, such as `field` and `symmetric`, are refused."""
_OPPOSITE: dict[Operator, Operator] = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_ALLOWED = "a filter is column = 'text', <, >, IN (1, 2), BETWEEN 1 AND 2, LIKE 'a%', IS NULL, joined by AND, OR, NOT"


def parse_filter(text: str, columns: Mapping[str, Kind]) -> Condition:
    """Parse a filter to a tree without NOT, whose literals have the kind of their column.

    Args:
        text: as in the grammar above; names of columns and words of the grammar in any case.
        columns: the gallery's own columns and `BUILT_IN`.
    """
    if len(text) > MAX_FILTER_CHARACTERS:
        raise CsktError(f"the filter has {len(text):,} characters; at most {MAX_FILTER_CHARACTERS:,} are read")
    dialect = Dialect()  # plain SQL: '' is the only escape, a backslash is a backslash
    try:
        tokens = _checked_tokens(dialect.tokenize(text), text, columns)
        statements = dialect.parser().parse(tokens, text)
        if len(statements) != 1 or statements[0] is None:
            raise _refusal("it is empty")
        return _Walk(columns).condition(statements[0], negated=False)
    except SqlglotError:
        raise _refusal("a quote, a parenthesis or a word is missing or out of place") from None
    except RecursionError:
        raise _refusal("it is nested too deeply") from None


def _checked_tokens(tokens: Sequence[Token], text: str, columns: Mapping[str, Kind]) -> list[Token]:
    """Return the tokens if all belong to the grammar; names of columns become identifiers and no keywords."""
    if not tokens:
        raise _refusal("it is empty")
    checked: list[Token] = []
    depth = nots = joined = end = 0
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        written = text[token.start : token.end + 1]
        depth += {"(": 1, ")": -1}.get(written, 0)
        nots = nots + 1 if written.upper() == "NOT" else 0
        joined += written.upper() in ("AND", "OR")
        if joined > MAX_JOINED:
            raise _refusal(f"it has more than {MAX_JOINED} times AND or OR; a list of values is column IN (...)")
        if depth + nots > DEEPEST:
            raise _refusal(f"it is nested deeper than {DEEPEST}")
        if text[end : token.start].strip():
            raise _refusal("comments are not read")
        end = token.end + 1
        is_escape = written.upper() == "ESCAPE" and bool(checked) and checked[-1].token_type == TokenType.STRING
        if is_escape or token.token_type in _LITERALS or written.upper() in _WORDS or written in _SYMBOLS:
            checked.append(token)
        elif token.token_type == TokenType.IDENTIFIER or written.isidentifier():
            try:
                name = find_column(token.text, columns)  # in double quotes or bare
            except CsktError as error:
                if following and following.token_type == TokenType.L_PAREN:
                    raise _refusal(f"{SHORT.repr(written)} looks like a function, and there are none") from None
                raise CsktError(f"{error} (text is written in single quotes)") from None
            checked.append(Token(TokenType.IDENTIFIER, name, start=token.start, end=token.end))
        else:
            raise _refusal(f"{SHORT.repr(written)} is not read")
    if text[end:].strip():
        raise _refusal("comments are not read")
    return checked


@dataclass(frozen=True)
class _Walk:
    """Converts sqlglot's tree to ours; any node without a branch here is refused."""

    columns: Mapping[str, Kind]

    def condition(self, node: exp.Expr, negated: bool) -> Condition:
        if isinstance(node, exp.Paren):
            return self.condition(node.this, negated)
        if isinstance(node, exp.Not):
            return self.condition(node.this, not negated)
        if isinstance(node, exp.And | exp.Or):
            conditions = tuple(self.condition(part, negated) for part in _chain(node))
            # De Morgan: NOT (a AND b) is NOT a OR NOT b.
            return All(conditions) if isinstance(node, exp.And) != negated else Any_(conditions)
        if isinstance(node, exp.Escape):
            if not isinstance(node.this, exp.Like):
                raise _refusal("ESCAPE follows a LIKE pattern")
            return self.leaf(node.this, negated, node.expression)
        return self.leaf(node, negated)

    def leaf(self, node: exp.Expr, negated: bool, escape: exp.Expr | None = None) -> Condition:
        if not isinstance(node, (*_OPERATORS, exp.In, exp.Between, exp.Like, exp.Is)):
            raise _refusal(f"{SHORT.repr(node.sql())} is no condition")
        if any(value for part, value in node.args.items() if part not in _PARTS):
            raise _refusal(f"{SHORT.repr(node.sql())} says more than a filter can")
        negated = negated != bool(node.args.get("negate"))  # NOT LIKE, in some versions of sqlglot
        if not isinstance(node.this, exp.Column) or node.this.table:
            raise _refusal(f"{SHORT.repr(node.this.sql())} is where a column must be")
        column = node.this.name
        if isinstance(node, exp.Is):
            if not isinstance(node.expression, exp.Null):
                raise _refusal(f"IS is followed by NULL or NOT NULL; otherwise write {column} = ...")
            return Missing(column, negated)
        if isinstance(node, exp.In):
            entries = node.expressions
            if not entries or len(entries) > MAX_ENTRIES:
                raise _refusal(f"IN takes 1 to {MAX_ENTRIES:,} literals in parentheses, found {len(entries):,}")
            return Membership(column, tuple(self.equals(entries, column)), negated)
        if isinstance(node, exp.Like):
            return self.pattern(node.expression, column, escape, negated)
        if isinstance(node, exp.Between):
            self.check_order(column)
            low, high = (self.literal(node.args[end], column) for end in ("low", "high"))
            if negated:
                return Any_((Comparison(column, "<", low), Comparison(column, ">", high)))
            return All((Comparison(column, ">=", low), Comparison(column, "<=", high)))
        operator = _OPERATORS[type(node)]
        return self.comparison(node.expression, column, _OPPOSITE[operator] if negated else operator)

    def comparison(self, node: exp.Expr, column: str, operator: Operator) -> Condition:
        if operator not in ("=", "!="):
            self.check_order(column)
            return Comparison(column, operator, self.literal(node, column))
        values = tuple(self.equals([node], column))
        if len(values) == 1:
            return Comparison(column, operator, values[0])
        return Membership(column, values, negated=operator == "!=")

    def pattern(self, node: exp.Expr, column: str, escape: exp.Expr | None, negated: bool) -> Condition:
        if self.columns[column] != "text":
            raise _refusal(f"LIKE is for columns of text, column '{column}' is a {self.columns[column]}")
        self.literal(node, column, may_be_empty=True)
        first, *rest = _pieces(node.this, _escape_character(escape))
        pieces = (first, *(piece for piece in rest[:-1] if piece), *rest[-1:])
        in_all_forms = [*(tuple(normalize(form, piece) for piece in pieces) for form in FORMS), pieces]
        patterns = tuple(Pattern(column, parts, negated) for parts in dict.fromkeys(in_all_forms))
        if len(patterns) == 1:
            return patterns[0]
        return All(patterns) if negated else Any_(patterns)

    def check_order(self, column: str) -> None:
        if self.columns[column] == "boolean":
            raise _refusal(f"column '{column}' is true or false and has no order; write {column} = true")

    def equals(self, nodes: Sequence[exp.Expr], column: str) -> Iterator[Value]:
        """Yield the values of literals; of a text, all its forms."""
        for node in nodes:
            value = self.literal(node, column)
            if self.columns[column] == "text":
                yield from forms(node.this)
            else:
                yield value

    def literal(self, node: exp.Expr, column: str, *, may_be_empty: bool = False) -> Value:
        """Return the value of a literal in the column's kind; text and times are in quotes."""
        kind = self.columns[column]
        if isinstance(node, exp.Null):
            raise _refusal(f"nothing compares with NULL; write {column} IS NULL")
        number = node.this if isinstance(node, exp.Neg) else node
        if isinstance(node, exp.Boolean) and kind == "boolean":
            return bool(node.this)
        if isinstance(node, exp.Literal) and node.is_string and kind in ("text", "time"):
            raw: str = node.this
        elif isinstance(number, exp.Literal) and not number.is_string and kind == "number":
            raw = f"-{number.this}" if isinstance(node, exp.Neg) else number.this
        else:
            form = {"number": "a number", "boolean": "true or false"}.get(kind, f"a {kind} in single quotes")
            raise _refusal(f"column '{column}' compares with {form}, not with {SHORT.repr(node.sql())}")
        value = convert(raw, kind, column)
        if value is None and may_be_empty:
            return raw
        if value is None:
            raise _refusal(f"column '{column}' never contains an empty text; write {column} IS NULL")
        return value


def _escape_character(node: exp.Expr | None) -> str:
    """Return the character after ESCAPE; empty without ESCAPE."""
    if node is None:
        return ""
    if isinstance(node, exp.Literal) and node.is_string and len(node.this) == 1:
        return str(node.this)
    raise _refusal(f"ESCAPE takes one character in single quotes, not {SHORT.repr(node.sql())}")


def _pieces(pattern: str, escape: str) -> list[str]:
    """Return the texts between the `%` of a pattern, without its escape characters."""
    pieces = [""]
    letters = iter(pattern)
    for letter in letters:
        if letter == escape:
            escaped = next(letters, "")
            if not escaped or escaped not in f"%_{escape}":
                raise _refusal(f"the escape character {SHORT.repr(escape)} is allowed before %, _ or itself only")
            pieces[-1] += escaped
        elif letter == "%":
            pieces.append("")
        else:
            pieces[-1] += letter
    return pieces


def _chain(node: exp.Expr) -> Iterator[exp.Expr]:
    """Yield the parts of a AND b AND c, which sqlglot nests to the left; of OR likewise."""
    right: list[exp.Expr] = []
    kind = type(node)
    while type(node) is kind:
        right.append(node.expression)
        node = node.this
    yield node
    yield from reversed(right)


def _refusal(reason: str) -> CsktError:
    return CsktError(f"the filter is not understood: {reason}; {_ALLOWED}")
