"""Compares the origins of URLs, and shows URLs in messages. No I/O."""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import NamedTuple
from urllib.parse import urlsplit

import idna

from airflow_provider_qwenimage.text.messages import printable
from airflow_provider_qwenimage.text.urls import public_url

DEFAULT_PORTS = {"http": 80, "https": 443}

_NAME = re.compile(r"[a-z0-9._-]*")


class Origin(NamedTuple):
    """Scheme, host and port of a URL, each in one spelling."""

    scheme: str
    host: str
    port: int | None

    @classmethod
    def of(cls, url: str) -> Origin:
        """Return the origin of a URL.

        Raises:
            ValueError: If the text is not a URL with a host.
        """
        parts = urlsplit(url)
        scheme = parts.scheme.lower()
        # A dot at the end only marks the name as complete.
        host = host_in_ascii(parts.hostname or "").removesuffix(".")
        return cls(scheme, host, parts.port or DEFAULT_PORTS.get(scheme))

    @classmethod
    def is_of(cls, origin: Origin, url: str) -> bool:
        """Whether a URL belongs to an origin; False if the text is not a URL."""
        try:
            return cls.of(url) == origin
        except ValueError:
            return False


# It runs for each request, and a client talks to few hosts.
@functools.lru_cache(maxsize=256)
def host_in_ascii(host: str) -> str:
    """Return a host as it is sent: in lower case, IDNA for other alphabets, IPv6 in its short form.

    Args:
        host: A name or an address, without brackets.

    Raises:
        ValueError: If the text cannot be a host.
    """
    if ":" in host:
        return ipaddress.IPv6Address(host).compressed
    if host.isascii():
        host = host.lower()
        if not _NAME.fullmatch(host):
            # Some clients decode a percent sign, others send it.
            raise ValueError("a host may only have letters, digits, dots, hyphens and underscores")
        # For ASCII, Python's codec checks only the length of each label.
        host.encode("idna")
        return host
    return idna.encode(host, uts46=True).decode("ascii").lower()


def displayed_url(url: str) -> str:
    """Return a URL for a message: without its user, password, query and fragment, which may grant access.

    A text that is not a URL is shown up to its first ``?`` or ``#``.
    """
    scheme, colon, rest = public_url(url).partition("://")
    return printable(f"{scheme.lower()}{colon}{rest}" if colon else scheme)
