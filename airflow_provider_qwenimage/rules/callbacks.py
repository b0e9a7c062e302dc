"""The callback URLs by which the API wakes a deferred task, and what the task records about them. No I/O.

The secret is in the URL only. What is recorded, and what the API server compares, is its digest.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard
from urllib.parse import quote, urlsplit

from airflow_provider_qwenimage.contract import MAX_URL_CHARACTERS
from airflow_provider_qwenimage.rules.gallery_urls import CALLBACK_PATH, PREFIX, quoted
from airflow_provider_qwenimage.text.urls import is_http_url

if TYPE_CHECKING:
    from collections.abc import MutableMapping

# The class path of the trigger of a task that can be woken.
TRIGGER = "airflow_provider_qwenimage.triggers.QwenImageStatusTrigger"
# While a callback is expected, the triggerer polls so slowly: only for the callback that does not come.
POLL_INTERVAL_SECONDS = 30.0
_SECRET_BYTES = 32
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_TASK_INSTANCE_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
# No character that the access log of a server would quote.
_MASKED = "masked"
# The answer to a callback that resumes nothing. Other servers, and other routes of Airflow, do not give it.
NO_TASK = "No task is waiting for this callback."
# The path of a callback, and room for a base URL with a path of its own.
_MOST_BASE_CHARACTERS = MAX_URL_CHARACTERS // 2


def new_secret() -> str:
    """Return the secret of a submission: 32 random bytes, as 43 characters of a URL."""
    return secrets.token_urlsafe(_SECRET_BYTES)


def is_secret(text: str) -> bool:
    """Whether a text has the form of a secret."""
    return _SECRET.fullmatch(text) is not None


def digest_of(secret: str) -> str:
    """Return what is recorded of a secret: the 64 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_digest(value: object) -> TypeGuard[str]:
    """Whether a value has the form of a digest."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def matches(secret: str, digest: object) -> bool:
    """Whether a secret is the one of a digest; the time that it takes tells nothing about either."""
    return is_digest(digest) and hmac.compare_digest(digest_of(secret), digest)


def is_base_url(text: str) -> bool:
    """Whether a text can be the base of callback URLs: an http(s) URL without a user, query or fragment."""
    if not is_http_url(text) or len(text) > _MOST_BASE_CHARACTERS:
        return False
    # An empty query or fragment as well: the path would become a part of it.
    return not ("?" in text or "#" in text or "@" in urlsplit(text).netloc)


def callback_url(base_url: str, task_instance_id: object, secret: str) -> str:
    """Return the URL that wakes a task instance.

    Args:
        base_url: Airflow's address for the API; see `is_base_url`. It may already end with the path of callbacks, with
            which they would reach the route and be answered there as unknown.
        task_instance_id: Airflow's UUID of the task instance.
        secret: See `new_secret`.
    """
    route = f"{PREFIX}{CALLBACK_PATH}"
    return f"{base_url.rstrip('/').removesuffix(route)}{route}/{quoted(str(task_instance_id))}/{secret}"


@dataclass(frozen=True)
class Callback:
    """A callback as its URL describes it.

    Attributes:
        task_instance_id: Airflow's UUID of the task instance that submitted: of its present try, or of an earlier one.
        secret: See `new_secret`.
    """

    task_instance_id: str
    secret: str = field(repr=False)


def read_path(path: str) -> Callback | None:
    """Return what the path of a request asks for; None if it is not the path of a callback.

    Args:
        path: The decoded path, with or without what Airflow's base URL has in front.
    """
    _, _, rest = path.partition(f"{PREFIX}{CALLBACK_PATH}/")
    task_instance_id, _, secret = rest.partition("/")
    if _TASK_INSTANCE_ID.fullmatch(task_instance_id) and is_secret(secret):
        return Callback(task_instance_id, secret)
    return None


def hide_secret(scope: MutableMapping[str, Any]) -> str:
    """Mask what may be a secret in the ASGI scope of a request to the route of callbacks, and return its path.

    In place: Airflow's access log, and that of the server, read the same dictionary afterwards.
    """
    path: str = scope["path"]
    scope["path"] = without_secret(path)
    scope["raw_path"] = quote(scope["path"]).encode()
    return path


def without_secret(path: str) -> str:
    """Return the path of a request to the route of callbacks for a log: without what may be a secret."""
    before, found, rest = path.partition(f"{PREFIX}{CALLBACK_PATH}/")
    first, _, _ = rest.partition("/")
    shown = first if _TASK_INSTANCE_ID.fullmatch(first) else _MASKED
    return f"{before}{found}{shown}/{_MASKED}"
