"""Recognizes URLs, and removes the parts that may grant access: user, password, query and fragment. No I/O."""

from __future__ import annotations

import re
from typing import TypeGuard
from urllib.parse import urlsplit

# A slash, plain or escaped for JSON, for a URL or for HTML.
_SLASH = r"(?:\\{0,16}/|\\{1,16}u002[Ff]|%(?:25){0,8}2[Ff]|&(?:amp;){0,8}(?:#0{0,8}47|#[xX]0{0,8}2[Ff]|sol);?)"
# The scheme's slashes, and the rest of the URL.
_URL_IN_TEXT = re.compile(rf"({_SLASH}{_SLASH})([^\s\"'<>]*)")
# Where the query or fragment of a URL in a text begins. Its slashes may have a number sign.
_QUERY_IN_TEXT = re.compile(
    r"\?|\\u003[Ff]|%(?:25){0,8}(?:3[Ff]|23)|&(?:amp;){0,8}(?:#0{0,8}63|#[xX]0{0,8}3[Ff]|quest)"
    r"|#(?!0{0,8}47|[xX]0{0,8}2[Ff])"
)
# The end of a callback URL of this package is a secret.
_CALLBACK = re.compile(rf"({_SLASH}qwenimage{_SLASH}callback{_SLASH}[0-9A-Fa-f-]{{1,64}}{_SLASH})[\w-]+", re.ASCII)
_QUERY_OR_FRAGMENT = re.compile("[?#]")
# What follows the first colon is a port if it is a number, and otherwise a password.
_PASSWORD = re.compile(r"(://)(?:[^/:]*:[^/]*@|[^/:@]+:(?!\d*(?:/|\Z))[^@]{0,200}@)")
_USER = re.compile(r"\A([^/?#@]*/+)?[^/?#]*@")


def is_http_url(value: object) -> TypeGuard[str]:
    """Whether `value` is the text of an absolute http(s) URL with a host, printable and without white space."""
    # Of all white space, only the space counts as printable.
    if not isinstance(value, str) or not value.isprintable() or " " in value:
        return False
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def public_url(url: str) -> str:
    """Return a URL, or a text instead of one, without user, password, query and fragment."""
    return _public(url, _QUERY_OR_FRAGMENT)


def without_access(text: str) -> str:
    """Return a text with `public_url` applied to each URL in it, and without the secrets of callback URLs."""
    without_secrets = _CALLBACK.sub(r"\1***", text)
    return _URL_IN_TEXT.sub(lambda url: url[1] + _public(f"//{url[2]}", _QUERY_IN_TEXT)[2:], without_secrets)


def _public(url: str, query: re.Pattern[str]) -> str:
    return _USER.sub(r"\1", query.split(url, maxsplit=1)[0], count=1)


def without_user(url: str) -> str:
    """Return a URL without user and password; "" if the text is no URL."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def without_credentials(url: str) -> str:
    """Return a URL for a message: user and password are masked if it has a password, which may contain a slash."""
    return _PASSWORD.sub(r"\1***@", url)
