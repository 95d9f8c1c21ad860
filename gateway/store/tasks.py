"""Rows of tasks and their media. Only `flow/advance` changes a task's state, through `move`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Final

from gateway.rules import policy, pricing, task
from gateway.rules.money import Nanos
from gateway.store.database import Row, Tx


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One row of `tasks`; the schema says what each column holds. Times in unix seconds."""

    id: str
    team: str
    key_name: str
    request_id: str
    idempotency_key: str | None = None
    body_digest: bytes
    fingerprint: str | None = None
    inflight: str | None = None
    leader_id: str | None = None
    x_cache: str
    changes: str = ""
    model: str
    action: str
    n: int
    request: bytes
    tags: str = "{}"
    callback_url: str | None = None
    callback_events: str = ""
    state: task.State
    upstream_key_ref: str
    upstream_key_digest: bytes | None = None
    upstream_idempotency_key: str
    upstream_task_id: str | None = None
    document: bytes | None = None
    failure: bytes | None = None
    refusal_status: int | None = None
    price_version: str
    tier: str
    standard_unit_nanos: int
    official_unit_nanos: int | None = None
    official: str | None = None
    quote_nanos: int
    cost_nanos: int | None = None
    attempts: int = 0
    troubles: int = 0
    created_at: float
    first_attempt_at: float | None = None
    deadline_at: float
    submitted_at: float | None = None
    settled_at: float | None = None
    ended_at: float | None = None
    next_at: float | None = None
    traceparent: str | None = None
    callback_token: str | None = dataclasses.field(default=None, repr=False)
    callback_public_url: str | None = None

    def quote(self) -> pricing.Quote:
        """The quote as it was frozen at admission."""
        return pricing.Quote(
            nanos=Nanos(self.quote_nanos),
            standard_unit_nanos=Nanos(self.standard_unit_nanos),
            official_unit_nanos=None if self.official_unit_nanos is None else Nanos(self.official_unit_nanos),
            model=self.model,
            tier=policy.Tier(self.tier),
            official=self.official,
            version=self.price_version,
        )

    def is_awaited(self) -> bool:
        """Whether the POST under way is the submit itself, whose answer the client waits for: not one sent later."""
        return self.attempts == 1 and self.first_attempt_at == self.created_at

    def was_never_taken(self) -> bool:
        """Whether it ended because the upstream would not have it in time: nothing was spent, it may be sent again."""
        is_told = self.document is not None or self.settled_at is not None
        return self.state is task.State.FAILED and self.leader_id is None and not is_told

    def is_free(self) -> bool:
        """Whether another task was paid for this one's result."""
        return self.leader_id is not None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Medium:
    """One result file of a task; `digest`, `mime` and `extension` once it is mirrored."""

    position: int
    upstream_url: str
    expires_at: int | None
    digest: str | None
    extension: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Follower:
    """A task that followed another one until its end; columns as in `Task`."""

    id: str
    team: str
    key_name: str
    request_id: str
    created_at: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Callback:
    """Where a task's client wants to hear of its end; `events` is a JSON list."""

    task_id: str
    team: str
    url: str
    events: str


COLUMNS: Final = tuple(field.name for field in dataclasses.fields(Task))
_INSERT: Final = f"INSERT INTO tasks ({', '.join(COLUMNS)}) VALUES ({', '.join(':' + name for name in COLUMNS)})"  # noqa: S608
BODY_PERIOD_S: Final = 600
"""Of the index by which a task is found by its body."""
_SELECT: Final = f"SELECT {', '.join(COLUMNS)} FROM tasks"  # noqa: S608 - constant text
_HOLDING: Final = ", ".join(f"'{state}'" for state in task.HOLDING)
_OPEN: Final = ", ".join(f"'{state}'" for state in task.OPEN)
_COUNT: Final = f"SELECT COUNT(*) AS held FROM tasks WHERE team = :team AND state IN ({_OPEN})"  # noqa: S608 - our enum
"""With the condition of the index `tasks_open`, word for word: SQLite draws no conclusions, and would go through every
task that the team ever had."""


def insert(tx: Tx, row: Task) -> None:
    """Add a task; the database refuses a second one for an idempotency key and a second leader."""
    tx.run(_INSERT, **{name: getattr(row, name) for name in COLUMNS})


def get(tx: Tx, task_id: str) -> Task | None:
    """A task by our id."""
    return _task(tx.one(f"{_SELECT} WHERE id = :id", id=task_id))


def get_by_idempotency_key(tx: Tx, team: str, idempotency_key: str) -> Task | None:
    """The task that a team's idempotency key stands for."""
    return _task(tx.one(f"{_SELECT} WHERE team = :team AND idempotency_key = :key", team=team, key=idempotency_key))


def get_newest_of_body(
    tx: Tx, team: str, key_name: str, body_digest: bytes, *, since: float, now: float
) -> Task | None:
    """The newest task that a virtual key made of a body without an idempotency key, from `since` to `now`."""
    for period in range(int(now // BODY_PERIOD_S), int(since // BODY_PERIOD_S) - 1, -1):
        found = tx.one(
            f"{_SELECT} WHERE CAST(created_at / 600 AS INTEGER) = :period "
            "AND team = :team AND key_name = :key AND body_digest = :digest AND idempotency_key IS NULL "
            "AND created_at >= :since ORDER BY created_at DESC LIMIT 1",
            period=period,
            team=team,
            key=key_name,
            digest=body_digest,
            since=since,
        )
        if found is not None:
            return _task(found)
    return None


def get_by_upstream_task_id(tx: Tx, upstream_task_id: str) -> Task | None:
    """The task that the vendor knows under this id."""
    return _task(tx.one(f"{_SELECT} WHERE upstream_task_id = :id", id=upstream_task_id))


def id_by_callback_token(tx: Tx, token: str) -> str | None:
    """The id of the task whose end the upstream was told to report under this token."""
    row = tx.one("SELECT id FROM tasks WHERE callback_token = :token", token=token)
    return None if row is None else str(row["id"])


def get_result(tx: Tx, fingerprint: str, *, since: float) -> Task | None:
    """The newest completed task with this fingerprint whose every result is still kept."""
    return _task(
        tx.one(
            f"{_SELECT} WHERE fingerprint = :fingerprint AND state = 'completed' AND leader_id IS NULL "  # noqa: S608
            "AND ended_at > :since "
            "AND (SELECT COUNT(*) FROM task_media WHERE task_id = tasks.id) >= n "
            "AND NOT EXISTS (SELECT 1 FROM task_media WHERE task_id = tasks.id AND digest IS NULL) "
            "ORDER BY ended_at DESC LIMIT 1",
            fingerprint=fingerprint,
            since=since,
        )
    )


def get_leader(tx: Tx, fingerprint: str) -> Task | None:
    """The task in flight that a request with this fingerprint may follow."""
    return _task(tx.one(f"{_SELECT} WHERE inflight = :fingerprint", fingerprint=fingerprint))


def move(tx: Tx, row: Task, state: task.State, **columns: object) -> Task | None:
    """Change a task's state and columns if nobody has changed its state meanwhile; returns it as it is then."""
    changed = columns | {"state": state}
    names = ", ".join(f"{name} = :{name}" for name in changed)
    sql = f"UPDATE tasks SET {names} WHERE id = :this_id AND state = :state_before"  # noqa: S608 - our column names
    if not tx.run(sql, **changed, this_id=row.id, state_before=row.state):
        return None
    return get(tx, row.id)


def note(tx: Tx, row: Task, **columns: object) -> bool:
    """Change columns of a task that is still in the same state."""
    return move(tx, row, row.state, **columns) is not None


def resume_in_doubt(tx: Tx, *, now: float) -> int:
    """Make every task in doubt due at once, but for those that wait for the operator; returns how many."""
    return tx.run("UPDATE tasks SET next_at = :now WHERE state = 'in_doubt' AND next_at IS NOT NULL", now=now)


def end_followers(tx: Tx, leader_id: str, state: task.State, *, ended_at: float) -> list[Follower]:
    """Give every follower its leader's end; returns who they were."""
    waiting = tx.all(
        "SELECT id, team, key_name, request_id, created_at FROM tasks WHERE leader_id = :id AND state = 'following'",
        id=leader_id,
    )
    tx.run(
        "UPDATE tasks SET state = :state, ended_at = :ended_at, next_at = NULL, cost_nanos = 0 "
        "WHERE leader_id = :id AND state = 'following'",
        id=leader_id,
        state=state,
        ended_at=ended_at,
    )
    return [Follower(**{name: row[name] for name in row.keys()}) for row in waiting]


def callbacks_of_followers(tx: Tx, leader_id: str) -> list[Callback]:
    """The webhooks that the present followers of a task asked for."""
    rows = tx.all(
        "SELECT id, team, callback_url, callback_events FROM tasks "
        "WHERE leader_id = :id AND state = 'following' AND callback_url IS NOT NULL",
        id=leader_id,
    )
    return [
        Callback(task_id=row["id"], team=row["team"], url=row["callback_url"], events=row["callback_events"])
        for row in rows
    ]


def due(tx: Tx, states: Collection[task.State], *, now: float, limit: int) -> list[str]:
    """Ids of the tasks in these states that a background step should look at, the most overdue first."""
    names = ", ".join(f"'{state}'" for state in states)
    rows = tx.all(
        f"SELECT id FROM tasks WHERE state IN ({names}) AND next_at <= :now "  # noqa: S608 - our own enum
        "ORDER BY next_at LIMIT :most",
        now=now,
        most=limit,
    )
    return [row["id"] for row in rows]


def due_submits(tx: Tx, *, is_repeat: bool, now: float, limit: int) -> list[tuple[float, str]]:
    """(due at, id) of submits to send now, the most overdue first: first POSTs that were held back, or repeats."""
    rows = tx.all(
        "SELECT next_at, id FROM tasks WHERE state IN ('waiting', 'in_doubt') AND next_at <= :now "
        "AND (attempts > 0) = :is_repeat ORDER BY next_at LIMIT :most",
        is_repeat=is_repeat,
        now=now,
        most=limit,
    )
    return [(row["next_at"], row["id"]) for row in rows]


def ids_to_repeat(tx: Tx) -> list[str]:
    """Ids of every submit that was sent before and is to be sent again."""
    rows = tx.all(
        "SELECT id FROM tasks WHERE state IN ('waiting', 'in_doubt') AND next_at IS NOT NULL AND attempts > 0"
    )
    return [row["id"] for row in rows]


def due_to_end(tx: Tx, *, now: float, forgotten_at: float, limit: int) -> list[str]:
    """Ids of submits whose time is over: past the deadline, or first sent before `forgotten_at` and in doubt since."""
    rows = tx.all(
        "SELECT id FROM tasks WHERE state IN ('waiting', 'in_doubt') AND next_at <= :now "
        "AND ((state = 'waiting' AND deadline_at <= :now) "
        "OR (state = 'in_doubt' AND first_attempt_at <= :forgotten_at)) ORDER BY next_at LIMIT :most",
        now=now,
        forgotten_at=forgotten_at,
        most=limit,
    )
    return [row["id"] for row in rows]


def ids_in(tx: Tx, state: task.State) -> list[str]:
    """Ids of every task in an open state."""
    return [row["id"] for row in tx.all("SELECT id FROM tasks WHERE state = :state", state=state)]


def newest(tx: Tx, *, team: str | None = None, state: task.State | None = None, limit: int) -> list[Task]:
    """The newest tasks, of one team or state where these are given."""
    rows = tx.all(
        f"{_SELECT} WHERE (:team IS NULL OR team = :team) AND (:state IS NULL OR state = :state) "
        "ORDER BY created_at DESC, id DESC LIMIT :most",
        team=team,
        state=state,
        most=limit,
    )
    return [row for row in map(_task, rows) if row is not None]


def in_doubt(tx: Tx, *, team: str | None = None, limit: int) -> list[Task]:
    """The tasks in doubt, of one team where it is given, the oldest first."""
    rows = tx.all(
        f"{_SELECT} WHERE state = 'in_doubt' AND (:team IS NULL OR team = :team) ORDER BY created_at, id LIMIT :most",
        team=team,
        most=limit,
    )
    return [row for row in map(_task, rows) if row is not None]


def matching(tx: Tx, ref: str, *, digest: str | None, limit: int) -> list[Task]:
    """Tasks that a person may mean: by our id, the vendor's, a request id, an idempotency key or a blob's digest."""
    rows = tx.all(
        f"{_SELECT} WHERE id = :ref OR upstream_task_id = :ref OR request_id = :ref OR idempotency_key = :ref "  # noqa: S608
        "OR upstream_idempotency_key = :ref OR id IN (SELECT task_id FROM task_media WHERE digest = :digest) "
        "ORDER BY created_at DESC, id DESC LIMIT :most",
        ref=ref,
        digest=digest,
        most=limit,
    )
    return [row for row in map(_task, rows) if row is not None]


def followers_of(tx: Tx, task_id: str, *, limit: int) -> list[Task]:
    """Hits and followers of a task, the oldest first."""
    rows = tx.all(f"{_SELECT} WHERE leader_id = :id ORDER BY created_at, id LIMIT :most", id=task_id, most=limit)
    return [row for row in map(_task, rows) if row is not None]


def count_overdue(tx: Tx, *, before: float) -> int:
    """How many open tasks were made before an instant."""
    states = ", ".join(f"'{state}'" for state in task.OPEN)
    row = tx.one(
        f"SELECT COUNT(*) AS held FROM tasks WHERE state IN ({states}) AND created_at < :before",  # noqa: S608
        before=before,
    )
    return int(row["held"]) if row is not None else 0


def count_unmirrored(tx: Tx) -> int:
    """How many results of completed tasks are not mirrored and may still be; those given up are lost, not at risk."""
    row = tx.one(
        "SELECT COUNT(*) AS held FROM task_media JOIN tasks ON tasks.id = task_media.task_id "
        "WHERE task_media.digest IS NULL AND tasks.state = 'completed' AND tasks.next_at IS NOT NULL"
    )
    return int(row["held"]) if row is not None else 0


def count_holding(tx: Tx, team: str) -> int:
    """How many tasks of a team hold a reservation."""
    row = tx.one(f"{_COUNT} AND state IN ({_HOLDING})", team=team)
    return int(row["held"]) if row is not None else 0


def count_followers(tx: Tx, team: str) -> int:
    """How many tasks of a team follow another."""
    row = tx.one(f"{_COUNT} AND state = 'following'", team=team)
    return int(row["held"]) if row is not None else 0


def has_followers(tx: Tx, leader_id: str) -> bool:
    """Whether anybody follows a task now."""
    return tx.one("SELECT 1 FROM tasks WHERE leader_id = :id AND state = 'following' LIMIT 1", id=leader_id) is not None


def count_open(tx: Tx) -> Mapping[tuple[str, str], int]:
    """How many tasks are open, by (team, state)."""
    states = ", ".join(f"'{state}'" for state in task.OPEN)
    rows = tx.all(f"SELECT team, state, COUNT(*) AS held FROM tasks WHERE state IN ({states}) GROUP BY team, state")  # noqa: S608
    return {(row["team"], row["state"]): row["held"] for row in rows}


def of_team(
    tx: Tx,
    team: str,
    states: Collection[task.State],
    *,
    before: str | None,
    since: float | None,
    text: str | None,
    limit: int,
) -> list[Task]:
    """A team's tasks in these states, newest first: ids sort by time."""
    names = ", ".join(f"'{state}'" for state in states)
    like = None if text is None else "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    rows = tx.all(
        f"{_SELECT} WHERE team = :team AND state IN ({names}) "
        "AND (:before IS NULL OR id < :before) AND (:since IS NULL OR created_at >= :since) "
        "AND (:like IS NULL OR id LIKE :like ESCAPE '\\' OR upstream_task_id LIKE :like ESCAPE '\\' "
        "OR CAST(request AS TEXT) LIKE :like ESCAPE '\\') "
        "ORDER BY id DESC LIMIT :most",
        team=team,
        before=before,
        since=since,
        like=like,
        most=limit,
    )
    return [each for each in map(_task, rows) if each is not None]


def media_of(tx: Tx, task_id: str) -> list[Medium]:
    """The result files of a task, in their order."""
    rows = tx.all(
        "SELECT position, upstream_url, expires_at, task_media.digest, extension FROM task_media "
        "LEFT JOIN blobs ON blobs.digest = task_media.digest WHERE task_id = :id ORDER BY position",
        id=task_id,
    )
    return [Medium(**{name: row[name] for name in row.keys()}) for row in rows]


def add_media(tx: Tx, task_id: str, media: Collection[task.Media]) -> None:
    """Note the vendor's result URLs, once."""
    for position, each in enumerate(media):
        tx.run(
            "INSERT INTO task_media (task_id, position, upstream_url, expires_at) "
            "VALUES (:id, :position, :url, :expires_at)",
            id=task_id,
            position=position,
            url=each.url,
            expires_at=each.expires_at,
        )


def renew_media(tx: Tx, row: Task, media: Collection[task.Media], document: bytes) -> None:
    """The vendor names its results anew: each file gets its new URL, by position."""
    for position, each in enumerate(media):
        tx.run(
            "UPDATE task_media SET upstream_url = :url, expires_at = :expires_at "
            "WHERE task_id = :id AND position = :position",
            id=row.id,
            position=position,
            url=each.url,
            expires_at=each.expires_at,
        )
    note(tx, row, document=document)


def _task(row: Row | None) -> Task | None:
    if row is None:
        return None
    values = {name: row[name] for name in COLUMNS}
    return Task(**values | {"state": task.State(values["state"])})
