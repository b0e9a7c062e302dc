"""The callback URLs by which the API wakes a deferred task, and what the task records about them. No I/O.

The secret is in the URL only. What is recorded, and what the API server compares, is its digest.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from urllib.parse import urlsplit

from airflow_provider_qwenimage.contract import MAX_URL_CHARACTERS
from airflow_provider_qwenimage.rules.gallery_urls import CALLBACK_PATH, PREFIX, quoted
from airflow_provider_qwenimage.text.urls import is_http_url

# While a callback is expected, the triggerer polls so slowly: only for the callback that does not come.
POLL_INTERVAL_SECONDS = 30.0
_SECRET_BYTES = 32
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
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


def is_digest(value: object) -> bool:
    """Whether a value has the form of a digest."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def matches(secret: str, digest: object) -> bool:
    """Whether a secret is the one of a digest; the time that it takes tells nothing about either."""
    return isinstance(digest, str) and hmac.compare_digest(digest_of(secret), digest)


def is_base_url(text: str) -> bool:
    """Whether a text can be the base of callback URLs: an http(s) URL without a user, query or fragment."""
    if not is_http_url(text) or len(text) > _MOST_BASE_CHARACTERS:
        return False
    parts = urlsplit(text)
    return not (parts.query or parts.fragment or "@" in parts.netloc)


def callback_url(base_url: str, task_instance_id: object, secret: str) -> str:
    """Return the URL that wakes a task instance.

    Args:
        base_url: Airflow's address for the API; see `is_base_url`.
        task_instance_id: Airflow's UUID of the task instance.
        secret: See `new_secret`.
    """
    return f"{base_url.rstrip('/')}{PREFIX}{CALLBACK_PATH}/{quoted(str(task_instance_id))}/{secret}"
