"""The pictures of the dashboards, and the month that they are drawn from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from grafana.screens import __main__ as screens
from grafana.screens import month

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", screens.PICTURES)
def test_every_picture_is_there_and_small_enough_for_a_page(name):
    picture = ROOT / "docs" / "images" / name
    with Image.open(picture) as image:
        assert (image.format, image.width) == ("PNG", 1600)
    assert picture.stat().st_size < 250_000


@pytest.mark.parametrize("board", ["spend.json", "traffic.json", "media.json"])
def test_every_kind_of_panel_can_be_drawn(board):
    drawn = {"row", "stat", "bargauge", "timeseries", "state-timeline", "table"}
    assert {each["type"] for each in json.loads((ROOT / "grafana" / board).read_text())["panels"]} <= drawn


def test_a_month_is_played_and_scraped_as_prometheus_would(tmp_path):
    samples = tmp_path / "month.prom"
    command = [sys.executable, "-m", "grafana.screens.month", samples, "--hours", "0.5"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    text = samples.read_text()
    assert text.endswith("\n# EOF\n")
    # From 2026-10-19 00:00 UTC, every ten minutes.
    assert [line for line in text.splitlines() if line.startswith("up{")] == [
        'up{instance="gateway:8080",job="wave-gateway"} 1 1792368000',
        'up{instance="gateway:8080",job="wave-gateway"} 1 1792368600',
        'up{instance="gateway:8080",job="wave-gateway"} 1 1792369200',
        'up{instance="gateway:8080",job="wave-gateway"} 1 1792369800',
    ]
    limits = {line.split(" ")[1] for line in text.splitlines() if "budget_limit_usd" in line and "growth" in line}
    assert limits == {"12.0", "80.0"}


def test_a_sample_gets_the_labels_of_its_target():
    assert month.timed('a{b="c d"} 1.5') == 'a{instance="gateway:8080",job="wave-gateway",b="c d"} 1.5'
    assert month.timed("a 1") == 'a{instance="gateway:8080",job="wave-gateway"} 1'
