"""What /metrics exports: every sample's name and its labels, collected from the program itself.

Dashboards, alerts and recording rules are held against this. A list written by hand would agree with them, and with
an old program.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from gateway import metrics

SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def labels() -> dict[str, frozenset[str]]:
    """Name of a sample → names of its labels; a histogram is `_bucket` (with `le`), `_sum` and `_count`."""
    found = _instruments()
    text = metrics.render(example_of(metrics.Snapshot))[0].decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, frozenset(sample.labels))
    return found


def example_of(shape: typing.Any) -> typing.Any:
    """A value of a type, with one item in all that it holds and nothing absent: each of its samples is there."""
    origin, inner = typing.get_origin(shape), typing.get_args(shape)
    if dataclasses.is_dataclass(shape) and isinstance(shape, type):
        return shape(**{name: example_of(each) for name, each in typing.get_type_hints(shape).items()})
    if origin is tuple:
        return tuple(example_of(each) for each in inner if each is not Ellipsis)
    if origin in (dict, Mapping):
        return {example_of(inner[0]): example_of(inner[1])}
    if origin in (types.UnionType, typing.Union):
        return example_of(next(each for each in inner if each is not type(None)))
    if shape in (int, float, str):
        return shape(1)
    raise AssertionError(f"no example is known for {shape}")


def _instruments() -> dict[str, frozenset[str]]:
    """The samples of the process's own instruments; one with labels has none yet, so they are not in an exposition."""
    found: dict[str, frozenset[str]] = {}
    families = set()
    for each in vars(metrics).values():
        if not isinstance(each, Counter | Gauge | Histogram):
            continue
        (family,) = each.describe()
        families.add(family.name)
        for suffix in SUFFIXES[family.type]:
            names = {*each._labelnames, "le"} if suffix == "_bucket" else {*each._labelnames}  # noqa: SLF001
            found[family.name + suffix] = frozenset(names)
    assert families == {family.name for family in metrics.REGISTRY.collect()}, "an instrument that is not in metrics.py"
    return found
