"""Decide who may use the sandbox's control path: programs on this machine or network, but no web page. No I/O."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

CONTROL_HEADER = "X-Qwenimage-Sandbox"
CONTROL_VALUE = "control"
CONTROL_HEADERS = {CONTROL_HEADER: CONTROL_VALUE, "Content-Type": "application/json"}
"""The headers that every request that changes something must have."""

_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[\w.-]+))(?::[0-9]*)?", re.ASCII)
_READING = ("GET", "HEAD")
_HEADERS_NEEDED = f"Send Content-Type: {CONTROL_HEADERS['Content-Type']} and {CONTROL_HEADER}: {CONTROL_VALUE}."


@dataclass(frozen=True)
class Refusal:
    """Why a request to the control path is refused: the HTTP status, and what happened and what to do about it."""

    status: int
    reason: str


@dataclass(frozen=True)
class Caller:
    """The parts of a request that identify its sender: every value of each header, in the order sent.

    Args:
        hosts: ``Host``.
        origins: ``Origin``, which browsers send and other clients do not.
        sites: ``Sec-Fetch-Site``, which only browsers send.
        content_types: ``Content-Type``.
        control_headers: `CONTROL_HEADER`.
    """

    method: str
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    sites: Sequence[str] = ()
    content_types: Sequence[str] = ()
    control_headers: Sequence[str] = ()


def refusal(caller: Caller, own_names: Collection[str] = ()) -> Refusal | None:
    """Return why a request to the control path is refused, or None if it is allowed.

    A page of another origin cannot send the header or the content type without a CORS preflight, which the sandbox
    always refuses. A page whose domain was pointed at this machine (DNS rebinding) could send them, but its ``Host``
    is a domain name that the sandbox does not know.

    Args:
        own_names: Host names of the sandbox, in addition to IP addresses and names without a dot.
    """
    if not all(is_own_host(host, own_names) for host in caller.hosts):
        return Refusal(
            403,
            "The Host of this request is a domain name that the sandbox does not know. Use an IP address or "
            "localhost, or start the sandbox with --control-host NAME.",
        )
    if caller.method in _READING:
        return None
    if is_from_page(caller):
        return Refusal(403, "A web page sent this request, and web pages may not control the sandbox. Use curl.")
    if [_media_type(text) for text in caller.content_types] != [CONTROL_HEADERS["Content-Type"]]:
        return Refusal(415, f"The Content-Type is missing or wrong. {_HEADERS_NEEDED}")
    if list(caller.control_headers) != [CONTROL_VALUE]:
        return Refusal(403, f"The header {CONTROL_HEADER} is missing or wrong. {_HEADERS_NEEDED}")
    return None


def is_from_page(caller: Caller) -> bool:
    """Whether a web page sent the request. A web page must not hold an API key, so it is never a legitimate client."""
    return bool(caller.origins) or any(site != "none" for site in caller.sites)


def is_own_host(header: str, own_names: Collection[str]) -> bool:
    """Whether a Host header, such as ``localhost:8512``, is a name that nobody else's domain can have.

    Args:
        own_names: Domain names that are allowed as well.
    """
    match = _HOST.fullmatch(header.strip().lower())
    if match is None:
        return False
    name = (match["address"] or match["name"]).rstrip(".")
    if name in {own.lower().rstrip(".") for own in own_names}:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        # A name without a dot belongs to this machine or to a container network.
        return bool(name) and not match["address"] and ("." not in name or name.endswith(".localhost"))
    return True


def _media_type(text: str) -> str:
    return text.partition(";")[0].strip().lower()
