"""Decides who may use the sandbox's control path: programs of this machine or network, and no web page. No I/O."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

CONTROL_HEADER = "X-Qwenimage-Sandbox"
CONTROL_VALUE = "control"
CONTROL_HEADERS = {CONTROL_HEADER: CONTROL_VALUE, "Content-Type": "application/json"}
"""The headers of every request that changes something."""

_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[\w.-]+))(?::[0-9]*)?", re.ASCII)
_READING = ("GET", "HEAD")
_HEADERS_NEEDED = f"Send Content-Type: {CONTROL_HEADERS['Content-Type']} and {CONTROL_HEADER}: {CONTROL_VALUE}."


@dataclass(frozen=True)
class Refusal:
    """Why a request to the control path is refused.

    Args:
        status: The HTTP status of the answer.
        reason: What happened, and what to do.
    """

    status: int
    reason: str


@dataclass(frozen=True)
class Caller:
    """What a request says about who sent it: every value of each header, in the order sent.

    Args:
        method: The HTTP method.
        hosts: ``Host``.
        origins: ``Origin``, which browsers send and other clients do not.
        sites: ``Sec-Fetch-Site``, which only browsers send.
        content_types: ``Content-Type``.
        marks: The control path's own header.
    """

    method: str
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    sites: Sequence[str] = ()
    content_types: Sequence[str] = ()
    marks: Sequence[str] = ()


def refusal(caller: Caller, own_names: Collection[str] = ()) -> Refusal | None:
    """Return why a request to the control path is refused, or None if it is allowed.

    A page of another origin cannot send the header or the content type without asking the sandbox first, which never
    agrees. A page whose own name was made to lead to this machine (DNS rebinding) could, but its name gives it away.

    Args:
        caller: What the request says about its sender.
        own_names: Host names under which the sandbox may be reached, besides IP addresses and names without a dot.
    """
    if not all(is_own_host(host, own_names) for host in caller.hosts):
        return Refusal(
            403,
            "The Host of this request is a domain name that the sandbox does not know as its own. Use an IP address "
            "or localhost, or start the sandbox with --control-host NAME.",
        )
    if caller.method in _READING:
        return None
    if is_from_page(caller):
        return Refusal(403, "This request was sent by a web page, and no page may control the sandbox. Use curl.")
    if [_media_type(text) for text in caller.content_types] != [CONTROL_HEADERS["Content-Type"]]:
        return Refusal(415, f"The Content-Type is missing or another one. {_HEADERS_NEEDED}")
    if list(caller.marks) != [CONTROL_VALUE]:
        return Refusal(403, f"The header {CONTROL_HEADER} is missing or has another value. {_HEADERS_NEEDED}")
    return None


def is_from_page(caller: Caller) -> bool:
    """Whether a web page sends a request; no page may hold the key of the API, so none is a client of it."""
    return bool(caller.origins) or any(site != "none" for site in caller.sites)


def is_own_host(header: str, own_names: Collection[str]) -> bool:
    """Whether a Host header names the sandbox in a way that no stranger's domain can.

    Args:
        header: The header's value, such as ``localhost:8512``.
        own_names: Further names that are allowed.
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
        # A name without a dot is one of this machine, or of a container network.
        return bool(name) and not match["address"] and ("." not in name or name.endswith(".localhost"))
    return True


def _media_type(text: str) -> str:
    return text.partition(";")[0].strip().lower()
