"""Traffic: does it work, what is denied, how fast is it, and is the upstream to blame?"""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.models import dashboard as model

from grafana.generator import board, panels, queries
from grafana.generator.panels import Column, Frame
from grafana.generator.queries import MODEL, TEAM, gauge, quantile, rate

A_SECOND: Final = "reqps"
QUIET: Final = "no traffic"
SERVED: Final = 'status=~"hit|coalesced"'
FAILED: Final = 'status=~"5.."'
SLOWNESS: Final = {"p50": "green", "p95": "orange", "p99": "red"}
STATES: Final = {
    "reserved": "yellow",
    "submitted": "green",
    "delivered": "blue",
    "following": "purple",
    "waiting": "orange",
    "in_doubt": "red",
}
QUANTILES: Final = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))


def dashboard() -> model.Dashboard:
    """For who runs it at night."""
    return board.board(
        "wave-traffic",
        "Whether requests are answered, what is denied and why, how long it takes, and how the upstream does.",
        board.Row(title="Does it work?", panels=_health()),
        board.Row(title="Requests and decisions", panels=_requests()),
        board.Row(title="Tasks", panels=_tasks()),
        board.Row(title="Upstream", panels=_upstream()),
        board.Row(title="Webhooks", panels=_webhooks()),
        board.Row(title="Policies, keys, version", panels=_policies()),
        time_from="now-6h",
    )


def _health() -> list[panels.AnyPanel]:
    return [
        panels.number(
            Frame(
                title="Errors",
                text="Share of requests answered with 5xx, of the last five minutes. Above 1 %: which route, below; "
                "then the log by request id.",
                width=4,
                height=4,
                unit="percentunit",
                decimals=1,
                steps=[(None, "green"), (0.01, "orange"), (0.05, "red")],
                nothing=QUIET,
            ),
            f"({_five_minutes(FAILED)} or vector(0))\n/ ({_five_minutes()} > 0)",
        ),
        panels.number(
            Frame(
                title="In doubt",
                text="Tasks whose submit may or may not have arrived; their money is held. They end by "
                "themselves soon after the upstream's return. Longer: `wave-gateway tasks list`, then `tasks resolve`.",
                width=4,
                height=4,
                steps=[(None, "green"), (1, "orange"), (10, "red")],
                nothing="not scraped",
            ),
            gauge("tasks_in_doubt"),
        ),
        panels.number(
            Frame(
                title="Overdue",
                text="Open tasks older than an hour. Any: `wave-gateway tasks list`; does the upstream know them?",
                width=4,
                height=4,
                steps=panels.BAD_ABOVE_0,
                nothing="not scraped",
            ),
            gauge("tasks_overdue"),
        ),
        panels.number(
            Frame(
                title="Open tasks",
                text="Tasks of the chosen teams that have not ended. Rising while requests do not: the upstream is "
                "slow or down.",
                width=4,
                height=4,
                nothing="0",
            ),
            f"sum({_open('team, state')})",
        ),
        panels.number(
            Frame(
                title="Hit ratio",
                text="Admitted submits served without a purchase, from the cache or by coalescing, of the last hour. "
                "Low: are requests seeded, and is the cache on for the team?",
                width=4,
                height=4,
                unit="percentunit",
                decimals=0,
                most=1,
                nothing=QUIET,
            ),
            f"({_an_hour(SERVED)} or vector(0))\n/ ({_an_hour()} > 0)",
        ),
        panels.number(
            Frame(
                title="p95 of answers",
                text="95 of 100 requests were answered within this, of the last five minutes; those that waited for "
                "their picture on purpose count too. Compare with the upstream's below.",
                width=4,
                height=4,
                unit="s",
                nothing=QUIET,
            ),
            "histogram_quantile(0.95, sum by (le) "
            f"(rate({queries.selector('http_request_duration_seconds_bucket')}[5m])))",
        ),
        panels.timeline(
            Frame(
                title="Health",
                text="Red: the gateway was not scraped, the upstream is down (submits are held back), a team's "
                "upstream key is refused, or the policy files on disk are broken and the last good ones are in force.",
                width=24,
                height=6,
                unit="bool",
                most=1,
                steps=panels.GOOD_AT_1,
                nothing="not scraped",
                names={"1": ("good", "green"), "0": ("bad", "red")},
            ),
            (f"min(up{{{queries.JOB}}})", "gateway up"),
            (f"1 - {gauge('upstream_circuit_open')}", "upstream"),
            (gauge("upstream_key_ok", TEAM, by="team", least=True), "key of {{team}}"),
            (gauge("policy_reload_ok", least=True), "policies"),
        ),
    ]


def _requests() -> list[panels.AnyPanel]:
    return [
        panels.graph(
            Frame(
                title="Requests by route",
                text="Requests answered a second. A sudden stop: is the proxy in front well, is the gateway up?",
                width=8,
                unit=A_SECOND,
                nothing=QUIET,
            ),
            (rate("http_requests_total", by="route, method"), "{{method}} {{route}}"),
            is_stacked=True,
        ),
        panels.graph(
            Frame(
                title="Requests by status",
                text="Many 401: a client has a wrong key. 403 and 429: a policy or a cap, see denials. 5xx: ours or "
                "the upstream's; the log has the request id.",
                width=8,
                unit=A_SECOND,
                nothing=QUIET,
            ),
            (rate("http_requests_total", by="status"), "{{status}}"),
            is_stacked=True,
        ),
        panels.graph(
            Frame(
                title="Answers, how long",
                text="Quantiles over all routes; a long poll takes as long as the client asked for. p99 up and p50 "
                "not: look at the upstream and the disk.",
                width=8,
                unit="s",
                nothing=QUIET,
                colours=SLOWNESS,
            ),
            *((quantile(share, "http_request_duration_seconds"), name) for share, name in QUANTILES),
        ),
        panels.graph(
            Frame(
                title="Decisions",
                text="Submits allowed and denied a second, of the chosen teams.",
                width=8,
                unit=A_SECOND,
                nothing="no submits",
                colours={"allow": "green", "deny": "red", "would_deny": "orange"},
            ),
            (rate("policy_decisions_total", TEAM, by="decision"), "{{decision}}"),
            is_stacked=True,
        ),
        panels.graph(
            Frame(
                title="Denials by code",
                text="Why submits were denied, a second. `quota_window_exceeded`: a cap is full, see Spend. Others are "
                "a policy's; `wave-gateway policy explain` names the line.",
                width=8,
                unit=A_SECOND,
                nothing="no denials",
            ),
            (rate("policy_decisions_total", TEAM, 'decision!="allow"', by="team, code"), "{{team}} {{code}}"),
            is_stacked=True,
        ),
        panels.graph(
            Frame(
                title="Cache",
                text="Admitted submits a second: hit, coalesced (waits for the same request), miss, bypass (may not "
                "be cached). Much bypass: no seed, or the cache is off.",
                width=8,
                unit=A_SECOND,
                nothing="no submits",
                colours={"hit": "green", "coalesced": "blue", "miss": "orange", "bypass": "purple"},
            ),
            (rate("cache_requests_total", TEAM, by="status"), "{{status}}"),
            is_stacked=True,
        ),
    ]


def _tasks() -> list[panels.AnyPanel]:
    return [
        panels.graph(
            Frame(
                title="Open tasks by state",
                text="waiting: held back while the upstream is down. in_doubt: may have arrived. delivered: paid, not "
                "yet mirrored; growing means the downloads fail, see Media.",
                width=7,
                nothing="none open",
                colours=STATES,
            ),
            (f"sum by (state) ({_open('team, state')})", "{{state}}"),
            is_stacked=True,
        ),
        panels.graph(
            Frame(
                title="Tasks that ended",
                text="A second, by outcome. failed: the upstream gave up, nothing is paid. refused: it would not "
                "take the request.",
                width=7,
                unit="ops",
                nothing="none ended",
                colours={"completed": "green", "failed": "red", "refused": "orange", "cancelled": "blue"},
            ),
            (rate("tasks_total", TEAM, MODEL, by="outcome"), "{{outcome}}"),
            is_stacked=True,
        ),
        panels.rows(
            Frame(
                title="Outcomes by model and action",
                text="Tasks in the chosen time that did not complete, of all; an estimate where the gateway was "
                "restarted. A model that fails alone: the vendor's trouble, or an action it does not have.",
                width=10,
                nothing="none ended",
            ),
            Column(name="ended", query=queries.grown("tasks_total", TEAM, MODEL, by="model, action"), unit="short"),
            Column(
                name="not done",
                query=_not_completed(),
                unit="percentunit",
                decimals=1,
                steps=[(None, "green"), (0.05, "orange"), (0.2, "red")],
            ),
            labels={"model": "model", "action": "action"},
            by="not done",
        ),
        *(
            panels.graph(
                Frame(
                    title=f"Task duration, {name}",
                    text="From the submit to completed, by model, for tasks that went upstream. Longer than usual: the "
                    "vendor is busy; clients give up at 160 to 300 s.",
                    width=8,
                    unit="s",
                    least=None,
                    nothing="none ended",
                ),
                (quantile(share, "task_duration_seconds", MODEL, by="model"), "{{model}}"),
                least_step="5m",
                is_log=True,
            )
            for share, name in QUANTILES
        ),
    ]


def _upstream() -> list[panels.AnyPanel]:
    return [
        panels.graph(
            Frame(
                title="Requests to the upstream",
                text="A second, by what came of them. Anything but an answer for long: the circuit opens, submits are "
                "held back. Is it the network, the key or the vendor?",
                width=8,
                unit=A_SECOND,
                nothing="none sent",
            ),
            (queries.rate_of_moved("upstream_requests_total", by="operation, outcome"), "{{operation}} {{outcome}}"),
            is_stacked=True,
        ),
        panels.graph(
            Frame(
                title="Upstream, how long",
                text="How long the upstream takes to answer a request of ours; not how long a picture takes.",
                width=8,
                unit="s",
                nothing="none sent",
                colours=SLOWNESS,
            ),
            *((quantile(share, "upstream_request_duration_seconds"), name) for share, name in QUANTILES),
        ),
        panels.graph(
            Frame(
                title="Polls avoided",
                text="Polls by clients a second that were answered without asking the upstream.",
                width=8,
                unit=A_SECOND,
                nothing="no polls",
            ),
            (rate("upstream_polls_avoided_total"), "avoided"),
        ),
    ]


def _webhooks() -> list[panels.AnyPanel]:
    return [
        panels.number(
            Frame(
                title="Webhooks to deliver",
                text="Ends of tasks that a client wanted to hear of and has not taken yet. Many for long: a receiver "
                "is down; the log names it.",
                width=6,
                nothing="not scraped",
            ),
            gauge("webhooks_pending"),
        ),
        panels.graph(
            Frame(
                title="Attempts at webhooks",
                text="A second, by what came of them. A failure is tried again for a day and a half; what "
                "is given up then stays so: see `wave-gateway webhooks list`.",
                width=9,
                unit=A_SECOND,
                nothing="none sent",
            ),
            (queries.rate_of_moved("webhooks_total", by="outcome"), "{{outcome}}"),
            is_stacked=True,
        ),
        panels.graph(
            Frame(
                title="Webhooks to deliver, over time",
                text="It comes back to 0 when the receivers answer again. A line that only rises: one of them is gone "
                "for good.",
                width=9,
                nothing="not scraped",
            ),
            (gauge("webhooks_pending"), "to deliver"),
        ),
    ]


def _policies() -> list[panels.AnyPanel]:
    return [
        panels.rows(
            Frame(
                title="Virtual keys that expire",
                text="Time until a virtual key is refused. Below 30 days: `wave-gateway keys new`, both hashes in the "
                "file, then hand it over.",
                width=12,
                height=6,
                unit="dtdurations",
                least=None,
                nothing="no key expires",
            ),
            Column(
                name="expires in",
                query=f"{gauge('key_expiry_timestamp_seconds', TEAM, by='team, key', least=True)} - time()",
                unit="dtdurations",
                steps=[(None, "red"), (7 * queries.DAY_S, "orange"), (30 * queries.DAY_S, "green")],
                decimals=0,
            ),
            labels={"team": "team", "key": "key"},
            by="expires in",
            is_least_first=True,
        ),
        panels.number(
            Frame(
                title="Policies loaded",
                text="When the policies in force were loaded. Older than your last change: the files on disk are "
                "broken, run `wave-gateway policy check`.",
                width=6,
                height=6,
                unit="dateTimeFromNow",
                least=None,
                nothing="not scraped",
            ),
            f"1000 * {gauge('policy_loaded_timestamp_seconds')}",
        ),
        panels.number(
            Frame(
                title="Version",
                text="The version that runs; two for as long as an update takes.",
                width=6,
                height=6,
                nothing="not scraped",
            ),
            f"count by (version) ({queries.selector('build_info')})",
            legend="{{version}}",
        ),
    ]


def _open(by: str) -> str:
    """Open tasks now: a state that is empty is not exported, so nothing older is believed."""
    return f"max by ({by}) ({queries.selector('tasks_open', TEAM)})"


def _five_minutes(*matchers: str) -> str:
    return f"sum(rate({queries.selector('http_requests_total', *matchers)}[5m]))"


def _an_hour(*matchers: str) -> str:
    return f"sum(increase({queries.selector('cache_requests_total', TEAM, *matchers)}[1h]))"


def _not_completed() -> str:
    everything = queries.grown("tasks_total", TEAM, MODEL, by="model, action")
    good = queries.grown("tasks_total", TEAM, MODEL, 'outcome="completed"', by="model, action")
    return f"1 - ({good} or 0 * {everything}) / ({everything} > 0)"
