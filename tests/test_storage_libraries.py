"""Errors of storages become one message, whatever library raised them."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.storage import files as storage
from airflow_provider_qwenimage.storage.libraries import (
    DELETE,
    LIST,
    READ,
    WRITE,
    content_type_of,
    explaining,
    is_denied,
    reason_of,
)
from airflow_provider_qwenimage.storage.paths import open_output_path
from airflow_provider_qwenimage.text.urls import without_credentials
from tests.stores import MemoryStore, attach


class HttpError(Exception):
    """Like the errors of Google's and Azure's libraries: not an OSError, and with the status under various names."""

    def __init__(self, message: str, **status: Any) -> None:
        super().__init__(message)
        self.__dict__.update(status)


class StoreOfGoogle(MemoryStore):
    """Accepts the argument of gcsfs for a content type, and records it."""

    __module__ = "gcsfs.core"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self.arguments = kwargs
        super().pipe_file(path, value, mode)


@pytest.mark.parametrize("status", [{"status_code": 403}, {"code": 401}, {"status": 403}])
@pytest.mark.parametrize("action", [READ, WRITE, DELETE, LIST])
def test_a_denied_request_is_a_permission_error_that_names_path_and_connection(
    action: str, status: dict[str, int]
) -> None:
    start = attach(MemoryStore("gs"), "gs")
    folder = open_output_path(f"{start}bucket/x")
    with pytest.raises(PermissionError) as raised, explaining(action, folder):
        raise HttpError("no\nsuch\x1b[31m luck", **status)
    text = str(raised.value)
    assert text.startswith(f"{folder} cannot be {action}: access was denied (HttpError: no such")
    assert repr(start.removeprefix("gs://")[:-1]) in text
    assert text.isprintable()


def test_a_disk_that_is_read_only_is_denied_as_well(tmp_path: Path) -> None:
    folder = open_output_path(str(tmp_path))
    with pytest.raises(PermissionError) as raised, explaining(WRITE, folder):
        raise OSError(errno.EROFS, "Read-only file system", f"{tmp_path}/.hidden.part")
    assert str(raised.value).startswith(f"{tmp_path} cannot be written: access was denied (OSError: [Errno")


def test_a_missing_bucket_is_recognized_by_the_status() -> None:
    folder = open_output_path(f"{attach(MemoryStore('abfs'), 'abfs')}bucket/x")
    with pytest.raises(FileNotFoundError, match="its bucket or container does not exist"), explaining(WRITE, folder):
        raise HttpError("The specified container does not exist.", status_code=404)


def test_any_other_error_of_a_library_becomes_an_os_error_without_credentials() -> None:
    folder = open_output_path(f"{attach(MemoryStore('abfs'), 'abfs')}bucket/x")
    url = "https://account.blob.example/c?sv=1&sig=secret"
    message = r"cannot be written \(HttpError: .*Check the path"
    with pytest.raises(OSError, match=message) as raised, explaining(WRITE, folder):
        raise HttpError(f"No answer from '{url}'.")
    assert "secret" not in str(raised.value)
    assert len(reason_of(HttpError("x" * 100_000))) < 2000


@pytest.mark.parametrize(
    "error", [HttpError("x"), HttpError("x", status_code="403"), HttpError("x", code=404), FileNotFoundError("x")]
)
def test_other_errors_are_not_reported_as_denied(error: Exception) -> None:
    assert not is_denied(error)


def test_google_storage_gets_the_content_type_of_a_file() -> None:
    store = StoreOfGoogle("gs")
    folder = open_output_path(f"{attach(store, 'gs')}bucket/x")
    storage.put_bytes(b"x", folder / "fox.webp")
    assert store.arguments == {"content_type": "image/webp"}


@pytest.mark.parametrize("name", ["fox.PNG", "a.b.png", ".hidden.png"])
def test_the_content_type_follows_from_the_suffix(name: str) -> None:
    assert content_type_of(name) == "image/png"


@pytest.mark.parametrize("secret", ["secret", "sec/ret", "secret/", "9secret", "sec:ret", ""])
def test_a_password_in_a_url_is_masked(secret: str) -> None:
    assert without_credentials(f"s3://key:{secret}@bucket/a") == "s3://***@bucket/a"


@pytest.mark.parametrize("text", ["://", ":", "://a:b", "@", "://::a"])
def test_a_long_text_is_masked_at_once(text: str) -> None:
    # It would take minutes if the time grew with more than the length.
    without_credentials(f"://{text * (1_000_000 // len(text))}")


@pytest.mark.parametrize(
    "url", ["s3://bucket:9000/a@b", "s3://aws_default@bucket/a:b@c", "s3://bucket/x", "/data/a:b@c", "file:///a:b@c"]
)
def test_a_url_without_a_password_is_shown_unchanged(url: str) -> None:
    assert without_credentials(url) == url
