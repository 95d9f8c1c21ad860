-- What the database itself holds to, whatever the program does: a hold ends by its own reserve (M2), an end is an end
-- (M10), and the file says whose it is: 'WAVE' in ASCII, as `file` and every program that reads SQLite can see.

PRAGMA application_id = 1463899717;

CREATE TRIGGER entries_end_of_a_reserve BEFORE INSERT ON entries WHEN NEW.kind <> 'reserve'
    AND NOT EXISTS (SELECT 1 FROM entries WHERE task_id = NEW.task_id AND kind = 'reserve')
    BEGIN SELECT RAISE(ABORT, 'no reserve of this task'); END;
CREATE TRIGGER entries_release_whole BEFORE INSERT ON entries WHEN NEW.kind = 'release'
    AND NEW.nanos <> (SELECT nanos FROM entries WHERE task_id = NEW.task_id AND kind = 'reserve')
    BEGIN SELECT RAISE(ABORT, 'a release is the whole reserve'); END;
CREATE TRIGGER tasks_end_once BEFORE UPDATE OF state ON tasks
    WHEN OLD.state IN ('completed', 'failed', 'cancelled', 'refused') AND NEW.state <> OLD.state
    BEGIN SELECT RAISE(ABORT, 'an ended task stays as it ended'); END;
CREATE TRIGGER holds_of_an_open_reserve BEFORE INSERT ON holds
    WHEN EXISTS (SELECT 1 FROM entries WHERE task_id = NEW.task_id AND kind IN ('settle', 'release'))
    BEGIN SELECT RAISE(ABORT, 'the reserve of this task has ended'); END;
