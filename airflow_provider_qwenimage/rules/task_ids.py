"""Makes the API's ids of image tasks printable, for logs, databases and templates. No I/O.

The documented ids are letters and digits, and stay unchanged. An image task with another id is paid as well, so its id
is stored in a printable form, and sent as the API gave it.
"""

from __future__ import annotations

import re
from typing import TypeGuard
from urllib.parse import quote, unquote

MAX_TASK_ID_CHARACTERS = 500
_ESCAPED = "urlencoded:"
_SURROGATE = re.compile("[\ud800-\udfff]")


def is_usable(task_id: object) -> TypeGuard[str]:
    """Whether a value can be sent as a task id: a short, non-empty text with a UTF-8 form."""
    if not isinstance(task_id, str) or not 0 < len(wire_id(task_id)) <= MAX_TASK_ID_CHARACTERS:
        return False
    return _SURROGATE.search(task_id) is None


def printable_id(task_id: str) -> str:
    """Return a usable id in the form that is logged and stored: URL-encoded after a prefix, unless it is printable.

    Args:
        task_id: An id as the API gave it, or in this form already.
    """
    if task_id.isprintable() and task_id == task_id.strip():
        return task_id
    return _ESCAPED + quote(task_id, safe="", errors="replace")


def wire_id(task_id: str) -> str:
    """Return the API's form of an id that `printable_id` returned."""
    return unquote(task_id.removeprefix(_ESCAPED)) if task_id.startswith(_ESCAPED) else task_id
