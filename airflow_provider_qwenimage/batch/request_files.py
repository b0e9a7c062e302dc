"""Reads requests from a list or from a file: a regular file, in any storage that Airflow knows."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, cast

from airflow_provider_qwenimage.batch.requests import BatchRequests, read_list
from airflow_provider_qwenimage.rules.arguments import path_text
from airflow_provider_qwenimage.rules.request_rows import file_reader, shown_source
from airflow_provider_qwenimage.storage.libraries import LOCAL, READ, explaining, reason_of
from airflow_provider_qwenimage.storage.paths import path_of
from airflow_provider_qwenimage.text.urls import without_credentials

if TYPE_CHECKING:
    from typing import BinaryIO

    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_qwenimage.batch.requests import RowProblems

_NEVER_A_FILE = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def read_requests(source: object, variant: int, problems: RowProblems | None = None) -> BatchRequests:
    """Read the requests of a list, of the text of a list, or of the file at a path or URL.

    Args:
        source: The argument `requests`, rendered.
        variant: See `BatchRequests`.
        problems: See `BatchRequests`.

    Raises:
        ValueError: If they are not requests.
        OSError: If the file cannot be read.
    """
    source = path_text(source) or source
    read_file = file_reader(source) if isinstance(source, str) else None
    if read_file is None:
        return BatchRequests(read_list(source), variant=variant, problems=problems)
    with open_requests(str(source)) as stream:
        return BatchRequests(read_file(stream), variant=variant, problems=problems)


def open_requests(source: str) -> BinaryIO:
    """Open a file of requests.

    Args:
        source: Its path or URL.

    Returns:
        Its bytes; the caller closes the stream.

    Raises:
        FileNotFoundError: If the file does not exist; another task may still write it.
        ValueError: If it is a folder, a device or a pipe, which may have no end, or a URL with a password.
    """
    if source != without_credentials(source):
        # Airflow takes them for the id of a connection, which it logs.
        raise ValueError(
            f"requests is {shown_source(source)}, with credentials before the @; only the id of an Airflow connection "
            "may precede it. Keep credentials in a connection."
        )
    try:
        path = path_of(source)
        return _open_local(path.path) if path.protocol in LOCAL else _open_remote(path)
    except FileNotFoundError:
        pass
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"requests is {shown_source(source)}, which Airflow cannot open ({reason_of(error)}). Check the path, and "
            "that the provider of that storage is installed (for s3:// apache-airflow-providers-amazon[s3fs])."
        ) from None
    except OSError as error:
        if error.errno not in _NEVER_A_FILE:
            raise
        raise _not_a_file(source) from None
    raise FileNotFoundError(
        f"requests is {shown_source(source)}, and that file does not exist (yet). Check the path, and that the task "
        "that writes it has run."
    )


def _open_local(path: str) -> BinaryIO:
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def _open_remote(path: ObjectStoragePath) -> BinaryIO:
    # Otherwise its length comes from a cached listing, which another process may have made stale.
    path.fs.invalidate_cache(path.path)
    with explaining(READ, path):
        is_folder = path.fs.info(path.path).get("type") == "directory"
        stream = None if is_folder else path.open("rb")
    # Spark writes a folder of that name, which an object store opens like an empty file.
    if stream is None:
        raise IsADirectoryError(errno.EISDIR, "It is a folder", str(path))
    return cast("BinaryIO", stream)


def _not_a_file(source: str) -> ValueError:
    return ValueError(f"requests is {shown_source(source)}, which is not a regular file. Give the path of a file.")
