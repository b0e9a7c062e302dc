"""Stores the image that a drawing has paid for where its user finds it."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from airflow_provider_qwenimage.rules.verification import open_image
from airflow_provider_qwenimage.storage.files import create_bytes
from airflow_provider_qwenimage.storage.paths import open_output_path

_MOST_ID_CHARACTERS = 60


def keep_image(task_id: str, content: bytes, output_path: str | None) -> str:
    """Store the bytes of an image; a file that exists is not replaced.

    Args:
        task_id: The API's id of the image task.
        content: The bytes, whatever they are.
        output_path: The folder; the working directory if it is None, and the folder for temporary files if the image
            cannot be stored there.

    Returns:
        Where the image is, and why it is not in the first of these folders.

    Raises:
        OSError: If it cannot be stored in any of them.
    """
    name = f"qwenimage-doctor-{re.sub(r'[^A-Za-z0-9_-]', '_', task_id)[:_MOST_ID_CHARACTERS]}.{_suffix(content)}"
    problems: list[str] = []
    for folder in (output_path or str(Path.cwd()), tempfile.gettempdir()):
        try:
            target = open_output_path(folder) / name
            if create_bytes(content, target):
                return " ".join([f"stored as {target}.", *problems])
            problems.append(f"{target} exists with other content.")
        except (OSError, ValueError) as error:
            problems.append(str(error))
    raise OSError(f"The image could not be stored: {' '.join(problems)}")


def _suffix(content: bytes) -> str:
    try:
        return open_image(content)[0]
    except Exception:  # noqa: BLE001  decoders raise a dozen classes; bytes that are no image are kept too
        return "bin"
