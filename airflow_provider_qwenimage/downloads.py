"""Downloads an image from the host that the API names, and checks it. No credentials of any kind go there."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_provider_qwenimage import __version__
from airflow_provider_qwenimage.contract import GenerateRequest, printable
from airflow_provider_qwenimage.exceptions import QwenImageImageError
from airflow_provider_qwenimage.retries import RequestRetries
from airflow_provider_qwenimage.verification import ImageFacts, verify_image

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 60.0
_RETRIES = RequestRetries(limit=5, delay_seconds=1.0)
_CHUNK_BYTES = 256 * 1024


def open_session() -> requests.Session:
    """Return a session for the image host; a context manager."""
    import requests

    session = requests.Session()
    session.headers["User-Agent"] = f"airflow-provider-qwenimage/{__version__}"
    # Otherwise requests would look for credentials in a netrc file.
    session.auth = lambda request: request
    return session


def fetch(
    session: requests.Session, url: str, request: GenerateRequest, max_image_bytes: int
) -> tuple[bytes, ImageFacts]:
    """Download one image and verify it, again after a fault that may pass.

    It is held in memory: to be verified it is decoded, which takes several times as much.

    Args:
        session: What `open_session` returned.
        url: Where the image is.
        request: What was asked for.
        max_image_bytes: A longer download is refused.

    Returns:
        The bytes of the file, and what was verified of them.

    Raises:
        QwenImageImageError: If it does not come, or is not what was asked for.
    """
    tries = 0
    while True:
        try:
            content = _download(session, url, max_image_bytes)
            return content, verify_image(content, request)
        except QwenImageImageError as error:
            pause = _RETRIES.pause(error, tries)
            if pause is None:
                raise
            log.warning("Download of %s failed; trying again in %.1f s: %s", without_query(url), pause, error)
        time.sleep(pause)
        tries += 1


def _download(session: requests.Session, url: str, max_image_bytes: int) -> bytes:
    import requests

    shown = without_query(url)
    try:
        with session.get(url, stream=True, timeout=_TIMEOUT_SECONDS) as response:
            if response.status_code != requests.codes.ok:
                raise QwenImageImageError(
                    f"{shown} answered HTTP {response.status_code} instead of the image. Image URLs may expire; "
                    "if it is too late, submit the prompt again."
                )
            promised = _content_length(response)
            if promised is not None and promised > max_image_bytes:
                raise _too_large(shown, promised, max_image_bytes)
            content = bytearray()
            for chunk in response.iter_content(_CHUNK_BYTES):
                content += chunk
                if len(content) > max_image_bytes:
                    raise _too_large(shown, len(content), max_image_bytes)
    except requests.RequestException as error:
        raise QwenImageImageError(
            f"{shown} could not be downloaded: {type(error).__name__}: {printable(str(error))}. Check that the worker "
            "may reach the image host."
        ) from error
    if promised is not None and len(content) != promised:
        raise QwenImageImageError(f"{shown} ended after {len(content)} of {promised} bytes. Try again.")
    return bytes(content)


def _content_length(response: requests.Response) -> int | None:
    value = response.headers.get("Content-Length", "")
    # A compressed transfer's length is not the file's.
    if "Content-Encoding" in response.headers or not (value.isascii() and value.isdigit()):
        return None
    return int(value[:18])


def _too_large(shown: str, size_bytes: int, max_image_bytes: int) -> QwenImageImageError:
    return QwenImageImageError(
        f"{shown} is larger than allowed: at least {size_bytes} bytes, limit {max_image_bytes}. Raise max_image_bytes "
        "if images may be that large.",
        permanent=True,
    )


def without_query(url: str) -> str:
    """Return a URL without its query, which may hold a signature that grants access."""
    return printable(urlsplit(url)._replace(query="", fragment="").geturl())
