"""Decides which address of an image a page may link: never one on Airflow's own host. No I/O.

A page never loads an image from another host. Anybody who can write an XCom may have forged the address: loaded with
the user's cookies, an address on Airflow's host (or one that redirects there) would act in the user's name.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

from airflow_provider_qwenimage.plugin.bounds import MOST_PATH

# Only what all browsers and libraries parse alike: no percent signs, backslashes or non-ASCII letters.
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.ASCII)
_ODD = re.compile(r"[\s\\\x00-\x1f\x7f]")
_LOOPBACK = "loopback"


def linkable_address(url: str, own_hosts: Iterable[str], *, is_page_secure: bool) -> str | None:
    """Return the address of an image without user and password, or None if a page may not link it.

    Args:
        own_hosts: The hosts of Airflow itself; see `hosts_in`.
        is_page_secure: Whether the page was loaded through TLS. Only a page without TLS links http.
    """
    parts = _split(url)
    if parts is None or parts.scheme not in (("https",) if is_page_secure else ("https", "http")):
        return None
    host = host_of(parts.hostname or "")
    if host is None or host in set(own_hosts):
        return None
    # Rebuilt from the parsed parts, so that the browser parses the same.
    name = (parts.hostname or "").rstrip(".")
    port = "" if parts.port is None else f":{parts.port}"
    return parts._replace(netloc=f"{f'[{name}]' if ':' in name else name}{port}").geturl()


def hosts_in(*texts: str | None) -> set[str]:
    """Return the hosts in header values and URLs, normalized.

    Args:
        *texts: URLs, or values such as ``airflow.example:8080`` or ``a.example, b.example``.
    """
    found = set()
    for text in texts:
        for part in (text or "").split(","):
            parts = _split(part.strip() if "//" in part else f"//{part.strip()}")
            host = None if parts is None else host_of(parts.hostname or "")
            if host is not None:
                found.add(host)
    return found


def host_of(name: str) -> str | None:
    """Return a normalized host: case, trailing dots and the notations of IP addresses make no difference.

    Args:
        name: As in a URL, without a port or brackets.

    Returns:
        The host; "loopback" for all names of this machine; None if browsers may parse the name differently.
    """
    name = name.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return _LOOPBACK
    if ":" in name:
        try:
            address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.IPv6Address(name)
        except ValueError:
            return None
        address = address.ipv4_mapped or address if isinstance(address, ipaddress.IPv6Address) else address
    elif not _HOST.fullmatch(name):
        return None
    elif name.rpartition(".")[2][:1].isdigit():
        # Browsers accept 2130706433, 0x7f.1 and 127.1 as IP addresses, and so does this function.
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(name))
        except (OSError, ValueError):
            return None
    else:
        return name
    return _LOOPBACK if address.is_loopback or address.is_unspecified else str(address)


def _split(url: str) -> SplitResult | None:
    if len(url) > MOST_PATH or _ODD.search(url) or not url.isascii():
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts if parts.hostname else None
