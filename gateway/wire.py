"""The upstream's JSON and our types: the only file that knows its field names and their many shapes.

A tolerant reader: it gives meaning to the few fields of UPSTREAM.md, accepts every shape listed there and passes
everything else through byte for byte. It makes no decision about money or state; it says what the vendor said.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec

from gateway import errors
from gateway.rules import callback, money, reconcile, strict_json, task
from gateway.rules import request as requests

NEVER_EXPIRES: Final = 4102444800
"""`expires_at` of a mirrored result without an end of retention: 2100-01-01."""

STATUSES: Final[Mapping[str, task.Event | None]] = {
    "queued": None,
    "processing": None,
    "running": None,
    "completed": task.Event.DELIVERED,
    "succeeded": task.Event.DELIVERED,
    "success": task.Event.DELIVERED,
    "done": task.Event.DELIVERED,
    "failed": task.Event.FAILED,
    "error": task.Event.FAILED,
    "timeout": task.Event.FAILED,
    "cancelled": task.Event.CANCELLED,
    "canceled": task.Event.CANCELLED,
}
"""Every status word seen; any other counts as under way. `timeout` is an end only with a cost."""

CALLBACK_EVENTS: Final = frozenset({"queued", "running", "processing", "completed", "succeeded", "failed", "cancelled"})

MOST_QUOTA: Final = 500_000 * 1_000_000
"""The largest `cost` that is believed: a million US dollars for one task."""

MOST_MEDIA: Final = 256
"""How many result files of one task are looked at."""

_MEDIA_LISTS: Final = ("images", "videos", "audios")
_EARLY_MEDIA: Final = ("video_url", "thumbnail_url")
_WITHHELD: Final = ("result", "cost", "completed_at")
_SANE_ID: Final = re.compile(r"(?!\.{1,2}\Z)[!-~]{1,200}", re.ASCII)
"""In a path `.` and `..` are no names, in no spelling."""
_NUMBER: Final = re.compile(r"-?\d{1,40}(?:\.\d{1,40})?(?:[eE][+-]?\d{1,3})?", re.ASCII)
_SHORTEST_ID_IN_TEXT: Final = 8
"""A shorter vendor id is replaced only where it is the whole string."""


# Submit: the client's body inward, the upstream's body outward.


def parse_submit(body: bytes) -> requests.Request:
    """Read a submit; raises CallerError `invalid_json` or `invalid_request` with `param`."""
    try:
        values = strict_json.loads(body)
    except strict_json.InvalidJson as error:
        raise errors.CallerError("invalid_json", f"The body is not JSON that the gateway accepts: {error}.") from None
    if not isinstance(values, dict):
        raise errors.CallerError("invalid_request", "The body must be a JSON object with `model` and `prompt`.")
    return requests.Request(
        model=_text(values, "model"),
        prompt=_text(values, "prompt"),
        action=_text(values, "action", requests.DEFAULT_ACTION),
        n=_integer(values, "n", requests.DEFAULT_N, least=1, most=requests.MOST_N),
        seed=_integer(values, "seed", requests.DEFAULT_SEED, least=-(2**63), most=2**63 - 1),
        aspect_ratio=_text(values, "aspect_ratio", requests.DEFAULT_ASPECT_RATIO),
        resolution=_text(values, "resolution", requests.DEFAULT_RESOLUTION),
        image_urls=_texts(values, "image_urls"),
        official_fallback=_boolean(values, "official_fallback"),
        grounded=_boolean(values, "google_search") | _boolean(values, "google_image_search"),
        callback_url=_text(values, "callback_url") if "callback_url" in values else None,
        callback_events=_events(values),
        values=values,
        written=strict_json.fields_of(body),
    )


def encode_submit(request: requests.Request) -> bytes:
    """The body that goes upstream: as written, but for what a policy changed and the webhook fields."""
    return strict_json.join_fields(requests.to_send(request))


def add_callback(body: bytes, url: str) -> bytes:
    """The same body with the URL that the upstream is to call at the end; every other field keeps its bytes."""
    ours = {"callback_url": url, "callback_events": callback.EVENTS}
    return strict_json.join_fields(
        strict_json.fields_of(body) | {name: strict_json.dumps(value) for name, value in ours.items()}
    )


def _invalid(param: str, what: str) -> errors.CallerError:
    return errors.CallerError("invalid_request", f"`{param}` must be {what}.", details={"param": param})


def _text(values: Mapping[str, object], name: str, default: str | None = None) -> str:
    value = values.get(name, default)
    if not isinstance(value, str) or not value:
        raise _invalid(name, "a non-empty string")
    return value


def _integer(values: Mapping[str, object], name: str, default: int, *, least: int, most: int) -> int:
    value = values.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _invalid(name, f"an integer from {least} to {most}")
    return value


def _boolean(values: Mapping[str, object], name: str) -> bool:
    value = values.get(name, False)
    if not isinstance(value, bool):
        raise _invalid(name, "true or false")
    return value


def _texts(values: Mapping[str, object], name: str) -> tuple[str, ...]:
    value = values.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise _invalid(name, "a list of non-empty strings")
    return tuple(value)


def _events(values: Mapping[str, object]) -> tuple[str, ...]:
    events = _texts(values, "callback_events")
    if not CALLBACK_EVENTS.issuperset(events):
        raise _invalid("callback_events", "a list of " + ", ".join(sorted(CALLBACK_EVENTS)))
    return events


# The upstream's answers inward.


def classify_submit(status: int, body: bytes, *, retry_after: str | None) -> task.SubmitOutcome:
    """What an answer to a submit means (CONTRACT §2); what nobody can be sure of is in doubt."""
    document = _object(body)
    unaccepted = _unaccepted(status, document, retry_after)
    if unaccepted is not None:
        return unaccepted
    if 200 <= status < 300:
        upstream_task_id = None if document is None else _task_id(document)
        if upstream_task_id is None:
            return task.InDoubt(reason=f"answer {status} without a task id", is_garbled=True)
        return task.Accepted(upstream_task_id=upstream_task_id, document=body, outcome=_outcome(document or {}))
    is_refusal = status in (400, 404, 413, 422) or (status == 500 and _code(document) == "price_not_configured")
    if is_refusal and document is not None:
        return task.Refused(status=status, document=body)
    return task.InDoubt(reason=f"answer {status}", is_garbled=_is_odd(status))


def classify_cancel(status: int, body: bytes, upstream_task_id: str, *, retry_after: str | None) -> task.CancelOutcome:
    """What an answer to a cancel means; a 404 for a task that we know is no answer (CONTRACT §3)."""
    document = _object(body)
    unaccepted = _unaccepted(status, document, retry_after)
    if unaccepted is not None:
        return unaccepted
    if 200 <= status < 300 and document is not None and _is_about(document, upstream_task_id):
        return task.Told(status=status, document=body)
    if status in (400, 409, 422) and document is not None and isinstance(document.get("error"), dict):
        return task.Told(status=status, document=body, is_refusal=True)
    return task.Lost(reason=f"answer {status}", is_answered=True, is_garbled=_is_odd(status))


def _is_odd(status: int) -> bool:
    """Whether an API has no use for this status here: a redirect, a success that says nothing, a number of no class."""
    return not 400 <= status < 600


def _unaccepted(status: int, document: dict[str, object] | None, retry_after: str | None) -> task.NotSent | None:
    """Whether the vendor did not take up the request at all: a rate limit, or a complaint about our key or wallet."""
    if status == 429:
        return task.NotSent(reason="429", retry_after_s=_seconds(retry_after), reset_at=_reset_at(document))
    if status in (401, 402, 403):
        return task.NotSent(reason=str(status), retry_after_s=_seconds(retry_after), is_key_refused=True)
    return None


def _is_about(document: Mapping[str, object], upstream_task_id: str) -> bool:
    found = _task_id(document)
    return found == upstream_task_id or (found is None and isinstance(_task_of(document).get("status"), str))


def read_task(body: bytes, upstream_task_id: str) -> task.Outcome | None:
    """What a poll's answer says; None if it is not a task, or another one."""
    document = _object(body)
    if document is None:
        return None
    found = _task_id(document)
    if found not in (None, upstream_task_id) or not isinstance(_task_of(document).get("status"), str):
        return None
    return _outcome(document)


def read_balance(body: bytes) -> reconcile.Wallet | None:
    """What the balance page says; None if it is none, or not in US dollars.

    The amount is read from the digits as written. What is below a nano, as a float's last digits are, is rounded.
    """
    document = _object(body) or {}
    inner = document.get("data")
    fields = inner if isinstance(inner, dict) and "total_used_usd" not in document else document
    used = _usd(fields.get("total_used_usd"))
    if used is None or str(fields.get("currency", "USD")).upper() != "USD":
        return None
    return reconcile.Wallet(used_nanos=used)


def _usd(value: object) -> int | None:
    """An amount in nanos from a JSON number or a string of one; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, str, msgspec.Raw)):
        return None
    text = bytes(value).decode() if isinstance(value, msgspec.Raw) else str(value)
    if not _NUMBER.fullmatch(text):
        return None
    amount = decimal.Decimal(text)
    if abs(amount) * money.NANOS_PER_USD > money.MAX_NANOS:
        return None
    return int((amount * money.NANOS_PER_USD).to_integral_value())


def _object(body: bytes) -> dict[str, object] | None:
    try:
        document = strict_json.loads(body)
    except strict_json.InvalidJson:
        return None
    return document if isinstance(document, dict) else None


def _task_of(document: Mapping[str, object]) -> Mapping[str, object]:
    """The object that holds the task's fields: the document itself, or its `data`."""
    inner = document.get("data")
    return inner if isinstance(inner, dict) and "status" not in document else document


def _task_id(document: Mapping[str, object]) -> str | None:
    inner = document.get("data")
    nested: Mapping[str, object] = inner if isinstance(inner, dict) else {}
    candidates = (document.get("task_id"), document.get("id"), nested.get("task_id"), nested.get("id"), inner)
    for candidate in candidates:
        if isinstance(candidate, str) and _SANE_ID.fullmatch(candidate):
            return candidate
    return None


def error_of(document: bytes) -> tuple[str, str] | None:
    """(code, message) of the error that a document of the vendor holds, for people; None if it holds none."""
    fields = _object(document) or {}
    error = fields.get("error") or _task_of(fields).get("error")
    if isinstance(error, str):
        return "", error
    if not isinstance(error, dict):
        return None
    return str(error.get("code") or error.get("type") or ""), str(error.get("message") or "")


def _code(document: Mapping[str, object] | None) -> object:
    error = (document or {}).get("error")
    return error.get("code") if isinstance(error, dict) else None


def _reset_at(document: Mapping[str, object] | None) -> int | None:
    error = (document or {}).get("error")
    if not isinstance(error, dict) or error.get("code") != "quota_window_exceeded":
        return None
    return _whole(error.get("reset_at"))


def _seconds(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"\d{1,9}", text.strip(), re.ASCII) else None


def _whole(value: object) -> int | None:
    """A count that fits 53 bits, or None."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,16}", value, re.ASCII):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        return None
    return value


def _quota(value: object) -> int | None:
    """An amount in quota; what no task can cost is no amount, because sums of it would pass 64 bits."""
    quota = _whole(value)
    return quota if quota is not None and quota <= MOST_QUOTA else None


def _outcome(document: Mapping[str, object]) -> task.Outcome:
    fields = _task_of(document)
    status = str(fields.get("status", "")).lower()
    cost = _quota(fields.get("cost"))
    event = STATUSES.get(status)
    if status == "timeout" and cost is None:
        event = None
    media = tuple(itertools.islice(_media(fields.get("result")), MOST_MEDIA))
    return task.Outcome(
        event=event,
        status=status,
        cost_quota=cost,
        pre_consumed_quota=_quota(fields.get("pre_consumed_cost")),
        is_cost_readable=cost is not None or fields.get("cost") is None,
        media=media if event is task.Event.DELIVERED else (),
        images=sum(1 for each in media if each.is_billed) if event is task.Event.DELIVERED else 0,
    )


def _media(result: object) -> Iterator[task.Media]:
    if not isinstance(result, dict):
        return
    seen: set[str] = set()
    for name in _MEDIA_LISTS:
        items = result.get(name)
        for item in items if isinstance(items, list) else ():
            expires_at = _whole(item.get("expires_at")) if isinstance(item, dict) else None
            for url in _urls(item.get("url") if isinstance(item, dict) else item):
                if url not in seen:
                    seen.add(url)
                    yield task.Media(url=url, expires_at=expires_at)
    has_lists = bool(seen)
    for name in _EARLY_MEDIA:
        for url in _urls(result.get(name)):
            if url not in seen:
                seen.add(url)
                yield task.Media(url=url, is_billed=name == "video_url" and not has_lists)


def _urls(value: object) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str) and item.startswith(("https://", "http://"))]


# A task outward, as the client sees it.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Everything that the client's picture of a task is made of; times in unix seconds."""

    task_id: str
    model: str
    action: str
    state: task.State
    created_at: float
    ended_at: float | None = None
    quote_quota: int = 0
    cost_quota: int = 0
    """What it cost, where the vendor's document does not say so."""
    is_free: bool = False
    """A hit or a follower: cost 0 and times of its own."""
    upstream_task_id: str | None = None
    document: bytes | None = None
    """The vendor's last JSON about the task (a hit's: about the one that was paid for)."""
    failure: bytes | None = None
    """An error object, as JSON, where the vendor's document has none."""
    links: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    """Vendor's result URL -> ours, or None while it is not mirrored."""
    public_url: str


def render_task(view: View) -> bytes:
    """The task as the client sees it: the vendor's own JSON with ids, links and result URLs made ours."""
    if view.document is None:
        return strict_json.join_fields(_ours(view))
    fields = strict_json.fields_of(view.document)
    core = _core(view)
    inner = fields.get("data", b"")
    if inner.startswith(b"{") and "status" not in fields:
        shown = _shown(view, strict_json.fields_of(inner))
        said = ("created_at", "progress") if view.state in task.ENDED else ("created_at", "progress", "status")
        core |= {name: shown[name] for name in said if name in shown}
        fields["data"] = strict_json.join_fields(shown)
    else:
        fields = _shown(view, fields)
    missing = {name: raw for name, raw in core.items() if name not in fields}
    whole = strict_json.join_fields(fields | missing)
    return strict_json.replace_strings(whole, lambda text: _ours_for(view, text))


def render_cancelled(task_id: str, refunded_quota: int) -> bytes:
    """The vendor's form of success, for a task that was cancelled here."""
    refund = {"refunded": True, "refunded_quota": refunded_quota}
    return strict_json.dumps({"task_id": task_id, "status": task.State.CANCELLED.value} | refund)


def render_answer(view: View, document: bytes) -> bytes:
    """What else the vendor answered about a task, byte for byte but for ids and links, which are made ours."""
    return strict_json.replace_strings(document, lambda text: _ours_for(view, text))


def _core(view: View) -> dict[str, bytes]:
    values = {
        "task_id": view.task_id,
        "model": view.model,
        "action": view.action,
        "status": task.SHOWN[view.state],
        "created_at": int(view.created_at * 1000),
        "progress": 100 if view.state is task.State.COMPLETED else 0,
    }
    return {name: strict_json.dumps(value) for name, value in values.items()}


def _ours(view: View) -> dict[str, bytes]:
    """The object before the vendor has answered, or where it never did."""
    fields = _core(view) | {"pre_consumed_cost": strict_json.dumps(0 if view.is_free else view.quote_quota)}
    if view.state in task.ENDED:
        fields["cost"] = _cost(view)
        if view.failure is not None:
            fields["error"] = view.failure
    return fields


def _shown(view: View, fields: dict[str, bytes]) -> dict[str, bytes]:
    status = _status(view, fields)
    is_told = view.state in task.ENDED and status is None  # a detached follower's leader may have been delivered
    if view.state is not task.State.COMPLETED and not is_told:
        fields = {name: raw for name, raw in fields.items() if name not in _WITHHELD}
    if status is not None:
        fields["status"] = strict_json.dumps(status)
    if "urls" in fields:
        fields["urls"] = _own_urls(view, fields["urls"])
    if "result" in fields:
        fields["result"] = _lasting(view, fields["result"])
    if view.is_free:
        fields |= {name: b"0" for name in ("cost", "pre_consumed_cost") if name in fields}
        for name, at in (("created_at", view.created_at), ("completed_at", view.ended_at)):
            if name in fields and at is not None:
                fields[name] = _time_like(fields[name], at)
    if view.failure is not None and fields.get("error", b"null") == b"null":
        fields |= {"error": view.failure, "cost": fields.get("cost", _cost(view))}
    return fields


def _cost(view: View) -> bytes:
    return strict_json.dumps(0 if view.is_free else view.cost_quota)


def _status(view: View, fields: Mapping[str, bytes]) -> str | None:
    """The status to show where the vendor's word would tell the client another story, else None."""
    if "status" not in fields:
        return None
    said = strict_json.loads(fields["status"])
    event = STATUSES.get(str(said).lower())
    shown = task.SHOWN[view.state]
    ends = {task.Event.DELIVERED: "completed", task.Event.FAILED: "failed", task.Event.CANCELLED: "cancelled"}
    if view.state in task.ENDED:
        return None if event is not None and ends[event] == shown else shown
    return "processing" if event is not None else None


def _own_urls(view: View, raw: bytes) -> bytes:
    if not raw.startswith(b"{"):
        return raw
    return strict_json.replace_strings(raw, lambda text: _own_url(view, text))


def _own_url(view: View, text: str) -> str:
    if not text.startswith(("https://", "http://")):
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return f"{view.public_url}/v1/tasks/{view.task_id}"
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    if view.upstream_task_id is not None:
        path = path.replace(view.upstream_task_id, view.task_id)
    return view.public_url + path


def _lasting(view: View, raw: bytes) -> bytes:
    """The result with `expires_at` set to the end of our retention wherever every URL of an item is mirrored."""
    if not raw.startswith(b"{"):
        return raw
    result = strict_json.fields_of(raw)
    for name in _MEDIA_LISTS:
        if result.get(name, b"").startswith(b"["):
            items = strict_json.items_of(result[name])
            result[name] = strict_json.join_items([_lasting_item(view, item) for item in items])
    return strict_json.join_fields(result)


def _lasting_item(view: View, raw: bytes) -> bytes:
    if not raw.startswith(b"{"):
        return raw
    item = strict_json.fields_of(raw)
    urls = _urls(strict_json.loads(item.get("url", b"null")))
    if "expires_at" in item and urls and all(view.links.get(url) for url in urls):
        item["expires_at"] = str(NEVER_EXPIRES).encode()
    return strict_json.join_fields(item)


def _time_like(raw: bytes, at: float) -> bytes:
    """An instant in the form of the vendor's own: ISO 8601 text, unix milliseconds or unix seconds."""
    if raw.startswith(b'"'):
        moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
        return strict_json.dumps(moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"))
    digits = raw.split(b".")[0]
    return str(int(at * 1000) if len(digits) > 11 else int(at)).encode()


def _ours_for(view: View, text: str) -> str:
    if text in view.links:
        return view.links[text] or text
    theirs = view.upstream_task_id
    if theirs is None or theirs not in text:
        return text
    if text == theirs:
        return view.task_id
    if text.startswith(("https://", "http://")) and f"/v1/tasks/{theirs}" in text:
        return _own_url(view, text)
    return text.replace(theirs, view.task_id) if len(theirs) >= _SHORTEST_ID_IN_TEXT else text
