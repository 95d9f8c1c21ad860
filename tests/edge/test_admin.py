"""Which form of the exposition a scraper gets, by what it says that it takes."""

from __future__ import annotations

import pytest

from gateway.edge import admin

PROMETHEUS_2 = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "is_openmetrics"),
    [
        (PROMETHEUS_2, True),
        (PROMETHEUS_3, True),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text; Version=0.0.1; Q=0.5", True),
        ("application/openmetrics-text,text/plain", True),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.5", False),
        ("application/openmetrics-text;q=0.5,*/*;q=0.8", False),
        ("application/openmetrics-text;q=0.5,text/*;q=0.8", False),
        ("application/openmetrics-text;q=0.5,text/plain;q=0.1,*/*;q=0.8", True),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=0,*/*;q=0", False),
        ("application/openmetrics-text;version=2.0.0", False),
        ("application/openmetrics-text;version=2.0.0;q=0.9,application/openmetrics-text;version=1.0.0;q=0.1", True),
        ("application/openmetrics-text;q=high", False),
        ("application/openmetrics-text;q=nan", False),
        ("application/openmetrics-text-2", False),
        ("text/plain;version=0.0.4", False),
        ("*/*", False),
        ("application/*", False),
        ("", False),
        (";;,,=;q=,", False),
    ],
)
def test_openmetrics_is_for_who_asks_for_it_and_does_not_prefer_plain_text(accept: str, is_openmetrics: bool) -> None:
    assert admin.prefers_openmetrics(accept) is is_openmetrics


@pytest.mark.parametrize(
    ("accept_encoding", "is_gzip"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("gzip;q=0.001", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("identity", False),
        ("*", False),
        ("x-gzip-not", False),
        ("", False),
    ],
)
def test_gzip_is_for_who_names_it(accept_encoding: str, is_gzip: bool) -> None:
    assert admin.takes_gzip(accept_encoding) is is_gzip
