-- How many blobs are kept and how large they are, kept in the same transactions: a scrape counts no rows.

CREATE TABLE usage (
    only  INTEGER PRIMARY KEY CHECK (only = 1),
    blobs INTEGER NOT NULL CHECK (blobs >= 0),
    bytes INTEGER NOT NULL CHECK (bytes >= 0)
);
INSERT INTO usage (only, blobs, bytes) SELECT 1, COUNT(*), COALESCE(SUM(size_bytes), 0) FROM blobs;
CREATE TRIGGER usage_of_a_new_blob AFTER INSERT ON blobs
    BEGIN UPDATE usage SET blobs = blobs + 1, bytes = bytes + NEW.size_bytes; END;
CREATE TRIGGER usage_of_a_changed_blob AFTER UPDATE OF size_bytes ON blobs
    BEGIN UPDATE usage SET bytes = bytes - OLD.size_bytes + NEW.size_bytes; END;
CREATE TRIGGER usage_of_a_dropped_blob AFTER DELETE ON blobs
    BEGIN UPDATE usage SET blobs = blobs - 1, bytes = bytes - OLD.size_bytes; END;
