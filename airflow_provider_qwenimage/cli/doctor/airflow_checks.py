"""Checks what this package needs of Airflow: versions, a running triggerer, and the gallery in the API server."""

from __future__ import annotations

import http.client
import platform
from importlib.metadata import PackageNotFoundError, version

from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import conf

from airflow_provider_qwenimage._version import __version__
from airflow_provider_qwenimage.airflow_versions import HAS_PLUGIN_PAGES
from airflow_provider_qwenimage.cli.doctor.asking import ask
from airflow_provider_qwenimage.cli.doctor.findings import FAILED, OK, SKIPPED, WARNING, Finding
from airflow_provider_qwenimage.client.diagnosis import describe
from airflow_provider_qwenimage.rules.gallery_urls import PREFIX
from airflow_provider_qwenimage.text.urls import is_http_url, public_url

_LIBRARIES = ("aiohttp", "requests")
# The gallery asks for a login, or returns a picture; for any other path, Airflow's UI returns HTML.
_GALLERY_FILE = f"{PREFIX}/static/icon.svg"
_ANSWERS_OF_THE_GALLERY = (401, 403)


def check_versions(storage_library: str = "") -> Finding:
    """Return the versions of everything that takes part.

    Args:
        storage_library: The package that accesses the output path, if one is needed.
    """
    libraries = [*_LIBRARIES, *filter(None, [storage_library])]
    found = {library: _version_of(library) for library in libraries}
    text = ", ".join(f"{library} {found[library]}" for library in libraries)
    return Finding(
        OK,
        f"airflow-provider-qwenimage {__version__}, Airflow {airflow_version}, Python {platform.python_version()}, "
        f"{text}.",
    )


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def check_triggerer() -> Finding:
    """Check that a triggerer runs, by its heartbeat in the metadata database."""
    from airflow.jobs.job import most_recent_job
    from airflow.utils.session import create_session
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with create_session() as session:
            job = most_recent_job("TriggererJob", session=session)
            if job is not None and job.is_alive():
                return Finding(OK, f"A triggerer runs on {job.hostname}.")
            last = f"the last heartbeat was {job.latest_heartbeat:%Y-%m-%d %H:%M:%S} UTC" if job else "none has run yet"
    except SQLAlchemyError as error:
        # Its own text holds the statement; the reason is that of the driver.
        reason = describe(getattr(error, "orig", None) or error)
        return Finding(
            FAILED,
            f"Airflow's metadata database cannot be read, so no triggerer can be looked for: {reason} Check [database] "
            "sql_alchemy_conn, and that `airflow db migrate` has run.",
        )
    return Finding(
        WARNING,
        f"No triggerer is running ({last}). Tasks with deferrable=True would wait for one: start `airflow triggerer`, "
        "or use deferrable=False.",
    )


def check_gallery() -> Finding:
    """Check that the API server answers under its base URL, and that it has the gallery."""
    if not HAS_PLUGIN_PAGES:
        return Finding(SKIPPED, f"Airflow {airflow_version} has no pages of plugins; the gallery needs Airflow 3.1.")
    base_url = (conf.get("api", "base_url", fallback="") or "").rstrip("/")
    # Airflow allows a path only.
    if not base_url or base_url.startswith("/"):
        base_url = f"http://localhost:{conf.get('api', 'port', fallback='8080')}{base_url}"
    if not is_http_url(base_url):
        return Finding(
            WARNING,
            f"{public_url(base_url)} is no URL of the API server, so the gallery cannot be looked for. Correct [api] "
            "base_url to an http:// or https:// URL, and [api] port to a number.",
        )
    url = f"{public_url(base_url)}{_GALLERY_FILE}"
    try:
        answer = ask(url)
    except (OSError, http.client.HTTPException) as error:
        return Finding(
            WARNING,
            f"{url} cannot be reached from here: {describe(error)} Check that the API server runs, and [api] base_url.",
        )
    status, content_type = answer.status, answer.content_type
    if status in _ANSWERS_OF_THE_GALLERY or (status < 300 and content_type.startswith("image/svg")):  # noqa: PLR2004  HTTP
        return Finding(OK, f"The API server at {public_url(base_url)} has the gallery.")
    if 300 <= status < 400 or status >= 500:  # noqa: PLR2004  HTTP
        return Finding(
            WARNING,
            f"{url} answered HTTP {status}, so a proxy or a login page may stand before the API server. Open "
            f"{public_url(base_url)}{PREFIX}/ in a browser to see the gallery.",
        )
    return Finding(
        FAILED,
        f"{url} answered HTTP {status} with {content_type or 'no content type'}: that server does not have the "
        "gallery. Install this package where the API server runs and restart it, and check [api] base_url.",
    )
