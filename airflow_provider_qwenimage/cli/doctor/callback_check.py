"""Checks that the API server takes callbacks at the URL that the option ``callback_base_url`` gives the API."""

from __future__ import annotations

import http.client
import json
import ssl
import uuid

from airflow import __version__ as airflow_version

from airflow_provider_qwenimage.airflow_versions import HAS_PLUGIN_PAGES
from airflow_provider_qwenimage.cli.doctor.asking import Answered, ask
from airflow_provider_qwenimage.cli.doctor.findings import FAILED, OK, SKIPPED, WARNING, Finding
from airflow_provider_qwenimage.client.diagnosis import describe
from airflow_provider_qwenimage.configuration import callback_base_url, is_set
from airflow_provider_qwenimage.rules.callbacks import NO_TASK, callback_url, new_secret
from airflow_provider_qwenimage.text.urls import public_url

_OPTION = "callback_base_url"
_NOT_FOUND, _TOO_MANY, _BUSY = 404, 429, 503
# An API server without the option answers with the gallery, whose answers have headers for its pages.
_HEADER_OF_THE_GALLERY = "X-Frame-Options"


def check_callbacks() -> Finding:
    """Check that a callback for a task that does not exist gets the answer of this package."""
    if not HAS_PLUGIN_PAGES:
        return Finding(SKIPPED, f"Airflow {airflow_version} takes no callbacks of the API; they need Airflow 3.1.")
    if not is_set(_OPTION):
        return Finding(SKIPPED, f"The option [qwenimage] {_OPTION} is not set: deferred tasks poll.")
    base_url = callback_base_url()
    if base_url is None:
        return Finding(
            FAILED,
            f"The option [qwenimage] {_OPTION} cannot be used, so deferred tasks poll. Set it to the http:// or "
            "https:// URL at which the API reaches the API server, without user, query and fragment.",
        )
    shown = public_url(base_url)
    try:
        answer = ask(callback_url(base_url, uuid.uuid4(), new_secret()), "POST")
    except ssl.SSLCertVerificationError as error:
        return Finding(
            WARNING,
            f"{shown} has a TLS certificate that is not trusted here: {describe(error)} If the API does not trust it "
            "either, callbacks do not arrive and tasks poll every 30 s. Give the server, or the proxy in front of it, "
            "a certificate of a public authority for this name, with its chain.",
        )
    except (OSError, http.client.HTTPException) as error:
        return Finding(
            WARNING,
            f"{shown} cannot be reached from here: {describe(error)} If the API cannot reach it either, callbacks do "
            f"not arrive and tasks poll every 30 s. Check [qwenimage] {_OPTION}, and the firewall.",
        )
    return _judge(shown, answer)


def _judge(shown: str, answer: Answered) -> Finding:
    if answer.status == _NOT_FOUND and _detail(answer) == NO_TASK:
        return Finding(OK, f"The API server takes callbacks at {shown}, as seen from here.")
    if answer.status in (_TOO_MANY, _BUSY) and _detail(answer) is not None:
        return Finding(
            WARNING,
            f"{shown} answered HTTP {answer.status} to a callback, so it is busy, or cannot read Airflow's database. "
            "Read the log of the API server, and try again.",
        )
    if answer.status == _NOT_FOUND and _detail(answer) is not None and _HEADER_OF_THE_GALLERY in answer.headers:
        return Finding(
            FAILED,
            f"The API server at {shown} has this package but takes no callbacks. Set [qwenimage] {_OPTION} for the "
            "API server as well, and restart it.",
        )
    return Finding(
        FAILED,
        f"{shown} answered HTTP {answer.status} with {answer.content_type or 'no content type'} to a callback, which "
        "is not the answer of this package: a proxy or another server takes it, or this version of the package is not "
        f"installed where the API server runs. Let POST requests below {shown}/qwenimage/callback/ reach the API "
        f"server, or correct [qwenimage] {_OPTION}.",
    )


def _detail(answer: Answered) -> object:
    """Return what the JSON object says with which this package, and Airflow, describe an error; None if it is none."""
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        return None
    return body["detail"] if isinstance(body, dict) and set(body) == {"detail"} else None
