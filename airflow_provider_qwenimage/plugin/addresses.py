"""Decides which address of an image a page may link: never one of Airflow's own host. No I/O.

A page never loads an image from elsewhere. The address may have been written by anybody who can write an XCom; with the
viewer's cookies, one of Airflow's own (or one that redirects there) would act in the viewer's name.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

from airflow_provider_qwenimage.plugin.bounds import MOST_PATH

# Only what every browser and every library reads alike: no percent signs, backslashes or other alphabets.
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.ASCII)
_ODD = re.compile(r"[\s\\\x00-\x1f\x7f]")
_LOOPBACK = "loopback"


def shown_address(url: str, own_hosts: Iterable[str], *, is_page_secure: bool) -> str | None:
    """Return the address of an image as a page may link it: without user and password.

    Args:
        url: What the API, or whoever wrote the XCom, gave as the address.
        own_hosts: The hosts that Airflow itself is reached at; see `hosts_in`.
        is_page_secure: Whether the page came through TLS; http is linked from pages that came without it.

    Returns:
        The address, or None if the page may not link it.
    """
    parts = _split(url)
    if parts is None or parts.scheme not in (("https",) if is_page_secure else ("https", "http")):
        return None
    host = host_of(parts.hostname or "")
    if host is None or host in set(own_hosts):
        return None
    # Rebuilt from what was read, so that the browser reads the same.
    name = (parts.hostname or "").rstrip(".")
    port = "" if parts.port is None else f":{parts.port}"
    return parts._replace(netloc=f"{f'[{name}]' if ':' in name else name}{port}").geturl()


def hosts_in(*places: str | None) -> set[str]:
    """Return the hosts that are named in header values and URLs, each in one spelling.

    Args:
        *places: URLs, or values such as ``airflow.example:8080`` or ``a.example, b.example``.
    """
    found = set()
    for place in places:
        for part in (place or "").split(","):
            parts = _split(part.strip() if "//" in part else f"//{part.strip()}")
            host = None if parts is None else host_of(parts.hostname or "")
            if host is not None:
                found.add(host)
    return found


def host_of(name: str) -> str | None:
    """Return a host in one spelling, whatever its case, dots at the end, or spelling of an IP address.

    Args:
        name: As in a URL, without a port or brackets.

    Returns:
        The host; one word for all names of this machine; None for what browsers may read in another way.
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
        # Browsers take 2130706433, 0x7f.1 and 127.1 for addresses, as this function does.
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
