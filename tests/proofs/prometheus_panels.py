"""Every expression of the dashboards and rules, as Grafana and Prometheus would ask it.

Source: grafana.com/docs/grafana, "Variables" and "Prometheus template variables": `$__rate_interval` is the larger of
`$__interval` + the scrape interval and four scrape intervals; All is the values joined by `|` and escaped for a regular
expression, unless the variable names something else for it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import yaml

VARIABLE: Final = re.compile(r"\$\{(\w+)(?::\w+)?\}|\$(\w+)|\[\[(\w+)\]\]")
LABEL_VALUES: Final = re.compile(r"label_values\((?:(?P<selector>.+?)\s*,\s*)?(?P<label>\w+)\)", re.DOTALL)
DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
POINTS: Final = 500
"""How many points a panel of usual width asks for."""

LabelValues = Callable[[str, str], Sequence[str]]
"""(label, selector) to the values that Prometheus knows."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """One thing that a panel, a variable, an annotation or a rule asks."""

    file: str
    title: str
    """The panel's, variable's or rule's name."""
    ref: str
    text: str
    step_s: float | None
    """None: asked for one moment."""

    @property
    def name(self) -> str:
        """For a report."""
        return f"{self.file}: {self.title} {self.ref}".strip()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What a person looks at: seconds up to now, and what the data source knows about its scrapes."""

    seconds: float
    scrape_s: float

    def step_s(self, least: str = "") -> float:
        """The seconds between two points of a panel whose own least interval may be larger."""
        return max(self.scrape_s, float(math.ceil(self.seconds / POINTS)), _seconds(least))

    def builtins(self, step_s: float) -> dict[str, str]:
        """What Grafana puts in for its own variables."""
        rate_s = max(step_s + self.scrape_s, 4 * self.scrape_s)
        whole_s = round(self.seconds)
        return {
            "__interval": f"{step_s:g}s",
            "__interval_ms": f"{step_s * 1000:g}",
            "__rate_interval": f"{rate_s:g}s",
            "__rate_interval_ms": f"{rate_s * 1000:g}",
            "__range": f"{whole_s}s",
            "__range_s": f"{whole_s}",
            "__range_ms": f"{whole_s * 1000}",
        }


def replaced(text: str, values: Mapping[str, str]) -> str:
    """An expression with every variable replaced. Raises KeyError, naming one that nobody defined."""
    return VARIABLE.sub(lambda found: values[found[1] or found[2] or found[3]], text)


def all_of(values: Sequence[str]) -> str:
    """The values as Grafana writes All into an expression."""
    escaped = [re.sub(r"[\\^$.*+?()\[\]{}|/]", r"\\\\\g<0>", value) for value in values]
    return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"


def dashboard(file: pathlib.Path, window: Window, ask: LabelValues) -> tuple[int, list[Expression]]:
    """How many panels a dashboard has that ask anything, and everything that it asks."""
    document = json.loads(file.read_text())
    values, found = _variables(document, file.name, window, ask)
    panels = 0
    for panel in _panels(document.get("panels", [])):
        targets = [target for target in panel.get("targets", []) if "expr" in target]
        panels += bool(targets)
        for target in targets:
            step_s = window.step_s(target.get("interval") or panel.get("interval") or "")
            text = replaced(target["expr"], values | window.builtins(step_s))
            where = {"file": file.name, "title": panel.get("title", ""), "ref": target.get("refId", "")}
            if target.get("range") or not target.get("instant"):
                found.append(Expression(**where, text=text, step_s=step_s))
            if target.get("instant"):
                found.append(Expression(**where, text=text, step_s=None))
    step_s = window.step_s()
    for annotation in document.get("annotations", {}).get("list", []):
        text = annotation.get("expr") or annotation.get("target", {}).get("expr")
        if text:
            text = replaced(text, values | window.builtins(step_s))
            found.append(Expression(file=file.name, title=annotation["name"], ref="", text=text, step_s=step_s))
    return panels, found


def rules(file: pathlib.Path, window: Window) -> list[Expression]:
    """Every rule of a rule file, over the whole window; and what a recording rule recorded."""
    found = []
    for group in (yaml.safe_load(file.read_text()) or {}).get("groups", []):
        for rule in group["rules"]:
            recorded = rule.get("record")
            where = {"file": file.name, "title": recorded or rule["alert"], "step_s": window.step_s()}
            found.append(Expression(**where, ref="", text=rule["expr"]))
            if recorded:
                found.append(Expression(**where, ref="as recorded", text=recorded))
    return found


def is_rule_file(file: pathlib.Path) -> bool:
    """Whether a YAML file holds rules: a configuration may lie beside them."""
    document = yaml.safe_load(file.read_text())
    return isinstance(document, dict) and "groups" in document


def _panels(panels: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for panel in panels:
        yield panel
        yield from _panels(panel.get("panels", []))


def _variables(document: Any, file: str, window: Window, ask: LabelValues) -> tuple[dict[str, str], list[Expression]]:
    """Each variable's text at All, in the order of the dashboard, since one may be made of those before it."""
    values: dict[str, str] = {}
    found: list[Expression] = []
    for variable in document.get("templating", {}).get("list", []):
        name = variable["name"]
        match variable["type"]:
            case "query":
                query = variable["query"]
                text = replaced(query if isinstance(query, str) else query["query"], values)
                known = LABEL_VALUES.fullmatch(text.strip())
                assert known, f"{file}: ${name} asks {text}, which is not known here"
                selector = known["selector"] or ""
                options = ask(known["label"], selector)
                if selector:
                    asked = f"count by ({known['label']}) ({selector})"
                    found.append(Expression(file=file, title=f"${name}", ref="", text=asked, step_s=window.step_s()))
                assert options, f"{file}: ${name} has no values: {text}"
                values[name] = _chosen(variable, options)
            case "custom":
                options = [option.rpartition(" : ")[2].strip() for option in variable["query"].split(",")]
                values[name] = _chosen(variable, options)
            case "datasource" | "adhoc":
                values[name] = name
            case _:
                values[name] = str(variable.get("current", {}).get("value", variable.get("query", "")))
    return values, found


def _chosen(variable: Any, options: Sequence[str]) -> str:
    if variable.get("includeAll"):
        return variable["allValue"] if variable.get("allValue") else all_of(options)
    current = variable.get("current", {}).get("value")
    return current if isinstance(current, str) and current in options else options[0]


def _seconds(duration: str) -> float:
    found = DURATION.fullmatch(duration.removeprefix(">"))
    return float(found[1]) * SECONDS[found[2]] if found else 0.0
