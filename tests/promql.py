"""What a PromQL expression asks for, read by Prometheus' own grammar.

Grafana replaces its variables before Prometheus sees an expression; here something of the same kind stands for each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import promql_parser

DURATIONS = {"__rate_interval": "5m", "__interval": "1m", "__range": "6h"}
VARIABLE = re.compile(r"\$\{(\w+)(?::[^}]*)?\}|\$([a-zA-Z_]\w*)|\[\[(\w+)\]\]")
CHOOSERS = {"topk", "bottomk", "limitk", "limit_ratio"}
"""Aggregations that keep the labels of what they choose."""


def plain(expression: str) -> str:
    """The expression with Grafana's variables replaced: a duration by a duration, any other by a number.

    `$1` of a label_replace is no variable.
    """
    return VARIABLE.sub(lambda found: DURATIONS.get(found[1] or found[2] or found[3], "1"), expression)


def variables(expression: str) -> set[str]:
    """The names of Grafana's variables in an expression."""
    return {found[1] or found[2] or found[3] for found in VARIABLE.finditer(expression)}


def parse(expression: str) -> promql_parser.Expr:
    """Its tree. Raises: ValueError, with the place of what is wrong."""
    return promql_parser.parse(plain(expression))


def selectors(expression: str) -> list[tuple[str, frozenset[str]]]:
    """Every metric that is selected, with the labels that its matchers and the clauses around it name.

    Clauses are `by`, `without`, `on`, `ignoring` and `group_…`; a label that label_replace makes is nobody's. Raises:
    ValueError, where the expression is not valid, a selector names no metric, or a clause wants a label that an
    aggregation within has dropped.
    """
    return list(_walk(parse(expression), frozenset()))


def _walk(node: Any, wanted: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """The selectors in a node, of whose result the clauses around it want these labels."""
    match node:
        case promql_parser.VectorSelector():
            if not node.name or node.matchers.or_matchers:
                raise ValueError(f"one metric, by its name, is wanted: {node.prettify()}")
            yield node.name, wanted | {each.name for each in node.matchers.matchers}
        case promql_parser.MatrixSelector():
            yield from _walk(node.vector_selector, wanted)
        case promql_parser.AggregateExpr():
            yield from _walk(node.expr, _within_aggregation(node, wanted))
        case promql_parser.BinaryExpr():
            left, right = _within_sides(node, wanted)
            yield from _walk(node.lhs, left)
            yield from _walk(node.rhs, right)
        case promql_parser.Call():
            inner = _within_call(node, wanted)
            for each in node.args:
                yield from _walk(each, inner)
        case promql_parser.ParenExpr() | promql_parser.UnaryExpr() | promql_parser.SubqueryExpr():
            yield from _walk(node.expr, wanted)
        case promql_parser.NumberLiteral() | promql_parser.StringLiteral():
            return
        case _:
            raise AssertionError(f"not known: {type(node).__name__}")


def _within_aggregation(node: promql_parser.AggregateExpr, wanted: frozenset[str]) -> frozenset[str]:
    made = {node.param.val} if isinstance(node.param, promql_parser.StringLiteral) else set()
    named = set(node.modifier.labels) if node.modifier else set()
    if str(node.op) in CHOOSERS:
        return wanted | named
    if node.modifier and node.modifier.type == promql_parser.AggModifierType.Without:
        lost = wanted & named
    else:
        lost = wanted - named - made
    if lost:
        raise ValueError(f"{', '.join(sorted(lost))}: dropped by {node.prettify()}")
    return wanted - made | named


def _within_sides(node: promql_parser.BinaryExpr, wanted: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """What is wanted of the left and of the right side."""
    if node.modifier is None:
        return wanted, wanted
    matching = node.modifier.matching
    is_on = matching is not None and matching.type == promql_parser.LabelModifierType.Include
    named = frozenset(matching.labels) if matching else frozenset()
    carried = frozenset(node.modifier.group_labels or ())
    card = promql_parser.VectorMatchCardinality
    if node.modifier.card in (card.ManyToOne, card.OneToMany):
        # Only the side of many keeps its labels; what group_… names comes from the other.
        many, one = (wanted - carried) | named, carried | (named if is_on else frozenset())
        return (many, one) if node.modifier.card == card.ManyToOne else (one, many)
    if str(node.op) in ("and", "unless"):
        return wanted | named, named if is_on else frozenset()
    return wanted | named, wanted | named


def _within_call(node: promql_parser.Call, wanted: frozenset[str]) -> frozenset[str]:
    texts = [each.val for each in node.args if isinstance(each, promql_parser.StringLiteral)]
    match node.func.name:
        case "label_replace":
            made, _, source, _ = texts
            return wanted - {made} | {source}
        case "label_join":
            made, _, *sources = texts
            return wanted - {made} | set(sources)
        case "absent" | "absent_over_time" | "vector" | "scalar":
            return frozenset()
        case _:
            return wanted
