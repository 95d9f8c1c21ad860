"""One kind of request with what its answer must be, as wrk's Lua and as Python see it.

A load that is not checked measures how fast a server can fail. So each response is held against its `Ask`: the
status, one header, a word of the body. A single wrong one ends the run.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Final

NUMBER: Final = "{number}"
"""Stands in a path or a body for the number of the request."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request that is made again and again, and its right answer."""

    method: str = "GET"
    path: str = "/"
    paths: tuple[str, ...] = ()
    """Taken in turn instead of `path`."""
    body: str = ""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    keys: int = 1
    """How many different numbers there are, in turn; 0: each number comes once."""
    header: tuple[str, str] = ("", "")
    """A header of the right answer and its value; an empty name: none is looked at; an empty value: any will do."""
    contains: str = ""
    """Part of the right body; empty: the body is not looked at."""
    least_bytes: int = 0
    """The smallest whole answer."""


class WrongAnswerError(Exception):
    """A server answered something else than it was asked for: whatever was measured says nothing."""


def lua(ask: Ask, *, nonce: int) -> str:
    """The script that makes wrk send this and check each response.

    `nonce`: where the numbers begin, so that no two rounds send one number.
    """
    looks_at_body = bool(ask.contains)
    paths = ask.paths or (ask.path,)
    return _LUA.format(
        method=_quoted(ask.method),
        paths=", ".join(_quoted(path) for path in paths),
        body=_quoted(ask.body),
        headers=", ".join(f"[{_quoted(name)}] = {_quoted(value)}" for name, value in ask.headers.items()),
        nonce=nonce,
        keys=ask.keys,
        name=_quoted(ask.header[0].lower()),
        value=_quoted(ask.header[1]),
        contains=_quoted(ask.contains),
        check=_CHECK if looks_at_body or ask.header[0] else "",
    )


def requests(ask: Ask, host: str, *, nonce: int) -> Iterator[bytes]:
    """The requests as they go over the wire, without end."""
    paths = itertools.cycle(ask.paths or (ask.path,))
    for number in itertools.count():
        counted = str(nonce + number if ask.keys == 0 else (nonce + number) % ask.keys)
        body = ask.body.replace(NUMBER, counted).encode()
        lines = [f"{ask.method} {next(paths).replace(NUMBER, counted)} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name}: {value}" for name, value in ask.headers.items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        yield "\r\n".join([*lines, "", ""]).encode() + body


def check(ask: Ask, head: bytes, body: bytes) -> None:
    """Hold one answer against what it must be; raises WrongAnswerError."""
    status, *lines = head.decode("latin-1").split("\r\n")
    named = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name, wanted = ask.header
    is_right = status.startswith("HTTP/1.1 200 ") and ask.contains.encode() in body
    if name:
        is_right = is_right and name.lower() in named and wanted in ("", named[name.lower()])
    if not is_right or len(head) + len(body) < ask.least_bytes:
        raise WrongAnswerError(f"{ask.method} {ask.path}: {head.decode(errors='replace')}\n{body[:500]!r}")


def _quoted(text: str) -> str:
    """A Lua string: JSON's escapes are Lua's too for what is sent here."""
    return json.dumps(text, ensure_ascii=False)


_CHECK: Final = """
function response(status, headers, body)
    local right = status == 200
    if right and name ~= "" then
        right = false
        for each, value in pairs(headers) do
            if string.lower(each) == name and (wanted == "" or value == wanted) then right = true end
        end
    end
    if right and contains ~= "" then right = string.find(body, contains, 1, true) ~= nil end
    if not right then
        wrong = wrong + 1
        if sample == "" then sample = status .. " " .. string.sub(body or "", 1, 500) end
    end
end
"""

_LUA: Final = """
local paths = {{{paths}}}
local body = {body}
local headers = {{{headers}}}
local keys, number = {keys}, 0
name, wanted, contains = {name}, {value}, {contains}
wrong, sample = 0, ""

local made = {{}}
local function make(counted, path)
    local text = string.format("%.0f", counted)
    local sent = body ~= "" and (string.gsub(body, "{{number}}", text)) or nil
    return wrk.format({method}, (string.gsub(path, "{{number}}", text)), headers, sent)
end

function init(args)
    if keys > 0 then
        local many = math.max(keys, #paths)
        for at = 0, many - 1 do made[at] = make(at % keys, paths[at % #paths + 1]) end
    end
end

function request()
    local at = number
    number = number + 1
    if keys > 0 then return made[({nonce} + at) % (#made + 1)] end
    return make({nonce} + at, paths[at % #paths + 1])
end
{check}
local threads = {{}}
function setup(thread) table.insert(threads, thread) end

function done(summary, latency, requests)
    local bad, said = 0, ""
    for _, thread in ipairs(threads) do
        bad = bad + thread:get("wrong")
        if said == "" then said = thread:get("sample") end
    end
    local failed = summary.errors
    io.write(string.format(
        "MEASURED requests=%d duration_us=%d bytes=%d p50_us=%d p99_us=%d wrong=%d status=%d connect=%d read=%d " ..
        "write=%d timeout=%d\\n", summary.requests, summary.duration, summary.bytes, latency:percentile(50),
        latency:percentile(99), bad, failed.status, failed.connect, failed.read, failed.write, failed.timeout))
    io.write("SAMPLE " .. string.gsub(said, "[\\r\\n]", " ") .. "\\n")
end
"""
