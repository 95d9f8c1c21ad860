"""What reads other people's text, fuzzed in this process: it may refuse, in its own way, and do nothing else."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway import errors, policy_documents, policy_yaml, wire
from gateway.outbound import address
from gateway.rules import strict_json
from tests.fuzz import mutated_json

_DOCUMENTS: Final = (
    b'{"task_id":"task-wave1a2","model":"m","action":"generate","status":"completed","created_at":1795348800000,"progress":100,"cost":6640,"result":{"images":[{"url":["https://v.example/f/1.jpg"],"expires_at":1795435200}]},"urls":{"get":"https://v.example/v1/tasks/task-wave1a2"}}',
    b'{"code":"success","data":"task-wave1a2"}',
    b'{"data":{"task_id":"task-wave1a2","status":"failed","error":{"message":"no","code":"task_failed"}}}',
    b'{"error":{"message":"m","code":"quota_window_exceeded","reset_at":1795435200}}',
    b'{"object":"credit_summary","currency":"USD","total_used_usd":12.5}',
)
_POLICY: Final = b"""team: growth
upstream_key: env:K
keys: [{name: ci, sha256: "0000000000000000000000000000000000000000000000000000000000000000", can: [submit]}]
models: {allow: ["gemini-*"], deny: [], rewrite: {a: b}, unlisted: {usd: "0.20"}}
official_fallback: {default: deny, rules: [{models: ["*"], action: allow, while_spend_below: 0.5}]}
limits: {n: 4, resolution: 2K, open_tasks: 50}
spend:
  - {name: daily, cap: "25.00", per: day, warn_at: 0.8, raises: [{by: "1", until: 2026-12-01, why: x}]}
cache: {requests: seeded, scope: team, ttl: 30d}
"""
_YAML: Final = (
    b"&a ",
    b"*a",
    b"!!python/object:os.system ",
    b"<<: *a\n",
    b"010",
    b"1:30",
    b".nan",
    b"no",
    b"{",
    b"]",
    b"\t",
    b"- ",
    b"? ",
    b"---\n",
    b"\x00",
    b"\xff",
    b"1e999",
    b"team: x\n",
    b"|\n",
    b"[" * 200,
    b'"9" ',
    b"~",
    b"=",
)
_URLS: Final = (
    "https://",
    "http://",
    "//",
    "@",
    "127.0.0.1",
    "[::ffff:7f00:1]",
    "0x7f.1",
    "2130706433",
    "。",
    "%2e",
    "%00",
    "\\",
    ":443",
    ":99999",
    ":",
    "a.example",
    "ⓛocalhost",
    "xn--",
    "..",
    " ",
    "\n",
    "#",
    "?",
    "/",
    "[",
    "]",
    "\u00ad",
    "localhost",
    "é",
    "1" * 70,
    "64:ff9b::1",
)


def play(seed: int, inputs: int) -> tuple[Mapping[str, int], list[str]]:
    """So many inputs for each parser in turn; the counts, and what did anything but take or refuse."""
    parsers: Mapping[str, Callable[[random.Random], None]] = {
        "strict_json": _json,
        "submit": _submit,
        "vendor's JSON": _task,
        "URL": _url,
        "policy YAML": _policy,
    }
    counts = dict.fromkeys(parsers, 0)
    failures: list[str] = []
    for number in range(inputs):
        name = list(parsers)[number % 20 % 4] if number % 20 else "policy YAML"  # YAML takes a hundred times as long
        counts[name] += 1
        luck = random.Random(f"{seed}/{name}/{number}")
        try:
            parsers[name](luck)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            failures.append(f"{name} of {seed}/{number}: {error!r}")
    return counts, failures


def _json(luck: random.Random) -> None:
    data = mutated_json.mutated(luck, "m")
    try:
        value = strict_json.loads(data)
    except strict_json.InvalidJson:
        return
    strict_json.canonical(value)
    if isinstance(value, dict):
        fields = strict_json.fields_of(data)
        assert strict_json.loads(strict_json.join_fields(fields)) == value


def _submit(luck: random.Random) -> None:
    try:
        request = wire.parse_submit(mutated_json.mutated(luck, "m"))
    except errors.CallerError as error:
        assert error.code in ("invalid_json", "invalid_request")
        return
    wire.parse_submit(wire.encode_submit(request))


def _task(luck: random.Random) -> None:
    data = luck.choice(_DOCUMENTS)
    for _ in range(luck.randint(1, 3)):
        at, odd = luck.randrange(len(data)), luck.choice(mutated_json.ODD).encode("utf-8", "surrogatepass")
        colon = data.find(b":", at)
        choices = (data[: colon + 1] + odd + b"," + data[colon + 1 :], data[:at] + odd + data[at + 1 :], data[:at])
        data = luck.choice(choices) or b"{"
    status = luck.choice((200, 201, 302, 400, 401, 404, 422, 429, 500))
    wire.classify_submit(status, data, retry_after=luck.choice((None, "1", "x", "-1", "９", "9" * 30)))
    wire.classify_cancel(status, data, "task-wave1a2", retry_after=None)
    wire.read_task(data, "task-wave1a2")
    wire.read_balance(data)
    wire.error_of(data)


def _url(luck: random.Random) -> None:
    url = luck.choice(("https://", "http://", "")) + "".join(luck.choice(_URLS) for _ in range(luck.randint(1, 6)))
    checked = address.check_url(url, allowed=(ipaddress.ip_network("10.0.0.0/8"),))
    assert isinstance(checked, (address.Target, address.Refused))


def _policy(luck: random.Random) -> None:
    data = _POLICY
    for _ in range(luck.randint(1, 4)):
        at = luck.randrange(len(data))
        data = luck.choice((data[:at] + luck.choice(_YAML) + data[at:], data[:at] + data[at + luck.randint(1, 9) :]))
    problems = policy_yaml.Problems()
    files: dict[str, Any] = {"models.yaml": b"models: {}\n", "teams/growth.yaml": data}
    policy_documents.parse(files, problems)
