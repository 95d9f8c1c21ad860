-- A retry without an idempotency key is found by the body that it repeats. The periods of ten minutes come first: what
-- is written at a time lies close together. By digest alone each insert would read and write a page somewhere else.

CREATE INDEX tasks_of_body ON tasks (CAST(created_at / 600 AS INTEGER), team, key_name, body_digest, created_at)
    WHERE idempotency_key IS NULL;
