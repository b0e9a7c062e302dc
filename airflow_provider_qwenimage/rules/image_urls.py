"""Decides which image URLs are followed, and how they are sent. No I/O."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import quote, unquote, urljoin, urlsplit

from airflow_provider_qwenimage.rules.http_answers import AnswerHead
from airflow_provider_qwenimage.rules.origins import displayed_url, host_in_ascii
from airflow_provider_qwenimage.text.urls import is_http_url

MAX_REDIRECTS = 10

_REDIRECTS = (
    HTTPStatus.MOVED_PERMANENTLY,
    HTTPStatus.FOUND,
    HTTPStatus.SEE_OTHER,
    HTTPStatus.TEMPORARY_REDIRECT,
    HTTPStatus.PERMANENT_REDIRECT,
)
# The characters that the path and the query of a URL may have. Only others are encoded, as requests does and servers
# expect; what is encoded already stays unchanged.
_AS_IT_IS = "!$%&'()*+,-./:;=?@_~"
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_UNREADABLE = "\N{REPLACEMENT CHARACTER}"


def is_allowed_image_url(url: object, *, plain_http: bool) -> bool:
    """Whether a URL may be shown or followed as an image's.

    Args:
        url: A URL, or anything instead of one.
        plain_http: Whether http is allowed besides https, since the answer with the URL came over http itself.
    """
    if not isinstance(url, str) or not is_http_url(url):
        return False
    return plain_http or urlsplit(url).scheme.lower() == "https"


@dataclass(frozen=True)
class ImageRequest:
    """The request for an image.

    Attributes:
        url: In ASCII, without user, password and fragment. What was encoded stays unchanged: a signature may cover it.
        headers: The URL's own user and password, for its own host only.
    """

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, url: str) -> ImageRequest:
        """Return the request for a URL.

        Raises:
            ValueError: If it is not an http(s) URL with a possible host.
        """
        if not is_http_url(url):
            raise ValueError("it is not an http(s) URL")
        parts = urlsplit(url)
        host = host_in_ascii(parts.hostname or "")
        host = f"[{host}]" if ":" in host else host
        port = f":{parts.port}" if parts.port else ""
        path, query = _encoded(parts.path or "/"), _encoded(parts.query)
        sent = f"{parts.scheme.lower()}://{host}{port}{path}" + (f"?{query}" if query else "")
        if parts.username is None:
            return cls(sent, {})
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        return cls(sent, {"Authorization": f"Basic {base64.b64encode(user).decode()}"})


def _encoded(text: str) -> str:
    return quote(_LONE_PERCENT.sub("%25", text), safe=_AS_IT_IS)


def redirect_of(head: AnswerHead, url: str) -> str | None:
    """Return the URL that an answer redirects to, or None if it is not a redirect.

    Args:
        head: Status and headers of the answer.
        url: The requested URL.

    Raises:
        ValueError: If the redirect is not followed. The message has neither user nor query of any URL.
    """
    if head.status not in _REDIRECTS:
        return None
    location = head.headers.get("location", "")
    if not location or _UNREADABLE in location:
        raise ValueError(f"its redirect (HTTP {head.status}) has no readable URL")
    try:
        # A file's name often has spaces, and some servers do not encode them.
        target = urljoin(url, location.replace(" ", "%20"))
    except ValueError:
        target = ""
    if not is_allowed_image_url(target, plain_http=urlsplit(url).scheme.lower() == "http"):
        raise ValueError(
            f"its redirect (HTTP {head.status}) to {displayed_url(target or location)} is not followed: images are "
            "read over https, or over http if the image URL itself is http"
        )
    return target
