-- A task goes on long after its submit: each later call about it belongs to the same trace.

ALTER TABLE tasks ADD COLUMN traceparent TEXT; -- W3C Trace Context; null: the client sent none and nothing was traced
