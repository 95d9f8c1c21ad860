"""Spend: is anyone going to hit a cap, and what did we spend? Then: on what, what was saved, do the books agree."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.models import dashboard as model

from grafana.generator import board, caps, panels, queries
from grafana.generator.panels import Column, Frame
from grafana.generator.queries import gained, ratio

USD: Final = "currencyUSD"
MONTH: Final = "now/M"
COST: Final = "cost_usd_total"
AVOIDED: Final = "cost_avoided_usd_total"
PREMIUM: Final = "fallback_premium_usd_total"
DRIFT: Final = "cost_drift_usd_total"
IMAGES: Final = "images_total"
CAP_NAME: Final = "{{scope}} {{name}} {{cap}}"
EXACT: Final = "Read from the ledger at each scrape, so it is exact."


def dashboard() -> model.Dashboard:
    """For who governs the money."""
    return board.board(
        "wave-spend",
        "What each team spent, against each cap, with what the cache saved and what fallback cost extra.",
        board.Row(title="Will anyone hit a cap, and what did we spend this month?", panels=_first()),
        board.Row(title="On what, in the chosen time", panels=_on_what()),
        board.Row(title="What was saved, and what cost extra", panels=_saved()),
        board.Row(title="Do the books agree?", panels=_books()),
        time_from=MONTH,
        refresh="5m",  # its sums read every sample of the month
    )


def _first() -> list[panels.AnyPanel]:
    soon = f"count({caps.FORECAST_SHARE} >= 1) or 0 * group({caps.LIMIT})"
    return [
        panels.number(
            Frame(
                title="Spent this month",
                text=f"Settled cost of the chosen teams and models this calendar month (UTC). {EXACT} "
                "More than you expect: see top movers below.",
                width=4,
                height=4,
                unit=USD,
                decimals=2,
                nothing="$0",
                time_from=MONTH,
            ),
            gained(COST),
        ),
        panels.number(
            Frame(
                title="Month's forecast",
                text="Cost at the end of the month (UTC): what is spent, and the pace of the last seven days (or since "
                "the gateway was first watched) until then. An estimate. More than the budget: look at the caps now, "
                "while they can still be lowered.",
                width=4,
                height=4,
                unit=USD,
                decimals=2,
                nothing="$0",
                time_from=MONTH,
            ),
            queries.month_forecast(),
        ),
        panels.number(
            Frame(
                title="Fullest cap",
                text="Settled and reserved, of the limit with its raises. At 100 % submits that touch the cap are "
                "denied; hits are still served. Raise the cap, or wait for its reset: see the table.",
                width=4,
                height=4,
                unit="percentunit",
                steps=panels.SHARE,
                nothing="no caps",
            ),
            f"max({caps.SHARE})",
        ),
        panels.number(
            Frame(
                title="Caps running out",
                text="Caps that are reached before they reset if their window goes on at its pace. Talk to the team "
                "before it is denied, or raise the cap until a date (`raises`).",
                width=4,
                height=4,
                steps=[(None, "green"), (1, "orange")],
                nothing="no caps",
            ),
            soon,
        ),
        panels.number(
            Frame(
                title="Saved this month",
                text="What hits and followers would have cost this month. Nothing saved: are requests seeded, and is "
                "the cache on for the team?",
                width=4,
                height=4,
                unit=USD,
                decimals=2,
                nothing="$0",
                time_from=MONTH,
            ),
            gained(AVOIDED),
        ),
        panels.number(
            Frame(
                title="Books",
                text="Differences that the hourly audit found between balances, ledger and pictures. Any: run "
                "`wave-gateway audit` and do not trust the figures here until it is explained.",
                width=4,
                height=4,
                steps=panels.BAD_ABOVE_0,
                nothing="not audited yet",
                names={"0": ("agree", "green")},
            ),
            queries.gauge("audit_differences"),
        ),
        panels.bars(
            Frame(
                title="Caps, how full",
                text="Settled and reserved, of each cap's limit. Orange from 80 %, red when it is full and submits "
                "are denied.",
                width=7,
                height=9,
                unit="percentunit",
                most=1,
                steps=panels.SHARE,
                nothing="no caps",
            ),
            caps.SHARE,
            legend=CAP_NAME,
        ),
        _caps(),
        panels.graph(
            Frame(
                title="Cost per day, last 30 days",
                text=f"Each day (UTC) by team, over the last 30 days. {EXACT} A day that stands out: choose the team "
                "and look at top movers.",
                width=16,
                unit=USD,
                nothing="nothing spent",
                time_from="30d",
            ),
            (gained(COST, by="team", over="1d", ahead=True), "{{team}}"),
            are_days=True,
        ),
        panels.rows(
            Frame(
                title="Teams this month",
                text="Spent and forecast for each team, for the calendar month (UTC).",
                width=8,
                unit=USD,
                nothing="nothing spent",
                time_from=MONTH,
            ),
            Column(name="spent", query=gained(COST, by="team"), unit=USD, decimals=2),
            Column(name="forecast", query=queries.month_forecast(by="team"), unit=USD, decimals=2),
            Column(name="images", query=gained(IMAGES, by="team"), unit="short"),
            labels={"team": "team"},
            by="spent",
        ),
    ]


def _caps() -> panels.AnyPanel:
    return panels.rows(
        Frame(
            title="Caps",
            text="Every cap with its balance in the present window; used is settled and reserved. Forecast: what is "
            "used, and the window's own pace until it resets. Full in: when that pace reaches the limit, empty if it "
            "resets before. Red: raise the cap, or tell the team.",
            width=17,
            height=9,
            nothing="no caps",
        ),
        Column(name="used", query=caps.USED, unit=USD, decimals=2),
        Column(name="reserved", query=caps.RESERVED, unit=USD, decimals=2),
        Column(name="limit", query=caps.LIMIT, unit=USD, decimals=2),
        Column(name="warn at", query=caps.WARN, unit=USD, decimals=2),
        Column(name="of limit", query=caps.SHARE, unit="percentunit", steps=panels.SHARE, decimals=0),
        Column(name="forecast", query=caps.FORECAST_SHARE, unit="percentunit", steps=panels.SHARE, decimals=0),
        Column(name="full in", query=caps.REACHED_IN, unit="dtdurations", decimals=0),
        Column(name="resets in", query=caps.RESETS_IN, unit="dtdurations", decimals=0),
        labels={"scope": "scope", "name": "name", "cap": "cap", "window": "per"},
        by="of limit",
    )


def _on_what() -> list[panels.AnyPanel]:
    before = queries.gained_before(COST, by="team, model")
    now = gained(COST, by="team, model")
    return [
        panels.rows(
            Frame(
                title="Cost by model and tier",
                text="Settled cost in the chosen time, and what an image cost. Much in tier official: fallback bills "
                "it, see below. An image dearer than the price list: fallback, or drift from the bill.",
                width=13,
                height=9,
                unit=USD,
                nothing="nothing spent",
            ),
            Column(name="cost", query=gained(COST, by="model, tier"), unit=USD, decimals=2),
            Column(name="images", query=gained(IMAGES, by="model, tier"), unit="short"),
            Column(
                name="an image",
                query=ratio(gained(COST, by="model, tier"), gained(IMAGES, by="model, tier")),
                unit=USD,
                decimals=4,
            ),
            labels={"model": "model", "tier": "tier"},
            by="cost",
        ),
        panels.rows(
            Frame(
                title="Top movers",
                text="Cost in the chosen time against the time of the same length before it, by team and model, "
                "largest rise first. A jump that nobody planned: look at its denials and outcomes on Traffic.",
                width=11,
                height=9,
                unit=USD,
                nothing="nothing spent",
            ),
            Column(name="now", query=now, unit=USD, decimals=2),
            Column(name="before", query=f"({before}) or 0 * ({now})", unit=USD, decimals=2),
            Column(name="change", query=f"({now}) - (({before}) or 0 * ({now}))", unit=USD, decimals=2),
            labels={"team": "team", "model": "model"},
            by="change",
        ),
        panels.graph(
            Frame(
                title="Cost since the beginning, by team",
                text=f"How the cost grew over the chosen time. {EXACT} A steep line: who, and with which model?",
                width=24,
                unit=USD,
                nothing="nothing spent",
            ),
            (queries.gained_since_start(COST, by="team"), "{{team}}"),
        ),
    ]


def _saved() -> list[panels.AnyPanel]:
    avoided = gained(AVOIDED, by="team")
    return [
        panels.graph(
            Frame(
                title="Saved per day, last 30 days",
                text="What repeats would have cost: from the cache, and by waiting for the same request of another "
                "(coalesced), over the last 30 days. A drop: has a client stopped sending its seed?",
                width=10,
                unit=USD,
                nothing="nothing saved",
                time_from="30d",
                colours={"cache": "green", "coalesced": "blue"},
            ),
            (gained(AVOIDED, by="reason", over="1d", ahead=True), "{{reason}}"),
            are_days=True,
        ),
        panels.bars(
            Frame(
                title="Share saved, by team",
                text="Saved, of what the team would have spent without cache and coalescing.",
                width=7,
                unit="percentunit",
                most=1,
                steps=panels.PLAIN,
                nothing="nothing spent",
            ),
            ratio(avoided, f"{avoided}\n+\n{gained(COST, by='team')}"),
            legend="{{team}}",
        ),
        panels.bars(
            Frame(
                title="Fallback premium, by team and model",
                text="Paid above the standard price through official_fallback in the chosen time. More than it is "
                "worth: `official_fallback: deny`, or a rule with `while_spend_below`.",
                width=7,
                unit=USD,
                decimals=2,
                steps=[(None, "orange")],
                nothing="no premium",
            ),
            f"({gained(PREMIUM, by='team, model')}) > 0",
            legend="{{team}} {{model}}",
            is_long=True,
        ),
    ]


def _books() -> list[panels.AnyPanel]:
    return [
        panels.bars(
            Frame(
                title="Drift from the vendor's bill",
                text="How far bills were from the price list, beyond one quota per image, in the chosen time. Any: has "
                "the vendor changed a price? Correct models.yaml; run `wave-gateway reconcile`.",
                width=12,
                height=6,
                unit=USD,
                decimals=4,
                steps=panels.BAD_ABOVE_0,
                nothing="no drift",
            ),
            f"({gained(DRIFT, by='team, model')}) > 0",
            legend="{{team}} {{model}}",
        ),
        panels.number(
            Frame(
                title="Last audit",
                text="Time since the books were last recomputed; it happens each hour. Older than two hours: the audit "
                "fails, see the log.",
                width=6,
                height=6,
                unit="s",
                decimals=0,
                steps=[(None, "green"), (2 * 3600, "orange"), (6 * 3600, "red")],
                nothing="not audited yet",
            ),
            f"time() - ({queries.gauge('audit_timestamp_seconds')} > 0)",
        ),
        panels.number(
            Frame(
                title="Counted since",
                text="The first scrape in the chosen time. Later than its beginning: Prometheus was not there or does "
                "not keep that long; what was spent before is missing from these sums (`wave-gateway report` has it).",
                width=6,
                height=6,
                unit="dateTimeAsIso",
                least=None,
                nothing="never scraped",
            ),
            f"1000 * ({queries.first_scrape('$__range', '$__interval')})",
        ),
    ]
