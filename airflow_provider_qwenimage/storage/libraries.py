"""Differences between storages and the libraries that access them: errors, rights, content types."""

from __future__ import annotations

import errno
import inspect
import mimetypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.text.messages import printable, shorten

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

# The protocols of the local disk.
LOCAL = frozenset({"file", "local", ""})

# In these stores an object appears only once its upload is complete; elsewhere a rename achieves that.
_STORES_THAT_PUT_WHOLE_OBJECTS = frozenset(
    {"s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "adl", "az", "wasb", "wasbs"}
)

READ, WRITE, DELETE, LIST = "read", "written", "deleted", "listed"

_VERBS = {READ: "read files", WRITE: "write files", DELETE: "delete files", LIST: "list files"}
# By the library that accesses the storage.
_RIGHTS = {
    "s3fs": {READ: "s3:GetObject", WRITE: "s3:PutObject", DELETE: "s3:DeleteObject", LIST: "s3:ListBucket"},
    "gcsfs": {
        READ: "storage.objects.get",
        # Google requires both to replace a file.
        WRITE: "storage.objects.create and storage.objects.delete",
        DELETE: "storage.objects.delete",
        LIST: "storage.objects.list",
    },
    "adlfs": dict.fromkeys(_VERBS, "the role Storage Blob Data Contributor"),
}
_CONN_ID = re.compile(r"[a-z][a-z0-9+.-]*://([^@/]+)@", re.IGNORECASE)
_QUERY = re.compile(r"(https?://[^\s'\"?]*)\?[^\s'\"]*", re.IGNORECASE)
_DENIED = frozenset({401, 403})
_MISSING = frozenset({404})
_CONFLICTS = frozenset({409, 412})
_UNSUPPORTED = frozenset({501})

_CONTENT_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".csv": "text/csv; charset=utf-8",
}
# The argument that sets it, by library; without it, each library stores everything as application/octet-stream.
_CONTENT_TYPE_ARGUMENTS = {"s3fs": "ContentType", "gcsfs": "content_type", "adlfs": "content_settings"}


def library_of(filesystem: Any) -> str:
    """Return the package that accesses a storage, also for a class that a user derived from one of its classes."""
    packages = (kind.__module__.partition(".")[0] for kind in type(filesystem).__mro__)
    return next((package for package in packages if package in _CONTENT_TYPE_ARGUMENTS), "")


def content_type_of(name: str) -> str:
    """Return the content type of a stored file by its name, so that a browser displays the file."""
    suffix = name[name.rfind(".") :].lower()
    return _CONTENT_TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"


def content_type_arguments(target: ObjectStoragePath) -> dict[str, Any]:
    """Return the arguments that set a file's content type when it is stored."""
    library = library_of(target.fs)
    if library not in _CONTENT_TYPE_ARGUMENTS:
        return {}
    content_type: Any = content_type_of(target.name)
    if library == "adlfs":
        from azure.storage.blob import ContentSettings  # type: ignore[import-not-found]  # adlfs brings it

        content_type = ContentSettings(content_type=content_type)
    return {_CONTENT_TYPE_ARGUMENTS[library]: content_type}


def exclusive_arguments(path: ObjectStoragePath) -> dict[str, Any] | None:
    """Return the arguments of `pipe_file` that store an object only if none has its name.

    Returns:
        None if the storage or the installed version of its library cannot do that.
    """
    filesystem = path.fs
    library = library_of(filesystem)
    if library == "adlfs":
        arguments: dict[str, Any] = {"overwrite": False}
    elif library == "gcsfs" or (library == "s3fs" and _botocore() > (1, 35, 20)):
        arguments = {"mode": "create"}
    else:
        return None
    # Versions that do not know the argument pass it over and replace the object.
    known = inspect.signature(getattr(filesystem, "_pipe_file", filesystem.pipe_file)).parameters
    return arguments if known.keys() >= arguments.keys() else None


def unchanged_arguments(path: ObjectStoragePath) -> dict[str, Any]:
    """Return the arguments of `pipe_file` that replace an object only if it is still the one that is stored now.

    Returns:
        None of them if there is no object, or if the storage or the installed version of its library cannot do that.

    Raises:
        Exception: One of the library's own, if the storage cannot be asked.
    """
    filesystem = path.fs
    if library_of(filesystem) != "s3fs" or _botocore() < (1, 36):
        return {}
    # Otherwise a listing that is kept in memory answers.
    filesystem.invalidate_cache(path.path)
    try:
        tag = filesystem.info(path.path).get("ETag")
    except FileNotFoundError:
        tag = None
    return {"IfMatch": tag} if tag else {}


def _botocore() -> tuple[int, ...]:
    from botocore import __version__ as version  # type: ignore[import-untyped]  # s3fs brings it

    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def is_object_store(path: ObjectStoragePath) -> bool:
    """Whether a path is in an object store, which has buckets and no folders."""
    return path.protocol in _STORES_THAT_PUT_WHOLE_OBJECTS


def bucket_of(path: ObjectStoragePath) -> str:
    """Return the bucket or container of a path in an object store."""
    return str(path.path).partition("/")[0]


@contextmanager
def explaining(action: str, path: ObjectStoragePath) -> Iterator[None]:
    """Turn any exception of a storage into an OSError that names the path and, if access was denied, the missing right.

    Args:
        action: One of `READ`, `WRITE`, `DELETE`, `LIST`.
        path: The file or folder.

    Raises:
        PermissionError: If access was denied.
        FileNotFoundError: If the file does not exist; for `WRITE`, if the bucket does not exist.
        OSError: For everything else.
    """
    remote = path.protocol not in LOCAL
    try:
        yield
    except Exception as error:  # the libraries' own, HTTP clients' among them
        if isinstance(error, FileNotFoundError) and (action != WRITE or not remote):
            raise
        if action == WRITE and (isinstance(error, FileNotFoundError) or _status_of(error) & _MISSING):
            raise FileNotFoundError(
                f"{path} cannot be written: its bucket or container does not exist ({reason_of(error)}). Correct the "
                "path, or create it; a task never creates one."
            ) from error
        if is_denied(error):
            raise PermissionError(denied(action, str(path), library_of(path.fs), error)) from error
        if isinstance(error, OSError) and not remote:
            # The error of a full disk has no file name.
            if error.errno is not None and error.filename is None:
                error.filename = str(path)
            raise
        raise OSError(f"{path} cannot be {action} ({reason_of(error)}). {what_to_check(str(path))}") from error


def is_denied(error: BaseException) -> bool:
    """Whether an error of a storage means that access was denied."""
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return True
    return bool(_status_of(error) & _DENIED)


def is_conflict(error: BaseException) -> bool:
    """Whether an error of a storage, or its cause, means that the file exists or is being created by someone else."""
    return any(isinstance(one, FileExistsError) or _status_of(one) & _CONFLICTS for one in _causes(error))


def is_unsupported(error: BaseException) -> bool:
    """Whether an error of a storage, or its cause, means that the server does not know what it was asked for."""
    return any(_status_of(one) & _UNSUPPORTED for one in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status_of(error: BaseException) -> set[Any]:
    """Return the HTTP status of a storage library's error; each library has its own name for it."""
    found = [getattr(error, name, None) for name in ("status_code", "code", "status")]
    # Botocore's.
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found.append(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    return {status for status in found if isinstance(status, int)}


def denied(action: str, path: str, library: str, error: BaseException) -> str:
    """Return the message for an action that was denied; see `explaining`."""
    right = _RIGHTS.get(library, {}).get(action)
    sentence = f"{path} cannot be {action}: access was denied ({reason_of(error)}). Give {_owner(path)} the right to "
    sentence += f"{_VERBS[action]} there" + (f" ({right})." if right else ".")
    if action == LIST:
        sentence += " Without it, the storage does not report whether a file exists, and an image could be paid twice."
    return sentence


def reason_of(error: BaseException) -> str:
    """Return a library's error, shortened and without the queries of URLs, which may grant access."""
    text = _QUERY.sub(r"\1?…", printable(str(error)))
    return shorten(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _owner(path: str) -> str:
    found = _CONN_ID.match(path)
    return f"the credentials of the Airflow connection {found[1]!r}" if found else "the worker"


def what_to_check(path: str) -> str:
    """Return the advice that ends an error about a path; it names the path's connection, if there is one."""
    found = _CONN_ID.match(path)
    return f"Check the path, and the Airflow connection {found[1]!r}." if found else "Check the path and the storage."
