"""Names a folder or file of a storage as Airflow's assets and OpenLineage name it. No I/O.

Neither name contains the id of the Airflow connection that may precede a bucket, since it is the same data by whatever
connection.
"""

from __future__ import annotations

import posixpath
import re
from urllib.parse import quote

from airflow_provider_qwenimage.text.urls import public_url

_URL = re.compile(r"([a-z][a-z0-9+.-]+):(?://|(?=/))", re.IGNORECASE)
# A password with a slash in it looks like a host with a port that is no number.
_WITH_PASSWORD = re.compile(r"[^\[\]]*:(?!\d*$).*", re.DOTALL)
_LOCAL = frozenset({"file", "local"})
# Airflow would sort a query and drop a fragment, but ? and # are parts of names here.
_IN_PATHS = "/-._~!$&'()*+,;=:@"
_IN_AUTHORITIES = "-._~:"
# Schemes of one storage, as OpenLineage names it.
_SCHEMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}


def asset_uri(location: str) -> str:
    """Return the URI of a folder for an Airflow asset, as a user writes it there: ``s3://bucket/images``.

    Args:
        location: A URL, or an absolute local path.

    Returns:
        It in ASCII, without the connection and without a slash at the end.

    Raises:
        ValueError: If it seems to contain a password.
    """
    scheme, authority, path = _parts(location)
    return f"{scheme}://{quote(authority, safe=_IN_AUTHORITIES)}{quote(path, safe=_IN_PATHS)}"


def openlineage_name(location: str) -> tuple[str, str]:
    """Return the namespace and the name of a folder or file by OpenLineage's rules for datasets.

    Args:
        location: A URL, or an absolute local path.

    Returns:
        For example ``("s3://bucket", "images/2026")`` or ``("file", "/data/images")``.

    Raises:
        ValueError: If it seems to contain a password.
    """
    scheme, authority, path = _parts(location)
    if scheme == "file" and not authority:
        return "file", path
    return f"{_SCHEMES.get(scheme, scheme)}://{authority}", path.lstrip("/") or "/"


def _parts(location: str) -> tuple[str, str, str]:
    """Return scheme, authority without user, and path, which begins with a slash and ends with none."""
    location = location.strip()
    url = _URL.match(location)
    scheme = url[1].lower() if url else "file"
    if scheme in ("http", "https"):
        # A query may be a signature.
        location = public_url(location)
    authority, _, path = location[url.end() if url else 0 :].partition("/")
    host = authority.rpartition("@")[2]
    if scheme in _LOCAL:
        return "file", host, posixpath.normpath(f"/{path.lstrip('/')}")
    if _WITH_PASSWORD.fullmatch(host):
        raise ValueError("The location has a colon before its first slash, as if a password began there.")
    return scheme, host, f"/{path.rstrip('/')}"
