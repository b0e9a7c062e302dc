"""The folder of a benchmark that starts an Airflow: its logs are kept if it fails."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.local_airflow import CannotGoOnError


@contextmanager
def kept_after_a_failure(content: str) -> Iterator[Path]:
    """Return a new folder, which is removed at the end unless the benchmark fails.

    Args:
        content: What is in it, for the message of the failure.

    Raises:
        CannotGoOnError: Instead of an AssertionError or a CannotGoOnError, with the name of the folder.
    """
    folder = Path(tempfile.mkdtemp(prefix="qwenimage-benchmark-"))
    keep = False
    try:
        yield folder
    except (AssertionError, CannotGoOnError) as error:
        keep = True
        raise CannotGoOnError(f"{error}\n{content} are in {folder}") from error
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
