-- Webhooks to be sent: a row is written in the transaction in which its task ends, so none is lost and none is early.

CREATE TABLE outbox (
    task_id    TEXT PRIMARY KEY,  -- a task has one end, and so one webhook
    team       TEXT NOT NULL,
    receiver   TEXT NOT NULL,     -- host:port of the callback_url; attempts at one are limited together
    event      TEXT NOT NULL CHECK (event IN ('completed', 'failed', 'cancelled')),
    state      TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'given_up')),
    attempts   INTEGER NOT NULL CHECK (attempts >= 0),
    created_at REAL NOT NULL,
    due_at     REAL,              -- of the next attempt
    ended_at   REAL,              -- delivered or given up
    problem    TEXT,              -- why the last attempt failed; never the path of a URL
    CHECK ((state = 'pending') = (due_at IS NOT NULL)),
    CHECK ((state = 'pending') = (ended_at IS NULL))
);
CREATE INDEX outbox_due ON outbox (receiver, due_at) WHERE state = 'pending';
CREATE INDEX outbox_given_up ON outbox (ended_at) WHERE state = 'given_up';
