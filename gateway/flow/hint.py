"""The upstream's callback about a task: a hint to poll it, nothing else.

Its body is never read. It writes nothing, remembers nothing that grows, and wants at most one upstream poll per task
and second. One that comes too early or too late is lost, and the schedule covers it.
"""

from __future__ import annotations

from gateway import errors
from gateway.flow import parts
from gateway.rules import callback
from gateway.store import tasks


async def hear(with_parts: parts.Parts, token: str) -> bool:
    """Have the task that a token belongs to polled soon; False for a token that is not ours.

    Raises CallerError `rate_limited` for a token that is not known to this process while too many strange ones come.
    """
    task_id = await _task_of(with_parts, token)
    if task_id is None:
        return False
    if with_parts.watch.hint(task_id, now=with_parts.clock()):
        with_parts.wake_poll()
    return True


async def _task_of(with_parts: parts.Parts, token: str) -> str | None:
    if not callback.is_token(token):
        return None
    known = with_parts.callback_tokens.get(token)
    if known is not None:
        return known
    wait_s = with_parts.callback_tokens.take_look_up(now=with_parts.clock())
    if wait_s is not None:
        raise errors.CallerError(
            "rate_limited",
            f"Too many callbacks with unknown tokens; wait {wait_s} s. Every task is polled all the same.",
            headers={"Retry-After": str(wait_s)},
        )
    found = await with_parts.database.read(lambda tx: tasks.id_by_callback_token(tx, token))
    if found is not None:
        with_parts.callback_tokens.give_back()
        with_parts.callback_tokens.add(token, found)
    return found
