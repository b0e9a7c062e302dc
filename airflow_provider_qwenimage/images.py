"""Brings a finished image into the user's storage, whole and verified, or not at all.

The bytes go to a temporary file on the worker first. Only an image that decodes, in the format and pixel
size that were asked for, is moved to its final name, and its ``.json`` sidecar follows.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
import time
import unicodedata
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pendulum

from airflow_provider_qwenimage import __version__
from airflow_provider_qwenimage.contract import GenerateRequest, TaskSnapshot, printable
from airflow_provider_qwenimage.exceptions import QwenImageImageError
from airflow_provider_qwenimage.retries import RequestRetries
from airflow_provider_qwenimage.verification import ImageFacts, verify_image

if TYPE_CHECKING:
    import requests
    from airflow.providers.common.compat.sdk import ObjectStoragePath

log = logging.getLogger(__name__)

# Several times the largest documented size (1024*1536) as an uncompressed bitmap.
DEFAULT_MAX_IMAGE_BYTES = 50 * 1024 * 1024
DOWNLOAD_TIMEOUT_SECONDS = 60.0

_DOWNLOAD_RETRIES = RequestRetries(limit=5, delay_seconds=1.0)
_CHUNK_BYTES = 256 * 1024
_SUFFIXES = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}
_IMAGE_FILE = re.compile(r"\.(jpe?g|png|webp|gif)/?$", re.IGNORECASE)
# An object appears in these stores only once its upload is complete; elsewhere a rename does that.
_STORES_THAT_PUT_WHOLE_OBJECTS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "adl", "az", "wasb", "wasbs"})


def open_output_path(output_path: str) -> ObjectStoragePath:
    """Return the folder for images, made where it did not exist.

    Call it before a submission: storage that cannot be reached should fail before anything is paid. Looks
    connections up, so call it while a task runs, never while a DAG is parsed.

    Args:
        output_path: A folder, as a path or a URL that Airflow's object storage knows (``file:///data``,
            ``s3://aws_default@bucket/images``, …).

    Raises:
        ValueError: If it is empty, names an image file, or no file system is installed for its scheme.
    """
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    check_output_path(output_path)
    try:
        folder = ObjectStoragePath(output_path)
        _ = folder.fs
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"output_path is {output_path!r}, which Airflow cannot open: {error}. Install the provider of that storage "
            "(for s3:// apache-airflow-providers-amazon[s3fs]), or use a file:// path."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_output_path(output_path: object) -> None:
    """Check the text of an `output_path` without opening anything.

    Raises:
        ValueError: If it is not a text, empty, or names an image file.
    """
    if not isinstance(output_path, str) or not output_path.strip():
        raise ValueError(f"output_path is {output_path!r}; allowed is the path or URL of a folder.")
    if _IMAGE_FILE.search(output_path):
        raise ValueError(
            f"output_path is {output_path!r}, which looks like an image file; allowed is the path or URL of a folder. "
            "The file's own name is made from the request."
        )


def file_stem(request: GenerateRequest, place: int = 0) -> str:
    """Return the file name, without suffix, of the image that a request asks for.

    Args:
        request: The request.
        place: The request's place among its like; see `GenerateRequest.fingerprint`.

    Returns:
        The prompt's first words, for people, and 16 hexadecimal digits of the fingerprint.
    """
    plain = unicodedata.normalize("NFKD", request.prompt).encode("ascii", "ignore").decode("ascii")
    words = "-".join(re.findall(r"[a-z0-9]+", plain.lower()))[:40].strip("-")
    return f"{words or 'image'}-{request.fingerprint(place)[:16]}"


def save_images(
    snapshot: TaskSnapshot,
    request: GenerateRequest,
    folder: ObjectStoragePath,
    *,
    place: int = 0,
    max_image_bytes: int = DEFAULT_MAX_IMAGE_BYTES,
) -> list[str]:
    """Download, verify and store every image of a finished task.

    Args:
        snapshot: The task's snapshot with status ``SUCCESS``.
        request: What was asked for.
        folder: Where the images go; see `open_output_path`.
        place: The request's place among its like; see `GenerateRequest.fingerprint`.
        max_image_bytes: A longer download is refused.

    Returns:
        The final path of each image, in the order of the snapshot's URLs.

    Raises:
        QwenImageImageError: If an image does not come, or is not what was asked for. Nothing of it
            stands under a final name then.
    """
    stem = file_stem(request, place)
    paths = []
    with tempfile.TemporaryDirectory(prefix="qwenimage-") as scratch, _open_session() as session:
        for number, url in enumerate(snapshot.image_urls, start=1):
            name = stem if number == 1 else f"{stem}-{number}"
            local = Path(scratch) / name
            facts = _fetch(session, url, local, request, max_image_bytes)
            image = folder / f"{name}{_SUFFIXES[request.output_format]}"
            _move_into_place(local, image)
            sidecar = Path(scratch) / f"{name}.json"
            sidecar.write_text(
                json.dumps(
                    _sidecar(snapshot=snapshot, request=request, url=url, image=image, facts=facts, place=place),
                    indent=2,
                )
                + "\n"
            )
            _move_into_place(sidecar, folder / f"{name}.json")
            log.info(
                "Stored %s: %d*%d %s, %d bytes.",
                image,
                facts.width,
                facts.height,
                facts.output_format,
                facts.size_bytes,
            )
            paths.append(str(image))
    return paths


def _open_session() -> requests.Session:
    import requests

    session = requests.Session()
    session.headers["User-Agent"] = f"airflow-provider-qwenimage/{__version__}"
    # No credentials of any kind go to the CDN: not the API key, not a netrc file's.
    session.auth = lambda request: request
    return session


def _fetch(
    session: requests.Session, url: str, file: Path, request: GenerateRequest, max_image_bytes: int
) -> ImageFacts:
    tries = 0
    while True:
        try:
            _download(session, url, file, max_image_bytes)
            return verify_image(file, request)
        except QwenImageImageError as error:
            pause = _DOWNLOAD_RETRIES.pause(error, tries)
            if pause is None:
                raise
            log.warning("Download of %s failed; trying again in %.1f s: %s", _without_query(url), pause, error)
        time.sleep(pause)
        tries += 1


def _download(session: requests.Session, url: str, file: Path, max_image_bytes: int) -> None:
    import requests

    shown = _without_query(url)
    try:
        with session.get(url, stream=True, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
            if response.status_code != requests.codes.ok:
                raise QwenImageImageError(
                    f"{shown} answered HTTP {response.status_code} instead of the image. Image URLs may expire; "
                    "if it is too late, submit the prompt again."
                )
            promised = _content_length(response)
            if promised is not None and promised > max_image_bytes:
                raise _too_large(shown, promised, max_image_bytes)
            received = 0
            with file.open("wb") as stream:
                for chunk in response.iter_content(_CHUNK_BYTES):
                    received += len(chunk)
                    if received > max_image_bytes:
                        raise _too_large(shown, received, max_image_bytes)
                    stream.write(chunk)
    except requests.RequestException as error:
        raise QwenImageImageError(
            f"{shown} could not be downloaded: {type(error).__name__}: {printable(str(error))}. Check that the worker "
            "may reach the image host."
        ) from error
    if promised is not None and received != promised:
        raise QwenImageImageError(f"{shown} ended after {received} of {promised} bytes. Try again.")


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


def _without_query(url: str) -> str:
    """Return a URL without its query, which may hold a signature that grants access."""
    return printable(urlsplit(url)._replace(query="", fragment="").geturl())


def _move_into_place(local: Path, target: ObjectStoragePath) -> None:
    filesystem = target.fs
    if target.protocol in _STORES_THAT_PUT_WHOLE_OBJECTS:
        filesystem.put_file(str(local), target.path)
        return
    hidden = target.parent / f".{target.name}.{uuid.uuid4().hex}.part"
    try:
        filesystem.put_file(str(local), hidden.path)
        filesystem.mv(hidden.path, target.path)
    except BaseException:
        if filesystem.exists(hidden.path):
            filesystem.rm_file(hidden.path)
        raise


def _sidecar(
    *,
    snapshot: TaskSnapshot,
    request: GenerateRequest,
    url: str,
    image: ObjectStoragePath,
    facts: ImageFacts,
    place: int,
) -> dict[str, Any]:
    return {
        "image": image.name,
        "request": request.description(),
        "fingerprint": request.fingerprint(place),
        "task_id": snapshot.task_id,
        "status": str(snapshot.status),
        "consumed_credits": snapshot.consumed_credits,
        "image_url": _without_query(url),
        "width": facts.width,
        "height": facts.height,
        "output_format": facts.output_format,
        "size_bytes": facts.size_bytes,
        "sha256": facts.sha256,
        "created_at": snapshot.created_at.isoformat() if snapshot.created_at else None,
        "stored_at": pendulum.now("UTC").isoformat(),
        "package_version": __version__,
    }
