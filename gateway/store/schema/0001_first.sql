-- The first schema: tasks, the ledger and the mirror. Times are unix seconds, amounts are nano-USD.

CREATE TABLE tasks (
    id                       TEXT PRIMARY KEY,
    team                     TEXT NOT NULL,
    key_name                 TEXT NOT NULL,
    request_id               TEXT NOT NULL,
    idempotency_key          TEXT,
    body_digest              BLOB NOT NULL,
    fingerprint              TEXT,          -- null: not cacheable
    inflight                 TEXT,          -- the fingerprint while others may follow this task
    leader_id                TEXT,          -- of a follower and of a hit: the task that was paid for
    x_cache                  TEXT NOT NULL,
    changes                  TEXT NOT NULL, -- what a policy changed, as shown in X-Wave-Policy
    model                    TEXT NOT NULL,
    action                   TEXT NOT NULL,
    n                        INTEGER NOT NULL CHECK (n >= 1),
    request                  BLOB NOT NULL, -- the body as sent upstream
    tags                     TEXT NOT NULL, -- X-Wave-Tags as a JSON object, for reports
    callback_url             TEXT,
    callback_events          TEXT NOT NULL,
    state                    TEXT NOT NULL,
    upstream_key_ref         TEXT NOT NULL,
    upstream_key_digest      BLOB,          -- of the key that the last attempt used
    upstream_idempotency_key TEXT NOT NULL,
    upstream_task_id         TEXT,
    document                 BLOB,          -- the vendor's last JSON
    failure                  BLOB,          -- an error object where the vendor's JSON has none
    refusal_status           INTEGER,       -- HTTP status of a refused submit; its body is `document`
    price_version            TEXT NOT NULL,
    tier                     TEXT NOT NULL,
    standard_unit_nanos      INTEGER NOT NULL,
    official_unit_nanos      INTEGER,
    official                 TEXT,
    quote_nanos              INTEGER NOT NULL CHECK (quote_nanos >= 0),
    cost_nanos               INTEGER CHECK (cost_nanos >= 0),
    attempts                 INTEGER NOT NULL,
    troubles                 INTEGER NOT NULL,  -- polls or downloads in a row that brought nothing
    created_at               REAL NOT NULL,
    first_attempt_at         REAL,
    deadline_at              REAL NOT NULL,
    submitted_at             REAL,
    settled_at               REAL,
    ended_at                 REAL,
    next_at                  REAL,          -- when a background step looks at it again
    UNIQUE (team, idempotency_key),
    UNIQUE (inflight),
    UNIQUE (upstream_task_id)
);
CREATE INDEX tasks_due ON tasks (state, next_at) WHERE next_at IS NOT NULL;
CREATE INDEX tasks_open ON tasks (team, state)
    WHERE state IN ('reserved', 'waiting', 'in_doubt', 'submitted', 'delivered', 'following');
CREATE INDEX tasks_of_team ON tasks (team, id);
CREATE INDEX tasks_followers ON tasks (leader_id) WHERE state = 'following';
CREATE INDEX tasks_results ON tasks (fingerprint, ended_at) WHERE state = 'completed' AND leader_id IS NULL;

-- Append-only. `reserve` and `settle`/`release` open and close a hold; `overage` notes a bill above the quote.
CREATE TABLE entries (
    id          INTEGER PRIMARY KEY,
    task_id     TEXT NOT NULL,
    kind        TEXT NOT NULL CHECK (kind IN ('reserve', 'settle', 'release', 'overage')),
    nanos       INTEGER NOT NULL CHECK (nanos >= 0),
    at          REAL NOT NULL,
    reserved_at REAL NOT NULL,   -- decides the windows that the entry counts in
    team        TEXT NOT NULL,
    key_name    TEXT NOT NULL,
    model       TEXT NOT NULL,   -- of a settle: the billed model
    official    TEXT,            -- of a reserve: the model that fallback may bill
    tier        TEXT NOT NULL,
    images      INTEGER NOT NULL,
    why         TEXT NOT NULL
);
CREATE UNIQUE INDEX entries_one_reserve ON entries (task_id) WHERE kind = 'reserve';
CREATE UNIQUE INDEX entries_one_end ON entries (task_id) WHERE kind IN ('settle', 'release');
CREATE INDEX entries_by_window ON entries (reserved_at);
CREATE TRIGGER entries_no_update BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END;
CREATE TRIGGER entries_no_delete BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END;

CREATE TABLE balances (
    scope          TEXT NOT NULL,
    name           TEXT NOT NULL,
    model_filter   TEXT NOT NULL,
    period         TEXT NOT NULL,
    starts_at      INTEGER NOT NULL,
    ends_at        INTEGER,
    reserved_nanos INTEGER NOT NULL CHECK (reserved_nanos >= 0),
    settled_nanos  INTEGER NOT NULL CHECK (settled_nanos >= 0),
    PRIMARY KEY (scope, name, model_filter, period, starts_at)
);

-- Which balances an open reservation touched, so that it settles there.
CREATE TABLE holds (
    task_id      TEXT NOT NULL,
    scope        TEXT NOT NULL,
    name         TEXT NOT NULL,
    model_filter TEXT NOT NULL,
    period       TEXT NOT NULL,
    starts_at    INTEGER NOT NULL,
    nanos        INTEGER NOT NULL CHECK (nanos >= 0),
    PRIMARY KEY (task_id, scope, name, model_filter, period, starts_at)
);

-- Sums for reports and metrics, kept in the same transactions as the entries.
CREATE TABLE totals (
    team                    TEXT NOT NULL,
    model                   TEXT NOT NULL,
    tier                    TEXT NOT NULL,
    cost_nanos              INTEGER NOT NULL,
    images                  INTEGER NOT NULL,
    avoided_cache_nanos     INTEGER NOT NULL,
    avoided_coalesced_nanos INTEGER NOT NULL,
    premium_nanos           INTEGER NOT NULL,
    drift_nanos             INTEGER NOT NULL,
    PRIMARY KEY (team, model, tier)
);

CREATE TABLE blobs (
    digest     TEXT PRIMARY KEY,
    size_bytes INTEGER NOT NULL,
    mime       TEXT NOT NULL,
    extension  TEXT NOT NULL,
    kept_at    REAL NOT NULL,
    first_read_at REAL           -- when a client first fetched it
);

CREATE TABLE task_media (
    task_id      TEXT NOT NULL,
    position     INTEGER NOT NULL,
    upstream_url TEXT NOT NULL,
    expires_at   INTEGER,
    digest       TEXT,           -- null: not mirrored yet
    PRIMARY KEY (task_id, position)
);
CREATE INDEX task_media_by_digest ON task_media (digest);
