-- Where the upstream was told to call when a task has ended. Kept, not made anew: each repeat of a submit sends the same
-- bytes, whatever the settings say by then. Null: the upstream was given no address, and never will be for this task.

ALTER TABLE tasks ADD COLUMN callback_token TEXT; -- unguessable; the end of that URL
ALTER TABLE tasks ADD COLUMN callback_public_url TEXT -- its beginning: --public-url at the time of the submit
    CHECK ((callback_public_url IS NULL) = (callback_token IS NULL));
CREATE UNIQUE INDEX tasks_of_callback ON tasks (callback_token) WHERE callback_token IS NOT NULL;
